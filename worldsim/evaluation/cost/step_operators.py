"""Operators and milliseconds of a step by kind of work: what there is to save, and where."""

# F steps, B batch, A action axes

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from worldsim.evaluation.cost.step_time import WARM_UP_PAIRS, now, random_actions, timed_step
from worldsim.evaluation.statistics import Estimate, median_ratio
from worldsim.model.attention.base import attend_in_play
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.frame_pass import write_matrices
from worldsim.model.memory.state import push_window
from worldsim.runtime.timing import Percentiles, steady_memory
from worldsim.simulator import Simulator
from worldsim.state import WorldState

LINEAR, CONVOLUTION, ATTENTION = "linear", "convolution", "attention"
READ, WRITE = "memory read", "memory write"
COPIES, VIEWS, OTHERS = "copies and casts", "views", "elementwise and norms"
KINDS = (LINEAR, CONVOLUTION, ATTENTION, READ, WRITE, OTHERS, COPIES, VIEWS)
PLACES: dict[CodeType, str] = {
    attend_in_play.__code__: ATTENTION,
    HybridAttention.recall.__code__: READ,
    kernels.read.__code__: READ,
    write_matrices.__code__: WRITE,
    push_window.__code__: WRITE,
}
"""Functions all of whose operators are of one kind, but for views."""
NAMED = {
    CONVOLUTION: ("conv",),
    LINEAR: ("linear", "addmm", "::mm", "bmm", "matmul"),
    COPIES: (
        "copy",
        "::to",
        "::cat",
        "::stack",
        "clone",
        "contiguous",
        "reshape",
        "flatten",
        "pixel_shuffle",
    ),
}
"""Kinds by what the name of an operator holds."""


def kind_of(name: str, result: object, arguments: Sequence[object], place: str | None) -> str:
    """Return the kind of an operator.

    Args:
        name: Of it.
        result: What it returned: without memory of its own it is a view.
        arguments: Of it.
        place: The kind of the function that called it, if that is in `PLACES`.
    """
    first = result[0] if isinstance(result, tuple | list) and result else result
    given = arguments[0] if arguments else None
    if not name.partition(".")[0].endswith("_") and _shares_memory(first, given):
        return VIEWS
    if place is not None:
        return place
    return next((kind for kind, parts in NAMED.items() if any(part in name for part in parts)), OTHERS)


def _shares_memory(result: object, given: object) -> bool:
    if not (isinstance(result, Tensor) and isinstance(given, Tensor)):
        return False
    return result.untyped_storage().data_ptr() == given.untyped_storage().data_ptr() != 0


def _place() -> str | None:
    """Return the kind of the innermost function of `PLACES` that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code in PLACES:
            return PLACES[frame.f_code]
        frame = frame.f_back
    return None


@dataclass(slots=True)
class KindCost:
    """Operators of a kind in one step and what they took."""

    operators: int = 0
    milliseconds: float = 0.0


class OperatorLog(TorchDispatchMode):
    """Counts and times all operators that PyTorch is asked for, as eager code asks for them."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.costs: defaultdict[str, KindCost] = defaultdict(KindCost)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        began = now(self.device)
        result = func(*args, **(kwargs or {}))
        taken = 1000 * (now(self.device) - began)
        cost = self.costs[kind_of(func.name(), result, args, _place())]
        cost.operators, cost.milliseconds = cost.operators + 1, cost.milliseconds + taken
        return result


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOperators:
    """What a step of a world consists of.

    The log slows what it watches, operators of few numbers most: their times compare kinds, and `step_ms`
    worlds.

    Attributes:
        step_ms: Of steps as they are played.
        predict: Medians by kind, of drawing a frame.
        commit: Medians by kind, of remembering it.
        against: Steps over those of another world that were taken in turn with them; None without one.
    """

    step_ms: Percentiles
    predict: dict[str, KindCost]
    commit: dict[str, KindCost]
    against: Estimate | None = None


@dataclass(slots=True)
class _Dream:
    simulator: Simulator
    state: WorldState
    actions: Tensor  # [F, 1, A]
    step_ms: list[float] = field(default_factory=list)
    logs: list[tuple[OperatorLog, OperatorLog]] = field(default_factory=list)

    def step(self, index: int) -> None:
        """Log what a step asks for, then time one that is not watched."""
        device, action = self.simulator.world.device, self.actions[index]
        logs = OperatorLog(device), OperatorLog(device)
        with logs[0]:
            prediction = self.simulator.predict(self.state, action)
        with logs[1]:
            self.simulator.commit(self.state, prediction)
        milliseconds, self.state = timed_step(self.simulator, self.state, action)
        if index >= WARM_UP_PAIRS:
            self.step_ms.append(milliseconds)
            self.logs.append(logs)


def measure_operators(
    simulators: Sequence[Simulator], *, num_steps: int = 50, seed: int = 0
) -> list[StepOperators]:
    """Step a dream of each of one or two worlds in turn, from their first starts, under random actions.

    Args:
        simulators: That launch their kernels one by one, `compile="none"`. `against` of the first is its
            steps over those of the second.
        num_steps: Steps that count; the median of each kind's is given.
        seed: Of the actions and of the dreams.
    """
    total = num_steps + WARM_UP_PAIRS
    dreams = [
        _Dream(each, each.start(each.world.starts[:1], [seed]), random_actions(each, 1, total, seed))
        for each in simulators
    ]
    with steady_memory():
        for index in range(total):
            for dream in dreams if index % 2 == 0 else dreams[::-1]:
                dream.step(index)
    found = [np.array(dream.step_ms) for dream in dreams]
    ratios = [None] if len(found) == 1 else [median_ratio(found[0] / found[1]), None]
    return [_summary(dream, ratio) for dream, ratio in zip(dreams, ratios, strict=True)]


def _summary(dream: _Dream, against: Estimate | None) -> StepOperators:
    step_ms = Percentiles.of(np.array(dream.step_ms))
    predict, commit = ([pair[part].costs for pair in dream.logs] for part in (0, 1))
    parts = [
        {
            kind: KindCost(
                int(np.median([costs[kind].operators for costs in steps])),
                float(np.median([costs[kind].milliseconds for costs in steps])),
            )
            for kind in KINDS
        }
        for steps in (predict, commit)
    ]
    return StepOperators(step_ms=step_ms, predict=parts[0], commit=parts[1], against=against)

"""Whether the cost of a frame stays as it is: milliseconds, bytes and peak memory up to 100,000 frames.

Frames far apart are reached by committing alone: the memory is written as in play, and no picture is drawn in
between. States are values, so a late one and an early one are stepped in turn: what else the machine does
then slows both.
"""

# F frames

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.cost.batch_size import bytes_at
from worldsim.evaluation.cost.step_time import commit_on, device_memory, random_actions, timed_step
from worldsim.evaluation.statistics import median_ratio
from worldsim.play.session import steady_memory
from worldsim.runtime.timing import process_memory_bytes
from worldsim.simulator import Simulator
from worldsim.state import WorldState

MARKS = (81, 405, 921, 1005, 10_000, 100_000)
"""Frames at which the cost is measured: those of published tables, and then tens of times as many."""
EARLY = 100
MAX_STATE_BYTES = 2**31
"""A memory that grows is not followed beyond this."""
TIMED_STEPS = 20


def measure_flatness(
    simulator: Simulator,
    state: WorldState,
    *,
    marks: Sequence[int] = MARKS,
    timed_steps: int = TIMED_STEPS,
    compared_steps: int = 200,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Step one dream on and on under random actions and measure what a step costs at some frames.

    Args:
        simulator: Of the world.
        state: Of one dream, frame 0.
        marks: Frames, in order.
        timed_steps: Steps timed at each, whose median counts.
        compared_steps: Pairs of steps, an early and a late one, in turn.
        seed: Of actions.
        show_progress: Show a progress bar.

    Returns:
        A JSON object; `late_over_early_ms` has an interval over the pairs of steps.
    """
    reached = [mark for mark in marks if bytes_at(simulator.world, mark) <= MAX_STATE_BYTES]
    actions = random_actions(simulator, 1, max([*reached, EARLY]) + timed_steps, seed)
    places = sorted({EARLY, *reached})
    report: dict[str, Any] = {"frames": {}, "left_out": [mark for mark in marks if mark not in reached]}
    early: WorldState | None = None
    device = simulator.world.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    frame = 0
    with (
        steady_memory(),
        tqdm(total=places[-1], desc="cost", unit="frame", unit_scale=True, disable=not show_progress) as bar,
    ):
        for place in places:
            state = commit_on(simulator, state, actions[frame:place], bar.update)
            frame = place
            report["frames"][str(place)] = _cost_at(simulator, state, actions[place:][:timed_steps])
            early = state if place == EARLY else early
    assert early is not None, "the early frame is one of the places"
    bytes_of = [report["frames"][str(place)]["state_bytes"] for place in (EARLY, places[-1])]
    report["late_frame"] = places[-1]
    report["late_over_early_bytes"] = bytes_of[1] / bytes_of[0]
    report["late_over_early_ms"] = _compare(simulator, early, state, actions[:compared_steps])
    return report


def _cost_at(simulator: Simulator, state: WorldState, actions: Tensor) -> dict[str, Any]:
    """Return what steps after a state cost; the state itself stays where it was."""
    stepped, times = state, []
    for action in actions:
        milliseconds, stepped = timed_step(simulator, stepped, action)
        times.append(milliseconds)
    on_device = device_memory(simulator.world.device)
    return {
        "step_ms": {"p50": float(np.median(times)), "p90": float(np.quantile(times, 0.9))},
        "state_bytes": state.nbytes,
        "process_bytes": process_memory_bytes(),
        "device_peak_bytes": on_device[1] if on_device else None,
    }


def _compare(simulator: Simulator, early: WorldState, late: WorldState, actions: Tensor) -> dict[str, Any]:
    """Return the ratio of step times, late over early, of steps taken in turn: the median of the ratios."""
    ratios = []
    for index, action in enumerate(actions):
        order = [early, late] if index % 2 == 0 else [late, early]
        times = [timed_step(simulator, state, action)[0] for state in order]
        ratios.append(times[1] / times[0] if index % 2 == 0 else times[0] / times[1])
    return median_ratio(np.array(ratios)).to_json()

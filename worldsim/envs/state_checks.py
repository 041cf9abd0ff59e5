"""Checks of a state before a dream goes on from it."""

# N dreams

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.memory.state import MemoryState
from worldsim.state import MEMORY_PREFIX, WorldState

MAX_COUNT = 2**62
"""Far more frames than anybody plays, and none too many to count one more."""
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COUNTERS = ("frame_index", "seed", f"{MEMORY_PREFIX}num_committed")


def check_state(state: Any, empty: WorldState, num_dreams: int, identity: str) -> None:
    """Refuse what is not a state of so many dreams of a world: other shapes, types, numbers.

    Numbers of frames and seeds must be int64 and at least 0, frames uint8, and the memory of finite
    floating-point numbers, in whatever precision. Looking at 4 MB takes less than a millisecond.

    Raises:
        WorldError: If it is none; the message names every tensor that is wrong.
    """
    if not isinstance(state, WorldState):
        raise WorldError(f"a state is what get_state returns, got {type(state).__name__}")
    kind = "a single game" if num_dreams == 1 else f"{num_dreams} games"
    if problems := list(_problems(state, empty)):
        raise WorldError(f"the state is not one of {kind} of this world: {'; '.join(problems)}")
    if state.world and state.world != identity:
        raise WorldError(f"the state belongs to another world ({state.world}), not {identity}")


def _problems(state: WorldState, empty: WorldState) -> Iterator[str]:
    if not isinstance(state.memory, MemoryState):
        yield f"memory is a {type(state.memory).__name__}, expected a MemoryState"
        return
    tensors, expected = state.tensors(), empty.tensors()
    others = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if others:
        yield f"{', '.join(others)} must be tensors"
        return
    shapes, expected_shapes = state.shapes(), empty.shapes()
    for name in shapes | expected_shapes:
        if shapes.get(name) != expected_shapes.get(name):
            yield f"{name} is {shapes.get(name, 'missing')}, expected {expected_shapes.get(name, 'nothing')}"
        elif problem := _problem(name, tensors[name], expected[name].dtype):
            yield f"{name} {problem}"


def _problem(name: str, tensor: Tensor, dtype: torch.dtype) -> str:
    """Return what is wrong with the contents of a tensor, '' if nothing is."""
    if tensor.is_meta or tensor.layout != torch.strided:
        return "holds no numbers" if tensor.is_meta else f"is {tensor.layout}, expected torch.strided"
    if dtype.is_floating_point:
        if tensor.dtype not in FLOATS:
            return f"is {tensor.dtype}, expected {dtype}"
        return "" if not tensor.numel() or _are_finite(tensor, dtype) else "holds NaN or inf"
    if tensor.dtype != dtype:
        return f"is {tensor.dtype}, expected {dtype}"
    if name in COUNTERS:
        limit = torch.iinfo(torch.int64).max if name == "seed" else MAX_COUNT
        least, most = int(tensor.min()), int(tensor.max())
        if least < 0 or most > limit:
            return f"is {least if least < 0 else most}, expected 0 to {limit}"
    return ""


def _are_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Return whether all numbers are finite, also once they are brought into a dtype."""
    # A fraction of the time of `isfinite`: one pass, nothing written. NaN is both the least and the greatest.
    both = torch.stack(torch.aminmax(tensor.detach())).to(dtype)
    return bool(both.isfinite().all())

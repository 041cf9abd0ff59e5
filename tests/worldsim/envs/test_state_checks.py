"""States that are refused by name, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.state import WorldState

NAN = float("nan")
WALK = np.array([1, 0, 0])


@pytest.fixture(scope="module")
def env() -> ARL2WorldEnv:
    env = ARL2WorldEnv(tiny_world(), render_mode="rgb_array")
    env.reset(seed=0)
    env.step(WALK)
    return env


def remembered(name: str, change: Callable[[Tensor], Any]) -> Callable[[WorldState], WorldState]:
    def changed(state: WorldState) -> WorldState:
        return replace(state, memory=replace(state.memory, **{name: change(getattr(state.memory, name))}))

    return changed


def one_number(value: float) -> Callable[[Tensor], Tensor]:
    def changed(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return changed


WRONG: dict[str, tuple[Callable[[WorldState], Any], str]] = {
    "no state": (lambda state: state.tensors(), "a state is what get_state returns, got dict"),
    "a memory that is none": (
        lambda state: replace(state, memory=state.memory.tensors()),
        "memory is a dict, expected a MemoryState",
    ),
    "float frames": (
        lambda state: replace(state, frames=state.frames.float()),
        "frames is torch.float32, exp",
    ),
    "bool count": (
        lambda state: replace(state, frame_index=state.frame_index > 0),
        "frame_index is torch.bool",
    ),
    "float count": (
        lambda state: replace(state, frame_index=state.frame_index + 0.5),
        "frame_index is torch.fl",
    ),
    "int32 seed": (lambda state: replace(state, seed=state.seed.int()), "seed is torch.int32"),
    "negative count": (
        lambda state: replace(state, frame_index=-state.frame_index),
        "frame_index is -1, exp",
    ),
    "negative seed": (lambda state: replace(state, seed=-state.seed - 1), "seed is -"),
    "last count": (
        lambda state: replace(state, frame_index=torch.tensor([2**63 - 1])),
        "frame_index is 92233",
    ),
    "array": (lambda state: replace(state, frames=state.frames.numpy()), "frames must be tensors"),
    "negative commits": (remembered("num_committed", lambda t: t * 0 - 1), "memory.num_committed is -1"),
    "complex": (
        remembered("matrices", lambda t: t.to(torch.complex64)),
        "memory.matrices is torch.complex64",
    ),
    "whole numbers": (remembered("latents", lambda t: t.long()), "memory.latents is torch.int64"),
    "NaN": (remembered("matrices", one_number(NAN)), "memory.matrices holds NaN or inf"),
    "inf": (remembered("latents", one_number(float("inf"))), "memory.latents holds NaN or inf"),
    "-inf": (remembered("phase", one_number(-float("inf"))), "memory.phase holds NaN or inf"),
    "too large": (
        remembered("matrices", lambda t: one_number(1e300)(t.double())),
        "matrices holds NaN or inf",
    ),
    "sparse": (remembered("latents", lambda t: t.to_sparse()), "memory.latents is torch.sparse_coo"),
    "no numbers": (remembered("window_keys", lambda t: t.to("meta")), "memory.window_keys holds no numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_state_is_named_and_changes_nothing(env: ARL2WorldEnv, name: str) -> None:
    change, message = WRONG[name]
    before = env.get_state()
    with pytest.raises(WorldError, match=message):
        env.set_state(change(before))
    assert env.get_state() is before


def test_a_batch_is_checked_row_by_row() -> None:
    envs = ARL2WorldVectorEnv(3, tiny_world())
    envs.reset(seed=0)
    state = envs.get_state()
    with pytest.raises(WorldError, match="3 games of this world: memory.matrices holds NaN or inf"):
        envs.set_state(remembered("matrices", one_number(NAN))(state))
    with pytest.raises(WorldError, match="seed is -1, expected 0 to"):
        envs.set_state(replace(state, seed=torch.tensor([0, -1, 5])))
    envs.set_state(state)
    envs.close()


def test_other_precisions_and_tensors_of_autograd_are_taken_over(env: ARL2WorldEnv) -> None:
    state = env.get_state()
    for change in (lambda t: t.double(), lambda t: t.clone().requires_grad_()):
        env.set_state(remembered("matrices", change)(state))
        env.step(WALK)
        assert not env.get_state().memory.matrices.requires_grad

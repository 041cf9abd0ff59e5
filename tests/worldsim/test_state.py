"""Saved states: whole, unaltered and of this world, or refused in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes import tiny_world
from worldsim import state as states
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError


@pytest.fixture
def env() -> ARL2WorldEnv:
    env = ARL2WorldEnv(tiny_world())
    env.reset(seed=3, options={"start": 0})
    env.step(np.array([1, 0, 2]))
    return env


@pytest.mark.parametrize("is_teacher", [False, True], ids=["hybrid", "teacher"])
def test_a_state_comes_back_as_it_was(tmp_path: Path, is_teacher: bool) -> None:
    env = ARL2WorldEnv(tiny_world(is_teacher=is_teacher))
    env.reset(seed=3)
    env.step(np.array([1, 0, 2]))
    state = env.get_state()
    states.save(state, tmp_path / "slot")
    loaded = states.load(tmp_path / "slot")
    assert loaded.world == env.world.identity
    assert loaded.tensors().keys() == state.tensors().keys()
    assert all(torch.equal(tensor, loaded.tensors()[name]) for name, tensor in state.tensors().items())
    assert [path.name for path in tmp_path.iterdir()] == ["slot"]


def test_a_state_says_its_world_through_rows_and_joins(env: ARL2WorldEnv) -> None:
    state = env.get_state()
    two = state.rows([0, 0])
    joined = states.WorldState.join([two, state])
    assert {two.world, joined.world, joined.with_rows([1], state).world} == {env.world.identity}


def test_the_environment_refuses_a_state_of_another_world(env: ARL2WorldEnv, tmp_path: Path) -> None:
    states.save(replace(env.get_state(), world="elsewhere@0123"), tmp_path / "slot")
    before = env.get_state()
    with pytest.raises(WorldError, match=r"belongs to another world \(elsewhere@0123\), not tiny@"):
        env.set_state(states.load(tmp_path / "slot"))
    assert torch.equal(env.get_state().memory.matrices, before.memory.matrices)


def test_an_altered_state_is_refused(env: ARL2WorldEnv, tmp_path: Path) -> None:
    path = tmp_path / "slot"
    states.save(env.get_state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(WorldError, match="was altered"):
        states.load(path)
    save_file(load_file(path), path)
    with pytest.raises(WorldError, match="was altered"):
        states.load(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_state_is_refused(env: ARL2WorldEnv, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "slot"
    states.save(env.get_state(), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(WorldError, match="is not a complete saved state"):
        states.load(path)

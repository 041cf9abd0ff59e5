"""Pieces of a batch in threads of their own are the batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tests.fakes import tiny_world
from worldsim.envs.row_threads import MAX_WORKERS, RowThreads
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World

ACTIONS = torch.randint(3, (19, 3), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


@pytest.fixture(params=[1, 2, 3, 8])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def begin(simulator: Simulator, count: int) -> WorldState:
    return simulator.start([simulator.world.starts[row % 3] for row in range(count)], list(range(count)))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 19])
def test_pieces_are_the_whole(world: World, batch_size: int, num_threads: int) -> None:
    simulator = Simulator(world)
    rows, state = RowThreads(simulator, batch_size), begin(simulator, batch_size)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    whole = simulator.step(state, ACTIONS[:batch_size])[1]
    stepped = rows.step(state, ACTIONS[:batch_size])
    assert stepped.shapes() == whole.shapes()
    for name, tensor in stepped.tensors().items():
        if name != "frames":
            torch.testing.assert_close(tensor, whole.tensors()[name], rtol=1e-4, atol=1e-4)
    assert (stepped.frames.int() - whole.frames.int()).abs().max() <= 1
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, before[name]), f"{name} was written to"
    assert torch.get_num_threads() == num_threads, "the caller's threads are its own business"
    rows.close()


def test_fault_in_a_piece_reaches_the_caller(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator(world)
    rows, state = RowThreads(simulator, 4), begin(simulator, 4)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(simulator, "step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        rows.step(state, ACTIONS[:4])


def test_rows_are_taken_replaced_and_joined(world: World) -> None:
    simulator = Simulator(world)
    state, other = begin(simulator, 4), simulator.step(begin(simulator, 2), ACTIONS[:2])[1]
    twice = state.rows([3, 1, 1])
    assert twice.seed.tolist() == [3, 1, 1]
    changed = state.with_rows([2, 0], other)
    assert changed.seed.tolist() == [1, 1, 0, 3]
    assert changed.frame_index.tolist() == [1, 0, 1, 0]
    joined = WorldState.join([changed.rows([2, 0]), state.rows([1])])
    for name, tensor in WorldState.join([other, state.rows([1])]).tensors().items():
        assert torch.equal(joined.tensors()[name], tensor), name


def test_small_things_are_computed_by_a_worker_if_there_is_one(world: World, num_threads: int) -> None:
    def whose(argument: str) -> tuple[str, str, int]:
        return argument, threading.current_thread().name, torch.get_num_threads()

    for batch_size in (1, 4):
        rows = RowThreads(Simulator(world), batch_size)
        argument, name, threads = rows.alone(whose, "given")
        assert argument == "given"
        if min(num_threads, batch_size) == 1:
            assert (name, threads) == (threading.current_thread().name, num_threads)
        else:
            assert name.startswith("dreams")
            assert threads == max(1, num_threads // min(num_threads, batch_size, MAX_WORKERS))
        rows.close()

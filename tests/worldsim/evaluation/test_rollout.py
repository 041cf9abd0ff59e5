"""The batch size that a memory budget allows."""

from __future__ import annotations

import pytest

from tests.fakes import tiny_world
from worldsim.evaluation.rollout import MEMORY_BUDGET_BYTES, bytes_at, rows_that_fit
from worldsim.simulator import Simulator


def test_fewer_dreams_run_beside_each_other_where_memories_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid, full = (Simulator(tiny_world(is_teacher=name == "full")) for name in ("hybrid", "full"))
    state = full.start(full.world.starts[:1], [0])  # of 4 frames
    assert bytes_at(full.world, 4) == state.memory.nbytes
    assert bytes_at(hybrid.world, 4) == bytes_at(hybrid.world, 4000)
    monkeypatch.setitem(MEMORY_BUDGET_BYTES, "cpu", 10 * bytes_at(full.world, 100))
    assert rows_that_fit([hybrid], 100, 32) == 32
    assert rows_that_fit([hybrid, full], 100, 32) == 10
    assert rows_that_fit([full], 10_000, 32) == 2

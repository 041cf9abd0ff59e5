"""A soak test of play: it goes on where it was stopped, and finds NaN or inf."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.fakes import save_tiny_world, tiny_world
from training.long_play import DAY_FILE, LongPlayConfig, main
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.evaluation.cost.endurance import check_numbers
from worldsim.evaluation.cost.random_play import FRAMES_BETWEEN_CHECKS, SoakTest

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_day_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    world, out = save_tiny_world(tmp_path / "tiny"), tmp_path / "out"
    config = LongPlayConfig(world=str(world), out=str(out), num_frames=20, threads=1)
    main.run(config)
    first = json.loads((out / DAY_FILE).read_text())
    assert 0 < first["num_frames"] <= 20 + FRAMES_BETWEEN_CHECKS
    main.run(replace(config, num_frames=60))
    second = json.loads((out / DAY_FILE).read_text())
    assert second["num_frames"] > first["num_frames"]
    assert second["commands"]
    assert second["samples"][: len(first["samples"])] == first["samples"]
    assert not list(out.rglob("*.part"))
    for damage in ({"samples": [1]}, {"commands": []}, {"num_frames": "60"}):
        (out / DAY_FILE).write_text(json.dumps(second | damage))
        with pytest.raises(WorldError, match=r"day\.json cannot be resumed"):
            main.run(config)


def test_what_is_no_number_is_named() -> None:
    env = ARL2WorldEnv(tiny_world())
    env.reset(seed=0)
    state = env.get_state()
    check_numbers(state, 7)
    for value in (torch.inf, torch.nan):
        bad = state.with_matrices(torch.full_like(state.memory.matrices, value))
        with pytest.raises(WorldError, match="after 7 frames .*matrices contains NaN or inf"):
            check_numbers(bad, 7)


def test_growth_is_that_of_this_process() -> None:
    samples = [(100 * i, 1000 if i < 50 else 500 + i, 0) for i in range(100)]
    assert SoakTest(samples=samples[:4]).growth() is None
    assert SoakTest(samples=samples[:50]).growth() == 1.0
    assert SoakTest(samples=samples).growth(50) == pytest.approx(594.5 / 564.5)

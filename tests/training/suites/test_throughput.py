"""`benchmark=env` measures environments of a world, and the real game where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import save_tiny_world
from training.evaluate import EvaluateConfig, main
from training.suites import environments
from worldsim.errors import WorldError
from worldsim.evaluation.cost.throughput import steps_of


def config(tmp_path: Path) -> EvaluateConfig:
    world = save_tiny_world(tmp_path / "world")
    return EvaluateConfig(
        world=str(world),
        out=str(tmp_path / "out"),
        benchmark="env",
        env_counts=[1, 3],
        env_frames=9,
        device="cpu",
        dtype="float32",
        threads=2,
        data=str(tmp_path / "nowhere"),
    )


@pytest.mark.filterwarnings("ignore:.*no outcome heads")
def test_environments_are_measured_without_any_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "measure_game", no_game)
    main.run(config(tmp_path))
    report = json.loads((tmp_path / "out" / "env.json").read_text())
    measured = report["environments"]
    assert list(measured) == ["single", "1", "3"]
    assert [row["num_steps"] for row in measured.values()] == [9, 9, 3]
    for row in measured.values():
        assert row["compile"] == "none"
        assert row["steps_per_second"] * row["step_ms"] == pytest.approx(1000 * row["num_envs"])
    assert measured["3"]["memory_bytes"] == 3 * measured["1"]["memory_bytes"]
    assert measured["3"]["is_finite"] is True
    ratio = measured["3"]["steps_per_second"] / measured["single"]["steps_per_second"]
    assert measured["3"]["over_single"] == pytest.approx(ratio)
    assert report["hardware"]["cores"] >= 1
    shown = capsys.readouterr().out
    assert "over single" in shown
    assert "the real game was not measured: it is not here" in shown


def no_game(scenario: str, num_steps: int, seed: int) -> None:
    raise WorldError("it is not here")


def test_the_real_game_is_measured() -> None:
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    row = environments.measure_game("doom-take-cover", 50, seed=0)
    assert row.num_steps == 50
    assert row.steps_per_second > 1


@pytest.mark.parametrize(
    ("num_envs", "min_steps", "max_steps", "expected"),
    [(1, 3, 0, 768), (1, 3, 300, 300), (8, 3, 300, 96), (256, 3, 300, 3), (256, 60, 300, 60), (1, 3, 1, 3)],
)
def test_steps_are_bounded_and_come_in_whole_rounds(
    num_envs: int, min_steps: int, max_steps: int, expected: int
) -> None:
    assert steps_of(num_envs, 768, min_steps, max_steps) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"benchmark": "speed"}, "benchmark must be env"),
        ({"env_counts": [0]}, "env_counts"),
        ({"env_min_steps": -1}, "env_min_steps"),
        ({"env_min_steps": 9, "env_max_steps": 6}, "env_max_steps is 6, less than env_min_steps, 9"),
        ({"compile": "fast"}, "compile must be one of auto, none, cudagraphs, inductor, got 'fast'"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        EvaluateConfig(**setting)

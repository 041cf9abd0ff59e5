"""`benchmark=pose_recall`: a report with intervals over episodes, and what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import tiny_world, write_turning_dataset
from training.data.latents import DataConfig
from training.evaluate import EvaluateConfig, main
from training.finetune import FinetuneConfig, change_keys
from training.suites.pose_recall import estimates, table
from training.world.recall import RecallScores
from worldsim.errors import WorldError

pytestmark = pytest.mark.usefixtures("one_thread")


def config(
    tmp_path: Path, keys: str, *, has_poses: bool = True, has_odometry: bool = False
) -> EvaluateConfig:
    """Return the measurement of a tiny world with such keys."""
    world, settings = tiny_world(), FinetuneConfig(init="", out="", data=DataConfig(train=[], heldout=[]))
    settings.memory_keys = keys
    world = world if keys == "axes" else change_keys(world, settings)
    world = tiny_world(has_odometry=True) if has_odometry else world
    world.save_pretrained(tmp_path / "world", starts=[], dtype=torch.float32)
    data = write_turning_dataset(tmp_path / "data", has_poses=has_poses)
    small = {"num_rollouts": 4, "horizon": 30, "denoising_steps": 1, "device": "cpu", "dtype": "float32"}
    names = {"world": str(tmp_path / "world"), "data": str(data), "out": str(tmp_path / "out")}
    return EvaluateConfig(benchmark="pose_recall", threads=1, **names, **small)


def test_a_world_is_asked_and_rolled_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.run(config(tmp_path, "pose"))
    report = json.loads((tmp_path / "out" / "pose_recall.json").read_text())
    for kind, kinds in (("views asked for", ("watched", "seen", "later")), ("roll-outs", ("seen", "later"))):
        for name in kinds:
            gain = report[kind][name]["gain"]
            assert gain["count"] == 4 and gain["low"] < gain["mean"] < gain["high"]
    assert report["roll-outs"]["watched"]["kept"] is None
    assert report["views asked for"]["watched"]["copied"]["mean"] > 40  # the frame itself
    assert "views asked for  watched  4" in capsys.readouterr().out


def test_a_world_with_odometry_is_rolled_out_by_it_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.run(config(tmp_path, "pose", has_odometry=True))
    report = json.loads((tmp_path / "out" / "pose_recall.json").read_text())
    rolled = report["roll-outs"]["later"]
    assert abs(rolled["followed"]["mean"] - rolled["kept"]["mean"]) > 1e-3
    assert "followed" not in report["views asked for"]["later"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("views asked")]
    assert lines and all("-" in line for line in lines)


@pytest.mark.parametrize(
    ("keys", "has_poses", "told"),
    [("axes", True, "worlds with memory_keys pose, but these are axes"), ("pose", False, "records no poses")],
)
def test_what_cannot_be_asked_is_said(keys: str, has_poses: bool, told: str, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=told):
        main.run(config(tmp_path, keys, has_poses=has_poses))


def test_estimates_are_of_episodes() -> None:
    kept = np.array([[20.0, 10.0], [22.0, 14.0], [30.0, 10.0]])
    watched = np.array([[True, False], [True, False], [False, False]])
    scores = RecallScores({"kept": kept, "emptied": kept - 3}, watched, np.zeros((3, 2), dtype=bool))
    found = estimates(scores, [0, 0, 1])
    assert found["watched"]["kept"].mean == 21 and found["watched"]["kept"].low is None  # of one episode
    assert (found["later"]["kept"].low, found["later"]["kept"].high) == (12, 20)
    assert found["later"]["gain"].mean == 3 and found["seen"]["kept"] is None
    assert table({"views": found}).splitlines()[2].split() == [
        "views",
        "watched",
        "2",
        "21.00",
        "18.00",
        "3.00",
    ]

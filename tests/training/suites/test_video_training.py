"""Updates of a video transformer's trainings are timed, with random weights and latents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.wan_models import tiny_config
from training.engine.fabric import FabricConfig
from training.evaluate import main as evaluate
from training.suites.settings import EvaluateConfig, VideoTrainingConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.video_shape import VideoShapeConfig
from worldsim.wan.config import CausalConfig

CAUSAL = CausalConfig(block=1, window=3, steps=[1000, 500])


def config_of(out: Path, **changes: object) -> EvaluateConfig:
    asked = VideoTrainingConfig(
        sequence_length=3, num_updates=2, fabric=FabricConfig(accelerator="cpu", precision="32-true")
    )
    video = VideoShapeConfig(shape=tiny_config(num_layers=4), causal=CAUSAL, height=32, width=48)
    return EvaluateConfig(
        benchmark="video_training", out=str(out), video=video, video_training=replace(asked, **changes)
    )


def test_each_training_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run(config_of(tmp_path))
    found = json.loads((tmp_path / "video_training.json").read_text())["objectives"]
    assert list(found) == ["stage1", "stage2", "finetune"]
    for cost in found.values():
        assert len(cost["milliseconds"]) == 2 and cost["peak_bytes"] is None
        # Three latent frames are nine displayed ones, of two updates the median is the mean.
        assert cost["frames_per_second"] == pytest.approx(18e3 / sum(cost["milliseconds"]))
    assert 0 < found["stage1"]["trained"] < found["stage2"]["trained"] < found["stage2"]["total"]
    assert found["finetune"]["trained"] == found["finetune"]["total"]
    assert "displayed frames/s" in capsys.readouterr().out


def test_settings_that_do_not_fit_are_said(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"objectives must be some of stage1, stage2, finetune, got stage3"):
        config_of(tmp_path, objectives=["stage3"])
    config = config_of(tmp_path)
    config.video = replace(config.video, causal=replace(CAUSAL, block=2))
    with pytest.raises(WorldError, match="must be a multiple of the block of 2 and at least 4, got 3"):
        evaluate.run(config)
    with pytest.raises(WorldError, match=r"device= and dtype= are not of .*fabric\.accelerator="):
        EvaluateConfig(benchmark="video_training", device="cpu")

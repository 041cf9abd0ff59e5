"""A tiny teacher, and the settings of its conversion in short stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import training.conversion.stage
from tests.fakes import tiny_world
from training.conversion.settings import ConvertConfig, Stage2Config
from training.conversion.stage import StageConfig
from training.convert import main as convert_world
from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.objectives.lora import LoraConfig
from training.objectives.noise import ObjectiveConfig
from training.world.validation import ValidationConfig
from worldsim.model.config import MemoryPhase

LAYERS = [0, 2]
"""Those that become hybrid."""


def save_tiny_teacher(folder: Path) -> Path:
    """Write a softmax world without a path to a folder and return it."""
    teacher = tiny_world(is_teacher=True, phase=MemoryPhase.NONE)
    teacher.save_pretrained(folder, dtype=torch.float32)
    return folder


def convert_config(root: Path, out: str, num_steps: int = 4, **changes: Any) -> ConvertConfig:
    """Return a conversion of `root / teacher` in short stages."""

    def loop() -> LoopConfig:
        return LoopConfig(
            num_steps=num_steps, warmup_steps=1, decay_fraction=0.0, log_every=1, checkpoint_seconds=1e9
        )

    config = ConvertConfig(
        out=str(root / out),
        teacher=str(root / "teacher"),
        data=DataConfig(train=[str(root / "data")], heldout=[str(root / "data")], num_workers=1),
        layers=LAYERS,
        window=2,
        objective=ObjectiveConfig(own_context_share=0.5),
        stage1=StageConfig(loop=loop(), batch_size=2, sequence_length=6),
        stage2=Stage2Config(loop=loop(), batch_size=2, sequence_length=6, lora=LoraConfig(rank=2)),
        fabric=FabricConfig(accelerator="cpu", precision="32-true"),
        validation=ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2]),
    )
    return replace(config, **changes)


def convert_killed_once(
    config: ConvertConfig, stage: int, update: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convert a world, killed before an update of a stage, and convert it again to the end."""
    make_passes = training.conversion.stage.make_passes

    def killed(parts: Any, settings: Any, passes: Any) -> Callable[[int, int], Any]:
        batch_at = make_passes(parts, settings, passes)

        def stop_at(step: int, number: int) -> Any:
            if settings.out.endswith(f"stage{stage}") and step == update:
                raise KeyboardInterrupt
            return batch_at(step, number)

        return stop_at

    with monkeypatch.context() as patch:
        patch.setattr(training.conversion.stage, "make_passes", killed)
        with pytest.raises(KeyboardInterrupt):
            convert_world.run(config)
    assert not (Path(config.out) / "world").exists()
    convert_world.run(config)

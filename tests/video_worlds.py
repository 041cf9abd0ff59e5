"""A tiny video world with a game's buttons, gameplay video, and settings of short trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.fakes import write_tiny_dataset
from tests.wan_models import import_tiny_world, save_tiny_checkpoint, tiny_transformer
from training.conversion.settings import ConvertConfig, Stage2Config
from training.conversion.stage import StageConfig
from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.finetune import FinetuneConfig
from training.objectives.lora import LoraConfig
from training.world.validation import ValidationConfig
from worldsim.wan.config import CausalConfig
from worldsim.world import World
from worldsim.world.video import VideoWorld

CAUSAL = CausalConfig(block=1, window=3, sink=1, steps=[1000, 500])
ONE = FabricConfig(accelerator="cpu", precision="32-true")
FRAMES = 22
"""Of an episode: six latent frames, and one frame that is left out."""


def make_world(root: Path, *, has_buttons: bool = True) -> Path:
    """Write gameplay video to `root / data` and a wider world of four layers to `root / teacher / world`."""
    data = write_tiny_dataset(root / "data", frames=FRAMES)
    path = save_tiny_checkpoint(root / "checkpoint", tiny_transformer(num_layers=4))
    given = {"actions": str(data)} if has_buttons else {}
    return import_tiny_world(root / "teacher", causal=CAUSAL, checkpoint=path, width=64, **given)


def load(folder: Path) -> VideoWorld:
    world = World.from_pretrained(folder)
    assert isinstance(world, VideoWorld)
    return world


def loop(num_steps: int) -> LoopConfig:
    return LoopConfig(
        num_steps=num_steps, warmup_steps=1, decay_fraction=0.0, log_every=1, checkpoint_seconds=1e9
    )


def data_of(root: Path) -> DataConfig:
    return DataConfig(train=[str(root / "data")], heldout=[str(root / "data")], num_workers=1)


def convert_config(root: Path, out: str, num_steps: int = 2, **changes: Any) -> ConvertConfig:
    """Return a conversion of `root / teacher / world` in short stages."""
    stage: dict[str, Any] = {"batch_size": 2, "sequence_length": 4}
    config = ConvertConfig(
        out=str(root / out),
        teacher=str(root / "teacher" / "world"),
        data=data_of(root),
        stage1=StageConfig(loop=loop(num_steps), **stage),
        stage2=Stage2Config(loop=loop(num_steps), lora=LoraConfig(rank=2), **stage),
        fabric=ONE,
        validation=ValidationConfig(num_rollouts=2),
    )
    return replace(config, **changes)


def finetune_config(root: Path, out: str, num_steps: int = 2, **changes: Any) -> FinetuneConfig:
    """Return a short finetuning of `root / teacher / world`."""
    config = FinetuneConfig(
        out=str(root / out),
        init=str(root / "teacher" / "world"),
        data=data_of(root),
        loop=loop(num_steps),
        fabric=ONE,
        validation=ValidationConfig(num_rollouts=2),
        batch_size=2,
        sequence_length=4,
        num_starts=1,
        start_frames=5,
    )
    return replace(config, **changes)

"""Settings of every training of a world model."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.latents import (
    DataConfig,
)
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.engine.optimizers import OptimizerConfig
from training.engine.step import StepConfig
from training.objectives.noise import ObjectiveConfig
from training.objectives.outcome import OutcomeLossConfig
from training.world.validation import ValidationConfig
from worldsim.model.config import DenoiserConfig
from worldsim.sampler import SamplerConfig
from worldsim.settings import REQUIRED, check_settings, setting

MAX_SEQUENCES = 2**16
"""Of a pass: no device holds more of them."""


@dataclass(kw_only=True, slots=True)
class TrainWorldConfig:
    """Settings of every training of a world model."""

    out: str = setting(REQUIRED, "The run's folder; the world is written to OUT/world.")
    data: DataConfig = setting(REQUIRED, "Gameplay video.")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "What is learned.")
    outcome: OutcomeLossConfig = setting(OutcomeLossConfig, "What outcome heads learn, where there are some.")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "Learning rates at full height.")
    loop: LoopConfig = setting(LoopConfig, "Length and care.")
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")
    step: StepConfig = setting(StepConfig, "Kernels, precision and memory of an update.")
    validation: ValidationConfig = setting(ValidationConfig, "What is measured at every checkpoint.")
    odometry: str = setting(
        "",
        "OUT of training.odometry, or its network's folder, for memory_keys=pose: some clips get the poses "
        "that it integrates, errors and all, as a world's path has them in play; '' gives all clips the "
        "recorded ones.",
    )
    integrated_share: float = setting(0.5, "Share of the clips that get those poses.", minimum=0, maximum=1)
    batch_size: int = setting(
        8,
        "Sequences of a pass: of an update on each device, without loop.global_batch_size.",
        minimum=1,
        maximum=MAX_SEQUENCES,
    )
    sequence_length: int = setting(24, "Frames of a segment, through all of which gradients flow.", minimum=2)
    segments: int = setting(
        1,
        "Consecutive segments of that length that make one long sequence: the memory is handed from one to "
        "the next, without gradients, so that it is trained over segments * sequence_length frames at the "
        "cost of sequence_length (docs/decisions/0015). 1 begins each with an empty memory.",
        minimum=1,
    )
    world_bits: int = setting(
        16,
        "Bits of a weight in OUT/world; 8 take half the room (docs/decisions/0047).",
        choices=(8, 16),
    )
    num_starts: int = setting(16, "Start moments to give the world, taken from held-out episodes.", minimum=1)
    start_frames: int = setting(32, "Frames to watch before play begins.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(kw_only=True, slots=True)
class PretrainConfig(TrainWorldConfig):
    """Settings of `python -m training.pretrain`, beside those of every training."""

    name: str = setting("world", "Name of the world.")
    codec: str = setting(REQUIRED, "Folder of a codec or a world, or the name of a world that ships.")
    model: DenoiserConfig = setting(
        DenoiserConfig, "Shape of the network; codec and data fill in latent shape and buttons."
    )
    sampler: SamplerConfig = setting(SamplerConfig, "How frames are drawn in play (docs/decisions/0026).")
    init: str = setting(
        "",
        "World whose network this one begins from, of the same width and layers, where both mean the same: a "
        "shipped name or a folder. Its latents do where codec was trained with init= on from its codec; "
        "'' begins from random weights.",
    )

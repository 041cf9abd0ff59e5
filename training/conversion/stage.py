"""One stage of a conversion: a student that learns from its teacher, and what its card tells of that."""

# B batch, F frames

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from training.data.latents import DataConfig, fixed_starts
from training.engine.fabric import FabricConfig, share_passes
from training.engine.loop import LoopConfig, fit
from training.engine.optimizers import OptimizerConfig, make_partial_optimizers
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare
from training.objectives.distillation import LayerDistillation, VelocityDistillation
from training.objectives.lora import LoraConfig, lora_parameters
from training.objectives.noise import ObjectiveConfig
from training.objectives.video import VideoDistillation
from training.world.batches import make_passes
from training.world.clips import Episodes, Footage, load_footage
from training.world.half_lives import Remembering, log_half_lives
from training.world.settings import MAX_SEQUENCES, TrainWorldConfig
from training.world.train import describe_training
from training.world.validation import ValidationConfig, validate
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig
from worldsim.model.conversion import HybridConfig, check_softmax
from worldsim.model.denoiser import Denoiser
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.wan.config import PATCH
from worldsim.world import World

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ADDED = ("conversion", "memory", "measured", "limits")
"""Sections in which a converted world's card may differ from that after stage 1; people add the last two."""
Distillation = LayerDistillation | VelocityDistillation | VideoDistillation


@dataclass(kw_only=True, slots=True)
class StageConfig:
    """How one stage is trained."""

    loop: LoopConfig = setting(LoopConfig, "Length and care.")
    optimizer: OptimizerConfig = setting(
        lambda: OptimizerConfig(muon=0.0, adamw=3e-3),
        "Learning rates: adamw of all that is trained; with muon above 0, that of its matrices.",
    )
    batch_size: int = setting(8, "Sequences per update and device.", minimum=1, maximum=MAX_SEQUENCES)
    sequence_length: int = setting(24, "Frames of a sequence.", minimum=2)

    def __post_init__(self) -> None:
        check_settings(self, "a stage's ")
        if self.loop.global_batch_size:
            raise WorldError(
                "a stage's loop.global_batch_size must be 0: its updates are a pass on each device"
            )


@dataclass(kw_only=True, slots=True)
class TeacherConfig:
    """What every command that works on a teacher is told."""

    out: str = setting(REQUIRED, "The run's folder.")
    teacher: str = setting(REQUIRED, "The softmax model: a shipped name, a folder, or a hub id.")
    data: DataConfig = setting(REQUIRED, "Gameplay video with the teacher's buttons.")
    hybrid: HybridConfig = setting(HybridConfig, "How the new layers' memory begins.")
    stage1: StageConfig = setting(StageConfig, "How the new layers learn from the layers that they replace.")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "Noise of frames, and weights of the loss.")
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")
    validation: ValidationConfig = setting(ValidationConfig, "The roll-outs that are measured.")


@dataclass(kw_only=True, slots=True)
class StageSettings(TrainWorldConfig):
    """All that decides what a stage computes: what its run's folder is compared by."""

    hybrid: HybridConfig = setting(HybridConfig, "How the new layers' memory began.")
    lora: LoraConfig | None = setting(None, "Of stage 2.")
    data_weight: float = setting(0.0, "Of stage 2.")


def stage_settings(
    config: TeacherConfig,
    stage: StageConfig,
    out: Path,
    *,
    lora: LoraConfig | None = None,
    data_weight: float = 0.0,
) -> StageSettings:
    """Return the settings of one stage of a command."""
    return StageSettings(
        out=str(out),
        data=config.data,
        objective=config.objective,
        optimizer=stage.optimizer,
        loop=stage.loop,
        fabric=config.fabric,
        validation=config.validation,
        batch_size=stage.batch_size,
        sequence_length=stage.sequence_length,
        hybrid=config.hybrid,
        lora=lora,
        data_weight=data_weight,
    )


def load_teacher(name: str) -> World:
    """Load a world all of whose layers are softmax layers.

    Raises:
        WorldError: If there is no such world, its weights do not fit its shape, or it is hybrid already.
    """
    teacher = World.from_pretrained(name)
    check_softmax(teacher.config.denoiser, name)
    return teacher


def list_episodes(config: TeacherConfig, teacher: World, stages: Mapping[str, StageConfig]) -> Episodes:
    """List the episodes for some stages, by the name of their settings.

    Raises:
        WorldError: If they have other buttons than the teacher, or none is long enough for one of the stages:
            it would be found out when the stages before it are over. Also if weights are to be sharded.
    """
    if config.fabric.strategy == "fsdp":
        raise WorldError(
            "fabric.strategy=fsdp gathers whole layers, of which a conversion runs parts: choose ddp"
        )
    episodes = Episodes.of(config.data, config.validation, teacher.config.actions)
    episodes.check_lengths("validation", config.validation.length, heldout_only=True)
    for name, stage in stages.items():
        episodes.check_lengths(f"{name}.sequence_length", stage.sequence_length)
    return episodes


def load_for(config: TeacherConfig, teacher: World, episodes: Episodes, fabric: Fabric) -> Footage:
    """Encode the episodes by the teacher's codec; moves the teacher to the device."""
    teacher.denoiser.to(fabric.device)
    return load_footage(teacher.codec, episodes, config.data, config.validation, fabric)


def roll_out(world: World, footage: Footage, config: ValidationConfig) -> dict[str, float]:
    """Return the PSNR of a world's roll-outs by horizon in frames, as text: JSON has no other keys."""
    scores = validate(world, footage.heldout, footage.places, config)
    return {str(horizon): scores[f"psnr_{horizon}_db"] for horizon in config.horizons}


@torch.no_grad()
def heldout_losses(
    fabric: Fabric, module: nn.Module, footage: Footage, settings: TrainWorldConfig
) -> dict[str, float]:
    """Return the losses of a training on fixed sequences of held-out video, with fixed noise.

    Args:
        fabric: For its precision.
        module: Of the training, not wrapped.
        footage: The video.
        settings: Length of the sequences; as many as there are roll-outs are taken.
    """
    length, video = settings.sequence_length, footage.heldout
    starts = fixed_starts(video.lengths, length, settings.validation.num_rollouts)
    batches = np.array_split(starts, -(-len(starts) // settings.batch_size))
    generator = torch.Generator(video.latents.device).manual_seed(0)
    sums: dict[str, float] = {}
    for chosen in batches:
        with fabric.autocast():
            losses = module(*video.sequences(chosen, length), generator)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(chosen) / len(starts)
    return sums


def averaged(training: Training) -> Distillation:
    """Return the moving average of a stage's module, whole on this device; all devices must ask for it."""
    module = training.averaged()
    assert isinstance(module, Distillation)
    return module


def student_of(module: Distillation) -> Denoiser:
    """Return the student of a stage, where it draws one frame at a time."""
    student = module.denoiser
    assert isinstance(student, Denoiser)
    return student


def measure_student(
    fabric: Fabric, training: Training, settings: StageSettings, footage: Footage
) -> dict[str, float]:
    """Return the losses on held-out video and the memory's half-lives."""
    average = averaged(training)
    losses = heldout_losses(fabric, average, footage, settings)
    if isinstance(average, VideoDistillation):
        height, width = footage.heldout.latents.shape[-2:]
        remembered: Remembering = average.half_lives(height * width // PATCH**2)
    else:
        remembered = student_of(average)
    return {f"heldout_{name}": value for name, value in losses.items()} | log_half_lives(remembered)


def train_stage(
    fabric: Fabric,
    module: Distillation,
    trained: Mapping[str, nn.Parameter],
    settings: StageSettings,
    run: RunFolder,
    footage: Footage,
) -> Training:
    """Train some parameters of a student, going on from the run's newest checkpoint.

    Args:
        fabric: Device, precision and strategy.
        module: Holds the student.
        trained: What may change; nothing else does.
        settings: Length and care.
        run: The stage's folder, its inputs checked.
        footage: The video.

    Returns:
        The finished training; see `averaged`.
    """
    module.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizers = make_partial_optimizers(list(trained.values()), settings.optimizer)
    passes = share_passes(fabric, settings.batch_size, 0)
    training = prepare(fabric, module, optimizers, settings.loop.ema_decay, passes)
    if settings.fabric.compile and isinstance(module, VelocityDistillation):
        # The first stage goes through the layers by itself, and compiles what it calls.
        for block in (*module.teacher.denoiser.layers(), *module.denoiser.layers()):
            block.compile(dynamic=False)

    fit(
        fabric,
        training,
        make_passes(footage.parts, settings, passes),
        settings.loop,
        run,
        frames_per_batch=settings.batch_size * settings.sequence_length,
        on_checkpoint=lambda training: measure_student(fabric, training, settings, footage),
    )
    return training


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage came to.

    Attributes:
        module: The moving average of what was trained, whole on this device.
        told: For the card: length, what was trained, held-out loss before and after.
        is_done: Whether the run was found finished and its world written.
    """

    module: Distillation
    told: str
    is_done: bool


def run_stage(
    fabric: Fabric,
    footage: Footage,
    module: Distillation,
    trained: Mapping[str, nn.Parameter],
    settings: StageSettings,
    run: RunFolder,
    target: Path,
) -> Outcome:
    """Train a stage whose world goes to `target`; measures its loss on held-out video before and after."""
    student = module.denoiser
    latest, is_exported = run.latest(), run.is_exported(target)  # asked before one process may write
    before = heldout_losses(fabric, module.to(fabric.device), footage, settings)["loss"]
    num_added = sum(parameter.numel() for parameter in lora_parameters(student).values())
    share = describe_share(trained, sum(p.numel() for p in student.parameters()) - num_added)
    fabric.print(f"{run.path}: {share}; held-out loss before training {before:.4g}")
    training = train_stage(fabric, module, trained, settings, run, footage)
    average = averaged(training)
    after = heldout_losses(fabric, average, footage, settings)["loss"]
    spent = describe_training(training, settings, footage.num_frames, fabric)
    told = f"{spent}; {share}; held-out loss {before:.4g} before and {after:.4g} after"
    return Outcome(average, told, is_exported and run.latest() == latest)


def follows_from(provenance: object, before: object) -> bool:
    """Whether a world's provenance is that of a world after stage 1, with stage 2 told and nothing else.

    Args:
        provenance: Of a world that stands where a conversion would write its own.
        before: Of what stage 1 of that conversion wrote.
    """
    if not isinstance(provenance, Mapping) or not isinstance(before, Mapping):
        return False
    told, expected = provenance.get("conversion"), before.get("conversion")
    if not isinstance(told, Mapping) or not isinstance(expected, Mapping) or "stage 2" not in told:
        return False
    others, same = (
        {name: entry for name, entry in each.items() if name not in ADDED} for each in (provenance, before)
    )
    return others == same and all(told.get(name) == entry for name, entry in expected.items())


def describe_share(trained: Mapping[str, nn.Parameter], num_total: int) -> str:
    """Return how many parameters are trained and what part of the network that is."""
    count = sum(parameter.numel() for parameter in trained.values())
    return f"{count:,} of {num_total:,} parameters trained ({100 * count / num_total:.1f} %)"


def describe_layers(layers: Sequence[int], shape: DenoiserConfig) -> dict[str, str]:
    """Return which layers became hybrid, and what the others are."""
    kinds = []
    if shape.window_layers:
        window = f"see {shape.window} frames before their own, and the first"
        kinds.append(f"{', '.join(map(str, shape.window_layers))} {window}")
    if shape.full_layers:
        full = "see all past frames, in a cache that grows"
        kinds.append(f"{', '.join(map(str, shape.full_layers))} {full}")
    return {"hybrid layers": ", ".join(map(str, layers)), "other layers": "; ".join(kinds) or "none"}


def describe_rollouts(scores: Mapping[str, float]) -> str:
    """Return the PSNR of roll-outs by horizon."""
    return "PSNR " + ", ".join(f"{value:.2f} dB at frame {horizon}" for horizon, value in scores.items())

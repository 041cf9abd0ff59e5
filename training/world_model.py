"""What pretraining and finetuning share: data, objective, loop, validation, export."""

# B batch, F frames, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from training.fabric import FabricConfig, make_fabric
from training.frames import DataConfig, LatentVideo, choose_episodes, digest_of, fixed_starts, latent_video
from training.half_lives import log_half_lives
from training.loop import LoopConfig, Training, fit, prepare, seed_of
from training.objective import FlowMatching, ObjectiveConfig
from training.optimizers import OptimizerConfig, make_optimizers
from training.run import RunFolder
from training.validation import ValidationConfig, validate, validation_places
from worldsim.data.sequences import EpisodeReference, SequenceIndex
from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser
from worldsim.starts import Start
from worldsim.world import World


@dataclass(kw_only=True, slots=True)
class TrainWorldConfig:
    """Settings of every training of a world model.

    Attributes:
        out: The run's folder; the world is written to `out/world`.
        data: Gameplay video.
        objective: What is learned.
        optimizer: Learning rates.
        loop: Length and care.
        fabric: Device, precision, distribution.
        validation: What is measured at every checkpoint.
        batch_size: Sequences per update and device.
        sequence_length: Frames of a sequence.
        num_starts: Start moments to give the world, taken from held-out episodes.
        start_frames: Frames to watch before play begins.
    """

    out: str
    data: DataConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    batch_size: int = 8
    sequence_length: int = 24
    num_starts: int = 16
    start_frames: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise WorldError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.sequence_length < 2:
            raise WorldError(f"sequence_length must be at least 2 frames, got {self.sequence_length}")
        if self.num_starts < 1 or self.start_frames < 1:
            raise WorldError(
                "num_starts and start_frames must be at least 1, "
                f"got {self.num_starts} and {self.start_frames}"
            )


def take_starts(
    references: Sequence[EpisodeReference], count: int, length: int, size: tuple[int, int]
) -> list[Start]:
    """Cut start moments out of episodes, spread evenly over all of them, scaled to `size` (height, width)."""
    lengths = [reference.num_frames for reference in references]
    ends = np.cumsum(lengths)
    starts = []
    for index, position in enumerate(fixed_starts(lengths, length, count)):
        episode = int(np.searchsorted(ends, position, side="right"))
        first = int(position - (ends[episode] - lengths[episode]))
        recording = references[episode].read(size=size)
        window = slice(first, first + length)
        frames = torch.from_numpy(recording.frames[window].copy())
        starts.append(Start(f"start-{index:02d}", frames, torch.from_numpy(recording.actions[window].copy())))
    return starts


def own_share(references: Sequence[EpisodeReference], fabric: Fabric) -> list[EpisodeReference]:
    """Return the episodes that this device learns from, so that each is decoded once and held once."""
    own = list(references[fabric.global_rank :: fabric.world_size])
    if not own:
        raise WorldError(f"{fabric.world_size} devices need an episode each, the data hold {len(references)}")
    return own


def describe_training(training: Training, config: TrainWorldConfig, num_frames: int, fabric: Fabric) -> str:
    """Return one sentence for the world's card: what this run learned from and what it took."""
    seen = training.step * config.batch_size * config.sequence_length * fabric.world_size
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    return (
        f"{training.step:,} updates on {seen:,} frames, in sequences of {config.sequence_length}, drawn from "
        f"{num_frames:,} recorded ones: {training.seconds / 60:.1f} minutes on {fabric.world_size} x {device}"
    )


def add_provenance(provenance: Mapping[str, Any], name: str, entry: str) -> dict[str, Any]:
    """Return a world's provenance with one more entry under a name."""
    known = provenance.get(name, [])
    return {**provenance, name: [*(known if isinstance(known, list) else [known]), entry]}


def train_world(config: TrainWorldConfig, world: World, run: RunFolder) -> None:
    """Train a world's network on gameplay video and export it to `out/world` at every checkpoint."""
    fabric = make_fabric(config.fabric, run.path)
    actions = world.config.actions
    train = choose_episodes(config.data.train, config.data.max_frames, actions)
    heldout = choose_episodes(config.data.heldout, config.validation.max_frames, actions)
    cache = run.path / "cache" if config.data.cache_latents else None
    workers = config.data.num_workers
    own = own_share(train, fabric)
    video = latent_video(world.codec, own, fabric.device, num_workers=workers, cache=cache)
    heldout_video = latent_video(world.codec, heldout, fabric.device, num_workers=workers, cache=cache)
    size = (world.config.height, world.config.width)
    starts = take_starts(heldout, config.num_starts, config.start_frames, size)
    places = validation_places(heldout_video, config.validation)
    run.check_inputs(fabric, train=digest_of(world.codec, train), heldout=digest_of(world.codec, heldout))

    denoiser = world.denoiser.requires_grad_(True).train()
    optimizers = make_optimizers(denoiser, config.optimizer)
    training = prepare(fabric, FlowMatching(denoiser, config.objective), optimizers, config.loop.ema_decay)
    if config.fabric.compile:
        for block in denoiser.layers():
            block.compile(dynamic=False)

    def on_checkpoint(training: Training) -> dict[str, float]:
        average = training.average.module.denoiser
        assert isinstance(average, Denoiser)
        spent = describe_training(training, config, sum(r.num_frames for r in train), fabric)
        provenance = add_provenance(world.config.provenance, "training", spent)
        exported = World(replace(world.config, provenance=provenance), average, world.codec, world.folder)
        if fabric.global_rank == 0:
            exported.save_pretrained(run.path / "world", starts=starts)
        return validate(exported, heldout_video, places, config.validation) | log_half_lives(average)

    fit(
        fabric,
        training,
        make_batches(video, config, fabric.global_rank),
        config.loop,
        run,
        frames_per_batch=config.batch_size * config.sequence_length,
        on_checkpoint=on_checkpoint,
    )
    fabric.print(f"world in {run.path / 'world'}; play it with: python play.py world={run.path / 'world'}")


def make_batches(
    video: LatentVideo, config: TrainWorldConfig, rank: int
) -> Callable[[int], tuple[Tensor, Tensor, torch.Generator]]:
    """Return the function that draws a step's sequences from the step's number alone."""
    index = SequenceIndex(video.lengths, config.sequence_length)

    def batch_at(step: int) -> tuple[Tensor, Tensor, torch.Generator]:
        seed = seed_of(config.loop.seed, step, rank)
        starts = index.sample(np.random.default_rng(seed), config.batch_size)
        generator = torch.Generator(video.latents.device).manual_seed(seed)
        latents, actions = video.sequences(starts, config.sequence_length)
        return latents, actions, generator

    return batch_at

"""Training of a world model: data, objective, loop, validation, export."""

# B batch, F frames, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from training.data.latents import (
    DataConfig,
    LatentVideo,
    OutcomeTargets,
    check_outcomes,
    check_poses,
    to_device,
)
from training.data.sampling import EndDraws, places_at
from training.engine.carry import Carry
from training.engine.fabric import FabricConfig, Passes, make_fabric, product_dtype_of, share_passes
from training.engine.graphs.passes import PassGraph
from training.engine.loop import LoopConfig, fit, seed_of
from training.engine.optimizers import OptimizerConfig, make_optimizers
from training.engine.run_folder import RunFolder
from training.engine.step import StepConfig, check_step, computing, replays_passes
from training.engine.update import Training, prepare
from training.objectives.flow_matching import SegmentFlowMatching, SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig
from training.objectives.outcome import OutcomeLoss, OutcomeLossConfig, reward_units
from training.outcomes.calibration import calibrate
from training.world.clips import Episodes, Footage, load_footage
from training.world.half_lives import log_half_lives, tell_half_lives
from training.world.start_moments import take_starts
from training.world.validation import ValidationConfig, validate
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.sequences import SequenceIndex
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.model.denoiser import Denoiser
from worldsim.model.segments import check_constant_memory
from worldsim.outcome import OutcomeConfig
from worldsim.sampler import SamplerConfig
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.world.world import World, WorldConfig, find_codec

MAX_SEQUENCES = 2**16
"""Of a pass: no device holds more of them."""
Batch = tuple[Tensor | torch.Generator | OutcomeTargets | None, ...]
"""What a training's module is given at a step."""


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


def describe_training(training: Training, config: TrainWorldConfig, num_frames: int, fabric: Fabric) -> str:
    """Return one sentence for the world's card: what this run learned from and what it took."""
    seen = training.step * training.passes.total * config.batch_size * config.sequence_length
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    length = f"{config.segments * config.sequence_length}"
    if config.segments > 1:
        length += f" (the memory handed on after every {config.sequence_length})"
    return (
        f"{training.step:,} updates on {seen:,} frames, in sequences of {length}, drawn from "
        f"{num_frames:,} recorded ones: {training.seconds / 60:.1f} minutes on {fabric.world_size} x {device}"
    )


def add_provenance(provenance: Mapping[str, Any], name: str, entry: str) -> dict[str, Any]:
    """Return a world's provenance with one more entry under a name."""
    known = provenance.get(name, [])
    return {**provenance, name: [*(known if isinstance(known, list) else [known]), entry]}


def set_reward_units(world: World, footage: Footage, fabric: Fabric) -> None:
    """Give a world with untrained outcome heads the units of the rewards that it is going to learn."""
    world.config.outcome = reward_units(footage.train, fabric)
    if not footage.train.ended_episodes().any():
        fabric.print("no episode to learn from ends: this world will not learn when one does")


def train_world(
    config: TrainWorldConfig,
    world: World,
    run: RunFolder,
    *,
    has_new_heads: bool = False,
    begun_from: str = "",
) -> None:
    """Train a world's network on gameplay video and export it to `out/world` at every checkpoint.

    Args:
        config: Settings.
        world: Trained in place.
        run: Where to.
        has_new_heads: Whether its outcome heads have learned nothing yet, not even the rewards' units.
        begun_from: The identity of the world that it was before, if it was one.

    Raises:
        WorldError: If the world has outcome heads and the video lacks what they learn from.
    """
    if config.segments > 1:
        check_constant_memory(world.config.denoiser)
    fabric = make_fabric(config.fabric, run.path)
    passes = share_passes(fabric, config.batch_size, config.loop.global_batch_size)
    check_step(
        config.step,
        fabric.device,
        world.config.denoiser,
        is_compiled=config.fabric.compile,
        is_sharded=config.fabric.strategy == "fsdp",
        dtype=product_dtype_of(config.fabric),
    )
    episodes = Episodes.of(config.data, config.validation, world.config.actions)
    has_heads = world.config.denoiser.outcome_heads
    if has_heads:
        check_outcomes([*episodes.train, *episodes.heldout])
    has_poses = world.config.denoiser.memory_keys == MemoryKeys.POSE
    check_objective(config, world.config.denoiser)
    if has_poses:
        check_poses([*episodes.train, *episodes.heldout])
        episodes.check_lengths("validation.recall_frames", config.validation.recall_frames, heldout_only=True)
    footage = load_footage(world.codec, episodes, config.data, config.validation, fabric, passes)
    size = (world.config.height, world.config.width)
    if has_new_heads:
        set_reward_units(world, footage, fabric)
    told = {"with_outcomes": has_heads, "with_poses": has_poses}
    batch_at = make_passes(footage.parts, config, passes, **told)
    starts = take_starts(episodes.heldout, config.num_starts, config.start_frames, size)
    run.check_inputs(fabric, passes.total, **footage.digests, **({"init": begun_from} if begun_from else {}))

    training = begin_training(config, world.denoiser, world.config.outcome, footage.parts, passes, fabric)

    def on_checkpoint(training: Training) -> dict[str, float]:
        average = training.averaged().denoiser
        assert isinstance(average, Denoiser)
        spent = describe_training(training, config, footage.num_frames, fabric)
        provenance = add_provenance(world.config.provenance, "training", spent)
        provenance = tell_half_lives(provenance, average)
        described = replace(world.config, provenance=provenance)
        exported = World(described, average, world.codec, world.folder, world.odometry)
        scores: dict[str, float] = {}
        if exported.config.outcome is not None:
            exported.config.outcome, scores = calibrate(exported, footage.heldout, exported.config.outcome)
        if fabric.global_rank == 0:
            exported.save_pretrained(run.path / "world", starts=starts, bits=config.world_bits)
        scores |= validate(exported, footage.heldout, footage.places, config.validation)
        return scores | log_half_lives(average)

    with computing(config.step):
        fit(
            fabric,
            training,
            batch_at,
            config.loop,
            run,
            frames_per_batch=config.batch_size * config.sequence_length,
            on_checkpoint=on_checkpoint,
        )
    then = "play.py" if world.odometry is not None or not has_poses else "-m training.odometry"
    fabric.print(f"world in {run.path / 'world'}; go on with: python {then} world={run.path / 'world'}")


def check_objective(config: TrainWorldConfig, model: DenoiserConfig) -> None:
    """Raise `WorldError` if the network can't learn what the objective asks for."""
    objective = config.objective
    if objective.recall_share and model.memory_keys != MemoryKeys.POSE:
        raise WorldError(
            f"objective.recall_share {objective.recall_share} draws frames by their pose alone, which needs "
            f"memory_keys pose, got {model.memory_keys}"
        )
    if (objective.recall_share or objective.suffix_share) and config.segments > 1:
        raise WorldError(
            "objective.recall_share and suffix_share need segments=1, whose clips begin with nothing and "
            f"hand nothing on, got segments {config.segments}"
        )
    if objective.recall_share and model.full_layers:
        raise WorldError(
            f"objective.recall_share needs layers of constant memory, got full_layers {model.full_layers}"
        )


def begin_training(
    config: TrainWorldConfig,
    denoiser: Denoiser,
    meaning: OutcomeConfig | None,
    parts: Sequence[LatentVideo],
    passes: Passes,
    fabric: Fabric,
) -> Training:
    """Return the training of a network that has made no update yet.

    Args:
        config: Settings.
        denoiser: Trained in place.
        meaning: Units of the rewards that its outcome heads learn, if it has some.
        parts: What each of this device's passes draws from.
        passes: Of an update.
        fabric: The devices.
    """
    denoiser.requires_grad_(True).train()
    optimizers = make_optimizers(denoiser, config.optimizer)
    objective = SequenceFlowMatching if config.segments == 1 else SegmentFlowMatching
    outcome = None
    if denoiser.outcome is not None and meaning is not None:
        frequency = end_frequency(parts, config, fabric)
        outcome = OutcomeLoss(denoiser.outcome, meaning, config.outcome, frequency)
    module = objective(denoiser, config.objective, outcome)
    training = prepare(fabric, module, optimizers, config.loop.ema_decay, passes)
    if config.segments > 1:
        training.carries = [Carry(denoiser.initial_memory(config.batch_size)) for _ in passes.own]
    if replays_passes(
        config.step,
        fabric.device,
        denoiser.config,
        is_compiled=config.fabric.compile,
        is_sharded=config.fabric.strategy == "fsdp",
    ):
        training.graph = PassGraph(fabric, module, len(passes.own))
    if config.fabric.compile:
        for block in denoiser.layers():
            block.compile(dynamic=False)
    return training


def end_draws(video: LatentVideo, config: TrainWorldConfig) -> EndDraws:
    """Return what sees to it that a training's sequences hold ends."""
    index = SequenceIndex(video.lengths, config.segments * config.sequence_length)
    return EndDraws(video, index, config.outcome.end_share)


def end_frequency(parts: Sequence[LatentVideo], config: TrainWorldConfig, fabric: Fabric) -> float:
    """Return how much rarer ends are than they are drawn, as `EndDraws` has it, averaged over all passes."""
    own = torch.tensor([end_draws(video, config).frequency for video in parts], dtype=torch.float64).mean()
    return float(torch.as_tensor(fabric.all_reduce(own.to(fabric.device), reduce_op="mean")))


def make_passes(
    parts: Sequence[LatentVideo],
    config: TrainWorldConfig,
    passes: Passes,
    *,
    with_outcomes: bool = False,
    with_poses: bool = False,
) -> Callable[[int, int], Batch]:
    """Return the function that draws the batch of a step and a pass; see `make_batches`.

    Args:
        parts: What each of this device's passes draws from.
        config: Settings.
        passes: Which are this device's.
        with_outcomes: Whether there are outcome heads.
        with_poses: Whether keys are turned by poses.
    """
    draws = {
        number: make_batches(video, config, number, with_outcomes=with_outcomes, with_poses=with_poses)
        for number, video in zip(passes.own, parts, strict=True)
    }
    return lambda step, number: draws[number](step)


def make_batches(
    video: LatentVideo,
    config: TrainWorldConfig,
    number: int,
    *,
    with_outcomes: bool = False,
    with_poses: bool = False,
) -> Callable[[int], Batch]:
    """Return the function that draws a step's sequences, or segments of longer ones, from its number alone.

    It gives latents `[B, F, C, h, w]`, actions `[B, F, A]` and a generator; where a sequence has several
    segments also which rows begin a sequence, `[B]` bool; what the outcome heads are to say, and the poses
    `[B, F, 3]`, if they are asked for.

    Args:
        video: To draw from.
        config: Settings.
        number: Of the pass: each draws its own.
        with_outcomes: Whether there are outcome heads. Some sequences then hold the end of an episode.
        with_poses: Whether keys are turned by poses. Every sequence lies on a map turned by chance.
    """
    batch_size, length, segments = config.batch_size, config.sequence_length, config.segments
    index = SequenceIndex(video.lengths, segments * length)
    device = video.latents.device
    ends = end_draws(video, config) if with_outcomes else None

    def sequences_of(block: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed_of(config.loop.seed, block, number))
        starts = index.sample(rng, batch_size)
        starts = starts if ends is None else ends.replace(starts, rng)
        return starts, rng.uniform(0, 360, batch_size)

    def batch_at(step: int) -> Batch:
        block, segment = places_at(step, segments, batch_size)
        drawn = {each: sequences_of(each) for each in set(block.tolist())}
        places = [(drawn[each][0][row], drawn[each][1][row]) for row, each in enumerate(block.tolist())]
        starts, turns = (np.array(each) for each in zip(*places, strict=True))
        generator = torch.Generator(device).manual_seed(seed_of(config.loop.seed, step, number))
        is_new = () if segments == 1 else (to_device(segment == 0, device),)
        skipped = segment * length
        poses = (video.pose_sequences(starts, length, skipped, turns),) if with_poses else ()
        if not with_outcomes:
            given = (generator, *is_new, None) if with_poses else (generator, *is_new)
            return *video.sequences(starts + skipped, length), *given, *poses
        latents, actions, targets = video.sequences_with_outcomes(starts, length, skipped)
        return latents, actions, generator, *is_new, targets, *poses

    return batch_at


def build_world(config: PretrainConfig, info: DatasetInfo) -> World:
    """Return an untrained world for a data set."""
    codec = find_codec(config.codec)
    model = replace(
        config.model, latent_shape=list(codec.latent_shape), num_values=list(info.actions.num_values)
    )
    torch.manual_seed(config.loop.seed)
    description = WorldConfig(
        name=config.name,
        licence=info.licence,
        frame_rate=info.frame_rate,
        actions=info.actions,
        denoiser=model,
        codec=codec.config,
        sampler=config.sampler,
        outcome=OutcomeConfig() if model.outcome_heads else None,
        provenance={"data": info.source},
    )
    return World(description, Denoiser(model), codec)


def pretrain(config: PretrainConfig) -> None:
    """Train a world model from nothing, into the folder `config.out`."""
    if not config.data.train:
        raise WorldError("data.train names no folder of gameplay video")
    info = DatasetInfo.load(Path(config.data.train[0]))
    world = build_world(config, info)
    run = RunFolder(config.out, config)
    train_world(config, world, run, has_new_heads=config.model.outcome_heads)

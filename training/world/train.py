"""Training of a world model: data, objective, loop, validation, export."""

# B batch, F frames, C h w latent size, A action axes

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.cli.overrides import play_command
from training.data.latents import LatentVideo
from training.data.tables import check_outcomes, check_poses
from training.engine.carry import Carry
from training.engine.fabric import Passes, make_fabric, product_dtype_of, share_passes
from training.engine.graphs.passes import PassGraph
from training.engine.loop import fit
from training.engine.optimizers import make_optimizers
from training.engine.run_folder import RunFolder
from training.engine.step import check_step, computing, replays_passes
from training.engine.update import Training, prepare
from training.objectives.flow_matching import SegmentFlowMatching, SequenceFlowMatching
from training.objectives.outcome import OutcomeLoss, reward_units
from training.outcomes.calibration import calibrate
from training.world.batches import end_frequency, make_passes
from training.world.clips import Episodes, Footage, load_footage
from training.world.half_lives import log_half_lives, tell_half_lives
from training.world.integrated_poses import load_fitting
from training.world.settings import PretrainConfig, TrainWorldConfig
from training.world.start_moments import take_starts
from training.world.transfer import check_latents, same_axes, take_over
from training.world.validation import validate
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.model.denoiser import Denoiser
from worldsim.model.segments import check_constant_memory
from worldsim.outcome import OutcomeConfig
from worldsim.world.world import World, WorldConfig, find_codec

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def describe_training(
    training: Training, config: TrainWorldConfig, num_frames: int, fabric: Fabric, begun_from: str = ""
) -> str:
    """Return one sentence for the world's card: where this run began, what it learned from and took."""
    begun = f"begun from {begun_from}, then " if begun_from else ""
    seen = training.step * training.passes.total * config.batch_size * config.sequence_length
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    length = f"{config.segments * config.sequence_length}"
    if config.segments > 1:
        length += f" (the memory handed on after every {config.sequence_length})"
    return (
        f"{begun}{training.step:,} updates on {seen:,} frames, in sequences of {length}, drawn from "
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
    check_objective(config, world.config.denoiser)
    check_recorded(config, world.config.denoiser, episodes)
    odometry, odometry_digest = load_fitting(Path(config.odometry), world) if config.odometry else (None, "")
    if world.odometry is not None:
        world.odometry.to(fabric.device)  # it follows where roll-outs are measured
    footage = load_footage(world.codec, episodes, config.data, config.validation, fabric, passes)
    size = (world.config.height, world.config.width)
    if has_new_heads:
        set_reward_units(world, footage, fabric)
    model = world.config.denoiser
    is_posed = model.memory_keys == MemoryKeys.POSE
    told = {"with_outcomes": model.outcome_heads, "with_poses": is_posed, "on_map": model.level_map > 0}
    batch_at = make_passes(footage.parts, config, passes, odometry=odometry, **told)
    starts = take_starts(episodes.heldout, config.num_starts, config.start_frames, size)
    named = {"init": begun_from, "odometry": odometry_digest}
    run.check_inputs(fabric, passes.total, **footage.digests, **{k: v for k, v in named.items() if v})

    training = begin_training(config, world.denoiser, world.config.outcome, footage.parts, passes, fabric)

    def on_checkpoint(training: Training) -> dict[str, float]:
        average = training.averaged().denoiser
        assert isinstance(average, Denoiser)
        spent = describe_training(training, config, footage.num_frames, fabric, begun_from)
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
    fabric.print(f"world in {run.path / 'world'}; go on with: {next_command(world, run.path / 'world')}")


def next_command(world: World, folder: Path) -> str:
    """Return what is typed next for a world in a folder: one of poses has to learn to follow them first."""
    is_posed = world.config.denoiser.memory_keys == MemoryKeys.POSE
    needs_odometry = is_posed and world.odometry is None
    learned = shlex.join(["python", "-m", "training.odometry", f"world={folder}"])
    return learned if needs_odometry else play_command(folder)


def check_objective(config: TrainWorldConfig, model: DenoiserConfig) -> None:
    """Raise `WorldError` if the network can't learn what the objective asks for."""
    objective = config.objective
    kind = "recall_share" if objective.recall_share else "misled_share"
    named = f"objective.{kind} {getattr(objective, kind)}"
    if objective.recalls and model.memory_keys != MemoryKeys.POSE:
        raise WorldError(
            f"{named} asks the states for frames by their pose, which needs memory_keys pose, got "
            f"{model.memory_keys}"
        )
    if config.odometry and model.memory_keys != MemoryKeys.POSE:
        raise WorldError(f"odometry={config.odometry} needs memory_keys pose, got {model.memory_keys}")
    if (objective.recalls or objective.suffix_share) and config.segments > 1:
        raise WorldError(
            "objective.recall_share, misled_share and suffix_share need segments=1, whose clips begin with "
            f"nothing and hand nothing on, got segments {config.segments}"
        )
    if objective.recalls and model.full_layers:
        raise WorldError(f"{named} needs layers of constant memory, got full_layers {model.full_layers}")
    if objective.status_rows >= (height := model.latent_shape[1]):
        raise WorldError(
            f"objective.status_rows {objective.status_rows} must leave some of the {height} rows of latents"
        )


def check_recorded(config: TrainWorldConfig, model: DenoiserConfig, episodes: Episodes) -> None:
    """Raise `WorldError` if episodes lack what the network learns from beside frames; decodes nothing."""
    every = [*episodes.train, *episodes.heldout]
    if model.outcome_heads:
        check_outcomes(every)
    if model.memory_keys == MemoryKeys.POSE:
        check_poses(every)
        if config.validation.recall_clips:
            length = config.validation.recall_frames
            episodes.check_lengths("validation.recall_frames", length, heldout_only=True)


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


def told_by(info: DatasetInfo) -> dict[str, Any]:
    """Return what a world's provenance keeps of its video, to record more of the same, where it is told."""
    told = {"environment": info.environment, "recording": info.recording}
    return {name: value for name, value in told.items() if value}


def build_world(config: PretrainConfig, info: DatasetInfo, before: World | None = None) -> World:
    """Return a world for a data set, untrained or with what a network learned before.

    Raises:
        WorldError: If the network has another shape, or learned other latents than the codec's.
    """
    codec = find_codec(config.codec)
    if before is not None:
        check_latents(codec, before, config.codec)
    model = replace(
        config.model, latent_shape=list(codec.latent_shape), num_values=list(info.actions.num_values)
    )
    torch.manual_seed(config.loop.seed)
    description = WorldConfig(
        name=config.name,
        licence=info.licence,
        frame_rate=info.frame_rate,
        max_episode_steps=info.max_episode_steps,
        actions=info.actions,
        denoiser=model,
        codec=codec.config,
        sampler=config.sampler,
        outcome=OutcomeConfig() if model.outcome_heads else None,
        provenance={"data": info.source} | told_by(info),
    )
    denoiser = Denoiser(model)
    if before is not None:
        take_over(denoiser, before.denoiser, same_axes(info.actions, before.config.actions))
    return World(description, denoiser, codec)


def pretrain(config: PretrainConfig) -> None:
    """Train a world model from nothing, into the folder `config.out`."""
    if not config.data.train:
        raise WorldError("data.train names no folder of gameplay video")
    info = DatasetInfo.load(Path(config.data.train[0]))
    before = World.from_pretrained(config.init) if config.init else None
    world = build_world(config, info, before)
    run = RunFolder(config.out, config)
    begun_from = before.identity if before else ""
    train_world(config, world, run, has_new_heads=config.model.outcome_heads, begun_from=begun_from)

"""Sharpening of a world: clips, both sides' optimizers, the loop, its rules and the exported world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from training.cli.overrides import play_command
from training.data.latents import LatentVideo
from training.data.tables import check_poses
from training.engine.export import ExportConfig, export_training, import_training
from training.engine.fabric import Passes, make_fabric, product_dtype_of, share_passes
from training.engine.graphs.passes import PassGraph
from training.engine.loop import LoopConfig, fit, seed_of
from training.engine.run_folder import RunFolder
from training.engine.step import check_step, computing, replays_passes
from training.engine.update import Training, prepare
from training.sharpen.adversarial import SelfRolloutCritic
from training.sharpen.critic import Critic
from training.sharpen.energy import EnergyScore, SelfRolloutEnergy
from training.sharpen.measurement import History, measure
from training.sharpen.rollouts import OwnFrames
from training.sharpen.settings import RolloutConfig, RulesConfig, SharpenConfig
from training.world.clips import Episodes, Footage, load_footage
from training.world.half_lives import tell_half_lives
from training.world.train import add_provenance
from training.world.validation import ValidationConfig
from worldsim.data.sequences import SequenceIndex
from worldsim.errors import WorldError
from worldsim.model.config import MemoryKeys
from worldsim.model.denoiser import Denoiser
from worldsim.model.segments import check_constant_memory
from worldsim.world import World

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BETAS = (0.0, 0.99)
"""Of Adam: what a critic asked for an update ago is not what it asks for now."""
HISTORY_FILE = "measurements.json"


def check_shared(config: RolloutConfig, devices: int) -> None:
    """Raise `WorldError` if the clips of an update can't be shared evenly by devices."""
    for count in config.batch_sizes:
        if count % devices:
            raise WorldError(
                f"rollout.batch_sizes: {count} clips can't be shared evenly by {devices} devices"
            )


def heldout_config(rules: RulesConfig, rollout: RolloutConfig) -> ValidationConfig:
    """Return which held-out clips are measured."""
    return ValidationConfig(
        max_frames=rules.max_frames,
        num_rollouts=rules.num_rollouts,
        context_frames=rollout.prefix_frames,
        horizons=rules.horizons,
        num_steps=1,
    )


def build_objective(config: SharpenConfig, world: World, *, reaches_all: bool) -> OwnFrames:
    """Return the objective; the world's network learns in place, but for its outcome heads."""
    denoiser, sampler = world.denoiser.requires_grad_(True).train(), world.config.sampler
    if denoiser.outcome is not None:
        denoiser.outcome.requires_grad_(False)
    if config.objective == "energy":
        return SelfRolloutEnergy(denoiser, config.rollout, config.energy, sampler, reaches_all=reaches_all)
    torch.manual_seed(config.loop.seed)
    goals, critic = config.critic, Critic(denoiser, is_frozen=config.critic.is_frozen)
    score = EnergyScore(denoiser, config.energy) if goals.energy_weight else None
    return SelfRolloutCritic(
        denoiser, critic, config.rollout, goals, sampler, score=score, reaches_all=reaches_all
    )


def make_optimizers(objective: OwnFrames, config: SharpenConfig) -> list[torch.optim.Optimizer]:
    """Return an Adam of the world and, with a critic, one of the critic."""

    def adam(module: nn.Module, rate: float) -> torch.optim.Optimizer:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=rate, betas=BETAS)

    optimizers = [adam(objective.denoiser, config.learning_rate)]
    if isinstance(objective, SelfRolloutCritic):
        optimizers.append(adam(objective.critic, config.critic.learning_rate))
    return optimizers


def is_recorded(config: SharpenConfig, world: World, fabric: Fabric) -> bool:
    """Return whether passes are recorded as CUDA graphs; see `replays_passes`."""
    return replays_passes(
        config.step,
        fabric.device,
        world.config.denoiser,
        is_compiled=config.fabric.compile,
        is_sharded=config.fabric.strategy == "fsdp",
    )


def begin_training(config: SharpenConfig, world: World, fabric: Fabric) -> Training:
    """Return the training of a world that was not sharpened yet."""
    reaches_all = fabric.world_size > 1 and not is_recorded(config, world, fabric)
    objective = build_objective(config, world, reaches_all=reaches_all)
    optimizers = make_optimizers(objective, config)
    alone = world_alone(objective.denoiser, objective.denoiser)
    if config.loop.export.resume_from:
        import_training(alone, Path(config.loop.export.resume_from))
        check_finished(alone, config.loop)
    training = prepare(fabric, objective, optimizers, config.loop.ema_decay, share_passes(fabric, 1, 0))
    training.step, training.seconds = alone.step, alone.seconds
    if config.objective == "critic":
        training.begins = (config.critic.warmup_updates, 0)
    if config.fabric.compile:
        for network in objective.modules():
            for block in network.layers() if isinstance(network, Denoiser) else ():
                block.compile(dynamic=False)
    return training


def check_finished(alone: Training, config: LoopConfig) -> None:
    """Raise `WorldError` if more is to be learned than an export holds: it has no critic to go on with."""
    if alone.step < config.num_steps:
        raise WorldError(
            f"loop.export.resume_from holds the world after {alone.step} updates without what judged it: "
            "write it with loop.num_steps=1, and go on with init= and that world"
        )


class Network(nn.Module):
    """A world's network under the name that every training of a world has for it."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser


class Averaged(nn.Module):
    """The same as a moving average has it."""

    n_averaged: Tensor

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.module = Network(denoiser)
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64))


@dataclass(slots=True)
class Holder:
    """Stands where Fabric's wrapping would be."""

    module: nn.Module


def world_alone(denoiser: nn.Module, average: nn.Module, step: int = 0, seconds: float = 0.0) -> Training:
    """Return what travels of a sharpening: the network, without critic and optimizers."""
    holder: Any = Holder(Network(denoiser))
    kept: Any = Averaged(average)
    return Training(holder, kept, [], step=step, seconds=seconds)


def make_batches(
    parts: list[LatentVideo],
    config: SharpenConfig,
    passes: Passes,
    *,
    with_poses: bool = False,
    on_map: bool = False,
) -> Callable[[int, int], tuple[Any, ...]]:
    """Return the function that draws the clips of an update, for a pass, from its number alone.

    It gives latents `[B, F + T, C, h, w]`, actions `[B, F + T, A]` and a generator, to a critic also whether
    its gradient is balanced, and poses `[B, F + T, 3]`, if they are asked for: on a map turned by chance, or
    on the level's own.
    """
    videos = dict(zip(passes.own, parts, strict=True))
    critic, rollout = config.critic, config.rollout
    indices: dict[tuple[int, int], SequenceIndex] = {}
    balanced = range(critic.warmup_updates, critic.warmup_updates + critic.balanced_updates)

    def batch_at(step: int, number: int) -> tuple[Any, ...]:
        video, (count, clips) = videos[number], rollout.stage_at(step)
        length = rollout.prefix_frames + count
        if (number, count) not in indices:
            indices[number, count] = SequenceIndex(video.lengths, length)
        seed, device = seed_of(config.loop.seed, step, number), video.latents.device
        rng = np.random.default_rng(seed)
        starts = indices[number, count].sample(rng, clips // passes.total)
        generator = torch.Generator(device).manual_seed(seed)
        turns = rng.uniform(0, 360, len(starts))
        poses = (video.pose_sequences(starts, length, turns=turns, on_map=on_map),) if with_poses else ()
        batch = *video.sequences(starts, length), generator
        if config.objective != "critic":
            return *batch, *poses
        is_balanced = float(step in balanced and critic.anchor_weight > 0)
        return *batch, torch.full((), is_balanced, device=device), *poses

    return batch_at


def with_graphs(
    batch_at: Callable[[int, int], tuple[Any, ...]],
    fabric: Fabric,
    training: Training,
    config: SharpenConfig,
) -> Callable[[int, int], tuple[Any, ...]]:
    """Return the same function, which also hands the training the recorded pass of the batch's shape.

    Those of earlier stages are let go: each holds the memory of a pass.
    """
    graphs: dict[tuple[int, int], PassGraph] = {}

    def recorded(step: int, number: int) -> tuple[Any, ...]:
        shape = config.rollout.stage_at(step)
        if shape not in graphs:
            if shape[0] > 1 or any(clips != shape[1] for _, clips in graphs):
                graphs.clear()
                training.graph = None
            graphs[shape] = PassGraph(fabric, training.module.module, 1)
        training.graph = graphs[shape]
        return batch_at(step, number)

    return recorded


class Sharpening:
    """A run: what is measured, what is exported, and when it ends.

    Args:
        config: Settings.
        world: As it was; its description is exported with the new weights.
        run: Where to.
        fabric: The devices.
        footage: Recorded play.
    """

    def __init__(
        self, config: SharpenConfig, world: World, run: RunFolder, fabric: Fabric, footage: Footage
    ) -> None:
        self.config, self.world, self.run, self.fabric, self.footage = config, world, run, fabric, footage
        self.history = History(run.path / HISTORY_FILE, config.rules)
        self.sampler = replace(world.config.sampler, num_steps=1)
        self.stopped_by = ""
        self._gaps: list[Tensor] = []

    def after_update(self, training: Training, losses: Mapping[str, Tensor]) -> bool:
        """Measure every so many updates; returns whether the rules end the run.

        Before the first update, without losses, it reads what was measured before, or measures the world as
        it is.
        """
        if not losses:
            self._recall(training)
            if not self.history.entries:
                self.look(training)
            return bool(self.stopped_by)
        if "logit_gap" in losses and training.step > self.config.critic.warmup_updates:
            self._gaps.append(losses["logit_gap"])
        if training.step % self.config.rules.every == 0:
            self.look(training)
        return bool(self.stopped_by)

    def look(self, training: Training) -> dict[str, float]:
        """Measure the moving average, and export it if it keeps the rules; returns the numbers."""
        average = training.averaged().denoiser
        assert isinstance(average, Denoiser)
        rules, footage = self.config.rules, self.footage
        prefix = self.config.rollout.prefix_frames
        found = measure(
            average, self.world.codec, footage.heldout, footage.places, prefix, rules.horizons, self.sampler
        )
        if self._gaps:
            found["logit_gap"] = float(torch.stack(self._gaps).mean())
            self._gaps = []
        found = self.history.add(training.step, self.fabric.broadcast(found))
        self.stopped_by = self.history.ended()
        if self.fabric.global_rank == 0:
            if not self.history.broken():
                self._export(training, average)
            self.history.save()  # last: what it says was measured has its world
        self.fabric.log_dict({f"rollout/{name}": value for name, value in found.items()}, training.step)
        told = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
        self.fabric.print(f"step {training.step}: {told}", flush=True)
        return found

    def on_checkpoint(self, training: Training) -> dict[str, float]:
        """Measure what a checkpoint holds, unless that was done or the run is to end."""
        if not self.history.entries:  # killed after its last checkpoint, and begun again
            self._recall(training)
        if not self.stopped_by and self.history.last_step < training.step:
            self.look(training)
        return {}

    def _recall(self, training: Training) -> None:
        """Read what was measured before this process began, and whether that ended the run."""
        self.history.load(training.step)
        self.stopped_by = self.history.ended()

    def _export(self, training: Training, average: Denoiser) -> None:
        config, known = self.config, self.world.config
        provenance = add_provenance(known.provenance, "training", self._told(training))
        described = replace(known, sampler=self.sampler, provenance=tell_half_lives(provenance, average))
        # A copy: a world freezes what it holds.
        weights = Denoiser(known.denoiser).to(self.fabric.device)
        weights.load_state_dict(average.state_dict())
        kept = self.world.codec, self.world.folder, self.world.odometry
        exported = World(described, weights, *kept)
        exported.save_pretrained(self.run.path / "world")
        alone = world_alone(weights, average, training.step, training.seconds)
        export_training(self.fabric, alone, self.run.path, config.loop.export)

    def _told(self, training: Training) -> str:
        config, device = self.config, self.fabric.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        frames = ", ".join(map(str, config.rollout.frames))
        how = "the energy score" if config.objective == "energy" else "a critic of whole clips"
        if config.objective == "critic" and config.critic.energy_weight:
            how += " with the energy score beside it"
        return (
            f"sharpened for one denoising step: {training.step:,} updates by {how} on its own roll-outs of "
            f"{frames} frames, {training.seconds / 60:.1f} minutes on {self.fabric.world_size} x {name}"
        )


def sharpen(config: SharpenConfig, world: World, run: RunFolder, begun_from: str) -> None:
    """Sharpen a world, and write it to `out/world` whenever a measurement keeps the rules.

    Args:
        config: Settings.
        world: Trained in place.
        run: Where to.
        begun_from: Its identity.

    Raises:
        WorldError: If its memory grows, or the video holds no clip so long, or no poses where keys turn by
            them.
    """
    check_constant_memory(world.config.denoiser)
    if config.fabric.strategy == "fsdp":
        raise WorldError("fabric.strategy=fsdp spreads weights that each frame needs whole: choose ddp")
    fabric = make_fabric(config.fabric, run.path)
    check_shared(config.rollout, fabric.world_size)
    check_step(
        config.step,
        fabric.device,
        world.config.denoiser,
        is_compiled=config.fabric.compile,
        dtype=product_dtype_of(config.fabric),
    )
    heldout = heldout_config(config.rules, config.rollout)
    episodes = Episodes.of(config.data, heldout, world.config.actions)
    episodes.check_lengths("rollout", config.rollout.length)
    episodes.check_lengths("rules.horizons", heldout.length, heldout_only=True)
    has_poses = world.config.denoiser.memory_keys == MemoryKeys.POSE
    if has_poses:
        check_poses([*episodes.train, *episodes.heldout])
    passes = share_passes(fabric, 1, 0)
    footage = load_footage(world.codec, episodes, config.data, heldout, fabric, passes)
    run.check_inputs(fabric, passes.total, **footage.digests, init=begun_from)
    training = begin_training(config, world, fabric)
    batch_at = make_batches(footage.parts, config, passes, with_poses=has_poses, on_map=world.on_level_map)
    if is_recorded(config, world, fabric):
        batch_at = with_graphs(batch_at, fabric, training, config)
    sharpening = Sharpening(config, world, run, fabric, footage)
    with computing(config.step):
        fit(
            fabric,
            training,
            batch_at,
            replace(config.loop, export=ExportConfig()),
            run,
            frames_per_batch=config.rollout.batch_sizes[0] * config.rollout.frames[0] // passes.total,
            after_update=sharpening.after_update,
            on_checkpoint=sharpening.on_checkpoint,
        )
    where = run.path / "world"
    if broken := sharpening.history.broken():
        fabric.print(f"stopped: {broken}; {where} holds the last weights before")
    else:
        fabric.print(f"world in {where}; play it with: {play_command(where)}")

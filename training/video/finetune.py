"""Finetuning of a video world on gameplay video, by the settings and in the folder of `training.finetune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from training.cli.overrides import play_command
from training.conversion.stage import heldout_losses
from training.engine.fabric import make_fabric, share_passes
from training.engine.loop import fit
from training.engine.optimizers import make_optimizers
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare
from training.objectives.video import VideoFlowMatching
from training.video.footage import (
    check_fabric,
    check_sequences,
    check_unused,
    describe_frames,
    load_video,
    refuse_given,
)
from training.world.batches import make_passes
from training.world.clips import Episodes
from training.world.half_lives import log_half_lives, tell_half_lives
from training.world.settings import TrainWorldConfig
from training.world.start_moments import take_starts
from training.world.train import add_provenance, describe_training
from worldsim.actions import ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.wan.transformer import WanTransformer
from worldsim.world.video import VideoWorld
from worldsim.world.video_config import UNTAUGHT_BUTTONS, VideoWorldConfig


def with_buttons(world: VideoWorld, actions: ActionLayout) -> VideoWorld:
    """Return a world whose network knows buttons, which have no effect yet; one that knows some stays."""
    known = world.transformer
    if known.config.num_values:
        return world
    shape = replace(known.config, num_values=list(actions.num_values))
    with torch.device("meta"):
        network = WanTransformer(shape)
    missing = {
        name: torch.zeros(each.shape, dtype=known.dtype)
        for name, each in network.state_dict().items()
        if name.startswith("action_embedding.")
    }
    network.load_state_dict(known.state_dict() | missing, assign=True)
    described = replace(world.config, transformer=shape, actions=actions)
    return remade(world, described, network.eval().requires_grad_(False))


def remade(world: VideoWorld, described: VideoWorldConfig, network: WanTransformer) -> VideoWorld:
    """Return a world with another description and network, all else as in `world`."""
    assert world.folder is not None
    return VideoWorld(described, network, world.autoencoder, world.text, world.folder, {})


def check_settings_of(config: TrainWorldConfig) -> None:
    """Raise `WorldError` for settings that no video world is trained by."""
    refuse_given(
        {
            "odometry": (config.odometry, ""),
            "segments": (config.segments, 1),
            "world_bits": (config.world_bits, 16),
        }
    )
    groups = {"objective": config.objective, "outcome": config.outcome, "step": config.step}
    check_unused(groups | {"validation": config.validation}, {"validation": ("num_rollouts", "max_frames")})
    check_fabric(config.fabric)


def finetune_video(config: TrainWorldConfig, world: VideoWorld, run: RunFolder, begun_from: str) -> None:
    """Train a video world's network on gameplay video, and export it to `out/world` at every checkpoint.

    Args:
        config: Settings.
        world: Trained in place; a network without buttons is given those of the video.
        run: Where to.
        begun_from: The identity of the world that it was before.
    """
    check_settings_of(config)
    if not config.data.train:
        raise WorldError("data.train names no folder of gameplay video")
    world = with_buttons(world, DatasetInfo.load(Path(config.data.train[0])).actions)
    episodes = Episodes.of(config.data, config.validation, world.config.actions)
    check_sequences(world.config, {"sequence_length": config.sequence_length}, episodes)
    fabric = make_fabric(config.fabric, run.path)
    passes = share_passes(fabric, config.batch_size, config.loop.global_batch_size)
    given = (config.data, config.validation, config.sequence_length, fabric, passes)
    footage = load_video(world, episodes, *given)
    size = (world.config.height, world.config.width)
    starts = take_starts(episodes.heldout, config.num_starts, config.start_frames, size)
    run.check_inputs(fabric, passes.total, **footage.digests, init=begun_from)

    network = world.transformer.requires_grad_(True).train()
    module = VideoFlowMatching(network, world.config.causal, world.text)
    optimizers = make_optimizers(network, config.optimizer)
    training = prepare(fabric, module, optimizers, config.loop.ema_decay, passes)
    frames = f"latent frames of four frames each, {describe_frames(world.config, episodes)}"

    def on_checkpoint(training: Training) -> dict[str, float]:
        average = training.averaged()
        assert isinstance(average, VideoFlowMatching)
        spent = describe_training(training, config, footage.num_frames, fabric, begun_from)
        provenance = add_provenance(world.config.provenance, "training", f"{spent}; {frames}")
        limits = [each for each in provenance.get("limits", []) if each != UNTAUGHT_BUTTONS]
        half_lives = average.half_lives(world.config.tokens_per_frame)
        provenance = tell_half_lives(provenance | {"limits": limits}, half_lives)
        if fabric.global_rank == 0:
            exported = remade(world, replace(world.config, provenance=provenance), average.denoiser)
            exported.save_pretrained(run.path / "world", starts=starts)
        losses = heldout_losses(fabric, average, footage, config)
        return {f"heldout_{name}": value for name, value in losses.items()} | log_half_lives(half_lives)

    fit(
        fabric,
        training,
        make_passes(footage.parts, config, passes),
        config.loop,
        run,
        frames_per_batch=config.batch_size * config.sequence_length,
        on_checkpoint=on_checkpoint,
    )
    fabric.print(f"world in {run.path / 'world'}; play it with: {play_command(run.path / 'world')}")

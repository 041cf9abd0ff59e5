"""Gameplay video for the training of a video world: latent frames, in sequences of whole blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

from training.data.latents import DataConfig
from training.data.video_codec import VideoCodec, displayed_frames
from training.engine.fabric import FabricConfig, Passes
from training.world.clips import Episodes, Footage, load_footage
from training.world.validation import ValidationConfig
from worldsim.errors import WorldError
from worldsim.world.video import VideoWorld
from worldsim.world.video_config import VideoWorldConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def check_sequences(config: VideoWorldConfig, lengths: Mapping[str, int], episodes: Episodes) -> None:
    """Raise `WorldError` unless sequences are whole blocks, two at least, that episodes hold.

    Args:
        config: Of the world.
        lengths: Latent frames of a sequence by the name of the setting.
        episodes: What they are drawn from.
    """
    block = config.causal.block
    for name, length in lengths.items():
        if length % block or length < 2 * block:
            raise WorldError(
                f"{name} counts latent frames of a video world, a multiple of its block of {block} and "
                f"at least {2 * block}, got {length}"
            )
        episodes.check_lengths(
            f"{name} {length}, of latent frames", displayed_frames(length), heldout_only=False
        )


def refuse_given(settings: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise `WorldError` for settings that say nothing of a video world and were given.

    Args:
        settings: By name, what each is, and what it is where it was not given.
    """
    for name, (value, default) in settings.items():
        if value != default:
            raise WorldError(f"{name}={value} says nothing of a video world: leave it out")


def check_unused(given: Mapping[str, Any], allowed: Mapping[str, tuple[str, ...]]) -> None:
    """Raise `WorldError` for settings that say nothing of a video world and are not what they begin as.

    Args:
        given: Groups of settings, dataclasses with defaults, by name.
        allowed: Names in a group that do say something.
    """
    for group, settings in given.items():
        for each in fields(settings):
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            if each.name not in allowed.get(group, ()) and getattr(settings, each.name) != default:
                raise WorldError(f"{group}.{each.name} says nothing of a video world: leave it out")


def check_fabric(config: FabricConfig) -> None:
    """Raise `WorldError` if blocks are to be compiled, which those of video worlds are not."""
    if config.compile:
        raise WorldError(
            "blocks of a video world are not compiled: give fabric.compile=false (fabric=gpu compiles)"
        )


def load_video(
    world: VideoWorld,
    episodes: Episodes,
    data: DataConfig,
    validation: ValidationConfig,
    length: int,
    fabric: Fabric,
    passes: Passes | None = None,
) -> Footage:
    """Encode episodes by the world's autoencoder, or read what any command encoded by it before.

    Args:
        world: Whose autoencoder is moved to the device.
        episodes: All that there are; frames of another size are scaled to the world's.
        data: How to decode, and where to keep latents.
        validation: How many held-out sequences are measured.
        length: Latent frames of each of these.
        fabric: The devices.
        passes: Of an update; None is one on each device.
    """
    codec = VideoCodec(world.autoencoder, world.config.height, world.config.width)
    measured = replace(validation, context_frames=1, horizons=[length - 1])
    return load_footage(codec, episodes, data, measured, fabric, passes)


def describe_frames(config: VideoWorldConfig, episodes: Episodes) -> str:
    """Return what became of the size of recorded frames, for the card."""
    sizes = {(each.info.width, each.info.height) for each in episodes.train}
    own = f"{config.width} x {config.height}"
    others = sorted(f"{width} x {height}" for width, height in sizes - {(config.width, config.height)})
    return f"frames of {', '.join(others)} scaled to {own}" if others else f"frames of {own}"

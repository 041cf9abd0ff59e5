"""A world's description: its `config.json`, checked before anything is built from it, and its card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import torch

from worldsim.actions import ActionLayout
from worldsim.codec import CodecConfig
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.model.memory.odometry import OdometryConfig
from worldsim.model.memory.state import empty_memory
from worldsim.outcome import OutcomeConfig
from worldsim.sampler import SamplerConfig
from worldsim.storage.files import (
    MAX_NAME,
    check_integer,
    check_number,
    check_text,
    read_record,
    shown,
)

FORMAT = 1
CARD_TITLES = {
    "source": "Source",
    "data": "Data",
    "environment": "Environment",
    "recording": "Recording",
    "training": "Training",
    "conversion": "Conversion",
    "memory": "Memory",
    "odometry": "Odometry",
    "measured": "Measured",
    "calibration": "Calibration",
    "limits": "Limits",
}
MAX_FRAME_RATE = 1000
Config = TypeVar("Config", bound="WorldConfig")
MAX_MEMORY_BYTES = 4 * 2**30
"""Of one dream in fp32: a network of 1.3 billion weights at 832 x 480 with a window of 20 frames has 3."""


@dataclass(kw_only=True, slots=True)
class WorldConfig:
    """What `config.json` says beside the checksums.

    Attributes:
        description: One sentence for a menu.
        about: What there is to do in it, for who plays: one or two sentences.
        licence: Licence of the weights.
        frame_rate: Frames per second of the game it was learned from.
        max_episode_steps: Frames after which time is up, as in the game it was learned from; None where a
            game may go on for ever.
        codec: Shape of the frame autoencoder.
        sampler: How its frames are best drawn.
        outcome: What the numbers of its outcome heads mean; None in a world without such heads.
        odometry: Shape of the network that follows poses, in a world whose keys these are; None in one that
            cannot be played without being told them.
        provenance: Where data and weights came from: data, training, compute; free-form JSON.
    """

    name: str
    description: str = ""
    about: str = ""
    licence: str = ""
    frame_rate: float = 17.5
    max_episode_steps: int | None = None
    actions: ActionLayout
    denoiser: DenoiserConfig
    codec: CodecConfig
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    outcome: OutcomeConfig | None = None
    odometry: OdometryConfig | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check_texts()
        if self.denoiser.outcome_heads != (self.outcome is not None):
            heads = "has" if self.denoiser.outcome_heads else "has no"
            raise WorldError(
                f"world {self.name!r}: its network {heads} outcome heads, its description says otherwise"
            )
        if self.odometry is not None:
            check_odometry(self, self.odometry)

    def check_texts(self) -> None:
        """Raise `WorldError` unless names and texts can be shown, and the frame rate can be held."""
        check_text(self.name, "a world's name", MAX_NAME)
        for name in ("description", "about", "licence"):
            check_text(getattr(self, name), f"a world's {name}")
        if not isinstance(self.provenance, dict):
            raise WorldError(f"a world's provenance must be an object, got {shown(self.provenance)}")
        if not 0 < check_number(self.frame_rate, "a world's frame_rate") <= MAX_FRAME_RATE:
            raise WorldError(
                f"a world's frame_rate must be positive and at most {MAX_FRAME_RATE}, got {self.frame_rate}"
            )
        if self.max_episode_steps is not None:
            check_integer(self.max_episode_steps, "a world's max_episode_steps", 1)

    @property
    def action_repeat(self) -> int:
        """Frames that an action is held for; 1 where each frame has an action of its own."""
        return 1

    @property
    def memory_grows(self) -> bool:
        """Whether a dream's memory grows from frame to frame."""
        return bool(self.denoiser.full_layers)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens that the network makes of a frame."""
        return self.denoiser.tokens_per_frame

    @property
    def card_facts(self) -> list[str]:
        """What the card says of memory and actions."""
        poses = [] if self.odometry is None else ["- Poses: followed by odometry"]
        return [f"- Memory phase: {self.denoiser.memory_phase}", *poses]

    @property
    def end_threshold(self) -> float:
        """Probability of an end from which on an episode has ended; infinite in a world without heads."""
        return math.inf if self.outcome is None else self.outcome.end_threshold

    @property
    def height(self) -> int:
        """Height of a frame in pixels."""
        return self.codec.height

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""
        return self.codec.width

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        data = {"format": FORMAT} | asdict(self) | {"actions": self.actions.to_json()}
        last = {name: data.pop(name) for name in ("outcome", "odometry")}
        return without_nothing(data | last)

    def dataset(self, name: str, source: str) -> DatasetInfo:
        """Return the description of gameplay video that this world's frames and buttons make."""
        return DatasetInfo(
            name=name,
            width=self.width,
            height=self.height,
            frame_rate=self.frame_rate,
            actions=self.actions,
            source=source,
            licence=self.licence,
            max_episode_steps=self.max_episode_steps,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorldConfig:
        """Build from `to_json`'s object.

        Raises:
            WorldError: If a field is missing, unknown or of the wrong form.
        """

        def build(shared: dict[str, Any]) -> WorldConfig:
            return cls(
                **shared,
                denoiser=read_record(DenoiserConfig, data["denoiser"], "denoiser"),
                codec=read_record(CodecConfig, data["codec"], "codec"),
                sampler=read_record(SamplerConfig, data["sampler"], "sampler"),
                outcome=read_record(OutcomeConfig, data["outcome"], "outcome") if "outcome" in data else None,
                odometry=read_record(OdometryConfig, data["odometry"], "odometry")
                if "odometry" in data
                else None,
            )

        config = read_description(data, {each.name for each in fields(cls)}, build)
        check_parts(config, tuple(config.denoiser.latent_shape), config.codec.latent_shape)
        _check_memory(config)
        return config


def without_nothing(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description without what a world need not have and has not."""
    optional = ("max_episode_steps", "outcome", "odometry")
    return {name: value for name, value in description.items() if name not in optional or value is not None}


def read_description(
    data: Mapping[str, Any], known: set[str], build: Callable[[dict[str, Any]], Config]
) -> Config:
    """Return what a description says.

    Args:
        known: Fields that it may have beside its format and the checksums.
        build: Makes the configuration of the fields that worlds of all kinds have, read already, and others.

    Raises:
        WorldError: If a field is missing, unknown or of the wrong form.
    """
    if data.get("format") != FORMAT:
        raise WorldError(f"world format {shown(data.get('format'))} is not known, expected {FORMAT}")
    for key in sorted(data.keys() - known - {"format", "files"}):
        raise WorldError(f"the world's description has an unknown field {shown(key)}")
    try:
        return build(
            {
                "name": data["name"],
                "description": data.get("description", ""),
                "about": data.get("about", ""),
                "licence": data.get("licence", ""),
                "frame_rate": check_number(data["frame_rate"], "frame_rate"),
                "max_episode_steps": data.get("max_episode_steps"),
                "actions": ActionLayout.from_json(data["actions"]),
                "provenance": data.get("provenance", {}),
            }
        )
    except KeyError as error:
        raise WorldError(f"the world's description has no field {error}") from error
    except WorldError:
        raise
    except (TypeError, ValueError) as error:
        raise WorldError(f"the world's description is not of the expected form: {error}") from error


def check_parts(config: WorldConfig, latents: tuple[int, ...], encoded: tuple[int, ...]) -> None:
    """Raise `WorldError` unless a network on `latents`, a codec that makes `encoded` and buttons fit."""
    if latents != encoded:
        raise WorldError(
            f"world {config.name!r}: the network works on latents {latents}, its codec makes {encoded}"
        )
    if tuple(config.denoiser.num_values) != config.actions.num_values:
        raise WorldError(
            f"world {config.name!r}: the network knows axes of {config.denoiser.num_values} values, "
            f"its buttons make {list(config.actions.num_values)}"
        )


def check_odometry(config: WorldConfig, odometry: OdometryConfig) -> None:
    """Raise `WorldError` unless a world's keys are poses, and odometry reads its latents and its buttons."""
    if config.denoiser.memory_keys != MemoryKeys.POSE:
        raise WorldError(
            f"world {config.name!r}: odometry follows the poses of memory_keys pose, but these are "
            f"{config.denoiser.memory_keys}"
        )
    if odometry.ground and not config.denoiser.level_map:
        raise WorldError(
            f"world {config.name!r}: odometry with a map of the ground is told where on a level the player "
            "stands, which a world without level_map does not know"
        )
    for what, own, read in (
        ("latents", config.denoiser.latent_shape, odometry.latent_shape),
        ("actions of values", config.denoiser.num_values, odometry.num_values),
    ):
        if list(own) != list(read):
            raise WorldError(f"world {config.name!r} has {what} {list(own)}, its odometry reads {list(read)}")


def _check_memory(config: WorldConfig) -> None:
    """Raise `WorldError` if one dream of a world remembers more than `MAX_MEMORY_BYTES`."""
    memory = empty_memory(config.denoiser, 1, torch.float32, torch.device("meta"))
    num_bytes = sum(tensor.nbytes for tensor in memory.tensors().values())
    if num_bytes > MAX_MEMORY_BYTES:
        raise WorldError(
            f"world {config.name!r} would remember {num_bytes / 2**30:.1f} GiB of each dream, more than "
            f"{MAX_MEMORY_BYTES / 2**30:g} GiB: its window of {config.denoiser.window} frames is too long"
        )


def world_card(config: WorldConfig, num_parameters: int) -> str:
    """Return the Markdown of a world's README, with a section for each entry of its `provenance`."""
    axes = "; ".join(f"{axis.name} ({', '.join(axis.buttons)})" for axis in config.actions.axes)
    size = f"- Size: {num_parameters / 1e6:.1f} M parameters, {config.tokens_per_frame} tokens a frame"
    facts = [
        f"# {config.name}",
        config.description or "A learned world.",
        "\n".join(
            [
                f"- Frames: {config.width} x {config.height}, {config.frame_rate:g} a second",
                f"- Buttons: {axes}",
                size,
                *config.card_facts,
                f"- Denoising steps: {config.sampler.num_steps}",
                f"- Reward: {_reward(config)}",
                *_longest(config),
                f"- Licence: {config.licence or 'not stated'}",
            ]
        ),
    ]
    for name, value in config.provenance.items():
        facts.append(f"## {CARD_TITLES.get(name, name)}\n\n{_section(value)}")
    return "\n\n".join(facts) + "\n"


def _section(value: Any) -> str:
    """Return a value of `provenance` as Markdown."""
    if isinstance(value, dict):
        return "\n".join(
            f"- {name}: {text if isinstance(text, str) else json.dumps(text)}" for name, text in value.items()
        )
    if isinstance(value, list):
        return "\n".join(f"- {entry}" for entry in value)
    return str(value)


def _longest(config: WorldConfig) -> list[str]:
    if (frames := config.max_episode_steps) is None:
        return []
    return [f"- Longest game: {frames:,} frames ({frames / config.frame_rate:.4g} s), then time is up"]


def _reward(config: WorldConfig) -> str:
    outcome = config.outcome
    if outcome is None:
        return "always 0; episodes never end by themselves"
    return (
        f"learned, {outcome.reward_mean:.3g} a frame on average; "
        f"an episode ends at a probability of {outcome.end_threshold:.3g}"
    )

"""A video world's description: its transformer, its blocks, its autoencoder and its buttons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from worldsim.codec import CodecConfig
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig
from worldsim.sampler import SamplerConfig
from worldsim.storage.files import check_integer, check_text, read_record, shown
from worldsim.wan.config import FRAMES_PER_LATENT, PATCH, CausalConfig, WanConfig
from worldsim.world.config import FORMAT, WorldConfig, read_description, without_nothing

KIND = "video"
"""What `config.json` says under `kind`; the other worlds say nothing there."""
PIXELS = 8 * PATCH
"""Side in pixels of what becomes one token."""
MAX_SIDE = 4096
MAX_WINDOW_BYTES = 256 * 2**30
"""Of one dream in fp32: 1.3 billion weights at 832 x 480 have 9.6 GiB with a window of 21 latent frames."""
UNTAUGHT_BUTTONS = "Buttons have no effect until they are taught."
"""What the card of a world says whose buttons have learned nothing."""
OF_FRAMES = ("denoiser", "codec")
"""Fields of worlds that draw one frame at a time."""


@dataclass(kw_only=True, slots=True)
class VideoWorldConfig(WorldConfig):
    """What `config.json` of a video world says beside the checksums.

    Attributes:
        transformer: Shape of the network.
        causal: Its blocks, what they see, and the steps that they are drawn in.
        autoencoder: What diffusers makes the autoencoder of.
        frame_size: Height and width of a displayed frame in pixels.
        text: What the video is of, as it was given to the text encoder; empty if none was.
    """

    denoiser: DenoiserConfig = field(init=False, repr=False, compare=False)
    codec: CodecConfig = field(init=False, repr=False, compare=False)
    sampler: SamplerConfig = field(init=False)
    transformer: WanConfig
    causal: CausalConfig
    autoencoder: dict[str, Any] = field(default_factory=dict)
    frame_size: list[int]
    text: str = ""

    def __post_init__(self) -> None:
        # How it was trained is how it is drawn; both are one thing in `config.json`.
        self.sampler = SamplerConfig(num_steps=len(self.causal.steps), shift=self.causal.shift)
        self.check_texts()
        check_text(self.text, "a world's text")
        if not isinstance(self.frame_size, list) or len(self.frame_size) != 2:
            raise WorldError(f"frame_size must be height and width, got {shown(self.frame_size)}")
        for side in self.frame_size:
            if check_integer(side, "a side of frame_size", PIXELS, MAX_SIDE) % PIXELS:
                raise WorldError(f"sides of frame_size must be multiples of {PIXELS}, got {self.frame_size}")
        if not isinstance(self.autoencoder, dict):
            raise WorldError(f"autoencoder must be an object, got {shown(self.autoencoder)}")
        if self.causal.window is None:
            raise WorldError("a world's window must be a number: one that sees all frames grows for ever")
        self._check_window()
        buttons = list(self.actions.num_values)
        if self.transformer.num_values not in ([], buttons):
            raise WorldError(
                f"world {self.name!r}: the network knows axes of {self.transformer.num_values} values, "
                f"its buttons make {buttons}"
            )

    def _check_window(self) -> None:
        shape, causal = self.transformer, self.causal
        places = (shape.num_layers - len(shape.hybrid_layers)) * (causal.sink + (causal.kept or 0))
        num_bytes = 2 * 4 * places * self.tokens_per_frame * shape.dim
        if num_bytes > MAX_WINDOW_BYTES:
            raise WorldError(
                f"world {self.name!r} would remember {num_bytes / 2**30:.1f} GiB of each dream, more than "
                f"{MAX_WINDOW_BYTES / 2**30:g} GiB: its window of {causal.window} latent frames is too long"
            )

    def __getattr__(self, name: str) -> NoReturn:
        """Say what a video world has not; called for what is no attribute."""
        if name in OF_FRAMES:
            raise not_of_video(self.name, name)
        raise AttributeError(name)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles are made of; a copy's own way asks for every field."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in OF_FRAMES}

    def __setstate__(self, made_of: dict[str, Any]) -> None:
        for name, value in made_of.items():
            setattr(self, name, value)

    @property
    def action_repeat(self) -> int:
        """Displayed frames that an action is held for: those of a block."""
        return FRAMES_PER_LATENT * self.causal.block

    @property
    def memory_grows(self) -> bool:
        """Whether a dream's memory grows from frame to frame."""
        return False

    @property
    def height(self) -> int:
        """Height of a frame in pixels."""
        return self.frame_size[0]

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""
        return self.frame_size[1]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""
        return self.transformer.in_dim, self.height // 8, self.width // 8

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a latent frame."""
        return (self.height // PIXELS) * (self.width // PIXELS)

    @property
    def card_facts(self) -> list[str]:
        """What the card says of frames, size and memory."""
        causal, shape = self.causal, self.transformer
        layers = ", ".join(map(str, shape.hybrid_layers))
        released = [f"- Hybrid layers: {layers}, as in ARL2's release"] if layers else []
        return [
            f"- Actions: held for {self.action_repeat} displayed frames",
            f"- Text: {self.text or 'none'}",
            f"- Window: {causal.window} latent frames, the first {causal.sink} of a video always among them",
            *(released if shape.hybrid_form == "published" else []),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        left_out = {"denoiser", "codec", "sampler", "outcome", "odometry", "actions"}
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in left_out}
        shapes = {name: asdict(own[name]) for name in ("transformer", "causal")}
        data = {"format": FORMAT, "kind": KIND} | own | shapes | {"actions": self.actions.to_json()}
        return without_nothing(data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VideoWorldConfig:
        """Build from `to_json`'s object.

        Raises:
            WorldError: If a field is missing, unknown or of the wrong form.
        """
        left_out = {"denoiser", "codec", "sampler", "outcome", "odometry"}
        known = {"kind"} | {each.name for each in fields(cls)} - left_out

        def build(shared: dict[str, Any]) -> VideoWorldConfig:
            return cls(
                **shared,
                transformer=read_record(WanConfig, data["transformer"], "transformer"),
                causal=read_record(CausalConfig, data["causal"], "causal"),
                autoencoder=data["autoencoder"],
                frame_size=data["frame_size"],
                text=data.get("text", ""),
            )

        return read_description(data, known, build)


def not_of_video(name: str, part: str) -> WorldError:
    """Return what is said where a video world is asked for what it has not."""
    return WorldError(
        f"world {name!r} is a video transformer and has no {part} of single frames: it can be played, "
        "stepped, converted and finetuned, and nothing else yet"
    )

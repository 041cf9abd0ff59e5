"""Configuration of a Wan 2.1 text-to-video transformer and of its causal form, checked where it is made."""

from __future__ import annotations

from dataclasses import dataclass

from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting

PATCH = 2
"""Side of the square of latents that becomes one token; in time a patch is one latent frame."""
FRAMES_PER_LATENT = 4
"""Displayed frames of every latent frame but the first, which shows one picture."""
TIME_SCALE = 1000.0
"""The network's time of pure noise; 0 is a clean frame."""
MAX_WIDTH, MAX_LAYERS = 2**16, 1024
"""Far beyond what has been trained: a damaged description is found before memory is."""


@dataclass(kw_only=True, slots=True)
class WanConfig:
    """Shape of the transformer; the defaults are those of Wan 2.1 T2V 1.3B."""

    dim: int = setting(1536, "Model width.", minimum=1, maximum=MAX_WIDTH)
    ffn_dim: int = setting(8960, "Width of the MLP.", minimum=1, maximum=MAX_WIDTH)
    num_heads: int = setting(12, "Heads per layer.", minimum=1, maximum=1024)
    num_layers: int = setting(30, "Number of layers.", minimum=1, maximum=MAX_LAYERS)
    in_dim: int = setting(16, "Channels of a frame's latents.", minimum=1, maximum=1024)
    out_dim: int = setting(16, "Channels of the velocity.", minimum=1, maximum=1024)
    text_dim: int = setting(4096, "Width of the text's embedding.", minimum=1, maximum=MAX_WIDTH)
    text_len: int = setting(
        512, "Rows that a text's embedding is filled up to, with zeros.", minimum=1, maximum=2**14
    )
    freq_dim: int = setting(256, "Sines and cosines that describe a time.", minimum=2, maximum=2**14)
    eps: float = setting(1e-6, "Added to the mean square in norms.", above=0, maximum=1e-2)
    num_values: list[int] = setting(
        [], "Values of each action axis; none in a model without buttons.", minimum=1, maximum=2**16
    )
    hybrid_layers: list[int] = setting(
        [], "Layers that keep a matrix per head in place of past frames' keys and values.", minimum=0
    )
    memory_phase: str = setting(
        "time",
        "What turns the keys of these matrices beside a token's place in its frame: time, the frame's "
        "number, as in the published form; none, nothing, so that decays alone tell frames apart.",
        choices=("time", "none"),
    )

    hybrid_form: str = setting(
        "own",
        "What hybrid layers compute: own, the worlds' attention; published, that of ARL2's release, whose "
        "strengths of writing have no bias and whose memories have adapters of their own.",
        choices=("own", "published"),
    )
    memory_rank: int = setting(
        0, "Rank of these adapters; 0 for none, and in layers of the own form.", minimum=0, maximum=MAX_WIDTH
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.memory_rank and self.hybrid_form == "own":
            raise WorldError("memory_rank is of hybrid layers of the form published; the own form has none")
        if self.dim % self.num_heads or self.head_width % 2:
            raise WorldError(f"dim {self.dim} must be an even multiple of num_heads {self.num_heads}")
        if self.head_width < 6:
            raise WorldError(
                f"dim {self.dim} and num_heads {self.num_heads} make heads of {self.head_width} features; "
                "time, row and column need two each"
            )
        layers = self.hybrid_layers
        if len(set(layers)) != len(layers) or any(layer >= self.num_layers for layer in layers):
            raise WorldError(f"hybrid_layers must be some of 0 to {self.num_layers - 1}, got {layers}")
        if self.freq_dim % 2:
            raise WorldError(f"freq_dim must be even, got {self.freq_dim}")

    @property
    def head_width(self) -> int:
        """Features of one head."""
        return self.dim // self.num_heads


@dataclass(kw_only=True, slots=True)
class CausalConfig:
    """How a causal checkpoint was trained: its blocks, what they see, and the times of its steps.

    The defaults are Self-Forcing's. A block sees itself, the `sink` first latent frames of the video, and as
    many of the latest as make `window` in all.
    """

    block: int = setting(3, "Latent frames generated together.", minimum=1, maximum=1024)
    window: int | None = setting(
        21, "Latent frames that a block sees, with itself; None for all.", minimum=1, maximum=2**20
    )
    sink: int = setting(0, "First latent frames of a video that stay in sight.", minimum=0, maximum=2**20)
    shift: float = setting(5.0, "How far times are moved towards noise; 1 leaves them.", above=0, maximum=100)
    steps: list[int] = setting(
        [1000, 750, 500, 250],
        "Times of the steps before the shift, falling, from 1000 for noise.",
        minimum=1,
        maximum=1000,
    )
    first_steps: list[int] = setting(
        [],
        "Times of the steps of a video's first block, where they are others; none are the same.",
        minimum=1,
        maximum=1000,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.window is not None and self.window < self.block + self.sink:
            raise WorldError(
                f"window {self.window} must hold a block of {self.block} and a sink of {self.sink} frames"
            )
        if not self.steps or not _are_falling(self.steps):
            raise WorldError(f"steps must fall and not be empty, got {self.steps}")
        if not _are_falling(self.first_steps):
            raise WorldError(f"first_steps must fall, got {self.first_steps}")

    @property
    def kept(self) -> int | None:
        """Number of past latent frames that the next block sees beside the sink; None for all."""
        return None if self.window is None else self.window - self.sink - self.block


def _are_falling(numbers: list[int]) -> bool:
    return all(a > b for a, b in zip(numbers, numbers[1:], strict=False))

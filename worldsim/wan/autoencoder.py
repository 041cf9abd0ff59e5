"""The autoencoder of Wan 2.1, one latent frame after another, with the decoder's caches kept as a value."""

# B batch, T pictures, F latent frames, h w latent height and width

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.errors import WorldError
from worldsim.model.pictures import frames_of
from worldsim.runtime.fused import timed_convolutions
from worldsim.storage.files import printable, shown
from worldsim.wan.config import FRAMES_PER_LATENT
from worldsim.wan.decoder import decode_next
from worldsim.wan.tables import constants

SPATIAL = 8
"""Pixels of a latent's side."""
LAYOUTS = {
    "contiguous": (torch.contiguous_format, torch.contiguous_format),
    "channels_last": (torch.channels_last, torch.channels_last_3d),
}
"""Of weights of convolutions over pictures, and over time as well; what they compute follows them."""
CONVOLUTION = "WanCausalConv3d"
"""Of the library: what keeps its last inputs, since it convolves over time."""


@dataclass(frozen=True, slots=True)
class DecoderState:
    """What the next frame's decoding depends on, a value: no function writes into one."""

    features: tuple[Tensor, ...] = ()
    """Of each causal convolution its last two inputs, `[B, channels, 2, height, width]`, zeros before the
    first; of constant shapes from the first frame on, and none before it."""

    @property
    def num_bytes(self) -> int:
        """Size of all features."""
        return sum(each.nbytes for each in self.features)


class StreamingAutoencoder:
    """Diffusers' `AutoencoderKLWan`, which decodes a latent frame at a time.

    The library decodes whole videos only, and clears its caches each time. Here they belong to the caller, so
    that a video can go on, be saved, rewound and branched.

    Attributes:
        is_timed: Whether cuDNN times its kernels where the decoder is compiled.
    """

    def __init__(self, autoencoder: Any) -> None:
        config = autoencoder.config
        if config.patch_size is not None or config.is_residual:
            raise WorldError("the autoencoder is that of Wan 2.2; only Wan 2.1's is supported")
        is_in_scale = list(config.temperal_downsample) == [False, True, True] and len(config.dim_mult) == 4
        if not is_in_scale or (config.in_channels, config.out_channels) != (3, 3):
            raise WorldError(
                f"the autoencoder does not make {FRAMES_PER_LATENT} x {SPATIAL} x {SPATIAL} pixels a latent"
            )
        _check_statistics(config.latents_mean, config.latents_std, config.z_dim)
        self.autoencoder = autoencoder
        self.channels: int = config.z_dim
        self.is_timed = True
        self._num_cached = sum(type(each).__name__ == CONVOLUTION for each in autoencoder.decoder.modules())
        self._shapes: dict[tuple[int, int], list[torch.Size]] = {}

    @property
    def config(self) -> dict[str, Any]:
        """What `build_autoencoder` makes it of."""
        return {name: value for name, value in self.autoencoder.config.items() if not name.startswith("_")}

    def to(self, *, dtype: torch.dtype, device: torch.device | str | None = None) -> StreamingAutoencoder:
        """Move the weights."""
        nn.Module.to(self.autoencoder, device=device, dtype=dtype)  # the library's own warns of nothing
        return self

    def lay_out(self, layout: str) -> StreamingAutoencoder:
        """Store the weights of convolutions in one of `LAYOUTS`, which is faster on some devices."""
        for module in self.autoencoder.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                chosen = LAYOUTS[layout][isinstance(module, nn.Conv3d)]
                module.weight.data = module.weight.data.contiguous(memory_format=chosen)
        return self

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Return the latents of a video, normed as the transformer's: `[B, channels, F, h, w]`.

        Args:
            pictures: `[B, T, 3, 8 h, 8 w]` in [-1, 1]; T is 1, 5, 9 and so on, F is 1, 2, 3.

        Raises:
            WorldError: If there are others.
        """
        if pictures.ndim != 5 or pictures.shape[1] % FRAMES_PER_LATENT != 1:
            raise WorldError(f"a video has 1, 5, 9 ... pictures to encode, got {list(pictures.shape)}")
        others = [FRAMES_PER_LATENT] * (pictures.shape[1] // FRAMES_PER_LATENT)
        return torch.stack(list(self.encode_stream(pictures.split([1, *others], dim=1))), dim=2)

    @torch.no_grad()
    def encode_stream(self, pictures: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the latent frames of a video, `[B, channels, h, w]`, as `encode` makes them.

        Args:
            pictures: First one of them, `[B, 1, 3, 8 h, 8 w]` in [-1, 1], then four at a time.
        """
        kept = sum(type(each).__name__ == CONVOLUTION for each in self.autoencoder.encoder.modules())
        features: list[Any] = [None] * kept
        for chunk in pictures:
            video = chunk.transpose(1, 2).to(self.dtype)
            hidden = self.autoencoder.encoder(video, feat_cache=features, feat_idx=[0])
            raw = self.autoencoder.quant_conv(hidden)[:, : self.channels]  # the rest is a spread: the mode
            mean, std = self._statistics(raw)
            yield ((raw - mean) / std).squeeze(2)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, state: DecoderState, *, is_fused: bool = False
    ) -> tuple[Tensor, DecoderState]:
        """Return a latent frame's pictures and the state behind it.

        Args:
            latents: `[B, channels, h, w]`, normed as the transformer's: mean 0 and variance 1.
            state: `DecoderState()` for the first frame of a video, then the one returned before.
            is_fused: Compile the decoder for all frames but the first; see `decode_next`.

        Returns:
            Pictures `[B, pictures, 3, 8 h, 8 w]` in [-1, 1], one for the first latent frame and four for each
            later one, and the next state.

        Raises:
            WorldError: If latents have another shape than the autoencoder's or than those before.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise WorldError(f"latents must be [batch, {self.channels}, h, w], got {list(latents.shape)}")
        first = next(iter(state.features), None)
        if first is not None and (first.shape[0], *first.shape[-2:]) != (
            latents.shape[0],
            *latents.shape[-2:],
        ):
            raise WorldError(
                f"latents {list(latents.shape)} do not go on from a video of batch {first.shape[0]}, "
                f"height {first.shape[-2]} and width {first.shape[-1]}"
            )
        latents = latents.to(self.dtype).unsqueeze(2)
        mean, std = self._statistics(latents)
        hidden = self.autoencoder.post_quant_conv(latents * std + mean)
        if state.features:
            with timed_convolutions(is_on=is_fused and self.is_timed):
                video, kept = decode_next(self.autoencoder.decoder, hidden, state.features, is_fused=is_fused)
        else:
            # The library writes new tensors into the list, and never into the tensors in it.
            features: list[Any] = [None] * self._num_cached
            video = self.autoencoder.decoder(hidden, feat_cache=features, feat_idx=[0], first_chunk=True)
            shapes = self.feature_shapes(*latents.shape[-2:])
            kept = tuple(
                _settled(each, shape, latents) for each, shape in zip(features, shapes, strict=False)
            )
        return video.clamp(-1, 1).transpose(1, 2), DecoderState(kept)

    @property
    def dtype(self) -> torch.dtype:
        """What weights are stored in and products are computed in."""
        return self.autoencoder.post_quant_conv.weight.dtype

    def feature_shapes(self, height: int, width: int) -> list[torch.Size]:
        """Return the shapes `[1, channels, 2, ...]` of the features of latents of a height and width.

        They are those of the second frame, since the library keeps less behind the first.
        """
        if (height, width) not in self._shapes:
            with torch.device("meta"):
                decoder = build_autoencoder(self.config).decoder
                features: list[Any] = [None] * self._num_cached
                for is_first in (True, False):
                    frame = torch.zeros(1, self.channels, 1, height, width)
                    decoder(frame, feat_cache=features, feat_idx=[0], first_chunk=is_first)
            self._shapes[height, width] = [each.shape for each in features if each is not None]
        return self._shapes[height, width]

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config, shape = self.autoencoder.config, (1, self.channels, 1, 1, 1)
        mean, std = (
            constants(tuple(each), latents.device, latents.dtype).view(shape)
            for each in (config.latents_mean, config.latents_std)
        )
        return mean, std


def show(
    decoder: StreamingAutoencoder,
    latents: Tensor,
    features: tuple[Tensor, ...],
    *,
    is_fused: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return frames `[B, P, H, W, 3]` uint8 of latent frames `[B, C, F, h, w]`, and the features behind."""
    pictures, state = [], DecoderState(features)
    for frame in latents.unbind(2):
        made, state = decoder.decode(frame, state, is_fused=is_fused)
        pictures.append(made)
    images = torch.cat(pictures, dim=1) * 0.5 + 0.5
    return frames_of(images.flatten(0, 1)).unflatten(0, images.shape[:2]), state.features


def _check_statistics(mean: Any, std: Any, channels: int) -> None:
    """Raise `WorldError` unless there is a mean and a positive deviation of each channel."""
    for name, given, above in (("latents_mean", mean, -math.inf), ("latents_std", std, 0.0)):
        numbers = given if isinstance(given, list | tuple) else []
        if len(numbers) != channels or not all(
            isinstance(each, int | float) and math.isfinite(each) and each > above for each in numbers
        ):
            kind = "finite" if name == "latents_mean" else "positive"
            raise WorldError(
                f"the autoencoder's {name} must be {channels} {kind} numbers, got {shown(given)}"
            )


def _settled(feature: Any, shape: torch.Size, like: Tensor) -> Tensor:
    """Return what is kept behind the first frame in the shape that is kept later: zeros come before it.

    The library keeps one moment, or a mark instead of none; the convolution then pads with the same zeros.
    """
    whole = (like.shape[0], *shape[1:])
    if not isinstance(feature, Tensor):
        return like.new_zeros(whole)
    return F.pad(feature, (0, 0, 0, 0, whole[2] - feature.shape[2], 0))


def build_autoencoder(config: Mapping[str, Any]) -> Any:
    """Return diffusers' autoencoder with random weights.

    Raises:
        WorldError: If diffusers is not installed, or there is no such autoencoder.
    """
    try:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    except ImportError as error:
        raise WorldError('the autoencoder of Wan 2.1 needs diffusers: pip install -e ".[wan]"') from error
    try:
        built = AutoencoderKLWan(**config)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        told = shown(printable(" ".join(str(error).split())), 160)
        raise WorldError(f"no autoencoder of Wan 2.1 has this description: {told}") from error
    assert isinstance(built, nn.Module)
    return built.eval().requires_grad_(False)


def count_weights(config: Mapping[str, Any]) -> int:
    """Return how many weights diffusers' autoencoder has, without room for them; errors as to build it."""
    with torch.device("meta"):
        return sum(each.numel() for each in build_autoencoder(config).state_dict().values())

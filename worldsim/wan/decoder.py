"""Decoding latents one frame after another with the autoencoder of Wan 2.1, its caches kept as a value."""

# B batch, h w latent height and width

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.storage.files import printable, shown

CACHED = Tensor | str | None
"""What a layer keeps: its last inputs, the library's mark for a layer that has seen one frame, or nothing."""


@dataclass(frozen=True, slots=True)
class DecoderState:
    """What the next frame's decoding depends on, a value: no function writes into one."""

    features: tuple[CACHED, ...] = ()
    """Of each causal convolution; empty before the first frame."""

    @property
    def num_bytes(self) -> int:
        """Size of all features."""
        return sum(each.nbytes for each in self.features if isinstance(each, Tensor))


class StreamingDecoder:
    """The decoder of diffusers' `AutoencoderKLWan`, a latent frame at a time.

    The library decodes whole videos only, and clears its caches each time. Here they belong to the caller, so
    that a video can go on, be saved, rewound and branched.
    """

    def __init__(self, autoencoder: Any) -> None:
        config = autoencoder.config
        if config.patch_size is not None or config.is_residual:
            raise WorldError("the autoencoder is that of Wan 2.2; only Wan 2.1's is supported")
        self.autoencoder = autoencoder
        self.channels: int = config.z_dim
        self.num_cached = _num_causal_convolutions(autoencoder.decoder)
        weight = autoencoder.post_quant_conv.weight
        shape = (1, self.channels, 1, 1, 1)
        self.mean = weight.new_tensor(config.latents_mean).view(shape)
        self.std = weight.new_tensor(config.latents_std).view(shape)

    @torch.no_grad()
    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Return a latent frame's pictures and the state behind it.

        Args:
            latents: `[B, channels, h, w]`, normed as the transformer's: mean 0 and variance 1.
            state: `DecoderState()` for the first frame of a video, then the one returned before.

        Returns:
            Pictures `[B, pictures, 3, 8 h, 8 w]` in [-1, 1], one for the first latent frame and four for each
            later one, and the next state.

        Raises:
            WorldError: If latents have another shape than the autoencoder's or than those before.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise WorldError(f"latents must be [batch, {self.channels}, h, w], got {list(latents.shape)}")
        is_first = not state.features
        first = next((each for each in state.features if isinstance(each, Tensor)), None)
        if first is not None and (first.shape[0], *first.shape[-2:]) != (
            latents.shape[0],
            *latents.shape[-2:],
        ):
            raise WorldError(
                f"latents {list(latents.shape)} do not go on from a video of batch {first.shape[0]}, "
                f"height {first.shape[-2]} and width {first.shape[-1]}"
            )
        # The library writes new tensors into the list, and never into the tensors in it.
        features: list[CACHED] = [None] * self.num_cached if is_first else list(state.features)
        raw = latents.to(self.mean).unsqueeze(2) * self.std + self.mean
        hidden = self.autoencoder.post_quant_conv(raw)
        video = self.autoencoder.decoder(hidden, feat_cache=features, feat_idx=[0], first_chunk=is_first)
        return video.clamp(-1, 1).transpose(1, 2), DecoderState(tuple(features))


def load_decoder(path: Path, dtype: torch.dtype = torch.float32) -> StreamingDecoder:
    """Load the autoencoder from a folder as diffusers saves it, or from `vae` in the folder of a pipeline.

    Raises:
        WorldError: If diffusers is not installed, or there is no such autoencoder.
    """
    try:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    except ImportError as error:
        raise WorldError('the autoencoder of Wan 2.1 needs diffusers: pip install -e ".[wan]"') from error
    folder = path / "vae" if (path / "vae").is_dir() else path
    if not folder.is_dir():
        raise WorldError(f"{path} is no folder: an autoencoder is one, with its config.json and its weights")
    try:
        loaded = AutoencoderKLWan.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        told = shown(printable(" ".join(str(error).split())), 160)
        raise WorldError(f"{folder} holds no autoencoder of Wan 2.1: {told}") from error
    return StreamingDecoder(loaded.eval().requires_grad_(False))


def _num_causal_convolutions(decoder: Any) -> int:
    """Return how many layers keep their last inputs: all that convolve over time."""
    return sum(type(module).__name__ == "WanCausalConv3d" for module in decoder.modules())

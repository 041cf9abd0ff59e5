"""Cost of decoding a video a latent frame at a time, beside the library's decoding of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim.evaluation.cost.step_time import now
from worldsim.wan.autoencoder import DecoderState, StreamingAutoencoder, build_autoencoder

LATENTS = 9
"""Latent frames of the video that is decoded."""
REPEATS = 2
"""Behind the first decoding, in which kernels are chosen; the faster one counts."""


@dataclass(frozen=True, slots=True)
class DecodingCost:
    """What decoding costs, with random weights.

    Attributes:
        whole_ms: Milliseconds a latent frame, the whole video at once by the library.
        streamed_ms: The same, one latent frame after another.
        relative_error: Norm of the difference of their pictures over that of the library's.
    """

    whole_ms: float
    streamed_ms: float
    relative_error: float


def make_decoder(width: int, layout: str, device: torch.device, dtype: torch.dtype) -> StreamingAutoencoder:
    """Return a decoder of this base width with random weights, in a layout or, for `auto`, as it is made."""
    with torch.device(device):
        autoencoder = build_autoencoder({"base_dim": width})
    decoder = StreamingAutoencoder(autoencoder).to(dtype=dtype)
    return decoder if layout == "auto" else decoder.lay_out(layout)


@torch.inference_mode()
def measure_decoding(
    decoder: StreamingAutoencoder, size: tuple[int, int], *, is_fused: bool = False
) -> DecodingCost:
    """Decode one random video both ways.

    Args:
        decoder: Where it is, and in its format.
        size: Latent height and width.
        is_fused: Compile what decodes one latent frame after another.
    """
    like = decoder.autoencoder.post_quant_conv.weight
    generator = torch.Generator(like.device).manual_seed(0)
    shape = (1, decoder.channels, LATENTS, *size)
    latents = torch.randn(shape, generator=generator, device=like.device).to(like.dtype)
    decoder.feature_shapes(*size)  # asked for once: seconds that are no decoding's
    whole_ms, whole = _fastest(lambda: decode_whole(decoder, latents), like.device)
    streamed_ms, streamed = _fastest(lambda: _decode_streamed(decoder, latents, is_fused), like.device)
    whole = whole.float()
    error = float((streamed.float() - whole).norm() / whole.norm())
    return DecodingCost(whole_ms / LATENTS, streamed_ms / LATENTS, error)


def decode_whole(decoder: StreamingAutoencoder, latents: Tensor) -> Tensor:
    """Return the pictures `[B, T, 3, H, W]` of latents `[B, C, F, h, w]` by the library's own decoding."""
    config, shape = decoder.autoencoder.config, (1, decoder.channels, 1, 1, 1)
    mean, std = (latents.new_tensor(each).view(shape) for each in (config.latents_mean, config.latents_std))
    return decoder.autoencoder.decode(latents * std + mean).sample.transpose(1, 2)


def _decode_streamed(decoder: StreamingAutoencoder, latents: Tensor, is_fused: bool) -> Tensor:
    state, shown = DecoderState(), []
    for frame in latents.unbind(2):
        pictures, state = decoder.decode(frame, state, is_fused=is_fused)
        shown.append(pictures)
    return torch.cat(shown, dim=1)


def _fastest(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Return the milliseconds of the fastest of some runs, and what it returned."""
    made, times = run(), []
    for _ in range(REPEATS):
        begun = now(device)
        made = run()
        times.append(1e3 * (now(device) - begun))
    return min(times), made

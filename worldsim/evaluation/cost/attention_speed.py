"""Benchmark of PyTorch's attention backends, to choose the baseline."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from worldsim.evaluation.cost.step_time import now
from worldsim.model.config import DenoiserConfig

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WARM_UPS, REPEATS, CALLS = 2, 5, 4
"""Lengths of the cache, those that count, and calls at each length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpeed:
    """How fast one layer attends to a frame and all `past_frames` before it.

    Attributes:
        milliseconds: By backend, the fastest first; None where it does not run here, or not at this length.
        fastest: Name of the fastest backend.
    """

    past_frames: int
    milliseconds: dict[str, float | None]
    fastest: str


def measure_attention(
    config: DenoiserConfig, past_frames: int, num_passes: int, device: torch.device, dtype: torch.dtype
) -> AttentionSpeed:
    """Time every backend on the shapes of a model's full attention in play.

    `num_passes` go through the model for each frame, with `past_frames` frames in the cache.
    """
    times = {name: time_backend(name, config, past_frames, num_passes, device, dtype) for name in BACKENDS}
    ordered = sorted(times.items(), key=lambda item: float("inf") if item[1] is None else item[1])
    return AttentionSpeed(past_frames=past_frames, milliseconds=dict(ordered), fastest=ordered[0][0])


def time_backend(
    name: str,
    config: DenoiserConfig,
    past_frames: int,
    num_passes: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float | None:
    """Return the mean time of a call of one backend in milliseconds; None if it does not run on these shapes.

    Arguments as for `measure_attention`. The cache is longer with every frame, and a backend may prepare anew
    for each length: the first call at a length is slower, and counts as often as it would in play.
    """
    calls = num_passes * config.num_layers
    lengths = range(max(0, past_frames - WARM_UPS - REPEATS + 1), past_frames + 1)
    means = []
    try:
        with warnings.catch_warnings(), torch.inference_mode(), sdpa_kernel(BACKENDS[name]):
            warnings.simplefilter("ignore")  # PyTorch says at length why a backend does not run
            for length in lengths:
                first, *others = time_calls(config, length, device, dtype)
                means.append((first + (calls - 1) * median(others)) / calls)
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        return None
    return median(means[WARM_UPS:] or means)


def time_calls(
    config: DenoiserConfig, past_frames: int, device: torch.device, dtype: torch.dtype
) -> list[float]:
    """Return the times of successive calls at one length of the cache, in milliseconds."""
    heads, tokens, width = config.num_heads, config.tokens_per_frame, config.head_width

    def random(num_tokens: int) -> Tensor:
        return torch.randn(1, heads, num_tokens, width, device=device, dtype=dtype)

    q, k, v = random(tokens), random((past_frames + 1) * tokens), random((past_frames + 1) * tokens)
    times = []
    for _ in range(CALLS):
        started = now(device)
        functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        times.append(1000 * (now(device) - started))
    return times


@contextmanager
def fastest_attention(speed: AttentionSpeed) -> Iterator[None]:
    """Let PyTorch attend by the fastest backend, and by the next ones where it does not run, as with masks.

    On a CPU PyTorch goes by an order of its own.
    """
    with sdpa_kernel([BACKENDS[name] for name in speed.milliseconds], set_priority=True):
        yield

"""Cost of long videos at the shape of the paper's model, Wan 2.1 1.3B made causal, with random weights.

What a pass costs does not depend on what the weights hold. The paper (ARL2, arXiv 2605.16579) reports 2.26
times the speed and 54 % less memory for 921 frames at 75 % hybrid layers. The teacher attends by the fastest
of PyTorch's backends: a slow baseline is no baseline.
"""

# B batch, C h w latent size, L layers

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from worldsim.evaluation.cost.step_time import device_memory, now
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.state import MemoryState
from worldsim.sampler import SamplerConfig, draw

VIDEO_FRAMES_PER_LATENT = 4
"""Wan's codec makes one frame of latents of 4 frames of video, and one of the very first."""
SHIFT = 5.0
WARM_UP_FRAMES = 2

PAPER_SHAPE = DenoiserConfig(
    latent_shape=[16, 60, 104],  # 480 x 832 pixels; 1,560 tokens
    num_values=[2],
    dim=1536,
    ffn_dim=8960,
    num_heads=12,
    num_layers=30,
    window_layers=[],
    memory_phase="time",
    previous_frame=False,
)
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WARM_UPS, REPEATS, CALLS = 2, 5, 4
"""Lengths of the cache, those that count, and calls at each length."""


def latent_frames(video_frames: int) -> int:
    """Return how many frames of latents hold so many frames of video."""
    return -(-(video_frames - 1) // VIDEO_FRAMES_PER_LATENT) + 1


def models_of(shape: DenoiserConfig) -> dict[str, DenoiserConfig]:
    """Return the models to compare at a shape of L layers, by name.

    The first three quarters of the layers are converted, as in the paper; it leaves the others as they are.
    """
    layers = list(range(shape.num_layers))
    others = layers[3 * shape.num_layers // 4 :]
    return {
        "teacher, all full": replace(shape, window_layers=[], full_layers=layers),
        "75 % hybrid, 25 % full": replace(shape, window_layers=[], full_layers=others),
        "75 % hybrid, 25 % window": replace(shape, window_layers=others, full_layers=[]),
    }


def build_random(config: DenoiserConfig, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """Return a network with random weights; tables of angles keep their precision."""
    torch.manual_seed(0)
    with torch.device(device):
        denoiser = Denoiser(config)
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(dtype)
    return denoiser.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeCost:
    """Cost of one video of latents; `frames_done` is smaller where the device's memory did not suffice.

    Layers are counted by kind; the state is that at the end, the peak that of a GPU's tensors, and the times
    `[frames_done]` are of whole frames.
    """

    layers: dict[str, int]
    weight_bytes: int
    num_frames: int
    frames_done: int
    seconds: float
    first_step_ms: float | None
    last_step_ms: float | None
    state_bytes: int
    peak_bytes: int | None
    step_ms_curve: list[float]


def measure_shape(
    config: DenoiserConfig, *, num_frames: int, num_steps: int, device: torch.device, dtype: torch.dtype
) -> ShapeCost:
    """Generate one video with random weights, and measure; `num_steps` passes denoise each frame."""
    denoiser = build_random(config, device, dtype)
    sampler = SamplerConfig(num_steps=num_steps, shift=SHIFT)
    generate(denoiser, WARM_UP_FRAMES, sampler, torch.device(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    report = generate(denoiser, num_frames, sampler, device)
    del denoiser
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return report


@torch.inference_mode()
def generate(denoiser: Denoiser, num_frames: int, sampler: SamplerConfig, device: torch.device) -> ShapeCost:
    """Generate frames from noise and commit each, as many as fit."""
    memory = denoiser.initial_memory(1)
    generator = torch.Generator(device).manual_seed(0)
    actions = torch.zeros(1, len(denoiser.config.num_values), dtype=torch.int64, device=device)
    clean = torch.zeros(1, device=device)
    step_ms: list[float] = []
    began = time.perf_counter()
    try:
        memory = with_room(memory, num_frames)
        for _ in tqdm(range(num_frames), desc="generating", unit="frame"):
            started = now(device)
            noise = torch.randn(1, *denoiser.latent_shape, generator=generator, device=device)
            context = denoiser.observe(actions, memory)
            latents, context = draw(denoiser, noise, context, memory, sampler)
            memory = denoiser.commit(latents, clean, context, memory)
            step_ms.append(1000 * (now(device) - started))
    except torch.OutOfMemoryError:
        pass  # a result: `frames_done` says how far it came
    peak = device_memory(device)
    return ShapeCost(
        layers=denoiser.config.layer_counts,
        weight_bytes=sum(parameter.nbytes for parameter in denoiser.parameters()),
        num_frames=num_frames,
        frames_done=len(step_ms),
        seconds=time.perf_counter() - began,
        first_step_ms=step_ms[0] if step_ms else None,
        last_step_ms=step_ms[-1] if step_ms else None,
        state_bytes=memory.nbytes,
        peak_bytes=peak[1] if peak else None,
        step_ms_curve=[round(value, 3) for value in step_ms],
    )


def with_room(memory: MemoryState, num_frames: int) -> MemoryState:
    """Return the memory with room in its growing cache: to grow, the cache would be held twice for a time."""
    return memory if memory.past is None else replace(memory, past=memory.past.reserve(num_frames + 1))


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


class AttentionShape(Protocol):
    """What of a network's shape decides the cost of its attention."""

    @property
    def num_heads(self) -> int:
        """Heads of a layer."""
        ...

    @property
    def head_width(self) -> int:
        """Features of a head."""
        ...

    @property
    def tokens_per_frame(self) -> int:
        """Tokens that attend together."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers of a pass."""
        ...


def measure_attention(
    config: AttentionShape, past_frames: int, num_passes: int, device: torch.device, dtype: torch.dtype
) -> AttentionSpeed:
    """Time every backend on the shapes of a model's full attention in play.

    `num_passes` go through the model for each frame, with `past_frames` frames in the cache.
    """
    times = {name: time_backend(name, config, past_frames, num_passes, device, dtype) for name in BACKENDS}
    ordered = sorted(times.items(), key=lambda item: float("inf") if item[1] is None else item[1])
    return AttentionSpeed(past_frames=past_frames, milliseconds=dict(ordered), fastest=ordered[0][0])


def time_backend(
    name: str,
    config: AttentionShape,
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
    config: AttentionShape, past_frames: int, device: torch.device, dtype: torch.dtype
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

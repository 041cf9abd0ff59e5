"""Cost of long videos at the shape of the paper's model, Wan 2.1 1.3B made causal, with random weights.

What a pass costs does not depend on what the weights hold. The paper (ARL2, arXiv 2605.16579) reports 2.26
times the speed and 54 % less memory for 921 frames at 75 % hybrid layers.
"""

# B batch, C h w latent size, L layers

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from worldsim.evaluation.cost.step_time import device_memory, now
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.state import MemoryState
from worldsim.sampler import SamplerConfig, sample

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
    """Cost of one video with random weights, frames of latents.

    Attributes:
        layers: Number of layers by kind.
        frames_done: Less than `num_frames` where the device's memory did not suffice.
        seconds: Of all frames.
        first_step_ms: Of the first frame; None if there was none, as of the last.
        state_bytes: At the end.
        peak_bytes: Of a GPU's tensors; None without one.
        step_ms_curve: Of each frame, `[frames_done]`.
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
            latents = sample(lambda x, t, c=context, m=memory: denoiser.denoise(x, t, c, m), noise, sampler)
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

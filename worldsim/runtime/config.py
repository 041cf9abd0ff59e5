"""Settings of how a world is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Settings of how a world is computed; `worldsim.simulator.open_simulator` reads them.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a loaded world stays where it is.
        dtype: `auto`, `bfloat16` (`bf16`) or `float32` (`fp32`); a loaded world stays as it is.
        denoising_steps: Denoising passes a frame; None is the world's own number.
        noise_scale: Standard deviation of the noise that frames are drawn from; None is the world's own.
        compile: `auto`, `none`, `cudagraphs` or `inductor`; see `worldsim.runtime.cuda_graphs`.
        threads: Threads of PyTorch; 0 chooses, None leaves them as they are.
    """

    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    denoising_steps: int | None = None
    noise_scale: float | None = None
    compile: str = "auto"
    threads: int | None = None

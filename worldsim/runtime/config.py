"""Settings of how a world is computed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from worldsim.runtime.cores import check_workers
from worldsim.settings import check_settings, setting

if TYPE_CHECKING:  # a wrong setting need not wait for it
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


@dataclass(kw_only=True, slots=True)
class RuntimeSettings:
    """Settings of every command that computes worlds."""

    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: the first GPU where there is one.")
    dtype: str = setting("auto", "bf16, fp32, or auto: bf16 where the device computes it directly.")
    threads: int = setting(0, "CPU threads to compute with; 0 chooses.")

    def __post_init__(self) -> None:
        check_settings(self)
        check_workers(self.threads, "threads")

    def runtime(self) -> RuntimeConfig:
        """Return how worlds are computed; what it has no setting for is left to `RuntimeConfig`."""
        own = {each.name for each in fields(self)} & {each.name for each in fields(RuntimeConfig)}
        return RuntimeConfig(**{name: getattr(self, name) for name in own})

"""Choice of device and number format, with the reason in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from worldsim.errors import WorldError
from worldsim.runtime.cores import check_workers, core_quota
from worldsim.runtime.cores import usable_cores as usable_cores

DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
# Instructions that multiply bf16 numbers, as `torch.cpu.get_capabilities` names them.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16")
# A frame is a few hundred small matrix products: more threads wait for each other more than they compute.
MAX_AUTO_THREADS = 4


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device, a number format, and why these."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """Short form, for example `cpu bfloat16`."""
        return f"{self.device} {str(self.dtype).removeprefix('torch.')}"

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_device(device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> DeviceChoice:
    """Choose what was asked for, or the fastest there is.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `bfloat16` (`bf16`) or `float32` (`fp32`).

    Raises:
        WorldError: If the device does not exist here, or a name means nothing.
    """
    chosen, why_device = _choose_device(str(device))
    chosen_dtype, why_dtype = _choose_dtype(dtype, chosen)
    return DeviceChoice(chosen, chosen_dtype, f"{why_device}; {why_dtype}")


def _choose_device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0), f"there is a GPU, {torch.cuda.get_device_name(0)}"
        return torch.device("cpu"), "torch sees no CUDA GPU"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise WorldError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise WorldError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA GPUs")
    return torch.device("cuda", int(index or 0)) if kind == "cuda" else torch.device("cpu"), "device as asked"


def _choose_dtype(dtype: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, str]:
    fast = _bf16_instructions(device)
    if dtype == "auto":
        if fast:
            return torch.bfloat16, f"it computes bf16 directly: {fast}"
        return torch.float32, "it has no bf16 instructions"
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise WorldError(f"dtype must be auto, {' or '.join(DTYPES)}, got {str(dtype)!r}")
    slow = chosen is torch.bfloat16 and not fast
    return chosen, "dtype as asked, though it has no bf16 instructions" if slow else "dtype as asked"


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bf16 numbers directly; others imitate it, far slower than fp32."""
    return bool(_bf16_instructions(device))


def _bf16_instructions(device: torch.device) -> str:
    """Return the name of what multiplies bf16 numbers on a device, or nothing."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= 8 else ""
    return bf16_instructions_of(torch.cpu.get_capabilities())


def bf16_instructions_of(capabilities: Mapping[str, Any]) -> str:
    """Return which bf16 instructions a processor of these `torch.cpu.get_capabilities` has, or nothing."""
    return ", ".join(name for name in BF16_INSTRUCTIONS if capabilities.get(name))


def set_threads(num_threads: int = 0) -> int:
    """Set how many threads torch computes with; returns their number.

    Args:
        num_threads: 0 chooses: one per core that torch would use and this process may, at most
            `MAX_AUTO_THREADS`.

    Raises:
        WorldError: If there are none of so many threads.
    """
    check_workers(num_threads, "threads")
    most = max(1, math.floor(min(core_quota(), MAX_AUTO_THREADS)))
    torch.set_num_threads(num_threads or min(torch.get_num_threads(), most))
    return torch.get_num_threads()

"""Tables that depend on shapes alone, made once for each device.

Made anew, each would be a copy from the host at every pass, for which a GPU waits, and of which no CUDA graph
can be recorded. They are kept for good, since a graph reads them where they were when it was recorded.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from worldsim.model.rotary import frequencies, place_angles, turns


@cache
def frequencies_on(width: int, device: torch.device) -> Tensor:
    """Return `rotary.frequencies` on a device, `[width / 2]` fp64."""
    with torch.inference_mode(False), torch.device("cpu"):
        return frequencies(width).to(device)


@cache
def place_turns(rows: int, columns: int, head_width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the turns of tokens' places in a frame, `[rows * columns, head_width / 2, 2]`.

    The pairs that belong to time stay as they are: a cosine of 1, a sine of 0.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        return turns(place_angles(rows, columns, head_width)).to(device, dtype)


@cache
def constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return numbers as a tensor, `[len(values)]`."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)

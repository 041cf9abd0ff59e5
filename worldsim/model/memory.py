"""What the model remembers between frames, as a value."""

# B batch, L layers of the kind, H heads, K key width, V value width, W window frames, N tokens per frame, D
# head width

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryState:
    """The whole memory of a batch of worlds; its size never changes. No function writes into these tensors.

    Attributes:
        matrices: `[L, B, H, K, V]` fp32, the recurrent state of each hybrid layer.
        window_keys: `[L, B, W + 1, N, H, D]`, keys of the sink (slot 0, the first committed frame) and of
            the last W frames, oldest first, turned by their place in the frame only.
        window_values: The values beside them.
        phase: `[B, D / 2]` fp32 in [-pi, pi), the angles of the path so far.
        latents: `[B, C, h, w]`, the frame committed last.
        num_committed: `[B]` int64, how many frames were committed.
    """

    matrices: Tensor
    window_keys: Tensor
    window_values: Tensor
    phase: Tensor
    latents: Tensor
    num_committed: Tensor

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def push_window(cache: Tensor, new: Tensor, num_committed: Tensor) -> Tensor:
    """Return the window after one more frame.

    Args:
        cache: `[L, B, W + 1, N, H, D]`, sink first, then the last W frames, oldest first.
        new: `[L, B, N, H, D]`, the frame that is committed.
        num_committed: `[B]`, frames committed before it; the very first becomes the sink.
    """
    is_first = (num_committed == 0)[None, :, None, None, None]
    sink = torch.where(is_first, new, cache[:, :, 0])
    return torch.cat([sink[:, :, None], cache[:, :, 2:], new[:, :, None]], dim=2)


def window_is_visible(num_committed: Tensor, window: int) -> Tensor:
    """Return which cached frames are seen, `[B, W + 1]` bool; the sink only once it has left the window."""
    age = torch.arange(window, 0, -1, device=num_committed.device)  # oldest first
    recent = age <= num_committed[:, None]
    return torch.cat([(num_committed > window)[:, None], recent], dim=1)

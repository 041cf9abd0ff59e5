"""The keys and values of all past frames: a value, in a buffer that grows by doubling.

Frame by frame a cache that is copied whole would cost as much as the attention to it. Here successive states
share one buffer, of which each sees the beginning that was written before it:

    state after 3 frames   a b c
    state after 4 frames   a b c d        written into the buffer's room: the state before doesn't see it
    another fourth frame   a b c e        the room is taken: copied into a buffer of its own

So nothing that a state sees is ever written to, and a frame is copied once or twice on average.
"""

# L full layers, B batch, C frames that fit, T past frames, N tokens per frame, H heads, D head width

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_CAPACITY = 8
FRAMES_AXIS = 3
"""Of the keys and of the values; the only one that grows."""


@dataclass(slots=True)
class _Buffer:
    """Keys and values `[2, L, B, H, C, N, D]`; the first `num_taken` frames belong to some state."""

    data: Tensor
    num_taken: int


class PastFrames:
    """What the full layers keep of all past frames: turned keys, and values. A value; see this module.

    Args:
        buffer: Shared with the states before and after.
        num_frames: How many frames of it this value sees.
    """

    def __init__(self, buffer: _Buffer, num_frames: int) -> None:
        self._buffer = buffer
        self.num_frames = num_frames

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> PastFrames:
        """Build from copies of keys and values `[L, B, H, T, N, D]`.

        Raises:
            ValueError: If the two differ in shape.
        """
        if keys.shape != values.shape or keys.dim() != 6:
            raise ValueError(f"keys {list(keys.shape)} and values {list(values.shape)} of past frames differ")
        return cls(_Buffer(torch.stack([keys, values]), keys.shape[3]), keys.shape[3])

    def reserve(self, num_frames: int) -> PastFrames:
        """Return the same frames in a buffer with room for so many in all: it is not copied until then."""
        old = self._buffer.data[:, :, :, :, : self.num_frames]
        data = old.new_empty(*old.shape[:4], num_frames + 1, *old.shape[5:])  # one for `with_own`
        data[:, :, :, :, : self.num_frames] = old
        return PastFrames(_Buffer(data, self.num_frames), self.num_frames)

    @property
    def keys(self) -> Tensor:
        """Keys `[L, B, H, T, N, D]`, for reading only."""
        return self._buffer.data[0, :, :, :, : self.num_frames]

    @property
    def values(self) -> Tensor:
        """Values `[L, B, H, T, N, D]`, for reading only."""
        return self._buffer.data[1, :, :, :, : self.num_frames]

    def append(self, keys: Tensor, values: Tensor) -> PastFrames:
        """Return these frames and one more, `[L, B, N, H, D]` each; this value stays as it was."""
        count, new = self.num_frames, (keys.transpose(-3, -2), values.transpose(-3, -2))  # [L, B, H, N, D]
        buffer = self._buffer
        if not self._can_write(new, count + 2):  # two, so that the frame after it has room in `with_own`
            old = buffer.data[:, :, :, :, :count]
            with torch.inference_mode(False):  # it outlives the call: later frames are written into it
                data = old.new_empty(*old.shape[:4], max(MIN_CAPACITY, 2 * (count + 1)), *old.shape[5:])
            data[:, :, :, :, :count] = old
            buffer = _Buffer(data, count)
        buffer.data[0, :, :, :, count], buffer.data[1, :, :, :, count] = new
        buffer.num_taken = count + 1
        return PastFrames(buffer, count + 1)

    def with_own(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's past keys and values with a frame's own behind them.

        The frame's own are put into the room behind the past ones where that is free: it belongs to no state,
        and every pass over the frame writes it again. To be used before the next call.

        Args:
            layer: Number among the full layers.
            keys: `[B, N, H, D]`.
            values: The same.

        Returns:
            Two times `[B, H, (T + 1) * N, D]`.
        """
        count, data = self.num_frames, self._buffer.data
        own = keys.transpose(-3, -2), values.transpose(-3, -2)  # [B, H, N, D]
        if self._can_write(own, count + 1):
            data[0, layer, :, :, count], data[1, layer, :, :, count] = own
            both = [kind[:, :, : count + 1] for kind in data[:, layer]]
        else:
            past = data[:, layer, :, :, :count]
            both = [torch.cat([kind, new.unsqueeze(2)], dim=2) for kind, new in zip(past, own, strict=True)]
        past_keys, past_values = (kind.flatten(2, 3) for kind in both)
        return past_keys, past_values

    def _can_write(self, new: tuple[Tensor, Tensor], capacity: int) -> bool:
        """Return whether the room behind these frames is free and large enough, and no gradient flows."""
        data = self._buffer.data
        is_free = self._buffer.num_taken == self.num_frames and capacity <= data.shape[4]
        is_locked = data.is_inference() and not torch.is_inference_mode_enabled()
        return is_free and not (is_locked or any(tensor.requires_grad for tensor in (data, *new)))

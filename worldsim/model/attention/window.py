"""Window attention: softmax over the latest frames and the first of all. Constant memory."""

# B batch, F frames, S streams (clean, noisy), N tokens per frame, H heads, D head width, W window frames

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import layers
from kernels.layer_checks import holds_frame, holds_window
from kernels.layer_reference import frames_before, window_mask
from worldsim.model.attention.base import (
    Attention,
    Cached,
    Rotary,
    attend,
    attend_in_play,
    project_turned,
    rotate_both,
)
from worldsim.model.rotary import frequencies, rotate, split_width, turns


def age_angles(head_width: int, window: int) -> Tensor:
    """Return the angles of cached frames, `[window + 1, head_width / 2]` fp64: sink, then oldest first."""
    time = split_width(head_width)[0]
    age = torch.arange(window + 1, 0, -1, dtype=torch.float64)
    angles = torch.zeros(window + 1, head_width // 2, dtype=torch.float64)
    angles[:, : time // 2] = -age[:, None] * frequencies(time)
    return angles


class WindowBefore(NamedTuple):
    """What a window layer is given of the frames before a segment.

    Attributes:
        k: `[B, W + 1, N, H, D]`, keys of the sink and of the last W frames, as in `MemoryState.window_keys`.
        v: The values beside them.
        visible: `[B, F, W + 1]` bool, which of the cached frames each frame of the segment sees.
        is_empty: `[B]` bool, whether nothing was committed before: the sink is then the first frame.
    """

    k: Tensor
    v: Tensor
    visible: Tensor
    is_empty: Tensor


class WindowAttention(Attention):
    """Softmax over this frame, the last W frames, and the first frame of all (the sink). Constant memory.

    Positions in time are counted back from the current frame, the sink's is held at W + 1, so that nothing
    depends on how long the world has been running.
    """

    age: Tensor

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads)
        self.window = window
        self.register_buffer(
            "age", turns(age_angles(dim // num_heads, window)).float()[:, None], persistent=False
        )

    def forward(
        self, x: Tensor, cache: tuple[Tensor, Tensor], mask: Tensor | None, rotary: Rotary
    ) -> tuple[Tensor, Cached]:
        """Attend over one frame and the cached ones.

        Args:
            x: `[B, N, H * D]`.
            cache: Keys (turned by place and age) and values of sink and window, heads first: `[B, H, (W + 1)
                * N, D]` each.
            mask: `[B, 1, 1, (W + 2) * N]` bool, which cached tokens exist; the frame's own are last. None if
                all do.
            rotary: Angles of this frame.

        Returns:
            The layer's output, and the frame's own keys and values for the cache.
        """
        qk, v, _ = self.project(x)
        q, k = rotate_both(qk, rotary.place).to(cache[0].dtype).unbind(-3)
        v = v.to(cache[1].dtype)
        keys = torch.cat([cache[0], k.transpose(1, 2)], dim=2)
        values = torch.cat([cache[1], v.transpose(1, 2)], dim=2)
        out = attend_in_play(q.transpose(1, 2), keys, values, mask)
        return self.o(out.transpose(1, 2).flatten(-2)), Cached(k, v)

    def remember(self, x: Tensor, rotary: Rotary) -> Cached:
        """Return what `forward` hands on to be cached, without attending."""
        qk, v, _ = self.project(x)
        dtype = self.o.weight.dtype
        return Cached(rotate_both(qk, rotary.place)[..., 1, :, :].to(dtype), v.to(dtype))

    def forward_sequence(self, x: Tensor, before: WindowBefore, rotary: Rotary) -> tuple[Tensor, Cached]:
        """Do the same for all frames of a segment at once.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            before: What is cached of the frames before the segment.
            rotary: Angles of the frames.

        Returns:
            The output, shaped as `x`, and what is cached after the segment, shaped as in `before`, without
            gradients.
        """
        if layers.is_fused("turned_norm", x):
            _, (q, k), v, _ = project_turned(self, x, rotary.place, keeps=False)
        else:
            qk, v, _ = self.project(x)
            q, k = rotate_both(qk.to(v.dtype), rotary.place).to(v.dtype).unbind(-3)
        clean_k, clean_v = k[:, :, 0], v[:, :, 0]
        after = Cached(
            self._after(clean_k, before.k, before.is_empty), self._after(clean_v, before.v, before.is_empty)
        )
        if layers.is_fused("attend_window", q) and holds_window(q):
            cached = (before.k.to(k.dtype), before.v.to(v.dtype))
            out = layers.attend_window(q, k, v, *cached, before.visible, before.is_empty, self.age[:, 0])
            return self.o(self._without(out, q, k, v, rotary).flatten(-2)), after
        past_keys = frames_before(clean_k, before.k.to(k.dtype), before.is_empty)
        past_keys = rotate(past_keys, self.age).to(k.dtype)
        past_values = frames_before(clean_v, before.v.to(v.dtype), before.is_empty)
        keys = torch.cat([past_keys.flatten(2, 3), k.flatten(2, 3)], dim=2)
        values = torch.cat([past_values.flatten(2, 3), v.flatten(2, 3)], dim=2)
        mask = window_mask(before.visible, x.shape[2], x.shape[3])
        out = attend(q.flatten(2, 3), keys, values, mask)
        out = self._without(out.unflatten(2, x.shape[2:4]), q, k, v, rotary)
        return self.o(out.flatten(-2)), after

    def _without(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary) -> Tensor:
        """Return `out`, in frames that are drawn from the states alone without what the window gave."""
        if rotary.alone is None:
            return out
        is_fused = layers.is_fused("attend", q) and holds_frame(q)
        own = (layers.attend if is_fused else attend)(q, k, v)
        return torch.where(rotary.alone[..., None, None, None, None], own, out)

    def _after(self, clean: Tensor, before: Tensor, is_empty: Tensor) -> Tensor:
        """Return what is cached after the last frame `[B, W + 1, N, H, D]`, without gradients.

        Args:
            clean: `[B, F, N, H, D]`.
            before: `[B, W + 1, N, H, D]`, what is cached before the first frame.
            is_empty: `[B]` bool, whether that is nothing.
        """
        clean, cached = clean.detach(), before.to(clean.dtype)
        sink = torch.where(is_empty[:, None, None, None, None], clean[:, :1], cached[:, :1])
        latest = [cached[:, 1 + clean.shape[1] :], clean[:, -self.window :]]
        return torch.cat([sink, *latest], dim=1).to(before.dtype)

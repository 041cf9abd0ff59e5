"""Window attention: softmax over the latest frames and the first of all. Constant memory."""

# B batch, F frames, S streams (clean, noisy), N tokens per frame, H heads, D head width, W window frames

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worldsim.model.attention import Attention, Cached, Rotary, attend, attend_in_play, rotate_both
from worldsim.model.rotary import frequencies, rotate, split_width, turns


def age_angles(head_width: int, window: int) -> Tensor:
    """Return the angles of cached frames, `[window + 1, head_width / 2]` fp64: sink, then oldest first."""
    time = split_width(head_width)[0]
    age = torch.arange(window + 1, 0, -1, dtype=torch.float64)
    angles = torch.zeros(window + 1, head_width // 2, dtype=torch.float64)
    angles[:, : time // 2] = -age[:, None] * frequencies(time)
    return angles


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

    def forward_sequence(self, x: Tensor, visible: Tensor, rotary: Rotary) -> Tensor:
        """Do the same for all frames of sequences that begin with an empty window.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            visible: `[F, W + 1]` bool.
            rotary: Angles of the frames.
        """
        qk, v, _ = self.project(x)
        q, k = rotate_both(qk.to(v.dtype), rotary.place).to(v.dtype).unbind(-3)
        past = rotate(self._windows(k[:, :, 0]), self.age).to(k.dtype)
        keys = torch.cat([past.flatten(2, 3), k.flatten(2, 3)], dim=2)
        values = torch.cat([self._windows(v[:, :, 0]).flatten(2, 3), v.flatten(2, 3)], dim=2)
        mask = self._sequence_mask(visible, x.shape[2], x.shape[3])  # [F, 1, S * N, keys]
        out = attend(q.flatten(2, 3), keys, values, mask.expand(x.shape[0], *mask.shape))
        return self.o(out.unflatten(2, x.shape[2:4]).flatten(-2))

    def _windows(self, clean: Tensor) -> Tensor:
        """Gather sink and window of every frame: `[B, F, N, H, D]` -> `[B, F, W + 1, N, H, D]`."""
        frames = clean.shape[1]
        padded = functional.pad(clean, (0, 0, 0, 0, 0, 0, self.window, 0))
        sink = clean[:, :1].expand_as(clean)
        # Slices, not `unfold`: the backward pass of that adds up by atomic writes.
        return torch.stack([sink, *(padded[:, i : i + frames] for i in range(self.window))], dim=2)

    def _sequence_mask(self, visible: Tensor, streams: int, tokens: int) -> Tensor:
        """Return which keys each query sees: cached frames that exist, its own stream of its own frame."""
        own = torch.eye(streams, dtype=torch.bool, device=visible.device)
        seen = torch.cat([visible[:, None].expand(-1, streams, -1), own.expand(len(visible), -1, -1)], dim=-1)
        return seen.repeat_interleave(tokens, dim=1).repeat_interleave(tokens, dim=2).unsqueeze(1)

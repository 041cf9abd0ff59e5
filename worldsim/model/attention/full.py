"""Full attention: softmax over this frame and all past frames. Its cache grows: the model to compare with."""

# B batch, F frames, S streams (clean, noisy), N tokens per frame, H heads, D head width, T past frames

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from worldsim.model.attention.base import Attention, Cached, Rotary, attend_in_play, rotate_both
from worldsim.model.memory.motion import wrap
from worldsim.model.memory.past_frames import PastFrames
from worldsim.model.rotary import frequencies, split_width


def time_angles(frames: range, head_width: int) -> Tensor:
    """Return the angles of frames of these numbers, `[frames, head_width / 2]` fp64 in [-pi, pi).

    Between two frames only the difference of their numbers turns the scores, as the age does in a window.
    Wrapped in fp64, frame 1,000,000 turns as exactly as frame 10.
    """
    time = split_width(head_width)[0]
    number = torch.tensor(frames, dtype=torch.float64)
    angles = torch.zeros(len(frames), head_width // 2, dtype=torch.float64)
    angles[:, : time // 2] = number[:, None] * frequencies(time)
    return wrap(angles)


def past_mask(num_committed: Tensor, num_frames: int, tokens_per_frame: int) -> Tensor | None:
    """Return which past and own tokens each row sees, `[B, 1, 1, (T + 1) * N]` bool; None if all see all.

    A row that has committed fewer frames than are kept sees the latest of them.
    """
    if bool((num_committed >= num_frames).all()):
        return None
    age = torch.arange(num_frames, -1, -1, device=num_committed.device)  # the frame itself last
    visible = age <= num_committed[:, None]
    return visible.repeat_interleave(tokens_per_frame, dim=1)[:, None, None]


def sees(frames: int, tokens: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the rule of training for `flex_attention`: which query token sees which key token.

    Tokens are counted as in `[S, F, N]`. Each sees the clean frames before its own, and its frame in its own
    stream.
    """

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_part, key_part = query // tokens, key // tokens  # a part is one frame of one stream
        is_before = (key_part < frames) & (key_part < query_part % frames)  # stream 0 is the clean one
        return is_before | (key_part == query_part)

    return mask


@lru_cache(maxsize=8)
def sequence_mask(frames: int, streams: int, tokens: int, device: torch.device) -> BlockMask:
    """Return the rule of `sees` for all tokens of a sequence, as blocks; built once for each shape."""
    length = streams * frames * tokens
    with torch.inference_mode(False):  # it outlives the call, and training may follow
        return create_block_mask(sees(frames, tokens), None, None, length, length, device=device)


@lru_cache(maxsize=1)
def _fused_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attend with a rule instead of a dense mask; `[B, H, tokens, D]`, the queries are scaled already."""
    # Outside of a compiled region a GPU would compute all scores at once, gigabytes of them.
    is_fused = q.is_cuda and not torch.compiler.is_compiling()
    attention = _fused_flex_attention() if is_fused else flex_attention
    return attention(q, k, v, block_mask=mask, scale=1.0)


def attend_by_frame(q: Tensor, k: Tensor, v: Tensor, sizes: Sequence[int]) -> Tensor:
    """Attend in `[B, H, S * F * N, D]`, each frame to what it sees: nothing is computed to be masked.

    Args:
        q: Queries, scaled already.
        k: Keys.
        v: Values.
        sizes: S, F and N.
    """
    streams, frames, tokens = sizes
    q, k, v = (tensor.unflatten(2, (streams, frames, tokens)) for tensor in (q, k, v))  # [B, H, S, F, N, D]

    def seen(tensor: Tensor, frame: int) -> Tensor:
        before = tensor[:, :, :1, :frame].flatten(3, 4).expand(-1, -1, streams, -1, -1)  # the clean ones
        return torch.cat([before, tensor[:, :, :, frame]], dim=3)

    outs = [
        functional.scaled_dot_product_attention(q[:, :, :, i], seen(k, i), seen(v, i), scale=1.0)
        for i in range(frames)
    ]
    return torch.stack(outs, dim=3).flatten(2, 4)


class FullAttention(Attention):
    """Softmax over this frame and all frames before it; the same weights as a window layer's.

    Keys are kept turned by place, by the number of their frame, and perhaps by the path to it
    (`DenoiserConfig.full_path`), so that none is turned again.
    """

    def forward(
        self, x: Tensor, past: PastFrames, layer: int, mask: Tensor | None, rotary: Rotary
    ) -> tuple[Tensor, Cached]:
        """Attend over one frame and all past ones.

        Args:
            x: `[B, N, H * D]`.
            past: Keys and values of all full layers.
            layer: Number of this one among them.
            mask: From `past_mask`.
            rotary: Angles of this frame.

        Returns:
            The layer's output, and the frame's own keys and values to be kept.
        """
        qk, v, _ = self.project(x)
        dtype = past.keys.dtype
        assert rotary.time is not None
        q, k = rotate_both(qk, rotary.time).to(dtype).unbind(-3)
        v = v.to(dtype)
        out = attend_in_play(q.transpose(1, 2), *past.with_own(layer, k, v), mask)
        return self.o(out.transpose(1, 2).flatten(-2)), Cached(k, v)

    def remember(self, x: Tensor, rotary: Rotary) -> Cached:
        """Return what `forward` hands on to be kept, without attending."""
        qk, v, _ = self.project(x)
        dtype = self.o.weight.dtype
        assert rotary.time is not None
        return Cached(rotate_both(qk, rotary.time)[..., 1, :, :].to(dtype), v.to(dtype))

    def forward_sequence(self, x: Tensor, mask: BlockMask | None, rotary: Rotary) -> Tensor:
        """Do the same for all frames of sequences that begin with nothing before them.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            mask: From `sequence_mask`, to compute all frames in one; None goes frame by frame, for a CPU.
            rotary: Angles with `time` `[F, N, D / 2, 2]`, or `[B, F, N, D / 2, 2]`.

        Returns:
            The output, shaped as `x`.
        """
        assert rotary.time is not None
        by_stream = x.transpose(1, 2)  # [B, S, F, N, H * D], the order in which the mask counts
        qk, v, _ = self.project(by_stream.flatten(1, 3))
        turn = torch.cat([rotary.time.flatten(-4, -3)] * x.shape[2], dim=-3)  # [..., S * F * N, D / 2, 2]
        q, k = rotate_both(qk.to(v.dtype), turn).to(v.dtype).unbind(-3)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # [B, H, S * F * N, D]
        if mask is None:
            out = attend_by_frame(q, k, v, by_stream.shape[1:4])
        else:
            out = attend_in_blocks(q, k, v, mask)
        out = self.o(out.transpose(1, 2).flatten(-2))
        return out.unflatten(1, by_stream.shape[1:4]).transpose(1, 2)

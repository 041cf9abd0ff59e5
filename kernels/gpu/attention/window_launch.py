"""Launch of attention over a window and a sink, and of its gradient."""

# B batch, F frames, S streams, N tokens of a frame's stream, H heads, D head width, I = D / 2 pairs, W window

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu.attention.frame import parts_of
from kernels.gpu.attention.window import attend_window_forward
from kernels.gpu.attention.window_gradients import attend_window_key_gradient, attend_window_query_gradient
from kernels.gpu.launch import LaunchConfig, launch
from kernels.gpu.settings import LayerConfig, heads_default_for

LARGEST_CHUNK = 96
"""Keys of one frame that a program holds at once, of heads of 64; half as many of those of 128."""
SPAN = 4
"""Frames of queries that one program adds up for the sink."""


def sizes_of(q: Tensor, window: int, config: LaunchConfig) -> dict[str, int]:
    """Return the constants that all three kernels take; each drops those that it has no use for."""
    _, _, streams, tokens, heads, width = q.shape
    chunks = -(-tokens // (LARGEST_CHUNK * 64 // max(64, width)))
    chunk = -(-tokens // chunks)
    first, rest = parts_of(chunk)
    sizes = {"num_streams": streams, "num_tokens": tokens, "num_heads": heads, "width": width}
    sizes |= {"window": window, "chunks": chunks, "chunk": chunk, "first": first, "rest": rest}
    return sizes | {"block": config.block_size} | config.options()


def _slots(window: int) -> int:
    return 1 << (window - 1).bit_length()


def _flags(flags: Tensor) -> Tensor:
    return flags.contiguous().view(torch.uint8)


def attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    visible: Tensor,
    is_empty: Tensor,
    turn: Tensor,
    config: LayerConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `[B, F, S, N, H, D]` and, for the gradient, `[B, H, F, S * N]`.

    See `kernels.layers.attend_window`.
    """
    config = config or heads_default_for(q)
    batch, frames, streams, tokens, heads, _ = q.shape
    out, log_sum = q.new_empty(q.shape), turn.new_empty(batch, heads, frames, streams * tokens)
    window = len(turn) - 1
    launch(
        attend_window_forward,
        (batch * frames * heads, -(-streams * tokens // config.window.block_size)),
        *(each.contiguous() for each in (q, k, v, cached_k, cached_v)),
        *(_flags(visible), _flags(is_empty), turn.contiguous(), out, log_sum, frames),
        slots=_slots(window),
        precision=config.precision,
        **sizes_of(q, window, config.window),
    )
    return out, log_sum


def attend_window_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    visible: Tensor,
    is_empty: Tensor,
    turn: Tensor,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
    config: LayerConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, contiguous."""
    config = config or heads_default_for(q)
    batch, frames, streams, tokens, heads, _ = q.shape
    window, given = len(turn) - 1, [each.contiguous() for each in (q, k, v)]
    flags, turns, incoming = (_flags(visible), _flags(is_empty)), turn.contiguous(), d_out.contiguous()
    along, dq, dk, dv = (torch.empty_like(each) for each in (log_sum, *given))
    launch(
        attend_window_query_gradient,
        (batch * frames * heads, -(-streams * tokens // config.window_gradient.block_size)),
        *(*given, cached_k.contiguous(), cached_v.contiguous(), *flags, turns),
        *(out, log_sum, incoming, dq, along, frames),
        slots=_slots(window),
        precision=config.precision,
        **sizes_of(q, window, config.window_gradient),
    )
    sizes = sizes_of(q, window, config.window_key_gradient)
    operands = (*given, *flags, turns, log_sum, along, incoming)

    def add_up(programs: int, parts: int, dk: Tensor, dv: Tensor, sinks: bool) -> None:
        launch(
            attend_window_key_gradient,
            (programs * heads, parts * sizes["chunks"]),
            *(*operands, dk, dv, frames, SPAN),
            sinks=sinks,
            precision=config.precision,
            **sizes,
        )

    add_up(batch * frames, streams, dk, dv, sinks=False)
    shape = (-(-frames // SPAN), batch, *k.shape[3:])
    of_sink = [turn.new_empty(shape) for _ in range(2)]
    add_up(batch, shape[0], *of_sink, sinks=True)
    for gradient, parts in zip((dk, dv), of_sink, strict=True):
        gradient[:, 0, 0] += parts.sum(0)
    return dq, dk, dv

"""Triton kernels of the gradient of attention over a window and a sink.

With S the scores of keys of age a and L the logarithm of a row's sum, as `kernels.gpu.attention.window` has
them, and as in FlashAttention-2 (arXiv 2307.08691, section 3):

    P  = e^(S - L),                 dS = P * (dO V^T - D),          D = rowsum(dO * O)
    dQ = sum R(-a) (dS K),          dK^T = sum (R(a) Q)^T dS,       dV^T = sum dO^T P

The sums of dK and dV run over the queries of its own stream, and of the W frames after a frame, one after the
other as they lie in memory. Those of the sink have a launch of their own, in parts that are added up after.
"""

# B batch, F frames, S streams, N tokens of a stream's frame, H heads, D head width, I = D / 2 pairs, W frames
# of the window, C queries of a step, A keys of a step's first part, R of the rest

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.attention.frame import LOG2_E, load_block, product, store_columns
from kernels.gpu.attention.window import (
    keys_of_step,
    row_of_sums,
    score_part,
    steps_of,
    turned,
    turns_of,
)
from kernels.gpu.heads import store_tokens


@triton.jit
def attend_window_query_gradient(
    q_pointer,  # as in `attend_window_forward`
    k_pointer,
    v_pointer,
    cached_k_pointer,
    cached_v_pointer,
    visible_pointer,
    is_empty_pointer,
    turn_pointer,
    out_pointer,
    log_sum_pointer,
    d_out_pointer,  # [B, F, S, N, H, D]
    dq_pointer,  # [B, F, S, N, H, D]
    along_pointer,  # [B, H, F, S * N], D of the legend
    num_frames,
    num_streams: tl.constexpr,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    window: tl.constexpr,
    slots: tl.constexpr,
    chunks: tl.constexpr,
    chunk: tl.constexpr,
    first: tl.constexpr,
    rest: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the gradient of C queries of a frame and head, and what they have along what they read."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    num_rows: tl.constexpr = num_streams * num_tokens
    stride: tl.constexpr = num_heads * width
    whole: tl.constexpr = (first + rest) * chunks == num_tokens
    rows = tl.program_id(1) * block + tl.arange(0, block)
    own = frame * num_rows * stride + head * width
    q = load_block(q_pointer + own, rows, stride, num_rows, width)
    d_out = load_block(d_out_pointer + own, rows, stride, num_rows, width)
    out = load_block(out_pointer + own, rows, stride, num_rows, width)
    along = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), axis=1)
    of_rows = row_of_sums(frame, head, num_frames, num_heads) * num_rows + rows
    tl.store(along_pointer + of_rows, along, mask=rows < num_rows)
    log_sum = tl.load(log_sum_pointer + of_rows, mask=rows < num_rows, other=0.0)
    dq = tl.zeros([block, width], tl.float32)
    where = (visible_pointer, is_empty_pointer, frame, num_frames)
    steps, plan = steps_of(*where, num_rows, num_tokens, window, slots, chunks, block)
    # What does not change is computed again in every step: kept, it would take the registers.
    for step in tl.range(0, steps, disable_licm=True):
        slot, sees, is_cached, place, start, end = keys_of_step(
            step, plan, rows, frame, num_frames, num_streams, num_tokens, window, chunks, chunk
        )
        keys = tl.where(is_cached, cached_k_pointer, k_pointer) + place * stride + head * width
        values = tl.where(is_cached, cached_v_pointer, v_pointer) + place * stride + head * width
        cos, sin = turns_of(turn_pointer, slot + tl.arange(0, 1), window, width)
        aged = turned(q, cos, -sin).to(q.dtype)
        level = tl.where(sees, log_sum, float("inf"))[:, None]
        tokens = start + tl.arange(0, first)
        k = load_block(keys, tokens, stride, end, width)
        p = tl.exp2(score_part(aged, k, tokens, end, whole, precision) - level)
        v = load_block(values, tokens, stride, end, width)
        dp = product(d_out, tl.trans(v), tl.zeros([block, first], tl.float32), precision)
        d_aged = product(p * (dp - along[:, None]), k, tl.zeros([block, width], tl.float32), precision)
        if rest > 0:
            others = start + first + tl.arange(0, rest)
            k_rest = load_block(keys, others, stride, end, width)
            p_rest = tl.exp2(score_part(aged, k_rest, others, end, whole, precision) - level)
            v_rest = load_block(values, others, stride, end, width)
            dp_rest = product(d_out, tl.trans(v_rest), tl.zeros([block, rest], tl.float32), precision)
            d_aged = product(p_rest * (dp_rest - along[:, None]), k_rest, d_aged, precision)
        dq += turned(d_aged, cos, sin)
    store_tokens(dq_pointer + own, dq, rows * stride, rows < num_rows, width)


@triton.jit
def readers_of(
    is_empty_pointer,
    part,
    num_frames,
    span,
    num_streams: tl.constexpr,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    window: tl.constexpr,
    block: tl.constexpr,
    sinks: tl.constexpr,
):
    """Return whose keys a program of `attend_window_key_gradient` has, and who reads them.

    Returns:
        The sequence, the frame's number in it and the stream; steps over the frame's own rows; the first
        frame of other rows and how many these are; where the gradient's first token is.
    """
    if sinks:  # the first frame, by the frames of a part
        sequence = (tl.program_id(0) // num_heads).to(tl.int64)
        number, stream, own_steps, nearest = 0, 0, 0, part * span
        is_empty = tl.load(is_empty_pointer + sequence).to(tl.int32)
        others = tl.minimum(span, num_frames - nearest) * (num_streams * num_tokens) * is_empty
        target = (part * (tl.num_programs(0) // num_heads) + sequence) * num_tokens
    else:  # any frame, by its own rows, and of the clean stream by the frames after it
        frame = (tl.program_id(0) // num_heads).to(tl.int64)
        sequence, number, stream = frame // num_frames, (frame % num_frames).to(tl.int32), part
        own_steps, nearest = tl.cdiv(num_tokens, block), number + 1
        readers = tl.where(stream == 0, tl.minimum(window, num_frames - nearest), 0)
        others = readers * (num_streams * num_tokens)
        target = (frame * num_streams + stream) * num_tokens
    return sequence, number, stream, own_steps, nearest, others, target


@triton.jit
def ages_of_rows(flags, later, newest, inside, window: tl.constexpr, sinks: tl.constexpr):
    """Return in which slot rows of `later` frames have the keys (W + 1 is their own), and which see them."""
    flags += later * (window + 1)
    if sinks:
        slot = tl.arange(0, 1)
        sees = tl.load(flags, mask=inside, other=0) != 0
    else:
        slot = tl.where(inside, newest - later, window + 1)
        sees = inside & (tl.load(flags + slot, mask=slot <= window, other=1) != 0)
    return slot, sees


@triton.jit
def add_rows(aged, d_out, k, v, level, along, dk_t, dv_t, precision: tl.constexpr):
    """Return the transposed gradients of keys and values with what queries `[C, D]` add.

    Weights are at most 1. Rows of zeros, which have no level, may have any.
    """
    scores = product(aged, tl.trans(k), tl.zeros([aged.shape[0], k.shape[0]], tl.float32), precision)
    p = tl.exp2(tl.minimum(scores * LOG2_E - level, 0.0))
    dp = product(d_out, tl.trans(v), tl.zeros([aged.shape[0], k.shape[0]], tl.float32), precision)
    dv_t = product(tl.trans(d_out), p, dv_t, precision)
    return product(tl.trans(aged), p * (dp - along), dk_t, precision), dv_t


@triton.jit
def attend_window_key_gradient(
    q_pointer,  # as in `attend_window_forward`
    k_pointer,
    v_pointer,
    visible_pointer,
    is_empty_pointer,
    turn_pointer,
    log_sum_pointer,
    along_pointer,
    d_out_pointer,
    dk_pointer,  # [B, F, S, N, H, D]; of the sink [parts, B, N, H, D], what some frames of queries add
    dv_pointer,
    num_frames,
    span,
    num_streams: tl.constexpr,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    window: tl.constexpr,
    chunks: tl.constexpr,
    chunk: tl.constexpr,
    first: tl.constexpr,
    rest: tl.constexpr,
    block: tl.constexpr,
    sinks: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the gradients of keys and values of a stream's frame and a head, or a part of those of a sink."""
    head = tl.program_id(0) % num_heads
    num_rows: tl.constexpr = num_streams * num_tokens
    stride: tl.constexpr = num_heads * width
    part = tl.program_id(1) // chunks
    sequence, number, stream, own_steps, nearest, others, target = readers_of(
        is_empty_pointer, part, num_frames, span, num_streams, num_tokens, num_heads, window, block, sinks
    )
    start = (tl.program_id(1) % chunks) * chunk
    end = tl.minimum(start + chunk, num_tokens)
    given = ((sequence * num_frames + number) * num_streams + stream) * num_tokens * stride + head * width
    keys = start + tl.arange(0, first)
    k = load_block(k_pointer + given, keys, stride, end, width)
    v = load_block(v_pointer + given, keys, stride, end, width)
    dk_t, dv_t = tl.zeros([width, first], tl.float32), tl.zeros([width, first], tl.float32)
    k_rest, v_rest, dk_rest_t, dv_rest_t = k, v, dk_t, dv_t
    if rest > 0:
        keys_rest = start + first + tl.arange(0, rest)
        k_rest = load_block(k_pointer + given, keys_rest, stride, end, width)
        v_rest = load_block(v_pointer + given, keys_rest, stride, end, width)
        dk_rest_t, dv_rest_t = tl.zeros([width, rest], tl.float32), tl.zeros([width, rest], tl.float32)
    for step in tl.range(0, own_steps + tl.cdiv(others, block), disable_licm=True):
        is_own = step < own_steps
        index = tl.where(is_own, step, step - own_steps) * block + tl.arange(0, block)
        inside = index < tl.where(is_own, num_tokens, others)
        since = tl.where(is_own, number, nearest)
        at = sequence * num_frames + since  # the first frame of the queries; rows are counted from there on
        rows = index + tl.where(is_own, stream * num_tokens, 0)
        sums = ((sequence * num_heads + head) * num_frames + since) * num_rows
        level = tl.load(log_sum_pointer + sums + rows, mask=inside, other=0.0)[:, None]
        along = tl.load(along_pointer + sums + rows, mask=inside, other=0.0)[:, None]
        flags = visible_pointer + at * (window + 1)
        newest = number + window + 1 - since
        slot, sees = ages_of_rows(flags, rows // num_rows, newest, inside, window, sinks)
        # A row that does not see the keys is one of zeros, which adds nothing to any gradient.
        base = at * (num_rows * stride) + head * width
        at_rows = rows[:, None] * stride + tl.arange(0, width)[None, :]
        q = tl.load(q_pointer + base + at_rows, mask=sees[:, None], other=0.0)
        d_out = tl.load(d_out_pointer + base + at_rows, mask=sees[:, None], other=0.0)
        cos, sin = turns_of(turn_pointer, slot, window, width)
        aged = turned(q, cos, -sin).to(q.dtype)
        dk_t, dv_t = add_rows(aged, d_out, k, v, level, along, dk_t, dv_t, precision)
        if rest > 0:
            dk_rest_t, dv_rest_t = add_rows(
                aged, d_out, k_rest, v_rest, level, along, dk_rest_t, dv_rest_t, precision
            )
    target = target * stride + head * width
    store_columns(dk_pointer + target, dk_t, keys, stride, end, width)
    store_columns(dv_pointer + target, dv_t, keys, stride, end, width)
    if rest > 0:
        store_columns(dk_pointer + target, dk_rest_t, keys_rest, stride, end, width)
        store_columns(dv_pointer + target, dv_rest_t, keys_rest, stride, end, width)

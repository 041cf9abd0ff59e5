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

from kernels.gpu.attention.frame import load_block, product, store_columns
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
    first_row = tl.program_id(1) * block
    rows = first_row + tl.arange(0, block)
    own = frame * num_rows * stride + head * width
    q = load_block(q_pointer + own, rows, stride, num_rows, width)
    d_out = load_block(d_out_pointer + own, rows, stride, num_rows, width)
    out = load_block(out_pointer + own, rows, stride, num_rows, width)
    along = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), axis=1)
    of_rows = row_of_sums(frame, head, num_frames, num_heads) * num_rows + rows
    tl.store(along_pointer + of_rows, along, mask=rows < num_rows)
    log_sum = tl.load(log_sum_pointer + of_rows, mask=rows < num_rows, other=0.0)
    dq = tl.zeros([block, width], tl.float32)
    last_row = tl.minimum(first_row + block, num_rows) - 1
    own_steps, steps, first_stream, earliest = steps_of(
        visible_pointer, frame, first_row, last_row, num_tokens, window, slots, chunks
    )
    # What does not change is computed again in every step: kept, it would take the registers.
    for step in tl.range(0, steps, disable_licm=True):
        slot, sees, is_cached, place = keys_of_step(
            step,
            own_steps,
            first_stream,
            earliest,
            rows,
            visible_pointer,
            is_empty_pointer,
            frame,
            num_frames,
            num_streams,
            num_tokens,
            window,
            chunks,
        )
        keys = tl.where(is_cached, cached_k_pointer, k_pointer) + place * stride + head * width
        values = tl.where(is_cached, cached_v_pointer, v_pointer) + place * stride + head * width
        cos, sin = turns_of(turn_pointer, slot + tl.arange(0, 1), window, width)
        aged = turned(q, cos, -sin).to(q.dtype)
        level = tl.where(sees, log_sum, float("inf"))[:, None]
        start = (step % chunks) * chunk
        end = tl.minimum(start + chunk, num_tokens)
        tokens = start + tl.arange(0, first)
        masks: tl.constexpr = first > chunk or num_tokens % chunk != 0
        k = load_block(keys, tokens, stride, end, width)
        p = tl.exp2(score_part(aged, k, tokens, end, masks, precision) - level)
        v = load_block(values, tokens, stride, end, width)
        dp = product(d_out, tl.trans(v), tl.zeros([block, first], tl.float32), precision)
        d_aged = product(p * (dp - along[:, None]), k, tl.zeros([block, width], tl.float32), precision)
        if rest > 0:
            others = start + first + tl.arange(0, rest)
            rest_masks: tl.constexpr = first + rest > chunk or num_tokens % chunk != 0
            k_rest = load_block(keys, others, stride, end, width)
            p_rest = tl.exp2(score_part(aged, k_rest, others, end, rest_masks, precision) - level)
            v_rest = load_block(values, others, stride, end, width)
            dp_rest = product(d_out, tl.trans(v_rest), tl.zeros([block, rest], tl.float32), precision)
            d_aged = product(p_rest * (dp_rest - along[:, None]), k_rest, d_aged, precision)
        dq += turned(d_aged, cos, sin)
    store_tokens(dq_pointer + own, dq, rows * stride, rows < num_rows, width)


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
    if sinks:  # the first frame, by the frames of a part
        sequence = (tl.program_id(0) // num_heads).to(tl.int64)
        number, stream, own_steps = 0, 0, 0
        nearest = part * span
        is_empty = tl.load(is_empty_pointer + sequence).to(tl.int32)
        others = tl.minimum(span, num_frames - nearest) * num_rows * is_empty
        target = (part * (tl.num_programs(0) // num_heads) + sequence) * num_tokens
    else:  # any frame, by its own tokens, and of the clean stream by the frames after it
        frame = (tl.program_id(0) // num_heads).to(tl.int64)
        sequence, number, stream = frame // num_frames, (frame % num_frames).to(tl.int32), part
        own_steps = tl.cdiv(num_tokens, block)
        nearest = number + 1
        others = tl.where(stream == 0, tl.minimum(window, num_frames - nearest) * num_rows, 0)
        target = (frame * num_streams + stream) * num_tokens
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
        later = rows // num_rows
        flags = visible_pointer + at * (window + 1) + later * (window + 1)
        if sinks:
            slot = tl.arange(0, 1)
            sees = tl.load(flags, mask=inside, other=0) != 0
        else:
            slot = tl.where(inside, number + window + 1 - since - later, window + 1)
            sees = inside & (tl.load(flags + slot, mask=slot <= window, other=1) != 0)
        # A row that does not see the keys is one of zeros, which adds nothing to any gradient.
        base = at * (num_rows * stride) + head * width
        at_rows = rows[:, None] * stride + tl.arange(0, width)[None, :]
        q = tl.load(q_pointer + base + at_rows, mask=sees[:, None], other=0.0)
        d_out = tl.load(d_out_pointer + base + at_rows, mask=sees[:, None], other=0.0)
        cos, sin = turns_of(turn_pointer, slot, window, width)
        aged = turned(q, cos, -sin).to(q.dtype)
        p = tl.exp2(tl.minimum(score_part(aged, k, keys, end, False, precision) - level, 0.0))
        dp = product(d_out, tl.trans(v), tl.zeros([block, first], tl.float32), precision)
        dv_t = product(tl.trans(d_out), p, dv_t, precision)
        dk_t = product(tl.trans(aged), p * (dp - along), dk_t, precision)
        if rest > 0:
            p_rest = tl.exp2(tl.minimum(score_part(aged, k_rest, keys, end, False, precision) - level, 0.0))
            dp_rest = product(d_out, tl.trans(v_rest), tl.zeros([block, rest], tl.float32), precision)
            dv_rest_t = product(tl.trans(d_out), p_rest, dv_rest_t, precision)
            dk_rest_t = product(tl.trans(aged), p_rest * (dp_rest - along), dk_rest_t, precision)
    target = target * stride + head * width
    store_columns(dk_pointer + target, dk_t, keys, stride, end, width)
    store_columns(dv_pointer + target, dv_t, keys, stride, end, width)
    if rest > 0:
        store_columns(dk_pointer + target, dk_rest_t, keys_rest, stride, end, width)
        store_columns(dv_pointer + target, dv_rest_t, keys_rest, stride, end, width)

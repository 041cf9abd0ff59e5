"""Triton kernel of softmax attention over a window of frames and a sink.

A query of frame f reads its own stream of its own frame, the clean frames f - W to f - 1, and the sink, whose
age is held at W + 1. A key of age a is turned by -a; a query that is turned by a in its place gives the same
score, q . R(-a) k = R(a) q . k, so that keys are read where they lie, and nothing is gathered or copied. The
softmax runs over one frame of keys after the other, as in FlashAttention-2 (arXiv 2307.08691, section 3), and
what no query of the frame sees is not computed. Keys of a frame are held in two parts, powers of two, as in
`kernels.gpu.attention.frame`.
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

from kernels.gpu.attention.frame import LOG2_E, load_block, product
from kernels.gpu.heads import split_pairs, store_tokens

LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Below every score, and finite: a row that has seen no key yet is not NaN."""


@triton.jit
def turns_of(pointer, slots, window: tl.constexpr, width: tl.constexpr):
    """Return cosines and sines of the slots' ages `[C]`, `[C, I]` each; slot W + 1 has age 0."""
    features = tl.arange(0, width)
    still = (1 - features % 2).to(tl.float32)[None, :]
    at = pointer + slots[:, None] * width + features[None, :]
    turns = tl.load(at, mask=(slots <= window)[:, None], other=still)
    return split_pairs(turns)


@triton.jit
def turned(x, cos, sin):
    """Return rows `[C, D]` in fp32 with every pair of neighbours turned."""
    even, odd = split_pairs(x.to(tl.float32))
    return tl.interleave(even * cos - odd * sin, even * sin + odd * cos)


@triton.jit
def row_of_sums(frame, head, num_frames, num_heads: tl.constexpr):
    """Return where the sums of a frame lie among those of `[B, H, F]`: those of later frames follow."""
    return ((frame // num_frames) * num_heads + head) * num_frames + frame % num_frames


@triton.jit
def score_part(q, k, tokens, end, whole: tl.constexpr, precision: tl.constexpr):
    """Return the scores of queries `[C, D]` and keys `[A, D]` to base 2; unless `whole`, some are -inf."""
    scores = product(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32), precision) * LOG2_E
    if not whole:
        scores = tl.where((tokens < end)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def steps_of(
    visible_pointer,
    is_empty_pointer,
    frame,
    num_frames,
    num_rows: tl.constexpr,
    num_tokens: tl.constexpr,
    window: tl.constexpr,
    slots: tl.constexpr,
    chunks: tl.constexpr,
    block: tl.constexpr,
):
    """Return the number of steps of a program's rows, and what `keys_of_step` has to know of them."""
    flags = visible_pointer + frame * (window + 1)
    slot = 1 + tl.arange(0, slots)
    is_seen = tl.load(flags + slot, mask=slot <= window, other=0) != 0
    earliest = tl.min(tl.where(is_seen, slot, window + 1))
    sees_sink = (tl.load(flags) != 0).to(tl.int32)
    first_row = tl.program_id(1) * block
    last_row = tl.minimum(first_row + block, num_rows) - 1
    first_stream = first_row // num_tokens
    own_steps = (last_row // num_tokens - first_stream + 1) * chunks
    steps = own_steps + (window + 1 - earliest + sees_sink) * chunks
    is_empty = tl.load(is_empty_pointer + frame // num_frames) != 0
    return steps, (own_steps, first_stream, earliest, flags, is_empty)


@triton.jit
def keys_of_step(
    step,
    plan,
    rows,
    frame,
    num_frames,
    num_streams: tl.constexpr,
    num_tokens: tl.constexpr,
    window: tl.constexpr,
    chunks: tl.constexpr,
    chunk: tl.constexpr,
):
    """Return whose keys a step of a frame's rows reads: its own frame's, then the window's, the sink's last.

    Returns:
        The slot; which rows see it `[C]`; whether it is one of the cached frames; the number of its tokens'
        first among those of all frames and streams, or of the cached frames; where the step's tokens begin in
        the frame and where they end.
    """
    own_steps, first_stream, earliest, flags, is_empty = plan
    sequence, number = frame // num_frames, frame % num_frames
    is_own, index = step < own_steps, earliest + (step - own_steps) // chunks
    slot = tl.where(is_own, window + 1, tl.where(index <= window, index, 0))
    stream = tl.where(is_own, first_stream + step // chunks, 0)
    flag = tl.load(flags + slot, mask=slot <= window, other=1)
    sees = (flag != 0) & ((rows // num_tokens == stream) | (slot <= window))
    is_sink, other = slot == 0, number + slot - (window + 1)
    is_cached = (is_sink & (is_empty == 0)) | ((is_sink == 0) & (other < 0))
    kept = sequence * (window + 1) + tl.where(is_sink, 0, other + window + 1)
    given = (sequence * num_frames + tl.where(is_sink, 0, other)) * num_streams + stream
    start = (step % chunks) * chunk
    end = tl.minimum(start + chunk, num_tokens)
    return slot, sees, is_cached, tl.where(is_cached, kept, given) * num_tokens, start, end


@triton.jit
def attend_window_forward(
    q_pointer,  # [B, F, S, N, H, D], and so are k and v
    k_pointer,
    v_pointer,
    cached_k_pointer,  # [B, W + 1, N, H, D]
    cached_v_pointer,
    visible_pointer,  # [B, F, W + 1]
    is_empty_pointer,  # [B]
    turn_pointer,  # [W + 1, I, 2]
    out_pointer,  # [B, F, S, N, H, D]
    log_sum_pointer,  # [B, H, F, S * N], to base 2
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
    """Store what C queries of a frame and head read, and the logarithms of their sums."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    num_rows: tl.constexpr = num_streams * num_tokens
    stride: tl.constexpr = num_heads * width
    whole: tl.constexpr = (first + rest) * chunks == num_tokens
    rows = tl.program_id(1) * block + tl.arange(0, block)
    own = frame * num_rows * stride + head * width
    q = load_block(q_pointer + own, rows, stride, num_rows, width)
    highest, total = tl.full([block], LOWEST, tl.float32), tl.zeros([block], tl.float32)
    out = tl.zeros([block, width], tl.float32)
    where = (visible_pointer, is_empty_pointer, frame, num_frames)
    steps, plan = steps_of(*where, num_rows, num_tokens, window, slots, chunks, block)
    for step in range(0, steps):
        slot, sees, is_cached, place, start, end = keys_of_step(
            step, plan, rows, frame, num_frames, num_streams, num_tokens, window, chunks, chunk
        )
        keys = tl.where(is_cached, cached_k_pointer, k_pointer) + place * stride + head * width
        values = tl.where(is_cached, cached_v_pointer, v_pointer) + place * stride + head * width
        cos, sin = turns_of(turn_pointer, slot + tl.arange(0, 1), window, width)
        aged = turned(q, cos, -sin).to(q.dtype)
        tokens = start + tl.arange(0, first)
        k = load_block(keys, tokens, stride, end, width)
        scores = score_part(aged, k, tokens, end, whole, precision)
        peak = tl.max(scores, axis=1)
        if rest > 0:
            others = start + first + tl.arange(0, rest)
            k_rest = load_block(keys, others, stride, end, width)
            scores_rest = score_part(aged, k_rest, others, end, whole, precision)
            peak = tl.maximum(peak, tl.max(scores_rest, axis=1))
        higher = tl.where(sees, tl.maximum(highest, peak), highest)
        shrinks = tl.exp2(highest - higher)
        level = tl.where(sees, higher, float("inf"))[:, None]
        weights = tl.exp2(scores - level)
        v = load_block(values, tokens, stride, end, width)
        total = total * shrinks + tl.sum(weights, axis=1)
        out = product(weights, v, out * shrinks[:, None], precision)
        if rest > 0:
            weights_rest = tl.exp2(scores_rest - level)
            v_rest = load_block(values, others, stride, end, width)
            total += tl.sum(weights_rest, axis=1)
            out = product(weights_rest, v_rest, out, precision)
        highest = higher
    store_tokens(out_pointer + own, out / total[:, None], rows * stride, rows < num_rows, width)
    log_sums = log_sum_pointer + row_of_sums(frame, head, num_frames, num_heads) * num_rows + rows
    tl.store(log_sums, highest + tl.log2(total), mask=rows < num_rows)

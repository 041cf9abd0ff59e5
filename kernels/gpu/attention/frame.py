"""Triton kernels of softmax attention within a frame of few tokens, its gradient, and the launch of both.

A program has all keys and values of one head of one frame, so that it knows the softmax of a row at once.
As in FlashAttention-2 (arXiv 2307.08691, section 2), with S recomputed and nothing kept of the forward pass:

    S  = Q K^T,       P  = softmax(S),                     O  = P V
    dP = dO V^T,      dS = P * (dP - rowsum(P * dP))
    dQ = dS K,        dK^T = Q^T dS,                       dV^T = dO^T P

Blocks are of powers of two: keys are held as two, so that 80 tokens are 64 and 16, and nothing is computed
for keys that are not there. Only what was loaded is read transposed; dK and dV are summed transposed, so that
the P and dS of rows are right operands as they are (see `kernels.gpu.frame_maps`).
"""

# P frames of all sequences, N tokens of one frame, H heads, D head width, C queries of a step, A keys of the
# first part, R keys of the rest

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.frame_maps import multiply
from kernels.gpu.heads import store_tokens
from kernels.gpu.launch import LaunchConfig, launch
from kernels.gpu.layers import heads_of
from kernels.gpu.settings import LayerConfig, default_for

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_block(pointer, tokens, stride, num_tokens, width: tl.constexpr):
    """Return the tokens' features `[C, width]` as they are kept; tokens beyond the frame are 0."""
    offsets = tokens[:, None] * stride + tl.arange(0, width)[None, :]
    return tl.load(pointer + offsets, mask=(tokens < num_tokens)[:, None], other=0.0)


@triton.jit
def store_columns(pointer, x, tokens, stride, num_tokens, width: tl.constexpr):
    """Store the tokens' features, given transposed, `[width, C]`."""
    at = pointer + tokens[None, :] * stride + tl.arange(0, width)[:, None]
    tl.store(at, x, mask=(tokens < num_tokens)[None, :])


@triton.jit
def product(left, right, start, precision: tl.constexpr):
    """Return `start + left @ right` in fp32; of 16-bit operands, one that was computed is rounded to those.

    `left` takes the type of `right` or the other way round, whichever is narrower.
    """
    if left.dtype == tl.float32 and right.dtype == tl.float32:
        out = multiply(left, right, start, precision)
    elif left.dtype == tl.float32:
        out = tl.dot(left.to(right.dtype), right, start)
    else:
        out = tl.dot(left, right.to(left.dtype), start)
    return out


@triton.jit
def score(q, k, first_key: tl.constexpr, num_tokens: tl.constexpr, precision: tl.constexpr):
    """Return the scores of queries `[C, D]` and keys `[A, D]` to base 2, -inf for those beyond the frame."""
    scores = product(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32), precision)
    if first_key + k.shape[0] > num_tokens:
        keys = first_key + tl.arange(0, k.shape[0])
        scores = tl.where((keys < num_tokens)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def exponentials(
    q,
    k,
    k_rest,
    num_tokens: tl.constexpr,
    first: tl.constexpr,
    rest: tl.constexpr,
    precision: tl.constexpr,
):
    """Return `e^(S - rowmax S)` of both parts `[C, A]` and `[C, R]`, and its sums over rows `[C, 1]`.

    Without a rest, what is returned for it is the first part again.
    """
    scores = score(q, k, 0, num_tokens, precision)
    scores_rest = scores
    highest = tl.max(scores, axis=1, keep_dims=True)
    if rest > 0:
        scores_rest = score(q, k_rest, first, num_tokens, precision)
        highest = tl.maximum(highest, tl.max(scores_rest, axis=1, keep_dims=True))
    highest *= LOG2_E
    weights = tl.exp2(scores * LOG2_E - highest)
    weights_rest = weights
    total = tl.sum(weights, axis=1, keep_dims=True)
    if rest > 0:
        weights_rest = tl.exp2(scores_rest * LOG2_E - highest)
        total += tl.sum(weights_rest, axis=1, keep_dims=True)
    return weights, weights_rest, total


@triton.jit
def attend_forward(
    q_pointer,
    k_pointer,
    v_pointer,
    out_pointer,  # [P, N, H, D]
    q_frame,
    q_token,
    q_head,
    k_frame,
    k_token,
    k_head,
    v_frame,
    v_token,
    v_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    first: tl.constexpr,
    rest: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Store what the queries read; one program per frame and head."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    q_pointer += frame * q_frame + head * q_head
    k_pointer += frame * k_frame + head * k_head
    v_pointer += frame * v_frame + head * v_head
    out_pointer += (frame * num_tokens * num_heads + head) * width
    keys = tl.arange(0, first)
    k = load_block(k_pointer, keys, k_token, num_tokens, width)
    v = load_block(v_pointer, keys, v_token, num_tokens, width)
    k_rest, v_rest = k, v
    if rest > 0:
        others = first + tl.arange(0, rest)
        k_rest = load_block(k_pointer, others, k_token, num_tokens, width)
        v_rest = load_block(v_pointer, others, v_token, num_tokens, width)
    for start in range(0, num_tokens, block):
        tokens = start + tl.arange(0, block)
        q = load_block(q_pointer, tokens, q_token, num_tokens, width)
        weights, weights_rest, total = exponentials(q, k, k_rest, num_tokens, first, rest, precision)
        out = product(weights, v, tl.zeros([block, width], tl.float32), precision)
        if rest > 0:
            out = product(weights_rest, v_rest, out, precision)
        store_tokens(out_pointer, out / total, tokens * (num_heads * width), tokens < num_tokens, width)


@triton.jit
def attend_gradient(
    q_pointer,
    k_pointer,
    v_pointer,
    d_out_pointer,
    dq_pointer,  # [P, N, H, D]
    dk_pointer,  # [P, N, H, D]
    dv_pointer,  # [P, N, H, D]
    q_frame,
    q_token,
    q_head,
    k_frame,
    k_token,
    k_head,
    v_frame,
    v_token,
    v_head,
    d_out_frame,
    d_out_token,
    d_out_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    first: tl.constexpr,
    rest: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the gradients of queries, keys and values; one program per frame and head."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    q_pointer += frame * q_frame + head * q_head
    k_pointer += frame * k_frame + head * k_head
    v_pointer += frame * v_frame + head * v_head
    d_out_pointer += frame * d_out_frame + head * d_out_head
    own, stride = (frame * num_tokens * num_heads + head) * width, num_heads * width
    keys = tl.arange(0, first)
    k = load_block(k_pointer, keys, k_token, num_tokens, width)
    v = load_block(v_pointer, keys, v_token, num_tokens, width)
    dk_t, dv_t = tl.zeros([width, first], tl.float32), tl.zeros([width, first], tl.float32)
    k_rest, v_rest, dk_rest_t, dv_rest_t = k, v, dk_t, dv_t
    if rest > 0:
        others = first + tl.arange(0, rest)
        k_rest = load_block(k_pointer, others, k_token, num_tokens, width)
        v_rest = load_block(v_pointer, others, v_token, num_tokens, width)
        dk_rest_t, dv_rest_t = tl.zeros([width, rest], tl.float32), tl.zeros([width, rest], tl.float32)
    for start in range(0, num_tokens, block):
        tokens = start + tl.arange(0, block)
        q = load_block(q_pointer, tokens, q_token, num_tokens, width)
        d_out = load_block(d_out_pointer, tokens, d_out_token, num_tokens, width)
        p, p_rest, total = exponentials(q, k, k_rest, num_tokens, first, rest, precision)
        inverse = 1.0 / total
        p *= inverse
        dp = product(d_out, tl.trans(v), tl.zeros([block, first], tl.float32), precision)
        along = tl.sum(p * dp, axis=1, keep_dims=True)
        if rest > 0:
            p_rest *= inverse
            dp_rest = product(d_out, tl.trans(v_rest), tl.zeros([block, rest], tl.float32), precision)
            along += tl.sum(p_rest * dp_rest, axis=1, keep_dims=True)
        dv_t = product(tl.trans(d_out), p, dv_t, precision)
        ds = p * (dp - along)
        dq = product(ds, k, tl.zeros([block, width], tl.float32), precision)
        dk_t = product(tl.trans(q), ds, dk_t, precision)
        if rest > 0:
            dv_rest_t = product(tl.trans(d_out), p_rest, dv_rest_t, precision)
            ds_rest = p_rest * (dp_rest - along)
            dq = product(ds_rest, k_rest, dq, precision)
            dk_rest_t = product(tl.trans(q), ds_rest, dk_rest_t, precision)
        store_tokens(dq_pointer + own, dq, tokens * stride, tokens < num_tokens, width)
    store_columns(dk_pointer + own, dk_t, keys, stride, num_tokens, width)
    store_columns(dv_pointer + own, dv_t, keys, stride, num_tokens, width)
    if rest > 0:
        store_columns(dk_pointer + own, dk_rest_t, others, stride, num_tokens, width)
        store_columns(dv_pointer + own, dv_rest_t, others, stride, num_tokens, width)


MIN_BLOCK = 16
"""Keys or queries that a product of tensor cores takes at least."""


def _padded(tokens: int) -> int:
    return max(MIN_BLOCK, 1 << (tokens - 1).bit_length())


def parts_of(tokens: int) -> tuple[int, int]:
    """Return how many keys the two parts hold: one of them if that is as few in all."""
    whole, half = _padded(tokens), _padded(tokens) // 2
    rest = _padded(tokens - half) if half >= MIN_BLOCK else whole
    return (half, rest) if half + rest < whole else (whole, 0)


def _sizes(frames: Tensor, config: LaunchConfig) -> dict[str, int]:
    tokens, heads, width = frames.shape[1:]
    first, rest = parts_of(tokens)
    sizes = {"num_tokens": tokens, "num_heads": heads, "width": width, "first": first, "rest": rest}
    return sizes | {"block": min(config.block_size, _padded(tokens))} | config.options()


def attend(q: Tensor, k: Tensor, v: Tensor, config: LayerConfig | None = None) -> Tensor:
    """Return `[..., N, H, D]`, contiguous; see `kernels.layers.attend`."""
    config = config or default_for(q)
    queries, keys, values = heads_of(q), heads_of(k), heads_of(v)
    out = q.new_empty(q.shape)
    launch(
        attend_forward,
        (queries.shape[0] * queries.shape[2],),
        *(queries, keys, values, out),
        *(*queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3]),
        precision=config.precision,
        **_sizes(queries, config.attend),
    )
    return out


def attend_backward(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, config: LayerConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, contiguous."""
    config = config or default_for(q)
    queries, keys, values, incoming = heads_of(q), heads_of(k), heads_of(v), heads_of(d_out)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    launch(
        attend_gradient,
        (queries.shape[0] * queries.shape[2],),
        *(queries, keys, values, incoming, dq, dk, dv),
        *(*queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3], *incoming.stride()[:3]),
        precision=config.precision,
        **_sizes(queries, config.attend_gradient),
    )
    return dq, dk, dv

"""Triton kernels of RMSNorm with rotation of each head's pairs, for queries and keys; and the gradient.

    h = x / sqrt(mean(x^2) + eps),    y = h * weight,    turned = R y

dy = dnormed + R^T dturned,    dh = dy * weight,    dweight = sum(dy * h)
dx = (dh - h * mean(dh * h)) / sqrt(mean(x^2) + eps)

Means run over all features of a token, the sum over all tokens. R turns neighbouring features.
"""

# P frames of all sequences and streams, N tokens of one frame, E = H * D features, R tokens of a step,
# I = D / 2 pairs of a head

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_turns(pointer, tokens, inside, head_pairs: tl.constexpr, rows: tl.constexpr, padded: tl.constexpr):
    """Return cosine and sine of every pair of tokens, `[R, padded / 2]` each; heads share them.

    Both are loaded at once, side by side as they lie: a thread then holds those of the features it has.
    """
    width: tl.constexpr = 2 * head_pairs
    at = pointer + tokens[:, None] * width + (tl.arange(0, padded) % width)[None, :]
    turns = tl.load(at, mask=inside, other=0.0)
    return tl.split(tl.reshape(turns, [rows, padded // 2, 2]))


@triton.jit
def turn_rows(x, cos, sin, rows: tl.constexpr, padded: tl.constexpr):
    """Return rows `[R, padded]` with every pair of neighbours turned."""
    even, odd = tl.split(tl.reshape(x, [rows, padded // 2, 2]))
    return tl.interleave(even * cos - odd * sin, even * sin + odd * cos)


@triton.jit
def turned_norm_forward(
    x_pointer,  # [P, N, E]
    weight_pointer,  # [E]
    turn_pointer,  # [N, I, 2]
    normed_pointer,  # [P, N, E]
    turned_pointer,  # [P, N, E]
    num_tokens: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    head_pairs: tl.constexpr,
    rows: tl.constexpr,
    eps: tl.constexpr,
    keeps: tl.constexpr,
):
    """Store the turned norm, with `keeps` also before it is turned; one program per R tokens."""
    tokens, columns = tl.program_id(1) * rows + tl.arange(0, rows), tl.arange(0, padded)
    inside = (tokens < num_tokens)[:, None] & (columns < width)[None, :]
    tile = tl.program_id(0).to(tl.int64) * num_tokens * width + tokens[:, None] * width + columns[None, :]
    x = tl.load(x_pointer + tile, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_pointer + columns, mask=columns < width, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None] * weight[None, :]
    if keeps:
        tl.store(normed_pointer + tile, y, mask=inside)
    cos, sin = load_turns(turn_pointer, tokens, inside, head_pairs, rows, padded)
    tl.store(turned_pointer + tile, turn_rows(y, cos, sin, rows, padded), mask=inside)


@triton.jit
def turned_norm_gradient(
    x_pointer,  # [P, N, E]
    weight_pointer,  # [E]
    turn_pointer,  # [N, I, 2]
    d_normed_pointer,  # [P, N, E]
    d_turned_pointer,  # [P, N, E]
    dx_pointer,  # [P, N, E]
    d_weight_pointer,  # [P, E], what each frame adds
    num_tokens: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    head_pairs: tl.constexpr,
    rows: tl.constexpr,
    eps: tl.constexpr,
    keeps: tl.constexpr,
    stages: tl.constexpr,
):
    """Store the gradients of x and of the weight; one program per frame."""
    frame, columns = tl.program_id(0).to(tl.int64), tl.arange(0, padded)
    weight = tl.load(weight_pointer + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    d_weight = tl.zeros([rows, padded], tl.float32)
    for start in tl.range(0, num_tokens, rows, num_stages=stages):
        tokens = start + tl.arange(0, rows)
        inside = (tokens < num_tokens)[:, None] & (columns < width)[None, :]
        tile = (frame * num_tokens + tokens)[:, None] * width + columns[None, :]
        d_turned = tl.load(d_turned_pointer + tile, mask=inside, other=0.0).to(tl.float32)
        cos, sin = load_turns(turn_pointer, tokens, inside, head_pairs, rows, padded)
        dy = turn_rows(d_turned, cos, -sin, rows, padded)
        if keeps:
            dy += tl.load(d_normed_pointer + tile, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_pointer + tile, mask=inside, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
        normed, d_normed = x * factor, dy * weight
        along = tl.sum(d_normed * normed, axis=1)[:, None] / width
        tl.store(dx_pointer + tile, factor * (d_normed - normed * along), mask=inside)
        d_weight += dy * normed
    each = d_weight_pointer + frame * width + columns
    tl.store(each, tl.sum(d_weight, axis=0), mask=columns < width)

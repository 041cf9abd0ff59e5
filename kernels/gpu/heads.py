"""Triton kernels of the maps that each head has of its own, with rotation and unit length; and the gradient.

Features turn in pairs of neighbours (a, b), by a cosine and a sine each:

    (a, b) = x W^T,    (u, w) = (a cos - b sin, a sin + b cos),    k = (u, w) / |(u, w)|

With g the gradient of (u, w), that is (dk - k (k . dk)) / |(u, w)|:

    dangle = g_w u - g_u w,    (da, db) = (g_u cos + g_w sin, g_w cos - g_u sin)
    dx = (da, db) W,    dW^T = x^T (da, db)

A thread holds both features of a pair where a product leaves them: taking pairs apart moves nothing. Of the
gradient of W the transpose is summed, so that no result of a product has to be transposed: compilers have got
that wrong on Hopper (flash-linear-attention issue 640).
"""

# P frames of all sequences, N tokens of one frame, H heads, D head width, C tokens of a step, I = D / 2 pairs

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.frame_maps import multiply

SHORTEST: tl.constexpr = tl.constexpr(1e-12)
"""Length that no key is taken to be shorter than."""


@triton.jit
def load_square(pointer, width: tl.constexpr):
    """Return one head's matrix `[D, D]`."""
    row, column = tl.arange(0, width)[:, None], tl.arange(0, width)[None, :]
    return tl.load(pointer + row * width + column)


@triton.jit
def load_square_t(pointer, width: tl.constexpr):
    """Return the same transposed."""
    row, column = tl.arange(0, width)[:, None], tl.arange(0, width)[None, :]
    return tl.load(pointer + column * width + row)


@triton.jit
def store_square_t(pointer, x, width: tl.constexpr):
    """Store one head's matrix `[D, D]`, given transposed."""
    row, column = tl.arange(0, width)[:, None], tl.arange(0, width)[None, :]
    tl.store(pointer + column * width + row, x)


@triton.jit
def load_tokens(pointer, rows, inside, width: tl.constexpr, precision: tl.constexpr):
    """Return tokens `[C, width]` from where their `rows` `[C]` begin, those not `inside` as 0.

    In fp32, but for products in bf16: those take what comes in bf16 as it is.
    """
    at = pointer + rows[:, None] + tl.arange(0, width)[None, :]
    x = tl.load(at, mask=inside[:, None], other=0.0)
    return x if precision == "bf16" else x.to(tl.float32)


@triton.jit
def load_transposed(x, pointer, rows, inside, width: tl.constexpr, precision: tl.constexpr):
    """Return the transpose `[width, C]` of what `load_tokens` gave: products in TF32 want it from memory."""
    if precision == "bf16":
        x_t = tl.trans(x)
    else:
        at = pointer + rows[None, :] + tl.arange(0, width)[:, None]
        x_t = tl.load(at, mask=inside[None, :], other=0.0).to(tl.float32)
    return x_t


@triton.jit
def store_tokens(pointer, x, rows, inside, width: tl.constexpr):
    """Store tokens `[C, width]` where their `rows` `[C]` begin."""
    tl.store(pointer + rows[:, None] + tl.arange(0, width)[None, :], x, mask=inside[:, None])


@triton.jit
def store_rows(pointer, x, tokens, stride, num_tokens, width: tl.constexpr):
    """Store tokens `[C, width]` of one frame, but those beyond it."""
    store_tokens(pointer, x, tokens * stride, tokens < num_tokens, width)


@triton.jit
def split_pairs(x):
    """Return even and odd features of tokens `[C, D]`, `[C, I]` each; of turns, cosines and sines."""
    return tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))


@triton.jit
def turn_pairs(x, cos, sin):
    """Return tokens `[C, D]` turned and of unit length, by cosines and sines `[C, I]`.

    What belongs to a whole token is applied to all features at once, here and in the gradient: on halves of
    them the compiler would lay them out anew.

    Returns:
        The tokens, the inverse of their length `[C, 1]`, and whether that was no limit.
    """
    length = tl.sqrt(tl.sum(x * x, axis=1, keep_dims=True))
    inverse = 1.0 / tl.maximum(length, SHORTEST)
    even, odd = split_pairs(x)
    return tl.interleave(even * cos - odd * sin, even * sin + odd * cos) * inverse, inverse, length > SHORTEST


@triton.jit
def turn_gradient(unit, d_unit, cos, sin, inverse, is_long, weight):
    """Return the gradient `[C, D]` of what `turn_pairs` took, from that of what it returned times `weight`.

    Returns:
        The gradients of the tokens `[C, D]` and of the angles `[C, I]`, and the product of the given
        gradient with what `turn_pairs` returned, `[C]`, without the weight.
    """
    along = tl.sum(d_unit * unit, axis=1)
    across = (d_unit - unit * tl.where(is_long, along[:, None], 0.0)) * weight
    even, odd = split_pairs(unit)
    d_even, d_odd = split_pairs(across)
    d_angle = d_odd * even - d_even * odd
    return tl.interleave(d_even * cos + d_odd * sin, d_odd * cos - d_even * sin) * inverse, d_angle, along


@triton.jit
def map_heads_forward(
    x_pointer,
    weight_pointer,  # [H, D out, D in]
    turn_pointer,
    out_pointer,  # [P, N, H, D]
    x_frame,
    x_token,
    x_head,
    turn_frame,
    turn_token,
    turn_head,
    total_tokens,  # P * N
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    span: tl.constexpr,
    turns: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the mapped tokens, with `turns` turned and of unit length; one program per head and some steps.

    A step takes C tokens, of as many frames as they belong to.
    """
    head = tl.program_id(0)
    weight_t = load_square_t(weight_pointer + head * width * width, width)
    for step in range(span):
        tokens = (tl.program_id(1) * span + step) * block + tl.arange(0, block)
        frame, place, inside = (tokens // num_tokens).to(tl.int64), tokens % num_tokens, tokens < total_tokens
        rows = frame * x_frame + place * x_token + head * x_head
        x = load_tokens(x_pointer, rows, inside, width, precision)
        out = multiply(x, weight_t, tl.zeros([block, width], tl.float32), precision)
        if turns:
            turn_rows = frame * turn_frame + place * turn_token + head * turn_head
            cos, sin = split_pairs(load_tokens(turn_pointer, turn_rows, inside, width, precision))
            out, _, _ = turn_pairs(out, cos, sin)
        own = (tokens.to(tl.int64) * num_heads + head) * width
        store_tokens(out_pointer, out, own, inside, width)


@triton.jit
def map_heads_gradient(
    x_pointer,
    weight_pointer,  # [H, D out, D in]
    turn_pointer,
    d_out_pointer,  # [P, N, H, D]
    dx_pointer,  # [P, N, H, D]
    d_weight_pointer,  # [parts, H, D out, D in], what each span of steps adds
    d_angle_pointer,  # [P, N, H, I]
    x_frame,
    x_token,
    x_head,
    turn_frame,
    turn_token,
    turn_head,
    total_tokens,  # P * N
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    span: tl.constexpr,
    turns: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the gradients of x, the map and the angles; one program per head and span of steps."""
    head = tl.program_id(0)
    weight_pointer += head * width * width
    weight, weight_t = load_square(weight_pointer, width), load_square_t(weight_pointer, width)
    d_weight_t = tl.zeros([width, width], tl.float32)  # [D in, D out]
    for step in range(span):
        tokens = (tl.program_id(1) * span + step) * block + tl.arange(0, block)
        frame, place, inside = (tokens // num_tokens).to(tl.int64), tokens % num_tokens, tokens < total_tokens
        rows = frame * x_frame + place * x_token + head * x_head
        own = tokens.to(tl.int64) * num_heads + head
        x = load_tokens(x_pointer, rows, inside, width, precision)
        x_t = load_transposed(x, x_pointer, rows, inside, width, precision)
        d_out = load_tokens(d_out_pointer, own * width, inside, width, precision)
        if turns:
            mapped = multiply(x, weight_t, tl.zeros([block, width], tl.float32), precision)
            turn_rows = frame * turn_frame + place * turn_token + head * turn_head
            cos, sin = split_pairs(load_tokens(turn_pointer, turn_rows, inside, width, precision))
            unit, inverse, is_long = turn_pairs(mapped, cos, sin)
            d_out, d_angle, _ = turn_gradient(unit, d_out, cos, sin, inverse, is_long, 1.0)
            store_tokens(d_angle_pointer, d_angle, own * (width // 2), inside, width // 2)
        dx = multiply(d_out, weight, tl.zeros([block, width], tl.float32), precision)
        store_tokens(dx_pointer, dx, own * width, inside, width)
        d_weight_t = multiply(x_t, d_out, d_weight_t, precision)
    d_weight_pointer += (tl.program_id(1) * num_heads + head).to(tl.int64) * width * width
    store_square_t(d_weight_pointer, d_weight_t, width)

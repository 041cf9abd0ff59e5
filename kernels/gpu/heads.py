"""Triton kernels of the maps that each head has of its own, with rotation and unit length; and the gradient.

Features turn in pairs, by a cosine and a sine each. Of a weight its even and its odd outputs are two
products, whose results are what turns into each other, and nothing has to be shuffled:

    (a, b) = x W^T,    (u, w) = (a cos - b sin, a sin + b cos),    k = (u, w) / |(u, w)|

With g the gradient of (u, w), that is (dk - k (k . dk)) / |(u, w)|:

    dangle = g_w u - g_u w,    (da, db) = (g_u cos + g_w sin, g_w cos - g_u sin)
    dx = (da, db) W,    dW = (da, db)^T x
"""

# P frames of all sequences, N tokens of one frame, H heads, D head width, C tokens of a step, I = D / 2 pairs

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.frame_maps import load_columns, load_rows, multiply

SHORTEST: tl.constexpr = tl.constexpr(1e-12)
"""Length that no key is taken to be shorter than."""


@triton.jit
def load_weight(pointer, width: tl.constexpr):
    """Return even and odd outputs of one head's map `[D out, D in]`, `[I, D]` each."""
    pair, feature = tl.arange(0, width // 2), tl.arange(0, width)
    even = pointer + (2 * pair)[:, None] * width + feature[None, :]
    return tl.load(even), tl.load(even + width)


@triton.jit
def load_weight_t(pointer, width: tl.constexpr):
    """Return the same transposed, `[D, I]` each."""
    pair, feature = tl.arange(0, width // 2), tl.arange(0, width)
    even = pointer + (2 * pair)[None, :] * width + feature[:, None]
    return tl.load(even), tl.load(even + width)


@triton.jit
def load_pairs(pointer, tokens, stride, num_tokens, width: tl.constexpr):
    """Return even and odd features of tokens, `[C, I]` each in fp32; tokens beyond the frame are 0."""
    pair, inside = tl.arange(0, width // 2), (tokens < num_tokens)[:, None]
    even = pointer + tokens[:, None] * stride + (2 * pair)[None, :]
    return (
        tl.load(even, mask=inside, other=0.0).to(tl.float32),
        tl.load(even + 1, mask=inside, other=0.0).to(tl.float32),
    )


@triton.jit
def store_rows(pointer, x, tokens, stride, num_tokens, width: tl.constexpr):
    """Store features of tokens, `[C, width]`."""
    at = pointer + tokens[:, None] * stride + tl.arange(0, width)[None, :]
    tl.store(at, x, mask=(tokens < num_tokens)[:, None])


@triton.jit
def turn_pairs(even, odd, cos, sin, axis: tl.constexpr):
    """Return pairs turned and of unit length, that length's inverse, and whether it was no limit."""
    squares = tl.sum(even * even, axis=axis, keep_dims=True) + tl.sum(odd * odd, axis=axis, keep_dims=True)
    length = tl.sqrt(squares)
    inverse = 1.0 / tl.maximum(length, SHORTEST)
    turned_even, turned_odd = (even * cos - odd * sin) * inverse, (even * sin + odd * cos) * inverse
    return turned_even, turned_odd, inverse, length > SHORTEST


@triton.jit
def map_tokens(x, weight_pointer, width: tl.constexpr, block: tl.constexpr, precision: tl.constexpr):
    """Return even and odd outputs `[C, I]` of one head's map of tokens `[C, D]`."""
    even, odd = load_weight_t(weight_pointer, width)
    zeros = tl.zeros([block, width // 2], tl.float32)
    return multiply(x, even, zeros, precision), multiply(x, odd, zeros, precision)


@triton.jit
def turn_gradient(even, odd, d_even, d_odd, cos, sin, inverse, is_long, weight):
    """Return the gradient of pairs `[C, I]` before `turn_pairs`, from that after it times `weight`.

    Returns:
        Gradients of even and odd features and of the angles, `[C, I]` each, and the product of the given
        gradient with what `turn_pairs` returned, `[C, 1]`, without the weight.
    """
    along = tl.sum(d_even * even, axis=1, keep_dims=True) + tl.sum(d_odd * odd, axis=1, keep_dims=True)
    lengthwise = tl.where(is_long, along, 0.0)
    d_even, d_odd = (d_even - even * lengthwise) * weight, (d_odd - odd * lengthwise) * weight
    d_angle = d_odd * even - d_even * odd
    d_even, d_odd = d_even * inverse, d_odd * inverse
    return d_even * cos + d_odd * sin, d_odd * cos - d_even * sin, d_angle, along


@triton.jit
def store_map(pointer, even_t, odd_t, width: tl.constexpr):
    """Store the gradient of one head's map, given transposed, `[D, I]` for even and for odd outputs."""
    pair, features = tl.arange(0, width // 2), tl.arange(0, width)
    even = pointer + (2 * pair)[None, :] * width + features[:, None]
    tl.store(even, even_t)
    tl.store(even + width, odd_t)


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
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    turns: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the mapped tokens, with `turns` turned and of unit length; one program per head and C tokens."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    tokens = tl.program_id(1) * block + tl.arange(0, block)
    x_pointer += frame * x_frame + head * x_head
    x = load_rows(x_pointer, tokens, tl.arange(0, width), x_token, num_tokens)
    even, odd = map_tokens(x, weight_pointer + head * width * width, width, block, precision)
    if turns:
        turn_pointer += frame * turn_frame + head * turn_head
        cos, sin = load_pairs(turn_pointer, tokens, turn_token, num_tokens, width)
        even, odd, _, _ = turn_pairs(even, odd, cos, sin, 1)
    out_pointer += (frame * num_tokens * num_heads + head) * width
    out = tl.interleave(even, odd)
    store_rows(out_pointer, out, tokens, num_heads * width, num_tokens, width)


@triton.jit
def map_heads_gradient(
    x_pointer,
    weight_pointer,  # [H, D out, D in]
    turn_pointer,
    d_out_pointer,  # [P, N, H, D]
    dx_pointer,  # [P, N, H, D]
    d_weight_pointer,  # [P / span, H, D out, D in], what each span of frames adds
    d_angle_pointer,  # [P, N, H, I]
    x_frame,
    x_token,
    x_head,
    turn_frame,
    turn_token,
    turn_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    span: tl.constexpr,
    turns: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the gradients of x, the map and the angles; one program per head and span of frames."""
    head = tl.program_id(0)
    features = tl.arange(0, width)
    weight_pointer += head * width * width
    weight_even, weight_odd = load_weight(weight_pointer, width)
    d_even_t = tl.zeros([width, width // 2], tl.float32)  # of the map, transposed
    d_odd_t = tl.zeros([width, width // 2], tl.float32)
    for index in range(span):
        frame = (tl.program_id(1) * span + index).to(tl.int64)
        x_own = x_pointer + frame * x_frame + head * x_head
        own = frame * num_tokens * num_heads + head
        for start in range(0, num_tokens, block):
            tokens = start + tl.arange(0, block)
            d_even, d_odd = load_pairs(
                d_out_pointer + own * width, tokens, num_heads * width, num_tokens, width
            )
            if turns:
                x = load_rows(x_own, tokens, features, x_token, num_tokens)
                even, odd = map_tokens(x, weight_pointer, width, block, precision)
                turn_own = turn_pointer + frame * turn_frame + head * turn_head
                cos, sin = load_pairs(turn_own, tokens, turn_token, num_tokens, width)
                even, odd, inverse, is_long = turn_pairs(even, odd, cos, sin, 1)
                d_even, d_odd, d_angle, _ = turn_gradient(
                    even, odd, d_even, d_odd, cos, sin, inverse, is_long, 1.0
                )
                angles = d_angle_pointer + own * (width // 2)
                store_rows(angles, d_angle, tokens, num_heads * (width // 2), num_tokens, width // 2)
            dx = multiply(d_even, weight_even, tl.zeros([block, width], tl.float32), precision)
            dx = multiply(d_odd, weight_odd, dx, precision)
            store_rows(dx_pointer + own * width, dx, tokens, num_heads * width, num_tokens, width)
            x_t = load_columns(x_own, tokens, features, x_token, num_tokens)  # [D, C]
            d_even_t = multiply(x_t, d_even, d_even_t, precision)
            d_odd_t = multiply(x_t, d_odd, d_odd_t, precision)
    d_weight_pointer += (tl.program_id(1) * num_heads + head).to(tl.int64) * width * width
    store_map(d_weight_pointer, d_even_t, d_odd_t, width)

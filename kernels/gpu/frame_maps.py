"""Triton kernels that turn a frame's writes into one affine map of the state.

The algebra is that of `kernels.frame_maps`, taken C tokens at a time from the last to the first. With
`T_i = I - sum_{j > i} X_j^T K_j` over the blocks after block i, the solution of `(I + L)^T Z = K` is

    Z_i = A_ii^T K_i T_i^T,    X_i = diag(beta_i) Z_i,    T_{i-1} = T_i - X_i^T K_i,    M = e^{c_N} T_{-1}

so that nothing of size N x N is ever formed and only the C x C blocks on the diagonal, `A_ii`, are inverted.
Every product is laid out so that no result of a product has to be transposed: compilers have got that wrong
on Hopper (flash-linear-attention issue 640). Transposed operands are read transposed from memory.
"""

# P frames of all sequences, N tokens of one frame, H heads, K key width, V value width, C tokens of a block,
# R rows of the state that one program computes

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, tokens, features, stride, num_tokens):
    """Return the tokens' features `[C, width]` in fp32; tokens beyond the frame are 0."""
    offsets = tokens[:, None] * stride + features[None, :]
    return tl.load(pointer + offsets, mask=(tokens < num_tokens)[:, None], other=0.0).to(tl.float32)


@triton.jit
def load_columns(pointer, tokens, features, stride, num_tokens):
    """Return the tokens' features transposed, `[width, C]`, in fp32; tokens beyond the frame are 0."""
    offsets = tokens[None, :] * stride + features[:, None]
    return tl.load(pointer + offsets, mask=(tokens < num_tokens)[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_gate(pointer, tokens, num_heads, num_tokens):
    """Return one head's gate of the tokens `[C]`; tokens beyond the frame neither decay nor write."""
    return tl.load(pointer + tokens * num_heads, mask=tokens < num_tokens, other=0.0)


@triton.jit
def multiply(left, right, start, precision: tl.constexpr):
    """Return `start + left @ right` in fp32; "fp16" and "bf16" round the operands, others are `tl.dot`'s."""
    if precision == "fp16":
        out = tl.dot(left.to(tl.float16), right.to(tl.float16), start)
    elif precision == "bf16":
        out = tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), start)
    else:
        out = tl.dot(left, right, start, input_precision=precision)
    return out


@triton.jit
def multiply_keys(keys, right, start, precision: tl.constexpr):
    """Return `start + keys @ right`; in "fp16" `right` is split in two: similar keys make it cancel."""
    if precision == "fp16":
        high = right.to(tl.float16)
        low = (right - high.to(tl.float32)).to(tl.float16)
        out = tl.dot(keys.to(tl.float16), high, tl.dot(keys.to(tl.float16), low, start))
    else:
        out = tl.dot(keys, right, start, input_precision=precision)
    return out


@triton.jit
def multiply_split(left, right):
    """Return `left @ right` to about 20 bits: operands as sums of two in fp16, the least product left out."""
    left_high, right_high = left.to(tl.float16), right.to(tl.float16)
    left_low = (left - left_high.to(tl.float32)).to(tl.float16)
    right_low = (right - right_high.to(tl.float32)).to(tl.float16)
    return tl.dot(left_high, right_high, tl.dot(left_high, right_low, tl.dot(left_low, right_high)))


@triton.jit
def invert_block(lower, block: tl.constexpr, levels: tl.constexpr, precision: tl.constexpr):
    """Invert `I + tril(lower, -1)`, `[C, C]`.

    Two neighbouring inverted blocks P, Q and the block B below P give the inverse of the pair,
    [[P, 0], [-Q B P, Q]]: products of true inverses, no powers of L, which overflow for similar keys.
    In "fp16" one step of Newton, `A + A (I - (I + L) A)`, follows, with the bracket to 20 bits: it leaves of
    what rounding did to A the square.
    """
    row, column = tl.arange(0, block)[:, None], tl.arange(0, block)[None, :]
    # The highest bit in which two tokens differ says at which level their blocks are merged.
    level_of = tl.where(row > column, row ^ column, 0)
    identity = tl.where(row == column, 1.0, 0.0)
    zeros = tl.zeros([block, block], tl.float32)
    inverse = identity - tl.where(level_of == 1, lower, 0.0)
    for level in range(1, levels):  # not unrolled: masks of all levels at once would take the registers
        below = tl.where(level_of >> level == 1, lower, 0.0)
        corner = multiply(below, inverse, zeros, precision)
        inverse -= multiply(inverse, corner, zeros, precision)
    if precision == "fp16":
        missing = identity - inverse - multiply_split(tl.where(row > column, lower, 0.0), inverse)
        inverse = multiply(inverse, missing, inverse, precision)
    return inverse


@triton.jit
def invert_blocks(
    k_pointer,
    g_pointer,
    beta_pointer,
    inverse_pointer,  # [P, H, blocks, C, C]
    decay_pointer,  # [P, N, H]
    k_frame,
    k_token,
    k_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
    levels: tl.constexpr,
    precision: tl.constexpr,
):
    """Invert the diagonal blocks of `I + L`, write `e^{c_N - c_t}`; one program per frame, head and block."""
    frame_head = tl.program_id(0)
    frame, head = (frame_head // num_heads).to(tl.int64), frame_head % num_heads
    index = tl.program_id(1)
    row, column = tl.arange(0, block)[:, None], tl.arange(0, block)[None, :]
    tokens = index * block + tl.arange(0, block)
    features = tl.arange(0, key_width)
    keys = k_pointer + frame * k_frame + head * k_head
    gates = frame * num_tokens * num_heads + head
    beta = load_gate(beta_pointer + gates, tokens, num_heads, num_tokens)
    k = load_rows(keys, tokens, features, k_token, num_tokens)
    kt = load_columns(keys, tokens, features, k_token, num_tokens)
    lower = beta[:, None] * tl.dot(k, kt, input_precision=precision)  # [C, C]
    inverse = invert_block(lower, block, levels, precision)
    out = inverse_pointer + (frame_head.to(tl.int64) * tl.num_programs(1) + index) * block * block
    tl.store(out + row * block + column, inverse)
    # Summed from the logarithms after t: a difference of sums would lose digits after a hard decay.
    every = tl.arange(0, padded)
    g = load_gate(g_pointer + gates, every, num_heads, num_tokens)
    decay = tl.exp(tl.sum(tl.where(every[None, :] > tokens[:, None], g[None, :], 0.0), axis=1))
    tl.store(decay_pointer + gates + tokens * num_heads, decay, mask=tokens < num_tokens)


@triton.jit
def frame_map_forward(
    k_pointer,
    v_pointer,
    g_pointer,
    beta_pointer,
    inverse_pointer,  # [P, H, blocks, C, C]
    decay_pointer,  # [P, N, H]
    transition_pointer,  # [P, H, K, K]
    write_pointer,  # [P, H, K, V]
    k_frame,
    k_token,
    k_head,
    v_frame,
    v_token,
    v_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
    precision: tl.constexpr,
):
    """Write M and N; one program per frame, head and R rows of the two, which depend on no other row."""
    frame_head = tl.program_id(0)
    frame, head = (frame_head // num_heads).to(tl.int64), frame_head % num_heads
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    features, values = tl.arange(0, key_width), tl.arange(0, value_width)
    within = tl.arange(0, block)
    blocks: tl.constexpr = (num_tokens + block - 1) // block
    k_pointer += frame * k_frame + head * k_head
    v_pointer += frame * v_frame + head * v_head
    g_pointer += frame * num_tokens * num_heads + head
    beta_pointer += frame * num_tokens * num_heads + head
    decay_pointer += frame * num_tokens * num_heads + head
    inverse_pointer += frame_head.to(tl.int64) * blocks * block * block
    transition = tl.where(row[:, None] == features[None, :], 1.0, 0.0)  # [R, K], T_i of the legend
    write = tl.zeros([rows, value_width], tl.float32)
    for step in range(blocks):
        index = blocks - 1 - step
        tokens = index * block + within
        k = load_rows(k_pointer, tokens, features, k_token, num_tokens)  # [C, K]
        kt = load_columns(k_pointer, tokens, features, k_token, num_tokens)  # [K, C]
        v = load_rows(v_pointer, tokens, values, v_token, num_tokens)  # [C, V]
        v *= load_gate(decay_pointer, tokens, num_heads, num_tokens)[:, None]
        inverse = tl.load(inverse_pointer + index * block * block + within[:, None] * block + within[None, :])
        zeros = tl.zeros([rows, block], tl.float32)
        zt = multiply(multiply(transition, kt, zeros, precision), inverse, zeros, precision)
        xt = zt * load_gate(beta_pointer, tokens, num_heads, num_tokens)[None, :]  # [R, C]
        write = multiply(xt, v, write, precision)
        transition = multiply(-xt, k, transition, precision)
    transition *= tl.load(decay_pointer) * tl.exp(tl.load(g_pointer))  # e^{c_N}
    out = frame_head.to(tl.int64) * key_width + row[:, None]
    tl.store(transition_pointer + out * key_width + features[None, :], transition)
    tl.store(write_pointer + out * value_width + values[None, :], write)

"""Triton kernels that write many tokens into the state, C at a time, when only the final state is wanted.

`prepare_chunks` does for every chunk, all at once, what depends on no other (`kernels.frame_maps` for one of
them; `Gamma` decays to its end, `gamma` over the whole of it):

    X^T = K^T A diag(beta),    A = (I + tril(diag(beta) K K^T, -1))^-1

Then either `apply_chunks` walks the state through all chunks, some of its columns in each program,

    S <- gamma S + X^T (diag(Gamma) V - gamma K S),

or `build_segments` turns segments of several chunks into maps `S' = M S + N`, side by side, and
`chain_segments` applies one after the other. Rows of the maps depend on no other row. From the last chunk to
the first, with P the decay over all later chunks of the segment:

    Z = T X^T,    N <- N + P Z diag(Gamma) V,    T <- T - Z K,    M = e^{c_N} T

Operands of 16 bits are fp16 and not bf16, for their three more digits: keys are of unit length, and rows of X
at most 2 long. Values and states have no such limit; powers of two scale them, which is exact.
No result of a product is transposed: compilers have got that wrong on Hopper (flash-linear-attention 640).
"""

# B batch, N tokens, H heads, K key width, V value width, C tokens of a chunk, R rows of the maps and
# W columns of the state that one program computes

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.frame_maps import invert_block, load_gate, multiply, multiply_keys

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def exponent_of(x):
    """Return e with `2^e <= x < 2^(e + 1)` for a float x above 0; kept within what `power_of_two` inverts."""
    return tl.minimum(tl.maximum(((x.to(tl.int32, bitcast=True) >> 23) & 255) - 127, -100), 120)


@triton.jit
def power_of_two(exponent):
    """Return `2^exponent`, between 2^-126 and 2^127, without rounding."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def load_tile(pointer, tokens, features, stride, num_tokens: tl.constexpr, scale, dtype: tl.constexpr):
    """Return the tokens' features `[C, width]` in `dtype`, scaled if they were not of it; else 0."""
    offsets = tokens[:, None] * stride + features[None, :]
    tile = tl.load(pointer + offsets, mask=(tokens < num_tokens)[:, None], other=0.0)
    if pointer.dtype.element_ty != dtype:
        tile = (tile.to(tl.float32) * scale).to(dtype)
    return tile


@triton.jit
def prepare_chunks(
    k_pointer,
    v_pointer,
    g_pointer,  # [B, N, H]
    beta_pointer,  # [B, N, H]
    xt_pointer,  # [B, H, chunks, K, C]
    keys_pointer,  # [B, H, chunks, C, K], copies
    values_pointer,  # [B, H, chunks, C, V], copies, scaled by their chunk's 2^-exponent
    later_pointer,  # [B, H, chunks, C], log2 of the decay from a token to the end of its chunk
    total_pointer,  # [B, H, chunks], log2 of a chunk's decay
    exponent_pointer,  # [B, H, chunks], of a chunk's largest value
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    levels: tl.constexpr,
    copy_keys: tl.constexpr,
    copy_values: tl.constexpr,
    precision: tl.constexpr,
    merge_precision: tl.constexpr,
):
    """Store what a chunk needs nobody else for; one program per chunk, sequence and head."""
    chunk, batch_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    matrix = batch_head * tl.num_programs(0) + chunk
    within = tl.arange(0, block)
    tokens, features, values = chunk * block + within, tl.arange(0, key_width), tl.arange(0, value_width)
    dtype: tl.constexpr = xt_pointer.dtype.element_ty
    k_pointer += batch * k_batch + head * k_head
    v_pointer += batch * v_batch + head * v_head
    k = load_tile(k_pointer, tokens, features, k_token, num_tokens, 1.0, dtype)
    # Values first, and keys again later: held meanwhile, they would leave the inversion too few registers.
    v = load_tile(v_pointer, tokens, values, v_token, num_tokens, 1.0, tl.float32)
    beta = load_gate(beta_pointer + batch * num_tokens * num_heads + head, tokens, num_heads, num_tokens)
    if copy_keys:
        keys_pointer += matrix * block * key_width
        tl.store(keys_pointer + within[:, None] * key_width + features[None, :], k)
    exponent = exponent_of(tl.max(tl.abs(v)))
    tl.store(exponent_pointer + matrix, exponent)
    if copy_values:
        scaled = (v * power_of_two(-exponent)).to(dtype)
        values_pointer += matrix * block * value_width
        tl.store(values_pointer + within[:, None] * value_width + values[None, :], scaled)
    # The transpose of what was loaded, not of a result.
    lower = beta[:, None] * multiply(k, tl.trans(k), tl.zeros([block, block], tl.float32), precision)
    inverse = invert_block(lower, block, levels, merge_precision)
    offsets = tokens[None, :] * k_token + features[:, None]
    kt = tl.load(k_pointer + offsets, mask=(tokens < num_tokens)[None, :], other=0.0).to(tl.float32).to(dtype)
    xt = multiply_keys(kt, inverse, tl.zeros([key_width, block], tl.float32), precision) * beta[None, :]
    square = features[:, None] * block + within[None, :]
    tl.store(xt_pointer + matrix * key_width * block + square, xt.to(dtype))
    g = load_gate(g_pointer + batch * num_tokens * num_heads + head, tokens, num_heads, num_tokens) * LOG2E
    # Summed from the logarithms after t: a difference of sums would lose digits after a hard decay.
    later = tl.sum(tl.where(within[None, :] > within[:, None], g[None, :], 0.0), axis=1)
    tl.store(later_pointer + matrix * block + within, later)
    tl.store(total_pointer + matrix, tl.sum(g))


@triton.jit
def apply_chunks(
    xt_pointer,  # [B, H, chunks, K, C]
    k_pointer,
    v_pointer,
    later_pointer,  # [B, H, chunks, C]
    total_pointer,  # [B, H, chunks]
    exponent_pointer,  # [B, H, chunks]
    state_pointer,  # [B, H, K, V]
    out_pointer,  # [B, H, K, V]
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    columns: tl.constexpr,
    padded: tl.constexpr,
    headroom: tl.constexpr,
    precision: tl.constexpr,
    stages: tl.constexpr,
):
    """Store the state after all chunks; one program per W columns of the state, sequence and head."""
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    chunks: tl.constexpr = (num_tokens + block - 1) // block
    row, column = tl.arange(0, key_width), tl.program_id(0) * columns + tl.arange(0, columns)
    within, every = tl.arange(0, block), tl.arange(0, padded)
    dtype: tl.constexpr = xt_pointer.dtype.element_ty
    k_pointer += batch * k_batch + head * k_head
    v_pointer += batch * v_batch + head * v_head
    xt_pointer += batch_head * chunks * key_width * block
    later_pointer += batch_head * chunks * block
    total_pointer += batch_head * chunks
    tile = batch_head * key_width * value_width + row[:, None] * value_width + column[None, :]
    state = tl.load(state_pointer + tile)  # [K, W]
    exponents = tl.load(exponent_pointer + batch_head * chunks + every, mask=every < chunks, other=-100)
    exponent = tl.maximum(tl.max(exponents), exponent_of(tl.max(tl.abs(state)))) + headroom
    scale = power_of_two(-exponent)
    state *= scale
    total = tl.load(total_pointer)
    for index in tl.range(chunks, num_stages=stages):
        # One chunk ahead: a number that is loaded where it is used would be waited for.
        following = tl.load(total_pointer + tl.minimum(index + 1, chunks - 1))
        tokens = index * block + within
        k = load_tile(k_pointer, tokens, row, k_token, num_tokens, 1.0, dtype)  # [C, K]
        xt = tl.load(xt_pointer + index * key_width * block + row[:, None] * block + within[None, :])
        v = load_tile(v_pointer, tokens, column, v_token, num_tokens, 1.0, tl.float32)  # [C, W]
        after = tl.exp2(tl.load(later_pointer + tokens)) * scale
        gamma = tl.exp2(total)
        recalled = multiply(k, state, tl.zeros([block, columns], tl.float32), precision)
        state = multiply(xt, v * after[:, None] - gamma * recalled, gamma * state, precision)
        total = following
    tl.store(out_pointer + tile, state * power_of_two(exponent))


@triton.jit
def build_segments(
    xt_pointer,  # [B, H, chunks, K, C]
    k_pointer,
    v_pointer,
    later_pointer,  # [B, H, chunks, C]
    total_pointer,  # [B, H, chunks]
    exponent_pointer,  # [B, H, chunks]
    transition_pointer,  # [B, H, segments, K, K]
    write_pointer,  # [B, H, segments, K, V]
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
    chunks: tl.constexpr,
    segment_chunks: tl.constexpr,
    padded: tl.constexpr,
    copies: tl.constexpr,
    precision: tl.constexpr,
    stages: tl.constexpr,
):
    """Store M and N; one program per R rows of the two, segment, sequence and head."""
    segment, batch_head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    features, values = tl.arange(0, key_width), tl.arange(0, value_width)
    within, every = tl.arange(0, block), tl.arange(0, padded)
    every = tl.where(every < segment_chunks, segment * segment_chunks + every, chunks)
    dtype: tl.constexpr = xt_pointer.dtype.element_ty
    last = (segment + 1) * segment_chunks - 1  # its chunk; beyond the frame's last, chunks are 0
    k_pointer += batch * k_batch + head * k_head
    v_pointer += batch * v_batch + head * v_head
    xt_pointer += batch_head * chunks * key_width * block
    later_pointer += batch_head * chunks * block
    total_pointer += batch_head * chunks
    exponent_pointer += batch_head * chunks
    # What is stored in the dtype of the products already needs no scale.
    scaled: tl.constexpr = copies or v_pointer.dtype.element_ty != dtype
    largest = tl.max(tl.load(exponent_pointer + every, mask=every < chunks, other=-100))
    largest = largest if scaled else largest * 0
    transition = tl.where(row[:, None] == features[None, :], 1.0, 0.0)  # [R, K], T of the legend
    write = tl.zeros([rows, value_width], tl.float32)
    remaining = 0.0  # log2 of P
    exponent = tl.load(exponent_pointer + last, mask=last < chunks, other=-100)
    for step in tl.range(segment_chunks, num_stages=stages):
        index = last - step
        inside = index < chunks
        # One chunk ahead: a number that is loaded where it is used would be waited for.
        total = tl.load(total_pointer + index, mask=inside, other=0.0)
        following = tl.load(exponent_pointer + index - 1, mask=(index > 0) & (index <= chunks), other=-100)
        tokens = index * block + within
        square = index * key_width * block + features[:, None] * block + within[None, :]
        xt = tl.load(xt_pointer + square, mask=tokens[None, :] < chunks * block, other=0.0)
        k = load_tile(k_pointer, tokens, features, k_token, num_tokens, 1.0, dtype)  # [C, K]
        v = load_tile(v_pointer, tokens, values, v_token, num_tokens, power_of_two(-largest), dtype)  # [C, V]
        shift = exponent - largest if copies else 0
        later = tl.load(later_pointer + tokens, mask=tokens < chunks * block, other=0.0)
        after = tl.exp2(later + (remaining + shift))
        z = multiply(transition, xt, tl.zeros([rows, block], tl.float32), precision)
        write = multiply(z * after[None, :], v, write, precision)
        transition = multiply(-z, k, transition, precision)
        remaining += total
        exponent = following
    out = (batch_head * tl.num_programs(1) + segment) * key_width + row[:, None]
    transition *= tl.exp2(remaining)
    tl.store(transition_pointer + out * key_width + features[None, :], transition.to(dtype))
    tl.store(write_pointer + out * value_width + values[None, :], write * power_of_two(largest))


@triton.jit
def chain_segments(
    transition_pointer,  # [B, H, segments, K, K]
    write_pointer,  # [B, H, segments, K, V]
    exponent_pointer,  # [B, H, chunks]
    state_pointer,  # [B, H, K, V]
    out_pointer,  # [B, H, K, V]
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    columns: tl.constexpr,
    chunks: tl.constexpr,
    segments: tl.constexpr,
    padded: tl.constexpr,
    headroom: tl.constexpr,
    precision: tl.constexpr,
    stages: tl.constexpr,
):
    """Store the state after all segments; one program per W columns of the state, sequence and head."""
    batch_head = tl.program_id(1).to(tl.int64)
    row, column = tl.arange(0, key_width), tl.program_id(0) * columns + tl.arange(0, columns)
    every = tl.arange(0, padded)
    tile = row[:, None] * value_width + column[None, :]
    square = row[:, None] * key_width + row[None, :]
    state = tl.load(state_pointer + batch_head * key_width * value_width + tile)  # [K, W]
    exponents = tl.load(exponent_pointer + batch_head * chunks + every, mask=every < chunks, other=-100)
    exponent = tl.maximum(tl.max(exponents), exponent_of(tl.max(tl.abs(state)))) + headroom
    scale = power_of_two(-exponent)
    state *= scale
    for segment in tl.range(segments, num_stages=stages):
        matrix = batch_head * segments + segment
        transition = tl.load(transition_pointer + matrix * key_width * key_width + square)
        write = tl.load(write_pointer + matrix * key_width * value_width + tile)
        state = multiply(transition, state, write * scale, precision)
    tl.store(out_pointer + batch_head * key_width * value_width + tile, state * power_of_two(exponent))

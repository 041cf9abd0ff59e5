"""Triton kernels of the state: few tokens written into it in one launch, and what every token reads of it.

`commit_forward` keeps the state on the chip, C tokens at a time (`kernels.frame_maps` for one block; `Gamma`
decays to its end, `gamma` over all of it):

    S <- gamma S + X^T (diag(Gamma) V - gamma K S),    X = diag(beta) A^T K

Many tokens are for `kernels.gpu.chunks`. `read_forward` and its gradient:

    out    = local + diag(w) Q S,    w = scale * gate
    dQ     = diag(w) B,    dgate = scale * rowsum(B * Q),    B = dO S^T
    dS     = (diag(w) Q)^T dO,    dlocal = dO
"""

# B batch, P frames of all sequences, N tokens, H heads, K key width, V value width, C tokens of a step,
# W columns of the state that one program computes

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.chunks import exponent_of, load_tile, power_of_two
from kernels.gpu.frame_maps import (
    invert_block,
    load_columns,
    load_gate,
    load_rows,
    multiply,
    multiply_keys,
)


@triton.jit
def commit_forward(
    k_pointer,
    v_pointer,
    g_pointer,  # [B, N, H]
    beta_pointer,  # [B, N, H]
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
    levels: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
    merge_precision: tl.constexpr,
    stages: tl.constexpr,
):
    """Store the state after all tokens; one program per sequence, head and W columns of the state."""
    batch_head = tl.program_id(0).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    row, column = tl.arange(0, key_width), tl.program_id(1) * columns + tl.arange(0, columns)
    within = tl.arange(0, block)
    dtype: tl.constexpr = tl.float16 if precision == "fp16" else tl.float32
    k_pointer += batch * k_batch + head * k_head
    v_pointer += batch * v_batch + head * v_head
    g_pointer += batch * num_tokens * num_heads + head
    beta_pointer += batch * num_tokens * num_heads + head
    tile = batch_head * key_width * value_width + row[:, None] * value_width + column[None, :]
    state = tl.load(state_pointer + tile)  # [K, W]
    # No entry of the state exceeds the length of its column, which a token lengthens by at most 2 |v|. It is
    # held scaled by 2^-exponent, so that operands stay below 2^14, of the 2^16 that fp16 holds.
    bound = 12.0 * tl.max(tl.abs(state))  # sqrt(128) < 12
    exponent = exponent_of(bound) - 13
    state *= power_of_two(-exponent)
    for index in tl.range((num_tokens + block - 1) // block, num_stages=stages):
        tokens = index * block + within
        k = load_tile(k_pointer, tokens, row, k_token, num_tokens, 1.0, dtype)  # [C, K]
        v = load_tile(v_pointer, tokens, column, v_token, num_tokens, 1.0, tl.float32)  # [C, W]
        beta = load_gate(beta_pointer, tokens, num_heads, num_tokens)
        g = load_gate(g_pointer, tokens, num_heads, num_tokens)
        gamma = tl.exp(tl.sum(g))
        after = tl.exp(tl.sum(tl.where(within[None, :] > within[:, None], g[None, :], 0.0), axis=1))  # [C]
        kt = tl.trans(k)  # of what was loaded, not of a result
        lower = beta[:, None] * multiply(k, kt, tl.zeros([block, block], tl.float32), precision)
        inverse = invert_block(lower, block, levels, merge_precision)  # [C, C]
        xt = multiply_keys(kt, inverse, tl.zeros([key_width, block], tl.float32), precision) * beta[None, :]
        bound += 2.0 * block * tl.max(tl.abs(v))
        larger = exponent_of(bound) - 13
        state *= power_of_two(tl.maximum(exponent - larger, -126))
        exponent = larger
        recalled = multiply(k, state, tl.zeros([block, columns], tl.float32), precision)  # [C, W]
        missing = v * (after * power_of_two(-exponent))[:, None] - gamma * recalled
        state = multiply(xt, missing, gamma * state, precision)
    tl.store(out_pointer + tile, state * power_of_two(exponent))


@triton.jit
def read_forward(
    q_pointer,
    state_pointer,  # [P, H, K, V]
    gate_pointer,  # [P, N, H]
    local_pointer,
    out_pointer,  # [P, N, H, V]
    q_frame,
    q_token,
    q_head,
    local_frame,
    local_token,
    local_head,
    scale,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Store what C tokens read; one program per frame, head and C tokens."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    tokens = tl.program_id(1) * block + tl.arange(0, block)
    features, values = tl.arange(0, key_width), tl.arange(0, value_width)
    gate = load_gate(gate_pointer + frame * num_tokens * num_heads + head, tokens, num_heads, num_tokens)
    q = load_rows(q_pointer + frame * q_frame + head * q_head, tokens, features, q_token, num_tokens)
    local_pointer += frame * local_frame + head * local_head
    local = load_rows(local_pointer, tokens, values, local_token, num_tokens)
    matrix = frame_head * key_width * value_width
    state = tl.load(state_pointer + matrix + features[:, None] * value_width + values[None, :])
    if precision == "fp16":  # neither states nor queries know a limit, but fp16 does
        exponent = exponent_of(tl.max(tl.abs(state)))
        exponents = exponent_of(tl.max(tl.abs(q), axis=1))  # [C]
        q *= power_of_two(-exponents)[:, None]
        zeros = tl.zeros([block, value_width], tl.float32)
        read = multiply(q, state * power_of_two(-exponent), zeros, precision)
        # In this order, because one factor alone may be far from 1: the gate may hold 1 / |q|.
        weight = scale * (gate * power_of_two(exponents)) * power_of_two(exponent)
        read = local + read * weight[:, None]
    else:
        read = multiply(q * (scale * gate)[:, None], state, local, precision)
    out = ((frame * num_tokens + tokens) * num_heads + head)[:, None] * value_width + values[None, :]
    tl.store(out_pointer + out, read, mask=(tokens < num_tokens)[:, None])


@triton.jit
def read_gradient(
    q_pointer,
    state_pointer,  # [P, H, K, V]
    gate_pointer,  # [P, N, H]
    d_out_pointer,  # [P, N, H, V]
    dq_pointer,  # [P, N, H, K]
    d_state_pointer,  # [N / span, P, H, K, V], what each span of tokens adds
    d_gate_pointer,  # [P, N, H]
    q_frame,
    q_token,
    q_head,
    scale,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    span: tl.constexpr,
    precision: tl.constexpr,
):
    """Store the gradients of q, the state and the gate; one program per frame, head and span of tokens."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    features, values = tl.arange(0, key_width), tl.arange(0, value_width)
    gates = frame * num_tokens * num_heads + head
    q_pointer += frame * q_frame + head * q_head
    d_out_pointer += gates * value_width
    matrix = frame_head * key_width * value_width
    state_t = tl.load(state_pointer + matrix + features[None, :] * value_width + values[:, None])  # [V, K]
    d_state = tl.zeros([key_width, value_width], tl.float32)
    first = tl.program_id(1) * span
    for start in range(0, span, block):
        tokens = first + start + tl.arange(0, block)
        inside = tokens < num_tokens
        weight = scale * load_gate(gate_pointer + gates, tokens, num_heads, num_tokens)
        d_out = load_rows(d_out_pointer, tokens, values, num_heads * value_width, num_tokens)  # [C, V]
        q = load_rows(q_pointer, tokens, features, q_token, num_tokens)  # [C, K]
        back = multiply(d_out, state_t, tl.zeros([block, key_width], tl.float32), precision)
        out = (gates + tokens * num_heads)[:, None] * key_width + features[None, :]
        tl.store(dq_pointer + out, back * weight[:, None], mask=inside[:, None])
        tl.store(d_gate_pointer + gates + tokens * num_heads, scale * tl.sum(back * q, axis=1), mask=inside)
        qt = load_columns(q_pointer, tokens, features, q_token, num_tokens) * weight[None, :]  # [K, C]
        d_state = multiply(qt, d_out, d_state, precision)
    matrix += tl.program_id(1) * tl.num_programs(0).to(tl.int64) * key_width * value_width
    tl.store(d_state_pointer + matrix + features[:, None] * value_width + values[None, :], d_state)

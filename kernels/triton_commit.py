"""Triton kernels that write tokens into the state when only the final state is wanted.

Few tokens take one launch, C at a time, with the state on the chip (`kernels.frame_maps` for one block;
`Gamma` decays to the end of the block, `gamma` over the whole of it):

    S <- gamma S + X^T (diag(Gamma) V - gamma K S),    X = diag(beta) A^T K

Many tokens are cut into segments, whose affine maps are built side by side as those of frames are
(`kernels.triton_frame_maps`), and `chain` applies one after the other.
"""

# B batch, F segments, N tokens, H heads, K key width, V value width, C tokens of a step,
# W columns of the state that one program computes

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_frame_maps import invert_block, load_columns, load_gate, load_rows, multiply


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
):
    """Store the state after all tokens; one program per sequence, head and W columns of the state."""
    batch_head = tl.program_id(0).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    row, column = tl.arange(0, key_width), tl.program_id(1) * columns + tl.arange(0, columns)
    within = tl.arange(0, block)
    k_pointer += batch * k_batch + head * k_head
    v_pointer += batch * v_batch + head * v_head
    g_pointer += batch * num_tokens * num_heads + head
    beta_pointer += batch * num_tokens * num_heads + head
    tile = batch_head * key_width * value_width + row[:, None] * value_width + column[None, :]
    state = tl.load(state_pointer + tile)  # [K, W]
    for index in range((num_tokens + block - 1) // block):
        tokens = index * block + within
        k = load_rows(k_pointer, tokens, row, k_token, num_tokens)  # [C, K]
        kt = load_columns(k_pointer, tokens, row, k_token, num_tokens)  # [K, C]
        v = load_rows(v_pointer, tokens, column, v_token, num_tokens)  # [C, W]
        beta = load_gate(beta_pointer, tokens, num_heads, num_tokens)
        g = load_gate(g_pointer, tokens, num_heads, num_tokens)
        gamma = tl.exp(tl.sum(g))
        after = tl.exp(tl.sum(tl.where(within[None, :] > within[:, None], g[None, :], 0.0), axis=1))  # [C]
        lower = beta[:, None] * tl.dot(k, kt, input_precision=merge_precision)
        inverse = invert_block(lower, block, levels, merge_precision)  # [C, C]
        xt = multiply(kt, inverse, tl.zeros([key_width, block], tl.float32), precision) * beta[None, :]
        recalled = multiply(k, state, tl.zeros([block, columns], tl.float32), precision)  # [C, W]
        state = multiply(xt, v * after[:, None] - gamma * recalled, gamma * state, precision)
    tl.store(out_pointer + tile, state)


@triton.jit
def chain(
    transition_pointer,  # [B, F, H, K, K]
    write_pointer,  # [B, F, H, K, V]
    state_pointer,  # [B, H, K, V]
    out_pointer,  # [B, H, K, V]
    num_segments: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
    stages: tl.constexpr,
):
    """Store the state after all segments; one program per sequence, head and W columns of the state."""
    batch_head = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, key_width), tl.program_id(1) * columns + tl.arange(0, columns)
    first = batch_head // num_heads * num_segments * num_heads + batch_head % num_heads
    tile = row[:, None] * value_width + column[None, :]
    square = row[:, None] * key_width + row[None, :]
    state = tl.load(state_pointer + batch_head * key_width * value_width + tile)  # [K, W]
    for segment in tl.range(num_segments, num_stages=stages):
        matrix = first + segment * num_heads
        transition = tl.load(transition_pointer + matrix * key_width * key_width + square)
        write = tl.load(write_pointer + matrix * key_width * value_width + tile)
        state = tl.dot(transition, state, write, input_precision=precision)
    tl.store(out_pointer + batch_head * key_width * value_width + tile, state)

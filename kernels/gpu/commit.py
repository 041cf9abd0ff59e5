"""A Triton kernel that writes few tokens into the state in one launch, with the state on the chip.

C tokens at a time (`kernels.frame_maps` for one block; `Gamma` decays to its end, `gamma` over all of it):

    S <- gamma S + X^T (diag(Gamma) V - gamma K S),    X = diag(beta) A^T K

Many tokens are for `kernels.gpu.chunks`.
"""

# B batch, N tokens, H heads, K key width, V value width, C tokens of a step, W columns of the state that one
# program computes

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.chunks import exponent_of, load_tile, power_of_two
from kernels.gpu.frame_maps import invert_block, load_gate, multiply, multiply_keys


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

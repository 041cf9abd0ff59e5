"""Triton kernels for the gradients of a frame's inputs, given those of its affine map.

With `dN` the gradient of N and `dM = dN S^T` that of M (S the state before the frame), the running matrix

    D_i = e^{c_N} dM + sum_{j < i} U_j^T K_j,    U_i = A_ii diag(beta_i) (W_i dN^T - K_i D_i^T),

which is `U = A dZ` solved block by block, and `T_i` of `kernels.gpu.frame_maps`, both K x K, say all:

    R_i     = Z_i D_i + tril(Z_i U_i^T, -1) K_i
    dK_i    = -diag(beta_i) R_i + U_i T_i - triu(U_i X_i^T, 1) K_i
    dbeta_i = rowsum(Z_i dN * W_i) - rowsum(R_i * K_i)
    dV_i    = diag(e^{c_N - c_t} beta_i) Z_i dN
    dg_t    = <dM, M> + sum_{s < t} beta_s (Z_s dN . W_s)

where `W = diag(e^{c_N - c_t}) V`. The gradient of L is `-tril(Z U^T, -1)`, because `A^T dA A^T` with
`dA = K dZ^T` is `(A^T K) (A dZ)^T`.
"""

# P frames of all sequences, N tokens of one frame, H heads, K key width, V value width, C tokens of a block,
# R rows of the state that one program computes

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.frame_maps import load_columns, load_gate, load_rows


@triton.jit
def frame_map_solve(
    k_pointer,
    v_pointer,
    g_pointer,
    beta_pointer,
    inverse_pointer,  # [P, H, blocks, C, C]
    decay_pointer,  # [P, N, H]
    before_pointer,  # [P, H, K, V]
    write_gradient_pointer,  # [P, H, K, V]
    z_pointer,  # [P, H, N, K]
    u_pointer,  # [P, H, N, K]
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
    """Write Z and U; one program per frame, head and R of their K features, which depend on no other."""
    frame_head = tl.program_id(0)
    frame, head = (frame_head // num_heads).to(tl.int64), frame_head % num_heads
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    features, values = tl.arange(0, key_width), tl.arange(0, value_width)
    within = tl.arange(0, block)
    blocks: tl.constexpr = (num_tokens + block - 1) // block
    matrix = frame_head.to(tl.int64) * key_width * value_width
    k_pointer += frame * k_frame + head * k_head
    v_pointer += frame * v_frame + head * v_head
    g_pointer += frame * num_tokens * num_heads + head
    beta_pointer += frame * num_tokens * num_heads + head
    decay_pointer += frame * num_tokens * num_heads + head
    inverse_pointer += frame_head.to(tl.int64) * blocks * block * block
    z_pointer += frame_head.to(tl.int64) * num_tokens * key_width
    u_pointer += frame_head.to(tl.int64) * num_tokens * key_width
    transition = tl.where(row[:, None] == features[None, :], 1.0, 0.0)  # [R, K], T_i
    for step in range(blocks):
        index = blocks - 1 - step
        tokens = index * block + within
        k = load_rows(k_pointer, tokens, features, k_token, num_tokens)  # [C, K]
        kt = load_columns(k_pointer, tokens, features, k_token, num_tokens)  # [K, C]
        inverse = tl.load(inverse_pointer + index * block * block + within[:, None] * block + within[None, :])
        zt = tl.dot(tl.dot(transition, kt, input_precision=precision), inverse, input_precision=precision)
        out = tokens[None, :] * key_width + row[:, None]
        tl.store(z_pointer + out, zt, mask=(tokens < num_tokens)[None, :])
        xt = zt * load_gate(beta_pointer, tokens, num_heads, num_tokens)[None, :]
        transition = tl.dot(-xt, k, transition, input_precision=precision)
    write_gradient = tl.load(
        write_gradient_pointer + matrix + row[:, None] * value_width + values[None, :]
    )  # [R, V]
    state_t = tl.load(before_pointer + matrix + features[None, :] * value_width + values[:, None])  # [V, K]
    running = tl.dot(write_gradient, state_t, input_precision=precision)  # [R, K], D_i
    running *= tl.load(decay_pointer) * tl.exp(tl.load(g_pointer))  # e^{c_N}
    for index in range(blocks):
        tokens = index * block + within
        k = load_rows(k_pointer, tokens, features, k_token, num_tokens)
        kt = load_columns(k_pointer, tokens, features, k_token, num_tokens)
        vt = load_columns(v_pointer, tokens, values, v_token, num_tokens)  # [V, C]
        vt *= load_gate(decay_pointer, tokens, num_heads, num_tokens)[None, :]
        inverse_t = tl.load(
            inverse_pointer + index * block * block + within[None, :] * block + within[:, None]
        )
        dx = tl.dot(write_gradient, vt, input_precision=precision)  # [R, C]
        dx = tl.dot(-running, kt, dx, input_precision=precision)
        dx *= load_gate(beta_pointer, tokens, num_heads, num_tokens)[None, :]
        ut = tl.dot(dx, inverse_t, input_precision=precision)
        out = tokens[None, :] * key_width + row[:, None]
        tl.store(u_pointer + out, ut, mask=(tokens < num_tokens)[None, :])
        running = tl.dot(ut, k, running, input_precision=precision)


@triton.jit
def value_gradient(
    v_pointer,
    g_pointer,
    beta_pointer,
    decay_pointer,  # [P, N, H]
    transition_pointer,  # [P, H, K, K], M
    before_pointer,  # [P, H, K, V]
    write_gradient_pointer,  # [P, H, K, V]
    z_pointer,  # [P, H, N, K]
    dv_pointer,  # [P, N, H, V]
    dg_pointer,  # [P, N, H]
    dbeta_pointer,  # [P, N, H], the part that comes through N
    v_frame,
    v_token,
    v_head,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Write the gradients of v and g, and the part of beta's through N; one program per frame and head."""
    frame_head = tl.program_id(0)
    frame, head = (frame_head // num_heads).to(tl.int64), frame_head % num_heads
    features, values = tl.arange(0, key_width), tl.arange(0, value_width)
    within = tl.arange(0, block)
    blocks: tl.constexpr = (num_tokens + block - 1) // block
    matrix = frame_head.to(tl.int64) * key_width
    gate_offset = frame * num_tokens * num_heads + head
    v_pointer += frame * v_frame + head * v_head
    z_pointer += frame_head.to(tl.int64) * num_tokens * key_width
    written = (matrix + features[:, None]) * value_width + values[None, :]
    write_gradient = tl.load(write_gradient_pointer + written)  # [K, V]
    state_t = tl.load(before_pointer + (matrix + features[None, :]) * value_width + values[:, None])
    square = (matrix + features[:, None]) * key_width + features[None, :]
    dm = tl.dot(write_gradient, state_t, input_precision=precision)  # [K, K]
    dg = tl.sum(dm * tl.load(transition_pointer + square))  # <dM, M>, then with what earlier tokens add
    for index in range(blocks):
        tokens = index * block + within
        inside = tokens < num_tokens
        beta = load_gate(beta_pointer + gate_offset, tokens, num_heads, num_tokens)
        decay = load_gate(decay_pointer + gate_offset, tokens, num_heads, num_tokens)
        w = load_rows(v_pointer, tokens, values, v_token, num_tokens) * decay[:, None]  # [C, V]
        z = load_rows(z_pointer, tokens, features, key_width, num_tokens)  # [C, K]
        dw = tl.dot(z, write_gradient, input_precision=precision)  # [C, V], still to be scaled by beta
        out = ((frame * num_tokens + tokens) * num_heads + head)[:, None] * value_width + values[None, :]
        tl.store(dv_pointer + out, dw * (decay * beta)[:, None], mask=inside[:, None])
        d_beta = tl.sum(dw * w, axis=1)
        gates = gate_offset + tokens * num_heads
        tl.store(dbeta_pointer + gates, d_beta, mask=inside)
        d_decay = beta * d_beta
        earlier = tl.sum(tl.where(within[None, :] < within[:, None], d_decay[None, :], 0.0), axis=1)
        tl.store(dg_pointer + gates, dg + earlier, mask=inside)
        dg += tl.sum(d_decay)


@triton.jit
def key_gradient(
    k_pointer,
    g_pointer,
    beta_pointer,
    decay_pointer,  # [P, N, H]
    before_pointer,  # [P, H, K, V]
    write_gradient_pointer,  # [P, H, K, V]
    z_pointer,  # [P, H, N, K]
    u_pointer,  # [P, H, N, K]
    dk_pointer,  # [P, N, H, K]
    dbeta_pointer,  # [K / W, P, N, H], the parts that come through M
    k_frame,
    k_token,
    k_head,
    total_frames,
    num_tokens: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    block: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
):
    """Write W columns of the gradient of k, and what they add to beta's; one program per frame and head."""
    frame_head = tl.program_id(0)
    frame, head = (frame_head // num_heads).to(tl.int64), frame_head % num_heads
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    features, values = tl.arange(0, key_width), tl.arange(0, value_width)
    row, within = tl.arange(0, block)[:, None], tl.arange(0, block)[None, :]
    blocks: tl.constexpr = (num_tokens + block - 1) // block
    matrix = frame_head.to(tl.int64) * key_width
    gate_offset = frame * num_tokens * num_heads + head
    dbeta_pointer += tl.program_id(1).to(tl.int64) * total_frames * num_tokens * num_heads
    k_pointer += frame * k_frame + head * k_head
    z_pointer += frame_head.to(tl.int64) * num_tokens * key_width
    u_pointer += frame_head.to(tl.int64) * num_tokens * key_width
    remaining = tl.where(features[:, None] == column[None, :], 1.0, 0.0)  # [K, W], columns of T_i
    for index in range(blocks):
        tokens = index * block + tl.arange(0, block)
        k = load_rows(k_pointer, tokens, column, k_token, num_tokens)
        xt = load_columns(z_pointer, tokens, features, key_width, num_tokens)
        xt *= load_gate(beta_pointer + gate_offset, tokens, num_heads, num_tokens)[None, :]
        remaining = tl.dot(-xt, k, remaining, input_precision=precision)
    write_gradient = tl.load(
        write_gradient_pointer + (matrix + features[:, None]) * value_width + values[None, :]
    )  # [K, V]
    state_t = tl.load(before_pointer + (matrix + column[None, :]) * value_width + values[:, None])  # [V, W]
    running = tl.dot(write_gradient, state_t, input_precision=precision)  # [K, W], columns of D_i
    running *= tl.load(decay_pointer + gate_offset) * tl.exp(tl.load(g_pointer + gate_offset))  # e^{c_N}
    for index in range(blocks):
        tokens = index * block + tl.arange(0, block)
        inside = tokens < num_tokens
        beta = load_gate(beta_pointer + gate_offset, tokens, num_heads, num_tokens)
        k = load_rows(k_pointer, tokens, column, k_token, num_tokens)  # [C, W]
        z = load_rows(z_pointer, tokens, features, key_width, num_tokens)  # [C, K]
        ut = load_columns(u_pointer, tokens, features, key_width, num_tokens)  # [K, C]
        inner = tl.where(row > within, tl.dot(z, ut, input_precision=precision), 0.0)  # [C, C]
        read = tl.dot(z, running, input_precision=precision)
        read = tl.dot(inner, k, read, input_precision=precision)  # [C, W], columns of R_i
        tl.store(dbeta_pointer + gate_offset + tokens * num_heads, -tl.sum(read * k, axis=1), mask=inside)
        running = tl.dot(ut, k, running, input_precision=precision)
        xt = load_columns(z_pointer, tokens, features, key_width, num_tokens) * beta[None, :]  # [K, C]
        u = load_rows(u_pointer, tokens, features, key_width, num_tokens)
        remaining = tl.dot(xt, k, remaining, input_precision=precision)  # takes block i back out of T
        outer = tl.where(row < within, -tl.dot(u, xt, input_precision=precision), 0.0)  # [C, C]
        dk = tl.dot(u, remaining, -beta[:, None] * read, input_precision=precision)
        dk = tl.dot(outer, k, dk, input_precision=precision)
        out = ((frame * num_tokens + tokens) * num_heads + head)[:, None] * key_width + column[None, :]
        tl.store(dk_pointer + out, dk, mask=inside[:, None])

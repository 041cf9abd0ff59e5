"""Triton kernels that read the state with every token, and the gradient of that.

out    = local + diag(w) Q S,    w = scale * gate
dQ     = diag(w) B,    dgate = scale * rowsum(B * Q),    B = dO S^T
dS     = (diag(w) Q)^T dO,    dlocal = dO
"""

# P frames of all sequences, N tokens of one frame, H heads, K key width, V value width, C tokens of a step

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.chunks import exponent_of, power_of_two
from kernels.gpu.frame_maps import load_columns, load_gate, load_rows, multiply


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

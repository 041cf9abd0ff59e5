"""Triton kernels of reading the state with queries as they come from their projection, and the gradient.

With u the queries after the map of `kernels.gpu.heads`, turned and of unit length, S the state before the
frame, and w = sigmoid(gate) / sqrt(K):

    y = local + diag(w) u S,    B = dy S^T,    dgate = (1 - sigmoid(gate)) w rowsum(B * u)
    du  = diag(w) B,    dS^T = dy^T diag(w) u,    dlocal = dy

and from du on as there. Of the state's gradient, too, it is the transpose that is summed.
"""

# P frames, T tokens that read a frame's state: N of each stream, H heads, D head width, C tokens of a step,
# I = D / 2 pairs

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.frame_maps import load_gate, multiply
from kernels.gpu.heads import (
    load_square,
    load_square_t,
    load_tokens,
    load_transposed,
    split_pairs,
    store_rows,
    store_square_t,
    turn_gradient,
    turn_pairs,
)


@triton.jit
def recall_forward(
    q_pointer,
    weight_pointer,  # [H, D out, D in]
    turn_pointer,
    state_pointer,  # [P, H, D, D]
    gate_pointer,  # [P, T, H]
    local_pointer,
    out_pointer,  # [P, T, H, D]
    q_frame,
    q_token,
    q_head,
    turn_frame,
    turn_token,
    turn_head,
    local_frame,
    local_token,
    local_head,
    scale,
    num_tokens: tl.constexpr,
    num_places: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Store what a frame's tokens read, C of them a step; one program per frame and head."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    weight_t = load_square_t(weight_pointer + head * width * width, width)
    state = load_square(state_pointer + frame_head * width * width, width)
    q_pointer += frame * q_frame + head * q_head
    turn_pointer += frame * turn_frame + head * turn_head
    local_pointer += frame * local_frame + head * local_head
    gates = frame * num_tokens * num_heads + head
    for start in range(0, num_tokens, block):
        tokens = start + tl.arange(0, block)
        inside = tokens < num_tokens
        q = load_tokens(q_pointer, tokens * q_token, inside, width, precision)
        mapped = multiply(q, weight_t, tl.zeros([block, width], tl.float32), precision)
        turn_rows = (tokens % num_places) * turn_token
        cos, sin = split_pairs(load_tokens(turn_pointer, turn_rows, inside, width, precision))
        unit, _, _ = turn_pairs(mapped, cos, sin)
        gate = load_gate(gate_pointer + gates, tokens, num_heads, num_tokens).to(tl.float32)
        weight = (scale * tl.sigmoid(gate))[:, None]
        out = load_tokens(local_pointer, tokens * local_token, inside, width, "tf32")
        out = multiply(unit * weight, state, out, precision)
        store_rows(out_pointer + gates * width, out, tokens, num_heads * width, num_tokens, width)


@triton.jit
def recall_gradient(
    q_pointer,
    weight_pointer,  # [H, D out, D in]
    turn_pointer,
    state_pointer,  # [P, H, D, D]
    gate_pointer,  # [P, T, H]
    d_out_pointer,  # [P, T, H, D]
    dq_pointer,  # [P, T, H, D]
    d_weight_pointer,  # [P / span, H, D out, D in], what each span of frames adds
    d_angle_pointer,  # [P, T, H, I], of each stream
    d_state_pointer,  # [P, H, D, D]
    d_gate_pointer,  # [P, T, H]
    q_frame,
    q_token,
    q_head,
    turn_frame,
    turn_token,
    turn_head,
    scale,
    num_tokens: tl.constexpr,
    num_places: tl.constexpr,
    num_heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    span: tl.constexpr,
    precision: tl.constexpr,
):
    """Store all gradients but that of `local`; one program per head and span of frames."""
    head = tl.program_id(0)
    weight_pointer += head * width * width
    map_own, map_t = load_square(weight_pointer, width), load_square_t(weight_pointer, width)
    d_weight_t = tl.zeros([width, width], tl.float32)  # of the map, [D in, D out]
    # What does not change is computed again in every step: kept, it would take the registers.
    for index in tl.range(0, span, disable_licm=True):
        frame = (tl.program_id(1) * span + index).to(tl.int64)
        matrix = (frame * num_heads + head) * width * width
        state_t = load_square_t(state_pointer + matrix, width)
        d_state_t = tl.zeros([width, width], tl.float32)
        q_own = q_pointer + frame * q_frame + head * q_head
        turn_own = turn_pointer + frame * turn_frame + head * turn_head
        own = frame * num_tokens * num_heads + head
        for start in tl.range(0, num_tokens, block, disable_licm=True):
            tokens = start + tl.arange(0, block)
            inside, rows = tokens < num_tokens, tokens * num_heads
            q = load_tokens(q_own, tokens * q_token, inside, width, precision)
            q_t = load_transposed(q, q_own, tokens * q_token, inside, width, precision)
            d_out_own = d_out_pointer + own * width
            d_out = load_tokens(d_out_own, rows * width, inside, width, precision)
            d_out_t = load_transposed(d_out, d_out_own, rows * width, inside, width, precision)
            turn_rows = (tokens % num_places) * turn_token
            cos, sin = split_pairs(load_tokens(turn_own, turn_rows, inside, width, precision))
            opening = tl.sigmoid(load_gate(gate_pointer + own, tokens, num_heads, num_tokens).to(tl.float32))
            weight = scale * opening
            zeros = tl.zeros([block, width], tl.float32)
            unit, inverse, is_long = turn_pairs(multiply(q, map_t, zeros, precision), cos, sin)
            d_state_t = multiply(d_out_t, unit * weight[:, None], d_state_t, precision)
            d_unit = multiply(d_out, state_t, zeros, precision)  # B of the legend
            d_mapped, d_angle, along = turn_gradient(
                unit, d_unit, cos, sin, inverse, is_long, weight[:, None]
            )
            tl.store(d_gate_pointer + own + rows, (1.0 - opening) * weight * along, mask=inside)
            half: tl.constexpr = width // 2
            store_rows(d_angle_pointer + own * half, d_angle, tokens, num_heads * half, num_tokens, half)
            dq = multiply(d_mapped, map_own, zeros, precision)
            store_rows(dq_pointer + own * width, dq, tokens, num_heads * width, num_tokens, width)
            d_weight_t = multiply(q_t, d_mapped, d_weight_t, precision)
        store_square_t(d_state_pointer + matrix, d_state_t, width)
    d_weight_pointer += (tl.program_id(1) * num_heads + head).to(tl.int64) * width * width
    store_square_t(d_weight_pointer, d_weight_t, width)

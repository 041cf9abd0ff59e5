"""Triton kernels of reading the state with queries as they come from their projection, and the gradient.

With u the queries after the map of `kernels.gpu.heads`, turned and of unit length, S the state before the
frame, and w = sigmoid(gate) / sqrt(K):

    y = local + diag(w) u S,    B = dy S^T,    dgate = (1 - sigmoid(gate)) w rowsum(B * u)
    du  = diag(w) B,    dS = (diag(w) u)^T dy,    dlocal = dy

and from du on as there. What a product takes transposed is computed or loaded transposed.
"""

# P frames, T tokens that read a frame's state: N of each stream, H heads, D head width, C tokens of a step,
# I = D / 2 pairs

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.frame_maps import load_columns, load_gate, load_rows, multiply
from kernels.gpu.heads import (
    load_pairs,
    load_weight,
    map_tokens,
    store_map,
    store_rows,
    turn_gradient,
    turn_pairs,
)


@triton.jit
def load_pairs_t(pointer, tokens, stride, num_tokens, width: tl.constexpr):
    """Return even and odd features of tokens transposed, `[I, C]` each in fp32."""
    pair, inside = tl.arange(0, width // 2), (tokens < num_tokens)[None, :]
    even = pointer + tokens[None, :] * stride + (2 * pair)[:, None]
    return (
        tl.load(even, mask=inside, other=0.0).to(tl.float32),
        tl.load(even + 1, mask=inside, other=0.0).to(tl.float32),
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
    """Store what C tokens read; one program per frame, head and C tokens."""
    frame_head = tl.program_id(0).to(tl.int64)
    frame, head = frame_head // num_heads, frame_head % num_heads
    tokens, features = tl.program_id(1) * block + tl.arange(0, block), tl.arange(0, width)
    q_pointer += frame * q_frame + head * q_head
    q = load_rows(q_pointer, tokens, features, q_token, num_tokens)
    even, odd = map_tokens(q, weight_pointer + head * width * width, width, block, precision)
    turn_pointer += frame * turn_frame + head * turn_head
    places = tokens % num_places
    cos, sin = load_pairs(turn_pointer, places, turn_token, num_places, width)
    even, odd, _, _ = turn_pairs(even, odd, cos, sin, 1)
    gates = frame * num_tokens * num_heads + head
    gate = load_gate(gate_pointer + gates, tokens, num_heads, num_tokens).to(tl.float32)
    weight = (scale * tl.sigmoid(gate))[:, None]
    # Rows of the state are laid out as those of a map are.
    state_even, state_odd = load_weight(state_pointer + frame_head * width * width, width)
    local_pointer += frame * local_frame + head * local_head
    out = load_rows(local_pointer, tokens, features, local_token, num_tokens)
    out = multiply(even * weight, state_even, out, precision)
    out = multiply(odd * weight, state_odd, out, precision)
    store_rows(out_pointer + gates * width, out, tokens, num_heads * width, num_tokens, width)


@triton.jit
def add_readings(
    d_state_even,
    d_state_odd,
    q_t,
    weights,
    turns,
    weighted,
    width: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Return even and odd rows of the state's gradient `[I, D]` with what queries `[D, C]` add to it.

    They are mapped here once more, transposed: the left operand of a product is never a result of one that
    has to be transposed.
    """
    zeros = tl.zeros([width // 2, block], tl.float32)
    even = multiply(weights[0], q_t, zeros, precision)
    odd = multiply(weights[1], q_t, zeros, precision)
    even, odd, _, _ = turn_pairs(even, odd, turns[0], turns[1], 0)
    d_state_even = multiply(even, weighted, d_state_even, precision)
    d_state_odd = multiply(odd, weighted, d_state_odd, precision)
    return d_state_even, d_state_odd


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
    d_angle_pointer,  # [P, N, H, I]
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
    pair, features = tl.arange(0, width // 2), tl.arange(0, width)
    weight_pointer += head * width * width
    d_even_t = tl.zeros([width, width // 2], tl.float32)  # of the map, transposed
    d_odd_t = tl.zeros([width, width // 2], tl.float32)
    for index in range(span):
        frame = (tl.program_id(1) * span + index).to(tl.int64)
        matrix = (frame * num_heads + head) * width * width
        d_state_even = tl.zeros([width // 2, width], tl.float32)
        d_state_odd = tl.zeros([width // 2, width], tl.float32)
        turn_own = turn_pointer + frame * turn_frame + head * turn_head
        for start in range(0, num_places, block):
            tokens = start + tl.arange(0, block)
            cos, sin = load_pairs(turn_own, tokens, turn_token, num_places, width)
            d_angle = tl.zeros([block, width // 2], tl.float32)
            for stream in range(num_tokens // num_places):
                own = (frame * num_tokens + stream * num_places) * num_heads + head
                q_own = q_pointer + frame * q_frame + stream * num_places * q_token + head * q_head
                gate = load_gate(gate_pointer + own, tokens, num_heads, num_places).to(tl.float32)
                opening = tl.sigmoid(gate)
                weight = scale * opening
                d_out_own = d_out_pointer + own * width
                d_out = load_rows(d_out_own, tokens, features, num_heads * width, num_places)
                q_t = load_columns(q_own, tokens, features, q_token, num_places)  # [D, C]
                weight_even, weight_odd = load_weight(weight_pointer, width)
                turns = load_pairs_t(turn_own, tokens, turn_token, num_places, width)
                weights, weighted = (weight_even, weight_odd), d_out * weight[:, None]
                d_state_even, d_state_odd = add_readings(
                    d_state_even, d_state_odd, q_t, weights, turns, weighted, width, block, precision
                )
                q = load_rows(q_own, tokens, features, q_token, num_places)
                even, odd = map_tokens(q, weight_pointer, width, block, precision)
                even, odd, inverse, is_long = turn_pairs(even, odd, cos, sin, 1)
                d_even, d_odd = map_tokens(d_out, state_pointer + matrix, width, block, precision)
                d_even, d_odd, turned, along = turn_gradient(
                    even, odd, d_even, d_odd, cos, sin, inverse, is_long, weight[:, None]
                )
                d_gate = ((1.0 - opening) * weight)[:, None] * along
                store_rows(d_gate_pointer + own, d_gate, tokens, num_heads, num_places, 1)
                d_angle += turned
                dq = multiply(d_even, weight_even, tl.zeros([block, width], tl.float32), precision)
                dq = multiply(d_odd, weight_odd, dq, precision)
                store_rows(dq_pointer + own * width, dq, tokens, num_heads * width, num_places, width)
                d_even_t = multiply(q_t, d_even, d_even_t, precision)
                d_odd_t = multiply(q_t, d_odd, d_odd_t, precision)
            angles = d_angle_pointer + (frame * num_places * num_heads + head) * (width // 2)
            store_rows(angles, d_angle, tokens, num_heads * (width // 2), num_places, width // 2)
        rows = d_state_pointer + matrix + (2 * pair)[:, None] * width + features[None, :]
        tl.store(rows, d_state_even)
        tl.store(rows + width, d_state_odd)
    d_weight_pointer += (tl.program_id(1) * num_heads + head).to(tl.int64) * width * width
    store_map(d_weight_pointer, d_even_t, d_odd_t, width)

"""Triton kernels that chain the frames' affine maps: forward in time, and backward."""

# B batch, F frames, H heads, K key width, V value width, W columns of the state that one program computes

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scan_forward(
    transition_pointer,  # [B, F, H, K, K]
    write_pointer,  # [B, F, H, K, V]
    state_pointer,  # [B, H, K, V]
    before_pointer,  # [B, F, H, K, V]
    final_pointer,  # [B, H, K, V]
    num_frames: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
    stages: tl.constexpr,
):
    """Store the state before every frame and after the last; one program per sequence, head and W columns."""
    batch_head = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, key_width)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    first = batch_head // num_heads * num_frames * num_heads + batch_head % num_heads
    tile = row[:, None] * value_width + column[None, :]
    square = row[:, None] * key_width + row[None, :]
    state = tl.load(state_pointer + batch_head * key_width * value_width + tile)  # [K, W]
    for frame in tl.range(num_frames, num_stages=stages):
        matrix = first + frame * num_heads
        tl.store(before_pointer + matrix * key_width * value_width + tile, state)
        transition = tl.load(transition_pointer + matrix * key_width * key_width + square)
        write = tl.load(write_pointer + matrix * key_width * value_width + tile)
        state = tl.dot(transition, state, write, input_precision=precision)
    tl.store(final_pointer + batch_head * key_width * value_width + tile, state)


@triton.jit
def scan_backward(
    transition_pointer,  # [B, F, H, K, K]
    before_gradient_pointer,  # [B, F, H, K, V]
    final_gradient_pointer,  # [B, H, K, V]
    write_gradient_pointer,  # [B, F, H, K, V]
    state_gradient_pointer,  # [B, H, K, V]
    num_frames: tl.constexpr,
    num_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
    stages: tl.constexpr,
):
    """Store the gradient of every frame's N, which is that of the state after it, and of the first state.

    `D_{f-1} = dS_f + M_f^T D_f`; the gradient of M is `D_f S_f^T` and is formed where it is needed.
    """
    batch_head = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, key_width)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    first = batch_head // num_heads * num_frames * num_heads + batch_head % num_heads
    tile = row[:, None] * value_width + column[None, :]
    transposed = row[None, :] * key_width + row[:, None]
    gradient = tl.load(final_gradient_pointer + batch_head * key_width * value_width + tile)  # [K, W]
    for step in tl.range(num_frames, num_stages=stages):
        matrix = first + (num_frames - 1 - step) * num_heads
        tl.store(write_gradient_pointer + matrix * key_width * value_width + tile, gradient)
        transition = tl.load(transition_pointer + matrix * key_width * key_width + transposed)
        own = tl.load(before_gradient_pointer + matrix * key_width * value_width + tile)
        gradient = tl.dot(transition, gradient, own, input_precision=precision)
    tl.store(state_gradient_pointer + batch_head * key_width * value_width + tile, gradient)

"""Triton kernels of LayerNorm with modulation, and of the residual sum before it; and the gradient of both.

s = x + gate * branch,    h = (s - mean(s)) / sqrt(var(s) + eps),    y = h * scale + shift

dh = dy * scale,    ds += (dh - mean(dh) - h * mean(dh * h)) / sqrt(var(s) + eps),    dx = ds
dbranch = gate * ds,    dgate = sum(branch * ds),    dscale = sum(dy * h),    dshift = sum(dy)

The sums run over the tokens of a frame, means over features. Statistics are computed from s again in the
gradient, which reads it anyway. A program of one warp waits for no other in a mean: in the gradient it takes
one token at a time, while those after it are on their way.
"""

# P frames of all sequences and streams, N tokens of one frame, D width, R tokens of a step

# pyright: reportIndexIssue=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Inside a kernel the names stand for Triton's blocks, whose operators Triton does not declare.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_frame(pointer, columns, width: tl.constexpr):
    """Return what modulates all tokens of a frame, `[1, padded]` in fp32."""
    return tl.load(pointer + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def normalise(x, columns, width: tl.constexpr, eps: tl.constexpr):
    """Return rows `[R, padded]` with mean 0 and variance 1, and the factor `[R, 1]` that made it 1."""
    centred = tl.where((columns < width)[None, :], x - (tl.sum(x, axis=1) / width)[:, None], 0.0)
    factor = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)[:, None]
    return centred * factor, factor


@triton.jit
def modulate_forward(
    x_pointer,
    branch_pointer,  # [P, N, D]
    gate_pointer,
    shift_pointer,
    scale_pointer,
    sum_pointer,  # [P, N, D]
    out_pointer,  # [P, N, D]
    x_frame,
    gate_frame,
    shift_frame,
    scale_frame,
    num_tokens: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    rows: tl.constexpr,
    eps: tl.constexpr,
    adds: tl.constexpr,
):
    """Store the sum, if there is something to add, and its modulated norm; one program per R tokens."""
    frame = tl.program_id(0).to(tl.int64)
    tokens, columns = tl.program_id(1) * rows + tl.arange(0, rows), tl.arange(0, padded)
    inside = (tokens < num_tokens)[:, None] & (columns < width)[None, :]
    tile = tokens[:, None] * width + columns[None, :]
    own = frame * num_tokens * width + tile
    x = tl.load(x_pointer + frame * x_frame + tile, mask=inside, other=0.0).to(tl.float32)
    if adds:
        branch = tl.load(branch_pointer + own, mask=inside, other=0.0).to(tl.float32)
        x += branch * load_frame(gate_pointer + frame * gate_frame, columns, width)
        tl.store(sum_pointer + own, x, mask=inside)
        x = x.to(sum_pointer.dtype.element_ty).to(tl.float32)  # as the gradient will see it
    normed, _ = normalise(x, columns, width, eps)
    scale = load_frame(scale_pointer + frame * scale_frame, columns, width)
    shift = load_frame(shift_pointer + frame * shift_frame, columns, width)
    tl.store(out_pointer + own, normed * scale + shift, mask=inside)


@triton.jit
def modulate_gradient(
    x_pointer,
    branch_pointer,  # [P, N, D]
    gate_pointer,
    scale_pointer,
    d_sum_pointer,  # [P, N, D]
    d_out_pointer,  # [P, N, D]
    dx_pointer,  # [P, N, D]
    d_branch_pointer,  # [P, N, D]
    d_gate_pointer,  # [P, D]
    d_shift_pointer,  # [P, D]
    d_scale_pointer,  # [P, D]
    x_frame,
    gate_frame,
    scale_frame,
    num_tokens: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    rows: tl.constexpr,
    eps: tl.constexpr,
    adds: tl.constexpr,
    carries: tl.constexpr,
    stages: tl.constexpr,
):
    """Store all gradients of a frame; one program per frame. With `adds` x is the sum.

    With `carries` there is a gradient of x (or of the sum) beside that of its norm.
    """
    frame = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, padded)
    scale = load_frame(scale_pointer + frame * scale_frame, columns, width)
    d_shift = tl.zeros([rows, padded], tl.float32)
    d_scale = tl.zeros([rows, padded], tl.float32)
    if adds:
        gate = load_frame(gate_pointer + frame * gate_frame, columns, width)
        d_gate = tl.zeros([rows, padded], tl.float32)
    for start in tl.range(0, num_tokens, rows, num_stages=stages):
        tokens = start + tl.arange(0, rows)
        inside = (tokens < num_tokens)[:, None] & (columns < width)[None, :]
        tile = tokens[:, None] * width + columns[None, :]
        own = frame * num_tokens * width + tile
        x = tl.load(x_pointer + frame * x_frame + tile, mask=inside, other=0.0).to(tl.float32)
        d_out = tl.load(d_out_pointer + own, mask=inside, other=0.0).to(tl.float32)
        normed, factor = normalise(x, columns, width, eps)
        d_shift += d_out
        d_scale += d_out * normed
        d_normed = d_out * scale
        along = tl.sum(d_normed * normed, axis=1)[:, None] / width
        dx = factor * (d_normed - tl.sum(d_normed, axis=1)[:, None] / width - normed * along)
        if carries:
            dx += tl.load(d_sum_pointer + own, mask=inside, other=0.0).to(tl.float32)
        if adds:
            branch = tl.load(branch_pointer + own, mask=inside, other=0.0).to(tl.float32)
            d_gate += branch * dx
            tl.store(d_branch_pointer + own, gate * dx, mask=inside)
        tl.store(dx_pointer + own, dx, mask=inside)
    each = frame * width + columns
    tl.store(d_shift_pointer + each, tl.sum(d_shift, axis=0), mask=columns < width)
    tl.store(d_scale_pointer + each, tl.sum(d_scale, axis=0), mask=columns < width)
    if adds:
        tl.store(d_gate_pointer + each, tl.sum(d_gate, axis=0), mask=columns < width)

"""Launch of the Triton kernels of a layer: norms with modulation, maps of heads, reading from projections.

Those of `kernels.gpu.attention` are there.
"""

# P frames of all sequences and streams, N tokens of one frame, T tokens that read a state, H heads, D width,
# I = D / 2 pairs

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu.heads import map_heads_forward, map_heads_gradient
from kernels.gpu.launch import LaunchConfig, launch
from kernels.gpu.norm import modulate_forward, modulate_gradient
from kernels.gpu.recall import recall_forward, recall_gradient
from kernels.gpu.settings import LayerConfig, default_for, heads_default_for
from kernels.gpu.turned_norm import turned_norm_forward, turned_norm_gradient

EPS = 1e-6
"""Added to the variance that a norm divides by."""


def _frames_of(x: Tensor, axes: int) -> Tensor:
    """Return `x` with its leading axes as one, and `axes` more, copied only where its layout asks for it."""
    return x.flatten(0, -axes - 1) if x.dim() > axes else x.unsqueeze(0)


def _rows_of(x: Tensor) -> Tensor:
    """Return what modulates frames, `[..., 1, D]`, as `[P, D]` with adjacent features."""
    rows = _frames_of(x.squeeze(-2), 1)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _tokens_of(x: Tensor) -> Tensor:
    """Return `[..., N, D]` as `[P, N, D]` whose frames are not strided inside."""
    frames = _frames_of(x, 2)
    is_whole = frames.stride(-1) == 1 and frames.stride(-2) == frames.shape[-1]
    return frames if is_whole else frames.contiguous()


def _norm_sizes(frames: Tensor, rows: int) -> dict[str, int | float]:
    width = frames.shape[-1]
    sizes = {"num_tokens": frames.shape[1], "width": width, "padded": 1 << (width - 1).bit_length()}
    return sizes | {"rows": rows, "eps": EPS}


def _norm_options(launch_config: LaunchConfig, width: int) -> dict[str, int]:
    """Return the launch options for rows of so many features: one warp holds 1,024 of them at most."""
    warps = launch_config.num_warps * max(1, -(-width // 1024))
    return launch_config.options() | {"num_warps": min(16, 1 << (warps - 1).bit_length())}


def modulate(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    config: LayerConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `x + gate * branch`, or x if there is none, and its modulated norm in `dtype`.

    Shapes are those of `kernels.layers.add_modulate`.
    """
    config = config or default_for(x)
    frames, adds = _tokens_of(x), branch is not None and gate is not None
    added = _tokens_of(branch).contiguous() if branch is not None else frames
    gates = _rows_of(gate if gate is not None else scale)
    shifts, scales = _rows_of(shift), _rows_of(scale)
    out = x.new_empty(x.shape, dtype=dtype)
    total = x.new_empty(x.shape) if adds else x
    launch(
        modulate_forward,
        (len(frames), -(-frames.shape[1] // config.norm.block_size)),
        *(frames, added, gates, shifts, scales, total, out),
        *(frames.stride(0), gates.stride(0), shifts.stride(0), scales.stride(0)),
        **_norm_sizes(frames, config.norm.block_size),
        adds=adds,
        **_norm_options(config.norm, frames.shape[-1]),
    )
    return total, out


def modulate_backward(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    d_sum: Tensor | None,
    d_out: Tensor,
    config: LayerConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, branch, gate, shift and scale; those of branch and gate empty without them.

    Args:
        x: The sum, if there is a branch.
        branch: As in `modulate`, and so are `gate` and `scale`.
        gate: Of the branch.
        scale: Of the norm.
        d_sum: Gradient of the sum, or of what else x is used for; None is zero.
        d_out: Gradient of the modulated norm.
        config: Launch settings.
    """
    config = config or default_for(x)
    frames, adds = _tokens_of(x), branch is not None and gate is not None
    incoming = d_out.contiguous()
    carried = incoming if d_sum is None else d_sum.contiguous()
    added = _tokens_of(branch).contiguous() if branch is not None else frames
    gates, scales = _rows_of(gate if gate is not None else scale), _rows_of(scale)
    dx, d_shift, d_scale = x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)
    d_branch = x.new_empty(0) if branch is None else branch.new_empty(branch.shape)
    d_gate = x.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    launch(
        modulate_gradient,
        (len(frames),),
        *(frames, added, gates, scales, carried, incoming, dx, d_branch, d_gate, d_shift, d_scale),
        *(frames.stride(0), gates.stride(0), scales.stride(0)),
        **_norm_sizes(frames, config.norm_gradient.block_size),
        adds=adds,
        carries=d_sum is not None,
        stages=config.norm_gradient.num_stages,
        **_norm_options(config.norm_gradient, frames.shape[-1]),
    )
    return dx, d_branch, d_gate, d_shift, d_scale


def _turned_sizes(frames: Tensor, turn: Tensor, rows: int) -> dict[str, int | float]:
    return _norm_sizes(frames, rows) | {"head_pairs": turn.shape[-2]}


def turned_norm(
    x: Tensor, weight: Tensor, turn: Tensor, keeps: bool, config: LayerConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Return the norm (empty unless `keeps`) and the turned norm; see `kernels.layers.turned_norm`."""
    config = config or default_for(x)
    frames = _tokens_of(x).contiguous()
    normed, turned = x.new_empty(x.shape if keeps else 0), x.new_empty(x.shape)
    launch(
        turned_norm_forward,
        (len(frames), -(-frames.shape[1] // config.turned.block_size)),
        *(frames, weight.contiguous(), turn.contiguous(), normed, turned),
        **_turned_sizes(frames, turn, config.turned.block_size),
        keeps=keeps,
        **_norm_options(config.turned, frames.shape[-1]),
    )
    return normed, turned


def turned_norm_backward(
    x: Tensor,
    weight: Tensor,
    turn: Tensor,
    d_normed: Tensor | None,
    d_turned: Tensor,
    config: LayerConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight; `d_normed` is None where the norm was not kept."""
    config = config or default_for(x)
    frames, incoming = _tokens_of(x).contiguous(), d_turned.contiguous()
    dx, parts = x.new_empty(x.shape), weight.new_empty(len(frames), *weight.shape)
    launch(
        turned_norm_gradient,
        (len(frames),),
        *(frames, weight.contiguous(), turn.contiguous()),
        *(incoming if d_normed is None else d_normed.contiguous(), incoming, dx, parts),
        **_turned_sizes(frames, turn, config.turned_gradient.block_size),
        keeps=d_normed is not None,
        stages=config.turned_gradient.num_stages,
        **_norm_options(config.turned_gradient, frames.shape[-1]),
    )
    return dx, parts.sum(0)


def _turn_strides(turn: Tensor) -> tuple[int, int, int]:
    """Return the strides of frame, token and head of turns `[P, N, H or 1, I, 2]`; 0 for a shared one."""
    return turn.stride(0), turn.stride(1), turn.stride(2) if turn.shape[2] > 1 else 0


def _turns_of(turn: Tensor) -> Tensor:
    """Return turns `[..., N, H or 1, I, 2]` as `[P, N, H or 1, I, 2]` with adjacent pairs."""
    frames = _frames_of(turn, 4)
    is_whole = frames.stride(-1) == 1 and frames.stride(-2) == 2
    return frames if is_whole else frames.contiguous()


def heads_of(x: Tensor) -> Tensor:
    """Return `[..., N, H, D]` as `[P, N, H, D]` with adjacent features."""
    frames = _frames_of(x, 3)
    return frames if frames.stride(-1) == 1 else frames.contiguous()


def _span(frames: int, heads: int, programs: int) -> int:
    """Return how many frames one program of a gradient takes: no program has fewer than another."""
    return max(span for span in range(1, max(1, frames * heads // programs) + 1) if frames % span == 0)


def _map_sizes(x: Tensor, launch_config: LaunchConfig, programs: int) -> dict[str, int]:
    """Return the constants of a map of `x` `[P, N, H, D]`, cut into at least so many programs."""
    num_frames, tokens, heads, width = x.shape
    steps = -(-num_frames * tokens // launch_config.block_size)
    sizes = {"num_tokens": tokens, "num_heads": heads, "width": width, "block": launch_config.block_size}
    return sizes | {"span": max(1, steps * heads // programs)}


def _map_parts(x: Tensor, sizes: dict[str, int]) -> int:
    """Return how many spans of steps there are for each head."""
    return -(-x.shape[0] * x.shape[1] // (sizes["block"] * sizes["span"]))


def _angles_like(angles: Tensor, turn: Tensor) -> Tensor:
    """Return the gradient of angles `[P, T, H, I]`, summed over the streams and heads that share one."""
    by_stream = angles.unflatten(1, (-1, turn.shape[-4]))  # [P, S, N, H, I]
    shared = [1] if turn.shape[-3] > 1 else [1, 3]
    return by_stream.sum(shared, dtype=turn.dtype).reshape(turn.shape[:-1])


def map_heads(x: Tensor, weight: Tensor, turn: Tensor | None, config: LayerConfig | None = None) -> Tensor:
    """Return `[..., N, H, D]` in fp32; see `kernels.layers.map_heads`."""
    config = config or heads_default_for(x)
    frames = heads_of(x)
    turns = frames.new_empty(1, 1, 1, 1, 2) if turn is None else _turns_of(turn)
    sizes = _map_sizes(frames, config.heads, config.forward_programs)
    out = x.new_empty(x.shape, dtype=torch.float32)
    launch(
        map_heads_forward,
        (frames.shape[2], _map_parts(frames, sizes)),
        *(frames, weight.contiguous(), turns, out, *frames.stride()[:3], *_turn_strides(turns)),
        frames.shape[0] * frames.shape[1],
        **sizes,
        turns=turn is not None,
        precision=config.precision,
        **config.heads.options(),
    )
    return out


def map_heads_backward(
    x: Tensor, weight: Tensor, turn: Tensor | None, d_out: Tensor, config: LayerConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, the weight and the angles `[..., N, H or 1, I]` (empty without turns)."""
    config = config or heads_default_for(x)
    frames = heads_of(x)
    num_frames, tokens, heads, width = frames.shape
    turns = frames.new_empty(1, 1, 1, 1, 2) if turn is None else _turns_of(turn)
    sizes = _map_sizes(frames, config.heads_gradient, config.programs)
    parts = weight.new_empty(_map_parts(frames, sizes), *weight.shape)
    dx = x.new_empty(x.shape)
    d_angle = weight.new_empty(num_frames if turn is not None else 0, tokens, heads, width // 2)
    launch(
        map_heads_gradient,
        (heads, len(parts)),
        *(frames, weight.contiguous(), turns, d_out.contiguous(), dx, parts, d_angle),
        *(*frames.stride()[:3], *_turn_strides(turns), num_frames * tokens),
        **sizes,
        turns=turn is not None,
        precision=config.precision,
        **config.heads_gradient.options(),
    )
    return dx, parts.sum(0), d_angle if turn is None else _angles_like(d_angle, turn)


def recall(
    q: Tensor,
    weight: Tensor,
    turn: Tensor,
    state: Tensor,
    gate: Tensor,
    local: Tensor,
    config: LayerConfig | None = None,
) -> Tensor:
    """Return `[..., T, H, D]` in the dtype of `local`; see `kernels.layers.recall`."""
    config = config or heads_default_for(q)
    frames, near, turns = heads_of(q), heads_of(local), _turns_of(turn)
    num_frames, tokens, heads, width = frames.shape
    out = local.new_empty(local.shape)
    launch(
        recall_forward,
        (num_frames * heads,),
        *(frames, weight.contiguous(), turns, state.contiguous(), gate.contiguous(), near, out),
        *(*frames.stride()[:3], *_turn_strides(turns), *near.stride()[:3], width**-0.5),
        num_tokens=tokens,
        num_places=turns.shape[1],
        num_heads=heads,
        width=width,
        block=config.recall.block_size,
        precision=config.precision,
        **config.recall.options(),
    )
    return out


def recall_backward(
    q: Tensor,
    weight: Tensor,
    turn: Tensor,
    state: Tensor,
    gate: Tensor,
    d_out: Tensor,
    config: LayerConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, the weight, the angles `[..., N, H or 1, I]`, the state and the gate."""
    config = config or heads_default_for(q)
    frames, turns = heads_of(q), _turns_of(turn)
    num_frames, tokens, heads, width = frames.shape
    span = _span(num_frames, heads, config.programs)
    parts = weight.new_empty(num_frames // span, *weight.shape)
    dq, d_state, d_gate = q.new_empty(q.shape), state.new_empty(state.shape), gate.new_empty(gate.shape)
    # Beside tokens in bf16 so are these: what streams and heads that share an angle add is summed in fp32.
    angle_dtype = q.dtype if q.dtype == torch.bfloat16 else weight.dtype
    d_angle = weight.new_empty(*frames.shape[:-1], width // 2, dtype=angle_dtype)
    launch(
        recall_gradient,
        (heads, len(parts)),
        *(frames, weight.contiguous(), turns, state.contiguous(), gate.contiguous(), d_out.contiguous()),
        *(dq, parts, d_angle, d_state, d_gate),
        *(*frames.stride()[:3], *_turn_strides(turns), width**-0.5),
        num_tokens=tokens,
        num_places=turns.shape[1],
        num_heads=heads,
        width=width,
        block=config.recall_gradient.block_size,
        span=span,
        precision=config.precision,
        **config.recall_gradient.options(),
    )
    return dq, parts.sum(0), _angles_like(d_angle, turn), d_state, d_gate

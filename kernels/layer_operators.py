"""The Triton kernels of a layer as operators of PyTorch, which `torch.compile` and autograd pass through.

The gradient of cosines and sines is along the circle: what would change their length is left out, for they
are those of angles.
"""

# N tokens of one frame, T tokens that read a state, H heads, D width, I = D / 2 pairs; "..." any sizes

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels.operators import check_device, launcher

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# What a context has saved is not declared by PyTorch.


@cache
def layer_launcher() -> ModuleType:
    """Import the launch of a layer's kernels, or say why it cannot run."""
    launcher()
    from kernels.gpu import layers as triton_layers

    return triton_layers


@cache
def attend_launcher() -> ModuleType:
    """Import the launch of attention, or say why it cannot run."""
    launcher()
    from kernels.gpu.attention import frame as triton_attend

    return triton_attend


@cache
def window_launcher() -> ModuleType:
    """Import the launch of attention over a window, or say why it cannot run."""
    launcher()
    from kernels.gpu.attention import window_launch as triton_window

    return triton_window


def _circle_gradient(turn: Tensor, d_angle: Tensor) -> Tensor:
    """Return the gradient of cosines and sines `[..., I, 2]` of that of their angles `[..., I]`."""
    cos, sin = turn.unbind(-1)
    return torch.stack((-sin * d_angle, cos * d_angle), dim=-1)


@torch.library.custom_op("arl2::modulate", mutates_args=())
def modulate_triton(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `kernels.layers.modulate` does."""
    check_device("x", x)
    return layer_launcher().modulate(x, None, None, shift, scale, dtype)[1]


@modulate_triton.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op("arl2::modulate_gradient", mutates_args=())
def modulate_gradient(
    x: Tensor, scale: Tensor, d_out: Tensor, d_x: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, shift and scale; `d_x` is what x gets from elsewhere."""
    check_device("x", x)
    dx, _, _, d_shift, d_scale = layer_launcher().modulate_backward(x, None, None, scale, d_x, d_out)
    return dx, d_shift, d_scale


@modulate_gradient.register_fake
def _(x: Tensor, scale: Tensor, d_out: Tensor, d_x: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _save_modulate(
    ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, torch.dtype], output: Tensor
) -> None:
    x, _, scale, _ = inputs
    ctx.save_for_backward(x, scale)


def _modulate_gradient(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor | None, ...]:
    dx, d_shift, d_scale = modulate_gradient(*ctx.saved_tensors, d_out, None)
    return dx, d_shift, d_scale, None


modulate_triton.register_autograd(_modulate_gradient, setup_context=_save_modulate)


class ForkModulate(torch.autograd.Function):
    """x and its modulated norm; in the gradient, what comes back from both is added on the way."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return x, and what `kernels.layers.modulate` makes of it."""
        ctx.save_for_backward(x, scale)
        return x.view_as(x), modulate_triton(x, shift, scale, dtype)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: names say more
        ctx: FunctionCtx, d_x: Tensor, d_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, shift and scale."""
        dx, d_shift, d_scale = modulate_gradient(*ctx.saved_tensors, d_out, d_x)
        return dx, d_shift, d_scale, None


@torch.library.custom_op("arl2::add_modulate", mutates_args=())
def add_modulate_triton(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return what `kernels.layers.add_modulate` does."""
    check_device("x", x)
    return layer_launcher().modulate(x, branch, gate, shift, scale, dtype)


@add_modulate_triton.register_fake
def _(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op("arl2::add_modulate_gradient", mutates_args=())
def add_modulate_gradient(
    total: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, d_sum: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, branch, gate, shift and scale."""
    check_device("total", total)
    return layer_launcher().modulate_backward(total, branch, gate, scale, d_sum, d_out)


@add_modulate_gradient.register_fake
def _(
    total: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, d_sum: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    likes = (total, branch, gate, scale, scale)
    dx, d_branch, d_gate, d_shift, d_scale = (like.new_empty(like.shape) for like in likes)
    return dx, d_branch, d_gate, d_shift, d_scale


def _save_add_modulate(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, branch, gate, _, scale, _ = inputs
    ctx.save_for_backward(output[0], branch, gate, scale)


def _add_modulate_gradient(ctx: FunctionCtx, d_sum: Tensor, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return *add_modulate_gradient(*ctx.saved_tensors, d_sum, d_out), None


add_modulate_triton.register_autograd(_add_modulate_gradient, setup_context=_save_add_modulate)


@torch.library.custom_op("arl2::turned_norm", mutates_args=())
def turned_norm_triton(x: Tensor, weight: Tensor, turn: Tensor, keeps: bool) -> tuple[Tensor, Tensor]:
    """Return what `kernels.layers.turned_norm` does; without `keeps` the norm is empty."""
    check_device("x", x)
    return layer_launcher().turned_norm(x, weight, turn, keeps)


@turned_norm_triton.register_fake
def _(x: Tensor, weight: Tensor, turn: Tensor, keeps: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if keeps else 0), x.new_empty(x.shape)


@torch.library.custom_op("arl2::turned_norm_gradient", mutates_args=())
def turned_norm_gradient(
    x: Tensor, weight: Tensor, turn: Tensor, d_normed: Tensor | None, d_turned: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight."""
    check_device("x", x)
    return layer_launcher().turned_norm_backward(x, weight, turn, d_normed, d_turned)


@turned_norm_gradient.register_fake
def _(
    x: Tensor, weight: Tensor, turn: Tensor, d_normed: Tensor | None, d_turned: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save_turned_norm(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *saved, ctx.keeps = inputs
    ctx.save_for_backward(*saved)


def _turned_norm_gradient(ctx: FunctionCtx, d_normed: Tensor, d_turned: Tensor) -> tuple[Tensor | None, ...]:
    """The turns are those of places, which nobody learns."""
    kept = d_normed if ctx.keeps else None
    dx, d_weight = turned_norm_gradient(*ctx.saved_tensors, kept, d_turned)
    return dx, d_weight, None, None


turned_norm_triton.register_autograd(_turned_norm_gradient, setup_context=_save_turned_norm)


@torch.library.custom_op("arl2::map_heads", mutates_args=())
def map_heads_triton(x: Tensor, weight: Tensor, turn: Tensor | None) -> Tensor:
    """Return what `kernels.layers.map_heads` does."""
    check_device("x", x)
    return layer_launcher().map_heads(x, weight, turn)


@map_heads_triton.register_fake
def _(x: Tensor, weight: Tensor, turn: Tensor | None) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


@torch.library.custom_op("arl2::map_heads_gradient", mutates_args=())
def map_heads_gradient(
    x: Tensor, weight: Tensor, turn: Tensor | None, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, the weight and the angles `[..., N, H or 1, I]`, empty without turns."""
    check_device("x", x)
    return layer_launcher().map_heads_backward(x, weight, turn, d_out)


@map_heads_gradient.register_fake
def _(x: Tensor, weight: Tensor, turn: Tensor | None, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    angles = (0, x.shape[-3], x.shape[-2], x.shape[-1] // 2) if turn is None else turn.shape[:-1]
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(angles)


def _save_map_heads(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _map_heads_gradient(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, turn = ctx.saved_tensors
    dx, d_weight, d_angle = map_heads_gradient(x, weight, turn, d_out)
    return dx, d_weight, None if turn is None else _circle_gradient(turn, d_angle)


map_heads_triton.register_autograd(_map_heads_gradient, setup_context=_save_map_heads)


@torch.library.custom_op("arl2::recall", mutates_args=())
def recall_triton(
    q: Tensor, weight: Tensor, turn: Tensor, state: Tensor, gate: Tensor, local: Tensor
) -> Tensor:
    """Return what `kernels.layers.recall` does."""
    check_device("q", q)
    return layer_launcher().recall(q, weight, turn, state, gate, local)


@recall_triton.register_fake
def _(q: Tensor, weight: Tensor, turn: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> Tensor:
    return local.new_empty(local.shape)


@torch.library.custom_op("arl2::recall_gradient", mutates_args=())
def recall_gradient(
    q: Tensor, weight: Tensor, turn: Tensor, state: Tensor, gate: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, the weight, the angles `[..., N, H or 1, I]`, the state and the gate."""
    check_device("q", q)
    return layer_launcher().recall_backward(q, weight, turn, state, gate, d_out)


@recall_gradient.register_fake
def _(
    q: Tensor, weight: Tensor, turn: Tensor, state: Tensor, gate: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, d_weight, d_state, d_gate = (like.new_empty(like.shape) for like in (q, weight, state, gate))
    return dq, d_weight, weight.new_empty(turn.shape[:-1]), d_state, d_gate


def _save_recall(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _recall_gradient(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor, ...]:
    saved = ctx.saved_tensors
    dq, d_weight, d_angle, d_state, d_gate = recall_gradient(*saved, d_out)
    return dq, d_weight, _circle_gradient(saved[2], d_angle), d_state, d_gate, d_out


recall_triton.register_autograd(_recall_gradient, setup_context=_save_recall)


@torch.library.custom_op("arl2::attend", mutates_args=())
def attend_triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what `kernels.layers.attend` does."""
    check_device("q", q)
    return attend_launcher().attend(q, k, v)


@attend_triton.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("arl2::attend_gradient", mutates_args=())
def attend_gradient(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    check_device("q", q)
    return attend_launcher().attend_backward(q, k, v, d_out)


@attend_gradient.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_attend(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _attend_gradient(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor, ...]:
    return attend_gradient(*ctx.saved_tensors, d_out)


attend_triton.register_autograd(_attend_gradient, setup_context=_save_attend)


@torch.library.custom_op("arl2::attend_window", mutates_args=())
def attend_window_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    visible: Tensor,
    is_empty: Tensor,
    turn: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return what `kernels.layers.attend_window` does, and the logarithms of the sums of its softmax."""
    check_device("q", q)
    return window_launcher().attend_window(q, k, v, cached_k, cached_v, visible, is_empty, turn)


@attend_window_triton.register_fake
def _(q: Tensor, k: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    batch, frames, streams, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), rest[-1].new_empty(batch, heads, frames, streams * tokens)


@torch.library.custom_op("arl2::attend_window_gradient", mutates_args=())
def attend_window_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    visible: Tensor,
    is_empty: Tensor,
    turn: Tensor,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    check_device("q", q)
    cached = (cached_k, cached_v, visible, is_empty, turn)
    return window_launcher().attend_window_backward(q, k, v, *cached, out, log_sum, d_out)


@attend_window_gradient.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_attend_window(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _attend_window_gradient(ctx: FunctionCtx, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """The cached frames are those of a memory, which is handed on without gradients."""
    return *attend_window_gradient(*ctx.saved_tensors, d_out), *(None,) * 5


attend_window_triton.register_autograd(_attend_window_gradient, setup_context=_save_attend_window)

"""`commit` and `read` in Triton as operators of PyTorch: `torch.compile` passes through, gradients flow."""

# B batch, N tokens, H heads, K key width, V value width; "..." any leading sizes

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels.operators import check_device, launcher, scan_frames_gradient, scan_frames_triton


@cache
def _memory_launcher() -> ModuleType:
    """Import the kernels of `commit` and `read`, once `launcher` has said whether Triton is there."""
    launcher()
    from kernels.gpu import memory as triton_memory

    return triton_memory


@torch.library.custom_op("arl2::commit", mutates_args=())
def commit_triton(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """Return what `kernels.commit` does."""
    check_device(launcher(), "k", k)
    return _memory_launcher().commit(k, v, g, beta, state)


@commit_triton.register_fake
def _(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    return state.new_empty(state.shape)


def _save_commit(
    ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)


def _commit_gradient(ctx: FunctionCtx, d_final: Tensor) -> tuple[Tensor, ...]:
    """Take the commit as a scan over one frame, whose map is built again: play never asks for this."""
    k, v, g, beta, state = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    frame = [tensor.unsqueeze(1) for tensor in (k, v, g, beta)]
    before, _, transitions = scan_frames_triton(*frame, state)
    nothing = torch.zeros_like(before)
    *gradients, d_state = scan_frames_gradient(*frame, before, transitions, nothing, d_final)
    return *(gradient.squeeze(1) for gradient in gradients), d_state


commit_triton.register_autograd(_commit_gradient, setup_context=_save_commit)


@torch.library.custom_op("arl2::read", mutates_args=())
def read_triton(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> Tensor:
    """Return what `kernels.read` does."""
    check_device(launcher(), "q", q)
    return _memory_launcher().read(q, state, gate, local)


@read_triton.register_fake
def _(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(q.dtype, local.dtype), gate.dtype)
    return local.new_empty(local.shape, dtype=dtype)


@torch.library.custom_op("arl2::read_gradient", mutates_args=())
def read_gradient(q: Tensor, state: Tensor, gate: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, the state and the gate."""
    check_device(launcher(), "q", q)
    return _memory_launcher().read_backward(q, state, gate, d_out)


@read_gradient.register_fake
def _(q: Tensor, state: Tensor, gate: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), state.new_empty(state.shape), gate.new_empty(gate.shape)


def _save_read(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    q, state, gate, local = inputs
    ctx.save_for_backward(q, state, gate)
    ctx.local_dtype = local.dtype  # pyright: ignore[reportAttributeAccessIssue]


def _read_gradient(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor, ...]:
    saved = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return *read_gradient(*saved, d_out), d_out.to(ctx.local_dtype)  # pyright: ignore[reportAttributeAccessIssue]


read_triton.register_autograd(_read_gradient, setup_context=_save_read)

"""The Triton forms as operators of PyTorch, which `torch.compile` and autograd pass through.

Triton is imported by the first call, not by this module: it does not exist on every platform.
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width; "..." any leading sizes

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

WIDTHS = (16, 32, 64, 128)
"""Key and value widths that the Triton forms are built and tested for."""


@cache
def launcher() -> ModuleType:
    """Import the launch of `scan_frames`, or say why it cannot run."""
    try:
        from kernels.gpu import launch as triton_launch
    except ImportError as error:
        message = "the Triton form needs the package triton (Linux): pip install triton, or form='torch'"
        raise RuntimeError(message) from error
    return triton_launch


@cache
def memory_launcher() -> ModuleType:
    """Import the launch of `commit` and `read`, or say why it cannot run."""
    launcher()
    from kernels.gpu import memory as triton_memory

    return triton_memory


def _check_widths(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape[-1] not in WIDTHS:
            raise ValueError(
                f"{name} has width {tensor.shape[-1]}, but the Triton form takes {WIDTHS}: use form='torch'"
            )


def _check_dtypes(dtypes: tuple[torch.dtype, ...], **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes:
            known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{name} is {tensor.dtype}, but the Triton form takes {known}: use form='torch'")


def check_triton_can_write(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> None:
    """Raise a ValueError that says what the Triton form cannot take, and what to do instead."""
    _check_widths(k=k, v=v)
    _check_dtypes((torch.float32,), g=g, beta=beta, state=state)
    _check_dtypes((torch.float32, torch.bfloat16, torch.float16), k=k, v=v)


def check_triton_can_read(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> None:
    """Raise a ValueError that says what the Triton form cannot take, and what to do instead."""
    _check_widths(q=q, local=local)
    _check_dtypes((torch.float32,), state=state, gate=gate)
    _check_dtypes((torch.float32, torch.bfloat16, torch.float16), q=q, local=local)


def check_device(name: str, tensor: Tensor) -> None:
    """Raise a ValueError unless the Triton form can reach `tensor`."""
    if tensor.device.type != "cuda" and not launcher().INTERPRETED:
        raise ValueError(
            f"{name} is on {tensor.device}, but the Triton form runs on CUDA: use form='torch', "
            "or set TRITON_INTERPRET=1 before the start to run it slowly on a CPU"
        )


@torch.library.custom_op("arl2::scan_frames", mutates_args=())
def scan_frames_triton(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, precision: str = "tf32x3"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `kernels.scan_frames` does, and the frames' M `[B, F, H, K, K]`, for the gradient."""
    check_device("k", k)
    return launcher().forward(k, v, g, beta, state, launcher().default_for(k, v, precision))


@scan_frames_triton.register_fake
def _(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, precision: str = "tf32x3"
) -> tuple[Tensor, Tensor, Tensor]:
    lead = (k.shape[0], k.shape[1], k.shape[3], k.shape[4])  # [B, F, H, K]
    return (
        state.new_empty(*lead, v.shape[-1]),
        state.new_empty(state.shape),
        state.new_empty(*lead, k.shape[-1]),
    )


@torch.library.custom_op("arl2::scan_frames_gradient", mutates_args=())
def scan_frames_gradient(
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    before: Tensor,
    transitions: Tensor,
    d_before: Tensor,
    d_final: Tensor,
    precision: str = "tf32x3",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of k, v, g, beta and the first state."""
    check_device("k", k)
    incoming = (before, transitions, d_before, d_final)
    return launcher().backward(k, v, g, beta, *incoming, launcher().default_for(k, v, precision))


@scan_frames_gradient.register_fake
def _(
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    before: Tensor,
    transitions: Tensor,
    d_before: Tensor,
    d_final: Tensor,
    precision: str = "tf32x3",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (k.new_empty(k.shape), v.new_empty(v.shape), g.new_empty(g.shape), beta.new_empty(beta.shape))
    return *inputs, d_final.new_empty(d_final.shape)


def _save_scan(
    ctx: FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    k, v, g, beta, _, precision = inputs
    before, _, transitions = output
    ctx.save_for_backward(k, v, g, beta, before, transitions)
    ctx.precision = precision  # pyright: ignore[reportAttributeAccessIssue]


def _scan_gradient(
    ctx: FunctionCtx,
    d_before: Tensor | None,
    d_final: Tensor | None,
    _: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Nobody outside sees the transitions, so they have no gradient of their own."""
    saved = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    before = saved[4]
    if d_before is None:
        d_before = torch.zeros_like(before)
    if d_final is None:
        d_final = torch.zeros_like(before[:, 0])
    precision = ctx.precision  # pyright: ignore[reportAttributeAccessIssue]
    return *scan_frames_gradient(*saved, d_before, d_final, precision), None


scan_frames_triton.register_autograd(_scan_gradient, setup_context=_save_scan)


@torch.library.custom_op("arl2::commit", mutates_args=())
def commit_triton(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """Return what `kernels.commit` does."""
    check_device("k", k)
    return memory_launcher().commit(k, v, g, beta, state)


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
    check_device("q", q)
    return memory_launcher().read(q, state, gate, local)


@read_triton.register_fake
def _(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(q.dtype, local.dtype), gate.dtype)
    return local.new_empty(local.shape, dtype=dtype)


@torch.library.custom_op("arl2::read_gradient", mutates_args=())
def read_gradient(q: Tensor, state: Tensor, gate: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, the state and the gate."""
    check_device("q", q)
    return memory_launcher().read_backward(q, state, gate, d_out)


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

"""`scan_frames` in Triton as an operator of PyTorch: `torch.compile` passes through it, gradients flow.

Triton is imported by the first call, not by this module: it does not exist on every platform.
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

WIDTHS = (16, 32, 64, 128)
"""Key and value widths that the Triton forms are built and tested for."""


@cache
def launcher() -> ModuleType:
    """Import the kernels' launches, or say why they cannot run."""
    try:
        from kernels.gpu import launch as triton_launch
    except ImportError as error:
        message = "the Triton form needs the package triton (Linux): pip install triton, or form='torch'"
        raise RuntimeError(message) from error
    return triton_launch


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


def check_device(module: ModuleType, name: str, tensor: Tensor) -> None:
    """Raise a ValueError unless the Triton form can reach `tensor`."""
    if tensor.device.type != "cuda" and not module.INTERPRETED:
        raise ValueError(
            f"{name} is on {tensor.device}, but the Triton form runs on CUDA: use form='torch', "
            "or set TRITON_INTERPRET=1 before the start to run it slowly on a CPU"
        )


@torch.library.custom_op("arl2::scan_frames", mutates_args=())
def scan_frames_triton(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `kernels.scan_frames` does, and the frames' M `[B, F, H, K, K]`, for the gradient."""
    module = launcher()
    check_device(module, "k", k)
    return module.forward(k, v, g, beta, state)


@scan_frames_triton.register_fake
def _(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of k, v, g, beta and the first state."""
    module = launcher()
    check_device(module, "k", k)
    return module.backward(k, v, g, beta, before, transitions, d_before, d_final)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (k.new_empty(k.shape), v.new_empty(v.shape), g.new_empty(g.shape), beta.new_empty(beta.shape))
    return *inputs, d_final.new_empty(d_final.shape)


def _save(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    k, v, g, beta, _ = inputs
    before, _, transitions = output
    ctx.save_for_backward(k, v, g, beta, before, transitions)


def _gradient(
    ctx: torch.autograd.function.FunctionCtx,
    d_before: Tensor | None,
    d_final: Tensor | None,
    _: Tensor | None,
) -> tuple[Tensor, ...]:
    """Nobody outside sees the transitions, so they have no gradient of their own."""
    saved = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    before = saved[4]
    if d_before is None:
        d_before = torch.zeros_like(before)
    if d_final is None:
        d_final = torch.zeros_like(before[:, 0])
    return scan_frames_gradient(*saved, d_before, d_final)


scan_frames_triton.register_autograd(_gradient, setup_context=_save)

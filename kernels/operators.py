"""`scan_frames` in Triton as an operator of PyTorch: `torch.compile` passes through it, gradients flow.

Triton is imported by the first call, not by this module: it does not exist on every platform.
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

WIDTHS = (16, 32, 64)
"""Key and value widths that the Triton form is built and tested for."""


@cache
def _launcher() -> ModuleType:
    """Import the kernels, or say why they cannot run."""
    try:
        from kernels import triton_launch
    except ImportError as error:
        message = "the Triton form needs the package triton (Linux): pip install triton, or form='torch'"
        raise RuntimeError(message) from error
    where = "Triton's interpreter" if triton_launch.INTERPRETED else "CUDA"
    logging.getLogger(__name__).info("scan_frames: the Triton form, on %s", where)
    return triton_launch


def check_triton_can_run(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> None:
    """Raise a ValueError that says what the Triton form cannot take, and what to do instead."""
    for name, width in (("k", k.shape[-1]), ("v", v.shape[-1])):
        if width not in WIDTHS:
            raise ValueError(
                f"{name} has width {width}, but the Triton form takes {WIDTHS}: use form='torch'"
            )
    for name, tensor in (("k", k), ("g", g), ("beta", beta), ("state", state)):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}, but the Triton form takes float32: use form='torch'")
    if v.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"v is {v.dtype}, but the Triton form takes 32 or 16 bit: use form='torch'")


def _check_device(module: ModuleType, k: Tensor) -> None:
    if k.device.type != "cuda" and not module.INTERPRETED:
        raise ValueError(
            f"k is on {k.device}, but the Triton form runs on CUDA: use form='torch', "
            "or set TRITON_INTERPRET=1 before the start to run it slowly on a CPU"
        )


@torch.library.custom_op("arl2::scan_frames", mutates_args=())
def scan_frames_triton(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `kernels.scan_frames` does, and the frames' M `[B, F, H, K, K]`, for the gradient."""
    module = _launcher()
    _check_device(module, k)
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
    module = _launcher()
    _check_device(module, k)
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

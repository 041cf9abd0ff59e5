"""Chooses the form in which an operator runs: token by token, in PyTorch, or in Triton.

The choice is an argument; without one it is the environment variable ARL2_KERNELS (`auto`, `reference`,
`torch` or `triton`), and without that `auto`: Triton on CUDA, PyTorch elsewhere.
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width

from __future__ import annotations

import os

import torch
from torch import Tensor

from kernels.frame_maps import scan_frames as scan_frames_torch
from kernels.operators import check_triton_can_run, scan_frames_triton
from kernels.reference import scan_frames as scan_frames_reference

FORMS = ("auto", "reference", "torch", "triton")

DEFAULT_FORM = os.environ.get("ARL2_KERNELS", "auto")


def choose_form(k: Tensor, form: str | None = None) -> str:
    """Return the form that computes with `k`: `reference`, `torch` or `triton`."""
    form = DEFAULT_FORM if form is None else form
    if form not in FORMS:
        raise ValueError(f"form (or ARL2_KERNELS) is {form!r}, expected one of {', '.join(FORMS)}")
    if form != "auto":
        return form
    # Who computes in fp64 wants its digits, which tensor cores do not give.
    return "triton" if k.device.type == "cuda" and k.dtype != torch.float64 else "torch"


def _check(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> None:
    """Raise a ValueError that names the argument whose shape does not fit `k`."""
    if k.dim() != 5:
        raise ValueError(f"k has shape {tuple(k.shape)}, expected [batch, frames, tokens, heads, width]")
    batch, _, _, heads, width = k.shape
    expected = {
        "v": (v, (*k.shape[:-1], v.shape[-1])),
        "g": (g, k.shape[:-1]),
        "beta": (beta, k.shape[:-1]),
        "state": (state, (batch, heads, width, v.shape[-1])),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != torch.Size(shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)} with this k")
        if tensor.device != k.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {k.device}, where k is")


def scan_frames(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, form: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return the state before every frame and the one after the last.

    All frames' maps are built in parallel; only a product per frame is sequential.

    Args:
        k: `[B, F, N, H, K]`, keys of unit length.
        v: `[B, F, N, H, V]`, values.
        g: `[B, F, N, H]`, logarithm of the decay, at most 0.
        beta: `[B, F, N, H]`, write strength in [0, 2].
        state: `[B, H, K, V]`, the state before the first frame.
        form: One of `FORMS`, or None for the environment's choice.

    Returns:
        States before each frame `[B, F, H, K, V]`, and the final state `[B, H, K, V]`.
    """
    _check(k, v, g, beta, state)
    chosen = choose_form(k, form)
    if chosen == "triton":
        check_triton_can_run(k, v, g, beta, state)
        before, final, _ = scan_frames_triton(k, v, g, beta, state)
        return before, final
    if chosen == "reference":
        return scan_frames_reference(k, v, g, beta, state)
    return scan_frames_torch(k, v, g, beta, state)

"""The operators, and the form in which each runs: token by token, in PyTorch, or in Triton.

The form is an argument; without one it is the environment variable ARL2_KERNELS (`auto`, `reference`, `torch`
or `triton`), and without that `auto`: PyTorch on a CPU, and on CUDA what `ON_CUDA` says. What was chosen, and
why, is logged once. Nothing falls back: asking for Triton where it cannot run is an error.
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width; "..." any leading sizes

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from kernels import frame_maps, reference, selection, torch_scan
from kernels.checks import check_read, check_write
from kernels.operators import (
    check_triton_can_read,
    check_triton_can_write,
    commit_triton,
    read_triton,
    scan_frames_triton,
)

ON_CUDA = {
    "scan_frames": ("triton", "twice as fast as the torch form on an H100"),
    "commit": ("triton", "twice as fast as flash-linear-attention on an H100, at (1, 1560, 12, 128)"),
    "read": ("triton", "3 times as fast as the torch form on an H100, at (1024, 160, 6, 64)"),
}
"""What `auto` means on CUDA, and why."""

LONG_FRAME = 512
"""Tokens above which a frame is scanned in spans, as `commit` writes it: blocks of video transformers have
thousands."""

INSIDE_A_GRAPH = {"read": ("torch", "inside a compiled graph: what it fuses there has not been compared yet")}
"""What it means instead in what `torch.compile` compiles."""


@cache
def announce(operator: str, form: str, reason: str) -> None:
    """Log once what was chosen, and why."""
    logging.getLogger("kernels").info("%s: the %s form (%s)", operator, form, reason)


def _choose(operator: str, x: Tensor, form: str | None) -> tuple[str, str]:
    """Return the form, and the reason in words."""
    source = "ARL2_KERNELS" if form is None else "the argument"
    form = selection.ACTIVE.form if form is None else form
    if form not in selection.FORMS:
        raise ValueError(f"form (or ARL2_KERNELS) is {form!r}, expected one of {', '.join(selection.FORMS)}")
    if form != "auto":
        return form, f"{source} asks for it"
    if x.device.type != "cuda":
        return "torch", f"on {x.device.type}"
    if x.dtype == torch.float64:  # who computes in fp64 wants its digits, which tensor cores do not give
        return "torch", "on CUDA, in fp64"
    if operator in INSIDE_A_GRAPH and torch.compiler.is_compiling():
        return INSIDE_A_GRAPH[operator]
    return ON_CUDA[operator]


def choose_form(operator: str, x: Tensor, form: str | None = None) -> str:
    """Return the form in which `operator` computes with `x`: `reference`, `torch` or `triton`."""
    chosen, reason = _choose(operator, x, form)
    if not torch.compiler.is_compiling():
        announce(operator, chosen, reason)
    return chosen


def commit(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, form: str | None = None) -> Tensor:
    """Write one frame's tokens into the state, and return it; nobody reads it in between.

    Args:
        k: `[B, N, H, K]`, keys of unit length.
        v: `[B, N, H, V]`, values.
        g: `[B, N, H]`, logarithm of the decay, at most 0; fp32 or fp64.
        beta: `[B, N, H]`, write strength in [0, 2]; fp32 or fp64.
        state: `[B, H, K, V]`, the state before the frame, fp32 or fp64; left as it was.
        form: One of `kernels.selection.FORMS`, or None for the environment's choice.

    Returns:
        The state after the frame, `[B, H, K, V]`, in the dtype of `state`.

    Raises:
        ValueError: A shape, dtype, device or stride does not fit, the form is unknown or cannot take it, or,
            on a CPU, k holds NaN; the message names the argument.
    """
    check_write(k, v, g, beta, state, "batch, tokens, heads, width")
    chosen = choose_form("commit", k, form)
    if chosen == "triton":
        check_triton_can_write(k, v, g, beta, state)
        return commit_triton(k, v, g, beta, state)
    k, v, g, beta = (tensor.to(state.dtype) for tensor in (k, v, g, beta))
    module = reference if chosen == "reference" else frame_maps
    return module.commit(k, v, g, beta, state)


def read(q: Tensor, state: Tensor, gate: Tensor, local: Tensor, form: str | None = None) -> Tensor:
    """Return `local + gate * K^-0.5 * S^T q`, for every token and head.

    Args:
        q: `[..., N, H, K]`, queries.
        state: `[..., H, K, V]`, the state that all tokens of a frame read; Triton takes fp32.
        gate: `[..., N, H]`, a factor: what the gate lets through, and 1 / |q| unless q is of unit length;
            Triton takes fp32.
        local: `[..., N, H, V]`, what the reading is added to.
        form: One of `kernels.selection.FORMS`, or None for the environment's choice.

    Returns:
        `[..., N, H, V]`, in the widest dtype of q, gate and local.

    Raises:
        ValueError: A shape, dtype, device or stride does not fit, or the form is unknown or cannot take it;
            the message names the argument.
    """
    check_read(q, state, gate, local)
    chosen = choose_form("read", q, form)
    if chosen == "triton":
        check_triton_can_read(q, state, gate, local)
        return read_triton(q, state, gate, local)
    module = reference if chosen == "reference" else frame_maps
    return module.read(q, state, gate, local)


def scan_frames(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, form: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return the state before every frame and the one after the last.

    All frames' maps are built in parallel; only a product per frame is sequential.

    Args:
        k: `[B, F, N, H, K]`, keys of unit length.
        v: `[B, F, N, H, V]`, values.
        g: `[B, F, N, H]`, logarithm of the decay, at most 0; fp32 or fp64.
        beta: `[B, F, N, H]`, write strength in [0, 2]; fp32 or fp64.
        state: `[B, H, K, V]`, the state before the first frame, fp32 or fp64.
        form: One of `kernels.selection.FORMS`, or None for the environment's choice.

    Returns:
        States before each frame `[B, F, H, K, V]`, and the final state `[B, H, K, V]`, both in the dtype of
        `state`.

    Raises:
        ValueError: As for `commit`.
    """
    check_write(k, v, g, beta, state, "batch, frames, tokens, heads, width")
    chosen = choose_form("scan_frames", k, form)
    if chosen != "reference" and k.shape[2] > LONG_FRAME:
        return _scan_spans(k, v, g, beta, state, form)
    if chosen == "triton":
        check_triton_can_write(k, v, g, beta, state)
        precision = selection.ACTIVE.scan_precision
        before, final, _ = scan_frames_triton(k, v, g, beta, state, precision)
        return before, final
    k, v, g, beta = (tensor.to(state.dtype) for tensor in (k, v, g, beta))
    module = reference if chosen == "reference" else torch_scan
    return module.scan_frames(k, v, g, beta, state)


def _scan_spans(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, form: str | None
) -> tuple[Tensor, Tensor]:
    """Return what `scan_frames` does, of frames that are scanned as several shorter ones each.

    The products over pairs of tokens grow with the square of a frame's tokens. Tokens of strength and
    decay 0, which change nothing, fill up the last span.
    """
    spans = -(-k.shape[2] // frame_maps.SPAN)
    width = -(-k.shape[2] // spans)
    missing = spans * width - k.shape[2]
    k, v = (functional.pad(each, (0, 0, 0, 0, 0, missing)) for each in (k, v))
    g, beta = (functional.pad(each, (0, 0, 0, missing)) for each in (g, beta))
    k, v, g, beta = (each.unflatten(2, (spans, width)).flatten(1, 2) for each in (k, v, g, beta))
    before, final = scan_frames(k, v, g, beta, state, form)
    return before[:, ::spans].contiguous(), final

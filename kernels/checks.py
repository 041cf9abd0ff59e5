"""Argument checks of the operators, alike for every form.

Shapes, devices, dtypes and layout are checked at every call; they cost no look at the numbers. NaN in the
keys is looked for on a CPU only, and not while compiling: on a GPU the answer would have to be waited for.
There a NaN shows in the state, which is NaN from then on.
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width

from __future__ import annotations

import torch
from torch import Tensor

WIDE = (torch.float32, torch.float64)
FLOATS = (*WIDE, torch.bfloat16, torch.float16)


def check_tensors(**arguments: Tensor) -> None:
    """Raise a TypeError that names the argument which is no tensor."""
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor):
            raise TypeError(f"{name} is a {type(argument).__name__}, expected a tensor of PyTorch")


def check_layout(like: Tensor, tensors: dict[str, tuple[Tensor, tuple[int, ...]]], first: str) -> None:
    """Raise a ValueError that names the argument which does not fit `like`, the argument called `first`."""
    for name, (tensor, shape) in tensors.items():
        if tensor.shape != torch.Size(shape):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)} with this {first}"
            )
        if tensor.device != like.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {like.device}, where {first} is")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}, expected a floating type of at most 64 bit")


def check_adjacent(**tensors: Tensor) -> None:
    """Raise a ValueError for a tensor whose features do not lie side by side in memory."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(
                f"{name} has stride {tensor.stride(-1)} over its features, expected 1: "
                f"call {name}.contiguous()"
            )


def check_no_nan(k: Tensor) -> None:
    """Raise a ValueError for NaN in the keys, on a CPU."""
    if k.device.type == "cpu" and not torch.compiler.is_compiling() and bool(k.detach().sum().isnan()):
        raise ValueError("k holds NaN, expected keys of unit length: was a key of length 0 divided by it?")


def _is_sound(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, dims: int) -> bool:
    """Return whether `check_write` has nothing to say; quickly: a small commit feels many looks."""
    lead, width, device = k.shape[:-1], v.shape[-1] if v.dim() else 0, k.device
    return (
        k.dim() == dims
        and v.shape[:-1] == g.shape == beta.shape == lead
        and state.shape == (lead[0], lead[-1], k.shape[-1], width)
        and k.numel() > 0
        and width > 0
        and v.device == g.device == beta.device == state.device == device
        and k.dtype in FLOATS
        and v.dtype in FLOATS
        and g.dtype in WIDE
        and beta.dtype in WIDE
        and state.dtype in WIDE
        and k.stride(-1) == v.stride(-1) == state.stride(-1) == 1
    )


def check_write(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, axes: str) -> None:
    """Check the arguments of `commit` or `scan_frames`; `axes` names those of k."""
    check_tensors(k=k, v=v, g=g, beta=beta, state=state)
    dims = len(axes.split(", "))
    if _is_sound(k, v, g, beta, state, dims):
        check_no_nan(k)
        return
    if k.dim() != dims:
        raise ValueError(f"k has shape {tuple(k.shape)}, expected [{axes}]")
    width = v.shape[-1] if v.dim() else 0
    *lead, heads, key_width = k.shape
    expected = {
        "k": (k, tuple(k.shape)),
        "v": (v, (*lead, heads, width)),
        "g": (g, (*lead, heads)),
        "beta": (beta, (*lead, heads)),
        "state": (state, (k.shape[0], heads, key_width, width)),
    }
    check_layout(k, expected, "k")
    if 0 in k.shape or width == 0:
        raise ValueError(f"k has shape {tuple(k.shape)} and v width {width}, expected at least 1 of each")
    for name, tensor in (("g", g), ("beta", beta), ("state", state)):
        if tensor.dtype not in WIDE:
            raise ValueError(f"{name} is {tensor.dtype}, expected float32 or float64")
    check_adjacent(k=k, v=v, state=state)
    check_no_nan(k)


def _can_read(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> bool:
    """Return whether `check_read` has nothing to say; as quickly as `_is_sound`."""
    return (
        state.shape[:-3] == q.shape[:-3]
        and state.shape[-3:-1] == q.shape[-2:]
        and local.shape[:-1] == gate.shape == q.shape[:-1]
        and local.shape[-1] == state.shape[-1]
        and q.numel() > 0
        and state.numel() > 0
        and state.device == gate.device == local.device == q.device
        and q.dtype in FLOATS
        and state.dtype in FLOATS
        and gate.dtype in FLOATS
        and local.dtype in FLOATS
        and q.stride(-1) == state.stride(-1) == local.stride(-1) == 1
    )


def check_read(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> None:
    """Check the arguments of `read`."""
    check_tensors(q=q, state=state, gate=gate, local=local)
    if q.dim() < 3:
        raise ValueError(f"q has shape {tuple(q.shape)}, expected [..., tokens, heads, width]")
    width = state.shape[-1] if state.dim() else 0
    *lead, tokens, heads, key_width = q.shape
    if _can_read(q, state, gate, local):
        return
    expected = {
        "q": (q, tuple(q.shape)),
        "state": (state, (*lead, heads, key_width, width)),
        "gate": (gate, (*lead, tokens, heads)),
        "local": (local, (*lead, tokens, heads, width)),
    }
    check_layout(q, expected, "q")
    if 0 in q.shape or width == 0:
        raise ValueError(f"q has shape {tuple(q.shape)} and local width {width}, expected at least 1 of each")
    check_adjacent(q=q, state=state, local=local)

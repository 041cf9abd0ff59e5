"""Argument checks of a layer's operators: what every form asks for, and what the Triton forms take."""

# N tokens of one frame, T tokens that read a state, H heads, D width, I = D / 2 pairs; "..." any sizes
# B batch, F frames, S streams, W window

from __future__ import annotations

import torch
from torch import Tensor

from kernels.checks import check_layout, check_tensors

WIDTHS = (32, 64, 128)
"""Widths of a head that the Triton forms are built and tested for."""
NARROW_WIDTHS = (32, 64)
"""The same in fp32, where a map of 128 x 128 and a state do not fit into shared memory beside each other."""
MAX_WIDTH = 4096
"""Features that a norm in Triton holds at once."""
MAX_TOKENS = 128
"""Tokens of a frame that attention in Triton holds at once."""
MAX_BYTES = 128 * 128 * 2
"""Bytes that one head of a frame may take there: four such tensors are in the memory of a program."""

NARROW = (torch.float32, torch.bfloat16, torch.float16)


def widths_of(dtype: torch.dtype) -> tuple[int, ...]:
    """Return the widths of a head that the Triton forms take in a number format."""
    return NARROW_WIDTHS if dtype == torch.float32 else WIDTHS


def holds_window(q: Tensor) -> bool:
    """Return whether attention over a window runs in Triton; on heads of 128 it read what it may not."""
    return q.shape[-1] in NARROW_WIDTHS


def holds_frame(x: Tensor) -> bool:
    """Return whether `attend` in Triton takes frames of so many tokens, `[..., N, H, D]`."""
    tokens, _, width = x.shape[-3:] if x.dim() >= 3 else (1, 1, x.shape[-1])
    return tokens <= MAX_TOKENS and tokens * width * x.element_size() <= MAX_BYTES


def check_dtypes(dtypes: tuple[torch.dtype, ...], **tensors: Tensor | None) -> None:
    """Raise a ValueError that says what the Triton form cannot take, and what to do instead."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in dtypes:
            known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{name} is {tensor.dtype}, but the Triton form takes {known}: use form='torch'")


def check_heads(name: str, x: Tensor, weight: Tensor, turn: Tensor | None) -> None:
    """Check what `map_heads` and `recall` share."""
    check_tensors(**{name: x, "weight": weight}, **({} if turn is None else {"turn": turn}))
    if x.dim() < 3 or 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected [..., tokens, heads, width]")
    *lead, tokens, heads, width = x.shape
    expected = {name: (x, tuple(x.shape)), "weight": (weight, (heads, width, width))}
    if turn is not None:
        places = turn.shape[-4] if turn.dim() >= 4 else 0
        if places == 0 or tokens % places:
            raise ValueError(
                f"turn has shape {tuple(turn.shape)}, expected turns of {tokens} tokens or a part"
            )
        own = turn.shape[-3] if turn.shape[-3] == 1 else heads
        expected["turn"] = (turn, (*lead, places, own, width // 2, 2))
    check_layout(x, expected, name)


def check_fused_heads(name: str, x: Tensor, **wide: Tensor | None) -> None:
    """Check what only the Triton forms of `map_heads` and `recall` ask for."""
    if x.shape[-1] not in widths_of(x.dtype):
        raise ValueError(
            f"{name} has width {x.shape[-1]}, but the Triton form takes {widths_of(x.dtype)} in {x.dtype}: "
            "use form='torch'"
        )
    check_dtypes(NARROW, **{name: x})
    check_dtypes((torch.float32,), **wide)


def check_modulation(x: Tensor, **rows: Tensor) -> None:
    """Check what the norms with modulation share: a row for each frame."""
    check_tensors(x=x, **rows)
    if x.dim() < 2 or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [..., tokens, width]")
    shape = (*x.shape[:-2], 1, x.shape[-1])
    check_layout(x, {"x": (x, tuple(x.shape))} | {name: (row, shape) for name, row in rows.items()}, "x")


def check_fused_norm(x: Tensor, **rows: Tensor) -> None:
    """Check what only the Triton forms of norms ask for."""
    check_dtypes(NARROW, x=x, **rows)
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(
            f"x has width {x.shape[-1]}, but the Triton form takes at most {MAX_WIDTH}: use form='torch'"
        )


def check_fused_frame(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check what only the Triton form of `attend` asks for."""
    check_fused_heads("q", q)
    check_dtypes((q.dtype,), k=k, v=v)
    if not holds_frame(q):
        size = f"{q.shape[-3]} tokens of {q.shape[-1] * q.element_size()} bytes"
        limits = f"at most {MAX_TOKENS} and {MAX_BYTES} bytes in all"
        raise ValueError(f"q has {size}, but the Triton form takes {limits}: use form='torch'")


def check_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    visible: Tensor,
    is_empty: Tensor,
    turn: Tensor,
) -> None:
    """Check the arguments of `kernels.layers.attend_window`."""
    check_tensors(q=q, k=k, v=v, cached_k=cached_k, cached_v=cached_v, turn=turn)
    check_tensors(visible=visible, is_empty=is_empty)
    if q.dim() != 6 or 0 in q.shape:
        raise ValueError(
            f"q has shape {tuple(q.shape)}, expected [batch, frames, streams, tokens, heads, width]"
        )
    batch, frames, _, *token = q.shape
    slots = turn.shape[0] if turn.dim() == 3 else 0
    if slots < 2:
        raise ValueError(f"turn has shape {tuple(turn.shape)}, expected [window + 1, {token[-1] // 2}, 2]")
    expected = {name: (each, tuple(q.shape)) for name, each in (("q", q), ("k", k), ("v", v))}
    cached = (batch, slots, *token)
    expected |= {"cached_k": (cached_k, cached), "cached_v": (cached_v, cached)}
    check_layout(q, expected | {"turn": (turn, (slots, token[-1] // 2, 2))}, "q")
    flags = {"visible": (visible, (batch, frames, slots)), "is_empty": (is_empty, (batch,))}
    for name, (flag, shape) in flags.items():
        if flag.shape != torch.Size(shape) or flag.dtype != torch.bool or flag.device != q.device:
            raise ValueError(
                f"{name} has shape {tuple(flag.shape)}, {flag.dtype} on {flag.device}, expected {shape}, "
                f"torch.bool on {q.device} with this q"
            )


def check_fused_window(q: Tensor, turn: Tensor, **tokens: Tensor) -> None:
    """Check what only the Triton form of `attend_window` asks for; `tokens` are its keys and values."""
    check_fused_heads("q", q)
    if not holds_window(q):
        raise ValueError(
            f"q has width {q.shape[-1]}, but the Triton form of attend_window takes {NARROW_WIDTHS}: "
            "use form='torch'"
        )
    check_dtypes((q.dtype,), **tokens)
    check_dtypes((torch.float32,), turn=turn)

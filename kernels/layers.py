"""The operators of a layer, each one pass over the tokens, and the form in which each runs.

Beside the reference in PyTorch there is one in Triton. On CUDA `auto` is what `ON_CUDA` says; who asks
`is_fused` first can keep to a composition of PyTorch's own operators where Triton does not run.
"""

# N tokens of one frame, T tokens that read a state, H heads, D width, I = D / 2 pairs; "..." any sizes

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels import layer_reference, selection
from kernels.checks import check_layout, check_tensors
from kernels.dispatch import announce
from kernels.layer_checks import (
    MAX_WIDTH,
    NARROW,
    check_dtypes,
    check_fused_frame,
    check_fused_heads,
    check_fused_norm,
    check_fused_window,
    check_heads,
    check_modulation,
    check_window,
    holds_frame,
    holds_window,
    widths_of,
)
from kernels.layer_operators import (
    ForkModulate,
    add_modulate_triton,
    attend_triton,
    attend_window_triton,
    map_heads_triton,
    modulate_triton,
    recall_triton,
    turned_norm_triton,
)

NORMS = ("modulate", "add_modulate", "turned_norm")
OPERATORS = ("modulate", "add_modulate", "turned_norm", "map_heads", "recall", "attend", "attend_window")
ON_CUDA = {
    "auto": dict.fromkeys(OPERATORS, ("torch", "on CUDA, where one frame at a time was not timed yet")),
    selection.IN_TRAINING: dict.fromkeys(OPERATORS, ("triton", "in training on CUDA, measured to be faster")),
}
"""What `auto` means on CUDA and why, in play and in training (docs/experiments/training.md)."""


def choose_form(operator: str, x: Tensor, form: str | None = None) -> str:
    """Return the form in which `operator` computes with `x`: `reference`, `torch` or `triton`."""
    chosen, reason = _choose(operator, x, form)
    if not torch.compiler.is_compiling():
        announce(operator, chosen, reason)
    return chosen


def _choose(operator: str, x: Tensor, form: str | None) -> tuple[str, str]:
    if form is not None and form not in selection.FORMS:
        raise ValueError(f"form is {form!r}, expected one of {', '.join(selection.FORMS)}")
    active = selection.ACTIVE
    for asked, source in (
        (form, "the argument"),
        (active.layers, "the selection"),
        (active.form, "ARL2_KERNELS"),
    ):
        if asked not in (None, "auto", selection.IN_TRAINING):
            return asked, f"{source} asks for it"
    if x.device.type != "cuda":
        return "torch", f"on {x.device.type}"
    if x.dtype == torch.float64:
        return "torch", "on CUDA, in fp64"
    has_width = x.shape[-1] <= MAX_WIDTH if operator in NORMS else x.shape[-1] in widths_of(x.dtype)
    if not has_width:
        return "torch", f"width {x.shape[-1]} is none of the Triton form's"
    if operator == "attend" and not holds_frame(x):
        return "torch", "the Triton form holds no frame so large"
    if operator == "attend_window" and not holds_window(x):
        return "torch", "the Triton form takes no heads so wide"
    return ON_CUDA[active.layers][operator]


def is_fused(operator: str, x: Tensor) -> bool:
    """Return whether `operator` would run in Triton with `x`."""
    active = selection.ACTIVE
    if not x.is_cuda and active.layers == active.form == "auto":  # quickly: a frame of play asks often
        return False
    return choose_form(operator, x) == "triton"


def modulate(
    x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype | None = None, form: str | None = None
) -> Tensor:
    """Return LayerNorm of tokens times `scale` plus `shift`; statistics are in fp32 at least.

    Args:
        x: `[..., N, D]`.
        shift: `[..., 1, D]`.
        scale: `[..., 1, D]`.
        dtype: Of what is returned; None is that of x.
        form: One of `kernels.selection.FORMS`, or None for what is selected.

    Returns:
        `[..., N, D]`.

    Raises:
        ValueError: A shape, dtype or device does not fit, or the form is unknown or cannot take it; the
            message names the argument.
    """
    check_modulation(x, shift=shift, scale=scale)
    dtype = x.dtype if dtype is None else dtype
    if choose_form("modulate", x, form) != "triton":
        return layer_reference.modulate(x, shift, scale, dtype)
    check_fused_norm(x, shift=shift, scale=scale)
    return modulate_triton(x, shift, scale, dtype)


def fork_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype | None = None, form: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return x and what `modulate` makes of it: who uses both has their gradients added on the way.

    Args and errors are those of `modulate`.
    """
    check_modulation(x, shift=shift, scale=scale)
    dtype = x.dtype if dtype is None else dtype
    if choose_form("modulate", x, form) != "triton":
        return x, layer_reference.modulate(x, shift, scale, dtype)
    check_fused_norm(x, shift=shift, scale=scale)
    return ForkModulate.apply(x, shift, scale, dtype)  # pyright: ignore[reportReturnType]


def add_modulate(
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    dtype: torch.dtype | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `x + gate * branch`, and what `modulate` makes of it.

    Args:
        x: `[..., N, D]`, the residual stream.
        branch: `[..., N, D]`, what is added to it.
        gate: `[..., 1, D]`.
        shift: `[..., 1, D]`.
        scale: `[..., 1, D]`.
        dtype: Of the modulated norm; None is that of x.
        form: One of `kernels.selection.FORMS`, or None for what is selected.

    Returns:
        The sum in the dtype of x, and its modulated norm, `[..., N, D]` each.

    Raises:
        ValueError: As for `modulate`.
    """
    check_modulation(x, gate=gate, shift=shift, scale=scale)
    check_tensors(branch=branch)
    check_layout(x, {"branch": (branch, tuple(x.shape))}, "x")
    dtype = x.dtype if dtype is None else dtype
    if choose_form("add_modulate", x, form) != "triton":
        return layer_reference.add_modulate(x, branch, gate, shift, scale, dtype)
    check_fused_norm(x, branch=branch, gate=gate, shift=shift, scale=scale)
    return add_modulate_triton(x, branch, gate, shift, scale, dtype)


def turned_norm(
    x: Tensor, weight: Tensor, turn: Tensor, *, keeps: bool = True, form: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return RMSNorm of all heads' features together, as it is and with each head's pairs turned.

    Args:
        x: `[..., N, E]`, E = H * D.
        weight: `[E]`.
        turn: `[N, I, 2]`, cosine and sine of the tokens' places, which have no gradient.
        keeps: Whether the norm that is not turned is wanted too; if not it is empty in Triton.
        form: One of `kernels.selection.FORMS`, or None for what is selected.

    Returns:
        The norm and the turned norm, `[..., N, E]` each in the dtype of x.

    Raises:
        ValueError: As for `modulate`.
    """
    check_tensors(x=x, weight=weight, turn=turn)
    if x.dim() < 2 or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [..., tokens, width]")
    tokens, width = x.shape[-2:]
    pairs = turn.shape[-2] if turn.dim() == 3 else 0
    if pairs == 0 or width % (2 * pairs):
        raise ValueError(
            f"turn has shape {tuple(turn.shape)}, expected turns of heads that make {width} features"
        )
    check_layout(
        x, {"x": (x, tuple(x.shape)), "weight": (weight, (width,)), "turn": (turn, (tokens, pairs, 2))}, "x"
    )
    if choose_form("turned_norm", x, form) != "triton":
        return layer_reference.turned_norm(x, weight, turn)
    check_fused_norm(x, weight=weight)
    check_dtypes((torch.float32,), turn=turn)
    return turned_norm_triton(x, weight, turn, keeps)


def map_heads(x: Tensor, weight: Tensor, turn: Tensor | None = None, form: str | None = None) -> Tensor:
    """Map the features of each head; with `turn`, turned in pairs and of unit length, as keys are written.

    Args:
        x: `[..., N, H, D]`.
        weight: `[H, D out, D in]`.
        turn: `[..., N, H or 1, I, 2]`, cosine and sine of each pair's angle; the gradient goes to the angle.
        form: One of `kernels.selection.FORMS`, or None for what is selected.

    Returns:
        `[..., N, H, D]` in the dtype of `weight`.

    Raises:
        ValueError: A shape, dtype or device does not fit, or the form is unknown or cannot take it; the
            message names the argument.
    """
    check_heads("x", x, weight, turn)
    if turn is not None and turn.shape[-4] != x.shape[-3]:
        raise ValueError(f"turn has shape {tuple(turn.shape)}, expected turns of {x.shape[-3]} tokens")
    if choose_form("map_heads", x, form) != "triton":
        return layer_reference.map_heads(x, weight, turn)
    check_fused_heads("x", x, weight=weight, turn=turn)
    return map_heads_triton(x, weight, turn)


def recall(
    q: Tensor,
    weight: Tensor,
    turn: Tensor,
    state: Tensor,
    gate: Tensor,
    local: Tensor,
    form: str | None = None,
) -> Tensor:
    """Return `local + sigmoid(gate) * D^-0.5 * S^T u`, u the queries as `map_heads` maps and turns them.

    Args:
        q: `[..., T, H, D]`, normalised queries.
        weight: `[H, D out, D in]`.
        turn: `[..., N, H or 1, I, 2]`, cosine and sine of each pair's angle; the gradient goes to the angle.
            T is N or a multiple of it: streams of the same frame, one after the other, are turned alike.
        state: `[..., H, D, D]`, the state that all tokens read.
        gate: `[..., T, H]`, before the sigmoid.
        local: `[..., T, H, D]`, what the reading is added to.
        form: One of `kernels.selection.FORMS`, or None for what is selected.

    Returns:
        `[..., T, H, D]` in the dtype of `local`.

    Raises:
        ValueError: A shape, dtype or device does not fit, or the form is unknown or cannot take it; the
            message names the argument.
    """
    check_tensors(state=state, gate=gate, local=local)
    check_heads("q", q, weight, turn)
    *lead, tokens, heads, width = q.shape
    expected = {
        "state": (state, (*lead, heads, width, width)),
        "gate": (gate, (*lead, tokens, heads)),
        "local": (local, tuple(q.shape)),
    }
    check_layout(q, expected, "q")
    if choose_form("recall", q, form) != "triton":
        return layer_reference.recall(q, weight, turn, state, gate, local)
    check_fused_heads("q", q, weight=weight, turn=turn, state=state)
    check_dtypes(NARROW, gate=gate, local=local)
    return recall_triton(q, weight, turn, state, gate, local)


def attend(q: Tensor, k: Tensor, v: Tensor, form: str | None = None) -> Tensor:
    """Return softmax attention over the tokens of each frame, `softmax(Q K^T) V` for each head.

    Args:
        q: `[..., N, H, D]`, queries, scaled already.
        k: `[..., N, H, D]`, keys.
        v: `[..., N, H, D]`, values.
        form: One of `kernels.selection.FORMS`, or None for what is selected. On CUDA "torch" is PyTorch's
            fused attention.

    Returns:
        `[..., N, H, D]` in the dtype of `v`.

    Raises:
        ValueError: A shape, dtype or device does not fit, or the form is unknown or cannot take it; the
            message names the argument.
    """
    check_tensors(q=q, k=k, v=v)
    if q.dim() < 3 or 0 in q.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}, expected [..., tokens, heads, width]")
    check_layout(q, {name: (each, tuple(q.shape)) for name, each in (("q", q), ("k", k), ("v", v))}, "q")
    chosen, shape = choose_form("attend", q, form), q.shape
    if chosen == "triton":
        check_fused_frame(q, k, v)
        return attend_triton(q, k, v)
    if chosen == "torch" and q.is_cuda:
        q, k, v = (each.reshape(-1, *each.shape[-3:]).transpose(1, 2) for each in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        return out.transpose(1, 2).reshape(shape)
    return layer_reference.attend(q, k, v)


def attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    visible: Tensor,
    is_empty: Tensor,
    turn: Tensor,
    form: str | None = None,
) -> Tensor:
    """Return softmax attention of all frames, each over itself, the W frames before it and the sink.

    A frame's own tokens are seen by their own stream alone; of other frames all streams see the clean one, 0.

    Args:
        q: `[B, F, S, N, H, D]`, queries, scaled already and turned by their place in the frame.
        k: `[B, F, S, N, H, D]`, keys, turned by their place too.
        v: `[B, F, S, N, H, D]`, values.
        cached_k: `[B, W + 1, N, H, D]`, keys of the sink and of the last W frames before the first, turned by
            their place. They have no gradient, and neither have their values.
        cached_v: `[B, W + 1, N, H, D]`.
        visible: `[B, F, W + 1]` bool, which of sink and window, oldest first, each frame sees.
        is_empty: `[B]` bool, whether nothing is cached: the sink is then the first frame, with gradients.
        turn: `[W + 1, D / 2, 2]`, cosine and sine by which age turns a key, the sink's first.
        form: As for `attend`; "torch" gathers the frames that each frame sees.

    Returns:
        `[B, F, S, N, H, D]` in the dtype of `v`.

    Raises:
        ValueError: As for `attend`.
    """
    given = (q, k, v, cached_k, cached_v, visible, is_empty, turn)
    check_window(*given)
    chosen = choose_form("attend_window", q, form)
    if chosen == "triton":
        check_fused_window(q, turn, k=k, v=v, cached_k=cached_k, cached_v=cached_v)
        return attend_window_triton(*given)[0]
    if chosen == "torch" and q.is_cuda:
        keys, values = layer_reference.gather_window(k, v, cached_k, cached_v, is_empty, turn)
        queries = q.flatten(2, 3)
        rows = [t.flatten(0, 1).transpose(1, 2) for t in (queries, keys, values)]
        mask = layer_reference.window_mask(visible, *q.shape[2:4]).flatten(0, 1)
        out = functional.scaled_dot_product_attention(*rows, attn_mask=mask, scale=1.0)
        return out.transpose(1, 2).reshape(q.shape)
    return layer_reference.attend_window(*given)

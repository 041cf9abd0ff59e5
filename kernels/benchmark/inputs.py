"""Inputs of the benchmark and of the tests: random ones, and those that break kernels."""

# B batch, F frames, N tokens of one frame, H heads, D width; "..." any leading sizes

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

REGIMES = ("random", "similar_keys", "no_decay", "hard_decay")


def make_inputs(
    regime: str, shape: tuple[int, int, int, int, int], device: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Draw the inputs of `scan_frames`, and gradients of what it returns, in fp32.

    Args:
        regime: One of `REGIMES`.
        shape: B, F, N, H, D.
        device: Where.

    Returns:
        k, v, g, beta and the first state; gradients of the states before each frame, and of the final one.
    """
    generator = torch.Generator(device).manual_seed(0)
    batch, frames, tokens, heads, width = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    k, v, state = draw(*shape), draw(*shape), draw(batch, heads, width, width)
    weights = draw(batch, frames, heads, width, width), draw(batch, heads, width, width)
    # Half-lives from a few tokens to thousands of frames, as the model's heads have them.
    g = -softplus(draw(*shape[:-1])) * torch.logspace(-5, -0.5, heads, device=device)
    beta = 1.999 * torch.sigmoid(draw(*shape[:-1]))
    if regime == "similar_keys":  # cosine about 0.99 and beta near its limit of 2
        k = draw(batch, frames, 1, heads, width) + 0.1 * k
        beta, g = torch.full_like(beta, 1.999), torch.zeros_like(g)
    elif regime == "no_decay":
        g = torch.zeros_like(g)
    elif regime == "hard_decay":
        g = torch.full_like(g, -20.0)
    return (normalize(k, dim=-1), v, g, beta, state), weights


def make_frame(
    regime: str, shape: tuple[int, int, int, int], device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw k, v, g, beta and the state, the inputs of `commit`, in fp32; `shape` is B, N, H, D."""
    batch, tokens, heads, width = shape
    (k, v, g, beta, state), _ = make_inputs(regime, (batch, 1, tokens, heads, width), device)
    return k.squeeze(1), v.squeeze(1), g.squeeze(1), beta.squeeze(1), state


def make_reading(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw q, the state, the gate and the local attention, in fp32; q has the `shape` `[..., N, H, D]`."""
    generator = torch.Generator(device).manual_seed(0)
    *lead, _, heads, width = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    q, state = normalize(draw(*shape), dim=-1), draw(*lead, heads, width, width)
    return q, state, torch.sigmoid(draw(*shape[:-1])), draw(*shape)


def make_modulation(shape: tuple[int, int, int], device: str) -> tuple[Tensor, ...]:
    """Draw x, a branch, and its gate, the shift and the scale, in fp32; `shape` is frames, N, D."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    frames, _, width = shape
    gate, shift, scale = draw(frames, 3, width).unsqueeze(-2).unbind(-3)  # strided, as those of a layer are
    return draw(*shape), draw(*shape), gate, shift, 1 + 0.1 * scale


def make_recall(
    shape: tuple[int, int, int, int, int], device: str, *, per_head: bool = False
) -> tuple[Tensor, ...]:
    """Draw q, the map, the angles, the state, the gate and the local attention, in fp32.

    Args:
        shape: Frames, streams, N tokens of each, H, D.
        device: Where.
        per_head: Whether each head has angles of its own.
    """
    generator = torch.Generator(device).manual_seed(0)
    frames, streams, tokens, heads, width = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    q = draw(frames, streams * tokens, 2, heads, width).unbind(2)[0]  # beside the keys, as a layer has it
    weight = torch.eye(width, device=device) + 0.1 * draw(heads, width, width)
    angles = draw(frames, tokens, heads if per_head else 1, width // 2)
    state, local = draw(frames, heads, width, width), draw(frames, streams * tokens, heads, width)
    return q, weight, angles, state, draw(frames, streams * tokens, heads), local


def make_attention(shape: tuple[int, int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw scaled queries, keys and values, in fp32; `shape` is frames, N, H, D."""
    generator = torch.Generator(device).manual_seed(0)
    frames, tokens, heads, width = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    k, v = draw(frames, tokens, 2, heads, width).unbind(2)  # beside each other, as a projection may have them
    return 2 * width**-0.5 * draw(*shape), k, v


def make_window(
    shape: tuple[int, int, int, int, int, int], window: int, device: str, committed: int = 0
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """Draw what `kernels.layers.attend_window` is given, in fp32.

    Args:
        shape: B, F, S, N, H, D.
        window: W.
        device: Where.
        committed: Frames before the first, of every second sequence; others are empty.

    Returns:
        Scaled queries, keys and values; cached keys and values, what is visible, what is empty, and turns.
    """
    generator = torch.Generator(device).manual_seed(0)
    batch, frames, _, *token = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    before = committed * (torch.arange(batch, device=device) % 2)
    number = before[:, None, None] + torch.arange(frames, device=device)[:, None]  # [B, F, 1]
    recent = torch.arange(window, 0, -1, device=device) <= number
    visible = torch.cat([number > window, recent], dim=-1)
    angles = draw(window + 1, token[-1] // 2)
    cached = draw(2, batch, window + 1, *token)
    turn = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return (2 * token[-1] ** -0.5 * draw(*shape), draw(*shape), draw(*shape)), (
        *cached.unbind(0),
        visible,
        before == 0,
        turn,
    )

"""One frame's commit as an affine map of the state, without a loop over tokens.

Nobody reads the state inside a frame, so its N tokens act together as `S' = M S + N`: a frame is
one affine map. With `c_t` the running sum of the log decays, the decay factors out of the product of
Householder-like terms and the inverse below contains no gate, so it is as safe at g = 0 as at g = -20:

    A   = (I + tril(diag(beta) K K^T, -1))^-1
    X   = diag(beta) A^T K
    M   = e^{c_N} (I - X^T K)
    N   = X^T diag(e^{c_N - c_t}) V
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width; "..." is [B] or [B, F]

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 16
"""Tokens that are substituted number by number; between blocks of them there are products."""

SPAN = 128
"""Tokens that `commit` takes at once: the products over pairs of tokens grow with their square."""


def block_inverses(product: Tensor) -> list[Tensor]:
    """Invert the diagonal blocks of `I + tril(product, -1)`, `[..., N, N]`: `[..., C, C]` each.

    By substitution: powers of L, which overflow for similar keys and beta near 2, are never formed.
    """
    identity = torch.eye(BLOCK, dtype=product.dtype, device=product.device)
    inverses = []
    for start in range(0, product.shape[-1], BLOCK):
        own = product[..., start : start + BLOCK, start : start + BLOCK]
        width = own.shape[-1]
        unit = identity[:width, :width].expand_as(own)
        inverses.append(torch.linalg.solve_triangular(own, unit, upper=False, unitriangular=True))
    return inverses


def decays(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return `e^{c_N - c_t}` `[..., N]` and `e^{c_N}` `[..., 1]` of the log decays `[..., N]`.

    Summed from the logarithms after t: a difference of sums would lose digits after a hard decay.
    """
    remaining = g.flip(-1).cumsum(-1).flip(-1)  # of token t and all after it
    factors = torch.nn.functional.pad(remaining, (0, 1)).exp()
    return factors[..., 1:], factors[..., :1]


def _solve(product: Tensor, k: Tensor) -> Tensor:
    """Return `A^T K` of `diag(beta) K K^T` by back substitution over blocks, differentiable.

    Only blocks are substituted number by number, the rest are products: PyTorch's own substitution of a whole
    frame runs on one thread and takes twice as long even there.
    """
    upper = product.mT  # A^T inverts what is above the diagonal, and nothing reads the rest
    identity = torch.eye(BLOCK, dtype=k.dtype, device=k.device)
    solved = k[..., :0, :]
    for start in reversed(range(0, k.shape[-2], BLOCK)):
        block = k[..., start : start + BLOCK, :]
        width = block.shape[-2]
        own, later = upper[..., start : start + width, start:].tensor_split([width], dim=-1)
        inverse = torch.linalg.solve_triangular(own, identity[:width, :width], upper=True, unitriangular=True)
        solved = torch.cat([inverse @ (block - later @ solved), solved], dim=-2)
    return solved


def _write_terms(k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `K`, `X`, the decayed values and the frame's total decay, heads before tokens."""
    k, v = k.transpose(-3, -2), v.transpose(-3, -2)  # [..., H, N, K], [..., H, N, V]
    g, beta = g.transpose(-2, -1), beta.transpose(-2, -1).unsqueeze(-1)  # [..., H, N], [..., H, N, 1]
    x = beta * _solve(beta * (k @ k.mT), k)
    decay, total = decays(g)
    return k, x, decay.unsqueeze(-1) * v, total.unsqueeze(-1)


def frame_maps(k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return each frame's affine map of the state, all frames at once.

    Args:
        k: `[..., N, H, K]`, keys of unit length, fp32 or fp64.
        v: `[..., N, H, V]`, values.
        g: `[..., N, H]`, logarithm of the decay, at most 0.
        beta: `[..., N, H]`, write strength in [0, 2].

    Returns:
        `M` `[..., H, K, K]` and `N` `[..., H, K, V]` with `S' = M S + N`; the norm of M is at most 1.
    """
    keys, x, values, decay = _write_terms(k, v, g, beta)
    identity = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    return decay * (identity - x.mT @ keys), x.mT @ values


def commit(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """Write one frame into the state, as `kernels.reference.commit` does, with all inputs in one dtype.

    Cheaper than forming `M`: `S' = e^{c_N} S + X^T (V' - e^{c_N} K S)`.
    """
    if k.shape[1] > SPAN:
        for start in range(0, k.shape[1], SPAN):
            span = slice(start, start + SPAN)
            state = commit(k[:, span], v[:, span], g[:, span], beta[:, span], state)
        return state
    keys, x, values, decay = _write_terms(k, v, g, beta)
    return torch.addcmul(x.mT @ torch.addcmul(values, decay, keys @ state, value=-1), decay, state)


def read(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> Tensor:
    """Read the state with every token of a frame, as `kernels.reference.read` does."""
    # The gate scales the queries instead of what they read: one pass less.
    weighted = q * (gate * q.shape[-1] ** -0.5).unsqueeze(-1)
    return local + (weighted.transpose(-3, -2) @ state.to(weighted.dtype)).transpose(-3, -2)

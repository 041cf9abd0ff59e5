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

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 16
"""Width at which the inverse stops doubling and goes on by substitution."""


def _doubled_inverse(lower: Tensor, width: int) -> Tensor:
    """Invert the diagonal blocks of `I + lower`: `[..., T, T]` -> `[..., T / width, width, width]`.

    Two neighbouring inverted blocks P, Q and the block C below P give the inverse of the pair:
    [[P, 0], [-Q C P, Q]].
    """
    inverse = lower.new_ones(*lower.shape[:-1], 1, 1)  # blocks of width 1
    size = 1
    while size < width:
        count = lower.shape[-1] // (2 * size)
        pairs = lower.unflatten(-1, (count, 2, size)).unflatten(-4, (count, 2, size))
        below = (
            pairs[..., 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        )  # [..., count, size, size]
        first, second = inverse.unflatten(-3, (count, 2)).unbind(-3)
        corner = -(second @ below @ first)
        top = torch.cat([first, torch.zeros_like(first)], dim=-1)
        inverse = torch.cat([top, torch.cat([corner, second], dim=-1)], dim=-2)
        size *= 2
    return inverse


def _unit_lower_inverse(lower: Tensor) -> Tensor:
    """Return `(I + lower)^-1` for a strictly lower triangular `[..., T, T]`.

    Doubling inside blocks, then forward substitution over blocks. Each step multiplies by true inverses;
    powers of `lower`, which overflow for similar keys and beta near 2, are never formed.
    """
    tokens = lower.shape[-1]
    padded = -(-tokens // BLOCK) * BLOCK
    if padded != tokens:
        lower = torch.nn.functional.pad(lower, (0, padded - tokens, 0, padded - tokens))
    diagonal = _doubled_inverse(lower, BLOCK).unbind(-3)
    rows = [torch.nn.functional.pad(diagonal[0], (0, padded - BLOCK))]
    for index in range(1, padded // BLOCK):
        start = index * BLOCK
        above = torch.cat(rows, dim=-2)  # [..., start, padded]
        left = -diagonal[index] @ (lower[..., start : start + BLOCK, :start] @ above)
        own = torch.nn.functional.pad(diagonal[index], (start, padded - start - BLOCK))
        rows.append(left + own)
    return torch.cat(rows, dim=-2)[..., :tokens, :tokens]


class _UnitLowerInverse(torch.autograd.Function):
    """`(I + lower)^-1`, whose backward pass in closed form is two products."""

    @staticmethod
    def forward(lower: Tensor) -> Tensor:
        return _unit_lower_inverse(lower)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor
    ) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        transposed = inverse.mT
        return -(transposed @ grads[0] @ transposed).tril(-1)


def _solve(product: Tensor, k: Tensor) -> Tensor:
    """Return `A^T K` of `diag(beta) K K^T`, with gradients, for many small frames at once."""
    inverse: Tensor = _UnitLowerInverse.apply(product.tril(-1))  # pyright: ignore[reportAssignmentType]
    return inverse.mT @ k


def _solve_few(product: Tensor, k: Tensor) -> Tensor:
    """Return the same by back substitution over blocks: for the frame of one world faster than the inverse.

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


def _write_terms(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, solve: Callable[[Tensor, Tensor], Tensor] = _solve
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `K`, `X`, the decayed values and the frame's total decay, heads before tokens."""
    k, v = k.transpose(-3, -2), v.transpose(-3, -2)  # [..., H, N, K], [..., H, N, V]
    g, beta = g.transpose(-2, -1), beta.transpose(-2, -1).unsqueeze(-1)  # [..., H, N], [..., H, N, 1]
    x = beta * solve(beta * (k @ k.mT), k)
    elapsed = g.cumsum(-1)
    total = elapsed[..., -1:]
    values = (total - elapsed).exp().unsqueeze(-1) * v
    return k, x, values, total.exp().unsqueeze(-1)


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
    """Write one frame into the state; same contract as `kernels.reference.commit`.

    Cheaper than forming `M`: `S' = e^{c_N} S + X^T (V' - e^{c_N} K S)`.

    Args:
        k: `[B, N, H, K]`, keys of unit length.
        v: `[B, N, H, V]`, values.
        g: `[B, N, H]`, logarithm of the decay, at most 0.
        beta: `[B, N, H]`, write strength in [0, 2].
        state: `[B, H, K, V]`, in the dtype of `k`.

    Returns:
        The state after the frame, `[B, H, K, V]`; `state` is left as it was.
    """
    keys, x, values, decay = _write_terms(k, v, g, beta, _solve_few)
    return torch.addcmul(x.mT @ torch.addcmul(values, decay, keys @ state, value=-1), decay, state)


def scan_frames(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state before every frame and the one after the last.

    All frames' maps are built in parallel; only a product per frame is sequential.

    Args:
        k: `[B, F, N, H, K]`, keys of unit length.
        v: `[B, F, N, H, V]`, values.
        g: `[B, F, N, H]`, logarithm of the decay, at most 0.
        beta: `[B, F, N, H]`, write strength in [0, 2].
        state: `[B, H, K, V]`, the state before the first frame.

    Returns:
        States before each frame `[B, F, H, K, V]`, and the final state `[B, H, K, V]`.
    """
    transitions, writes = frame_maps(k, v, g, beta)
    before = []
    # unbind once: indexing per frame would fill a whole zero tensor for every frame in the backward pass.
    for transition, write in zip(transitions.unbind(1), writes.unbind(1), strict=True):
        before.append(state)
        state = transition @ state + write
    return torch.stack(before, dim=1), state


def read(q: Tensor, state: Tensor) -> Tensor:
    """Read the state with every token of a frame; same contract as `kernels.reference.read`.

    Args:
        q: `[..., N, H, K]`, queries of unit length.
        state: `[..., H, K, V]`.

    Returns:
        `[..., N, H, V]`, in the dtype of `q`.
    """
    return (q.transpose(-3, -2) @ state.to(q.dtype)).transpose(-3, -2)

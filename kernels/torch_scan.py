"""The scan over frames in PyTorch, with its gradient in closed form.

The forward pass is that of `kernels.frame_maps`. Autograd would keep and walk every step of it; the gradient
below needs of a frame only `K`, `Z = A^T K`, the decayed values W, `M`, and the state S before it. With D the
gradient of the state after the frame, which is that of N, and P = diag(beta) Z D (all checked in fp64):

    D_{f-1} = dS_f + M^T D_f
    Y       = W - e^{c_N} K S,    dX = Y D^T,    U = A diag(beta) dX,    dL = -tril(Z U^T, -1)
    dK      = U + diag(beta) dL K + dL^T diag(beta) K - e^{c_N} P S^T
    dbeta   = rowsum(dX * Z) + rowsum(dL K * K)
    dV      = diag(e^{c_N - c_t}) P
    dg_t    = e^{c_N} (<D, S> - <P, K S>) + sum_{s < t} (P_s . W_s)
"""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width, C tokens of a block,
# P = F * B * H matrices in a row

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.frame_maps import BLOCK, block_inverses, decays


class Frames(NamedTuple):
    """All frames' terms, frames first, as products read them.

    Attributes:
        k: `[P, N, K]`.
        w: `[P, N, V]`, the decayed values.
        beta: `[P, N, 1]`.
        product: `[P, N, N]`, `diag(beta) K K^T`; only what is below the diagonal is ever read.
        inverses: Inverted diagonal blocks of `I + L`, `[P, C, C]` each.
    """

    k: Tensor
    w: Tensor
    beta: Tensor
    product: Tensor
    inverses: list[Tensor]


def _frames_first(x: Tensor) -> Tensor:
    """Turn `[B, F, N, H, ...]` into `[F * B * H, N, ...]`."""
    return x.transpose(0, 1).transpose(2, 3).flatten(0, 2)


def _batch_first(x: Tensor, like: Tensor) -> Tensor:
    """Turn `[F * B * H, N, ...]` back into the shape of `like`, `[B, F, N, H, ...]`."""
    batch, frames, _, heads = like.shape[:4]
    return x.unflatten(0, (frames, batch, heads)).transpose(2, 3).transpose(0, 1)


def _enter(k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Frames, Tensor, Tensor]:
    """Return the frames' terms, `e^{c_N - c_t}` `[P, N, 1]` and `e^{c_N}` `[P, 1, 1]`."""
    decay, total = decays(_frames_first(g))
    keys, strength = _frames_first(k), _frames_first(beta).unsqueeze(-1)
    product = (keys @ keys.mT).mul_(strength)
    values = _frames_first(v) * decay.unsqueeze(-1)
    frames = Frames(keys, values, strength, product, block_inverses(product))
    return frames, decay.unsqueeze(-1), total.unsqueeze(-1)


def _solve_transposed(frames: Frames) -> Tensor:
    """Return `Z = A^T K`, block by block from the last token to the first."""
    solved = torch.empty_like(frames.k)
    for index in reversed(range(len(frames.inverses))):
        start, end = index * BLOCK, (index + 1) * BLOCK
        later = frames.product[:, end:, start:end].mT @ solved[:, end:]
        solved[:, start:end] = frames.inverses[index].mT @ (frames.k[:, start:end] - later)
    return solved


def _solve(frames: Frames, x: Tensor) -> Tensor:
    """Return `A x`, block by block from the first token to the last."""
    solved = torch.empty_like(x)
    for index, inverse in enumerate(frames.inverses):
        start, end = index * BLOCK, (index + 1) * BLOCK
        earlier = frames.product[:, start:end, :start] @ solved[:, :start]
        solved[:, start:end] = inverse @ (x[:, start:end] - earlier)
    return solved


class _ScanFrames(torch.autograd.Function):
    """`scan_frames` with the gradient of the legend."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        frames, _, total = _enter(k, v, g, beta)
        z = _solve_transposed(frames)
        xt = (frames.beta * z).mT
        identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        transitions = (
            (identity - xt @ frames.k).mul_(total).unflatten(0, (k.shape[1], -1))
        )  # [F, B * H, K, K]
        first = state.flatten(0, 1).unsqueeze(0)
        states = torch.cat([first, (xt @ frames.w).unflatten(0, (k.shape[1], -1))])  # the states end up here
        for frame, transition in enumerate(transitions):
            states[frame + 1].baddbmm_(transition, states[frame])
        ctx.save_for_backward(k, v, g, beta, z, transitions, states[:-1])
        before, final = states.unflatten(1, state.shape[:2]).tensor_split([k.shape[1]])
        return before.transpose(0, 1), final[0].clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the names
        ctx: FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor, ...]:
        # torch.compile traces this inside the caller's autocast, which would round some of the products.
        with torch.autocast(grads[0].device.type, enabled=False):
            return _ScanFrames._gradients(ctx, *grads)

    @staticmethod
    def _gradients(ctx: FunctionCtx, d_before: Tensor, d_final: Tensor) -> tuple[Tensor, ...]:
        k, v, g, beta, z, transitions, states = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        frames, decay, total = _enter(k, v, g, beta)
        gradients = torch.cat([d_before.transpose(0, 1), d_final.unsqueeze(0)]).flatten(1, 2)
        for frame in reversed(range(len(transitions))):
            gradients[frame].baddbmm_(transitions[frame].mT, gradients[frame + 1])
        d_state = gradients[0].unflatten(0, d_final.shape[:2])
        dk, dv, dg, d_beta = _frame_gradients(
            frames, decay, z, states.flatten(0, 1) * total, gradients[1:].flatten(0, 1)
        )
        shaped = [_batch_first(x, like) for x, like in ((dk, k), (dv, v), (dg, g), (d_beta, beta))]
        return *shaped, d_state


def _frame_gradients(
    frames: Frames, decay: Tensor, z: Tensor, decayed_state: Tensor, d_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of k and v `[P, N, width]`, g and beta `[P, N]`.

    Args:
        frames: The frames' terms.
        decay: `e^{c_N - c_t}` `[P, N, 1]`.
        z: Z of the legend, `[P, N, K]`.
        decayed_state: `e^{c_N} S` `[P, K, V]`, S the state before the frame.
        d_state: D of the legend, `[P, K, V]`.
    """
    recalled = frames.k @ decayed_state  # [P, N, V]
    dx = (frames.w - recalled) @ d_state.mT  # [P, N, K]
    p = (z @ d_state).mul_(frames.beta)  # [P, N, V]
    written = (p * frames.w).sum(-1)  # [P, N]
    whole = (d_state * decayed_state).sum((-2, -1)) - (p * recalled).sum((-2, -1))  # [P]
    dg = whole.unsqueeze(-1) + torch.nn.functional.pad(written.cumsum(-1)[:, :-1], (1, 0))
    d_beta = (dx * z).sum(-1)
    u = _solve(frames, dx.mul_(frames.beta))
    d_lower = (z @ u.mT).tril_(-1).neg_()  # [P, N, N]
    r = d_lower @ frames.k
    d_beta += (r * frames.k).sum(-1)
    dk = u.addcmul_(frames.beta, r).baddbmm_(d_lower.mT, frames.beta * frames.k)
    dk.baddbmm_(p, decayed_state.mT, alpha=-1)
    return dk, p.mul_(decay), dg, d_beta


def scan_frames(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states before all frames and the final one, as `kernels.reference.scan_frames` does.

    All frames' maps are built in parallel; only a product per frame is sequential.
    """
    return _ScanFrames.apply(k, v, g, beta, state)  # pyright: ignore[reportReturnType]

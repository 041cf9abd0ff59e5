"""The gated delta rule token by token: slow, readable, and right in any precision.

Source: Gated DeltaNet (arXiv 2412.06464, eq. 10) as ARL2 (arXiv 2605.16579) uses it: the state is read
before a frame and written once after it.
"""

# B batch, N tokens of one frame, H heads, K key width, V value width

from __future__ import annotations

import torch
from torch import Tensor


def commit(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """Write one frame's tokens into the state, one after the other.

    `S <- e^g (I - beta k k^T) S + beta k v^T`, with the decay applied to the old state only.

    Args:
        k: `[B, N, H, K]`, keys of unit length.
        v: `[B, N, H, V]`, values.
        g: `[B, N, H]`, logarithm of the decay, at most 0.
        beta: `[B, N, H]`, write strength in [0, 2].
        state: `[B, H, K, V]`, the state before the frame.

    Returns:
        The state after the frame, `[B, H, K, V]`.
    """
    for token in range(k.shape[1]):
        key, value = k[:, token], v[:, token]  # [B, H, K], [B, H, V]
        strength = beta[:, token, :, None]  # [B, H, 1]
        decayed = g[:, token].exp()[..., None, None] * state
        recalled = torch.einsum("bhk,bhkv->bhv", key, decayed)
        state = decayed + torch.einsum("bhk,bhv->bhkv", key, strength * (value - recalled))
    return state


def scan_frames(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Write frame after frame, and keep the state before each.

    Args:
        k: `[B, F, N, H, K]`, keys of unit length.
        v: `[B, F, N, H, V]`, values.
        g: `[B, F, N, H]`, logarithm of the decay, at most 0.
        beta: `[B, F, N, H]`, write strength in [0, 2].
        state: `[B, H, K, V]`, the state before the first frame.

    Returns:
        States before each frame `[B, F, H, K, V]`, and the final state `[B, H, K, V]`.
    """
    before = []
    for frame in range(k.shape[1]):
        before.append(state)
        state = commit(k[:, frame], v[:, frame], g[:, frame], beta[:, frame], state)
    return torch.stack(before, dim=1), state


def read(q: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> Tensor:
    """Read the state with every token of a frame, and add that to the local attention.

    `out = local + gate * K^-0.5 * S^T q`.

    Args:
        q: `[..., N, H, K]`, queries.
        state: `[..., H, K, V]`.
        gate: `[..., N, H]`, a factor of each token and head.
        local: `[..., N, H, V]`, what the reading is added to.

    Returns:
        `[..., N, H, V]`.
    """
    dtype = torch.promote_types(q.dtype, gate.dtype)  # queries in 16 bits do not make the rest as coarse
    memory = torch.einsum("...nhk,...hkv->...nhv", q.to(dtype), state.to(dtype))
    return local + gate.unsqueeze(-1) * q.shape[-1] ** -0.5 * memory

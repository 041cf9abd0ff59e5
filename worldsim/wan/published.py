"""Hybrid attention as in ARL2's release, for whose checkpoints it is.

Adapters of low rank change the queries, keys and values of the memory alone, before their norm; the softmax
inside a block has those of the layer that was replaced. Names of parameters are the release's.
"""

# N tokens, H heads, D head width

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.attention.writes import MAX_BETA
from worldsim.model.linear import Linear, at_least_fp32

ADAPTER_SCALE = 2.0
"""What the product of an adapter's matrices is multiplied by: alpha over rank, 32 over 16."""
ADAPTER_RANK = 16


class PublishedAttention(HybridAttention):
    """Softmax over the tokens of a block, plus what the state before it says by projections of its own.

    Args:
        rank: Of the adapters; 0 for a layer without, as behind the first stage of training.
    """

    def __init__(
        self, dim: int, num_heads: int, tokens_per_frame: int, half_lives: tuple[float, float], rank: int
    ) -> None:
        super().__init__(dim, num_heads, tokens_per_frame, half_lives)
        self.b_proj = Linear(dim, num_heads, bias=False)
        self.rank = rank
        if rank:
            self.lora_q_A, self.lora_k_A, self.lora_v_A = (_matrix(dim, rank) for _ in range(3))
            self.lora_q_B, self.lora_k_B, self.lora_v_B = (_matrix(rank, dim) for _ in range(3))

    def strengths(self, b: Tensor) -> Tensor:
        """Return the strengths that a block writes with, in [0, 2): twice a sigmoid.

        Only what rounds to 2 is held below it; see `MAX_BETA`.
        """
        return (2 * torch.sigmoid(at_least_fp32(b))).clamp(max=MAX_BETA)

    def for_memory(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values of the memory, `[..., N, H, D]`, changed by the adapters."""
        if not self.rank:
            return q, k, v
        query = self._adapted(self.q, self.lora_q_A, self.lora_q_B, x)
        key = self._adapted(self.k, self.lora_k_A, self.lora_k_B, x)
        value = self._adapted(self.v, self.lora_v_A, self.lora_v_B, x)
        q, k = self.normed(torch.cat([query, key], dim=-1)).unbind(-3)
        return q, k, value.unflatten(-1, (self.num_heads, -1))

    @staticmethod
    def _adapted(layer: Linear, down: Tensor, up: Tensor, x: Tensor) -> Tensor:
        return layer(x) + ADAPTER_SCALE * (x @ down @ up)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rows, columns))

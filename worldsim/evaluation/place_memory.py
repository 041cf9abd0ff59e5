"""What a memory of places can hold at best: the rule that writes it, with keys that are places, untrained."""

# F frames, N tokens of a frame, L layers, H heads, D head width, K kinds of tiles

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import kernels
from worldsim.model.config import MemoryKeys
from worldsim.model.memory.motion import UNIT, coordinate_frequencies, plane_multiples


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceMemory:
    """A memory of the size of a model's, which is written and read by place.

    Attributes:
        keys: Which places its keys tell apart.
        strength: How strongly every token is written, above 0 and below 2.
        num_layers: Hybrid layers.
        num_heads: Heads of a layer.
        head_width: Features of a head.
        half_life: Frames after which half of what was written is left.
        num_kinds: Kinds of tiles; values are which of them a tile is.
    """

    keys: MemoryKeys
    strength: float
    num_layers: int = 5
    num_heads: int = 4
    head_width: int = 64
    half_life: float = 1000.0
    num_kinds: int = 24

    def keys_at(self, places: Tensor) -> Tensor:
        """Return keys of length 1, `[N, L * H, D]` fp32, of places `[N, 2]` (row, column)."""
        if self.keys is MemoryKeys.PLANE:
            layers = range(self.num_layers)
            tables = [plane_multiples(layer, self.num_heads, self.head_width) for layer in layers]
            table = torch.cat(tables)[..., :2].double() * UNIT  # [L * H, D / 2, 2]
        else:  # of the pairs that no place turns nothing can be learned
            turned = coordinate_frequencies(self.head_width)[:2].T
            turned = turned * torch.ones(self.num_layers * self.num_heads, 1, 1)
            table = turned[:, turned[0].abs().sum(-1) > 0]
        angles = (places.double()[:, None, None] * table).sum(-1)
        keys = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(2)
        return functional.normalize(keys, dim=-1).float()

    def write(self, kinds: Tensor, places: Tensor) -> Tensor:
        """Commit frame after frame; returns the state `[1, L * H, D, K]`.

        Args:
            kinds: `[F, N]` int64, which tiles the frames show.
            places: `[F, N, 2]` int64, where these are.
        """
        values = functional.one_hot(kinds, self.num_kinds).float() - 1 / self.num_kinds
        heads = self.num_layers * self.num_heads
        state = torch.zeros(1, heads, self.keys_at(places[0]).shape[-1], self.num_kinds)
        tokens = (1, kinds.shape[1], heads)
        decay = torch.full(tokens, -math.log(2) / (self.half_life * kinds.shape[1]))
        strength = torch.full(tokens, self.strength)
        for value, place in zip(values, places, strict=True):
            own = value[None, :, None].expand(*tokens, -1).contiguous()
            state = kernels.commit(self.keys_at(place)[None], own, decay, strength, state)
        return state

    def read(self, state: Tensor, places: Tensor) -> Tensor:
        """Return the kinds that all heads together recall at places `[N, 2]`, `[N]` int64."""
        return torch.einsum("nhd,hdk->nk", self.keys_at(places), state[0]).argmax(dim=-1)


def share_recalled(memory: PlaceMemory, grid: Tensor, walk: Tensor, view: int) -> Tensor:
    """Walk over a grid of tiles, and say how much of what was left behind is recalled at the end.

    Args:
        memory: What is written on the way.
        grid: `[rows, columns]` int64 kinds.
        walk: `[F, 2]` int64, the upper left tile of what is seen at each frame.
        view: Tiles along each side of it.

    Returns:
        `[F - 1]`, the share of the tiles that went out of view between a frame and the next that is recalled
        right at the end; NaN where none did.
    """
    offsets = torch.cartesian_prod(torch.arange(view), torch.arange(view))
    places = walk[:, None] + offsets
    kinds = grid[places[..., 0], places[..., 1]]
    state = memory.write(kinds, places)
    shares = []
    for frame in range(len(walk) - 1):
        left = ((places[frame] < walk[frame + 1]) | (places[frame] >= walk[frame + 1] + view)).any(dim=-1)
        recalled = memory.read(state, places[frame][left])
        shares.append((recalled == kinds[frame][left]).float().mean())
    return torch.stack(shares)

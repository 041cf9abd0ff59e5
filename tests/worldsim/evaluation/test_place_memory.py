"""A memory of places holds a walk under keys of the plane, and not under those of row and column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.scripted.out_and_back import OutAndBackPolicy
from worldsim.evaluation.place_memory import PlaceMemory, share_recalled
from worldsim.model.config import MemoryKeys

VIEW = 5


def walk_out(gap: int, seed: int = 0) -> Tensor:
    """Return where the view is on a way out, `[gap + 1, 2]`."""
    player = OutAndBackPolicy((3, 3), (gap, gap), (0, 0))
    player.reset(seed)
    frame = np.zeros((2, 2, 3), np.uint8)
    steps = torch.tensor([0, -1, 1])[torch.tensor([player.act(frame).tolist() for _ in range(gap)])]
    return torch.cat([torch.tensor([[60, 60]]), 60 + steps.cumsum(0)])


def recalled(keys: MemoryKeys, strength: float) -> Tensor:
    grid = torch.randint(24, (120, 120), generator=torch.Generator().manual_seed(0))
    memory = PlaceMemory(keys=keys, strength=strength, num_layers=2, num_heads=3)
    return share_recalled(memory, grid, walk_out(16), VIEW)


def test_row_and_column_are_not_enough() -> None:
    plane, axes = (float(recalled(keys, 0.03).nanmean()) for keys in (MemoryKeys.PLANE, MemoryKeys.AXES))
    assert plane > 0.85
    assert axes < 0.3


def test_strong_writes_overwrite_what_was_first() -> None:
    gentle, strong = (recalled(MemoryKeys.PLANE, strength)[:6].nanmean() for strength in (0.03, 1.0))
    assert float(strong) < float(gentle) - 0.2


@pytest.mark.parametrize("keys", list(MemoryKeys))
def test_tiles_in_a_row_are_read_back(keys: MemoryKeys) -> None:
    """There even row and column suffice."""
    memory = PlaceMemory(keys=keys, strength=1.0, num_layers=1)
    places = torch.stack([torch.zeros(4, dtype=torch.int64), 3 * torch.arange(4)], dim=-1)
    kinds = torch.tensor([3, 1, 4, 9])
    state = memory.write(kinds.expand(20, -1), places.expand(20, -1, -1))
    assert memory.read(state, places).tolist() == kinds.tolist()

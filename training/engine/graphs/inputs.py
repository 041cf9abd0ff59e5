"""Inputs of a recorded pass: tensors that stay where they are, and a generator that is seeded anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from training.engine.carry import Carry
from worldsim.errors import WorldError


class StaticInputs:
    """The arguments of a pass in tensors of its own, into which those of other passes are copied.

    Args:
        batch: The module's arguments: tensors, tuples of them, None, and one generator.
        carry: What it goes on from, if anything.
        device: Where it computes.

    Attributes:
        batch: The arguments to record with; their numbers are those of the first batch.
        carry: What to record with beside them.
        generator: The generator among the arguments.
    """

    def __init__(self, batch: Sequence[Any], carry: Carry | None, device: torch.device) -> None:
        leaves, spec = tree_flatten(tuple(batch))
        self.generator = torch.Generator(device)
        own = [self._own(leaf, device) for leaf in leaves]
        self.batch: tuple[Any, ...] = tree_unflatten(own, spec)
        self.carry = None if carry is None else Carry(carry.memory.map(lambda _, t: t.clone()))
        self._tensors = tensors_of(self.batch, self.carry)
        seed_like(self.generator, batch)

    def _own(self, leaf: Any, device: torch.device) -> Any:
        if isinstance(leaf, torch.Generator):
            return self.generator
        if leaf is None:
            return None
        # Contiguous whatever it is a view of.
        return torch.empty(leaf.shape, dtype=leaf.dtype, device=device).copy_(leaf)

    def take(self, batch: Sequence[Any], carry: Carry | None) -> None:
        """Copy another batch into the tensors, and seed the generator as the batch's own is.

        Raises:
            WorldError: If a tensor has another shape or number format than that of the recorded pass.
        """
        given = tensors_of(batch, carry)
        found, known = ([(tuple(t.shape), t.dtype) for t in tensors] for tensors in (given, self._tensors))
        if found != known:
            other = next((pair for pair in zip(found, known, strict=False) if pair[0] != pair[1]), None)
            told = f"{other[0]}, not {other[1]}" if other else f"{len(found)} tensors, not {len(known)}"
            raise WorldError(f"step.graphs=true replays passes of one shape, but this batch holds {told}")
        for own, tensor in zip(self._tensors, given, strict=True):
            own.copy_(tensor, non_blocking=True)
        seed_like(self.generator, batch)


def tensors_of(batch: Sequence[Any], carry: Carry | None) -> list[Tensor]:
    """Return the tensors of a pass's arguments, in order."""
    leaves = [leaf for leaf in tree_flatten(tuple(batch))[0] if isinstance(leaf, Tensor)]
    return leaves if carry is None else [*leaves, *carry.memory.tensors().values()]


def seed_like(generator: torch.Generator, batch: Sequence[Any]) -> None:
    """Let a generator draw what the one among a batch's arguments, of which nothing was drawn, would draw."""
    given = next(each for each in batch if isinstance(each, torch.Generator))
    generator.manual_seed(given.initial_seed())  # it begins at its first number, as a new one does

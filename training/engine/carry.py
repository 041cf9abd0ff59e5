"""Memory carried from one training segment to the next, and into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.engine.fabric import Passes
from worldsim.model.memory.state import MemoryState

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Carry:
    """The memory after the segments of a pass, which that pass goes on from at the next step.

    Not a dataclass: Fabric refuses frozen ones among a module's arguments, and would round the tensors of
    others to the precision of the inputs. What it does not know, it passes on as it is.

    Attributes:
        memory: Of the rows of the pass, without gradients.
    """

    def __init__(self, memory: MemoryState) -> None:
        self.memory = memory


def gather_carries(carries: Sequence[Carry], fabric: Fabric) -> dict[str, Tensor]:
    """Return the memory's tensors of all devices' passes, `[passes, ...]`: only the first device saves."""
    each = [carry.memory.tensors() for carry in carries]
    own = {name: torch.stack([tensors[name] for tensors in each]) for name in each[0]}  # [own passes, ...]
    together = fabric.all_gather(own)
    assert isinstance(together, dict)
    return {
        # The passes of a device are every so many: those of all devices take turns.
        name: together[name].reshape(fabric.world_size, *tensor.shape).transpose(0, 1).flatten(0, 1)
        for name, tensor in own.items()
    }


def restore_carries(saved: Mapping[str, Tensor], passes: Passes, device: torch.device) -> list[Carry]:
    """Return what this device's passes go on from, of what `gather_carries` returned.

    Raises:
        ValueError: If it was gathered from another number of passes.
    """
    found = {len(tensor) for tensor in saved.values()}
    if found != {passes.total}:
        raise ValueError(f"it holds the memory of {max(found, default=0)} passes, not {passes.total}")
    return [
        Carry(MemoryState.from_tensors({name: tensor[number].to(device) for name, tensor in saved.items()}))
        for number in passes.own
    ]

"""Memory carried from one training segment to the next, and into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_fabric import Fabric
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.memory.state import MemoryState


class Carry:
    """The memory after the segments of a step, which those of the next step go on from.

    Not a dataclass: Fabric refuses frozen ones among a module's arguments, and would round the tensors of
    others to the precision of the inputs. What it does not know, it passes on as it is.

    Attributes:
        memory: Of this device's rows, without gradients.
    """

    def __init__(self, memory: MemoryState) -> None:
        self.memory = memory

    def gather(self, fabric: Fabric) -> dict[str, Tensor]:
        """Return the memory's tensors of all devices, `[devices, ...]`: only the first device saves."""
        own = self.memory.tensors()
        together = fabric.all_gather(own)
        assert isinstance(together, dict)
        return {name: together[name].reshape(fabric.world_size, *own[name].shape) for name in own}

    @classmethod
    def restore(cls, saved: Mapping[str, Tensor], fabric: Fabric) -> Carry:
        """Return this device's part of what `gather` returned.

        Raises:
            WorldError: If the run went on another number of devices before.
        """
        devices = {len(tensor) for tensor in saved.values()}
        if devices != {fabric.world_size}:
            raise WorldError(
                f"the checkpoint holds the memory of {max(devices, default=0)} devices' sequences, "
                f"the run goes on on {fabric.world_size}: give it as many devices as before"
            )
        own = {name: tensor[fabric.global_rank].to(fabric.device) for name, tensor in saved.items()}
        return cls(MemoryState.from_tensors(own))

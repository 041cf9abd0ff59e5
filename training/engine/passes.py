"""Passes of an update: gradient accumulation, and the same update on any number of devices."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_fabric import Fabric

from worldsim.errors import WorldError


@dataclass(frozen=True, slots=True)
class Passes:
    """The passes forward and backward whose mean gradient makes one update, shared evenly by the devices.

    What a pass computes depends on its number and on the step, never on the device that runs it: it draws
    from episodes, seeds and a carried memory of its own. So an update of eight passes is the same on one
    device, which adds up eight gradients, and on two, four or eight, but for the order of sums.

    Attributes:
        total: Passes of an update on all devices, numbered from 0.
        rank: Of this device among all.
        num_devices: How many there are; divides `total`.
    """

    total: int = 1
    rank: int = 0
    num_devices: int = 1

    @property
    def own(self) -> range:
        """Numbers of the passes that this device runs, in order."""
        return range(self.rank, self.total, self.num_devices)


def share_passes(fabric: Fabric, batch_size: int, global_batch_size: int) -> Passes:
    """Return the passes of an update.

    Args:
        fabric: The devices.
        batch_size: Rows of a pass.
        global_batch_size: Rows of an update on all devices; 0 is one pass for each device.

    Raises:
        WorldError: If the rows can't be split into equal passes, or those not evenly among the devices.
    """
    devices = fabric.world_size
    total = global_batch_size // batch_size if global_batch_size else devices
    if global_batch_size % batch_size or total % devices:
        raise WorldError(
            f"loop.global_batch_size={global_batch_size} can't be shared evenly by {devices} device(s) in "
            f"passes of batch_size={batch_size}: it must be a multiple of {devices * batch_size}"
        )
    return Passes(total, fabric.global_rank, devices)

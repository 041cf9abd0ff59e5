"""Device, precision and distribution as configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed import DistError

from training.engine.caches import CACHES, load_caches
from worldsim.errors import WorldError
from worldsim.runtime.device import computes_bf16
from worldsim.settings import check_settings, setting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = ("auto", "32-true", "bf16-mixed")
BACKENDS = ("gloo", "nccl")
"""What exchanges gradients; an error that names one says that another process is gone."""


@dataclass(kw_only=True, slots=True)
class FabricConfig:
    """What `lightning_fabric.Fabric` takes."""

    accelerator: str = setting("auto", "auto, cpu, cuda or mps.")
    devices: str = setting("1", "Number of devices of each machine, or auto.")
    num_nodes: int = setting(1, "Machines.", minimum=1)
    strategy: str = setting(
        "auto",
        "auto, ddp (each device holds the model) or fsdp (each holds a part of weights, optimizer and moving "
        "average, docs/decisions/0039).",
    )
    timeout_seconds: float = setting(
        600.0,
        "How long a device waits for the others before the run ends, because one of them is lost.",
        above=0,
        maximum=86_400,
    )
    precision: str = setting(
        "auto",
        "auto is bf16-mixed where the device computes bf16 directly. Not bf16-true: it would round the "
        "tables of angles and frequencies. Not 16-mixed: its loss scaling expects gradients that are not "
        "finite now and then, and those stop a run here.",
        choices=PRECISIONS,
    )
    compile: bool = setting(False, "Compile the model block by block (worth it on a GPU).")
    caches: str = setting(
        "",
        "Folder of what an earlier run compiled (its OUT/caches), for a machine that starts empty; '' is "
        "this run's own. What is in it is run: take none from strangers.",
    )

    def __post_init__(self) -> None:
        check_settings(self, "fabric.")


def choose_precision(config: FabricConfig) -> str:
    """Return the precision that was asked for, or that suits the device of `auto`."""
    if config.precision != "auto":
        return config.precision
    uses_gpu = config.accelerator not in ("cpu", "mps") and torch.cuda.is_available()
    device = torch.device("cuda" if uses_gpu else "cpu")
    return "bf16-mixed" if computes_bf16(device) else "32-true"


def product_dtype_of(config: FabricConfig) -> torch.dtype:
    """Return the number format of the products of a training."""
    return torch.bfloat16 if choose_precision(config).startswith("bf16") else torch.float32


def make_fabric(config: FabricConfig, folder: Path) -> Fabric:
    """Build and launch Fabric; event files for TensorBoard go to `folder / events`."""
    # Here, not above: Fabric takes longer to import than PyTorch, and bad settings would be told later.
    from lightning_fabric import Fabric

    from training.engine.events import EventLogger
    from training.engine.strategies import check_started, choose_strategy

    # Keeps fp32 products (the memory's maps) on tensor cores where there are some; no effect on a CPU.
    torch.set_float32_matmul_precision("high")
    precision = choose_precision(config)
    is_alone = config.devices == "1" and config.num_nodes == 1
    timeout = timedelta(seconds=config.timeout_seconds)
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=int(config.devices) if config.devices.isdigit() else config.devices,
            num_nodes=config.num_nodes,
            strategy=choose_strategy(config.strategy, is_alone=is_alone, timeout=timeout),
            precision=precision,  # pyright: ignore[reportArgumentType]
            loggers=EventLogger(folder / "events"),
        )
        check_started(fabric, config.devices, config.num_nodes)
        fabric.launch()
    except (ValueError, TypeError, RuntimeError) as error:
        raise WorldError(f"fabric settings can't be used here: {error}") from error
    devices = f", {fabric.world_size} devices" if fabric.world_size > 1 else ""
    fabric.print(f"training on {fabric.device} in {precision}, strategy {config.strategy}{devices}")
    if config.compile:
        load_caches(fabric, Path(config.caches) if config.caches else folder / CACHES)
    return fabric


@contextmanager
def naming_lost_processes(fabric: Fabric, advice: str) -> Iterator[None]:
    """Raise `WorldError` in the place of what a backend says when another process of the run is gone.

    Args:
        fabric: The devices.
        advice: What to do, for the end of the sentence.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        is_lost = isinstance(error, DistError) or any(name in text.lower() for name in BACKENDS)
        if fabric.world_size == 1 or not is_lost:
            raise
        raise WorldError(
            f"process {fabric.global_rank} of {fabric.world_size} waited for another that is lost: {advice}"
        ) from error


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

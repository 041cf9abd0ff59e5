"""Device, precision and distribution as configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from training.engine.caches import CACHES, load_caches
from training.engine.events import EventLogger
from worldsim.errors import WorldError
from worldsim.runtime.device import computes_bf16
from worldsim.settings import check_settings, setting

PRECISIONS = ("auto", "32-true", "bf16-mixed")


@dataclass(kw_only=True, slots=True)
class FabricConfig:
    """What `lightning_fabric.Fabric` takes."""

    accelerator: str = setting("auto", "auto, cpu, cuda or mps.")
    devices: str = setting("1", "Number of devices, or auto.")
    num_nodes: int = setting(1, "Machines.", minimum=1)
    strategy: str = setting("auto", "auto, ddp or fsdp.")
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


def make_fabric(config: FabricConfig, folder: Path) -> Fabric:
    """Build and launch Fabric; event files for TensorBoard go to `folder / events`."""
    # Keeps fp32 products (the memory's maps) on tensor cores where there are some; no effect on a CPU.
    torch.set_float32_matmul_precision("high")
    precision = choose_precision(config)
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=int(config.devices) if config.devices.isdigit() else config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=precision,  # pyright: ignore[reportArgumentType]
            loggers=EventLogger(folder / "events"),
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise WorldError(f"fabric settings can't be used here: {error}") from error
    fabric.launch()
    fabric.print(f"training on {fabric.device} in {precision}, strategy {config.strategy}")
    if config.compile:
        load_caches(fabric, Path(config.caches) if config.caches else folder / CACHES)
    return fabric

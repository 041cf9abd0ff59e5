"""A training small enough to travel: what it needs to go on elsewhere, in a few files of limited size.

Weights, and the momenta of the optimizers, are stored in 8 or 16 bits a number; the moving average as its
distance from the weights as they are stored, so that it keeps more digits than they do; AdamW's second moment
as its root, rounded up, so that no step gets larger. What is small is stored as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.engine.run_folder import MAX_REASON, progress_of
from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting
from worldsim.storage.files import write_json
from worldsim.storage.quantization import SCALES, SMALL, dequantize, quantize
from worldsim.storage.tensors import (
    filling,
    read_checksums,
    read_object,
    sha256_of,
    swap_folder,
    write_tensors,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from training.engine.update import Training

EXPORT, LIST_FILE = "export", "export.json"
MEGABYTE, HEADER_BYTES = 10**6, 200_000
"""Of a file's size, and what its list of names takes at most."""
ROOT = "exp_avg_sq"
"""AdamW's second moment."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """What a training leaves behind to go on elsewhere."""

    bits: int = setting(
        0,
        "Bits of a number in OUT/export, from which the training goes on elsewhere; written at each "
        "checkpoint. 8 or 16; 0 writes none.",
        minimum=0,
    )
    megabytes: float = setting(15.0, "Size of each file there at most, in 10^6 bytes.", minimum=1)
    resume_from: str = setting("", "Folder OUT/export of another run, to go on from; '' is none.")

    def __post_init__(self) -> None:
        check_settings(self, "loop.export.")
        if self.bits not in (0, 8, 16):
            raise WorldError(f"loop.export.bits must be 0, 8 or 16, got {self.bits}")


def check_can_export(fabric: Fabric, config: ExportConfig) -> None:
    """Raise `WorldError` if the weights are not whole on one device."""
    from training.engine.strategies import ShardedStrategy  # Fabric is slow to import

    if (config.bits or config.resume_from) and isinstance(fabric.strategy, ShardedStrategy):
        raise WorldError("loop.export needs whole weights on each device: use strategy auto or ddp, not fsdp")


def export_training(fabric: Fabric, training: Training, out: Path, config: ExportConfig) -> None:
    """Write `OUT/export`, completely or not at all, in place of the one before; the first process does.

    Raises:
        OSError: If it cannot be written; the one before stays.
    """
    if not config.bits or fabric.global_rank != 0:
        return
    described: dict[str, Any] = {"step": training.step, "seconds": training.seconds, "bits": config.bits}
    room = int(config.megabytes * MEGABYTE) - HEADER_BYTES
    with filling(out / EXPORT) as part:
        files = {}
        for number, piece in enumerate(_pieces(_packed(_tensors(training), config.bits), room)):
            path = part / f"piece-{number:02d}.safetensors"
            write_tensors(piece, path)
            files[path.name] = sha256_of(path)
        write_json(part / LIST_FILE, described | {"files": files})
        swap_folder(part, out / EXPORT)


def import_training(training: Training, folder: Path) -> None:
    """Go on from what `export_training` wrote.

    The memory that long sequences carry from update to update is not in it: they begin with an empty one.

    Raises:
        WorldError: If a file is missing or damaged, or it is of another model.
    """
    described, stored = _read(folder)
    try:
        found = _unpacked(stored)
        for name, module in (("module/", training.module.module), ("average/", training.average)):
            _load_module(module, _below(name, found))
        for index, optimizer in enumerate(training.optimizers):
            _load_optimizer(optimizer.optimizer, _below(f"optimizer_{index}/", found))
        training.step, training.seconds = progress_of(described)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise WorldError(f"{folder} holds the training of another model: {reason}") from error


def _tensors(training: Training) -> dict[str, Tensor]:
    """Return all tensors of a training by name; the weights come before their average."""
    tensors = {f"module/{name}": t for name, t in training.module.module.state_dict().items()}
    tensors |= {f"average/{name}": t for name, t in training.average.state_dict().items()}
    for number, optimizer in enumerate(training.optimizers):
        for index, state in optimizer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer_{number}/{index}/{name}": t for name, t in state.items()}
    return tensors


def _averaged(name: str) -> str:
    """Return the name of what a tensor of the moving average is the average of."""
    return name.replace("average/module.", "module/", 1)


def _packed(tensors: Mapping[str, Tensor], bits: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors as they are stored, flat, by name."""
    weights: dict[str, Tensor] = {}  # as they will be read
    for name, tensor in tensors.items():
        flat = tensor.detach().flatten()
        if len(flat) < SMALL or not flat.is_floating_point():
            yield name, flat.cpu()
            continue
        x = flat.float().sqrt() if name.endswith(ROOT) else flat.float()
        if name.startswith("average/"):
            x = x - weights.pop(_averaged(name))
        values, scales = quantize(x, bits, up=name.endswith(ROOT))
        if name.startswith("module/"):
            weights[name] = dequantize(values, scales)
        yield name, values.cpu()
        yield name + SCALES, scales.cpu()


def _unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `_packed` was given, flat; `ValueError` if they do not fit together."""
    found: dict[str, Tensor] = {}
    for name in sorted(stored, key=lambda name: not name.startswith("module/")):
        if name.endswith(SCALES):
            continue
        flat, scales = stored[name], stored.get(name + SCALES)
        if scales is not None:
            flat = dequantize(flat, scales)
            flat = flat.square() if name.endswith(ROOT) else flat
            flat = flat + found[_averaged(name)] if name.startswith("average/") else flat
        found[name] = flat
    return found


def _load_module(module: nn.Module, found: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if other := sorted(own.keys() ^ found.keys()):
        raise ValueError(f"it has {'no ' if other[0] in own else ''}{other[0]}")
    module.load_state_dict({name: _shaped(name, found[name], own[name].shape) for name in own})


def _load_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, flat in found.items():
        index, _, part = name.partition("/")
        shape = torch.Size() if part == "step" else parameters[int(index)].shape
        state.setdefault(int(index), {})[part] = _shaped(name, flat, shape)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _shaped(name: str, flat: Tensor, shape: torch.Size) -> Tensor:
    if len(flat) != shape.numel():
        raise ValueError(f"{name} holds {len(flat):,} numbers, {shape.numel():,} are needed")
    return flat.view(shape)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _pieces(tensors: Iterator[tuple[str, Tensor]], room: int) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors in groups of at most `room` bytes; `NAME@PLACE` is where a part of one begins."""
    piece: dict[str, Tensor] = {}
    free = room
    for name, flat in tensors:
        place = 0
        while place < len(flat):
            count = min(len(flat) - place, free // flat.itemsize)
            if count:
                piece[f"{name}@{place:012d}"] = flat[place : place + count]
            place, free = place + count, free - count * flat.itemsize
            if place < len(flat):
                yield piece
                piece, free = {}, room
    yield piece


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the list of an export says, and its tensors as they are stored."""
    path = folder / LIST_FILE
    if not path.is_file():
        raise WorldError(f"{folder} is no export of a training: it has no {LIST_FILE}")
    described = read_object(path)
    parts: dict[str, Tensor] = {}
    for name, digest in read_checksums(described, path).items():
        piece = folder / name
        if not piece.is_file():
            raise WorldError(f"{folder} is not a whole export: it has no {name}")
        if sha256_of(piece) != digest:
            raise WorldError(
                f"{piece} is damaged, or of another export: its SHA-256 is not that in {LIST_FILE}"
            )
        parts |= load_file(piece)
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for part in sorted(parts):
        groups[part.rpartition("@")[0]].append(parts[part])
    return described, {name: torch.cat(group) for name, group in groups.items()}

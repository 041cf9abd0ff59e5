"""Commands run in this process, with tiny settings, and what they leave behind."""

from __future__ import annotations

import csv
import importlib
import json
import struct
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from tests.goldens import digest_of

LOOP = ["loop.num_steps=20", "loop.warmup_steps=2", "loop.log_every=1", "loop.checkpoint_seconds=1e9"]
CPU = ["fabric.accelerator=cpu", "fabric.precision=32-true"]
DEVICE = ["device=cpu", "dtype=float32", "threads=1"]
DATA = ["data.train=[data]", "data.heldout=[data]", "data.num_workers=1", "data.cache_latents=false"]
VALIDATION = ["validation.num_rollouts=2", "validation.context_frames=2", "validation.horizons=[1,2]"]
SHAPE = ["model.dim=16", "model.ffn_dim=16", "model.num_heads=1", "model.num_layers=2", "model.window=2"]
WORLD = [
    *DATA,
    *LOOP,
    *CPU,
    *VALIDATION,
    "batch_size=2",
    "sequence_length=6",
    "num_starts=2",
    "start_frames=4",
]
PRETRAIN = [
    *WORLD,
    *SHAPE,
    "name=tiny",
    "codec=world",
    "model.window_layers=[1]",
    "model.outcome_heads=true",
    "objective.own_context_share=0.5",
    "objective.own_context_depth=2",
    "objective.change_weight=2",
]
"""Settings of a tiny pretraining; paths are those of the stored inputs."""
RESUMED = [
    *WORLD,
    *SHAPE,
    "name=tiny",
    "codec=world",
    "model.window_layers=[1]",
    "model.ffn_dim=8",
    "model.dim=8",
    "out=run",
]
"""Settings of the run whose checkpoint is stored."""


def run_command(name: str, *settings: str) -> None:
    """Run `python -m training.NAME SETTINGS` in this process and this folder.

    Raises:
        SystemExit: If it fails.
    """
    main = importlib.import_module("play" if name == "play" else f"training.{name}").main
    GlobalHydra.instance().clear()
    before, sys.argv = sys.argv, [name, *settings]
    try:
        main()
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()


def run_in(folder: Path, name: str, *settings: str) -> None:
    """Run a command in a folder."""
    with chdir(folder):
        run_command(name, *settings)


def results_of(folder: Path) -> dict[str, Any]:
    """Return what a training left in its folder: losses, scores, and what its weights are."""
    results: dict[str, Any] = {}
    for path in sorted(folder.rglob("*tfevents*")):
        for tag, values in events_of(path).items():
            results[f"{path.parent.relative_to(folder)} {tag}"] = values
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = {name: value.double() for name, value in load_file(path).items()}
        size = sum(float(tensor.abs().mean()) for tensor in tensors.values()) / len(tensors)
        results[str(path.relative_to(folder))] = [digest_of(*tensors.values()), size]
    for path in sorted(folder.rglob("progress.csv")):
        with path.open(newline="") as file:
            rows = [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]
        results["progress.csv"] = [{k: v for k, v in row.items() if not is_clock(k)} for row in rows]
    if (path := folder / "config.json").is_file():  # numbers that a calibration found
        results["outcome"] = json.loads(path.read_text()).get("outcome")
    for name in ("selection.json", "matched.json"):
        for path in sorted(folder.rglob(name)):
            results[name] = json.loads(path.read_text())
    return results


def number(text: str) -> float | str:
    """Return the number that a text is, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def is_clock(name: str) -> bool:
    """Whether a number of a training depends on the clock."""
    return "second" in name or "minutes" in name


def events_of(path: Path) -> dict[str, list[float]]:
    """Return the numbers of an event file, each as `[step, value, step, value, ...]`."""
    found: dict[str, list[float]] = {}
    for record in records_of(path.read_bytes()):
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.HasField("simple_value") and not is_clock(value.tag):
                found.setdefault(value.tag, []).extend([event.step, value.simple_value])
    return found


def records_of(data: bytes) -> Iterator[bytes]:
    """Yield the records of an event file: each is its length and a checksum, itself, and a checksum."""
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        yield data[position + 12 : position + 12 + length]
        position += 16 + length


def compute_alone() -> None:
    """Compute in one thread and at PyTorch's own precision, whatever ran in this process before."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")

"""A run's folder: its configuration, its checkpoints, and how it goes on after it was killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from worldsim.errors import WorldError

CONFIG_FILE, CHECKPOINTS = "run.json", "checkpoints"
EXPORTED_FILE = "exported"
"""Holds the name of the checkpoint whose world was written."""
FREE_SETTINGS = (
    "out",
    "data.num_workers",
    "data.cache_latents",
    "data.cache_folder",
    "loop.num_steps",
    "loop.train_seconds",
    "loop.checkpoint_seconds",
    "loop.log_every",
)
"""Settings that a resumed run may change: given its learning rate, none changes what a step computes."""


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder, if there is one."""
    found = sorted(p for p in (folder / CHECKPOINTS).glob("step-*") if p.suffix != ".part")
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """Return how many updates a checkpoint had seen."""
    return int(checkpoint.name.removeprefix("step-"))


class RunFolder:
    """Where a training run lives; the same command finds it again and goes on.

    Args:
        path: The folder; created if missing.
        config: The run's typed configuration, kept as JSON and compared on resume.
        free_settings: Settings that a resumed run may change.

    Raises:
        WorldError: If the folder holds a run with other settings.
    """

    def __init__(self, path: Path | str, config: Any, free_settings: Collection[str] = FREE_SETTINGS) -> None:
        assert is_dataclass(config) and not isinstance(config, type)
        self.path = Path(path)
        self._free_settings = free_settings
        self.checkpoints = self.path / CHECKPOINTS
        self._settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
        known = self.path / CONFIG_FILE
        if known.is_file() and self.latest() is not None:
            self._check_same(json.loads(known.read_text()))
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def check_inputs(self, fabric: Fabric, **inputs: str) -> None:
        """Remember what the run learns from, or refuse if a resumed run would learn from something else.

        Args:
            fabric: Its first process writes.
            inputs: A digest for each thing that the settings only name, such as the data.
        """
        self._settings["inputs"] = inputs
        known = self.path / CONFIG_FILE
        if known.is_file() and self.latest() is not None:
            self._check_same(json.loads(known.read_text()))
        if fabric.global_rank == 0:
            part = known.with_name(CONFIG_FILE + ".part")
            part.write_text(json.dumps(self._settings, indent=2) + "\n")
            part.replace(known)
        fabric.barrier()

    def _check_same(self, before: Mapping[str, Any]) -> None:
        old, new = _flatten(before), _flatten(self._settings)
        if "inputs" not in self._settings:
            old = {key: value for key, value in old.items() if not key.startswith("inputs.")}
        differing = [
            k for k in sorted(old | new) if old.get(k) != new.get(k) and k not in self._free_settings
        ]
        if differing:
            changes = ", ".join(f"{k} was {old.get(k)} and is {new.get(k)}" for k in differing[:3])
            raise WorldError(
                f"{self.path} holds a run with other settings ({changes}); choose another out= folder"
            )

    def latest(self) -> Path | None:
        """Return the newest checkpoint, if there is one."""
        return newest_checkpoint(self.path)

    def is_exported(self, world: Path) -> bool:
        """Return whether a world is there and comes from the newest checkpoint, as `mark_exported` told."""
        mark, checkpoint = self.path / EXPORTED_FILE, self.latest()
        if checkpoint is None or not (world.exists() and mark.is_file()):
            return False
        return mark.read_text().strip() == checkpoint.name

    def mark_exported(self) -> None:
        """Remember that the newest checkpoint's world was written; a longer run will write it anew."""
        checkpoint = self.latest()
        assert checkpoint is not None
        mark = self.path / EXPORTED_FILE
        part = mark.with_name(mark.name + ".part")
        part.write_text(checkpoint.name + "\n")
        part.replace(mark)

    def save(self, fabric: Fabric, state: Mapping[str, Any], step: int) -> None:
        """Write a checkpoint, completely or not at all, and drop the one before."""
        target = self.checkpoints / f"step-{step:08d}"
        part = target.with_name(target.name + ".part")
        _remove(part)
        try:
            fabric.save(part, dict(state))
        except OSError as error:
            _remove(part)
            raise OSError(error.errno, error.strerror, str(target)) from error
        fabric.barrier()
        if fabric.global_rank == 0:
            if target.is_dir():  # a file is replaced in one step, a folder of shards cannot be
                _remove(target)
            part.replace(target)
            for old in self.checkpoints.glob("step-*"):
                if old != target:
                    _remove(old)
        fabric.barrier()


def _remove(path: Path) -> None:
    """Remove a checkpoint, which is a file, or a folder where a strategy writes shards."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

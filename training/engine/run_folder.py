"""Run folder: configuration, checkpoints, and resumption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from filelock import FileLock

from training.engine.lock import LOCK_FILE, is_first_process, lock_folder
from worldsim.errors import WorldError
from worldsim.storage.files import (
    MAX_INTEGER,
    PART_SUFFIX,
    read_json,
    read_text,
    sync,
    sync_tree,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CONFIG_FILE, CHECKPOINTS = "run.json", "checkpoints"
STEP = "step-"
"""Before the number of updates in a checkpoint's name."""
MAX_REASON = 300
"""Characters of what PyTorch says of a checkpoint that does not fit: it may list every tensor."""
EXPORTED_FILE, TOLD_FILE = "exported", "told"
"""Hold the name of the checkpoint whose world was written, and of the one after which all was said."""
FREE_SETTINGS = (
    "out",
    "codec",
    "init",
    "odometry",
    "data.train",
    "data.heldout",
    "data.num_workers",
    "data.cache_latents",
    "data.cache_folder",
    "fabric.devices",
    "fabric.num_nodes",
    "fabric.strategy",
    "fabric.timeout_seconds",
    "fabric.compile",
    "loop.global_batch_size",
    "loop.num_steps",
    "loop.train_seconds",
    "loop.counts_start",
    "loop.checkpoint_seconds",
    "loop.log_every",
    "loop.export.bits",
    "loop.export.megabytes",
    "loop.export.resume_from",
    "fabric.caches",
    "step.kernels",
    "step.scan_precision",
    "step.kept_share",
    "step.graphs",
    "world_bits",
)
"""Settings that a resumed run may change: given its learning rate, none changes what a step computes,
but for rounding.

Of what is read, contents are compared instead of names, so that a run can move to another machine; of the
devices, how many passes they make of an update.
"""
PASSES = "inputs.passes"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder, if there is one."""
    return max(_checkpoints(folder), key=step_of, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    found = (folder / CHECKPOINTS).glob(f"{STEP}*")
    return [path for path in found if path.name.removeprefix(STEP).isdecimal()]


def step_of(checkpoint: Path) -> int:
    """Return how many updates a checkpoint had seen."""
    return int(checkpoint.name.removeprefix(STEP))


def progress_of(state: Mapping[str, Any], steps: str = "step") -> tuple[int, float]:
    """Return how far a checkpoint's training is, in updates and in seconds.

    Args:
        state: Of the checkpoint.
        steps: What the updates are called in it.

    Raises:
        ValueError: If it does not say so.
    """
    for name, kinds in ((steps, int), ("seconds", int | float)):
        if not isinstance(state[name], kinds) or not 0 <= state[name] < MAX_INTEGER:
            raise ValueError(f"its {name} is {state[name]!r}")
    return state[steps], state["seconds"]


def defaults_of(settings: Any) -> dict[str, Any]:
    """Return the defaults of a dataclass and of those in it, by name; what is required has none."""
    found: dict[str, Any] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(value):
            found[each.name] = defaults_of(value)
        elif each.default is not MISSING:
            found[each.name] = each.default
        elif each.default_factory is not MISSING:
            found[each.name] = each.default_factory()
    return found


class RunFolder:
    """Where a training run lives; the same command finds it again and goes on.

    It belongs to one process at a time, as long as this object is kept. What a killed one left half-written
    is removed, and so are the folders that were made for a run which was refused before it wrote into them.

    Args:
        path: The folder; created if missing.
        config: The run's typed configuration, kept as JSON and compared on resume.
        free_settings: Settings that a resumed run may change.

    Raises:
        WorldError: If another process uses the folder, or it holds a run with other settings.
    """

    def __init__(self, path: Path | str, config: Any, free_settings: Collection[str] = FREE_SETTINGS) -> None:
        assert is_dataclass(config) and not isinstance(config, type)
        self.path = Path(path)
        self._free_settings = free_settings
        self.checkpoints = self.path / CHECKPOINTS
        self._settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
        self._defaults = _flatten(json.loads(json.dumps(defaults_of(config))))
        place = self.path.absolute()  # where it is when this ends, too
        made = [path for path in (place, *place.parents) if not path.exists()]
        lock = lock_folder(self.path, "run folder")
        finalize(self, _leave, lock, place, [place / CHECKPOINTS, *made], os.getpid())
        self._check_known()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if is_first_process():
            for left in self.checkpoints.glob(f"*{PART_SUFFIX}"):
                _remove(left)

    def check_inputs(self, fabric: Fabric, passes: int = 0, /, **inputs: str) -> None:
        """Remember what the run learns from, or refuse if a resumed run would learn from something else.

        Args:
            fabric: Its first process writes.
            passes: Of an update, on all devices; 0 where there are none.
            inputs: A digest for each thing that the settings only name, such as the data.
        """
        self._settings["inputs"] = inputs | ({"passes": passes} if passes else {})
        self._check_known()
        if fabric.global_rank == 0:
            write_json(self.path / CONFIG_FILE, self._settings)
            if self.latest() is None:  # what was made of another run's checkpoint is not made of this one's
                for mark in (EXPORTED_FILE, TOLD_FILE):
                    (self.path / mark).unlink(missing_ok=True)
        fabric.barrier()

    def _check_known(self) -> None:
        checkpoint, known = self.latest(), self.path / CONFIG_FILE
        if checkpoint is None:
            return
        if not known.is_file():
            raise WorldError(
                f"{checkpoint} belongs to a run whose settings are gone: there is no {known}; choose another "
                "out= folder"
            )
        before = read_json(known)
        if not isinstance(before, dict):
            raise WorldError(f"{known} holds no settings of a run; choose another out= folder")
        self._check_same(before)

    def _check_same(self, before: Mapping[str, Any]) -> None:
        new = _flatten(self._settings)
        # A run from before there was a setting had what is its default.
        old = {name: value for name, value in self._defaults.items() if name in new} | _flatten(before)
        if "inputs" not in self._settings:
            old = {key: value for key, value in old.items() if not key.startswith("inputs.")}
        if PASSES in new:
            self._check_passes(old.setdefault(PASSES, _devices_of(old)) or new[PASSES], new[PASSES])
            old[PASSES] = new[PASSES]
        differing = [
            k for k in sorted(old | new) if old.get(k) != new.get(k) and k not in self._free_settings
        ]
        if differing:
            changes = ", ".join(f"{k} was {old.get(k)} and is {new.get(k)}" for k in differing[:3])
            raise WorldError(
                f"{self.path} holds a run with other settings ({changes}); choose another out= folder"
            )

    def _check_passes(self, before: int, now: int) -> None:
        if before != now:
            raise WorldError(
                f"{self.path} holds a run whose updates are {before} passes of batch_size, and these "
                f"settings make {now}: set loop.global_batch_size to {before} times batch_size, or choose "
                "another out= folder"
            )

    def latest(self) -> Path | None:
        """Return the newest checkpoint, if there is one."""
        return newest_checkpoint(self.path)

    def shared_latest(self, fabric: Fabric) -> Path | None:
        """Return the newest checkpoint as the first process sees it; all processes must ask.

        Raises:
            WorldError: In all of them, if one does not see it: they go on from one file.
        """
        path = fabric.broadcast(self.latest())
        sees = torch.tensor(path is None or path.exists(), dtype=torch.float32, device=fabric.device)
        if not bool(torch.as_tensor(fabric.all_gather(sees)).all()):
            raise WorldError(
                f"{path} is not there on every machine: out= must be a folder that all of them share"
            )
        return path

    def is_exported(self, world: Path) -> bool:
        """Return whether a world is there and comes from the newest checkpoint, as `mark_exported` told."""
        return world.exists() and self.has_mark(EXPORTED_FILE)

    def mark_exported(self) -> None:
        """Remember that the newest checkpoint's world was written; a longer run will write it anew."""
        self.mark(EXPORTED_FILE)

    def has_mark(self, name: str) -> bool:
        """Return whether a mark was set for the newest checkpoint."""
        mark, checkpoint = self.path / name, self.latest()
        return checkpoint is not None and mark.is_file() and read_text(mark).strip() == checkpoint.name

    def mark(self, name: str) -> None:
        """Remember something of the newest checkpoint, by the first process of a run."""
        checkpoint = self.latest()
        assert checkpoint is not None
        write_text(self.path / name, checkpoint.name + "\n")

    def load(self, checkpoint: Path, restore: Callable[[], None]) -> None:
        """Restore a checkpoint of this run.

        Args:
            checkpoint: From `latest`.
            restore: Reads it; whatever it raises that is not the disk's or the memory's doing says that the
                file is not what was saved.

        Raises:
            WorldError: If the checkpoint is damaged, or another model's.
            OSError: If it cannot be read.
        """
        try:
            restore()
        except (OSError, WorldError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise WorldError(
                f"the checkpoint {checkpoint} is damaged or belongs to another run "
                f"({reason[:MAX_REASON]}): remove it to begin this run anew, or choose another out= folder"
            ) from error

    def save(self, fabric: Fabric, state: Mapping[str, Any], step: int) -> None:
        """Write a checkpoint, completely or not at all, and drop the one before.

        Raises:
            OSError: If it cannot be written; the one before stays.
        """
        target = self.checkpoints / f"{STEP}{step:08d}"
        part = target.with_name(target.name + PART_SUFFIX)  # of all processes of a run, so without a number
        try:
            fabric.save(part, dict(state))
            fabric.barrier()
            if fabric.global_rank == 0:
                sync_tree(part)
                part.replace(target)
                sync(self.checkpoints)
        except OSError as error:
            _remove(part)
            raise OSError(error.errno, error.strerror, str(target)) from error
        if fabric.global_rank == 0:
            for old in _checkpoints(self.path):
                if old != target:
                    _remove(old)
        fabric.barrier()


def _leave(lock: FileLock | None, place: Path, made: Sequence[Path], process: int) -> None:
    """Free a run's folder; of a run that was refused before it wrote anything nothing is left."""
    if lock is None or os.getpid() != process:  # a forked worker only has a copy of it
        return
    if lock.lock_counter == 1:  # nobody else in this process has it
        with suppress(OSError):  # while it is held: who comes now makes another; Windows keeps it
            (place / LOCK_FILE).unlink()
    lock.release()
    for each in made:
        with suppress(OSError):  # something is in it
            each.rmdir()


def _devices_of(settings: Mapping[str, Any]) -> int:
    """Return how many devices, with a pass each, a run of an earlier version had; 0 if it does not say."""
    devices = str(settings.get("fabric.devices", ""))
    return int(devices) * settings.get("fabric.num_nodes", 1) if devices.isdigit() else 0


def _remove(path: Path) -> None:
    """Remove a checkpoint, or a folder that lies in the place of one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

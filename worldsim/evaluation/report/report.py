"""Reports: JSON files that a command fills part by part, and that a later run resumes."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from worldsim.errors import WorldError
from worldsim.evaluation.report.targets import find
from worldsim.runtime.cores import usable_cores
from worldsim.storage.files import write_text
from worldsim.storage.tensors import read_object

Keys = tuple[str, ...]


class Report:
    """One JSON file and what it holds.

    Attributes:
        path: The file.
        data: Its content, a JSON object.
        renderers: Write the same beside it as text or plots, whenever it is written.
    """

    def __init__(
        self, path: Path, data: Mapping[str, Any], renderers: Sequence[Callable[[Report], None]] = ()
    ) -> None:
        self.path, self.data, self.renderers = path, as_json(data), renderers

    @classmethod
    def open(
        cls,
        path: Path,
        head: Mapping[str, Any],
        settings: Mapping[Keys, Any] | None = None,
        *,
        objects: Sequence[str] = (),
        is_complete: bool = False,
        renderers: Sequence[Callable[[Report], None]] = (),
    ) -> Report:
        """Resume the report that another run wrote, or start one.

        Args:
            head: What this run says of itself. It replaces what is there under the same keys; but of
                `objects` each holds both runs' entries, and this run's where both have one.
            settings: What both runs must have in common, as of `require`.
            objects: Keys under which the file must hold JSON objects.
            is_complete: Refuse a file without one of the settings.

        Raises:
            WorldError: If the file holds another kind of report, or was measured with other settings.
        """
        report = cls(path, head, renderers)
        if not path.is_file():
            return report
        known = cls(path, read_object(path))
        for key in objects:
            if not isinstance(known.data.get(key), dict):
                raise WorldError(
                    f"{path} is a report of something else, without {key!r}; choose another out= folder"
                )
        known.require(settings or {}, is_complete=is_complete)
        both = {key: known.data[key] | report.data.get(key, {}) for key in objects}
        report.data = known.data | report.data | both
        return report

    def require(self, settings: Mapping[Keys, Any], *, is_complete: bool = False) -> None:
        """Raise `WorldError` if it was measured with another value of one of some settings.

        They are given by the keys that lead to them. Where a report has none any will do, as in reports of
        earlier versions, unless it `is_complete`.
        """
        for keys, now in settings.items():
            before = find(self.data, keys)
            if before != now and (is_complete or before not in (None, "")):
                raise WorldError(
                    f"{self.path} was measured with {'.'.join(keys)}={before}, now {now}; "
                    "choose another out= folder"
                )

    def update(self, values: Any, *keys: object) -> None:
        """Store the entries of a mapping or a dataclass into the object that some keys lead to, as JSON.

        Those that it has under other names stay; objects on the way are made.
        """
        place = self.data
        for key in map(str, keys):
            place = place.setdefault(key, {})
        place |= as_json(values)

    def measure(
        self, parts: Mapping[Any, Callable[[], Any]], store: Callable[[Any, Any, float], None]
    ) -> None:
        """Run measurements in turn; each is stored and written before the next begins.

        `store` puts what a measurement returned into `data`; it takes its name, the result, and the seconds.
        """
        for name, measure in parts.items():
            began = time.perf_counter()
            found = measure()
            store(name, found, round(time.perf_counter() - began, 1))
            self.write()

    def write(self) -> None:
        """Write the file, completely or not at all, and what is rendered of it."""
        write_json(self.path, self.data)
        for render in self.renderers:
            render(self)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `as_json` of an object, completely or not at all."""
    write_text(path, json.dumps(as_json(data), indent=2, allow_nan=False) + "\n")


def as_json(value: Any) -> Any:
    """Return what a measurement returned as JSON holds it.

    A dataclass becomes an object of its fields, without those that are None by default and so were not
    measured. Keys of mappings, such as frames and gaps, become text; NaN and inf become null.
    """
    if is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        optional = {field.name for field in fields(value) if field.default is None}
        return {n: as_json(inner) for n, inner in found.items() if inner is not None or n not in optional}
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_run(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return by which command, when, where and on what hardware a report is made."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": git_commit(Path(__file__).parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "processor": processor_name(),
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        },
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit of a checkout, with `+changes` if files differ from it; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+changes" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


def processor_name() -> str:
    """Return the name of the processor as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

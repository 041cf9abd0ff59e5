"""Processor cores that this process may use, and how many threads or processes are started for them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from worldsim.errors import WorldError

MAX_WORKERS = 256
"""A system refuses far more of them, and PyTorch then ends the process without a word."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use: taskset, Slurm and containers leave it a part of them."""
    # The first is not there on macOS and Windows.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(cores, core_quota())))


def core_quota() -> float:
    """Return how many cores' time a container gives this process, infinite where it gives all there is."""
    quota = math.inf
    try:
        groups = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return quota
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS  # of version 1, and of version 2
        group = root / path.lstrip("/")
        # A container sees its own group as the root, under the path that it has outside.
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                quota = min(quota, _quota_of(folder))
    return quota


def _quota_of(folder: Path) -> float:
    """Return what one control group limits its processes to, in cores."""
    try:
        if (limit := folder / "cpu.max").is_file():
            allowed, period = limit.read_text().split()
        else:
            allowed, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = math.inf if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
    return cores if cores > 0 else math.inf  # -1 is no limit


def check_workers(asked: int, name: str) -> int:
    """Return a number of threads or processes that may be started; 0 lets the program choose.

    Raises:
        WorldError: If it is below 0 or above `MAX_WORKERS`, or the number of cores where that is larger.
    """
    if asked < 0:
        raise WorldError(f"{name} must be at least 0, got {asked}")
    if asked > (most := max(MAX_WORKERS, usable_cores())):
        raise WorldError(
            f"{name} must be at most {most}, got {asked}; there are {usable_cores()} cores to use"
        )
    return asked


def worker_count(asked: int, name: str = "num_workers") -> int:
    """Return how many threads or processes to start: as many as asked for, and for 0 one per core.

    Raises:
        WorldError: As `check_workers`.
    """
    return check_workers(asked, name) or usable_cores()

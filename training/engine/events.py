"""Event files for TensorBoard."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.utilities.rank_zero import rank_zero_only
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class EventLogger(Logger):
    """Scalars of a run, in event files that `tensorboard --logdir` reads; only the first process writes.

    What `log_metrics` was given is on the disk when it returns: a run that goes on from a checkpoint does not
    log again what came before it. Fabric's `TensorBoardLogger` hands events to a thread whose queue no flush
    waits for.

    Args:
        folder: Where the files go; created at the first event, as is a file of its own for each logger.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _writer(self) -> EventsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Two runs in one second and one folder would otherwise write to the same file.
        return EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}")

    @property
    def name(self) -> str:
        """Of this logger, among Fabric's."""
        return "events"

    @property
    def version(self) -> str:
        """None: a run that goes on adds a file to the folder."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one event per metric, and the file to the disk."""
        now = time.time()
        for name, value in metrics.items():
            self._writer.write_event(Event(step=step, wall_time=now, summary=scalar(name, float(value))))
        self._writer.flush()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: `run.json` holds the settings."""

"""Start-up time of a fresh process, to its first frame."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FIRST_FRAME = re.compile(r"start-up\s+([0-9.]+) s")
STARTUP_LIMIT_SECONDS = 300


def startup_seconds(command: Sequence[str], folder: Path, num_runs: int = 3) -> dict[str, Any]:
    """Run a command in a fresh process, some times, and read when it showed its first frame.

    The command prints `start-up N s` with the age of its process at the first frame, as `play.py` does. The
    first run may have to read everything from the disk.

    Returns:
        A JSON object with the `seconds` of all runs and their `median`; or `error` if the command failed.
    """
    seconds = []
    for _ in range(num_runs):
        try:
            run = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=STARTUP_LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no first frame within {STARTUP_LIMIT_SECONDS} s", "command": list(command)}
        found = FIRST_FRAME.search(run.stdout)
        if run.returncode or found is None:
            last_line = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()[-1]
            return {"error": last_line, "command": list(command)}
        seconds.append(float(found.group(1)))
    return {"seconds": seconds, "median": float(np.median(seconds)), "command": list(command)}

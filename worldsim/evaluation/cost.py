"""What a step costs in time and memory, and whether that stays so."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from worldsim.evaluation.clips import ClipBatch
from worldsim.session import steady_memory
from worldsim.simulator import Simulator
from worldsim.timing import Percentiles, process_memory_bytes

EARLY, LATE = (100, 200), (1900, 2000)
WARM_UP_FRAMES = 20
"""Steps that are not timed: the first ones allocate."""
FIRST_FRAME = re.compile(r"start-up\s+([0-9.]+) s")
STARTUP_LIMIT_SECONDS = 300


def step_cost(
    simulator: Simulator,
    start: ClipBatch,
    *,
    context_frames: int,
    num_frames: int,
    seed: int,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Time steps of a batch under random actions, each held for a few frames.

    Args:
        simulator: Of the world.
        start: Clips to start from; one for the cost of play.
        context_frames: Real frames watched first.
        num_frames: Steps; with 2,000 or more, early and late ones are compared.
        seed: Of actions and noise.
        show_progress: Show a progress bar.

    Returns:
        A JSON object; times in milliseconds, memory in bytes.
    """
    device, layout = simulator.world.device, simulator.world.config.actions
    held = np.random.default_rng(seed).integers(
        0, layout.num_values, size=(num_frames // 8 + 1, len(layout.axes))
    )
    actions = torch.from_numpy(np.repeat(held, 8, axis=0)).expand(len(start.clips), -1, -1).movedim(1, 0)
    state = start.begin_dreams(simulator, context_frames, seed)
    predict_ms, commit_ms = np.zeros(num_frames), np.zeros(num_frames)
    memory: dict[str, Any] = {}
    with steady_memory():
        for index in tqdm(range(num_frames), desc="step time", unit="frame", disable=not show_progress):
            began = now(device)
            prediction = simulator.predict(state, actions[index])
            drawn = now(device)
            state = simulator.commit(state, prediction)
            predict_ms[index], commit_ms[index] = 1000 * (drawn - began), 1000 * (now(device) - drawn)
            if index + 1 in (EARLY[0], LATE[1]):
                memory[str(index + 1)] = memory_in_use(device) | {"state_bytes": state.nbytes}
    return summarize_steps(predict_ms, commit_ms) | {
        "batch_size": len(start.clips),
        "memory_at_frame": memory,
    }


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def memory_in_use(device: torch.device) -> dict[str, int | None]:
    """Return the bytes that the process and, on a GPU, its tensors hold."""
    report: dict[str, int | None] = {"process_bytes": process_memory_bytes()}
    if device.type == "cuda":
        report["device_bytes"] = torch.cuda.memory_allocated(device)
    return report


def summarize_steps(predict_ms: np.ndarray, commit_ms: np.ndarray) -> dict[str, Any]:
    """Return percentiles of the parts and of whole steps, and late steps over early ones if it got there."""
    warm = slice(min(WARM_UP_FRAMES, len(predict_ms) // 2), None)
    step_ms = predict_ms + commit_ms
    times = {"step_ms": step_ms, "predict_ms": predict_ms, "commit_ms": commit_ms}
    report: dict[str, Any] = {name: asdict(Percentiles.of(values[warm])) for name, values in times.items()}
    report["num_frames"] = len(step_ms)
    report["p99_over_p50"] = report["step_ms"]["p99"] / report["step_ms"]["p50"]
    if len(step_ms) >= LATE[1]:
        late, early = (float(np.median(step_ms[slice(*span)])) for span in (LATE, EARLY))
        report["late_over_early"] = late / early
    return report


def state_growth(report: Mapping[str, Any]) -> int | None:
    """Return how many bytes the state grew between the two marks of `step_cost`, if it got that far."""
    marks = [report["memory_at_frame"].get(str(frame)) for frame in (EARLY[0], LATE[1])]
    return None if None in marks else marks[1]["state_bytes"] - marks[0]["state_bytes"]


def startup_seconds(command: Sequence[str], folder: Path, num_runs: int = 3) -> dict[str, Any]:
    """Run a command in a fresh process, some times, and read when it showed its first frame.

    Args:
        command: Prints `start-up N s` with the age of its process at the first frame, as `play.py` does.
        folder: Where it runs.
        num_runs: How often; the first run may have to read everything from the disk.

    Returns:
        A JSON object with the `seconds` of all runs and their `median`; or `error` if the command failed.
    """
    seconds = []
    for _ in range(num_runs):
        try:
            run = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=STARTUP_LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no first frame within {STARTUP_LIMIT_SECONDS} s", "command": list(command)}
        found = FIRST_FRAME.search(run.stdout)
        if run.returncode or found is None:
            last_line = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()[-1]
            return {"error": last_line, "command": list(command)}
        seconds.append(float(found.group(1)))
    return {"seconds": seconds, "median": float(np.median(seconds)), "command": list(command)}

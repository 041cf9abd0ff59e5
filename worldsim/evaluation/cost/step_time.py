"""What a step costs in time and memory, and whether that stays so."""

# F steps, B batch, A action axes

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.clips import ClipBatch
from worldsim.play.session import steady_memory
from worldsim.runtime.timing import Percentiles, process_memory_bytes
from worldsim.simulator import Simulator
from worldsim.state import WorldState

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
    actions = random_actions(simulator, len(start.clips), num_frames, seed)
    state = start.begin_dreams(simulator, context_frames, seed)
    trace = trace_steps(simulator, state, actions, show_progress=show_progress)
    marks = [frame for frame in (EARLY[0], LATE[1]) if frame <= num_frames]
    return summarize_steps(trace.predict_ms, trace.commit_ms) | {
        "batch_size": len(start.clips),
        "memory_at_frame": {str(frame): trace.memory_at(frame) for frame in marks},
    }


def random_actions(simulator: Simulator, batch_size: int, num_frames: int, seed: int) -> Tensor:
    """Return random actions that are held for a few frames each, `[F, B, A]` int64, alike in all rows."""
    layout = simulator.world.config.actions
    held = np.random.default_rng(seed).integers(
        0, layout.num_values, size=(num_frames // 8 + 1, len(layout.axes))
    )
    actions = torch.from_numpy(np.repeat(held, 8, axis=0)[:num_frames])
    return actions.expand(batch_size, -1, -1).movedim(1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrace:
    """What each of F steps cost, and what was held after it.

    Attributes:
        predict_ms: `[F]`.
        commit_ms: `[F]`.
        state_bytes: `[F]` int64, what is remembered.
        process_bytes: `[F]` int64, memory of the process; 0 where it is not known.
        device_bytes: `[F]` int64, tensors on the GPU; None without one.
        device_peak_bytes: `[F]` int64, the most that these took since the first step.
    """

    predict_ms: np.ndarray
    commit_ms: np.ndarray
    state_bytes: np.ndarray
    process_bytes: np.ndarray
    device_bytes: np.ndarray | None
    device_peak_bytes: np.ndarray | None

    @property
    def step_ms(self) -> np.ndarray:
        """Return the times of whole steps, `[F]`."""
        return self.predict_ms + self.commit_ms

    @property
    def peak_bytes(self) -> np.ndarray:
        """Return the most that was held up to each step, `[F]`: on a GPU there, else by the process."""
        held = self.process_bytes if self.device_peak_bytes is None else self.device_peak_bytes
        return np.maximum.accumulate(held)

    def memory_at(self, frame: int) -> dict[str, int | None]:
        """Return the bytes that were held after step number `frame`, counted from 1."""
        report: dict[str, int | None] = {"process_bytes": int(self.process_bytes[frame - 1]) or None}
        if self.device_bytes is not None:
            report["device_bytes"] = int(self.device_bytes[frame - 1])
        return report | {"state_bytes": int(self.state_bytes[frame - 1])}


def trace_steps(
    simulator: Simulator, state: WorldState, actions: Tensor, *, show_progress: bool = False
) -> StepTrace:
    """Step a batch of dreams and measure each step.

    Args:
        simulator: Of the world.
        state: Where the dreams begin.
        actions: `[F, B, A]` int64, of each step.
        show_progress: Show a progress bar.
    """
    device = simulator.world.device
    rows: list[tuple[float, float]] = []
    held: list[tuple[int, ...]] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with steady_memory():
        for action in tqdm(actions, desc="step time", unit="frame", disable=not show_progress):
            began = now(device)
            prediction = simulator.predict(state, action)
            drawn = now(device)
            state = simulator.commit(state, prediction)
            rows.append((1000 * (drawn - began), 1000 * (now(device) - drawn)))
            held.append((state.nbytes, process_memory_bytes() or 0, *device_memory(device)))
    predict_ms, commit_ms = np.array(rows).T
    state_bytes, process_bytes, *on_device = np.array(held, dtype=np.int64).T
    allocated, peak = on_device or (None, None)
    return StepTrace(
        predict_ms=predict_ms,
        commit_ms=commit_ms,
        state_bytes=state_bytes,
        process_bytes=process_bytes,
        device_bytes=allocated,
        device_peak_bytes=peak,
    )


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed_step(simulator: Simulator, state: WorldState, action: Tensor) -> tuple[float, WorldState]:
    """Return the milliseconds of a step, and the state after it."""
    device = simulator.world.device
    began = now(device)
    _, after = simulator.step(state, action)
    return 1000 * (now(device) - began), after


def commit_on(
    simulator: Simulator, state: WorldState, actions: Tensor, done: Callable[[], object] | None = None
) -> WorldState:
    """Return the state after a frame, drawn only once, was committed under each action `[F, B, A]`.

    `done` is called after each of them.
    """
    if not len(actions):
        return state
    drawn = simulator.predict(state, actions[0])
    for action in actions:
        state = simulator.commit_again(state, drawn.frames, drawn.latents, action)
        if done is not None:
            done()
    return state


def device_memory(device: torch.device) -> tuple[int, ...]:
    """Return the bytes that a GPU's tensors take and have taken at most; nothing without a GPU."""
    if device.type != "cuda":
        return ()
    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)


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

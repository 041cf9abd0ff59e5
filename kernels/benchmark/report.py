"""What every section of the benchmark uses: a report that survives failures, times, and errors."""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Result = dict[str, Any]


def say(text: str) -> None:
    """Print at once: a run that is cut short has shown what it knows."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Report:
    """What was measured so far, the time that is left, and where both go."""

    def __init__(self, path: Path | None, seconds: float, device: str, only: str = "") -> None:
        self.path, self.device, self.only = path, device, only
        self.deadline = time.monotonic() + seconds
        self.results: Result = {}
        self.sections: list[str] = []

    def seconds_left(self) -> float:
        """Return how long the run may still take."""
        return self.deadline - time.monotonic()

    def run(
        self, name: str, section: Callable[[Report], Result], needed: float = 0.0, *, always: bool = False
    ) -> None:
        """Run a section; what goes wrong in it is printed and kept, and the next one runs."""
        if not always:
            self.sections.append(name)
            if self.only not in name:
                return
        say(f"\n== {name} ({self.seconds_left():.0f} s left)")
        if self.seconds_left() < needed and not always:
            say(f"left out: it needs {needed:.0f} s")
            self.results[name] = {"left_out": True}
        else:
            try:
                self.results[name] = section(self)
            except Exception:
                self.results[name] = {"failed": traceback.format_exc()}
                say(traceback.format_exc())
        if self.path is not None:
            self.path.write_text(json.dumps(self.results, indent=1, default=str), encoding="utf-8")


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Return the relative Frobenius error, infinite where a number is not finite."""
    error = (value.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return float(error.detach()) if bool(value.isfinite().all()) else float("inf")


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """Return median, p10 and p90 of times in ms."""
    times, last = sorted(times), len(times) - 1
    return {
        "median_ms": statistics.median(times),
        "p10_ms": times[round(0.1 * last)],
        "p90_ms": times[round(0.9 * last)],
    }


def milliseconds(run: Callable[[], object], repeats: int = 10) -> dict[str, float]:
    """Return median, p10 and p90 of one call's time on the GPU, after two calls to warm up."""
    for _ in range(2):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return quantiles([start.elapsed_time(end) for start, end in events])


def cpu_milliseconds(runs: dict[str, Callable[[], object]], repeats: int = 15) -> dict[str, dict[str, float]]:
    """Return the times of several calls on a CPU, taken in turns: what else runs there meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: quantiles(every[1:]) for name, every in times.items()}


def graph_milliseconds(run: Callable[[], object], calls: int = 10, repeats: int = 40) -> dict[str, float]:
    """Return the time of one call inside a CUDA graph of several: what the GPU takes, not its launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    took = milliseconds(graph.replay, repeats)
    return {name: each / calls for name, each in took.items()}


def show_times(label: str, took: dict[str, float], floor_ms: float | None = None) -> Result:
    """Print one line of times, with the roofline floor where there is one; return what it says."""
    ratio = "" if floor_ms is None else f"   floor {floor_ms:.4f} ms, {took['median_ms'] / floor_ms:.1f}x"
    say(
        f"{label:44s} {took['median_ms']:9.4f} ms (p10 {took['p10_ms']:.4f}, p90 {took['p90_ms']:.4f}){ratio}"
    )
    extra = {} if floor_ms is None else {"floor_ms": floor_ms, "over_floor": took["median_ms"] / floor_ms}
    return took | extra


def copy_bandwidth() -> float:
    """Return what copying 1 GiB achieves, in GB/s, reads and writes counted."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source))["median_ms"] / 1e6

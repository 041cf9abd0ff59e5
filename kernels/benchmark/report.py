"""Report, timers and error measures of the benchmark."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
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
    """Results so far and the time left; a section that fails does not end the run."""

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


def attempt(label: str, run: Callable[[], Result]) -> Result:
    """Return what `run` does, or how it failed: a form that cannot run a shape does not end the section."""
    try:
        return run()
    except Exception as problem:
        say(f"{label:44s} {type(problem).__name__}: {str(problem)[:200]}")
        return {"failed": str(problem)[:500]}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Return the relative Frobenius error, infinite where an entry is NaN or inf."""
    error = (value.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return float(error.detach()) if bool(value.isfinite().all()) else float("inf")


def relative_errors(
    label: str, names: Sequence[str], values: Sequence[Tensor], expected: Sequence[Tensor]
) -> dict[str, float]:
    """Return the relative error of each tensor, by name; prints them in one line."""
    pairs = zip(names, values, expected, strict=True)
    errors = {name: relative_error(value, right) for name, value, right in pairs}
    say(f"{label:60s}" + "".join(f" {name} {error:.1e}" for name, error in errors.items()))
    return errors


QUANTILES = {"median_ms": 0.5, "p10_ms": 0.1, "p90_ms": 0.9}


def milliseconds(run: Callable[[], object]) -> dict[str, float]:
    """Return median, p10 and p90 of one call's time on the GPU, with a cold L2 cache."""
    return _quantiles("do_bench", run)


def graph_milliseconds(run: Callable[[], object]) -> dict[str, float]:
    """Return the time of one call inside a CUDA graph of many: what the GPU takes, not its launches."""
    return _quantiles("do_bench_cudagraph", run)


def _quantiles(timer: str, run: Callable[[], object]) -> dict[str, float]:
    bench = getattr(import_module("triton.testing"), timer)  # Triton is not everywhere
    return dict(zip(QUANTILES, bench(run, quantiles=list(QUANTILES.values())), strict=True))


def cpu_milliseconds(runs: dict[str, Callable[[], object]], repeats: int = 15) -> dict[str, dict[str, float]]:
    """Return the times of several calls on a CPU, taken in turns: other load then meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    shares = torch.tensor(list(QUANTILES.values()))
    return {
        name: dict(zip(QUANTILES, torch.tensor(each[1:]).quantile(shares).tolist(), strict=True))
        for name, each in times.items()
    }


def show_times(label: str, took: dict[str, float], floor_ms: float | None = None) -> Result:
    """Print one line of times, with the roofline floor where there is one; return both."""
    ratio = "" if floor_ms is None else f"   floor {floor_ms:.4f} ms, {took['median_ms'] / floor_ms:.1f}x"
    say(
        f"{label:44s} {took['median_ms']:9.4f} ms (p10 {took['p10_ms']:.4f}, p90 {took['p90_ms']:.4f}){ratio}"
    )
    extra = {} if floor_ms is None else {"floor_ms": floor_ms, "over_floor": took["median_ms"] / floor_ms}
    return took | extra


def copy_bandwidth() -> float:
    """Return the bandwidth of copying 1 GiB on the GPU, in GB/s, reads and writes counted."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source))["median_ms"] / 1e6

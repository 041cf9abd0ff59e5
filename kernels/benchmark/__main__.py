"""Command line of the operators' benchmark, on CUDA or CPU: `python -m kernels.benchmark`.

Times first, the most important rows before others, then errors against fp64, which take longer: the peers
tune themselves. Every section stands alone: one that fails says so, and one that no time is left for is left
out. With the package flash-linear-attention (extra `bench`) its forms run beside ours on the same inputs.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from kernels.benchmark import gradients, layers, memory, scan
from kernels.benchmark.report import Report, Result, say


def describe(report: Report) -> Result:
    """Say what the numbers were measured with."""
    about: Result = {"device": report.device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if report.device == "cuda":
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for package in ("triton", "flash-linear-attention"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = "not installed"
    say(str(about))
    return about


def run_on_cpu(report: Report) -> None:
    """Run the sections that a CPU answers."""
    report.run("commit and read", memory.cpu_rows)
    report.run("scan", memory.cpu_scan, needed=10.0)
    report.run("commit: errors against fp64", memory.commit_errors)
    report.run("commit: errors over frames", memory.errors_over_frames, needed=15.0)
    report.run("commit: gradients", gradients.commit_gradients, needed=10.0)
    report.run("layers: times", layers.cpu_layers)
    report.run("layers: errors", layers.layer_errors)


def run_on_cuda(report: Report) -> None:
    """Run the sections that need a card."""
    report.run("commit: wide heads", partial(memory.commit_times, memory.WIDE))
    report.run("commit: narrow heads", partial(memory.commit_times, memory.NARROW))
    report.run("read", memory.read_times, needed=10.0)
    report.run("layers: times", layers.layer_times, needed=20.0)
    report.run("layers: window", layers.window_times, needed=20.0)
    report.run("layers: settings", layers.layer_settings, needed=15.0)
    report.run("layers: errors", layers.layer_errors, needed=15.0)
    report.run("commit: errors over frames", memory.errors_over_frames, needed=15.0)
    report.run("commit: gradients", gradients.commit_gradients, needed=15.0)
    report.run("scan: times", scan.time_forms, needed=5.0)
    report.run("scan: wide heads", scan.time_wide, needed=10.0)
    report.run("scan: torch.compile around the operator", scan.compile_around, needed=10.0)
    report.run("scan: torch form, compiled", scan.time_compiled, needed=20.0)
    report.run("commit: errors against fp64", memory.commit_errors)
    report.run("scan: errors against fp64", scan.check_errors)


def results_path(text: str) -> Path:
    """Return where the results go; found out before anything is measured."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} names no file in a folder that exists")
    return path


def main() -> None:
    """Run all sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=results_path, default=None, help="where to write the results as JSON")
    parser.add_argument("--seconds", type=float, default=115.0, help="time that all of it may take")
    parser.add_argument("--only", default="", help="run the sections whose name contains this")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = Report(arguments.out, arguments.seconds, device, arguments.only)
    report.run("environment", describe, always=True)
    (run_on_cuda if report.device == "cuda" else run_on_cpu)(report)
    if not any(report.only in name for name in report.sections):
        known = ", ".join(repr(name) for name in report.sections)
        parser.error(f"--only {report.only!r} is part of no section's name; there are {known}")
    say("\nJSON " + json.dumps(report.results, default=str))


if __name__ == "__main__":
    main()

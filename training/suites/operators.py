"""Suite of a step's operators, `benchmark=step`: OUT/step.json holds counts and milliseconds by kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.suites.settings import EvaluateConfig
from worldsim.evaluation.cost.step_operators import measure_operators
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.text import format_operators
from worldsim.simulator import open_simulator

STEP_REPORT_FILE = "step.json"


def benchmark_step(config: EvaluateConfig, out: Path) -> None:
    """Measure, print a table, write OUT/step.json; a second world is stepped in turn with the first."""
    runtime = replace(config.runtime(), compile="none")  # a graph launches kernels that nobody sees
    names = [config.world, *([] if config.against is None else [config.against])]
    simulators = [open_simulator(name, runtime) for name in names]
    first = simulators[0]
    print(f"on {first.device_choice}, {first.sampler.num_steps} passes a frame", flush=True)
    measured = measure_operators(simulators, num_steps=config.step_count, seed=config.seed)
    worlds = [each.world.identity for each in simulators]
    steps = dict(zip(("world", "against"), measured, strict=False))  # without the second, one alone
    head = describe_run(first.world.device, first.world.dtype)
    report = Report(out / STEP_REPORT_FILE, head | {"worlds": worlds, "steps": steps})
    report.write()
    table = format_operators(list(zip(worlds, measured, strict=True)))
    print(f"\n{table}\n\nwritten to {report.path}")

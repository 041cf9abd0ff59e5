"""Throughput suite: environment steps a second, `python -m training.evaluate benchmark=env`."""

from __future__ import annotations

from pathlib import Path

from training.suites.settings import EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.throughput import format_throughput, measure_game, measure_throughput
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.simulator import open_world

ENV_REPORT_FILE = "env.json"
GAME_STEPS = 2000
MIN_STEPS = {"cpu": 3, "cuda": 60}
"""Steps from which on a median says something: those of a CPU differ little and take seconds."""


def benchmark_env(config: EvaluateConfig, out: Path) -> None:
    """Measure, print a table, write OUT/env.json; the real game of that name is measured where it can be."""
    world, choice = open_world(config.world, config.runtime())
    print(f"world {world.identity}, on {choice}", flush=True)
    measured = measure_throughput(
        world,
        config.env_counts,
        num_frames=config.env_frames,
        min_steps=config.env_min_steps or MIN_STEPS[choice.device.type],
        max_steps=config.env_max_steps,
        seed=config.seed,
        denoising_steps=config.denoising_steps,
        compile=config.compile,
    )
    missing = ""
    try:
        measured["real game"] = measure_game(world.config.name, GAME_STEPS, config.seed)
    except WorldError as error:
        missing = str(error)
    head = describe_run(choice.device, choice.dtype) | {"world": world.identity}
    report = Report(out / ENV_REPORT_FILE, head | {"environments": measured})
    report.write()
    print(f"\n{format_throughput(measured)}")
    if missing:
        print(f"\nthe real game was not measured: {missing}")
    print(f"\nwritten to {report.path}")

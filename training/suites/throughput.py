"""Environment steps a second, as a table and as JSON: `python -m training.evaluate benchmark=env`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from worldsim.errors import WorldError
from worldsim.evaluation.cost.throughput import format_throughput, measure_game, measure_throughput
from worldsim.evaluation.report import report
from worldsim.runtime.config import RuntimeConfig
from worldsim.simulator import open_world

ENV_REPORT_FILE = "env.json"
GAME_STEPS = 2000
MIN_STEPS = {"cpu": 3, "cuda": 60}
"""Steps from which on a median says something: those of a CPU differ little and take seconds."""


def benchmark_env(
    world: str,
    out: Path,
    counts: list[int],
    *,
    num_frames: int,
    min_steps: int,
    max_steps: int,
    seed: int,
    device: str,
    dtype: str,
    denoising_steps: int | None,
    compile: str,
) -> None:
    """Measure, print a table, write OUT/env.json; the real game of that name is measured where it can be.

    Settings are those of `conf/evaluate.yaml`; `min_steps` 0 is what suits the device.
    """
    loaded, choice = open_world(world, RuntimeConfig(device=device, dtype=dtype))
    print(f"world {loaded.identity}, on {choice}", flush=True)
    measured = measure_throughput(
        loaded,
        counts,
        num_frames=num_frames,
        min_steps=min_steps or MIN_STEPS[choice.device.type],
        max_steps=max_steps,
        seed=seed,
        denoising_steps=denoising_steps,
        compile=compile,
        show_progress=True,
    )
    missing = ""
    try:
        measured["real game"] = measure_game(loaded.config.name, GAME_STEPS, seed)
    except WorldError as error:
        missing = str(error)
    head: dict[str, Any] = report.describe_run(
        [shlex.quote(word) for word in sys.orig_argv], choice.device, choice.dtype
    )
    report.write_json(out / ENV_REPORT_FILE, head | {"world": loaded.identity, "environments": measured})
    print(f"\n{format_throughput(measured)}")
    if missing:
        print(f"\nthe real game was not measured: {missing}")
    print(f"\nwritten to {out / ENV_REPORT_FILE}")

"""Quality suite: roll-outs, reactions, outcomes and cost of one world, beside the real game."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.suites.settings import PARTS, EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.step_time import step_cost
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.controllability import PAIRS, opposite_action_test
from worldsim.evaluation.quality.idle import idle_hold
from worldsim.evaluation.quality.outcome import format_outcomes, summarize_outcomes
from worldsim.evaluation.quality.outcome_predictions import (
    DRAWN,
    GIVEN,
    missing_outcome_requirements,
    predict_recordings,
)
from worldsim.evaluation.quality.rollouts import (
    RolloutSettings,
    predict_next,
    roll_out,
    summarize_next,
    summarize_rollouts,
)
from worldsim.evaluation.report.pictures import (
    CURVE_FILE,
    FILM_FILE,
    VIDEO_FILE,
    write_curve,
    write_filmstrip,
    write_video,
)
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.targets import QUALITY_TARGETS, check
from worldsim.evaluation.report.text import format_horizons, format_targets
from worldsim.simulator import open_simulator
from worldsim.storage.files import without_litter

ROOT = Path(__file__).resolve().parents[2]
REPORT_FILE = "report.json"
FIRST_FRAME = re.compile(r"start-up\s+([0-9.]+) s")
STARTUP_LIMIT_SECONDS = 300


def measure_quality(config: EvaluateConfig, out: Path) -> None:
    """Measure the parts that were asked for, write the report after each, print where the world stands."""
    evaluation = Evaluation(config, out)
    evaluation.measure()
    data = evaluation.report.data
    if "rollout" in data:
        print(f"\n{format_horizons(data['rollout'])}")
    for kind in (GIVEN, DRAWN):
        if judged := data.get("outcome", {}).get(kind):
            print(f"\noutcomes of frames that were {kind}\n{format_outcomes(judged)}")
    print(f"\n{format_targets(data['bars'])}")
    startup = data.get("cost", {}).get("startup", {})
    if "error" in startup:
        print(f"\nstart-up was not measured: {startup['error']}")
    print(f"\nwritten to {out}: {', '.join(path.name for path in without_litter(out.iterdir()))}")


class Evaluation:
    """A world, the real game beside it, and the report that becomes `report.json`."""

    def __init__(self, config: EvaluateConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.simulator = open_simulator(config.world, replace(config.runtime(), compile="none"))
        self.world, choice = self.simulator.world, self.simulator.device_choice
        described = self.world.config
        self.recordings = Recordings(
            Path(config.data), described.actions, (described.height, described.width), config.num_episodes
        )
        self._how: dict[str, Any] = {
            "context_frames": config.context_frames,
            "batch_size": config.batch_size or (64 if choice.device.type == "cuda" else 16),
            "seed": config.seed,
        }
        self._check_episodes()
        frames, sampler = sum(self.recordings.lengths), self.simulator.sampler
        print(f"world {self.world.identity}, {sampler.num_steps} denoising steps, on {choice}")
        print(f"{len(self.recordings.episodes)} episodes, {frames} frames in {config.data}", flush=True)
        head = describe_run(choice.device, choice.dtype) | {
            "world": self.world.identity,
            "data": {"folder": config.data, "source": self.recordings.info.source},
            "sampler": asdict(sampler),
            "settings": asdict(config),
            "bars": [],
        }
        self.report = Report(out / REPORT_FILE, head)

    def _check_episodes(self) -> None:
        """Find now, and not after an hour, what the episodes are too few or too short for."""
        config, parts = self.config, self.config.chosen_parts
        problem = "outcome" in parts and missing_outcome_requirements(self.simulator, self.recordings)
        if problem and parts == ["outcome"]:
            raise WorldError(problem)
        horizon = max(config.horizon, config.next_frames) if "rollout" in parts else 0
        self.recordings.choose(config.context_frames + horizon, 1, config.seed)

    def measure(self) -> None:
        """Measure the parts that were asked for."""
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "cost": self._cost,
            "rollout": self._rollout,
            "controllability": self._controllability,
            "idle": self._idle,
            "outcome": self._outcome,
        }
        chosen = {part: measures[part] for part in PARTS if part in self.config.chosen_parts}
        self.report.measure(chosen, self._store)

    def _store(self, part: str, found: dict[str, Any], seconds: float) -> None:
        self.report.data[part] = found | {"measured_in_seconds": seconds}
        rows = check(self.report.data, QUALITY_TARGETS)
        self.report.data["bars"] = [{k: value for k, value in row.items() if k != "count"} for row in rows]

    def _cost(self) -> dict[str, Any]:
        config, context = self.config, self.config.context_frames
        clips = self.recordings.choose(context, 1, config.seed)
        start = next(self.recordings.batches(clips, context, 1))
        how: dict[str, int] = {"num_frames": config.cost_frames, "seed": config.seed}
        steps = step_cost(self.simulator, start, context_frames=context, **how)
        if config.startup_runs:
            steps["startup"] = startup_seconds(self._play_command(), ROOT, config.startup_runs)
        return steps

    def _play_command(self) -> list[str]:
        assert self.world.folder is not None
        folder = str(self.world.folder.resolve()).replace("'", "\\'")
        return [
            *(sys.executable, "play.py", f"world='{folder}'", "headless=true", "steps=1", "record=''"),
            *(f"device={self.config.device}", f"dtype={self.config.dtype}", f"threads={self.config.threads}"),
        ]

    def _rollout(self) -> dict[str, Any]:
        config = self.config
        settings = RolloutSettings(**self._how, horizon=config.horizon)
        clips = self.recordings.choose(settings.length, config.num_rollouts, config.seed)
        scores = roll_out(self.simulator, self.recordings, clips, settings)
        summary = summarize_rollouts(scores)
        write_filmstrip(self.out / FILM_FILE, scores.examples)
        write_video(self.out / VIDEO_FILE, scores.examples, self.world.config.frame_rate)
        write_curve(self.out / CURVE_FILE, summary["psnr_curve_db"])
        settings = replace(settings, horizon=config.next_frames)
        clips = self.recordings.choose(settings.length, config.num_next_clips, config.seed + 1)
        summary["next_frame"] = summarize_next(predict_next(self.simulator, self.recordings, clips, settings))
        return summary

    def _controllability(self) -> dict[str, Any]:
        found, count = {}, self.config.num_action_starts
        for pair in PAIRS:
            if pair.is_in(self.world.config.actions):
                found[pair.axis] = opposite_action_test(
                    self.simulator, self.recordings, pair, num_starts=count, **self._how
                )
            else:
                print(f"not tested: the world has no {pair.axis} {pair.positive} and {pair.negative}")
        return found

    def _idle(self) -> dict[str, Any]:
        starts, frames = self.config.num_idle_starts, self.config.idle_frames
        return idle_hold(self.simulator, self.recordings, num_starts=starts, num_frames=frames, **self._how)

    def _outcome(self) -> dict[str, Any]:
        if problem := missing_outcome_requirements(self.simulator, self.recordings):
            print(f"not measured: {problem}")
            return {}
        predicted = predict_recordings(
            self.simulator,
            self.recordings,
            batch_size=self._how["batch_size"],
            with_drawn=self.config.outcome_drawn,
            seed=self.config.seed,
        )
        meaning = self.world.config.outcome
        assert meaning is not None, "was looked for"
        return {
            kind: summarize_outcomes([one.judged(meaning) for one in episodes], meaning.end_threshold)
            for kind, episodes in predicted.items()
        }


def startup_seconds(command: Sequence[str], folder: Path, num_runs: int = 3) -> dict[str, Any]:
    """Run a command in a fresh process, some times, and read when it showed its first frame.

    The command prints `start-up N s` with the age of its process at the first frame, as `play.py` does. The
    first run may have to read everything from the disk. Returns a JSON object with the `seconds` of all runs
    and their `median`; or `error` if the command failed.
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

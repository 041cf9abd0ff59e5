"""Quality suite: roll-outs, reactions, outcomes and cost of one world, beside the real game."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.suites.settings import PARTS, EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.step_time import StepCost, step_cost
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality import rollouts
from worldsim.evaluation.quality.controllability import PAIRS, Motions, opposite_action_test
from worldsim.evaluation.quality.idle import IdleHold, idle_hold
from worldsim.evaluation.quality.outcome import OutcomeAccuracy, summarize_outcomes
from worldsim.evaluation.quality.outcome_predictions import missing_outcome_requirements, predict_recordings
from worldsim.evaluation.report import pictures
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.targets import QUALITY_TARGETS, check
from worldsim.evaluation.report.text import format_horizons, format_outcomes, format_targets
from worldsim.simulator import open_simulator
from worldsim.storage.files import without_litter

ROOT = Path(__file__).resolve().parents[2]
REPORT_FILE = "report.json"
FIRST_FRAME = re.compile(r"start-up\s+([0-9.]+) s")
STARTUP_LIMIT_SECONDS = 300


def measure_quality(config: EvaluateConfig, out: Path) -> None:
    """Measure the parts that were asked for, write the report after each, print where the world stands."""
    evaluation = Evaluation(config, out)
    found = evaluation.measure()
    if "rollout" in found:
        print(f"\n{format_horizons(found['rollout'])}")
    for kind, accuracy in found.get("outcome", {}).items():
        print(f"\noutcomes of frames that were {kind}\n{format_outcomes(accuracy)}")
    print(f"\n{format_targets(evaluation.report.data['bars'])}")
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

    def measure(self) -> dict[str, Any]:
        """Measure the parts that were asked for; returns what each of them measured."""
        measures: dict[str, Callable[[], Any]] = {
            "cost": self._cost,
            "rollout": self._rollout,
            "controllability": self._controllability,
            "idle": self._idle,
            "outcome": self._outcome,
        }
        results: dict[str, Any] = {}

        def store(part: str, found: Any, seconds: float) -> None:
            results[part] = found
            self.report.update(found, part)
            self.report.update({"measured_in_seconds": seconds}, part)
            rows = check(self.report.data, QUALITY_TARGETS)
            bars = [{key: value for key, value in row.items() if key != "count"} for row in rows]
            self.report.update({"bars": bars})

        parts = [part for part in PARTS if part in self.config.chosen_parts]
        self.report.measure({part: measures[part] for part in parts}, store)
        return results

    def _cost(self) -> StepCost:
        config, context = self.config, self.config.context_frames
        clips = self.recordings.choose(context, 1, config.seed)
        start = next(self.recordings.batches(clips, context, 1))
        how: dict[str, int] = {"num_frames": config.cost_frames, "seed": config.seed}
        steps = step_cost(self.simulator, start, context_frames=context, **how)
        if config.startup_runs:
            startup = time_startup(self._play_command(), ROOT, config.startup_runs)
            self.report.update({"startup": startup}, "cost")
            if startup.error is not None:
                print(f"start-up was not measured: {startup.error}", flush=True)
        return steps

    def _play_command(self) -> list[str]:
        assert self.world.folder is not None
        folder = str(self.world.folder.resolve()).replace("'", "\\'")
        return [
            *(sys.executable, "play.py", f"world='{folder}'", "headless=true", "steps=1", "record=''"),
            *(f"device={self.config.device}", f"dtype={self.config.dtype}", f"threads={self.config.threads}"),
        ]

    def _rollout(self) -> rollouts.RolloutScores:
        config = self.config
        settings = rollouts.RolloutSettings(**self._how, horizon=config.horizon)
        clips = self.recordings.choose(settings.length, config.num_rollouts, config.seed)
        scores = rollouts.roll_out(self.simulator, self.recordings, clips, settings)
        found = rollouts.summarize_rollouts(scores)
        pictures.write_filmstrip(self.out / pictures.FILM_FILE, scores.examples)
        pictures.write_video(self.out / pictures.VIDEO_FILE, scores.examples, self.world.config.frame_rate)
        pictures.write_curve(self.out / pictures.CURVE_FILE, found.psnr_curve_db)
        settings = replace(settings, horizon=config.next_frames)
        clips = self.recordings.choose(settings.length, config.num_next_clips, config.seed + 1)
        predicted = rollouts.predict_next(self.simulator, self.recordings, clips, settings)
        return replace(found, next_frame=rollouts.summarize_next(predicted))

    def _controllability(self) -> dict[str, Motions]:
        found, count = {}, self.config.num_action_starts
        for pair in PAIRS:
            if pair.is_in(self.world.config.actions):
                found[pair.axis] = opposite_action_test(
                    self.simulator, self.recordings, pair, num_starts=count, **self._how
                )
            else:
                print(f"not tested: the world has no {pair.axis} {pair.positive} and {pair.negative}")
        return found

    def _idle(self) -> IdleHold:
        starts, frames = self.config.num_idle_starts, self.config.idle_frames
        return idle_hold(self.simulator, self.recordings, num_starts=starts, num_frames=frames, **self._how)

    def _outcome(self) -> dict[str, OutcomeAccuracy]:
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
            kind: summarize_outcomes([one.calibrated(meaning) for one in episodes], meaning.end_threshold)
            for kind, episodes in predicted.items()
        }


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds from starting a command to its first frame, of each run, and their median; or what failed."""

    command: list[str]
    seconds: list[float] | None = None
    median: float | None = None
    error: str | None = None


def time_startup(command: Sequence[str], folder: Path, num_runs: int = 3) -> Startup:
    """Run a command in a fresh process, some times, and read when it showed its first frame.

    The command prints `start-up N s` with the age of its process at the first frame, as `play.py` does. The
    first run may have to read everything from the disk.
    """
    failed, seconds = Startup(list(command)), []
    for _ in range(num_runs):
        try:
            run = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=STARTUP_LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return replace(failed, error=f"no first frame within {STARTUP_LIMIT_SECONDS} s")
        found = FIRST_FRAME.search(run.stdout)
        if run.returncode or found is None:
            last_line = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()[-1]
            return replace(failed, error=last_line)
        seconds.append(float(found.group(1)))
    return Startup(list(command), seconds, float(np.median(seconds)))

"""Measure a world against the real game: `python -m training.evaluate world=doom-rooms profile=quick`.

Writes OUT/report.json, and of the roll-outs a filmstrip, a video and a plot; prints where the world stands
beside what it must reach. The report is written anew after each part: a stopped run keeps what it has.
`benchmark=env` measures how fast environments step instead, `benchmark=endurance` whether they can go on and
on, `suite=consistency` what worlds remember.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.suites.consistency import SUITE, SUITE_PARTS, SuiteRun, measure_consistency
from training.suites.endurance import EnduranceConfig, benchmark_endurance
from training.suites.settings import ConsistencyConfig
from training.suites.throughput import benchmark_env
from worldsim.errors import WorldError
from worldsim.evaluation.cost.startup_time import startup_seconds
from worldsim.evaluation.cost.step_time import step_cost
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.controllability import PAIRS, opposite_action_test
from worldsim.evaluation.quality.idle import idle_hold
from worldsim.evaluation.quality.outcome import format_outcomes, summarize_outcomes
from worldsim.evaluation.quality.outcome_predictions import DRAWN, GIVEN, judge_recordings, why_not_judged
from worldsim.evaluation.quality.rollouts import (
    RolloutSettings,
    predict_next,
    roll_out,
    summarize_next,
    summarize_rollouts,
)
from worldsim.evaluation.report import report
from worldsim.evaluation.report.targets import format_table, judge
from worldsim.runtime.config import RuntimeConfig
from worldsim.runtime.cuda_graphs import COMPILE_MODES
from worldsim.runtime.device import choose_device, set_threads
from worldsim.simulator import open_simulator
from worldsim.storage.files import without_litter
from worldsim.world.world import shipped_worlds

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ("env", "endurance")
ENV_STEPS = ("env_min_steps", "env_max_steps")
PARTS = ("cost", "rollout", "controllability", "idle", "outcome")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """What to measure; `conf/evaluate.yaml` and `conf/profile` say what each setting means."""

    world: str | None = None
    data: str = "data/doom-rooms/heldout"
    out: str = "outputs/evaluate"
    benchmark: str | None = None
    suite: str | None = None
    worlds: Any = None  # of names to places; OmegaConf adds no keys to a typed dictionary
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    parts: list[str] | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    denoising_steps: int | None = None
    num_episodes: int = 0
    context_frames: int = 32
    batch_size: int = 0
    threads: int = 0
    num_rollouts: int = 64
    horizon: int = 128
    num_next_clips: int = 16
    next_frames: int = 64
    num_action_starts: int = 64
    num_idle_starts: int = 4
    idle_frames: int = 500
    outcome_drawn: bool = True
    cost_frames: int = 2000
    startup_runs: int = 3
    env_counts: list[int] = field(default_factory=lambda: [1, 8, 64, 256])
    env_frames: int = 768
    env_min_steps: int = 0
    env_max_steps: int = 300
    compile: str = "auto"
    endurance: EnduranceConfig = field(default_factory=EnduranceConfig)

    def __post_init__(self) -> None:
        if self.suite not in (None, SUITE):
            raise WorldError(f"suite must be {SUITE} or null, got {self.suite!r}")
        places = self.worlds.values() if isinstance(self.worlds, dict) else ()
        if self.worlds is not None and not (places and all(isinstance(place, str) for place in places)):
            raise WorldError(f"worlds must be {{name: world, name: world}}, got {self.worlds!r}")
        if self.worlds and self.suite is None:
            raise WorldError("worlds= belongs to suite=consistency; give world=, the one to measure")
        if self.world and self.worlds:
            raise WorldError("give world= or worlds=, not both")
        known = self.known_parts
        unknown = [part for part in self.chosen_parts if part not in known]
        if unknown or not self.chosen_parts:
            raise WorldError(f"parts must be some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
        for name in ("seed", "num_episodes", "batch_size", "threads", "startup_runs", *ENV_STEPS):
            if getattr(self, name) < 0:
                raise WorldError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.benchmark not in (None, *BENCHMARKS):
            raise WorldError(f"benchmark must be {' or '.join(BENCHMARKS)}, or null, got {self.benchmark!r}")
        if 0 < self.env_max_steps < self.env_min_steps:
            raise WorldError(
                f"env_max_steps is {self.env_max_steps}, less than env_min_steps, {self.env_min_steps}"
            )
        if self.compile not in COMPILE_MODES:
            raise WorldError(f"compile must be one of {', '.join(COMPILE_MODES)}, got {self.compile!r}")
        if not self.env_counts or min(self.env_counts) < 1:
            raise WorldError(f"env_counts must be numbers of at least 1, got {self.env_counts}")
        counts = ("context_frames", "num_rollouts", "horizon", "num_next_clips", "next_frames")
        others = ("num_action_starts", "num_idle_starts", "idle_frames", "cost_frames", "env_frames")
        for name in (*counts, *others):
            if getattr(self, name) < 1:
                raise WorldError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def known_parts(self) -> tuple[str, ...]:
        """What can be measured."""
        return PARTS if self.suite is None else SUITE_PARTS

    @property
    def chosen_parts(self) -> list[str]:
        """What is measured: all that can be, unless parts are named."""
        return list(self.known_parts) if self.parts is None else self.parts


@entry("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Measure the parts that were asked for, write the report after each, print the table."""
    with prepared_folder(Path(config.out)) as out:
        evaluate(config, out)


def evaluate(config: EvaluateConfig, out: Path) -> None:
    """Measure into a folder that is there."""
    if config.benchmark == "env":
        set_threads(config.threads)
        benchmark_env(
            config.world or first_world(),
            out,
            config.env_counts,
            num_frames=config.env_frames,
            min_steps=config.env_min_steps,
            max_steps=config.env_max_steps,
            seed=config.seed,
            device=config.device,
            dtype=config.dtype,
            denoising_steps=config.denoising_steps,
            compile=config.compile,
        )
        return
    if config.benchmark == "endurance":
        set_threads(config.threads)
        benchmark_endurance(
            config.endurance,
            config.world or first_world(),
            out,
            seed=config.seed,
            device=config.device,
            dtype=config.dtype,
            denoising_steps=config.denoising_steps,
            compile=config.compile,
        )
        return
    if config.suite == SUITE:
        evaluate_suite(config, out)
        return
    evaluation = Evaluation(config, out)
    # In this order: the cost is measured before decoded video fills the memory.
    for part in [part for part in PARTS if part in config.chosen_parts]:
        evaluation.measure(part)
    rollout = evaluation.parts.get("rollout")
    if rollout is not None:
        print(f"\n{report.format_horizons(rollout)}")
    for kind, judged in evaluation.parts.get("outcome", {}).items():
        if kind in (GIVEN, DRAWN):
            print(f"\noutcomes of frames that were {kind}\n{format_outcomes(judged)}")
    print(f"\n{format_table(judge(evaluation.parts))}")
    startup = evaluation.parts.get("cost", {}).get("startup", {})
    if "error" in startup:
        print(f"\nstart-up was not measured: {startup['error']}")
    print(f"\nwritten to {out}: {', '.join(path.name for path in without_litter(out.iterdir()))}")


def evaluate_suite(config: EvaluateConfig, out: Path) -> None:
    """Measure what worlds remember; a world alone goes by the name of its folder or of its run's."""
    place = config.world or first_world()
    run = SuiteRun(
        worlds=config.worlds or {name_of(place): place},
        data=Path(config.data),
        parts=config.chosen_parts,
        seed=config.seed,
        batch_size=config.batch_size,
        denoising_steps=config.denoising_steps,
        settings=asdict(config),
    )
    choice = choose_device(config.device, config.dtype)
    set_threads(config.threads)
    measure_consistency(config.consistency, run, choice, out)


def name_of(place: str) -> str:
    """Return what a world is called that nobody named: training leaves it in RUN/world."""
    path = Path(place)
    return path.parent.name if path.name == "world" and path.parent.name else path.name


@contextmanager
def prepared_folder(out: Path) -> Iterator[Path]:
    """Make sure that a folder can be written to, by this process alone, before an hour of work and not after.

    If nothing has been written in the end, what was created is removed again.

    Raises:
        WorldError: If another process uses it.
        OSError: If it cannot be written to.
    """
    with locked_folder(out):
        try:
            tempfile.TemporaryFile(dir=out).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(out)) from error
        yield out


class Evaluation:
    """A world, the real game beside it, and what was measured so far.

    Attributes:
        parts: Reports by part.
    """

    def __init__(self, config: EvaluateConfig, out: Path) -> None:
        self.config, self.out = config, out
        runtime = RuntimeConfig(
            device=config.device,
            dtype=config.dtype,
            denoising_steps=config.denoising_steps,
            compile="none",
            threads=config.threads,
        )
        self.simulator = open_simulator(config.world or first_world(), runtime)
        self.world, choice = self.simulator.world, self.simulator.device_choice
        described = self.world.config
        self.recordings = Recordings(
            Path(config.data), described.actions, (described.height, described.width), config.num_episodes
        )
        self.batch_size = config.batch_size or (64 if choice.device.type == "cuda" else 16)
        self.parts: dict[str, Any] = {}
        self._run = report.describe_run(
            [shlex.quote(word) for word in sys.orig_argv], choice.device, choice.dtype
        )
        problem = (
            why_not_judged(self.simulator, self.recordings) if "outcome" in config.chosen_parts else None
        )
        if problem and config.chosen_parts == ["outcome"]:
            raise WorldError(problem)
        # Too short episodes are found now, not after the parts that could do with them.
        horizon = max(config.horizon, config.next_frames) if "rollout" in config.chosen_parts else 0
        self.recordings.choose(config.context_frames + horizon, 1, config.seed)
        frames = sum(self.recordings.lengths)
        print(f"world {self.world.identity}, {self.simulator.sampler.num_steps} denoising steps, on {choice}")
        print(f"{len(self.recordings.episodes)} episodes, {frames} frames in {config.data}", flush=True)

    def measure(self, part: str) -> None:
        """Measure one part and write the report so far."""
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "cost": self._cost,
            "rollout": self._rollout,
            "controllability": self._controllability,
            "idle": self._idle,
            "outcome": self._outcome,
        }
        began = time.perf_counter()
        self.parts[part] = measures[part]()
        self.parts[part]["measured_in_seconds"] = round(time.perf_counter() - began, 1)
        head = self._run | {
            "world": self.world.identity,
            "data": {"folder": self.config.data, "source": self.recordings.info.source},
            "sampler": asdict(self.simulator.sampler),
            "settings": asdict(self.config),
        }
        report.write_json(self.out / report.REPORT_FILE, head | {"bars": judge(self.parts)} | self.parts)

    def _cost(self) -> dict[str, Any]:
        config = self.config
        clips = self.recordings.choose(config.context_frames, 1, config.seed)
        start = next(self.recordings.batches(clips, config.context_frames, 1))
        steps = step_cost(
            self.simulator,
            start,
            context_frames=config.context_frames,
            num_frames=config.cost_frames,
            seed=config.seed,
            show_progress=True,
        )
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
        settings = RolloutSettings(
            context_frames=config.context_frames,
            horizon=config.horizon,
            batch_size=self.batch_size,
            seed=config.seed,
            show_progress=True,
        )
        clips = self.recordings.choose(settings.length, config.num_rollouts, config.seed)
        scores = roll_out(self.simulator, self.recordings, clips, settings)
        summary = summarize_rollouts(scores)
        report.write_filmstrip(self.out / report.FILM_FILE, scores.examples)
        report.write_video(self.out / report.VIDEO_FILE, scores.examples, self.world.config.frame_rate)
        report.write_curve(self.out / report.CURVE_FILE, summary["psnr_curve_db"])
        settings = replace(settings, horizon=config.next_frames)
        clips = self.recordings.choose(settings.length, config.num_next_clips, config.seed + 1)
        summary["next_frame"] = summarize_next(predict_next(self.simulator, self.recordings, clips, settings))
        return summary

    def _controllability(self) -> dict[str, Any]:
        config, found = self.config, {}
        for pair in PAIRS:
            if pair.is_in(self.world.config.actions):
                found[pair.axis] = opposite_action_test(
                    self.simulator,
                    self.recordings,
                    pair,
                    num_starts=config.num_action_starts,
                    context_frames=config.context_frames,
                    batch_size=self.batch_size,
                    seed=config.seed,
                    show_progress=True,
                )
            else:
                print(f"not tested: the world has no {pair.axis} {pair.positive} and {pair.negative}")
        return found

    def _idle(self) -> dict[str, Any]:
        config = self.config
        return idle_hold(
            self.simulator,
            self.recordings,
            num_starts=config.num_idle_starts,
            num_frames=config.idle_frames,
            context_frames=config.context_frames,
            batch_size=self.batch_size,
            seed=config.seed,
            show_progress=True,
        )

    def _outcome(self) -> dict[str, Any]:
        problem = why_not_judged(self.simulator, self.recordings)
        if problem:
            print(f"not measured: {problem}")
            return {}
        judged = judge_recordings(
            self.simulator,
            self.recordings,
            batch_size=self.batch_size,
            with_drawn=self.config.outcome_drawn,
            seed=self.config.seed,
            show_progress=True,
        )
        threshold = self.world.config.end_threshold
        return {kind: summarize_outcomes(episodes, threshold) for kind, episodes in judged.items()}


def first_world() -> str:
    """Return the name of the first world that ships."""
    worlds = shipped_worlds()
    if not worlds:
        raise WorldError("no world ships with this copy; give world=, the folder of one")
    return worlds[0]


if __name__ == "__main__":
    main()

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
from dataclasses import asdict, dataclass, replace
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
from worldsim.evaluation.report import report
from worldsim.evaluation.report.targets import format_table, judge
from worldsim.runtime.config import RuntimeConfig, RuntimeSettings
from worldsim.runtime.cuda_graphs import COMPILE_MODES
from worldsim.runtime.device import choose_device, set_threads
from worldsim.settings import setting
from worldsim.simulator import open_simulator
from worldsim.storage.files import without_litter
from worldsim.world.world import shipped_worlds

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ("env", "endurance")
PARTS = ("cost", "rollout", "controllability", "idle", "outcome")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(RuntimeSettings):
    """What to measure."""

    world: str | None = setting(
        None, "A shipped world's name, a folder, or a Hugging Face id; null is the first that ships."
    )
    data: str = setting(
        "data/doom-rooms/heldout",
        "Held-out episodes with the world's buttons. Of suite=consistency a folder of folders recall-NNN "
        "and pairs-NNN, one for each number of frames out and back; of ordinary episodes the parts that "
        "need no way back are measured.",
    )
    out: str = setting("outputs/evaluate", "Folder of the report.")
    benchmark: str | None = setting(
        None,
        "null measures the parts; env measures how many steps a second environments make, endurance whether "
        "memory grows or anything becomes NaN or inf in a great many of them. Both need no data.",
    )
    suite: str | None = setting(
        None,
        "null measures the parts of one world; consistency measures what worlds remember "
        "(docs/consistency.md).",
    )
    worlds: Any = setting(
        None, "Of suite=consistency, to compare several: {name: world, name: world}, instead of world."
    )
    consistency: ConsistencyConfig = setting(ConsistencyConfig, "Of suite=consistency.")
    parts: list[str] | None = setting(
        None,
        "What to measure: cost, rollout, controllability, idle, outcome (of worlds with outcome heads). Of "
        "suite=consistency: recall, interventions, pairs, controllability, drift, fidelity, idle, "
        "continuation, probe, cost. null is all of these.",
    )
    seed: int = setting(0, "Of the noise, and of all else that is drawn.", minimum=0)
    denoising_steps: int | None = setting(None, "Denoising passes a frame; null is the world's own number.")
    num_episodes: int = setting(0, "Use only the first so many episodes of the data; 0 is all.", minimum=0)
    context_frames: int = setting(32, "Real frames watched before each dream.", minimum=1)
    batch_size: int = setting(
        0,
        "Dreams at a time; 0 is 16 on a CPU and 64 on a GPU. The step time is always that of one.",
        minimum=0,
    )
    num_rollouts: int = setting(64, "Of part rollout: roll-outs.", minimum=1)
    horizon: int = setting(128, "Of part rollout: frames of each.", minimum=1)
    num_next_clips: int = setting(
        16, "Of part rollout: clips whose next frames are predicted from real ones.", minimum=1
    )
    next_frames: int = setting(64, "Of part rollout: frames of each of them.", minimum=1)
    num_action_starts: int = setting(
        64, "Of part controllability: places at which actions are compared.", minimum=1
    )
    num_idle_starts: int = setting(4, "Of part idle: dreams in which nothing is pressed.", minimum=1)
    idle_frames: int = setting(500, "Of part idle: frames of each.", minimum=1)
    outcome_drawn: bool = setting(
        True,
        "Of part outcome: judge also the frames that the world draws, not only those that were recorded.",
    )
    cost_frames: int = setting(2000, "Of part cost: frame up to which step times are measured.", minimum=1)
    startup_runs: int = setting(
        3, "Of part cost: starts of play.py that are timed; 0 leaves them out.", minimum=0
    )
    env_counts: list[int] = setting(
        [1, 8, 64, 256], "Of benchmark=env: how many environments at a time.", minimum=1
    )
    env_frames: int = setting(
        768, "Of benchmark=env: frames that each number of environments draws in all.", minimum=1
    )
    env_min_steps: int = setting(
        0, "Of benchmark=env: steps in which it does so at least; 0 is 3 on a CPU and 60 on a GPU.", minimum=0
    )
    env_max_steps: int = setting(
        300, "Of benchmark=env: steps in which it does so at most; 0 is no limit.", minimum=0
    )
    compile: str = setting(
        "auto", "Of both benchmarks: how a GPU is given its kernels (docs/agents.md).", choices=COMPILE_MODES
    )
    endurance: EnduranceConfig = setting(EnduranceConfig, "Of benchmark=endurance.")

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
        if self.benchmark not in (None, *BENCHMARKS):
            raise WorldError(f"benchmark must be {' or '.join(BENCHMARKS)}, or null, got {self.benchmark!r}")
        RuntimeSettings.__post_init__(self)
        if not self.env_counts:
            raise WorldError("env_counts names no number of environments")
        if 0 < self.env_max_steps < self.env_min_steps:
            raise WorldError(
                f"env_max_steps is {self.env_max_steps}, less than env_min_steps, {self.env_min_steps}"
            )

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
        is_asked = "outcome" in config.chosen_parts
        problem = missing_outcome_requirements(self.simulator, self.recordings) if is_asked else None
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
        )

    def _outcome(self) -> dict[str, Any]:
        problem = missing_outcome_requirements(self.simulator, self.recordings)
        if problem:
            print(f"not measured: {problem}")
            return {}
        predicted = predict_recordings(
            self.simulator,
            self.recordings,
            batch_size=self.batch_size,
            with_drawn=self.config.outcome_drawn,
            seed=self.config.seed,
        )
        meaning = self.world.config.outcome
        assert meaning is not None, "was looked for"
        return {
            kind: summarize_outcomes([one.judged(meaning) for one in episodes], meaning.end_threshold)
            for kind, episodes in predicted.items()
        }


def first_world() -> str:
    """Return the name of the first world that ships."""
    worlds = shipped_worlds()
    if not worlds:
        raise WorldError("no world ships with this copy; give world=, the folder of one")
    return worlds[0]


if __name__ == "__main__":
    main()

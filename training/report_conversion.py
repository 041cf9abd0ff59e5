"""Compare a softmax world with what it was converted to: `python -m training.report_conversion`.

Writes OUT/conversion.md, its numbers and its plots, anew after each measurement: a stopped run keeps what it
has. A part that another run measured of the same worlds stays, so that roll-outs can be measured on a GPU and
the cost of a step on the processor that people play on.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from training.cli.entry import entry
from training.evaluate import prepared_folder
from worldsim.errors import WorldError
from worldsim.evaluation.cost import paper_shape
from worldsim.evaluation.cost.attention_speed import fastest_attention, measure_attention
from worldsim.evaluation.cost.step_time import (
    AROUND,
    compare_ages,
    random_actions,
    summarize_trace,
    trace_steps,
)
from worldsim.evaluation.inputs.clips import Clip, Recordings
from worldsim.evaluation.inputs.returns import ReturnClip, ReturnSettings, choose_returns
from worldsim.evaluation.memory.conversion import (
    HORIZONS,
    Contestant,
    check_can_forget,
    check_comparable,
    chosen_sampler,
    describe,
    summarize_quality,
    summarize_references,
)
from worldsim.evaluation.memory.span import (
    dream_returns,
    has_state,
    next_after_forgetting,
    score_references,
    summarize_returns,
    summarize_spans,
)
from worldsim.evaluation.quality.rollouts import FrameScores, RolloutSettings, roll_out
from worldsim.evaluation.report.conversion_markdown import NUMBERS_FILE, write_conversion
from worldsim.evaluation.report.report import describe_run
from worldsim.evaluation.statistics import estimate_of
from worldsim.model.conversion import check_softmax
from worldsim.runtime.device import DeviceChoice, choose_device, set_threads
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.storage.files import without_litter
from worldsim.storage.tensors import read_object
from worldsim.world import World

TEACHER = "teacher"
PARTS = ("in_turn", "cost", "rollouts", "memory", "paper_shape")
KEYS = {"in_turn": "in_turn", "cost": "cost", "rollouts": "quality", "memory": "memory"}
"""Under which key of a world its measurements of a part are."""


@dataclass(kw_only=True, slots=True)
class ReportConversionConfig:
    """What to compare; `conf/report_conversion.yaml` says what each setting means."""

    teacher: str | None = None
    worlds: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    data: str = "data/doom-rooms/heldout"
    out: str = "outputs/conversion"
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    denoising_steps: int | None = None
    commit_level: float | None = None
    context_frames: int = 32
    num_rollouts: int = 64
    horizon: int = max(HORIZONS)
    batch_size: int = 0
    early_frame: int = 81
    late_frame: int = 1005
    total_frames: int = 921
    memory_frames: int = 128
    return_distance: float = 32.0
    return_angle: float = 4.0
    return_absence: int = 16
    parts: list[str] = field(default_factory=lambda: ["cost", "rollouts", "memory"])
    paper_frames: int = 921
    paper_steps: int = 4

    def __post_init__(self) -> None:
        for name in ("seed", "threads", "batch_size"):
            if getattr(self, name) < 0:
                raise WorldError(f"{name} must be at least 0, got {getattr(self, name)}")
        counts = ("context_frames", "num_rollouts", "horizon", "early_frame", "total_frames")
        for name in (*counts, "memory_frames", "paper_frames", "paper_steps"):
            if getattr(self, name) < 1:
                raise WorldError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.late_frame <= self.early_frame:
            raise WorldError(f"late_frame {self.late_frame} must be after early_frame {self.early_frame}")
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise WorldError(f"parts are some of {', '.join(PARTS)}; got {', '.join(self.parts) or 'none'}")
        if "memory" in self.parts:
            _ = self.returns
        names = self.named_worlds()
        if unknown := [name for name in self.zeroed if name not in names]:
            raise WorldError(f"zeroed names {', '.join(unknown)}, which worlds does not")

    def named_worlds(self) -> dict[str, str]:
        """Return the worlds to compare with the teacher by their names.

        Raises:
            WorldError: If one has no name, or a name is given twice.
        """
        found: dict[str, str] = {}
        for given in self.worlds:
            name, _, place = (part.strip() for part in given.partition(":"))
            if not name or not place:
                raise WorldError(f"worlds takes NAME:WORLD, NAME:WORLD and so on, got {given!r}")
            if name in (TEACHER, *found):
                raise WorldError(f"worlds needs names that differ, also from {TEACHER!r}; got {name!r} again")
            found[name] = place
        return found

    @property
    def returns(self) -> ReturnSettings:
        """Which places count as coming back; raises `WorldError` where none could."""
        return ReturnSettings(
            distance=self.return_distance,
            angle_degrees=self.return_angle,
            absence=self.return_absence,
            context_frames=self.memory_frames,
        )

    @property
    def cost_frames(self) -> int:
        """Steps to time."""
        return max(self.late_frame + AROUND, self.total_frames)


@entry("report_conversion", ReportConversionConfig)
def main(config: ReportConversionConfig) -> None:
    """Check everything, measure, write what was measured after each part."""
    choice = choose_device(config.device, config.dtype)
    set_threads(config.threads)
    check_settings(config, choice)
    with prepared_folder(Path(config.out)) as out:
        comparison = Comparison(config, choice)
        known = out / NUMBERS_FILE
        if known.is_file():
            comparison.keep(read_object(known), known)
        for _ in comparison.measure():
            write_conversion(out, comparison.report)
        print(f"written to {out}: {', '.join(path.name for path in without_litter(out.iterdir()))}")


def check_settings(config: ReportConversionConfig, choice: DeviceChoice) -> None:
    """Raise `WorldError` where nothing was asked for, or what can't be done here."""
    if config.teacher is None and config.parts != ["paper_shape"]:
        raise WorldError("nothing to compare: give teacher= and worlds=, or parts=[paper_shape] alone")
    if (config.teacher is None) != (not config.worlds):
        raise WorldError("teacher= and worlds= belong together: the worlds are compared with the teacher")
    if "paper_shape" in config.parts and choice.device.type != "cuda":
        raise WorldError(f"the part paper_shape needs a CUDA GPU, and the device is {choice.device}")


class Comparison:
    """The worlds, the real game beside them, and what was measured so far.

    Attributes:
        report: For `write_conversion`.
    """

    def __init__(self, config: ReportConversionConfig, choice: DeviceChoice) -> None:
        self.config, self.choice = config, choice
        self.contestants: list[Contestant] = []
        command = ["python", *(shlex.quote(word) for word in sys.orig_argv[1:])]
        self.run = describe_run(command, choice.device, choice.dtype) | {"settings": asdict(config)}
        self.report: dict[str, Any] = {"runs": {}, "worlds": {}}
        if config.teacher is not None:
            self._prepare(config.teacher)

    def _load(self, place: str) -> World:
        return World.from_pretrained(place, device=self.choice.device, dtype=self.choice.dtype)

    def _prepare(self, teacher_place: str) -> None:
        """Find out now, and not after an hour, whether all can be measured."""
        config, teacher = self.config, self._load(teacher_place)
        check_softmax(teacher.config.denoiser, teacher_place)
        for name, place in {TEACHER: teacher_place, **config.named_worlds()}.items():
            world = self._load(place)
            check_comparable(teacher, name, world)
            self._add(name, place, world)
            if name in config.zeroed:
                check_can_forget(name, world)
                self._add(f"{name}, state zeroed", place, world, original=name)
        described = teacher.config
        self.recordings = Recordings(
            Path(config.data), described.actions, (described.height, described.width)
        )
        self.settings = RolloutSettings(
            context_frames=config.context_frames,
            horizon=config.horizon,
            batch_size=config.batch_size or (64 if self.choice.device.type == "cuda" else 16),
            seed=config.seed,
            num_examples=0,
            show_progress=True,
        )
        self.first = self.recordings.choose(1, 1, config.seed)
        self.clips: list[Clip] = []
        if "rollouts" in config.parts:  # the other parts need no episodes of that length
            self.clips = self.recordings.choose(self.settings.length, config.num_rollouts, config.seed)
        self.places: list[ReturnClip] = []
        if "memory" in config.parts:
            self._prepare_memory(teacher)
        self.run["data"] = {"folder": config.data, "source": self.recordings.info.source}

    def _prepare_memory(self, teacher: World) -> None:
        """Choose where memory is measured."""
        config, recordings = self.config, self.recordings
        self.memory_clips = recordings.choose(config.memory_frames + 1, config.num_rollouts, config.seed)
        self.places, told = choose_returns(recordings, config.returns, config.num_rollouts, config.seed)
        print(told, flush=True)
        episodes = self._episodes(self.places)
        references = score_references(teacher, recordings, self.places, config.returns) if episodes else {}
        self.report["returns"] = {
            "told": told,
            "settings": asdict(config.returns),
            "num_places": len(episodes),
            "num_episodes": len(set(episodes)),
            "references": {name: estimate_of(values, episodes) for name, values in references.items()},
        }

    def _episodes(self, places: Sequence[ReturnClip]) -> list[str]:
        return [self.recordings.name(place.clip) for place in places]

    def _add(self, name: str, place: str, world: World, *, original: str | None = None) -> None:
        load = partial(self._load, place)
        self.contestants.append(
            Contestant(name=name, load=load, is_zeroed=original is not None, original=original or name)
        )
        sampler = chosen_sampler(world, self.config.denoising_steps, self.config.commit_level)
        self.report["worlds"][name] = describe(world, sampler)

    def keep(self, known: Mapping[str, Any], path: Path) -> None:
        """Take over the parts that another run measured of these worlds and that this one does not measure.

        Args:
            known: What it wrote.
            path: Where it is written, for errors.

        Raises:
            WorldError: If it compared other worlds, drawn otherwise, or says nothing about its runs.
        """
        if not isinstance(known.get("runs"), dict):
            raise WorldError(f"{path} does not say by which runs it was made; choose another out= folder")
        kept = {part: run for part, run in known["runs"].items() if part not in self.config.parts}
        if "paper_shape" in kept:
            self.report["paper_shape"] = known["paper_shape"]
        if "rollouts" in kept:
            self.report["references"] = known["references"]
        if "memory" in kept:
            self.report["returns"] = known["returns"]
        of_worlds = [KEYS[part] for part in kept if part in KEYS]
        for name, world in self.report["worlds"].items() if of_worlds else ():
            before = known["worlds"].get(name, {})
            if differing := [key for key, value in world.items() if before.get(key, value) != value]:
                raise WorldError(
                    f"{path} compares another world under the name {name!r}: {differing[0]} was "
                    f"{before[differing[0]]} and is {world[differing[0]]}; choose another out= folder"
                )
            world |= {key: before[key] for key in of_worlds if key in before}
        self.report["runs"] = kept

    def measure(self) -> Iterator[None]:
        """Measure one thing after the other; `report` has grown each time."""
        # In this order: the cost is measured before decoded video fills the memory.
        measures = {
            "in_turn": self._ages,
            "cost": self._costs,
            "rollouts": self._rollouts,
            "memory": self._memories,
            "paper_shape": self._paper_shape,
        }
        for part in PARTS:
            if part in self.config.parts:
                self.report["runs"][part] = self.run
                yield from measures[part]()

    def _ages(self) -> Iterator[None]:
        config = self.config
        for contestant in self.contestants:
            if not contestant.is_zeroed:  # it would cost the same
                print(f"{contestant.name}: steps early and late, in turn", flush=True)
                simulator = contestant.simulator(config.denoising_steps, config.commit_level)
                state = self._first_state(simulator)
                self.report["worlds"][contestant.name]["in_turn"] = compare_ages(
                    simulator, state, config.early_frame, config.late_frame, seed=config.seed
                )
                yield

    def _first_state(self, simulator: Simulator) -> WorldState:
        """Return a dream in whose memory there is one frame."""
        start = next(self.recordings.batches(self.first, 1, 1))
        return start.begin_dreams(simulator, 1, self.config.seed)

    def _costs(self) -> Iterator[None]:
        for contestant in self.contestants:
            if not contestant.is_zeroed:  # it would cost the same
                print(f"{contestant.name}: step times", flush=True)
                self.report["worlds"][contestant.name]["cost"] = self._cost(contestant)
                yield

    def _rollouts(self) -> Iterator[None]:
        scores: dict[str, FrameScores] = {}
        for contestant in self.contestants:
            print(f"{contestant.name}: roll-outs", flush=True)
            self._quality(contestant, scores)
            yield

    def _memories(self) -> Iterator[None]:
        for contestant in self.contestants:
            if not contestant.is_zeroed:  # it has nothing that could be emptied
                print(f"{contestant.name}: memory", flush=True)
                self.report["worlds"][contestant.name]["memory"] = self._memory(contestant)
                yield

    def _cost(self, contestant: Contestant) -> dict[str, Any]:
        config = self.config
        simulator = contestant.simulator(config.denoising_steps, config.commit_level)
        state = self._first_state(simulator)  # frames are counted from the first
        actions = random_actions(simulator, 1, config.cost_frames, config.seed)
        trace = trace_steps(simulator, state, actions, show_progress=True)
        return summarize_trace(trace, config.early_frame, config.late_frame, config.total_frames)

    def _quality(self, contestant: Contestant, scores: dict[str, FrameScores]) -> None:
        """Roll out, and compare with the roll-outs of those before."""
        simulator = contestant.simulator(self.config.denoising_steps, self.config.commit_level)
        own = roll_out(simulator, self.recordings, self.clips, self.settings)
        scores[contestant.name] = own
        if contestant.name == TEACHER:
            self.report["references"] = summarize_references(own)
        original = scores[contestant.original] if contestant.is_zeroed else None
        quality = summarize_quality(own, scores[TEACHER], original)
        self.report["worlds"][contestant.name]["quality"] = quality

    def _memory(self, contestant: Contestant) -> dict[str, Any]:
        """Empty the states once and see what is lost, anywhere and at places that come back."""
        config, recordings = self.config, self.recordings
        simulator = contestant.simulator(config.denoising_steps, config.commit_level)
        how: dict[str, Any] = {"batch_size": self.settings.batch_size, "seed": config.seed}
        how["show_progress"] = True
        scores = next_after_forgetting(simulator, recordings, self.memory_clips, config.memory_frames, **how)
        report = summarize_spans(scores, [recordings.name(clip) for clip in self.memory_clips])
        if self.places:
            # A cache without states begins anew at one frame for all, and here there is one for each place.
            ways = (False, True) if has_state(simulator.world) else (False,)
            psnr = [
                dream_returns(simulator, recordings, self.places, config.returns, forgets=forgets, **how)
                for forgets in ways
            ]
            report["returns"] = summarize_returns(*psnr, episodes=self._episodes(self.places))
        return report

    def _paper_shape(self) -> Iterator[None]:
        config, shape = self.config, paper_shape.PAPER_SHAPE
        frames = paper_shape.latent_frames(config.paper_frames)
        names = ("dim", "num_layers", "num_heads", "tokens_per_frame")
        part: dict[str, Any] = {name: getattr(shape, name) for name in names}
        part |= {"video_frames": config.paper_frames, "latent_frames": frames}
        part |= {"denoising_steps": config.paper_steps, "models": {}}
        device, dtype = self.choice.device, self.choice.dtype
        speed = measure_attention(shape, frames, config.paper_steps + 1, device, dtype)
        part["attention"] = speed.to_json()
        self.report["paper_shape"] = part
        for name, model in paper_shape.models_of(shape).items():
            print(f"at the paper's shape: {name}", flush=True)
            with fastest_attention(speed):
                part["models"][name] = paper_shape.measure_shape(
                    model,
                    num_frames=frames,
                    num_steps=config.paper_steps,
                    device=device,
                    dtype=dtype,
                    show_progress=True,
                )
            yield


if __name__ == "__main__":
    main()

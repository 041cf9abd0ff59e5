"""Compare a softmax world with what it was converted to: `python -m training.report_conversion`.

Writes OUT/conversion.md, its numbers and its plots, anew after each measurement: a stopped run keeps what it
has. A part that another run measured of the same worlds stays, so that roll-outs can be measured on a GPU and
the cost of a step on the processor that people play on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from training.cli.entry import entry
from training.engine.lock import locked_folder
from worldsim.errors import WorldError
from worldsim.evaluation.cost import paper_shape, step_time
from worldsim.evaluation.inputs.clips import Clip, Recordings
from worldsim.evaluation.inputs.returns import ReturnClip, ReturnSettings, choose_returns
from worldsim.evaluation.memory import conversion, span
from worldsim.evaluation.memory.interventions import check_can_forget, has_state, zeroed, zeroed_name
from worldsim.evaluation.quality.rollouts import FrameScores, RolloutSettings, roll_out
from worldsim.evaluation.report.markdown import NUMBERS_FILE, write_conversion
from worldsim.evaluation.report.pictures import write_conversion_plots
from worldsim.evaluation.report.report import Report, as_json, describe_run
from worldsim.evaluation.statistics import estimate_of
from worldsim.model.conversion import check_softmax
from worldsim.runtime.config import RuntimeSettings
from worldsim.runtime.device import choose_device
from worldsim.settings import setting
from worldsim.simulator import Simulator, open_world
from worldsim.state import WorldState
from worldsim.storage.files import without_litter
from worldsim.world import World

TEACHER = "teacher"
PARTS = ("in_turn", "cost", "rollouts", "memory", "paper_shape")
KEYS = {"in_turn": "in_turn", "cost": "cost", "rollouts": "quality", "memory": "memory"}
"""Under which key of a world its measurements of a part are."""
SHARED_KEYS = {"rollouts": "references", "memory": "returns", "paper_shape": "paper_shape"}
"""Under which key of the report is what a part measures of no world."""
RENDERERS = (write_conversion_plots, write_conversion)


@dataclass(kw_only=True, slots=True)
class ReportConversionConfig(RuntimeSettings):
    """What to compare."""

    teacher: str | None = setting(None, "A shipped world's name, a folder, or a Hugging Face id.")
    worlds: list[str] = setting(
        [], "Worlds to compare with it, each behind its name: [NAME:WORLD, NAME:WORLD]."
    )
    zeroed: list[str] = setting(
        [], "Names of worlds to roll out again with their states emptied before every frame."
    )
    data: str = setting("data/doom-rooms/heldout", "Held-out episodes with the worlds' buttons.")
    out: str = setting("outputs/conversion", "Folder of the report.")
    seed: int = setting(0, "Of the noise, and of all else that is drawn.", minimum=0)
    denoising_steps: int | None = setting(None, "Passes a frame, for all worlds; null is each world's own.")
    commit_level: float | None = setting(None, "Noise level at commit, for all; null is each world's own.")
    context_frames: int = setting(32, "Real frames watched before each roll-out.", minimum=1)
    num_rollouts: int = setting(64, "Roll-outs, from different places.", minimum=1)
    horizon: int = setting(max(conversion.HORIZONS), "Frames of a roll-out.", minimum=1)
    batch_size: int = setting(0, "Roll-outs at a time; 0 chooses.", minimum=0)
    early_frame: int = setting(81, "Step time and bytes are compared at it and late_frame.", minimum=1)
    late_frame: int = setting(1005, "The later one of the two.")
    total_frames: int = setting(921, "Wall clock and peak memory are those of so many frames.", minimum=1)
    memory_frames: int = setting(
        128, "Of part memory: real frames watched, while which the state is emptied once.", minimum=1
    )
    return_distance: float = setting(
        32.0, "Of part memory: how near to a place the player must come back, in the game's units."
    )
    return_angle: float = setting(4.0, "Of part memory: how near the heading must come back, in degrees.")
    return_absence: int = setting(16, "Of part memory: frames for which the place was out of view.")
    parts: list[str] = setting(
        ["cost", "rollouts", "memory"],
        "What to measure: in_turn (a step late over a step early, taken in turn), cost (all step times, "
        "bytes), rollouts (PSNR), memory (what is lost without the state), paper_shape (random weights at "
        "the shape of the paper's model; needs a GPU).",
    )
    paper_frames: int = setting(921, "Of part paper_shape: frames of video.", minimum=1)
    paper_steps: int = setting(4, "Of part paper_shape: denoising steps.", minimum=1)

    def __post_init__(self) -> None:
        RuntimeSettings.__post_init__(self)
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
        """Return the worlds by their names; raises `WorldError` where one is missing or given twice."""
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


@entry("report_conversion", ReportConversionConfig)
def main(config: ReportConversionConfig) -> None:
    """Check everything, measure, write what was measured after each part."""
    if config.teacher is None and config.parts != ["paper_shape"]:
        raise WorldError("nothing to compare: give teacher= and worlds=, or parts=[paper_shape] alone")
    if (config.teacher is None) != (not config.worlds):
        raise WorldError("teacher= and worlds= belong together: the worlds are compared with the teacher")
    if "paper_shape" in config.parts:
        device = choose_device(config.device, config.dtype).device
        if device.type != "cuda":
            raise WorldError(f"the part paper_shape needs a CUDA GPU, and the device is {device}")
    out = Path(config.out)
    with locked_folder(out):
        Comparison(config, out).measure()
        print(f"written to {out}: {', '.join(path.name for path in without_litter(out.iterdir()))}")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One line of the comparison, read anew for each measurement, so that no other is in memory.

    `original` names the entry that it is when its states are not emptied before every frame.
    """

    name: str
    place: str
    original: str | None = None


class Comparison:
    """The worlds, the real game beside them, and the report, with what other runs measured of them."""

    def __init__(self, config: ReportConversionConfig, out: Path) -> None:
        self.config = config
        self.models: list[ModelEntry] = []
        self._head: dict[str, Any] = {"runs": {}, "worlds": {}}
        self._scores: dict[str, FrameScores] = {}
        if config.teacher is None:
            self.choice = choose_device(config.device, config.dtype)
        else:
            self._prepare(config.teacher)
        self.run = describe_run(self.choice.device, self.choice.dtype) | {"settings": asdict(config)}
        if self.models:
            self.run["data"] = {"folder": config.data, "source": self.recordings.info.source}
        self.report = self._open_report(out / NUMBERS_FILE)

    def _prepare(self, teacher_place: str) -> None:
        """Find out now, and not after an hour, whether all can be measured."""
        config = self.config
        teacher, self.choice = open_world(teacher_place, config.runtime())
        check_softmax(teacher.config.denoiser, teacher_place)
        for name, place in {TEACHER: teacher_place, **config.named_worlds()}.items():
            world, _ = open_world(place, config.runtime())
            conversion.check_comparable(teacher, name, world)
            self._add(ModelEntry(name, place), world)
            if name in config.zeroed:
                check_can_forget(name, world)
                self._add(ModelEntry(zeroed_name(name), place, name), world)
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
        )
        self.clips: list[Clip] = []
        if "rollouts" in config.parts:  # the other parts need no episodes of that length
            self.clips = self.recordings.choose(self.settings.length, config.num_rollouts, config.seed)
        self.places: list[ReturnClip] = []
        if "memory" in config.parts:
            self._prepare_memory(teacher)

    def _prepare_memory(self, teacher: World) -> None:
        """Choose where memory is measured."""
        config, recordings = self.config, self.recordings
        self.memory_clips = recordings.choose(config.memory_frames + 1, config.num_rollouts, config.seed)
        self.places, summary = choose_returns(recordings, config.returns, config.num_rollouts, config.seed)
        print(summary, flush=True)
        self.place_names = episodes = [recordings.name(place.clip) for place in self.places]
        references = (
            span.score_references(teacher, recordings, self.places, config.returns) if episodes else {}
        )
        self._head["returns"] = {
            "told": summary,
            "settings": asdict(config.returns),
            "num_places": len(episodes),
            "num_episodes": len(set(episodes)),
            "references": {name: estimate_of(values, episodes) for name, values in references.items()},
        }

    def _add(self, model: ModelEntry, world: World) -> None:
        self.models.append(model)
        sampler = conversion.chosen_sampler(world, self.config.denoising_steps, self.config.commit_level)
        self._head["worlds"][model.name] = conversion.describe(world, sampler)

    def _open_report(self, path: Path) -> Report:
        """Open the report with the parts that another run measured of these worlds and this one does not."""
        nothing: dict[str, Any] = {"runs": {}, "worlds": {}}
        report = Report.open(path, nothing, objects=tuple(nothing), renderers=RENDERERS)
        known, head = report.data, as_json(self._head)
        kept = {part: run for part, run in known["runs"].items() if part not in self.config.parts}
        of_worlds = [KEYS[part] for part in kept if part in KEYS]
        for name, world in head["worlds"].items() if of_worlds else ():
            report.require({("worlds", name, key): value for key, value in world.items()})
            before = known["worlds"].get(name, {})
            world |= {key: before[key] for key in of_worlds if key in before}
        shared = {key: known[key] for part, key in SHARED_KEYS.items() if part in kept}
        report.data = head | shared | {"runs": kept}
        return report

    def measure(self) -> None:
        """Measure one thing after the other, and write the report after each."""
        measures: dict[str, Callable[[ModelEntry], Any]] = {
            "in_turn": self._in_turn,
            "cost": self._cost,
            "rollouts": self._quality,
            "memory": self._memory,
        }
        parts = {
            (part, model.name): partial(measures[part], model)
            for part in PARTS
            for model in self.models
            if part in measures and part in self.config.parts
            # A zeroed world would cost the same, and has nothing that could be emptied.
            if part == "rollouts" or model.original is None
        }
        if "paper_shape" in self.config.parts:
            models = paper_shape.models_of(paper_shape.PAPER_SHAPE)
            parts |= {("paper_shape", name): partial(self._shape, name) for name in models}
        self.report.measure(parts, self._store)

    def _store(self, key: tuple[str, str], found: Any, _: float) -> None:
        (part, name), report = key, self.report
        report.update({part: self.run}, "runs")
        if part == "paper_shape":
            if part not in report.data:
                report.update(self._paper_shape, part)
            report.update({name: found}, part, "models")
        else:
            report.update({KEYS[part]: found}, "worlds", name)

    def _simulator(self, model: ModelEntry, what: str) -> Simulator:
        """Load a world, and say what is measured of it."""
        print(f"{model.name}: {what}", flush=True)
        world, _ = open_world(model.place, self.config.runtime())
        sampler = conversion.chosen_sampler(world, self.config.denoising_steps, self.config.commit_level)
        simulator = Simulator(world, sampler)
        return simulator if model.original is None else zeroed(simulator)

    def _first_state(self, model: ModelEntry, what: str) -> tuple[Simulator, WorldState]:
        """Load a world; returns it and a dream in whose memory there is one frame."""
        simulator = self._simulator(model, what)
        clips = self.recordings.choose(1, 1, self.config.seed)
        start = next(self.recordings.batches(clips, 1, 1))
        return simulator, start.begin_dreams(simulator, 1, self.config.seed)

    def _in_turn(self, model: ModelEntry) -> step_time.TwoFrames:
        begun, config = self._first_state(model, "steps early and late, in turn"), self.config
        return step_time.compare_ages(*begun, config.early_frame, config.late_frame, seed=config.seed)

    def _cost(self, model: ModelEntry) -> step_time.TraceSummary:
        (simulator, state), config = self._first_state(model, "step times"), self.config
        num_frames = max(config.late_frame + step_time.AROUND, config.total_frames)
        actions = step_time.random_actions(simulator, 1, num_frames, config.seed)
        trace = step_time.trace_steps(simulator, state, actions)
        return step_time.summarize_trace(trace, config.early_frame, config.late_frame, config.total_frames)

    def _quality(self, model: ModelEntry) -> conversion.ConversionQuality:
        """Roll out, and compare with the roll-outs of those before."""
        simulator, scores = self._simulator(model, "roll-outs"), self._scores
        own = roll_out(simulator, self.recordings, self.clips, self.settings)
        scores[model.name] = own
        if model.name == TEACHER:
            self.report.update({"references": conversion.summarize_references(own)})
        original = None if model.original is None else scores[model.original]
        return conversion.summarize_quality(own, scores[TEACHER], original)

    def _memory(self, model: ModelEntry) -> span.MemorySpan:
        """Empty the states once and see what is lost, anywhere and at places that come back."""
        config, recordings = self.config, self.recordings
        simulator = self._simulator(model, "memory")
        how: dict[str, Any] = {"batch_size": self.settings.batch_size, "seed": config.seed}
        scores = span.next_after_forgetting(
            simulator, recordings, self.memory_clips, config.memory_frames, **how
        )
        returns = None
        if self.places:
            # A cache without states starts again at one frame for all, and here there is one for each place.
            ways = (False, True) if has_state(simulator.world) else (False,)
            psnr = [
                span.dream_returns(simulator, recordings, self.places, config.returns, forgets=forgets, **how)
                for forgets in ways
            ]
            returns = span.summarize_returns(*psnr, episodes=self.place_names)
        return span.summarize_spans(scores, [recordings.name(clip) for clip in self.memory_clips], returns)

    @cached_property
    def _paper_shape(self) -> dict[str, Any]:
        """The part of the report, but for the models; its attention is that which is the fastest here."""
        config, shape = self.config, paper_shape.PAPER_SHAPE
        frames = paper_shape.latent_frames(config.paper_frames)
        names = ("dim", "num_layers", "num_heads", "tokens_per_frame")
        return {name: getattr(shape, name) for name in names} | {
            "video_frames": config.paper_frames,
            "latent_frames": frames,
            "denoising_steps": config.paper_steps,
            "models": {},
            "attention": paper_shape.measure_attention(
                shape, frames, config.paper_steps + 1, self.choice.device, self.choice.dtype
            ),
        }

    def _shape(self, name: str) -> paper_shape.ShapeCost:
        print(f"at the paper's shape: {name}", flush=True)
        with paper_shape.fastest_attention(self._paper_shape["attention"]):
            return paper_shape.measure_shape(
                paper_shape.models_of(paper_shape.PAPER_SHAPE)[name],
                num_frames=paper_shape.latent_frames(self.config.paper_frames),
                num_steps=self.config.paper_steps,
                device=self.choice.device,
                dtype=self.choice.dtype,
            )


if __name__ == "__main__":
    main()

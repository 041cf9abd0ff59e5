"""Settings of `training.evaluate` and its suites, and those that worlds must share to be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.engine.fabric import FabricConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.video_shape import VideoShapeConfig
from worldsim.evaluation.inputs.out_and_back import MIN_EPISODES, Tolerance
from worldsim.evaluation.inputs.revisits import RUNGS, RevisitSettings
from worldsim.runtime.config import RuntimeSettings
from worldsim.runtime.cuda_graphs import COMPILE_MODES
from worldsim.settings import check_settings, setting

BENCHMARKS = ("env", "endurance", "step", "video", "video_training", "pose_recall")
# The cost is measured before decoded video fills the memory.
PARTS = ("cost", "rollout", "controllability", "idle", "outcome")
CONSISTENCY, LEVEL = "consistency", "level"
CONSISTENCY_PARTS = (
    *("recall", "interventions", "pairs", "controllability", "drift", "fidelity", "idle"),
    *("continuation", "revisits", "probe", "cost"),
)
LEVEL_PARTS = ("events", "walls", "meter", "turn", "played")
"""Parts of the suites, in the order in which they are measured."""

COUNTS_OF_PARTS: Mapping[str, Sequence[str]] = {
    "interventions": ("num_turns",),
    "continuation": ("num_turns",),
    "pairs": ("num_pairs",),
    "controllability": ("num_long", "long_frames"),
    "drift": ("num_long", "long_frames"),
    "idle": ("num_idle", "idle_frames"),
    "revisits": ("num_revisits", "revisits"),
}
"""Settings that must be alike for worlds that stand side by side in a part."""


@dataclass(kw_only=True, slots=True)
class ConsistencyConfig:
    """What the suite measures."""

    zeroed: list[str] = setting(
        [], "Names of worlds to measure again with their states emptied before every frame."
    )
    window: str = setting(
        "window", "Name of the world with a short window; recovery ratios lie between it and full."
    )
    full: str = setting("full", "Name of the world that sees all past frames, the other of the two.")
    gaps: list[int] = setting([], "Frames out and back; [] is every folder there is.", minimum=1)
    max_gap: int = setting(0, "Longer gaps are left out where gaps names none; 0 is no limit.", minimum=0)
    intervention_gaps: list[int] = setting([], "Gaps of interventions; [] is 50, or the least.", minimum=1)
    pair_gaps: list[int] = setting([], "Gaps of paired histories; [] is every folder there is.", minimum=1)
    num_episodes: int = setting(MIN_EPISODES, "Episodes of each gap; 0 is all.", minimum=0)
    context_frames: int = setting(32, "Real frames before the way out, at most.", minimum=0)
    distance: float = setting(
        0.0, "How near a pose must come back, in the game's units; 0 where moves are undone exactly."
    )
    angle_degrees: float = setting(0.0, "The same for the heading, in degrees.")
    tile_pixels: int = setting(
        0, "Height and width of tiles in pixels, for the share that is right; 0 without tiles.", minimum=0
    )
    num_films: int = setting(2, "Episodes of each gap whose pictures the report shows.", minimum=0)
    num_turns: int = setting(0, "Episodes of interventions and continuation; 0 is all of the gap.", minimum=0)
    num_pairs: int = setting(0, "Pairs of paired histories; 0 is all.", minimum=0)
    num_long: int = setting(64, "Dreams whose controllability and drift are measured.", minimum=1)
    long_frames: int = setting(1000, "Frames of each of them.", minimum=1)
    num_idle: int = setting(MIN_EPISODES, "Dreams in which nothing is pressed.", minimum=1)
    idle_frames: int = setting(300, "Frames of each of them.", minimum=1)
    num_fidelity: int = setting(64, "Dreams compared with real frames by FID and KID.", minimum=2)
    fidelity_frames: int = setting(256, "Frames of each of them.", minimum=2)
    features: str = setting(
        "", "Folder of the network of FID and KID (training.features); '' is the one that ships."
    )
    cost_frames: int = setting(100_000, "Frame up to which step times are measured.", minimum=1)
    num_revisits: int = setting(MIN_EPISODES, "Revisits of each rung; 0 is all.", minimum=0)
    rungs: list[str] = setting([], f"Rungs of revisits; [] is all: {', '.join(RUNGS)}.")
    revisits: RevisitSettings = setting(RevisitSettings, "What counts as a revisit.")

    def __post_init__(self) -> None:
        check_settings(self, "consistency.")
        for name in ("num_episodes", "num_turns"):  # a state is swapped with another's
            if getattr(self, name) == 1:
                raise WorldError(f"consistency.{name} must be at least 2, or 0 for all, got 1")
        if unknown := [name for name in self.rungs if name not in RUNGS]:
            raise WorldError(f"consistency.rungs are of {', '.join(RUNGS)}, got {', '.join(unknown)}")
        _ = self.tolerance

    @property
    def tolerance(self) -> Tolerance:
        """Which poses count as the same."""
        return Tolerance(distance=self.distance, angle_degrees=self.angle_degrees)


@dataclass(kw_only=True, slots=True)
class LevelConfig:
    """How much of a game's events is measured."""

    num_situations: int = setting(128, "Situations of each measure, one dream each, at most.", minimum=4)
    num_played: int = setting(16, "Of part played: dreams that the scripted player plays.", minimum=2)
    played_frames: int = setting(1000, "Of part played: frames of each.", minimum=4)
    game: bool = setting(
        False,
        "Measure the game itself too, played again from the seeds of the recordings: what a perfect world "
        "reaches. It needs ViZDoom.",
    )
    features: str = setting("", "Folder of the network of features; '' is the one that ships.")

    def __post_init__(self) -> None:
        check_settings(self, "level.")


@dataclass(kw_only=True, slots=True)
class EnduranceConfig:
    """How many environments for how long."""

    num_envs: int = setting(8, "Environments at a time.", minimum=1)
    num_steps: int = setting(
        100_000, "Random steps of each, those of earlier runs into the same out included.", minimum=1
    )
    max_minutes: float = setting(0.0, "Time after which a run stops; 0 is no limit.", minimum=0)
    max_episode_steps: int = setting(500, "Frames after which an episode is cut off.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self, "endurance.")


VIDEO_OBJECTIVES = ("stage1", "stage2", "finetune")
"""Trainings of a video transformer: both stages of a conversion, and that of all weights with buttons."""


@dataclass(kw_only=True, slots=True)
class VideoTrainingConfig:
    """Updates of the trainings of a video transformer; its shape is that of `video`."""

    objectives: list[str] = setting(
        lambda: list(VIDEO_OBJECTIVES), f"Which trainings: {', '.join(VIDEO_OBJECTIVES)}."
    )
    sequence_length: int = setting(21, "Latent frames of a sequence, a multiple of the block.", minimum=2)
    batch_size: int = setting(1, "Sequences per update and device.", minimum=1)
    num_updates: int = setting(4, "Updates that are timed, behind the first one.", minimum=1)
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")

    def __post_init__(self) -> None:
        check_settings(self, "video_training.")
        if not self.objectives or not set(self.objectives) <= set(VIDEO_OBJECTIVES):
            known, given = ", ".join(VIDEO_OBJECTIVES), ", ".join(self.objectives)
            raise WorldError(f"video_training.objectives must be some of {known}, got {given or 'none'}")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(RuntimeSettings):
    """What to measure."""

    world: str | None = setting(
        None, "A shipped world's name, a folder, or a Hugging Face id; null is the first that ships."
    )
    data: str = setting(
        "data/doom-rooms/heldout",
        "Held-out episodes with the world's buttons. Of suite=consistency a folder of folders recall-NNN "
        "and pairs-NNN, one for each number of frames out and back, and revisits; of ordinary episodes the "
        "parts that need no way back are measured, and revisits.",
    )
    out: str = setting("outputs/evaluate", "Folder of the report.")
    benchmark: str | None = setting(
        None,
        "null measures the parts; env measures how many steps a second environments make, endurance whether "
        "memory grows or anything becomes NaN or inf in a great many of them, step what a step consists of: "
        "operators and milliseconds by kind, video what long videos of a transformer of the Wan family cost, "
        "and video_training what its trainings do, with random weights (docs/paper-scale.md). None of them "
        "needs data. pose_recall measures on data "
        "what the states alone say of views that are asked for by their pose, and roll-outs at true poses, "
        "of num_rollouts clips of horizon frames (docs/consistency.md).",
    )
    suite: str | None = setting(
        None,
        "null measures the parts of a world; consistency what worlds remember (docs/consistency.md); level "
        "what buttons, walls, monsters and doors do in its dreams (docs/train.md).",
    )
    worlds: Any = setting(
        None, "Of suite=consistency, to compare several: {name: world, name: world}, instead of world."
    )
    consistency: ConsistencyConfig = setting(ConsistencyConfig, "Of suite=consistency.")
    level: LevelConfig = setting(LevelConfig, "Of suite=level.")
    parts: list[str] | None = setting(
        None,
        "What to measure: cost, rollout, controllability, idle, outcome (of worlds with outcome heads). Of "
        "suite=consistency: recall, interventions, pairs, controllability, drift, fidelity, idle, "
        "continuation, revisits, probe, cost. Of suite=level: events, walls, meter, turn, played. "
        "null is all of these.",
    )
    seed: int = setting(0, "Of the noise, and of all else that is drawn.", minimum=0)
    denoising_steps: int | None = setting(None, "Denoising passes a frame; null is the world's own number.")
    num_episodes: int = setting(0, "Use only the first so many episodes of the data; 0 is all.", minimum=0)
    context_frames: int = setting(32, "Real frames watched before each dream.", minimum=1)
    batch_size: int = setting(
        0, "Dreams at a time; 0 is 16 on a CPU, 64 on a GPU. Step times are those of one.", minimum=0
    )
    num_rollouts: int = setting(64, "Of part rollout: roll-outs.", minimum=1)
    horizon: int = setting(128, "Of part rollout: frames of each.", minimum=1)
    num_next_clips: int = setting(
        16, "Of part rollout: clips whose next frames are predicted from real ones.", minimum=1
    )
    next_frames: int = setting(64, "Of part rollout: frames of each of them.", minimum=1)
    num_action_starts: int = setting(64, "Of part controllability: places to compare actions at.", minimum=1)
    num_idle_starts: int = setting(4, "Of part idle: dreams in which nothing is pressed.", minimum=1)
    idle_frames: int = setting(500, "Of part idle: frames of each.", minimum=1)
    outcome_drawn: bool = setting(True, "Of part outcome: measure drawn frames, too, not only recorded ones.")
    cost_frames: int = setting(2000, "Of part cost: frame up to which step times are measured.", minimum=1)
    startup_runs: int = setting(3, "Of part cost: timed starts of play.py; 0 leaves them out.", minimum=0)
    env_counts: list[int] = setting([1, 8, 64, 256], "Of benchmark=env: environments at a time.", minimum=1)
    env_frames: int = setting(768, "Of benchmark=env: frames drawn by each of these numbers.", minimum=1)
    env_min_steps: int = setting(0, "Of benchmark=env: fewest steps; 0 is 3 on CPU, 60 on GPU.", minimum=0)
    env_max_steps: int = setting(300, "Of benchmark=env: most steps of each; 0 is no limit.", minimum=0)
    compile: str = setting("auto", "How a GPU is given its kernels (docs/agents.md).", choices=COMPILE_MODES)
    step_count: int = setting(50, "Of benchmark=step: steps; their median counts.", minimum=1)
    against: str | None = setting(None, "Of benchmark=step: another world, stepped in turn with the first.")
    endurance: EnduranceConfig = setting(EnduranceConfig, "Of benchmark=endurance.")
    video: VideoShapeConfig = setting(
        VideoShapeConfig, "Of benchmark=video, and of video_training the shape."
    )
    video_training: VideoTrainingConfig = setting(VideoTrainingConfig, "Of benchmark=video_training.")

    def __post_init__(self) -> None:
        if self.suite not in (None, CONSISTENCY, LEVEL):
            raise WorldError(f"suite must be {CONSISTENCY}, {LEVEL} or null, got {self.suite!r}")
        places = self.worlds.values() if isinstance(self.worlds, dict) else ()
        if self.worlds is not None and not (places and all(isinstance(place, str) for place in places)):
            raise WorldError(f"worlds must be {{name: world, name: world}}, got {self.worlds!r}")
        if self.worlds and self.suite != CONSISTENCY:
            raise WorldError("worlds= belongs to suite=consistency; give world=, the one to measure")
        if self.world and self.worlds:
            raise WorldError("give world= or worlds=, not both")
        known = self.known_parts
        unknown = [part for part in self.chosen_parts if part not in known]
        if unknown or not self.chosen_parts:
            raise WorldError(f"parts must be some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
        if self.benchmark not in (None, *BENCHMARKS):
            raise WorldError(f"benchmark must be {' or '.join(BENCHMARKS)}, or null, got {self.benchmark!r}")
        if self.against is not None and self.benchmark != "step":
            raise WorldError("against= belongs to benchmark=step")
        if self.benchmark == "video_training" and (self.device, self.dtype) != ("auto", "auto"):
            raise WorldError(
                "device= and dtype= are not of benchmark=video_training: give "
                "video_training.fabric.accelerator= and video_training.fabric.precision="
            )
        RuntimeSettings.__post_init__(self)
        if not self.env_counts:
            raise WorldError("env_counts is empty")
        if 0 < self.env_max_steps < self.env_min_steps:
            raise WorldError(
                f"env_max_steps is {self.env_max_steps}, less than env_min_steps, {self.env_min_steps}"
            )

    @property
    def known_parts(self) -> tuple[str, ...]:
        """What can be measured."""
        return {CONSISTENCY: CONSISTENCY_PARTS, LEVEL: LEVEL_PARTS}.get(self.suite or "", PARTS)

    @property
    def chosen_parts(self) -> list[str]:
        """What is measured: all that can be, unless parts are named."""
        return list(self.known_parts) if self.parts is None else self.parts

"""Settings of `training.evaluate` and its suites, and those that worlds must share to be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import MIN_EPISODES, Tolerance
from worldsim.runtime.config import RuntimeConfig
from worldsim.runtime.cuda_graphs import COMPILE_MODES

BENCHMARKS = ("env", "endurance")
ENV_STEPS = ("env_min_steps", "env_max_steps")
# The cost is measured before decoded video fills the memory.
PARTS = ("cost", "rollout", "controllability", "idle", "outcome")
CONSISTENCY = "consistency"
CONSISTENCY_PARTS = (
    *("recall", "interventions", "pairs", "controllability", "drift", "fidelity", "idle"),
    *("continuation", "probe", "cost"),
)
"""Parts of the two suites, in the order in which they are measured."""

COUNTS = (
    *("long_frames", "num_long", "num_idle", "idle_frames"),
    *("num_fidelity", "fidelity_frames", "cost_frames"),
)
"""Settings that are numbers of at least 1."""
AT_LEAST_0 = (
    *("num_episodes", "num_turns", "num_pairs"),
    *("context_frames", "num_films", "tile_pixels", "max_gap"),
)
"""Settings that are numbers of at least 0."""
COUNTS_OF_PARTS: Mapping[str, Sequence[str]] = {
    "interventions": ("num_turns",),
    "continuation": ("num_turns",),
    "pairs": ("num_pairs",),
    "controllability": ("num_long", "long_frames"),
    "drift": ("num_long", "long_frames"),
    "idle": ("num_idle", "idle_frames"),
}
"""Settings that must be alike for worlds that stand side by side in a part."""


@dataclass(kw_only=True, slots=True)
class ConsistencyConfig:
    """What the suite measures; `conf/evaluate.yaml` and `conf/profile` say what each setting means."""

    zeroed: list[str] = field(default_factory=list)
    window: str = "window"
    full: str = "full"
    gaps: list[int] = field(default_factory=list)
    max_gap: int = 0
    intervention_gaps: list[int] = field(default_factory=list)
    pair_gaps: list[int] = field(default_factory=list)
    num_episodes: int = MIN_EPISODES
    context_frames: int = 32
    distance: float = 0.0
    angle_degrees: float = 0.0
    tile_pixels: int = 0
    num_films: int = 2
    num_turns: int = 0
    num_pairs: int = 0
    num_long: int = 64
    long_frames: int = 1000
    num_idle: int = MIN_EPISODES
    idle_frames: int = 300
    num_fidelity: int = 64
    fidelity_frames: int = 256
    features: str = ""
    cost_frames: int = 100_000

    def __post_init__(self) -> None:
        for name in ("gaps", "intervention_gaps", "pair_gaps"):
            if any(gap < 1 for gap in getattr(self, name)):
                raise WorldError(
                    f"consistency.{name} must be numbers of at least 1, got {getattr(self, name)}"
                )
        for name in AT_LEAST_0:
            if getattr(self, name) < 0:
                raise WorldError(f"consistency.{name} must be at least 0, got {getattr(self, name)}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise WorldError(f"consistency.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_fidelity", "fidelity_frames"):  # a distance of distributions needs two of each
            if getattr(self, name) < 2:
                raise WorldError(f"consistency.{name} must be at least 2, got {getattr(self, name)}")
        for name in ("num_episodes", "num_turns"):  # a state is swapped with another's
            if getattr(self, name) == 1:
                raise WorldError(f"consistency.{name} must be at least 2, or 0 for all, got 1")
        _ = self.tolerance

    @property
    def tolerance(self) -> Tolerance:
        """Which poses count as the same."""
        return Tolerance(distance=self.distance, angle_degrees=self.angle_degrees)


@dataclass(kw_only=True, slots=True)
class EnduranceConfig:
    """How many environments for how long; `conf/evaluate.yaml` says what each means."""

    num_envs: int = 8
    num_steps: int = 100_000
    max_minutes: float = 0.0
    max_episode_steps: int = 500

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_steps", "max_episode_steps"):
            if getattr(self, name) < 1:
                raise WorldError(f"endurance.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_minutes < float("inf"):
            raise WorldError(f"endurance.max_minutes must be at least 0, got {self.max_minutes}")


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
        if self.suite not in (None, CONSISTENCY):
            raise WorldError(f"suite must be {CONSISTENCY} or null, got {self.suite!r}")
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
        return PARTS if self.suite is None else CONSISTENCY_PARTS

    @property
    def chosen_parts(self) -> list[str]:
        """What is measured: all that can be, unless parts are named."""
        return list(self.known_parts) if self.parts is None else self.parts

    def runtime(self) -> RuntimeConfig:
        """Return how worlds are computed."""
        return RuntimeConfig(
            device=self.device,
            dtype=self.dtype,
            denoising_steps=self.denoising_steps,
            compile=self.compile,
            threads=self.threads,
        )

"""The settings of the consistency suite, and which of them worlds that are compared must share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import MIN_EPISODES, Tolerance

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

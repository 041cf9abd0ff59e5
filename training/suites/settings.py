"""The settings of the consistency suite, and which of them worlds that are compared must share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import MIN_EPISODES, Tolerance
from worldsim.settings import check_settings, setting

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
    """What the suite measures."""

    zeroed: list[str] = setting(
        [],
        "Names of worlds to measure a second time, with their recurrent states emptied before every frame.",
    )
    window: str = setting(
        "window",
        "Name of the world with a short window, one of the two that recovery ratios are taken between.",
    )
    full: str = setting("full", "Name of the world that sees all past frames, the other of the two.")
    gaps: list[int] = setting([], "Frames out and back; [] is every folder there is.", minimum=1)
    max_gap: int = setting(0, "Longer gaps are left out where gaps names none; 0 is no limit.", minimum=0)
    intervention_gaps: list[int] = setting(
        [], "Gaps of interventions; [] is 50, or the least where there is no 50.", minimum=1
    )
    pair_gaps: list[int] = setting([], "Gaps of paired histories; [] is every folder there is.", minimum=1)
    num_episodes: int = setting(MIN_EPISODES, "Episodes of each gap; 0 is all.", minimum=0)
    context_frames: int = setting(32, "Real frames before the way out, at most.", minimum=0)
    distance: float = setting(
        0.0, "How near a pose must come back, in the game's units; 0 where moves are undone exactly."
    )
    angle_degrees: float = setting(
        0.0, "How near a heading must come back; 0 where moves are undone exactly."
    )
    tile_pixels: int = setting(
        0,
        "In games whose pictures are tiles: their height and width, for the share that is right; 0 where "
        "there are none.",
        minimum=0,
    )
    num_films: int = setting(2, "Episodes of each gap whose pictures the report shows.", minimum=0)
    num_turns: int = setting(0, "Episodes of interventions and continuation; 0 is all of the gap.", minimum=0)
    num_pairs: int = setting(0, "Pairs of paired histories; 0 is all.", minimum=0)
    num_long: int = setting(64, "Dreams whose controllability and drift are measured.", minimum=1)
    long_frames: int = setting(1000, "Frames of each of them.", minimum=1)
    num_idle: int = setting(MIN_EPISODES, "Dreams in which nothing is pressed.", minimum=1)
    idle_frames: int = setting(300, "Frames of each of them.", minimum=1)
    num_fidelity: int = setting(
        64, "Dreams whose frames are compared with real ones by FID and KID.", minimum=2
    )
    fidelity_frames: int = setting(256, "Frames of each of them.", minimum=2)
    features: str = setting(
        "",
        "Folder of the feature network of FID and KID (python -m training.features); '' is the one that "
        "ships.",
    )
    cost_frames: int = setting(100_000, "Frame up to which step times are measured.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self, "consistency.")
        for name in ("num_episodes", "num_turns"):  # a state is swapped with another's
            if getattr(self, name) == 1:
                raise WorldError(f"consistency.{name} must be at least 2, or 0 for all, got 1")
        _ = self.tolerance

    @property
    def tolerance(self) -> Tolerance:
        """Which poses count as the same."""
        return Tolerance(distance=self.distance, angle_degrees=self.angle_degrees)

"""Targets: the numbers of a report that are required or desired, and the verdict on each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from worldsim.evaluation.cost.step_time import EARLY, EARLY_STEPS, LATE_STEPS
from worldsim.evaluation.memory.interventions import zeroed_name
from worldsim.evaluation.quality.idle import STATISTICS

TRAINED_GAP, LONG_GAP = 50, 150
IDLE_STATISTICS = tuple(name for name in STATISTICS if name != "brightness")


def find(data: Any, keys: Iterable[str]) -> Any:
    """Return the value that keys lead to in nested JSON objects; None where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


@dataclass(frozen=True, slots=True)
class Target:
    """A number of a report with its bounds.

    Attributes:
        name: What is measured; `{...}` stands for a name given to `check`.
        path: Keys that lead to the number or to its estimate (`mean`, `low`, `high`, `count`), with `/`
            between them; `{...}` as in `name`.
        unit: Written after the number.
        required: Minimum (or maximum) that passes; None if there is none.
        desired: Value to aim for; None if there is none beyond `required`.
        higher_is_better: Direction.
        is_difference: Whether it counts only where the intervals of the two that it compares are apart.
        factor: What the number and its interval are multiplied by.
        read: Computes the number from what is at `path`, where it is not there itself.
    """

    name: str
    path: str
    unit: str = ""
    required: float | None = None
    desired: float | None = None
    higher_is_better: bool = True
    is_difference: bool = False
    factor: float = 1
    read: Callable[[Any], float | None] = lambda found: found

    def verdict(self, value: float | None, *, is_apart: bool = True) -> str:
        """Return `aim`, `pass`, `short`, `reported` or `not measured` of a number; NaN reaches no bound.

        `is_apart` says of a difference whether the two intervals are apart.
        """
        if value is None:
            return "not measured"
        if self.is_difference and not is_apart:
            return "short"
        if self.desired is not None and self._reaches(value, self.desired):
            return "aim"
        if self.required is None:
            return "reported"
        return "pass" if self._reaches(value, self.required) else "short"

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound if self.higher_is_better else value <= bound

    def check(self, data: Mapping[str, Any], **names: str) -> dict[str, Any]:
        """Return a JSON object with the number that a report holds, its interval, the bounds, the verdict."""
        at_path = find(data, (key.format(**names) for key in self.path.split("/")))
        found = None if at_path is None else self.read(at_path)
        estimate: Mapping[str, Any] = found if isinstance(found, Mapping) else {"mean": found}
        value, low, high = (
            None if end is None else self.factor * end for end in map(estimate.get, ("mean", "low", "high"))
        )
        return {
            "name": self.name.format(**names),
            "value": value,
            "interval": None if low is None else [low, high],
            "count": estimate.get("count"),
            "unit": self.unit,
            "must": self.required,
            "aim": self.desired,
            "higher_is_better": self.higher_is_better,
            "verdict": self.verdict(value, is_apart=estimate.get("intervals_are_apart", True)),
        }


def _idle_deviation(part: Mapping[str, Any]) -> float:
    return max(part[name]["max_deviation"] for name in IDLE_STATISTICS)


def state_growth(cost: Mapping[str, Any]) -> int | None:
    """Return how many bytes the state grew between the two frames of `step_cost`, if it got that far."""
    frames = (str(EARLY_STEPS[0]), str(LATE_STEPS[1]))
    early, late = (find(cost, ("memory_at_frame", frame, "state_bytes")) for frame in frames)
    return None if early is None or late is None else late - early


at_least, at_most = Target, partial(Target, higher_is_better=False)
# The columns are name, path, unit, required, desired.
QUALITY_TARGETS = (
    at_most("step (denoise + decode + commit), p50", "cost/step_ms/p50", "ms", 57.0, 30.0),
    at_most("step p99 / p50", "cost/p99_over_p50", "", 2.0, 1.3),
    at_most("step time at frames 1900-2000 over 100-200", "cost/late_over_early", "", 1.05),
    at_most("growth of the state from frame 100 to 2000", "cost", "bytes", 0.0, read=state_growth),
    at_most("start-up to the first frame", "cost/startup/median", "s", 10.0, 5.0),
    *(
        at_least(
            f"roll-out PSNR at frame {frame} over copy-the-last-frame",
            *(f"rollout/horizons/{frame}/over_copy_db", "dB", required, desired),
        )
        for frame, required, desired in ((8, 2.0, 6.0), (32, 1.0, 5.0))
    ),
    at_most("next-frame PSNR under the codec's ceiling", "rollout/next_frame/under_codec_db", "dB", 6.0, 1.0),
    *(
        at_least(
            f"opposite-action test, {axis}: both right",
            *(f"controllability/{axis}/both_right", "%", 90.0, 99.0),
            factor=100,
        )
        for axis in ("turn", "move")
    ),
    at_most(
        "idle hold: contrast and sharpness off the start",
        *("idle", "%", 30.0, 10.0),
        factor=100,
        read=_idle_deviation,
    ),
    at_least(
        "ends found at 90 % precision, within 2 frames",
        *("outcome/given/ends/recall_at_90_precision", "%", 70.0, 95.0),
        factor=100,
    ),
)
"""Of a world beside the real game."""

AT_TRAINED, AT_LONG = f"{TRAINED_GAP}/final/psnr_db", f"{LONG_GAP}/final/psnr_db"
ZEROED, WINDOW = "comparisons/{world}/over/{zeroed}/", "comparisons/{world}/over/{window}/"
TRAINED_RECALL, LONG_RECALL = (f"recall at n = {gap}, last frame" for gap in (TRAINED_GAP, LONG_GAP))
over = partial(Target, is_difference=True)
CONSISTENCY_TARGETS = (
    at_least(TRAINED_RECALL, "recall/worlds/{world}/" + AT_TRAINED, "dB", None, 39.3),
    over(f"{TRAINED_RECALL}, over its state zeroed", ZEROED + AT_TRAINED, "dB", 5.0),
    over(f"{TRAINED_RECALL}, over the window", WINDOW + AT_TRAINED, "dB", 3.0),
    at_least(
        f"recovery ratio at n = {TRAINED_GAP}, last frame",
        *("comparisons/{world}/recovery_ratio/" + AT_TRAINED, "", 0.5, 0.71),
    ),
    at_least(LONG_RECALL, "recall/worlds/{world}/" + AT_LONG, "dB", None, 30.8),
    over(f"{LONG_RECALL}, over the window", WINDOW + AT_LONG, "dB", 0.0),
    at_least(
        "paired histories: the answer follows the past",
        *(f"pairs/worlds/{{world}}/{TRAINED_GAP}/history/final", "", 0.8, 0.99),
    ),
    *(
        at_least(
            f"{name}: the place is recognised",
            *(f"revisits/worlds/{{world}}/{rung}/methods/kept/recognised", "%", required, desired),
            factor=100,
        )
        for name, rung, required, desired in (
            ("look away by 180 degrees and back", "look-away-180", 90.0, 98.0),
            ("full turn, its first half watched", "full-turn", 85.0, 95.0),
        )
    ),
    at_least(
        "controllability at frame {controllability_frame} over frame 0",
        *("controllability/worlds/{world}/late_over_early", "", 0.9, 1.0),
    ),
    at_most(
        f"step time at frame {{cost_frame}} over frame {EARLY}",
        *("cost/worlds/{world}/late_over_early_ms", "", 1.02),
    ),
    at_most(
        f"state bytes at frame {{cost_frame}} over frame {EARLY}",
        *("cost/worlds/{world}/late_over_early_bytes", "", 1.0),
    ),
)
"""Of what a world remembers."""


LEVEL_TARGETS = (
    at_least(
        "fires when asked: a round is spent within 3 frames",
        *("events/fires when asked/seen", "%", 98.0),
        factor=100,
    ),
    at_most("fires unasked", "events/fires when asked/unasked", "%", 1.0, factor=100),
    at_least(
        "a muzzle flash within 3 frames, over that of recorded shots",
        *("events/a muzzle flash is seen/over_game", "", 0.98),
    ),
    at_least(
        "a monster hit squarely falls within 20 frames, over the game's rate",
        *("events/a monster hit squarely falls/over_game", "", 0.7, 0.9),
    ),
    at_least("a door opens to `use`", "events/a door opens/seen", "%", 80.0, 95.0, factor=100),
    at_most("a door opens without", "events/a door opens/unasked", "%", 5.0, factor=100),
    at_least("walls stop the player: 30 frames of pushing", "walls/stopped", "%", 95.0, factor=100),
    at_least("it walks where the way is free", "walls/walks", "%", 95.0, factor=100),
    at_least(
        "walls let go: a room again after 60 frames of pushing, over the game's rate",
        *("walls/lets_go_over_game", "", 0.95),
    ),
    at_least("health: direction of change over 64 frames", "meter/direction", "%", 80.0, factor=100),
    at_most("deaths a thousand frames over the game's (0.7 to 1.4)", "meter/deaths_over_game", "", 1.4),
    at_least("deaths a thousand frames over the game's, not too few", "meter/deaths_over_game", "", 0.7),
    at_least(
        "full turn: the view comes back, told from another",
        *("turn/scores/methods/kept/recognised", "%", 80.0, 95.0),
        factor=100,
    ),
    at_most("scripted player: FID of frames 900-1000 over 1-100", "played/late_over_early", "", 1.5, 1.1),
)
"""Of what happens in a level."""


def check_memory(data: Mapping[str, Any], world: str, window: str | None) -> list[dict[str, Any]]:
    """Return `check` of `CONSISTENCY_TARGETS` for a world of a report, beside that with a short window."""
    # A shorter measurement says so: it is not what is asked for.
    frames = {}
    for part, longest in (("controllability", 1000), ("cost", 100_000)):
        frame = find(data, (part, "worlds", world, "late_frame"))
        frames[f"{part}_frame"] = f"{longest if frame is None else frame:,}"
    names = {"world": world, "zeroed": zeroed_name(world), "window": window or "", **frames}
    return check(data, CONSISTENCY_TARGETS, **names)


def check(data: Mapping[str, Any], targets: Sequence[Target], **names: str) -> list[dict[str, Any]]:
    """Return `Target.check` of each target."""
    return [target.check(data, **names) for target in targets]

"""Targets: the numbers of a report that are required or desired, and the verdict on each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldsim.evaluation.cost.step_time import state_growth
from worldsim.evaluation.cost.step_time_growth import EARLY
from worldsim.evaluation.memory.comparison import LONG_GAP, TRAINED_GAP, zeroed_name
from worldsim.evaluation.quality.idle import STATISTICS

IDLE_STATISTICS = tuple(name for name in STATISTICS if name != "brightness")


def find(data: Any, keys: Iterable[str]) -> Any:
    """Return the value that keys lead to in nested JSON objects; None where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


@dataclass(frozen=True, kw_only=True, slots=True)
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
        """Return `aim`, `pass`, `short`, `reported` or `not measured`.

        Args:
            value: The number; None if it was not measured. NaN reaches no bound.
            is_apart: Of a difference, whether the two intervals are apart.
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


def _over_copy(frame: int, required: float, desired: float) -> Target:
    return Target(
        name=f"roll-out PSNR at frame {frame} over copy-the-last-frame",
        path=f"rollout/horizons/{frame}/over_copy_db",
        unit="dB",
        required=required,
        desired=desired,
    )


def _opposite_actions(axis: str) -> Target:
    return Target(
        name=f"opposite-action test, {axis}: both right",
        path=f"controllability/{axis}/both_right",
        unit="%",
        required=90.0,
        desired=99.0,
        factor=100,
    )


def _idle_deviation(part: Mapping[str, Any]) -> float:
    return max(part[name]["max_deviation"] for name in IDLE_STATISTICS)


QUALITY_TARGETS = (
    Target(
        name="step (denoise + decode + commit), p50",
        path="cost/step_ms/p50",
        unit="ms",
        required=57.0,
        desired=30.0,
        higher_is_better=False,
    ),
    Target(
        name="step p99 / p50",
        path="cost/p99_over_p50",
        required=2.0,
        desired=1.3,
        higher_is_better=False,
    ),
    Target(
        name="step time at frames 1900-2000 over 100-200",
        path="cost/late_over_early",
        required=1.05,
        higher_is_better=False,
    ),
    Target(
        name="growth of the state from frame 100 to 2000",
        path="cost",
        read=state_growth,
        unit="bytes",
        required=0.0,
        higher_is_better=False,
    ),
    Target(
        name="start-up to the first frame",
        path="cost/startup/median",
        unit="s",
        required=10.0,
        desired=5.0,
        higher_is_better=False,
    ),
    _over_copy(8, 2.0, 6.0),
    _over_copy(32, 1.0, 5.0),
    Target(
        name="next-frame PSNR under the codec's ceiling",
        path="rollout/next_frame/under_codec_db",
        unit="dB",
        required=6.0,
        desired=1.0,
        higher_is_better=False,
    ),
    _opposite_actions("turn"),
    _opposite_actions("move"),
    Target(
        name="idle hold: contrast and sharpness off the start",
        path="idle",
        read=_idle_deviation,
        unit="%",
        required=30.0,
        desired=10.0,
        higher_is_better=False,
        factor=100,
    ),
    Target(
        name="ends found at 90 % precision, within 2 frames",
        path="outcome/given/ends/recall_at_90_precision",
        unit="%",
        required=70.0,
        desired=95.0,
        factor=100,
    ),
)
"""Of a world beside the real game."""

AT_TRAINED, AT_LONG = (f"recall at n = {gap}, last frame" for gap in (TRAINED_GAP, LONG_GAP))
COMPARED, LAST_FRAME = "comparisons/{world}", "final/psnr_db"
CONSISTENCY_TARGETS = (
    Target(
        name=AT_TRAINED, path=f"recall/worlds/{{world}}/{TRAINED_GAP}/{LAST_FRAME}", desired=39.3, unit="dB"
    ),
    Target(
        name=f"{AT_TRAINED}, over its state zeroed",
        path=f"{COMPARED}/over/{{zeroed}}/{TRAINED_GAP}/{LAST_FRAME}",
        required=5.0,
        unit="dB",
        is_difference=True,
    ),
    Target(
        name=f"{AT_TRAINED}, over the window",
        path=f"{COMPARED}/over/{{window}}/{TRAINED_GAP}/{LAST_FRAME}",
        required=3.0,
        unit="dB",
        is_difference=True,
    ),
    Target(
        name=f"recovery ratio at n = {TRAINED_GAP}, last frame",
        path=f"{COMPARED}/recovery_ratio/{TRAINED_GAP}/{LAST_FRAME}",
        required=0.5,
        desired=0.71,
    ),
    Target(name=AT_LONG, path=f"recall/worlds/{{world}}/{LONG_GAP}/{LAST_FRAME}", desired=30.8, unit="dB"),
    Target(
        name=f"{AT_LONG}, over the window",
        path=f"{COMPARED}/over/{{window}}/{LONG_GAP}/{LAST_FRAME}",
        required=0.0,
        unit="dB",
        is_difference=True,
    ),
    Target(
        name="paired histories: the answer follows the past",
        path=f"pairs/worlds/{{world}}/{TRAINED_GAP}/history/final",
        required=0.8,
        desired=0.99,
    ),
    Target(
        name="controllability at frame {controllability_frame} over frame 0",
        path="controllability/worlds/{world}/late_over_early",
        required=0.9,
        desired=1.0,
    ),
    Target(
        name=f"step time at frame {{cost_frame}} over frame {EARLY}",
        path="cost/worlds/{world}/late_over_early_ms",
        required=1.02,
        higher_is_better=False,
    ),
    Target(
        name=f"state bytes at frame {{cost_frame}} over frame {EARLY}",
        path="cost/worlds/{world}/late_over_early_bytes",
        required=1.0,
        higher_is_better=False,
    ),
)
"""Of what a world remembers."""


def check_memory(data: Mapping[str, Any], world: str, window: str | None) -> list[dict[str, Any]]:
    """Return `check` of `CONSISTENCY_TARGETS` for one world of a report.

    Args:
        data: The report of the suite.
        world: Name of the world.
        window: Name of the world with a short window, if there is one.
    """
    # A shorter measurement says so: it is not what is asked for.
    frames = {}
    for part, longest in (("controllability", 1000), ("cost", 100_000)):
        frame = find(data, (part, "worlds", world, "late_frame"))
        frames[f"{part}_frame"] = f"{longest if frame is None else frame:,}"
    return check(
        data, CONSISTENCY_TARGETS, world=world, zeroed=zeroed_name(world), window=window or "", **frames
    )


def check(data: Mapping[str, Any], targets: Sequence[Target], **names: str) -> list[dict[str, Any]]:
    """Return `Target.check` of each target."""
    return [target.check(data, **names) for target in targets]

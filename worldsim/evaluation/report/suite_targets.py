"""What a world's memory must reach and should aim for, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldsim.evaluation.cost.step_time import EARLY
from worldsim.evaluation.memory.comparison import zeroed_name
from worldsim.evaluation.report.targets import align

Report = Mapping[str, Any]
TRAINED_GAP, LONG_GAP = "50", "150"


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A number to reach.

    Attributes:
        name: What is measured.
        found: Its estimate (`mean`, `low`, `high`); None where it was not measured.
        must: Least (or greatest) value that will do; None where there is none.
        aim: Value to aim for; None if there is no other than `must`.
        unit: Written after the number.
        higher_is_better: Direction.
        compares: Whether it is a difference, which counts only where the two intervals are apart.
    """

    name: str
    found: Report | None
    must: float | None = None
    aim: float | None = None
    unit: str = ""
    higher_is_better: bool = True
    compares: bool = False

    @property
    def value(self) -> float | None:
        """Where the world stands."""
        return None if self.found is None else self.found["mean"]

    def verdict(self) -> str:
        """Return `aim`, `pass`, `short`, `reported` or `not measured`."""
        if self.value is None or self.found is None:
            return "not measured"
        if self.compares and not self.found["intervals_are_apart"]:
            return "short"
        if self.aim is not None and self._reaches(self.value, self.aim):
            return "aim"
        if self.must is None:
            return "reported"
        return "pass" if self._reaches(self.value, self.must) else "short"

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound if self.higher_is_better else value <= bound

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        low, high = (None, None) if self.found is None else (self.found.get("low"), self.found.get("high"))
        return {
            "name": self.name,
            "value": self.value,
            "interval": None if low is None else [low, high],
            "count": None if self.found is None else self.found.get("count"),
            "unit": self.unit,
            "must": self.must,
            "aim": self.aim,
            "higher_is_better": self.higher_is_better,
            "verdict": self.verdict(),
        }


def judge_world(name: str, report: Report, *, window: str | None) -> list[dict[str, Any]]:
    """Return every goal of a world beside where it stands.

    Args:
        name: Of the world.
        report: Of the suite.
        window: Name of the world with a short window, if there is one.
    """
    compared = report.get("comparisons", {}).get(name, {})
    over, ratio = compared.get("over", {}), compared.get("recovery_ratio", {})
    recall = _of_world(report, "recall", name)
    follows = _of_world(report, "pairs", name).get(TRAINED_GAP, {}).get("history", {}).get("final")
    at_50, at_150 = f"recall at n = {TRAINED_GAP}, last frame", f"recall at n = {LONG_GAP}, last frame"
    zeroed, other = over.get(zeroed_name(name), {}), over.get(window or "", {})
    goals = [
        Goal(name=at_50, found=_final(recall), aim=39.3, unit="dB"),
        Goal(
            name=f"{at_50}, over its state zeroed", found=_final(zeroed), must=5.0, unit="dB", compares=True
        ),
        Goal(name=f"{at_50}, over the window", found=_final(other), must=3.0, unit="dB", compares=True),
        Goal(
            name=f"recovery ratio at n = {TRAINED_GAP}, last frame", found=_final(ratio), must=0.5, aim=0.71
        ),
        Goal(name=at_150, found=_final(recall, LONG_GAP), aim=30.8, unit="dB"),
        Goal(
            name=f"{at_150}, over the window",
            found=_final(other, LONG_GAP),
            must=0.0,
            unit="dB",
            compares=True,
        ),
        Goal(name="paired histories: the answer follows the past", found=follows, must=0.8, aim=0.99),
        *_other_goals(report, name),
    ]
    return [goal.to_json() for goal in goals]


def _other_goals(report: Report, name: str) -> list[Goal]:
    control = _of_world(report, "controllability", name)
    cost = _of_world(report, "cost", name)
    # A shorter measurement says so: it is not what is asked for.
    late = f"{cost.get('late_frame', 100_000):,}"
    return [
        Goal(
            name=f"controllability at frame {control.get('late_frame', 1000):,} over frame 0",
            found=control.get("late_over_early"),
            must=0.9,
            aim=1.0,
        ),
        Goal(
            name=f"step time at frame {late} over frame {EARLY}",
            found=cost.get("late_over_early_ms"),
            must=1.02,
            higher_is_better=False,
        ),
        Goal(
            name=f"state bytes at frame {late} over frame {EARLY}",
            found=_exact(cost.get("late_over_early_bytes")),
            must=1.0,
            higher_is_better=False,
        ),
    ]


def _of_world(report: Report, part: str, name: str) -> Report:
    return report.get(part, {}).get("worlds", {}).get(name, {})


def _final(tree: Report, gap: str = TRAINED_GAP) -> Report | None:
    return tree.get(gap, {}).get("final", {}).get("psnr_db")


def _exact(value: float | None) -> Report | None:
    return None if value is None else {"mean": value}


def bound_text(goal: Report, key: str) -> str:
    """Return what a goal of `judge_world` must (or should) reach, as text."""
    if goal[key] is None:
        return ""
    return f"{'>=' if goal['higher_is_better'] else '<='} {goal[key]:g}"


def format_goals(goals: list[dict[str, Any]]) -> str:
    """Return `judge_world`'s goals as a table."""
    cells = [("what", "value", "95 % interval", "count", "must", "aim", "verdict")]
    for goal in goals:
        ends = goal["interval"]
        cells.append(
            (
                goal["name"],
                "-" if goal["value"] is None else f"{goal['value']:.2f} {goal['unit']}".strip(),
                "" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}",
                str(goal.get("count") or ""),
                bound_text(goal, "must"),
                bound_text(goal, "aim"),
                goal["verdict"],
            )
        )
    return align(cells)

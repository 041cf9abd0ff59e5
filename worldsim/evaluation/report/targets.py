"""What a world must reach and what it should aim for, and the table that says where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worldsim.evaluation.cost.step_time import state_growth
from worldsim.evaluation.quality.idle import STATISTICS

Report = Mapping[str, Any]
IDLE_STATISTICS = tuple(name for name in STATISTICS if name != "brightness")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A number of a report beside what it must and should be.

    Attributes:
        name: What is measured.
        part: Part of the report it is in.
        read: Takes the number out of that part; None if it was not measured there.
        interval: Takes the ends of its 95 % interval out, where it has one.
        unit: Written after the number.
        must: Least (or greatest) value that will do.
        aim: Value to aim for; None if there is no other than `must`.
        higher_is_better: Direction.
    """

    name: str
    part: str
    read: Callable[[Report], float | None]
    interval: Callable[[Report], tuple[float, float] | None] = lambda _: None
    unit: str = ""
    must: float
    aim: float | None
    higher_is_better: bool

    def verdict(self, value: float | None) -> str:
        """Return `aim`, `pass`, `short` or `not measured`."""
        if value is None:
            return "not measured"
        if self._reaches(value, self.must):
            return "aim" if self.aim is not None and self._reaches(value, self.aim) else "pass"
        return "short"

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound if self.higher_is_better else value <= bound  # NaN reaches nothing


def _over_copy(place: int) -> Bar:
    def find(part: Report) -> Report | None:
        return part["horizons"].get(str(place), {}).get("over_copy_db")

    return Bar(
        name=f"roll-out PSNR at frame {place} over copy-the-last-frame",
        part="rollout",
        read=lambda part: _mean(find(part)),
        interval=lambda part: _ends(find(part)),
        unit="dB",
        must={8: 2.0, 32: 1.0}[place],
        aim={8: 6.0, 32: 5.0}[place],
        higher_is_better=True,
    )


def _opposite(axis: str) -> Bar:
    def find(part: Report) -> Report | None:
        both = part.get(axis, {}).get("both_right")
        return both and {key: 100 * value for key, value in both.items() if value is not None}

    return Bar(
        name=f"opposite-action test, {axis}: both right",
        part="controllability",
        read=lambda part: _mean(find(part)),
        interval=lambda part: _ends(find(part)),
        unit="%",
        must=90.0,
        aim=99.0,
        higher_is_better=True,
    )


def _ends_found(part: Report) -> Report | None:
    found = part.get("given", {}).get("ends", {}).get("recall_at_90_precision")
    return found and {key: 100 * value for key, value in found.items() if value is not None}


def _mean(estimate: Report | None) -> float | None:
    return estimate["mean"] if estimate else None


def _ends(estimate: Report | None) -> tuple[float, float] | None:
    if not estimate or estimate.get("low") is None:
        return None
    return estimate["low"], estimate["high"]


def _idle_deviation(part: Report) -> float:
    return 100 * max(part[name]["max_deviation"] for name in IDLE_STATISTICS)


BARS = (
    Bar(
        name="step (denoise + decode + commit), p50",
        part="cost",
        read=lambda part: part["step_ms"]["p50"],
        unit="ms",
        must=57.0,
        aim=30.0,
        higher_is_better=False,
    ),
    Bar(
        name="step p99 / p50",
        part="cost",
        read=lambda part: part["p99_over_p50"],
        must=2.0,
        aim=1.3,
        higher_is_better=False,
    ),
    Bar(
        name="step time at frames 1900-2000 over 100-200",
        part="cost",
        read=lambda part: part.get("late_over_early"),
        must=1.05,
        aim=None,
        higher_is_better=False,
    ),
    Bar(
        name="growth of the state from frame 100 to 2000",
        part="cost",
        read=state_growth,
        unit="bytes",
        must=0.0,
        aim=None,
        higher_is_better=False,
    ),
    Bar(
        name="start-up to the first frame",
        part="cost",
        read=lambda part: part.get("startup", {}).get("median"),
        unit="s",
        must=10.0,
        aim=5.0,
        higher_is_better=False,
    ),
    _over_copy(8),
    _over_copy(32),
    Bar(
        name="next-frame PSNR under the codec's ceiling",
        part="rollout",
        read=lambda part: _mean(part["next_frame"]["under_codec_db"]),
        interval=lambda part: _ends(part["next_frame"]["under_codec_db"]),
        unit="dB",
        must=6.0,
        aim=1.0,
        higher_is_better=False,
    ),
    _opposite("turn"),
    _opposite("move"),
    Bar(
        name="idle hold: contrast and sharpness off the start",
        part="idle",
        read=_idle_deviation,
        unit="%",
        must=30.0,
        aim=10.0,
        higher_is_better=False,
    ),
    Bar(
        name="ends found at 90 % precision, within 2 frames",
        part="outcome",
        read=lambda part: _mean(_ends_found(part)),
        interval=lambda part: _ends(_ends_found(part)),
        unit="%",
        must=70.0,
        aim=95.0,
        higher_is_better=True,
    ),
)


def judge(parts: Mapping[str, Report]) -> list[dict[str, Any]]:
    """Return every bar with the value that a report gives for it and the verdict."""
    rows = []
    for bar in BARS:
        part = parts.get(bar.part)
        value = None if part is None else bar.read(part)
        rows.append(
            {
                "name": bar.name,
                "value": value,
                "interval": None if part is None else bar.interval(part),
                "unit": bar.unit,
                "must": bar.must,
                "aim": bar.aim,
                "higher_is_better": bar.higher_is_better,
                "verdict": bar.verdict(value),
            }
        )
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return `judge`'s rows as text."""
    cells = [("what", "value", "95 % interval", "must", "aim", "verdict")]
    for row in rows:
        sign = ">=" if row["higher_is_better"] else "<="
        ends = row["interval"]
        cells.append(
            (
                row["name"],
                "-" if row["value"] is None else f"{_number(row['value'])} {row['unit']}".strip(),
                "" if ends is None else f"{_number(ends[0])} to {_number(ends[1])}",
                f"{sign} {row['must']:g}",
                "" if row["aim"] is None else f"{sign} {row['aim']:g}",
                row["verdict"],
            )
        )
    return align(cells)


def align(cells: list[tuple[str, ...]]) -> str:
    """Return rows of cells as lines with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"

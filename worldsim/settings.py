"""Settings of dataclasses: a field holds its default, its bounds and its meaning.

A field is `num_steps: int = setting(1000, "Updates in all.", minimum=1)`; `check_settings(self, "loop.")` in
`__post_init__` checks all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import MISSING, Field, field, fields
from functools import partial
from typing import Any

from worldsim.errors import WorldError

REQUIRED: Any = MISSING
"""Default of a setting that has to be given."""


def setting(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: Sequence[str | int] = (),
) -> Any:
    """Return the field of a dataclass that is a setting.

    Args:
        default: Its default; a list or dict is copied, what can be called is called, for each object.
        meaning: One or more sentences.
        minimum: Smallest allowed number; of a list, of each item.
        above: Number that every allowed one is larger than.
        maximum: Largest allowed number.
        below: Number that every allowed one is smaller than.
        choices: All allowed values.
    """
    bounds = {"at least": minimum, "above": above, "at most": maximum, "below": below}
    metadata = {
        "meaning": meaning,
        "bounds": {words: bound for words, bound in bounds.items() if bound is not None},
        "choices": tuple(choices),
    }
    if default is REQUIRED:
        return field(metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=partial(deepcopy, default), metadata=metadata)
    return field(default=default, metadata=metadata)


def describe_bounds(described: Field[Any]) -> str:
    """Return the bounds of a setting in words: "at least 1", "in [0, 1)"; empty where there are none."""
    bounds, choices = described.metadata.get("bounds", {}), described.metadata.get("choices", ())
    if choices:
        return f"one of {', '.join(map(str, choices))}"
    if len(bounds) == 2 and "float" in str(described.type):
        (lower, low), (upper, high) = bounds.items()
        return f"in {'[' if lower == 'at least' else '('}{low}, {high}{']' if upper == 'at most' else ')'}"
    return " and ".join(f"{words} {bound}" for words, bound in bounds.items())


def check_settings(settings: Any, prefix: str = "") -> None:
    """Check all fields of a dataclass that were made by `setting`; None is allowed where the type names it.

    Args:
        settings: The object.
        prefix: Said before the name of a field: `loop.`.

    Raises:
        WorldError: If a value is not within its bounds, or one that has bounds is NaN or infinite.
    """
    for described in fields(settings):
        value = getattr(settings, described.name)
        is_left_out = value is None and "None" in str(described.type)
        if not is_left_out and (problem := _problem(described, value)):
            raise WorldError(f"{prefix}{described.name} must {problem}, got {value!r}")


def _problem(described: Field[Any], value: Any) -> str:
    """Return what a value must do and does not; empty if it is allowed."""
    bounds, choices = described.metadata.get("bounds", {}), described.metadata.get("choices", ())
    if choices:
        return "" if value in choices else f"be {describe_bounds(described)}"
    numbers = value if isinstance(value, list | tuple) else [value]
    broken = [words for words in bounds if not all(_holds(each, words, bounds[words]) for each in numbers)]
    if not broken:
        return ""
    if "float" in str(described.type):
        told = describe_bounds(described)
        return f"lie {told}" if len(bounds) == 2 else f"be {told} and finite"
    numbers_of = "numbers of " if numbers is value else ""
    return f"be {numbers_of}{broken[0]} {bounds[broken[0]]}"


def _holds(value: Any, words: str, bound: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return {
        "at least": value >= bound,
        "above": value > bound,
        "at most": value <= bound,
        "below": value < bound,
    }[words]

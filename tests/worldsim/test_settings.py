"""Settings of dataclasses: defaults, bounds, sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import pytest

from worldsim.errors import WorldError
from worldsim.settings import REQUIRED, check_settings, describe_bounds, setting


@dataclass(kw_only=True, slots=True)
class Example:
    world: str = setting(REQUIRED, "A world.")
    count: int = setting(3, "A count.", minimum=1, maximum=9)
    rate: float = setting(0.1, "A rate.", above=0)
    share: float = setting(0.5, "A share.", minimum=0, below=1)
    scale: float | None = setting(None, "None is the world's own.", minimum=0)
    mode: str = setting("slow", "A mode.", choices=("slow", "fast"))
    frames: list[int] = setting([1, 8], "Frame numbers.", minimum=1)
    names: dict[str, int] = setting(dict, "Names.")

    def __post_init__(self) -> None:
        check_settings(self, "part.")


def test_defaults_are_those_of_the_fields_and_lists_are_copied() -> None:
    first, second = Example(world="a"), Example(world="b")
    first.frames.append(2)
    assert (second.count, second.frames, second.names, second.scale) == (3, [1, 8], {}, None)
    with pytest.raises(TypeError, match="world"):
        Example()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"count": 0}, "part.count must be at least 1, got 0"),
        ({"count": 10}, "part.count must be at most 9, got 10"),
        ({"rate": 0.0}, "part.rate must be above 0 and finite, got 0.0"),
        ({"rate": math.inf}, "part.rate must be above 0 and finite, got inf"),
        ({"scale": math.nan}, "part.scale must be at least 0 and finite, got nan"),
        ({"share": 1.0}, "part.share must lie in [0, 1), got 1.0"),
        ({"share": math.nan}, "part.share must lie in [0, 1), got nan"),
        ({"mode": "other"}, "part.mode must be one of slow, fast, got 'other'"),
        ({"mode": None}, "part.mode must be one of slow, fast, got None"),
        ({"count": "x"}, "part.count must be at least 1, got 'x'"),
        ({"count": None}, "part.count must be at least 1, got None"),
        ({"rate": True}, "part.rate must be above 0 and finite, got True"),
        ({"frames": ["x"]}, "part.frames must be numbers of at least 1, got ['x']"),
        ({"frames": [4, 0]}, "part.frames must be numbers of at least 1, got [4, 0]"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bounds(given: dict[str, Any], told: str) -> None:
    with pytest.raises(WorldError) as error:
        Example(world="a", **given)
    assert str(error.value) == told


def test_bounds_are_described_in_words() -> None:
    told = {each.name: describe_bounds(each) for each in fields(Example)}
    assert told == {
        "world": "",
        "count": "at least 1 and at most 9",
        "rate": "above 0",
        "share": "in [0, 1)",
        "scale": "at least 0",
        "mode": "one of slow, fast",
        "frames": "at least 1",
        "names": "",
    }

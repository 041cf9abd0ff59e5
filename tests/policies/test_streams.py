"""The table of random streams: complete, and the same as what games draw from."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from policies import streams

ROOT = Path(__file__).resolve().parents[2]


def test_games_draw_from_the_streams_of_the_table() -> None:
    assert {name: import_module(name).STREAM for name in streams.GAMES} == streams.GAMES


def test_no_stream_is_defined_beside_the_table() -> None:
    files = [
        path for package in ("worldsim", "policies", "training") for path in (ROOT / package).rglob("*.py")
    ]
    defining = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files
        if any(line.startswith("STREAM =") for line in path.read_text().splitlines())
    }
    assert defining == streams.GAMES.keys()


def test_numbers_differ_but_for_the_two_that_never_meet() -> None:
    """Recordings of the same seed would become others if a number changed."""
    numbers = {name: value for name, value in vars(streams).items() if name.isupper() and name != "GAMES"}
    in_use = {"MIXED": 1, "RETURNING": 2, "OUT_AND_BACK": 3, "TOURS": 4, "SKIRMISH": 6, "EXCURSIONS": 7}
    of_level = {"FIGHT": 8, "CHARGE": 9, "DOORS": 10, "PUSH": 11, "TURN_ROUND": 12, "IDLE": 13, "WANDER": 14}
    assert numbers == in_use | of_level
    assert set(streams.GAMES.values()) & set(numbers.values()) == {3}

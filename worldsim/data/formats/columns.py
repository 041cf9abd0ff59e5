"""Columns of actions: read from rows of JSON, CSV and arrays, and told apart by their values."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.episode_table import POSE_KEYS
from worldsim.data.formats.source import Channel, Kind, Recording
from worldsim.errors import WorldError
from worldsim.storage.files import read_json_lines, read_text, shown

REWARDS = ("reward", "rewards")
ENDS = ("terminated", "terminations", "terminal", "terminals", "done", "dones")
TIMES = ("time", "times", "timestamp", "timestamps")
IGNORED = (
    "truncated",
    "truncations",
    "frame",
    "frame_index",
    "index",
    "player",
    "info",
    "infos",
    "sha256",
    "game_seed",
    "game_start",
    "labels",
)
ACTIONS = ("action", "actions")
POSES = tuple(f"pose.{key}" for key in POSE_KEYS)
NOTHING = ("", "none", "noop", "nothing", "no-op")
MAX_COLUMNS, MAX_OPTIONS = 256, 64
DONE_NOTE = "ends told as done count as terminated, though some may be time limits"


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Read a `.jsonl` or `.csv` file as columns; a value of JSON with inner ones becomes a column for each.

    An inner value has a dotted name, `action.0` or `action.jump`. On the last row the action may be null or
    empty.

    Raises:
        WorldError: If a row is malformed, or has other columns than the first.
    """
    rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path))
    if not rows:
        raise WorldError(f"{path} is empty")
    names = list(rows[0][1])
    for number, (where, row) in enumerate(rows):
        is_last = number == len(rows) - 1
        if row.keys() != rows[0][1].keys() and not (is_last and row.keys() <= {*names, *ACTIONS}):
            other = ", ".join(sorted(row.keys() - {*names, *ACTIONS} or set(names) - row.keys()))
            raise WorldError(f"{where} has other columns than the first line: {other}")
    return {name: _as_array([row.get(name) for _, row in rows], f"{path}: {name}") for name in names}


def split_columns(columns: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the columns of actions, and others by `reward`, `ended`, `time` and `pose`.

    What is inside of a column called `action` are the actions, if there is one, and all that has no other
    meaning otherwise.
    """
    others = {
        role: columns[name]
        for role, known in (("reward", REWARDS), ("ended", ENDS), ("time", TIMES))
        for name in known[::-1]
        if name in columns
    }
    if set(POSES) <= columns.keys():
        others["pose"] = np.stack([columns[name] for name in POSES], axis=1)
    reserved = {"pose", *REWARDS, *ENDS, *TIMES, *IGNORED}
    outer = {name.partition(".")[0] for name in columns} - reserved
    kept = outer & set(ACTIONS) or outer
    actions = {name: values for name, values in columns.items() if name.partition(".")[0] in kept}
    return {_without_action(name): values for name, values in actions.items()}, others


def _without_action(name: str) -> str:
    first, _, rest = name.partition(".")
    return rest if first in ACTIONS and rest and not rest[0].isdecimal() else name


def array_columns(name: str, values: np.ndarray, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return `[T]` or `[T, ...]` actions as a column for each number of an action.

    Args:
        names: Of the numbers of an action, if they are known.
    """
    flat = values.reshape(len(values), -1) if values.ndim > 1 else values[:, None]
    if flat.shape[1] > MAX_COLUMNS:
        raise WorldError(f"{name} has {flat.shape[1]} numbers an action, more than {MAX_COLUMNS}")
    if len(names) != flat.shape[1] or len(set(names)) != len(names):
        names = (
            [name]
            if values.ndim == 1 or flat.shape[1] == 1
            else [f"{name}.{i}" for i in range(flat.shape[1])]
        )
    return {each: flat[:, index] for index, each in enumerate(names)}


def as_ends(values: np.ndarray, where: str) -> np.ndarray:
    """Return whether the game ended, `[N]` bool.

    Raises:
        WorldError: If they are neither bool nor 0 and 1.
    """
    flat = values.reshape(len(values), -1)
    if values.dtype.kind not in "biuf" or flat.shape[1] != 1 or not np.isin(flat, (0, 1)).all():
        raise WorldError(f"{where}: an end is true or false, one a frame, got {shown(values.tolist())}")
    return flat[:, 0].astype(bool)


@dataclass(slots=True)
class _Summary:
    """What is known of the values of a column so far."""

    is_text: bool
    low: float = np.inf
    high: float = -np.inf
    is_whole: bool = True
    distinct: set[Any] = field(default_factory=set)

    def add(self, values: np.ndarray) -> None:
        if len(self.distinct) <= MAX_OPTIONS:
            self.distinct |= set(np.unique(values).tolist())
        if not self.is_text:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.is_whole = self.is_whole and bool((values == np.round(values)).all())


def check_actions(actions: Mapping[str, np.ndarray], where: str) -> None:
    """Raise `WorldError` if an action is NaN or infinite."""
    for name, values in actions.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            (first, *_) = np.flatnonzero(~np.isfinite(values))
            raise WorldError(
                f"{where}: {name} is {values[first]} at frame {first}; an action is a finite number"
            )
        if values.dtype.kind not in "biufUS":
            raise WorldError(f"{where}: {name} is no number or text, but {values.dtype}")


def find_channels(recordings: Iterable[Recording], num_levels: int) -> tuple[Channel, ...]:
    """Return what the columns of actions of some recordings are, from all of their values.

    0 and 1 are a button, texts and few whole numbers from 0 on a choice, other numbers analog: with a level
    for each that occurs if these are no more than `num_levels`.

    Raises:
        WorldError: If two recordings have other columns.
    """
    found: dict[str, _Summary] = {}
    first = ""
    for recording in recordings:
        actions = recording.table().actions
        check_actions(actions, recording.where)
        if first and actions.keys() != found.keys():
            other = ", ".join(sorted(actions.keys() ^ found.keys()))
            raise WorldError(f"{recording.where} has other actions than {first}: {other}; import them apart")
        first = first or recording.where
        for name, values in actions.items():
            is_text = values.dtype.kind in "US"
            summary = found.setdefault(name, _Summary(is_text))
            if summary.is_text != is_text:
                raise WorldError(f"{recording.where} has texts or numbers in {name}, unlike {first}")
            summary.add(values)
    return tuple(_channel(name, summary, num_levels) for name, summary in found.items())


def _channel(name: str, found: _Summary, num_levels: int) -> Channel:
    if len(found.distinct) > MAX_OPTIONS and found.is_text:
        raise WorldError(f"{name} has more than {MAX_OPTIONS} different texts, too many for buttons")
    if found.is_text:
        names = sorted(found.distinct)
        nothing = [each for each in names if each.lower() in NOTHING]
        names = nothing[:1] + [each for each in names if each not in nothing[:1]]
        return Channel(name=name, kind=Kind.CHOICE, options=tuple(names), rest=0 if nothing else None)
    if found.is_whole and found.low >= 0 and found.high <= 1:
        return Channel(name=name, kind=Kind.BUTTON)
    if found.is_whole and found.low >= 0 and found.high < MAX_OPTIONS:
        options = tuple(str(value) for value in range(int(found.high) + 1))
        return Channel(name=name, kind=Kind.CHOICE, options=options)
    is_few = len(found.distinct) <= num_levels
    levels = tuple(sorted({float(value) for value in found.distinct})) if is_few else ()
    # As far to both sides, or from 0 on: one of an odd number of bins is then at rest.
    most = max(abs(found.low), abs(found.high))
    limits = (0.0 if found.low >= 0 else -most, 0.0 if found.high <= 0 else most)
    return Channel(name=name, kind=Kind.ANALOG, limits=limits, levels=levels)


def _json_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for where, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise WorldError(f"{where} must be an object, got a {type(row).__name__}")
        yield where, dict(_flat(row, ""))


def _flat(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    """Yield the inner values of JSON by dotted names."""
    if name in IGNORED or (name == "pose" and value is None):
        return
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in inner:
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _csv_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    reader = csv.DictReader(text.splitlines())
    names = reader.fieldnames or []
    if len(set(names)) != len(names) or not all(names):
        raise WorldError(
            f"{path} needs a first line of different names, got {shown(','.join(map(str, names)))}"
        )
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if None in row or None in row.values():
            raise WorldError(f"{where} does not have the {len(names)} values of the first line")
        yield where, {name: _parsed(value.strip()) for name, value in row.items() if name not in IGNORED}


def _parsed(text: str) -> bool | int | float | str | None:
    words = {"true": True, "false": False, "": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _as_array(values: list[Any], where: str) -> np.ndarray:
    is_text = any(isinstance(value, str) for value in values)
    if is_text:
        values = ["" if value is None else value for value in values]
    elif len(values) > 1 and values[-1] is None:
        values[-1] = values[-2]
    for number, value in enumerate(values, start=1):
        if isinstance(value, str) != is_text or not isinstance(value, bool | int | float | str):
            raise WorldError(
                f"{where} must be {'a text' if is_text else 'a number'}, got {shown(value)} in row {number}"
            )
    array = np.array(values)
    if array.dtype.kind not in "biufU":
        raise WorldError(f"{where} holds a number that is too large")
    return array

"""The rows of an episode: the lines of its jsonl, checked alike when written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.storage.files import check_bool, check_integer, check_number, read_json_lines

POSE_KEYS = ("x", "y", "angle_degrees")
MAX_NUMBER = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeTable:
    """What an episode's jsonl says; T frames, A action axes.

    Attributes:
        actions: `[T, A]` int64; row i leads to frame i + 1, the last row is nothing pressed.
        rewards: `[T]` float32, given on the way to each frame, or None if not recorded.
        terminated: `[T]` bool, or None if not recorded.
        poses: `[T, 3]` float32 x, y, angle in degrees, or None if not recorded.
        labels: `[T, L]` float32 in the order of the dataset's `labels`, or None if not recorded.
        players: Names of who chose each action, T of them, empty where it is not recorded.
        game_seed: Which game was played, or None if not recorded.
        game_start: Kind of place that the game was asked to begin at; empty where it was not asked.
    """

    actions: np.ndarray
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    poses: np.ndarray | None = None
    labels: np.ndarray | None = None
    players: tuple[str, ...] = ()
    game_seed: int | None = None
    game_start: str = ""


def check_row(row: Any, actions: ActionLayout, where: str) -> Mapping[str, Any]:
    """Return what a line says of a frame, each field of the type and in the range that it must have.

    Args:
        row: As parsed; other fields than those of the format are left alone.

    Raises:
        WorldError: If it is no object, has no action, or a field is not what it must be. An action may be
            None: the last frame has none.
    """
    if not isinstance(row, dict):
        raise WorldError(f"{where} must be an object, got a {type(row).__name__}")
    if "action" not in row:
        raise WorldError(f"{where} has no field 'action'")
    if row["action"] is not None:
        _check_action(row["action"], actions, where)
    if "reward" in row:
        check_number(row["reward"], f"{where}: reward", -MAX_NUMBER, MAX_NUMBER)
    if "terminated" in row:
        check_bool(row["terminated"], f"{where}: terminated")
    if row.get("pose") is not None:
        _check_pose(row["pose"], where)
    if "labels" in row:
        _check_labels(row["labels"], where)
    for name in ("player", "sha256", "game_start"):
        if not isinstance(row.get(name, ""), str):
            raise WorldError(f"{where}: {name} must be a text, got a {type(row[name]).__name__}")
    if "game_seed" in row:
        check_integer(row["game_seed"], f"{where}: game_seed")
    return row


def read_table(folder: Path, name: str, actions: ActionLayout) -> EpisodeTable:
    """Read an episode's jsonl alone.

    Raises:
        FileNotFoundError: If it is missing.
        WorldError: If a line is not of the expected form.
    """
    path = folder / f"{name}.jsonl"
    pressed, rewards, terminated, poses, labels, players, game_seed = [], [], [], [], [], [], None
    game_start = ""
    for where, data in read_json_lines(path):
        if pressed and pressed[-1] is None:
            raise WorldError(f"{path} line {len(pressed)}: only the last frame of an episode has no action")
        row = check_row(data, actions, where)
        pressed.append(row["action"])
        rewards.append(row.get("reward"))
        terminated.append(row.get("terminated"))
        labels.append(row.get("labels"))
        if labels[-1] is not None and labels[0] is not None and len(labels[-1]) != len(labels[0]):
            raise WorldError(f"{where} has {len(labels[-1])} labels, the first line has {len(labels[0])}")
        players.append(row.get("player", ""))
        game_seed = row.get("game_seed", game_seed)
        game_start = row.get("game_start", game_start)
        pose = row.get("pose")
        poses.append(None if pose is None else [pose[key] for key in POSE_KEYS])
    if pressed and pressed[-1] is None:
        pressed[-1] = actions.noop().tolist()
    return EpisodeTable(
        actions=np.array(pressed, dtype=np.int64).reshape(-1, len(actions.axes)),
        rewards=None if None in rewards else np.array(rewards, dtype=np.float32),
        terminated=None if None in terminated else np.array(terminated, dtype=bool),
        poses=None if None in poses else np.array(poses, dtype=np.float32).reshape(-1, 3),
        labels=None if None in labels or not labels else np.array(labels, dtype=np.float32),
        players=tuple(players),
        game_seed=game_seed,
        game_start=game_start,
    )


def _check_action(action: Any, actions: ActionLayout, where: str) -> None:
    counts = actions.num_values
    if isinstance(action, list) and len(action) == len(counts):
        pairs = zip(action, counts, strict=True)
        if all(type(value) is int and 0 <= value < count for value, count in pairs):
            return
    try:
        actions.validate(action)
    except ValueError as error:
        raise WorldError(f"{where}: {error}") from error
    raise WorldError(f"{where}: an action is a list of integers, got {action!r}")


def _check_labels(labels: Any, where: str) -> None:
    if not isinstance(labels, list):
        raise WorldError(f"{where}: labels must be a list of numbers, got a {type(labels).__name__}")
    for value in labels:
        # First what almost all of them are: there are many.
        if not (type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER):
            check_number(value, f"{where}: a label", -MAX_NUMBER, MAX_NUMBER)


def _check_pose(pose: Any, where: str) -> None:
    if not isinstance(pose, dict):
        raise WorldError(f"{where}: a pose must be an object, got a {type(pose).__name__}")
    for key in POSE_KEYS:
        if key not in pose:
            raise WorldError(f"{where} has no field {key!r} in its pose")
        check_number(pose[key], f"{where}: {key}", -MAX_NUMBER, MAX_NUMBER)

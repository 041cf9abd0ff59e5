"""Checks of the lines of a jsonl, written here or elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episode_table import read_table
from worldsim.data.episodes import EpisodeWriter, read_episode
from worldsim.errors import WorldError

ACTIONS = ActionLayout(
    (
        ActionAxis(name="move", buttons=("forward", "backward"), keys=(("up",), ("down",))),
        ActionAxis(name="turn", buttons=("left",), keys=(("left",),)),
    )
)
INFO = DatasetInfo(name="test", width=48, height=32, frame_rate=10, actions=ACTIONS)
POSE = {"x": 1.0, "y": -2.0, "angle_degrees": 90.0}


def write(folder: Path, *lines: str) -> None:
    first, last = '{"action": [0, 0]}', '{"action": null}'
    (folder / "a.jsonl").write_text("\n".join([first, *lines, last]) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"reward": NaN', "NaN is not a number of JSON"),
        ('"reward": 1e39', "reward must be a finite number"),
        ('"reward": -1e39', "reward must be a finite number"),
        ('"reward": "1"', "reward must be a finite number"),
        ('"reward": true', "reward must be a finite number"),
        ('"reward": null', "reward must be a finite number"),
        ('"reward": ' + "9" * 4000, "is too large"),
        ('"terminated": "false"', "terminated must be true or false"),
        ('"terminated": 0', "terminated must be true or false"),
        ('"pose": [1, 2, 3]', "a pose must be an object, got a list"),
        ('"pose": {"x": 1, "y": 2}', "has no field 'angle_degrees'"),
        ('"pose": {"x": "1", "y": 2, "angle_degrees": 0}', "x must be a finite number"),
        ('"pose": {"x": 1, "y": Infinity, "angle_degrees": 0}', "Infinity is not a number of JSON"),
        ('"pose": {"x": 1, "y": 1e300, "angle_degrees": 0}', "y must be a finite number"),
        ('"labels": 7', "labels must be a list of numbers, got a int"),
        ('"labels": [1, "2"]', "a label must be a finite number"),
        ('"labels": [1, true]', "a label must be a finite number"),
        ('"labels": [1, 1e39]', "a label must be a finite number"),
        ('"game_start": 7', "game_start must be a text, got a int"),
        ('"player": 7', "player must be a text, got a int"),
        ('"player": null', "player must be a text, got a NoneType"),
        ('"sha256": 7', "sha256 must be a text"),
        ('"game_seed": 1.5', "game_seed must be an integer"),
        ('"game_seed": "1"', "game_seed must be an integer"),
        ('"game_seed": -1', "game_seed must be an integer"),
        ('"game_seed": true', "game_seed must be an integer"),
        ('"game_seed": 1' + "0" * 30, "is too large"),
        ('"more": ' + "[" * 100_000, "is nested too deep"),
    ],
)
def test_a_field_of_another_type_or_range_is_named_with_its_line(
    tmp_path: Path, fields: str, message: str
) -> None:
    write(tmp_path, f'{{"action": [0, 0], {fields}}}')
    with pytest.raises(WorldError, match=f"a.jsonl line 2.*{message}"):
        read_table(tmp_path, "a", ACTIONS)


@pytest.mark.parametrize(
    "action", ["[true, 0]", "[1.0, 0]", '["1", 0]', '"10"', "[[1], [0, 0]]", "[1]", "[3, 0]", "[-1, 0]", "{}"]
)
def test_an_action_of_anything_but_integers_in_range_is_named(tmp_path: Path, action: str) -> None:
    write(tmp_path, f'{{"action": {action}}}')
    with pytest.raises(WorldError, match=r"a.jsonl line 2"):
        read_table(tmp_path, "a", ACTIONS)


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    for line in ("[]", "7", "null", '"action"', ""):
        write(tmp_path, line)
        with pytest.raises(WorldError, match=r"a.jsonl line 2"):
            read_table(tmp_path, "a", ACTIONS)


def test_line_breaks_of_unicode_are_part_of_a_name(tmp_path: Path) -> None:
    write(tmp_path, '{"action": [1, 1], "player": "a\u2028b\x85c"}')
    table = read_table(tmp_path, "a", ACTIONS)
    assert table.players == ("", "a\u2028b\x85c", "")
    assert table.actions.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_lines_of_windows_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"action": [2, 1]}\r\n{"action": null}\r\n')
    assert read_table(tmp_path, "a", ACTIONS).actions.tolist() == [[2, 1], [0, 0]]


def test_fields_of_others_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, '{"action": [0, 1], "pose": null, "mood": {"good": [1, 2]}}')
    assert read_table(tmp_path, "a", ACTIONS).actions[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    "given",
    [
        {"reward": float("nan")},
        {"reward": np.float32("inf")},
        {"reward": 1e39},
        {"reward": "1"},
        {"terminated": "false"},
        {"terminated": 1},
        {"pose": (0.0, float("nan"), 0.0)},
        {"player": 7},
        {"sha256": b"12"},
        {"game_seed": 1.5},
    ],
)
def test_nothing_is_written_that_would_not_be_read(tmp_path: Path, given: dict[str, Any]) -> None:
    frame = np.zeros((32, 48, 3), np.uint8)
    with EpisodeWriter(tmp_path, "a", INFO) as writer:
        writer.add(frame, np.array([0, 0]))
        with pytest.raises(WorldError, match=r"a.jsonl line 2: .* must be"):
            writer.add(frame, np.array([0, 0]), **given)
        writer.add(frame, None)
    assert len(read_table(tmp_path, "a", ACTIONS).actions) == 2


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    frame = np.zeros((32, 48, 3), np.uint8)
    with EpisodeWriter(tmp_path, "a", INFO) as writer:
        pose = tuple(np.array([1, 2, 3], np.float32))
        ends = np.bool_(True)
        writer.add(frame, None, reward=np.float32(0.5), terminated=ends, pose=pose, game_seed=np.int64(7))
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row == {
        "action": None,
        "reward": 0.5,
        "terminated": True,
        "game_seed": 7,
        "pose": {"x": 1.0, "y": 2.0, "angle_degrees": 3.0},
    }


def test_labels_are_written_in_the_order_of_their_names_and_read(tmp_path: Path) -> None:
    frame, info = np.zeros((32, 48, 3), np.uint8), replace(INFO, labels=("health", "kills"))
    with EpisodeWriter(tmp_path, "a", info) as writer:
        writer.add(frame, np.array([0, 0]), labels=(np.float32(99.5), 2), game_start="door")
        with pytest.raises(WorldError, match="a.mp4: 1 labels for a dataset of 2"):
            writer.add(frame, None, labels=(1.0,))
        writer.add(frame, None, labels=(98.12345, 3.0))
    assert DatasetInfo.load(tmp_path) == info
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["labels"] == [99.5, 2] and '"labels": [98.123, 3]' in lines[1]
    episode = read_episode(tmp_path, "a")
    assert episode.labels is not None and episode.game_start == "door"
    assert np.allclose(episode.labels, [[99.5, 2], [98.123, 3]])
    replace(info, labels=("health",)).save(tmp_path)
    with pytest.raises(WorldError, match=r"a.jsonl has 2 labels a line, but dataset.json names 1"):
        read_episode(tmp_path, "a")
    (tmp_path / "a.jsonl").write_text(lines[0] + "\n" + lines[1].replace(", 3]", "]") + "\n")
    with pytest.raises(WorldError, match="line 2 has 1 labels, the first line has 2"):
        read_table(tmp_path, "a", ACTIONS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("health", "labels must be a list of names"),
        (["a", 1], "a list of names"),
        (["a", "a"], "different names"),
    ],
)
def test_names_of_labels_are_checked(labels: Any, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        DatasetInfo.from_json(INFO.to_json() | {"labels": labels})
    assert "labels" not in INFO.to_json()

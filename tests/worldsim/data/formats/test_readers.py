"""Readers give the frames and actions that the formats' own writers were given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from gymnasium import spaces

from tests.recordings import (
    HEIGHT,
    WIDTH,
    contractor_line,
    gradient,
    gradients,
    record_minari,
    write_counter_strike,
    write_film,
    write_lines,
)
from worldsim.data.formats import counter_strike
from worldsim.data.formats.columns import find_channels
from worldsim.data.formats.registry import FORMATS, find_format, open_source
from worldsim.data.formats.source import Kind, ReadOptions, Source, as_rgb
from worldsim.errors import WorldError
from worldsim.storage.images import encode_png

LEROBOT = Path(__file__).parent / "lerobot"
ACTIONS = {
    "Discrete": spaces.Discrete(4, start=1),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32)),
    "nested": spaces.Dict({"stick": spaces.Box(-1, 1, (2,)), "jump": spaces.Discrete(2)}),
}


def read(path: Path, **options: str | int) -> Source:
    return open_source(path, ReadOptions(**options))[1]


def near(frames: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    assert len(frames) == len(expected)
    return all(
        np.abs(one.astype(int) - other).mean() < 4 for one, other in zip(frames, expected, strict=True)
    )


def numbers(action: object) -> list[float]:
    """Return the numbers of an action of any space, in the order of its parts."""
    if isinstance(action, dict):
        return [number for each in action.values() for number in numbers(each)]
    return np.asarray(action, dtype=np.float64).reshape(-1).tolist()


@pytest.mark.parametrize("data_format", ["hdf5", "parquet", "arrow"])
@pytest.mark.parametrize("space", ["Discrete", "nested"])
def test_minari_gives_what_its_own_reader_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str, data_format: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = record_minari(ACTIONS[space], data_format=data_format)
    path = tmp_path / "test/game-v0"
    assert find_format(path) == find_format(path / "data") == "minari"
    source = read(path)
    for recording, expected in zip(source.recordings, dataset.iterate_episodes(), strict=True):
        table = recording.table()
        pictures = expected.observations["camera"]
        np.testing.assert_array_equal(np.stack(list(recording.frames())), pictures)
        assert table.num_frames == len(pictures) == 7
        first = 1 if space == "Discrete" else 0
        actions = (
            expected.actions
            if space == "Discrete"
            else np.array(
                [numbers({name: each[i] for name, each in expected.actions.items()}) for i in range(6)]
            )
        )
        found = np.stack(list(table.actions.values()), axis=1)[:-1]
        np.testing.assert_array_equal(found, np.asarray(actions).reshape(6, -1) - first)
        assert table.rewards is not None and table.terminated is not None
        np.testing.assert_array_equal(table.rewards, [0, *expected.rewards])
        assert table.terminated.tolist() == [False] * 6 + [True]


@pytest.mark.parametrize("space", ACTIONS)
def test_spaces_of_actions_become_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    record_minari(ACTIONS[space], episodes=1, size=20)  # too small for JPEG: stored as arrays
    source = read(tmp_path / "test/game-v0")
    assert source.channels is not None
    kinds = [(channel.name, channel.kind, channel.options or channel.limits) for channel in source.channels]
    assert (
        kinds
        == {
            "Discrete": [("action", Kind.CHOICE, ("1", "2", "3", "4"))],
            "MultiDiscrete": [
                ("action.0", Kind.CHOICE, ("0", "1", "2")),
                ("action.1", Kind.CHOICE, ("0", "1")),
            ],
            "MultiBinary": [(f"action.{index}", Kind.BUTTON, None) for index in range(3)],
            "Box": [("action.0", Kind.ANALOG, (-1, 1)), ("action.1", Kind.ANALOG, (0, 1))],
            "nested": [
                ("jump", Kind.CHOICE, ("0", "1")),
                ("stick.0", Kind.ANALOG, (-1, 1)),
                ("stick.1", Kind.ANALOG, (-1, 1)),
            ],
        }[space]
    )
    (recording,) = source.recordings
    np.testing.assert_array_equal(next(recording.frames()), gradient(0, 20, 28))


def test_a_dataset_of_lerobot_is_read_as_it_was_recorded() -> None:
    """Written by lerobot 0.4.4: two episodes in one video and one Parquet file."""
    name, source = open_source(LEROBOT, ReadOptions())
    assert (name, source.frame_rate) == ("lerobot", 10)
    for number, (recording, count) in enumerate(zip(source.recordings, (12, 9), strict=True)):
        table = recording.table()
        assert near(list(recording.frames()), gradients(count, shade=40 * number))
        np.testing.assert_array_equal(
            table.actions["steer"], np.sin(np.arange(count) + number).astype(np.float32)
        )
        np.testing.assert_array_equal(table.actions["gas"], np.arange(count) % 3 / 2)
        assert table.rewards is not None and table.terminated is not None
        # What the last action brought is told with the last frame: that it led to is not there.
        assert table.rewards.sum() == np.arange(count).sum() * 0.5
        assert table.rewards[:3].tolist() == [0, 0, 0.5]
        assert table.terminated.tolist() == [False] * (count - 1) + [True]


def test_pictures_of_lerobot_may_be_in_its_tables(tmp_path: Path) -> None:
    path = Path(shutil.copytree(LEROBOT, tmp_path / "drive"))
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.images.front"]["dtype"] = "image"
    (path / "meta/info.json").write_text(json.dumps(info))
    frames = [*gradients(12), *gradients(9, shade=40)]
    pictures = [{"bytes": encode_png(frame), "path": "a.png"} for frame in frames]
    file = path / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(
        table.append_column("observation.images.front", pyarrow.array(pictures)), file
    )
    for recording, expected in zip(read(path).recordings, (frames[:12], frames[12:]), strict=True):
        np.testing.assert_array_equal(np.stack(list(recording.frames())), np.stack(expected))


BROKEN_LEROBOT = {
    "another version": ("meta/info.json", "is a LeRobotDataset of version v2.1, only 3.0 is read"),
    "half a table": ("data/chunk-000/file-000.parquet", "is not a whole Parquet or Arrow file"),
    "half a list of episodes": (
        "meta/episodes/chunk-000/file-000.parquet",
        "is not a whole Parquet or Arrow file",
    ),
    "no video": ("videos/observation.images.front/chunk-000/file-000.mp4", "there is no video"),
    "a way out of the dataset": ("meta/info.json", "data_path leads out of the dataset"),
}


@pytest.mark.parametrize("fault", BROKEN_LEROBOT)
def test_a_damaged_dataset_of_lerobot_is_refused(tmp_path: Path, fault: str) -> None:
    path = Path(shutil.copytree(LEROBOT, tmp_path / "drive"))
    name, expected = BROKEN_LEROBOT[fault]
    file = path / name
    if file.suffix == ".json":
        replaced = {"another version": ("v3.0", "v2.1")}.get(fault, ('"data/', '"../data/'))
        file.write_text(file.read_text().replace(*replaced))
    elif file.suffix == ".mp4":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((WorldError, FileNotFoundError), match=expected):
        recording = read(path).recordings[0]
        recording.table()
        next(recording.frames())


def test_counter_strike_files_are_read(tmp_path: Path) -> None:
    made = write_counter_strike(tmp_path / "hdf5_dm_july2021_1.hdf5")
    name, source = open_source(tmp_path, ReadOptions())
    (recording,) = source.recordings
    table = recording.table()
    assert (name, source.frame_rate, table.num_frames) == ("counter-strike", 16, 8)
    for index, (frame, (bgr, vector)) in enumerate(zip(recording.frames(), made, strict=True)):
        np.testing.assert_array_equal(frame, bgr[..., ::-1])
        assert [table.actions[each][index] for each in counter_strike.BUTTONS] == vector[:13].tolist()
        assert table.actions["mouse_x"][index] == counter_strike.MOUSE["mouse_x"][vector[13:36].argmax()]
        assert table.actions["mouse_y"][index] == counter_strike.MOUSE["mouse_y"][vector[36:].argmax()]
    assert table.rewards is not None
    assert table.rewards.tolist() == [0, 0, 0, 1, 0, -1, 0, 0]


def test_contractor_files_are_read(tmp_path: Path) -> None:
    write_film(tmp_path / "player-1.mp4", gradients(8))
    lines = [contractor_line(index) for index in range(8)]
    for line in lines:
        line["mouse"]["buttons"] = [0]  # the left button is stuck
    lines[0]["mouse"]["newButtons"] = [0]
    lines[5] = contractor_line(5, dx=20.0, dy=-400.0, buttons=[0, 1], newButtons=[0])
    lines[7]["keyboard"] = None
    write_lines(tmp_path / "player-1.jsonl", lines)
    name, source = open_source(tmp_path, ReadOptions())
    (recording,) = source.recordings
    actions = recording.table().actions
    assert (name, source.frame_rate) == ("vpt", 20)
    assert near(list(recording.frames()), gradients(8))
    assert actions["forward"].tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert actions["attack"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert actions["use"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert actions["hotbar"].tolist() == [0, 0, 0, 0, 3, 0, 0, 0]
    assert actions["camera_yaw"].tolist() == [0, 0, 0, 0, 0, 3, 0, 0]
    assert actions["camera_pitch"][5] == -60


def sidecar(video: Path, suffix: str, steer: np.ndarray, jump: np.ndarray) -> None:
    path = video.with_suffix(suffix)
    rewards = [0.5 * index for index in range(len(steer))]
    if suffix == ".npz":
        # Entry i is what action i brought, so the reward of frame i is entry i - 1.
        np.savez(path, steer=steer, jump=jump, rewards=np.array(rewards[1:] + [0.0]))
        return
    rows = [
        {"steer": float(s), "jump": bool(j), "reward": reward, "time": index / 20}
        for index, (s, j, reward) in enumerate(zip(steer, jump, rewards, strict=True))
    ]
    if suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        write_lines(path, rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".npz"])
def test_videos_with_actions_beside_them_are_read(tmp_path: Path, suffix: str) -> None:
    steer, jump = np.linspace(-1, 1, 12), np.arange(12) % 3 == 0
    for name in ("one/a", "two/a"):
        (tmp_path / name).parent.mkdir()
        write_film(tmp_path / f"{name}.mp4", gradients(12), has_sound=True)
        sidecar(tmp_path / f"{name}.mp4", suffix, steer, jump)
    name, source = open_source(tmp_path, ReadOptions())
    assert (name, source.frame_rate) == ("videos", 20)
    assert [recording.name for recording in source.recordings] == ["one-a", "two-a"]
    channels = find_channels(source.recordings, 11)
    assert [(channel.name, channel.kind) for channel in channels] == [
        ("steer", Kind.ANALOG),
        ("jump", Kind.BUTTON),
    ]
    table = source.recordings[0].table()
    np.testing.assert_array_equal(table.actions["steer"], steer)
    np.testing.assert_array_equal(table.actions["jump"], jump)
    assert table.rewards is not None
    assert table.rewards.tolist() == [0.5 * index for index in range(12)]
    assert near(list(source.recordings[0].frames()), gradients(12))


def test_rows_of_all_frames_but_the_last_tell_nothing_of_it(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", gradients(4))
    pose = {"x": 1, "y": 2.5, "angle_degrees": 90}
    rows = [{"action": [index], "reward": 1.5, "terminated": True, "pose": pose} for index in range(4)]
    for count in (4, 3):
        write_lines(tmp_path / "a.jsonl", rows[:count])
        table = read(tmp_path).recordings[0].table()
        assert table.rewards is not None and table.terminated is not None
        assert table.rewards.tolist() == [1.5, 1.5, 1.5, 1.5 * (count == 4)]
        assert table.terminated.tolist() == [True, True, True, count == 4]
        assert list(table.actions) == ["action.0"]
        assert (table.poses is None) == (count == 3)
    assert read(tmp_path).recordings[0].table().poses is None


def test_files_of_our_own_without_a_description_are_read(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", gradients(3))
    rows = [{"action": [1, 0], "player": "human", "game_seed": 7}, {"action": [2, 1], "sha256": "ab"}]
    write_lines(tmp_path / "a.jsonl", [*rows, {"action": None, "reward": 0.0}])
    with pytest.raises(WorldError, match="line 3 has other columns than the first line: reward"):
        read(tmp_path).recordings[0].table()
    write_lines(tmp_path / "a.jsonl", [*rows, {"action": None}])
    actions = read(tmp_path).recordings[0].table().actions
    assert {name: values.tolist() for name, values in actions.items()} == {
        "action.0": [1, 2, 2],
        "action.1": [0, 1, 1],
    }


def test_actions_may_be_objects_lists_and_texts(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", gradients(3))
    rows = [
        {"action": {"move": "left", "stick": [0.5, 2]}, "health": 3},
        {"action": {"move": "", "stick": [-0.5, 0]}, "health": 3},
        {"action": None},
    ]
    write_lines(tmp_path / "a.jsonl", rows)
    channels = find_channels(read(tmp_path).recordings, 11)
    assert [(each.name, each.kind, each.options or each.levels) for each in channels] == [
        ("move", Kind.CHOICE, ("", "left")),
        ("stick.0", Kind.ANALOG, (-0.5, 0.5)),
        ("stick.1", Kind.CHOICE, ("0", "1", "2")),
    ]


@pytest.mark.parametrize(
    "shape", [(HEIGHT, WIDTH, 3), (3, HEIGHT, WIDTH), (HEIGHT, WIDTH), (HEIGHT, WIDTH, 4)]
)
def test_arrays_are_read_whatever_the_order_of_their_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    frames = np.stack(gradients(5))
    stored = {
        (3, HEIGHT, WIDTH): frames.transpose(0, 3, 1, 2),
        (HEIGHT, WIDTH): frames[..., 0],
        (HEIGHT, WIDTH, 4): np.concatenate([frames, np.full_like(frames[..., :1], 255)], axis=-1),
    }.get(shape, frames)
    np.savez(tmp_path / "a.npz", images=stored, actions=np.arange(10).reshape(5, 2), dones=np.arange(5) == 3)
    name, source = open_source(tmp_path, ReadOptions())
    (recording,) = source.recordings
    table = recording.table()
    assert name == "npz"
    assert source.notes == ("ends told as done count as terminated, though some may be time limits",)
    expected = np.repeat(frames[..., :1], 3, axis=-1) if len(shape) == 2 else frames
    np.testing.assert_array_equal(np.stack(list(recording.frames())), expected)
    assert table.actions["actions.1"].tolist() == [1, 3, 5, 7, 9]
    assert table.terminated is not None
    assert table.terminated.tolist() == [False, False, False, False, True]


def test_every_format_says_what_it_is_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    write_film(tmp_path / "alone.mp4", gradients(3))
    with pytest.raises(WorldError, match="is of no format that is read") as error:
        find_format(tmp_path)
    assert all(name in str(error.value) for name in FORMATS)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        find_format(tmp_path / "missing")


def test_a_picture_that_is_transparent_in_places_is_refused() -> None:
    picture = np.zeros((16, 16, 4), np.uint8)
    with pytest.raises(WorldError, match="transparent in places"):
        as_rgb(picture, "a")

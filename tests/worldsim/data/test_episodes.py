"""Episodes on disk: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data import episodes
from worldsim.data.episodes import (
    DatasetInfo,
    EpisodeWriter,
    count_episode_frames,
    list_episodes,
    read_episode,
    verify,
)
from worldsim.errors import WorldError

ACTIONS = ActionLayout(
    (
        ActionAxis(name="move", buttons=("forward", "backward"), keys=(("up",), ("down",))),
        ActionAxis(name="turn", buttons=("left",), keys=(("left",),)),
    )
)
INFO = DatasetInfo(name="test", width=64, height=48, frame_rate=17.5, actions=ACTIONS, licence="none")
NUM_FRAMES = 30


def smooth_frames(count: int = NUM_FRAMES) -> np.ndarray:
    """A colour gradient that drifts, `[count, 48, 64, 3]`: video codecs keep it nearly as it is."""
    y, x = np.mgrid[0:48, 0:64]
    frames = [np.stack([100 + x + t, 60 + 2 * y + t, 180 - x - y // 2], axis=-1) for t in range(count)]
    return np.stack(frames).astype(np.uint8)


def some_actions(count: int = NUM_FRAMES) -> np.ndarray:
    return np.stack([np.arange(count) % 3, np.arange(count) % 2], axis=1)


def record(folder: Path, name: str = "a", count: int = NUM_FRAMES) -> None:
    with EpisodeWriter(folder, name, INFO) as writer:
        for index, (frame, action) in enumerate(zip(smooth_frames(count), some_actions(count), strict=True)):
            pose = (index + 0.5, -2.0, 359.0)
            ends = index == count - 1
            writer.add(frame, None if ends else action, reward=0.25, terminated=ends, pose=pose)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_episode_is_read_back_as_written(tmp_path: Path) -> None:
    record(tmp_path)
    episode = read_episode(tmp_path, "a")
    assert episode.frames.shape == (NUM_FRAMES, 48, 64, 3)
    assert episode.frames.dtype == np.uint8
    error = episode.frames.astype(float) - smooth_frames()
    assert np.abs(error).mean() < 1.5
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 1, "a colour channel is shifted"
    assert (episode.actions[:-1] == some_actions()[:-1]).all()
    assert (episode.actions[-1] == 0).all()
    assert episode.actions.dtype == np.int64
    assert episode.rewards is not None and (episode.rewards == 0.25).all()
    assert episode.terminated is not None and episode.terminated.tolist() == [False] * 29 + [True]
    assert episode.poses is not None and episode.poses[3].tolist() == [3.5, -2.0, 359.0]
    assert files(tmp_path) == {"a.mp4", "a.jsonl", "dataset.json"}
    assert verify(tmp_path) == NUM_FRAMES


def test_info_is_read_back_as_written(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    assert DatasetInfo.load(tmp_path) == INFO


def test_optional_fields_are_none_when_not_recorded(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path, "a", INFO) as writer:
        writer.add(smooth_frames()[0], None)
    episode = read_episode(tmp_path, "a")
    assert episode.rewards is None and episode.terminated is None and episode.poses is None


def test_size_scales_the_frames(tmp_path: Path) -> None:
    record(tmp_path)
    frames = read_episode(tmp_path, "a", size=(24, 32)).frames
    assert frames.shape == (NUM_FRAMES, 24, 32, 3)
    expected = smooth_frames().reshape(NUM_FRAMES, 24, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(frames - expected).mean() < 2


def test_failed_recording_leaves_no_episode(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), EpisodeWriter(tmp_path, "a", INFO) as writer:
        writer.add(smooth_frames()[0], some_actions()[0])
        raise RuntimeError("boom")
    assert files(tmp_path) == {"dataset.json"}


def test_recording_without_frames_leaves_no_episode(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path, "a", INFO):
        pass
    assert files(tmp_path) == {"dataset.json"}


def test_interrupted_recording_is_kept_when_asked(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), EpisodeWriter(tmp_path, "a", INFO, keep_on_error=True) as writer:
        for frame, action in zip(smooth_frames()[:7], some_actions(), strict=False):
            writer.add(frame, action)
        raise KeyboardInterrupt
    assert read_episode(tmp_path, "a").frames.shape[0] == 7


@pytest.mark.parametrize("moment", range(5))
def test_ctrl_c_at_any_moment_leaves_a_valid_episode(tmp_path: Path, moment: int) -> None:
    """The signal arrives in the middle of whatever the recording is doing then."""
    # A suite that a shell started in the background inherits a Ctrl-C that is ignored: it would never end.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02 + 0.0037 * moment)
    previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            EpisodeWriter(tmp_path, "a", INFO, keep_on_error=True) as writer,
        ):
            while True:
                writer.add(smooth_frames()[writer.num_frames % NUM_FRAMES], some_actions()[0])
    finally:
        signal.signal(signal.SIGALRM, previous)
        signal.signal(signal.SIGINT, interrupt)
    if "a.mp4" in files(tmp_path):
        assert verify(tmp_path) == count_episode_frames(tmp_path, "a")


@pytest.mark.usefixtures("largest_file_50_kb")
def test_full_disk_is_named_and_leaves_no_episode(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 48, 64, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="File too large.*a.mp4"), EpisodeWriter(tmp_path, "a", INFO) as writer:
        for frame in noise:
            writer.add(frame, some_actions()[0])
    assert files(tmp_path) == {"dataset.json"}


def test_only_the_last_frame_may_lack_an_action(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="only the last frame"), EpisodeWriter(tmp_path, "a", INFO) as writer:
        writer.add(smooth_frames()[0], None)
        writer.add(smooth_frames()[1], None)


@pytest.mark.parametrize(
    ("frame", "action", "message"),
    [
        (np.zeros((48, 60, 3), np.uint8), [0, 0], r"\(48, 64, 3\)"),
        (np.zeros((48, 64, 3), np.float32), [0, 0], "uint8"),
        (np.zeros((48, 64, 3), np.uint8), [0, 2], "'turn' takes 0 to 1, got 2"),
    ],
    ids=["shape", "dtype", "action"],
)
def test_wrong_frame_or_action_is_refused(
    tmp_path: Path, frame: np.ndarray, action: list[int], message: str
) -> None:
    with pytest.raises(WorldError, match=message), EpisodeWriter(tmp_path, "a", INFO) as writer:
        writer.add(frame, np.array(action))


def test_odd_size_is_refused(tmp_path: Path) -> None:
    odd = DatasetInfo(name="odd", width=63, height=48, frame_rate=10, actions=ACTIONS)
    with pytest.raises(WorldError, match="even height and width, got 48 x 63"):
        EpisodeWriter(tmp_path, "a", odd)
    assert files(tmp_path) == {"dataset.json"}


def test_folder_takes_no_video_of_another_size(tmp_path: Path) -> None:
    record(tmp_path)
    larger = DatasetInfo(name="larger", width=128, height=48, frame_rate=10, actions=ACTIONS)
    with pytest.raises(WorldError, match="cannot be mixed with larger"):
        EpisodeWriter(tmp_path, "b", larger)


def test_jsonl_of_another_length_is_named(tmp_path: Path) -> None:
    record(tmp_path)
    table = tmp_path / "a.jsonl"
    table.write_text("\n".join(table.read_text().splitlines()[:-2]) + "\n")
    for read in (read_episode, count_episode_frames):
        with pytest.raises(WorldError, match=r"a.mp4 has 30 frames but a.jsonl has 28 lines"):
            read(tmp_path, "a")


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"no video"]
)
def test_unreadable_video_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    record(tmp_path)
    video = tmp_path / "a.mp4"
    video.write_bytes(damage(video.read_bytes()))
    for read in (read_episode, count_episode_frames):
        with pytest.raises(WorldError, match=r"a.mp4 is not a readable video"):
            read(tmp_path, "a")


def test_damage_that_the_decoder_notices_is_refused(tmp_path: Path) -> None:
    """FFmpeg hides damage inside a picture by repeating what was there before, and only says so on asking."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 48, 64, 3), dtype=np.uint8)
    with EpisodeWriter(tmp_path, "a", INFO) as writer:
        for frame in noise:
            writer.add(frame, some_actions()[0])
    video = tmp_path / "a.mp4"
    whole = video.read_bytes()
    refused = 0
    for place in range(5000, 25000, 1000):  # compressed data of the first pictures
        video.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
        try:
            read_episode(tmp_path, "a")
        except WorldError as error:
            refused += 1
            assert "a.mp4" in str(error)
    assert refused >= 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"reward": 1}', "line 2 has no field 'action'"),
        ('{"action": [0, 5]}', "line 2.*'turn' takes 0 to 1, got 5"),
        ('{"action": [0]}', "line 2"),
        ('{"action": [0.5, 0]}', "line 2"),
        ('{"action": null}', "line 2"),
        ('{"action": [0, 0], "pose": {"x": 1}}', "line 2 has no field 'y'"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    record(tmp_path)
    table = tmp_path / "a.jsonl"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(WorldError, match=message):
        read_episode(tmp_path, "a")


def test_missing_video_is_named(tmp_path: Path) -> None:
    record(tmp_path)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.mp4"):
        read_episode(tmp_path, "a")


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no dataset\.json"):
        list_episodes(tmp_path)
    INFO.save(tmp_path)
    with pytest.raises(WorldError, match="holds no episode"):
        list_episodes(tmp_path)


def test_folder_above_the_dataset_is_recognised(tmp_path: Path) -> None:
    INFO.save(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*train\?"):
        list_episodes(tmp_path)


def test_files_of_operating_systems_are_no_episodes(tmp_path: Path) -> None:
    record(tmp_path)
    for name in ("._a.jsonl", "._a.mp4", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7Mac OS X")
    assert list_episodes(tmp_path) == ["a"]
    assert verify(tmp_path) == NUM_FRAMES


def describe_otherwise(folder: Path, **fields: object) -> None:
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(described | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 48, "height": 64}, "a.mp4 is 64 x 48, but dataset.json says 48 x 64"),
        ({"width": 128}, "a.mp4 is 64 x 48, but dataset.json says 128 x 48"),
        ({"frame_rate": 35.0}, "a.mp4 shows 17.5 frames a second, but dataset.json says 35"),
    ],
)
def test_a_video_that_is_not_as_described_is_refused_wherever_it_is_opened(
    tmp_path: Path, fields: dict[str, float], message: str
) -> None:
    record(tmp_path)
    describe_otherwise(tmp_path, **fields)
    reads: list[Callable[[], object]] = [
        lambda: verify(tmp_path),
        lambda: count_episode_frames(tmp_path, "a"),
        lambda: read_episode(tmp_path, "a", size=(24, 32)),
    ]
    for read in reads:
        with pytest.raises(WorldError, match=message):
            read()


def test_an_index_that_promises_more_than_is_shown_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path)
    described = episodes.describe_video(tmp_path / "a.mp4")
    monkeypatch.setattr(episodes, "describe_video", lambda _: replace(described, num_frames=NUM_FRAMES + 3))
    assert count_episode_frames(tmp_path, "a") == verify(tmp_path) == NUM_FRAMES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 7),
        ("source", None),
        ("licence", ["MIT"]),
        ("width", "64"),
        ("width", 64.0),
        ("height", True),
        ("height", 10**6),
        ("frame_rate", "17.5"),
        ("frame_rate", True),
        ("frame_rate", 1e-9),
        ("frame_rate", 10**6),
        ("lossless", "false"),
        ("lossless", 1),
        ("format", True),
    ],
)
def test_a_field_of_dataset_json_of_another_type_or_range_is_named(
    tmp_path: Path, field: str, value: object
) -> None:
    INFO.save(tmp_path)
    describe_otherwise(tmp_path, **{field: value})
    with pytest.raises(WorldError, match=rf"dataset\.json: .*{field}"):
        DatasetInfo.load(tmp_path)
    if field not in ("format", "frame_rate"):
        with pytest.raises(WorldError, match=field):
            replace(INFO, **{field: value})


@pytest.mark.parametrize("text", ['{"width": Infinity}', '{"frame_rate": 1%s}' % ("0" * 400), "[" * 100_000])
def test_dataset_json_that_is_no_json_of_ordinary_numbers_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(WorldError, match=r"dataset\.json: "):
        DatasetInfo.load(tmp_path)


def test_damaged_dataset_file_is_named(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    data = json.loads((tmp_path / "dataset.json").read_text())
    damaged = [data | {"format": 9}, {"format": 1}, [], data | {"frame_rate": 0}, data | {"width": 0}]
    for bad in ("{", *(json.dumps(value) for value in damaged)):
        (tmp_path / "dataset.json").write_text(bad)
        with pytest.raises(WorldError, match=r"dataset\.json: "):
            list_episodes(tmp_path)


def test_an_episode_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, set[str]]] = []
    monkeypatch.setattr(episodes, "sync", lambda path: synced.append((path.name, files(tmp_path))))
    record(tmp_path)
    before = {"dataset.json", "a.mp4.part", "a.jsonl.part"}
    assert synced == [
        ("a.mp4.part", before),
        ("a.jsonl.part", {"dataset.json", "a.mp4", "a.jsonl.part"}),
        (tmp_path.name, {"dataset.json", "a.mp4", "a.jsonl"}),
    ]

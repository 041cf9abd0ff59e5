"""`python -m training.ingest`: recordings of others become episodes, or one sentence says why not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from tests.public_runs import run_command
from tests.recordings import (
    contractor_line,
    gradient,
    gradients,
    record_minari,
    write_counter_strike,
    write_film,
    write_lines,
)
from training.ingest import writing
from training.ingest.command import IngestConfig, plan
from worldsim.data.episodes import DatasetInfo, list_episodes, read_episode, verify
from worldsim.data.formats.registry import open_source
from worldsim.data.formats.source import ReadOptions
from worldsim.data.sequences import load_episodes
from worldsim.errors import WorldError

LEROBOT = Path(__file__).parents[2] / "worldsim/data/formats/lerobot"
BOX = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
QUARTER_TURN = (0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)


def ingest(path: Path, out: Path, *settings: str) -> None:
    run_command("ingest", f"path={path}", f"out={out}", "num_workers=1", *settings)


def refused(capsys: pytest.CaptureFixture[str], path: Path, out: Path, *settings: str) -> str:
    """Return the one sentence that the command ends with; nothing may be left."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        ingest(path, out, *settings)
    assert ended.value.code == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert not out.exists()
    assert not out.with_name(f"{out.name}.part").exists()
    return said[0]


def videos(folder: Path, count: int = 3, num_frames: int = 12) -> Path:
    """Record some videos with a button and an axis in JSON lines beside them."""
    folder.mkdir()
    for name in "abcdef"[:count]:
        write_film(folder / f"{name}.mp4", gradients(num_frames))
        rows = [{"steer": (index % 5 - 2) / 2, "jump": index % 4 == 0} for index in range(num_frames)]
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


def test_a_minari_dataset_becomes_episodes_with_the_same_frames_and_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = record_minari(BOX, episodes=3)
    out = tmp_path / "out"
    ingest(tmp_path / "test/game-v0", out, "frame_rate=15", "lossless=true", "bins=5", "num_workers=2")
    assert list_episodes(out / "heldout") == ["episode-000001"]
    assert verify(out / "train") == 14
    info = DatasetInfo.load(out / "train")
    assert info.actions.buttons == (
        *(f"action.0/{value}" for value in ("-1", "-0.5", "+0.5", "+1")),
        *(f"action.1/{value}" for value in ("+0.25", "+0.5", "+0.75", "+1")),
    )
    assert "action.0 in 5 uniform bins from -1 to 1" in info.source
    expected = dataset[2]
    episode = read_episode(out / "train", "episode-000002")
    assert np.abs(episode.frames.astype(int) - expected.observations["camera"]).max() <= 2
    # Value 0 is at rest; the others ascend without it.
    steer = [{0: 2}.get(value, value - (value <= 2)) for value in episode.actions[:-1, 0]]
    assert steer == np.round(2 * expected.actions[:, 0] + 2).tolist()
    assert episode.actions[:-1, 1].tolist() == np.round(4 * expected.actions[:, 1]).tolist()
    assert episode.rewards is not None and episode.terminated is not None
    assert episode.rewards.tolist() == [0, *expected.rewards]
    assert episode.terminated.tolist() == [False] * 6 + [True]


def test_every_other_format_becomes_episodes(tmp_path: Path) -> None:
    write_counter_strike(tmp_path / "match_1.hdf5")
    (tmp_path / "vpt").mkdir()
    write_film(tmp_path / "vpt/a.mp4", gradients(8))
    lines = [contractor_line(index, dx=20.0 * index, dy=-3.0) for index in range(8)]
    write_lines(tmp_path / "vpt/a.jsonl", lines)
    sources = {"match": tmp_path / "match_1.hdf5", "drive": LEROBOT, "mine": tmp_path / "vpt"}
    for name, path in sources.items():
        ingest(path, tmp_path / name, "heldout_share=0")
    infos = {name: DatasetInfo.load(tmp_path / name / "train") for name in sources}
    assert [info.frame_rate for info in infos.values()] == [16, 10, 20]
    assert "camera_yaw in 11 mu-law bins from -10 to 10" in infos["mine"].source
    assert infos["match"].actions.num_values == (*[2] * 13, 23, 15)
    # 0, 3, 6 and 9 degrees, which is nearest to 10; bins are finer near 0.
    yaw = infos["mine"].actions.axes[-1]
    (name,) = list_episodes(tmp_path / "mine/train")
    pressed = read_episode(tmp_path / "mine/train", name).actions[:, -1]
    assert [round(yaw.centres[value], 3) for value in pressed[:4]] == [0, 3.215, 5.809, 10]
    assert (yaw.buttons[0], yaw.buttons[-1]) == ("left-5", "right-5")
    folders = [tmp_path / name / "train" for name in sources]
    with pytest.raises(ValueError, match="but .* are needed"):
        load_episodes(folders)


def test_frames_are_fitted_and_rates_resampled_as_the_dataset_says(tmp_path: Path) -> None:
    path = videos(tmp_path / "videos")
    ingest(path, tmp_path / "out", "frame_rate=10", "width=32", "height=32", "lossless=true")
    info = DatasetInfo.load(tmp_path / "out/train")
    assert "frames of 64 x 48 letterboxed to 32 x 32" in info.source
    assert "20 frames a second resampled to 10" in info.source
    write_film(path / "b.mp4", gradients(12), rate=10)
    ingest(path, tmp_path / "mixed", "frame_rate=10", "heldout_share=0")
    lengths = [len(read_episode(tmp_path / "mixed/train", name)) for name in "abc"]
    assert lengths == [6, 12, 6]
    episode = read_episode(tmp_path / "out/train", "a")
    assert episode.frames.shape == (6, 32, 32, 3)
    assert episode.frames[:, :4].max() <= 2, "the bars are black"
    middle = episode.frames[:, 16, 16].astype(int) - np.stack(gradients(12))[::2, 24, 32]
    assert np.abs(middle).max() < 8
    jump = info.actions.axes[1]
    assert jump.buttons == ("jump",)
    # A press at frame 4 or 8 is one of the frames 4 and 5, or 8 and 9.
    assert episode.actions[:, 1].tolist() == [1, 0, 1, 0, 1, 0]


def test_frames_that_come_unevenly_are_resampled_if_a_rate_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = videos(tmp_path / "videos", count=1)
    times = [0, 50, 100, 150, 200, 250, 450, 650, 850, 1050, 1250, 1450]
    write_film(path / "a.mp4", gradients(12), times=times)
    said = refused(capsys, path, tmp_path / "out")
    assert "give frame_rate=, to which it is resampled" in said
    ingest(path, tmp_path / "out", "frame_rate=20", "heldout_share=0", "lossless=true")
    episode = read_episode(tmp_path / "out/train", "a")
    assert (
        "frames not evenly spaced, resampled to 20 a second"
        in DatasetInfo.load(tmp_path / "out/train").source
    )
    shown = [0, 1, 2, 3, 4, *[5] * 4, *[6] * 4, *[7] * 4, *[8] * 4, *[9] * 4, *[10] * 4, 11]
    reds = episode.frames[:, 24, 32, 0].astype(int)
    assert np.abs(reds - [int(gradient(index)[24, 32, 0]) for index in shown]).max() < 4


def test_long_recordings_are_cut_and_held_out(tmp_path: Path) -> None:
    path = videos(tmp_path / "videos", count=4)
    ingest(path, tmp_path / "out", "episode_frames=5", "heldout_share=0.5")
    assert list_episodes(tmp_path / "out/heldout") == [f"{n}-000{i}" for n in "bd" for i in range(3)]
    assert verify(tmp_path / "out/train") == 24
    assert read_episode(tmp_path / "out/train", "a-0001").actions.tolist()[:2] == [[1, 0], [2, 0]]  # -1, -0.5


def test_what_was_finished_stays_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = videos(tmp_path / "videos"), tmp_path / "out"
    real = writing.write_recording

    def write(conversion: writing.Conversion, task: writing.Task) -> Exception | None:
        is_full = task.recording.name == "c"
        return OSError(28, "No space left on device", "c.mp4") if is_full else real(conversion, task)

    monkeypatch.setattr(writing, "write_recording", write)
    with pytest.raises(SystemExit):
        ingest(path, out, "heldout_share=0")
    assert not out.exists()
    part = tmp_path / "out.part/train"
    assert list_episodes(part) == ["a", "b"]
    before = (part / "a.mp4").stat().st_mtime_ns
    capsys.readouterr()
    with pytest.raises(SystemExit):
        ingest(path, out, "heldout_share=0", "width=32")
    assert "unfinished import with other settings" in capsys.readouterr().err
    monkeypatch.setattr(writing, "write_recording", real)
    ingest(path, out, "heldout_share=0")
    assert list_episodes(out / "train") == ["a", "b", "c"]
    assert (out / "train/a.mp4").stat().st_mtime_ns == before
    assert not part.parent.exists()
    assert "out is there already" in refused_again(capsys, path, out)


def refused_again(capsys: pytest.CaptureFixture[str], path: Path, out: Path) -> str:
    with pytest.raises(SystemExit):
        ingest(path, out)
    return capsys.readouterr().err


def change_lines(path: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shorten(folder: Path) -> None:
    change_lines(folder / "b.jsonl", lambda rows: rows.pop() and rows.pop() and rows.pop())


def add_nan(folder: Path) -> None:
    text = (folder / "b.jsonl").read_text().replace("-0.5", "NaN", 1)
    (folder / "b.jsonl").write_text(text)


def add_nan_array(folder: Path) -> None:
    (folder / "b.jsonl").unlink()
    (folder / "a.jsonl").unlink()
    (folder / "c.jsonl").unlink()
    for name in "abc":
        steer = np.linspace(-1, 1, 12)
        steer[7] = np.nan if name == "b" else 0
        np.savez(folder / f"{name}.npz", steer=steer)


def add_button(folder: Path) -> None:
    change_lines(folder / "b.jsonl", lambda rows: [row.update(fire=True) for row in rows])


def turn_time_back(folder: Path) -> None:
    def change(rows: list[dict[str, object]]) -> None:
        for index, row in enumerate(rows):
            row["time"] = 0.05 * (index if index != 6 else 2)

    for name in "abc":
        change_lines(folder / f"{name}.jsonl", change)


def let_time_drift(folder: Path) -> None:
    def change(rows: list[dict[str, object]]) -> None:
        for index, row in enumerate(rows):
            row["time"] = 0.09 * index

    for name in "abc":
        change_lines(folder / f"{name}.jsonl", change)


def cut_video(folder: Path) -> None:
    data = (folder / "b.mp4").read_bytes()
    (folder / "b.mp4").write_bytes(data[: len(data) // 2])


def remove_lines(folder: Path) -> None:
    (folder / "b.jsonl").unlink()


def break_line(folder: Path) -> None:
    text = (folder / "b.jsonl").read_text()
    (folder / "b.jsonl").write_text(text.replace("}", "", 1))


BAD_VIDEOS: dict[str, tuple[Callable[[Path], None], str]] = {
    "actions of another length": (
        shorten,
        "b.jsonl beside b.mp4 has 12 frames and 9 rows of actions.*trim=3",
    ),
    "NaN in JSON": (add_nan, "b.jsonl line 2: NaN is not a number of JSON"),
    "NaN in arrays": (add_nan_array, "b.mp4: steer is nan at frame 7; an action is a finite number"),
    "other buttons": (add_button, "b.mp4 has other actions than .*a.mp4: fire; import them apart"),
    "times that go back": (turn_time_back, "times that do not increase, after row 6"),
    "times that run away": (let_time_drift, "times up to 0.44 s away from those of the video"),
    "half a video": (cut_video, "b.mp4 is not a readable video"),
    "a video alone": (remove_lines, "b.mp4 has no actions beside it"),
    "half a line": (break_line, "b.jsonl line 1 is not JSON"),
}


@pytest.mark.parametrize("fault", BAD_VIDEOS)
def test_a_fault_of_videos_is_found_before_anything_is_written(tmp_path: Path, fault: str) -> None:
    break_it, expected = BAD_VIDEOS[fault]
    path = videos(tmp_path / "videos")
    break_it(path)
    config = IngestConfig(path=str(path), out=str(tmp_path / "out"))
    with pytest.raises(WorldError, match=expected):
        plan(config, open_source(path, ReadOptions())[1], "videos", tmp_path / "out")


def test_a_fault_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = videos(tmp_path / "videos")
    shorten(path)
    said = refused(capsys, path, tmp_path / "out")
    assert said.endswith("trim=3 cuts off what has no partner at the end")


def test_a_video_that_is_damaged_inside_leaves_the_episodes_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = videos(tmp_path / "videos"), tmp_path / "out"
    whole = (path / "b.mp4").read_bytes()
    begin = whole.index(b"mdat")
    middle = begin + int.from_bytes(whole[begin - 4 : begin], "big") * 8 // 10
    (path / "b.mp4").write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    with pytest.raises(SystemExit):
        ingest(path, out, "heldout_share=0")
    said = capsys.readouterr().err
    assert re.search("error: .*b.mp4 (is damaged in frame|cannot be decoded after frame) [1-9]", said)
    assert not out.exists()
    assert sorted(file.name for file in (tmp_path / "out.part/train").iterdir()) == [
        *("a.jsonl", "a.mp4", "dataset.json"),
    ]
    (path / "b.mp4").write_bytes(whole)
    ingest(path, out, "heldout_share=0")
    assert list_episodes(out / "train") == ["a", "b", "c"]


def test_recordings_that_cannot_be_read_are_left_out_if_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = videos(tmp_path / "videos", count=5)
    shorten(path)
    (path / "a.mp4").write_bytes((path / "a.mp4").read_bytes()[:2000])
    (path / "d.jsonl").unlink()
    ingest(path, tmp_path / "out", "skip_unreadable=true", "heldout_share=0")
    assert list_episodes(tmp_path / "out/train") == ["c", "e"]
    assert capsys.readouterr().out.count("left out: ") == 3
    for name in "ad":
        (path / f"{name}.mp4").unlink()
    ingest(path, tmp_path / "trimmed", "trim=3", "heldout_share=0")
    assert verify(tmp_path / "trimmed/train") == 10 + 12 + 12


def test_unusual_videos_are_read_as_they_are_shown(tmp_path: Path) -> None:
    path = videos(tmp_path / "videos")
    write_film(path / "a.mp4", gradients(12), matrix=QUARTER_TURN)
    write_film(path / "b.mp4", gradients(12, height=64, width=48), pixel_format="yuv420p10le")
    write_film(path / "c.mp4", gradients(12, height=64, width=48), has_sound=True)
    ingest(path, tmp_path / "out", "heldout_share=0", "lossless=true")
    upright = np.stack(gradients(12, height=64, width=48))
    for name in "abc":
        frames = read_episode(tmp_path / "out/train", name).frames
        expected = np.rot90(np.stack(gradients(12)), -1, axes=(1, 2)) if name == "a" else upright
        assert np.abs(frames.astype(int) - expected).mean() < 4


def test_hdf5_cut_in_half_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    record_minari(BOX)
    write_counter_strike(tmp_path / "match_1.hdf5")
    for file, path in (
        (tmp_path / "test/game-v0/data/main_data.hdf5", tmp_path / "test/game-v0"),
        (tmp_path / "match_1.hdf5", tmp_path / "match_1.hdf5"),
    ):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        said = refused(capsys, path, tmp_path / "out", "frame_rate=15")
        assert f"{file.name} is not a whole HDF5 file" in said


def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    record_minari(BOX)
    minari = tmp_path / "test/game-v0"
    assert "does not say how many frames a second it shows" in refused(capsys, minari, out)
    assert "has no pictures 'front'; it has camera" in refused(
        capsys, minari, out, "image=front", "frame_rate=9"
    )
    assert "there is no file or folder" in refused(capsys, tmp_path / "nothing", out)
    (tmp_path / "empty").mkdir()
    assert "is of no format that is read" in refused(capsys, tmp_path / "empty", out)
    monkeypatch.setitem(sys.modules, "h5py", None)
    said = refused(capsys, minari, out, "frame_rate=9")
    assert said.endswith('which is missing: pip install "arl2-world[readers]"')


def test_spaces_that_cannot_be_pressed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    record_minari(BOX)
    metadata = tmp_path / "test/game-v0/data/metadata.json"
    described = json.loads(metadata.read_text())
    described["action_space"] = json.dumps({"type": "Text", "max_length": 9})
    metadata.write_text(json.dumps(described))
    said = refused(capsys, tmp_path / "test/game-v0", tmp_path / "out", "frame_rate=9")
    assert "has actions that cannot be made buttons: action is Text" in said

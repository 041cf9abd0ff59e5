"""`python -m training.export`: others read the frames, actions, rewards and ends of the recording."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import minari
import numpy as np
import pyarrow.parquet
import pytest

from tests.public_runs import run_command
from tests.recordings import gradients
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.episodes import DatasetInfo, EpisodeWriter, list_episodes, read_episode
from worldsim.data.formats.registry import open_source
from worldsim.data.formats.source import ReadOptions

LAYOUT = ActionLayout(
    (
        ActionAxis(name="turn", buttons=("left", "right"), keys=(("left",), ("right",))),
        ActionAxis(name="jump", buttons=("jump",), keys=(("space",),)),
    )
)
INFO = DatasetInfo(
    name="tests/drive", width=64, height=48, frame_rate=17.5, actions=LAYOUT, source="tests", lossless=True
)
LENGTHS = (9, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two episodes, of which the game ended the first."""
    for number, count in enumerate(LENGTHS):
        with EpisodeWriter(tmp_path / "data", f"episode-{number}", INFO) as writer:
            for index, frame in enumerate(gradients(count, shade=30 * number)):
                is_last = index == count - 1
                action = None if is_last else np.array([index % 3, number])
                pose = (float(index), 0.0, 90.0)
                reward = 0.5 * index
                writer.add(frame, action, reward=reward, terminated=is_last and not number, pose=pose)
    return tmp_path / "data"


def export(folder: Path, out: Path, *settings: str) -> Path:
    run_command("export", f"data={folder}", f"out={out}", *settings)
    return out


@pytest.mark.parametrize("lossless", [False, True])
def test_minari_reads_what_was_recorded(folder: Path, tmp_path: Path, lossless: bool) -> None:
    name = "name=tests/my drive"
    out = export(folder, tmp_path / "out", "format=minari", name, f"lossless={lossless}".lower())
    dataset = minari.MinariDataset(out / "data")
    assert (dataset.total_episodes, dataset.total_steps, dataset.id) == (2, 13, "tests/my-drive-v0")
    assert dataset.spec.namespace == "tests"
    assert dataset.action_space.nvec.tolist() == [3, 2]
    for number, found in enumerate(dataset.iterate_episodes()):
        expected = read_episode(folder, f"episode-{number}")
        difference = np.abs(found.observations.astype(int) - expected.frames)
        assert difference.max() <= (0 if lossless else 6)
        np.testing.assert_array_equal(found.actions, expected.actions[:-1])
        assert found.rewards.tolist() == [0.5 * index for index in range(1, LENGTHS[number])]
        assert found.terminations.tolist() == [False] * (LENGTHS[number] - 2) + [not number]
        assert found.truncations.tolist() == [False] * (LENGTHS[number] - 2) + [bool(number)]
        np.testing.assert_array_equal(found.infos["pose"], expected.poses)


def test_a_dataset_of_lerobot_has_what_was_recorded(folder: Path, tmp_path: Path) -> None:
    out = export(folder, tmp_path / "out", "format=lerobot")
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 17.5, 15)
    video = out / info["video_path"].format(video_key="observation.image", chunk_index=0, file_index=1)
    assert video.read_bytes() == (folder / "episode-1.mp4").read_bytes()
    rows = pyarrow.parquet.read_table(out / "data/chunk-000/file-000.parquet").to_pydict()
    assert set(rows) == set(info["features"]) - {"observation.image"}
    assert rows["index"] == list(range(15))
    assert rows["frame_index"] == [*range(9), *range(6)]
    np.testing.assert_allclose(rows["timestamp"][9:11], [0, 1 / 17.5], rtol=1e-6)
    statistics = json.loads((out / "meta/stats.json").read_text())
    assert statistics["action"] == {
        "min": [0, 0],
        "max": [2, 1],
        "mean": pytest.approx(np.mean(rows["action"], axis=0).tolist()),
        "std": pytest.approx(np.std(rows["action"], axis=0).tolist()),
        "count": [15],
    }
    assert np.shape(statistics["observation.image"]["mean"]) == (3, 1, 1)
    tasks = pyarrow.parquet.read_table(out / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "task": ["play"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    _, source = open_source(out, ReadOptions())
    for number, recording in enumerate(source.recordings):
        expected = read_episode(folder, f"episode-{number}")
        table = recording.table()
        np.testing.assert_array_equal(np.stack(list(recording.frames())), expected.frames)
        np.testing.assert_array_equal(np.stack([*table.actions.values()], axis=1), expected.actions)
        np.testing.assert_array_equal(table.rewards, expected.rewards)
        np.testing.assert_array_equal(table.terminated, expected.terminated)


def test_what_was_exported_can_be_imported_again(folder: Path, tmp_path: Path) -> None:
    out = export(folder, tmp_path / "out", "format=minari", "lossless=true")
    again = tmp_path / "again"
    settings = ("frame_rate=17.5", "lossless=true", "heldout_share=0", "num_workers=1")
    run_command("ingest", f"path={out}", f"out={again}", *settings)
    for name, old in zip(list_episodes(again / "train"), list_episodes(folder), strict=True):
        found, expected = read_episode(again / "train", name), read_episode(folder, old)
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.rewards, expected.rewards)
        assert np.abs(found.frames.astype(int) - expected.frames).max() <= 3


@pytest.mark.parametrize(("format_name", "package"), [("minari", "h5py"), ("lerobot", "pyarrow")])
def test_a_failed_export_is_one_sentence_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    format_name: str,
    package: str,
) -> None:
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit):
        export(folder, out, f"format={format_name}")
    assert 'which is missing: pip install "arl2-world[readers]"' in capsys.readouterr().err
    monkeypatch.undo()
    (folder / "episode-1.jsonl").write_text("")
    with pytest.raises(SystemExit):
        export(folder, out, f"format={format_name}")
    assert "episode-1.mp4 has 6 frames but episode-1.jsonl has 0 lines" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"data"}

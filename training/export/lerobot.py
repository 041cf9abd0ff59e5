"""LeRobotDataset 3.0: a table of all frames, and a video for each episode, copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from worldsim.data.episodes import EpisodeTable, read_table
from worldsim.data.formats.source import EXTRA
from worldsim.data.sequences import EpisodeReference
from worldsim.data.video import stream_video
from worldsim.errors import WorldError
from worldsim.storage.files import write_json

VERSION = "v3.0"
IMAGE, TASK = "observation.image", "play"
CHUNK_FILES = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
STATS_EVERY = 16
"""Frames from one that counts for the statistics of pictures to the next."""


def write(references: Sequence[EpisodeReference], out: Path, name: str, *, lossless: bool) -> None:
    """Write episodes; an action is the value of each axis, int64, and 0 on the last frame.

    Rewards and ends are `next.reward` and `next.done` of the frame before, where they are recorded.

    Args:
        references: Episodes of one folder.
        out: Folder of the dataset.
        name: Said in `meta/info.json`.
        lossless: Of no account: videos are copied.

    Raises:
        WorldError: If pyarrow is missing, or an episode cannot be read.
        OSError: If it cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise WorldError(f"LeRobot's files are written with pyarrow, which is missing: {EXTRA}") from error
    tables = [read_table(each.folder, each.name, each.info.actions) for each in references]
    has_rewards = all(table.rewards is not None for table in tables)
    has_ends = all(table.terminated is not None for table in tables)
    features = features_of(references[0], has_rewards=has_rewards, has_ends=has_ends)
    columns = frame_columns(references, tables, features)
    arrays = {key: pyarrow_array(pyarrow, values) for key, values in columns.items()}
    _write_table(parquet, pyarrow.table(arrays), out / DATA_PATH.format(chunk_index=0, file_index=0))
    episodes = pyarrow.table(episode_columns(references))
    _write_table(parquet, episodes, out / "meta/episodes/chunk-000/file-000.parquet")
    _write_table(parquet, task_table(pyarrow), out / "meta/tasks.parquet")
    statistics = {key: stats(values) for key, values in columns.items()}
    statistics[IMAGE] = copy_videos(references, out)
    write_json(out / "meta/stats.json", statistics)
    write_json(out / "meta/info.json", info_of(references, features, name))


def place(index: int) -> dict[str, int]:
    """Return chunk and file of an episode's video."""
    return {"chunk_index": index // CHUNK_FILES, "file_index": index % CHUNK_FILES}


def features_of(reference: EpisodeReference, *, has_rewards: bool, has_ends: bool) -> dict[str, Any]:
    """Return the features of `meta/info.json`, those of the table as LeRobot orders them."""
    info = reference.info
    video = {
        "video.height": info.height,
        "video.width": info.width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv444p" if info.lossless else "yuv420p",
        "video.is_depth_map": False,
        "video.fps": _rate(info.frame_rate),
        "video.channels": 3,
        "has_audio": False,
    }
    axes = [axis.name for axis in info.actions.axes]
    single = {
        **({"next.reward": "float32"} if has_rewards else {}),
        **({"next.done": "bool"} if has_ends else {}),
        **{"timestamp": "float32", "frame_index": "int64", "episode_index": "int64"},
        **{"index": "int64", "task_index": "int64"},
    }
    return {
        IMAGE: {
            "dtype": "video",
            "shape": [info.height, info.width, 3],
            "names": ["height", "width", "channels"],
            "info": video,
        },
        "action": {"dtype": "int64", "shape": [len(axes)], "names": axes},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in single.items()},
    }


def frame_columns(
    references: Sequence[EpisodeReference], tables: Sequence[EpisodeTable], features: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return what is said of each frame of all episodes, `[N]` or `[N, axes]`."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in features if name != IMAGE}
    for number, (reference, table) in enumerate(zip(references, tables, strict=True)):
        count, first = len(table.actions), sum(map(len, parts["index"]))
        found = {
            "action": table.actions,
            "timestamp": (np.arange(count) / reference.info.frame_rate).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, number),
            "index": np.arange(first, first + count),
            "task_index": np.zeros(count, np.int64),
        }
        if "next.reward" in parts and table.rewards is not None:
            found["next.reward"] = np.append(table.rewards[1:], np.float32(0))
        if "next.done" in parts and table.terminated is not None:
            found["next.done"] = np.append(table.terminated[1:], table.terminated[-1:])
        for name, values in found.items():
            parts[name].append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def pyarrow_array(pyarrow: Any, values: np.ndarray) -> Any:
    """Return a column of numbers, or of lists of them, as an array of Arrow."""
    if values.ndim == 1 or values.shape[1] == 1:
        return pyarrow.array(values.reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])


def episode_columns(references: Sequence[EpisodeReference]) -> dict[str, list[Any]]:
    """Return where each episode is: the columns of `meta/episodes`."""
    ends = np.cumsum([reference.num_frames for reference in references]).tolist()
    places = [place(index) for index in range(len(references))]
    zeros = [0] * len(references)
    video = f"videos/{IMAGE}"
    return {
        "episode_index": list(range(len(references))),
        "tasks": [[TASK] for _ in references],
        "length": [reference.num_frames for reference in references],
        "data/chunk_index": zeros,
        "data/file_index": zeros,
        "dataset_from_index": [0, *ends[:-1]],
        "dataset_to_index": ends,
        f"{video}/chunk_index": [each["chunk_index"] for each in places],
        f"{video}/file_index": [each["file_index"] for each in places],
        f"{video}/from_timestamp": [0.0] * len(references),
        f"{video}/to_timestamp": [each.num_frames / each.info.frame_rate for each in references],
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": zeros,
    }


def task_table(pyarrow: Any) -> Any:
    """Return the one task, as pandas stores a column whose index are texts."""
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column | {"metadata": None}, index | {"metadata": None}],
        "creator": {"library": "pyarrow", "version": pyarrow.__version__},
        "pandas_version": "2.0.0",
    }
    table = pyarrow.table({"task_index": pyarrow.array([0], pyarrow.int64()), "task": [TASK]})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_table(parquet: Any, table: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, compression="snappy")


def copy_videos(references: Sequence[EpisodeReference], out: Path) -> dict[str, Any]:
    """Copy the video of each episode; return the statistics of their pictures, of 0 to 1, by channel."""
    pictures = []
    for index, reference in enumerate(tqdm(references, unit="episode", desc="exporting")):
        source = reference.folder / f"{reference.name}.mp4"
        target = out / VIDEO_PATH.format(video_key=IMAGE, **place(index))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        for number, (_, frame) in enumerate(stream_video(source)):
            if number % STATS_EVERY == 0:
                pixels = frame.reshape(-1, 3) / 255
                pictures.append((pixels.min(0), pixels.max(0), pixels.mean(0), (pixels**2).mean(0)))
    low, high, mean, square = (np.stack(each) for each in zip(*pictures, strict=True))
    found = {
        "min": low.min(0),
        "max": high.max(0),
        "mean": mean.mean(0),
        "std": np.sqrt(np.maximum(square.mean(0) - mean.mean(0) ** 2, 0)),
    }
    by_channel = {name: values.reshape(3, 1, 1).tolist() for name, values in found.items()}
    return by_channel | {"count": [len(pictures)]}


def stats(values: np.ndarray) -> dict[str, Any]:
    """Return the statistics of a column, a number for each of its parts."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    return {
        "min": rows.min(0).tolist(),
        "max": rows.max(0).tolist(),
        "mean": rows.mean(0).tolist(),
        "std": rows.std(0).tolist(),
        "count": [len(rows)],
    }


def info_of(references: Sequence[EpisodeReference], features: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what `meta/info.json` says; `buttons` is beside what LeRobot reads."""
    info = references[0].info
    return {
        "codebase_version": VERSION,
        "robot_type": name,
        "total_episodes": len(references),
        "total_frames": sum(reference.num_frames for reference in references),
        "total_tasks": 1,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": _rate(info.frame_rate),
        "splits": {"train": f"0:{len(references)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
        "source": info.source,
        "licence": info.licence,
        "buttons": info.actions.to_json(),
    }


def _rate(frame_rate: float) -> int | float:
    return int(frame_rate) if float(frame_rate).is_integer() else frame_rate

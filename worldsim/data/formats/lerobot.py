"""LeRobotDataset, version 3.0: many episodes in a Parquet file and in a video, found by `meta/episodes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.formats.columns import array_columns, as_ends
from worldsim.data.formats.files import decode_picture, frames_of_video, read_arrow
from worldsim.data.formats.source import (
    ReadOptions,
    Recording,
    Resize,
    Source,
    SourceTable,
    as_rgb,
    check_rewards,
    choose_image,
    fit_rows,
    on_the_way,
    unchanged,
)
from worldsim.errors import WorldError
from worldsim.storage.files import check_number, is_inner_path, read_json, shown

INFO_FILE, EPISODES_FOLDER = "meta/info.json", "meta/episodes"
VERSION = "v3."
REWARD, DONE = "next.reward", "next.done"


def detect(path: Path) -> bool:
    """Return whether a folder has the `meta/info.json` of such a dataset."""
    info = read_json(path / INFO_FILE) if (path / INFO_FILE).is_file() else None
    return isinstance(info, dict) and "codebase_version" in info


def read(path: Path, options: ReadOptions) -> Source:
    """Read a dataset; actions are the columns `action`, by the names that it gives them.

    Raises:
        WorldError: If it is of another version, or has no pictures or no actions.
    """
    info = read_json(path / INFO_FILE)
    version, features = str(info["codebase_version"]), info.get("features")
    if not version.startswith(VERSION):
        raise WorldError(
            f"{path} is a LeRobotDataset of version {shown(version)}, only 3.0 is read: convert it with "
            "LeRobot's own script lerobot.datasets.v30.convert_dataset_v21_to_v30"
        )
    if not isinstance(features, dict) or not all(isinstance(each, dict) for each in features.values()):
        raise WorldError(f"{path / INFO_FILE} describes no features")
    images = [name for name, each in features.items() if each.get("dtype") in ("video", "image")]
    actions = [name for name in features if name == "action" or name.startswith("action.")]
    if not actions:
        raise WorldError(f"{path} has no actions, but {', '.join(features)}")
    layout = Layout(
        path=path,
        info=info,
        image=choose_image(images, options.image, str(path)),
        actions=tuple(actions),
        trim=options.trim,
    )
    return Source(
        about=f"{info.get('robot_type') or path.name}, LeRobotDataset {path.name}",
        recordings=list_episodes(layout),
        frame_rate=check_number(info.get("fps"), f"{path / INFO_FILE}: fps"),
        has_one_size=True,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """What is common to all episodes of a dataset.

    Attributes:
        path: Its folder.
        info: What `meta/info.json` says.
        image: Name of the pictures.
        actions: Names of the features that are actions.
        trim: By how many frames pictures and actions may differ.
    """

    path: Path
    info: Mapping[str, Any]
    image: str
    actions: tuple[str, ...]
    trim: int

    @property
    def is_video(self) -> bool:
        """Whether pictures are in videos, not in the Parquet files."""
        return self.info["features"][self.image]["dtype"] == "video"

    def file(self, template: str, row: Mapping[str, Any], prefix: str) -> Path:
        """Return the file that an episode's row names, by a template of `meta/info.json`."""
        places = {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
        try:
            inner = str(self.info[template]).format(video_key=self.image, **places)
        except (KeyError, IndexError, ValueError) as error:
            raise WorldError(
                f"{self.path / INFO_FILE}: {template} is no path of a file: {error!r}"
            ) from error
        if not is_inner_path(inner):
            raise WorldError(f"{self.path / INFO_FILE}: {template} leads out of the dataset: {shown(inner)}")
        return self.path / inner

    def names(self, feature: str) -> list[str]:
        """Return the names of the numbers of an action; empty if it gives none."""
        named = self.info["features"][feature].get("names") or []
        if isinstance(named, dict):
            named = next(iter(named.values()), [])
        prefix = f"{feature}." if len(self.actions) > 1 else ""
        return [f"{prefix}{name}" for name in named] if isinstance(named, list) else []


def list_episodes(layout: Layout) -> list[LeRobotEpisode]:
    """Return the episodes that `meta/episodes` lists.

    Raises:
        WorldError: If it is damaged or lacks a column.
    """
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    if layout.is_video:
        columns += [
            f"videos/{layout.image}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")
        ]
    rows = read_arrow(layout.path / EPISODES_FOLDER, columns).to_pylist()
    if any(value is None for row in rows for value in row.values()):
        raise WorldError(f"{layout.path / EPISODES_FOLDER} leaves out where an episode is")
    return [
        LeRobotEpisode(
            name=f"episode-{row['episode_index']:06d}",
            where=f"{layout.path} episode {row['episode_index']}",
            layout=layout,
            row=row,
        )
        for row in sorted(rows, key=lambda row: row["episode_index"])
    ]


@dataclass(slots=True)
class LeRobotEpisode(Recording):
    """An episode by its row of `meta/episodes`."""

    name: str
    where: str
    layout: Layout
    row: Mapping[str, Any]

    def _read(self, names: list[str]) -> Any:
        from pyarrow import dataset  # there, since `meta/episodes` was read with it

        wanted = dataset.field("episode_index") == self.row["episode_index"]
        path = self.layout.file("data_path", self.row, "data")
        table = read_arrow(path, [*names, "episode_index", "frame_index"], wanted).sort_by("frame_index")
        if table.num_rows != self.row["length"]:
            raise WorldError(
                f"{self.where} has {table.num_rows} rows, {EPISODES_FOLDER} says {self.row['length']}"
            )
        return table

    def table(self) -> SourceTable:
        """Read actions, rewards and ends."""
        features = self.layout.info["features"]
        outcome = [name for name in (REWARD, DONE) if name in features]
        rows = self._read([*self.layout.actions, *outcome])
        columns: dict[str, np.ndarray] = {}
        for name in self.layout.actions:
            values = np.array(rows.column(name).to_pylist())
            if values.dtype == object:
                raise WorldError(f"{self.where}: {name} has not the same number of values everywhere")
            columns |= array_columns(name, values, self.layout.names(name))
        num_frames, fitted = fit_rows(columns, rows.num_rows, self.layout.trim, self.where)
        found = {name: np.array(rows.column(name).to_pylist()) for name in outcome}
        return SourceTable(
            num_frames=num_frames,
            actions=fitted,
            rewards=on_the_way(check_rewards(found[REWARD], self.where), num_frames)
            if REWARD in found
            else None,
            terminated=on_the_way(as_ends(found[DONE], self.where), num_frames) if DONE in found else None,
        )

    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn."""
        length, image = self.row["length"], self.layout.image
        if self.layout.is_video:
            path = self.layout.file("video_path", self.row, f"videos/{image}")
            half_frame = 0.5 / float(self.layout.info["fps"])
            begin = float(self.row[f"videos/{image}/from_timestamp"]) - half_frame
            yield from frames_of_video(path, length, resize, begin=begin, where=f"{self.where} in {path}")
            return
        for index, value in enumerate(self._read([image]).column(image).to_pylist()):
            where = f"{self.where} frame {index}"
            if not isinstance(value, dict) or value.get("bytes") is None:
                raise WorldError(f"{where} has no picture in the Parquet file")
            yield as_rgb(decode_picture(value["bytes"], where), where)

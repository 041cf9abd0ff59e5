"""Datasets of Minari 0.5: episodes of a Gymnasium environment, in HDF5, Parquet or Arrow files."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.formats.files import decode_picture, open_hdf5, read_arrow
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
from worldsim.data.formats.spaces import Space, channels_of, columns_of, leaves, pictures_of
from worldsim.errors import WorldError
from worldsim.storage.files import check_integer, read_json, shown

MAX_EPISODES = 10**6
MAIN_FILE, METADATA_FILE = "main_data.hdf5", "metadata.json"
Way = tuple[str, ...]


def detect(path: Path) -> bool:
    """Return whether a folder, or the folder `data` in it, is a dataset of Minari."""
    folder = data_folder(path)
    metadata = read_json(folder / METADATA_FILE) if folder is not None else None
    return isinstance(metadata, dict) and "data_format" in metadata


def data_folder(path: Path) -> Path | None:
    """Return the folder that holds `metadata.json`."""
    return next((each for each in (path, path / "data") if (each / METADATA_FILE).is_file()), None)


def read(path: Path, options: ReadOptions) -> Source:
    """Read a dataset: T actions and T + 1 observations an episode, of which one has to be pictures.

    Raises:
        WorldError: If it has no pictures, or actions that cannot be made buttons.
    """
    folder = data_folder(path)
    assert folder is not None
    metadata = read_json(folder / METADATA_FILE)
    observations = space_of(metadata, "observation_space", folder)
    actions = space_of(metadata, "action_space", folder)
    images = pictures_of(observations)
    image = images[choose_image(list(images), options.image, str(path))]
    layout = Layout(
        folder=folder,
        image=image,
        shape=tuple(dict(leaves(observations))[image]["shape"]),
        actions=actions,
        trim=options.trim,
    )
    kind = ArrowEpisode if metadata["data_format"] in ("parquet", "arrow") else HDF5Episode
    count = check_integer(
        metadata.get("total_episodes"), f"{folder / METADATA_FILE}: total_episodes", 1, MAX_EPISODES
    )
    recordings = [
        kind(name=f"episode-{index:06d}", where=f"{folder} episode {index}", index=index, layout=layout)
        for index in range(count)
    ]
    return Source(
        about=about(metadata, path),
        recordings=recordings,
        channels=channels_of(actions, str(folder)),
        has_one_size=True,
    )


def space_of(metadata: Mapping[str, Any], name: str, folder: Path) -> Space:
    """Return a space as a JSON object.

    Raises:
        WorldError: If it is missing: it may be known to the environment alone.
    """
    try:
        space = json.loads(metadata[name])
        assert isinstance(space, dict)
        return space
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise WorldError(f"{folder / METADATA_FILE} has no readable {name}: {shown(str(error))}") from error


def about(metadata: Mapping[str, Any], path: Path) -> str:
    """Return which dataset it is, and of which environment."""
    name = metadata.get("dataset_id") or path.name
    try:
        environment = json.loads(metadata["env_spec"])["id"]
    except (KeyError, TypeError, ValueError):
        return f"Minari dataset {name}"
    return f"{environment}, Minari dataset {name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the parts of an episode are.

    Attributes:
        folder: That of the files.
        image: Way to the pictures in the observations.
        shape: Of a picture.
        actions: Space of the actions.
        trim: By how many frames pictures and actions may differ.
    """

    folder: Path
    image: Way
    shape: tuple[int, ...]
    actions: Space
    trim: int


@dataclass(kw_only=True, slots=True)
class MinariEpisode(Recording):
    """An episode of a dataset, by its number."""

    name: str
    where: str
    index: int
    layout: Layout

    @abstractmethod
    def arrays(self) -> tuple[int, dict[Way, np.ndarray], dict[str, np.ndarray]]:
        """Return the number of frames, the actions by their ways, and rewards and terminations."""

    def table(self) -> SourceTable:
        """Read actions, rewards and ends."""
        num_frames, actions, outcome = self.arrays()
        columns = columns_of(self.layout.actions, actions, self.where)
        num_frames, fitted = fit_rows(columns, num_frames, self.layout.trim, self.where)
        return SourceTable(
            num_frames=num_frames,
            actions=fitted,
            rewards=on_the_way(check_rewards(outcome["rewards"], self.where), num_frames),
            terminated=on_the_way(outcome["terminations"].astype(bool), num_frames),
        )

    def picture(self, value: Any, index: int) -> np.ndarray:
        """Return an observation, an array or a JPEG file, as a frame."""
        where = f"{self.where} frame {index}"
        if isinstance(value, bytes) or value.ndim == 1:
            return as_rgb(decode_picture(bytes(value), where), where)
        return as_rgb(value, where)


class HDF5Episode(MinariEpisode):
    """An episode in the one file of a dataset."""

    __slots__ = ()

    @property
    def file(self) -> Path:
        """The file of all episodes."""
        return self.layout.folder / MAIN_FILE

    def _inner(self, file: Any, way: Way) -> Any:
        name = f"episode_{self.index}"
        for part in way:
            inner = f"_index_{part}" if part.isdecimal() and f"{name}/_index_{part}" in file else part
            name = f"{name}/{inner}"
        if name not in file:
            raise WorldError(f"{self.file} has no {name}")
        return file[name]

    def arrays(self) -> tuple[int, dict[Way, np.ndarray], dict[str, np.ndarray]]:
        """Return the number of frames, the actions by their ways, and rewards and terminations."""
        with open_hdf5(self.file) as file:
            num_frames = len(self._inner(file, ("observations", *self.layout.image)))
            actions = {
                way: np.asarray(self._inner(file, ("actions", *way)))
                for way, _ in leaves(self.layout.actions)
            }
            outcome = {name: np.asarray(self._inner(file, (name,))) for name in ("rewards", "terminations")}
        return num_frames, actions, outcome

    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn."""
        with open_hdf5(self.file) as file:
            stored = self._inner(file, ("observations", *self.layout.image))
            for index in range(len(stored)):
                yield self.picture(stored[index], index)


class ArrowEpisode(MinariEpisode):
    """An episode in a folder of Parquet or Arrow files; its last row has an observation and no action."""

    __slots__ = ()

    def _array(self, table: Any, way: Way) -> np.ndarray | list[bytes]:
        column = table.column(way[0]).combine_chunks()
        for part in way[1:]:
            try:
                column = column.field(part)
            except (AttributeError, KeyError) as error:
                raise WorldError(f"{self.where} has no {'.'.join(way)}") from error
        if hasattr(column, "flatten") and hasattr(column.type, "list_size"):
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        values = column.to_pylist()
        return values if values and isinstance(values[0], bytes) else np.array(values)

    def arrays(self) -> tuple[int, dict[Way, np.ndarray], dict[str, np.ndarray]]:
        """Return the number of frames, the actions by their ways, and rewards and terminations."""
        table = read_arrow(self.layout.folder / str(self.index), ("actions", "rewards", "terminations"))
        actions = {
            way: np.asarray(self._array(table, ("actions", *way)))[:-1]
            for way, _ in leaves(self.layout.actions)
        }
        outcome = {name: np.asarray(self._array(table, (name,)))[:-1] for name in ("rewards", "terminations")}
        return table.num_rows, actions, outcome

    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn."""
        table = read_arrow(self.layout.folder / str(self.index), ("observations",))
        for index, value in enumerate(self._array(table, ("observations", *self.layout.image))):
            is_file = isinstance(value, bytes)
            yield self.picture(value if is_file else value.reshape(self.layout.shape), index)

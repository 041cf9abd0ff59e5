"""Files of NumPy arrays that hold frames and actions: one `.npz` for each episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldsim.data.formats.columns import DONE_NOTE, ENDS, as_ends, split_columns
from worldsim.data.formats.files import files_of, name_of
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
from worldsim.data.formats.video_folder import action_arrays, read_arrays


def detect(path: Path) -> bool:
    """Return whether there are `.npz` files of which the first holds frames."""
    files = files_of(path, (".npz",))
    return bool(files) and bool(pictures_in(read_arrays(files[0])))


def read(path: Path, options: ReadOptions) -> Source:
    """Read a file for each episode; entry i of rewards and ends is what action i brought."""
    files = files_of(path, (".npz",))
    first = read_arrays(files[0])
    image = choose_image(pictures_in(first), options.image, str(files[0]))
    recordings = [
        ArrayRecording(name=name_of(file, path), where=str(file), file=file, image=image, trim=options.trim)
        for file in files
    ]
    has_done = any("done" in name for name in first if name in ENDS)
    return Source(about=path.stem, recordings=recordings, notes=(DONE_NOTE,) if has_done else ())


def pictures_in(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of arrays that hold pictures: uint8, `[T, H, W]` or `[T, H, W, C]`."""
    return [
        name
        for name, values in arrays.items()
        if values.dtype == np.uint8 and values.ndim in (3, 4) and min(sorted(values.shape[1:])[-2:]) >= 8
    ]


@dataclass(slots=True)
class ArrayRecording(Recording):
    """An episode in a file of arrays."""

    name: str
    where: str
    file: Path
    image: str
    trim: int

    def table(self) -> SourceTable:
        """Read actions, rewards and ends."""
        arrays = read_arrays(self.file)
        choose_image(pictures_in(arrays), self.image, self.where)
        frames = arrays[self.image]
        others = {name: values for name, values in arrays.items() if name not in pictures_in(arrays)}
        actions, outcome = split_columns(action_arrays(others, self.where))
        num_frames, fitted = fit_rows(actions, len(frames), self.trim, self.where)
        reward, ended = outcome.get("reward"), outcome.get("ended")
        return SourceTable(
            num_frames=num_frames,
            actions=fitted,
            rewards=None if reward is None else on_the_way(check_rewards(reward, self.where), num_frames),
            terminated=None if ended is None else on_the_way(as_ends(ended, self.where), num_frames),
        )

    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn."""
        for frame in read_arrays(self.file)[self.image]:
            yield as_rgb(frame, self.where)

"""Counter-Strike recordings of Pearce and Zhu (arXiv 2104.04258): frames, keys and mouse in HDF5 files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldsim.data.formats.files import files_of, is_hdf5, name_of, open_hdf5
from worldsim.data.formats.source import (
    Channel,
    Kind,
    ReadOptions,
    Recording,
    Resize,
    Source,
    SourceTable,
    as_rgb,
    unchanged,
)
from worldsim.errors import WorldError

SUFFIXES = (".hdf5", ".h5")
FRAME_RATE = 16.0
BUTTONS = (
    "forward",
    "left",
    "back",
    "right",
    "jump",
    "crouch",
    "walk",
    "1",
    "2",
    "3",
    "reload",
    "fire",
    "zoom",
)
"""The first numbers of `frame_i_y`: W, A, S, D, space, Ctrl, Shift, 1, 2, 3, R, and both mouse buttons."""
MOUSE_X = (2.0, 4.0, 10.0, 20.0, 30.0, 60.0, 100.0, 200.0, 300.0, 500.0, 1000.0)
MOUSE_Y = (2.0, 4.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""In pixels, as positive bins of the movement of the mouse; there are as many negative ones, and 0."""


def both_ways(bins: tuple[float, ...]) -> tuple[float, ...]:
    """Return bins of both signs and 0, ascending."""
    return (*(-each for each in bins[::-1]), 0.0, *bins)


MOUSE = {"mouse_x": both_ways(MOUSE_X), "mouse_y": both_ways(MOUSE_Y)}
NUM_NUMBERS = len(BUTTONS) + sum(map(len, MOUSE.values()))  # 51
CHANNELS = (
    *(Channel(name=name, kind=Kind.BUTTON) for name in BUTTONS),
    *(
        Channel(name=name, kind=Kind.ANALOG, limits=(bins[0], bins[-1]), levels=bins, is_added=True)
        for name, bins in MOUSE.items()
    ),
)
KILL_REWARD, DEATH_REWARD = 1.0, -1.0


def detect(path: Path) -> bool:
    """Return whether the first HDF5 file has a frame and an action by these names."""
    files = files_of(path, SUFFIXES)
    if not files or not is_hdf5(files[0]):
        return False
    with open_hdf5(files[0]) as file:
        return "frame_0_x" in file and "frame_0_y" in file


def read(path: Path, options: ReadOptions) -> Source:
    """Read a file for each episode: 1,000 frames as a rule, about a minute."""
    recordings = [
        CounterStrikeRecording(name=name_of(file, path), where=str(file), file=file)
        for file in files_of(path, SUFFIXES)
    ]
    return Source(
        about="Counter-Strike: Global Offensive, recorded by Pearce and Zhu",
        recordings=recordings,
        channels=CHANNELS,
        frame_rate=FRAME_RATE,
        licence="for personal projects and open research, not commercial",
        notes=(f"a kill is a reward of {KILL_REWARD:g}, a death one of {DEATH_REWARD:g}",),
    )


def count_frames(file: Iterable[str | bytes | None]) -> int:
    """Return how many frames a file has, by its names; one that is no UTF-8 is in bytes."""
    return sum(isinstance(name, str) and bool(re.fullmatch(r"frame_\d+_x", name)) for name in file)


@dataclass(slots=True)
class CounterStrikeRecording(Recording):
    """A file of frames in their order."""

    name: str
    where: str
    file: Path

    def table(self) -> SourceTable:
        """Read actions, rewards and ends."""
        with open_hdf5(self.file) as file:
            num_frames = count_frames(file)
            missing = [
                name
                for index in range(num_frames)
                for name in (f"frame_{index}_x", f"frame_{index}_y")
                if name not in file
            ]
            if missing or num_frames < 2:
                raise WorldError(
                    f"{self.where} has {num_frames} frames, and no {', '.join(missing[:3]) or 'more'}"
                )
            rows = [np.asarray(file[f"frame_{index}_y"]) for index in range(num_frames)]
            names = [f"frame_{index}_helperarr" for index in range(num_frames)]
            flags = [np.asarray(file[name]) for name in names if name in file]
        if {row.shape for row in rows} != {(NUM_NUMBERS,)}:
            raise WorldError(f"{self.where}: an action has {NUM_NUMBERS} numbers, got {rows[0].shape}")
        return SourceTable(
            num_frames=num_frames,
            actions=actions_of(np.stack(rows), self.where),
            rewards=rewards_of(np.stack(flags)) if len(flags) == num_frames else None,
        )

    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn."""
        with open_hdf5(self.file) as file:
            num_frames = count_frames(file)
            for index in range(num_frames):
                bgr = as_rgb(np.asarray(file[f"frame_{index}_x"]), f"{self.where} frame {index}")
                yield np.ascontiguousarray(bgr[..., ::-1])  # as OpenCV keeps them


def rewards_of(helpers: np.ndarray) -> np.ndarray:
    """Return rewards of kills and deaths at a frame, `[T]`, from their flags `[T, 2]`."""
    return helpers[:, 0] * KILL_REWARD + helpers[:, 1] * DEATH_REWARD


def actions_of(numbers: np.ndarray, where: str) -> dict[str, np.ndarray]:
    """Return the columns of `CHANNELS` from `[T, 51]` numbers, each 0 or 1.

    Raises:
        WorldError: If they are others, or not one bin of each movement of the mouse is chosen.
    """
    actions = {name: numbers[:, index] for index, name in enumerate(BUTTONS)}
    begin = len(BUTTONS)
    for name, bins in MOUSE.items():
        chosen = numbers[:, begin : begin + len(bins)]
        actions[name] = np.array(bins)[chosen.argmax(axis=1)]
        begin += len(bins)
        if not (chosen.sum(axis=1) == 1).all():
            raise WorldError(f"{where}: {name} must be one of {len(bins)} bins at each frame")
    if not np.isin(numbers, (0, 1)).all():
        raise WorldError(f"{where}: the numbers of an action are 0 or 1")
    return actions

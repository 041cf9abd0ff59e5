"""Pictures of an environment, as frames of a recording: found among its observations, and fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from av.video.reformatter import VideoReformatter

from worldsim.data.formats.source import as_rgb
from worldsim.data.pictures import Size, choose_size, fit_frame
from worldsim.errors import WorldError
from worldsim.games.gym.config import GymConfig

RENDER, OBSERVATION = "render", "observation"
MIN_SIDE = 24
"""In pixels, of an observation that is taken for a picture unasked: grids of numbers are smaller."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """How pictures of one size become frames.

    Attributes:
        rows: Height of the pictures.
        columns: Width of the pictures.
        factor: So many times smaller they are made first; each pixel is the mean of a square.
        size: Of the frames.
    """

    rows: int
    columns: int
    factor: int
    size: Size

    def fit(self, picture: np.ndarray, shrinker: Shrinker, reformatter: VideoReformatter) -> np.ndarray:
        """Return a picture `[rows, columns, 3]` uint8 as a frame, `[height, width, 3]`."""
        return fit_frame(shrinker.shrink(picture, self.factor), self.size, reformatter)

    def describe(self) -> str:
        """Return in words what is done to pictures; empty if nothing is."""
        height, width = self.size.height, self.size.width
        if (self.rows, self.columns) == (height, width):
            return ""
        how = {"letterbox": "letterboxed", "crop": "cropped", "stretch": "stretched"}[self.size.fit]
        if self.factor > 1:
            how = f"made {self.factor} times smaller,"
        return f"pictures of {self.columns} x {self.rows} {how} to {width} x {height}"


class Shrinker:
    """Makes pictures smaller, by the means of squares, rounded; what is left over is cut off.

    Whole rows are added up first, then the row to itself, moved by a pixel: twice as fast as Pillow's
    `reduce`. The sums stay in the same memory, since the pages of fresh arrays cost more than the adding.
    """

    def __init__(self) -> None:
        self._sums = self._moved = np.empty((0, 0), np.uint16)

    def shrink(self, picture: np.ndarray, factor: int) -> np.ndarray:
        """Return a picture `[H, W, 3]` uint8 so many times smaller."""
        if factor == 1:
            return picture
        if abs(picture.strides[0]) < abs(picture.strides[1]):  # columns lie in memory as rows do, as pygame's
            return self.shrink(picture.swapaxes(0, 1), factor).swapaxes(0, 1)
        rows, columns = (side // factor for side in picture.shape[:2])
        strips = picture[: rows * factor, : columns * factor].reshape(rows, factor, -1)
        sums, moved = self._room(rows, strips.shape[2], np.uint16 if factor <= 16 else np.uint32)
        np.add(strips[:, 0], strips[:, 1], out=sums, dtype=sums.dtype)
        for row in range(2, factor):
            sums += strips[:, row]
        alone, added = sums.reshape(-1), moved.reshape(-1)
        np.add(alone[:-3], alone[3:], out=added[:-3])
        for column in range(2, factor):
            added[: -3 * column] += alone[3 * column :]
        added += factor**2 // 2
        added //= factor**2
        means, squares = np.empty((rows, columns, 3), np.uint8), moved.reshape(rows, columns, 3 * factor)
        for channel in range(3):  # one by one: NumPy is slow where the last axis has three entries
            means[..., channel] = squares[..., channel]
        return means

    def _room(self, rows: int, width: int, number: type) -> tuple[np.ndarray, np.ndarray]:
        """Return two arrays `[rows, width]` to add up in, where factor^2 * 255 has room."""
        if self._sums.shape != (rows, width) or self._sums.dtype != number:
            self._sums, self._moved = np.empty((rows, width), number), np.zeros((rows, width), number)
        return self._sums, self._moved


def choose_fitting(picture: np.ndarray, config: GymConfig) -> Fitting:
    """Return how pictures like this one `[H, W, 3]` become frames."""
    rows, columns = picture.shape[:2]
    if config.height is not None or config.width is not None:
        return Fitting(rows, columns, 1, choose_size(picture, config.height, config.width, config.fit))
    factor = math.ceil(max(rows, columns) / config.max_side)
    if min(rows, columns) < factor:
        raise WorldError(f"pictures of {columns} x {rows} are too long to be made smaller: give game.height")
    height, width = rows // factor, columns // factor
    return Fitting(rows, columns, factor, Size(height + height % 2, width + width % 2, "letterbox"))


def choose_picture(space: gym.Space[Any], wanted: str, where: str) -> str:
    """Return where pictures come from: `render`, `observation`, or the name of one of several observations.

    Raises:
        WorldError: If there is no such observation, or it is none of pictures.
    """
    named = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {}
    if wanted == RENDER:
        return RENDER
    if wanted == OBSERVATION or wanted in named:
        found = named.get(wanted, space)
        if not may_be_picture(found):
            raise WorldError(f"{where}: {wanted} is no picture, but {str(found)[:80]}: use picture=render")
        return wanted
    if wanted:
        known = ", ".join((RENDER, OBSERVATION, *named))
        raise WorldError(f"{where} has no picture {wanted!r}; there are {known}")
    is_picture = may_be_picture(space) and sorted(space.shape or ())[-2] >= MIN_SIDE
    return OBSERVATION if is_picture and 4 not in (space.shape or ())[2:] else RENDER


def may_be_picture(space: gym.Space[Any]) -> bool:
    """Return whether a space is of bytes, or of numbers from 0 to 1, in two dimensions or with channels."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) not in (2, 3):
        return False
    has_channels = len(space.shape) == 2 or space.shape[2] in (1, 3, 4) or space.shape[0] in (1, 3)
    is_unit = space.dtype is not None and space.dtype.kind == "f" and space.low.min() == 0
    return has_channels and (space.dtype == np.uint8 or (is_unit and space.high.max() == 1))


def as_picture(found: Any, where: str) -> np.ndarray:
    """Return what an environment shows as `[H, W, 3]` uint8.

    Raises:
        WorldError: If it is no picture.
    """
    if not isinstance(found, np.ndarray):
        raise WorldError(f"{where}: a picture is an array, got a {type(found).__name__}")
    if found.dtype.kind == "f":
        found = (found.clip(0, 1) * 255).round().astype(np.uint8)
    return as_rgb(found, where)

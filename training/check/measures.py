"""Measures of an episode: how its pictures change, and what was pressed meanwhile."""

# T frames, H W size of the small pictures, A axes, K features of a change

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldsim.data.episodes import Episode
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError

SIDE = 96
"""In pixels, of the longer side of the pictures that are measured."""
STILL_LEVELS = 0.3
"""Mean difference of two pictures, of 255, below which they are the same: video changes them a little."""
FLAT_LEVELS = 2.0
"""Standard deviation within a picture, of 255, below which it shows a single colour."""
CUT_LEVELS, CUT_FACTOR, CUT_SHARE = 40.0, 2.0, 0.35
"""Of a cut: mean difference of two pictures, of 255; how many times that of the frames around; share of
pixels of another brightness."""
NUM_BINS = 16
NUM_STRIP = 10
SHIFTS = tuple(range(-6, 7))
MIN_ROWS, PIECE_ROWS = 200, 100
MAX_ROWS = 40_000
MAX_PIECES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """An episode without most of its pictures.

    Attributes:
        actions: `[T, A]` int64.
        changes: `[T - 1, K]` float32: movement up or down and to the sides, and the mean difference, from
            each frame to the next, in the picture and in its quarters.
        is_still: `[T - 1]` bool, whether a frame is the same as the one before.
        is_stuck: `[T - 1]` bool, whether it is that although a button was pressed.
        is_flat: `[T]` bool, whether a frame shows a single colour.
        jumps: Numbers of frames that have little in common with the one before.
        strip: `[N, H, W, 3]` uint8, some frames, evenly spaced.
        cut_strip: The same, before and after cuts.
        flat_strip: The same, those that show a single colour.
        stuck_strip: The same, of the longest time in which frames stay the same though a button is pressed.
    """

    reference: EpisodeReference
    actions: np.ndarray
    changes: np.ndarray
    is_still: np.ndarray
    is_stuck: np.ndarray
    is_flat: np.ndarray
    jumps: tuple[int, ...]
    strip: np.ndarray
    cut_strip: np.ndarray
    flat_strip: np.ndarray
    stuck_strip: np.ndarray

    @property
    def name(self) -> str:
        """Folder and name."""
        return f"{self.reference.folder / self.reference.name}"

    def __len__(self) -> int:
        return len(self.actions)


def small_size(reference: EpisodeReference) -> tuple[int, int]:
    """Return the height and width of pictures to measure."""
    height, width = reference.info.height, reference.info.width
    scale = min(1.0, SIDE / max(height, width))
    return max(8, round(height * scale)), max(8, round(width * scale))


def measure(reference: EpisodeReference) -> Measured | str:
    """Decode and measure an episode; return what is wrong where it cannot be decoded."""
    try:
        return measure_episode(reference, reference.read(size=small_size(reference)))
    except (WorldError, OSError, MemoryError) as error:
        return " ".join(str(error).split())


def measure_episode(reference: EpisodeReference, episode: Episode) -> Measured:
    """Measure a decoded episode of at least one frame."""
    grey = episode.frames.astype(np.float32).mean(axis=-1)  # [T, H, W]
    sizes = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))
    around = np.pad(sizes, 1)
    is_alone = sizes > CUT_FACTOR * np.maximum(around[:-2], around[2:])
    cut = (sizes > CUT_LEVELS) & is_alone & (brightness_change(grey) > CUT_SHARE)
    is_still, is_flat = sizes < STILL_LEVELS, grey.std(axis=(1, 2)) < FLAT_LEVELS
    is_stuck = is_still & (episode.actions[:-1] != 0).any(axis=1)
    begin, length = longest_run(is_stuck)
    jumps = np.flatnonzero(cut) + 1
    around_cuts = (jumps[: NUM_STRIP // 2, None] + np.array([-1, 0])).reshape(-1)
    return Measured(
        reference=reference,
        actions=episode.actions,
        changes=changes_of(grey).astype(np.float32),
        is_still=is_still,
        is_stuck=is_stuck,
        is_flat=is_flat,
        jumps=tuple(jumps.tolist()),
        strip=episode.frames[spread(len(grey))],
        cut_strip=episode.frames[around_cuts],
        flat_strip=episode.frames[np.flatnonzero(is_flat)][spread(int(is_flat.sum()))],
        stuck_strip=episode.frames[begin + spread(length)],
    )


def spread(count: int) -> np.ndarray:
    """Return some numbers from 0 to `count - 1`, evenly spaced, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, NUM_STRIP)).round().astype(np.int64))


def longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Return where the most true values follow each other, and how many; 0 and 0 without one."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax()) if len(lengths) else 0
    return (int(edges[2 * longest]), int(lengths[longest])) if len(lengths) else (0, 0)


def brightness_change(grey: np.ndarray) -> np.ndarray:
    """Return which share of the pixels has another brightness than in the frame before, `[T - 1]`.

    Where they are does not matter, so that turning around changes little.
    """
    levels = (grey * (NUM_BINS / 256)).astype(np.int64).reshape(len(grey), -1)
    shares = np.stack([np.bincount(row, minlength=NUM_BINS) for row in levels]) / levels.shape[1]
    return np.abs(np.diff(shares, axis=0)).sum(axis=1) / 2


def movement(grey: np.ndarray, axis: int) -> np.ndarray:
    """Return by how many pixels pictures `[T, H, W]` seem to move along an axis, `[T - 1]`.

    By least squares over the profile along the axis (Lucas and Kanade, 1981, in one dimension).
    """
    profile = grey.mean(axis=3 - axis)  # [T, H] or [T, W]
    slope = np.gradient(profile[:-1], axis=1)
    change = np.diff(profile, axis=0)
    return -(slope * change).sum(axis=1) / ((slope**2).sum(axis=1) + 1.0)


def changes_of(grey: np.ndarray) -> np.ndarray:
    """Return movement along both axes and mean difference, of pictures and their quarters, `[T - 1, 15]`."""
    halves = [np.array_split(part, 2, axis=2) for part in np.array_split(grey, 2, axis=1)]
    changes = []
    for part in (grey, *halves[0], *halves[1]):
        changes += [movement(part, 1), movement(part, 2), np.abs(np.diff(part, axis=0)).mean(axis=(1, 2))]
    return np.stack(changes, axis=1)


@dataclass(frozen=True, slots=True)
class Explained:
    """How much of the changes of pictures the actions explain, if they came earlier or later.

    Attributes:
        shares: For each shift the share of the variance that a linear model of the actions explains, adjusted
            for its number of coefficients, of the change that it explains best at any shift. At shift s the
            change from frame i to i + 1 is put down to action i + s.
        bests: The shift at which they explain most, in some parts of the recordings apart.
    """

    shares: dict[int, float]
    bests: tuple[int, ...]

    @property
    def best(self) -> int:
        """The shift at which they explain most."""
        return max(self.shares, key=lambda shift: self.shares[shift])


def explained(
    episodes: Sequence[Measured], num_values: Sequence[int], part: tuple[float, float] = (0.0, 1.0)
) -> Explained | None:
    """Return how much of the changes of pictures the actions explain; None if there are too few changes.

    Args:
        episodes: Measured episodes.
        num_values: Of each axis.
        part: Of each episode, begin and end as shares of its length.
    """
    margin = max(SHIFTS)
    inner = [
        (each, np.arange(max(margin, int(part[0] * last)), min(last - margin, int(part[1] * last))))
        for each in episodes
        if (last := len(each.changes)) > 2 * margin
    ]
    num_rows = sum(len(rows) for _, rows in inner)
    if num_rows < MIN_ROWS:
        return None
    inner = [(each, rows[:: num_rows // MAX_ROWS + 1]) for each, rows in inner]
    changes = np.concatenate([each.changes[rows] for each, rows in inner]).astype(np.float64)
    changes = changes.clip(*np.percentile(changes, (1, 99), axis=0))  # a cut is no movement
    buttons = [
        one_hot(np.concatenate([each.actions[rows + shift] for each, rows in inner]), num_values)
        for shift in SHIFTS
    ]
    table = np.array([_shares(inputs, changes) for inputs in buttons])  # [shifts, K]
    column = int(table.max(axis=0).argmax())
    pieces = np.array_split(np.arange(len(changes)), min(MAX_PIECES, len(changes) // PIECE_ROWS))
    bests = [
        SHIFTS[int(np.argmax([_shares(inputs[rows], changes[rows, column, None])[0] for inputs in buttons]))]
        for rows in pieces
    ]
    return Explained(dict(zip(SHIFTS, table[:, column].tolist(), strict=True)), tuple(bests))


def one_hot(actions: np.ndarray, num_values: Sequence[int]) -> np.ndarray:
    """Return actions `[N, A]` as a column for each button, `[N, buttons]` float64."""
    columns = [
        actions[:, axis] == value for axis, count in enumerate(num_values) for value in range(1, count)
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _shares(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the share of the variance of each output that inputs explain, `[K]`.

    Args:
        inputs: `[N, buttons]`.
        outputs: `[N, K]`.
    """
    inputs, outputs = inputs - inputs.mean(axis=0), outputs - outputs.mean(axis=0)
    used = inputs[:, inputs.any(axis=0)]
    if not used.shape[1]:
        return np.zeros(outputs.shape[1])
    weights, _, rank, _ = np.linalg.lstsq(used, outputs, rcond=None)
    left = ((outputs - used @ weights) ** 2).sum(axis=0)
    total = (outputs**2).sum(axis=0)
    num_rows = len(outputs)
    adjusted = 1 - (left / np.maximum(total, 1e-9)) * (num_rows - 1) / max(1, num_rows - 1 - rank)
    return np.where(total > 1e-9, adjusted, 0.0)

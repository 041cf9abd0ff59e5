"""A player's state over the lowest rows of the picture: drawn by a game, read by measures.

One row of the codec's cells of 8 x 8 pixels holds all of it, each cell either bar, sign, digit or nothing:

    cell  0 to 9  10  11      12 13 14  15  16    17 18  19
          health      bullet  rounds        skull kills
"""

from __future__ import annotations

import numpy as np

CELL = 8
BAR_HEIGHT = CELL
BAR_COLOUR, ROUNDS_COLOUR, KILLS_COLOUR = (64, 224, 64), (240, 192, 64), (224, 224, 224)
FULL_HEALTH = 100
HEALTH_CELLS = 10
ROUNDS_CELLS, KILLS_CELLS = (12, 13, 14), (17, 18)
SIGNS = {"bullet": (11, ROUNDS_COLOUR), "skull": (16, KILLS_COLOUR)}
NUM_CELLS = 20
# Of 7 rows, each a number of 5 bits, the leftmost pixel the highest bit.
SHAPES = {
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 6, 8, 16, 31),
    "3": (30, 1, 1, 14, 1, 1, 30),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 4, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
    "bullet": (4, 14, 14, 14, 14, 0, 14),
    "skull": (14, 31, 21, 31, 27, 14, 10),
}


def draw_shape(name: str) -> np.ndarray:
    """Return a digit or a sign as one cell, `[8, 8]` bool."""
    cell = np.zeros((CELL, CELL), dtype=bool)
    cell[1:, 1:6] = [[bool(row >> bit & 1) for bit in (4, 3, 2, 1, 0)] for row in SHAPES[name]]
    return cell


DIGITS = np.stack([draw_shape(str(digit)) for digit in range(10)])
"""`[10, 8, 8]` bool, how each digit is drawn."""


def draw_health(frame: np.ndarray, health: float) -> None:
    """Draw a bar over the lowest 8 rows of `frame` `[height, width, 3]`: the whole width is full health."""
    _draw_bar(frame, frame.shape[1], health)


def draw_status(frame: np.ndarray, health: float, rounds: float, kills: float) -> None:
    """Draw health, rounds left in the weapon and kills over the lowest 8 rows.

    Args:
        frame: `[height, 160, 3]` uint8.
        health: Its bar is full from 100 on.
        rounds: Shown up to 999.
        kills: Shown up to 99.
    """
    _draw_bar(frame, HEALTH_CELLS * CELL, health)
    for name, (cell, colour) in SIGNS.items():
        _cell(frame, cell)[SIGN_PIXELS[name]] = colour
    _draw_number(frame, rounds, ROUNDS_CELLS, ROUNDS_COLOUR)
    _draw_number(frame, kills, KILLS_CELLS, KILLS_COLOUR)


def read_health(frames: np.ndarray, full_width: int = HEALTH_CELLS * CELL) -> np.ndarray:
    """Return what the bars of frames say, `[...]` float64, 0 to 100.

    Each column votes by whether it is nearer to the colour of the bar than to black, so that a soft end
    counts by what it holds.

    Args:
        frames: `[..., height, width, 3]` uint8.
        full_width: Of a full bar, in pixels.
    """
    rows = frames[..., -BAR_HEIGHT + 2 : -1, :full_width, :].astype(np.float64)
    colour = np.array(BAR_COLOUR)
    share = (rows @ colour / (colour @ colour)).mean(axis=-2)
    return FULL_HEALTH * (share > 0.5).mean(axis=-1)


def read_rounds(frames: np.ndarray) -> np.ndarray:
    """Return the rounds that frames `[..., height, 160, 3]` show, `[...]` int64."""
    return _read_number(frames, ROUNDS_CELLS, ROUNDS_COLOUR)


def read_kills(frames: np.ndarray) -> np.ndarray:
    """Return the kills that frames `[..., height, 160, 3]` show, `[...]` int64."""
    return _read_number(frames, KILLS_CELLS, KILLS_COLOUR)


SIGN_PIXELS = {name: draw_shape(name) for name in SIGNS}


def _draw_bar(frame: np.ndarray, full_width: int, health: float) -> None:
    length = round(full_width * min(max(health, 0.0), FULL_HEALTH) / FULL_HEALTH)
    frame[-BAR_HEIGHT:] = 0
    frame[-BAR_HEIGHT + 1 :, :length] = BAR_COLOUR  # a dark line parts it from a floor that may be green


def _draw_number(
    frame: np.ndarray, value: float, cells: tuple[int, ...], colour: tuple[int, int, int]
) -> None:
    shown = int(min(max(value, 0), 10 ** len(cells) - 1))
    for cell, digit in zip(cells, f"{shown:0{len(cells)}d}", strict=True):
        _cell(frame, cell)[DIGITS[int(digit)]] = colour


def _read_number(frames: np.ndarray, cells: tuple[int, ...], colour: tuple[int, int, int]) -> np.ndarray:
    drawn = DIGITS[..., None] * np.array(colour, dtype=np.float64)
    value = np.zeros(frames.shape[:-3], dtype=np.int64)
    for cell in cells:
        seen = _cell(frames, cell).astype(np.float64)[..., None, :, :, :]
        value = 10 * value + np.square(seen - drawn).sum(axis=(-3, -2, -1)).argmin(axis=-1)
    return value


def _cell(frames: np.ndarray, cell: int) -> np.ndarray:
    """Return the pixels of one cell of the lowest row, `[..., 8, 8, 3]`, to read or write."""
    return frames[..., -CELL:, cell * CELL : (cell + 1) * CELL, :]

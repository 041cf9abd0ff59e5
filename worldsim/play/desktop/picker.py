"""Choose a world and a start moment by their pictures, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pygame

from worldsim.errors import WorldError
from worldsim.starts import read_starts
from worldsim.ui.display import saving_when_display_is_lost
from worldsim.ui.input import Gamepads, pad_moves
from worldsim.ui.keys import key_names
from worldsim.ui.window import AUTO_SIZE, Window
from worldsim.world.world import STARTS_FOLDER, find_world, read_config, shipped_worlds

COLUMNS, ROWS = 4, 4
BORDER, BORDER_COLOUR, GAP_COLOUR = 3, (255, 208, 64), (24, 24, 28)
POLL_MS = 200
MOVES = {"left": -1, "right": 1, "up": -COLUMNS, "down": COLUMNS}
MOVES |= {f"pad dp{direction}": step for direction, step in MOVES.items()}
TAKE, NEXT_WORLD, LEAVE = {"return", "space", "pad a", "enter"}, {"tab", "pad y"}, {"escape", "q", "pad b"}


@dataclass(frozen=True, slots=True)
class WorldChoice:
    """A world to choose.

    Attributes:
        name: Its name or folder.
        pictures: The frame at which play would begin from each, `[starts, H, W, 3]` uint8.
        about: What there is to do in it.
    """

    name: str
    description: str
    start_names: tuple[str, ...]
    pictures: np.ndarray
    about: str = ""

    @classmethod
    def read(cls, name: str) -> WorldChoice:
        """Read what there is to choose from, without the world's weights."""
        folder = find_world(name)
        config, _ = read_config(folder)
        starts = read_starts(Path(folder) / STARTS_FOLDER)
        pictures = np.stack([start.frames[-1].numpy() for start in starts])
        return cls(name, config.description, tuple(start.name for start in starts), pictures, config.about)


def choose_world(played: str | None = None) -> tuple[str, str] | None:
    """Show the worlds that ship with their start moments, and the one that was played before, if any.

    Returns:
        Names of a world and of a start moment; None if the window was closed.

    Raises:
        WorldError: If there is no world, or one cannot be read.
    """
    names = shipped_worlds()
    if played and played not in names:
        names.append(played)
    if not names:
        raise WorldError("no world ships with this copy: name one, world=FOLDER")
    choices = [WorldChoice.read(name) for name in names]
    return Picker(choices, names.index(played) if played else 0).choose()


class Picker:
    """A window with the start moments of a world, and the other worlds a key away.

    Args:
        worlds: At least one, each with a start moment.
        world: Number of the one to show first.

    Raises:
        WorldError: If no window can be opened.
    """

    def __init__(self, worlds: Sequence[WorldChoice], world: int = 0) -> None:
        self._worlds = worlds
        self.world, self.start = world, 0
        self._is_done = self._is_left = False
        self._sheet = np.zeros((0, 0, 3), np.uint8)
        height, width = _sheet_size(worlds[0].pictures)
        self.window = Window(
            width, height, title="Choose where to begin", scale=1, has_strip=True, message_lines=3
        )
        self._gamepads = Gamepads()

    def choose(self) -> tuple[str, str] | None:
        """Return the names of a world and of a start moment, or None if the window was closed."""
        try:
            with saving_when_display_is_lost(lambda: "nothing was played"):
                while not self._is_done:
                    self.advance()
        finally:
            self.window.close()
        chosen = self._worlds[self.world]
        return None if self._is_left else (chosen.name, chosen.start_names[self.start])

    def advance(self) -> None:
        """Answer keys, show what is chosen, and wait for the next key."""
        for event in self.window.events():
            self._gamepads.handle(event)
            self._answer(event)
        if not self._is_done:
            world = self._worlds[self.world]
            self.window.title = f"{world.name}: {world.description}" if world.description else world.name
            self.window.show(self._draw(), self._texts(), message=world.about or world.description)
            self.window.wait_for_event(POLL_MS)

    def _answer(self, event: pygame.event.Event) -> None:
        if event.type == pygame.QUIT:
            self._is_done = self._is_left = True
        elif event.type in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN):
            self._point(event)
        elif event.type == pygame.KEYDOWN:
            for name in key_names(event)[:1]:
                self._press(name)
        else:
            for name, is_down in pad_moves(event, ()).items():
                if is_down:
                    self._press(name)

    def _press(self, name: str) -> None:
        count = len(self._worlds[self.world].start_names)
        if name in MOVES:
            self.start = min(max(self.start + MOVES[name], 0), count - 1)
        elif name in NEXT_WORLD:
            self.world, self.start = (self.world + 1) % len(self._worlds), 0
        elif name in TAKE:
            self._is_done = True
        elif name in LEAVE:
            self._is_done = self._is_left = True

    def _point(self, event: pygame.event.Event) -> None:
        place = self.window.frame_position(event.pos)
        if place is None:
            return
        height, width = self._sheet.shape[:2]
        column, row = place[0] * COLUMNS // max(1, width), place[1] * ROWS // max(1, height)
        number = self._first() + row * COLUMNS + column
        if number < len(self._worlds[self.world].start_names):
            self.start = number
            self._is_done = event.type == pygame.MOUSEBUTTONDOWN

    def _first(self) -> int:
        """Return the number of the first start moment of the sheet that is shown."""
        return self.start // (COLUMNS * ROWS) * COLUMNS * ROWS

    def _draw(self) -> np.ndarray:
        pictures, first = self._worlds[self.world].pictures, self._first()
        shown = pictures[first : first + COLUMNS * ROWS]
        self._sheet = contact_sheet(shown, _sheet_size(self._worlds[0].pictures), self.start - first)
        return self._sheet

    def _texts(self) -> list[str]:
        world = self._worlds[self.world]
        keys = "arrow keys choose, Enter plays, Esc leaves"
        if len(self._worlds) > 1:
            keys = f"Tab: next of {len(self._worlds)} worlds, {keys}"
        return [world.name, world.start_names[self.start], keys]


def contact_sheet(pictures: np.ndarray, size: tuple[int, int], chosen: int) -> np.ndarray:
    """Return pictures beside and below each other, each in its shape, `[*size, 3]` uint8.

    Args:
        pictures: `[pictures, H, W, 3]` uint8, at most `COLUMNS * ROWS`.
        chosen: Number of the one with a border.
    """
    sheet = np.full((*size, 3), GAP_COLOUR, np.uint8)
    height, width = size[0] // ROWS, size[1] // COLUMNS
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        cell = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        place = _fitting(picture.shape[:2], cell.shape[:2])
        if number == chosen:
            cell[tuple(slice(each.start - BORDER, each.stop + BORDER) for each in place)] = BORDER_COLOUR
        inner = cell[place]
        rows = np.arange(inner.shape[0]) * picture.shape[0] // inner.shape[0]
        columns = np.arange(inner.shape[1]) * picture.shape[1] // inner.shape[1]
        inner[:] = picture[rows[:, None], columns]
    return sheet


def _fitting(picture: tuple[int, ...], cell: tuple[int, ...]) -> tuple[slice, slice]:
    """Return where a picture is shown in the middle of a cell, as large as its shape and a border allow."""
    room = [size - 2 * BORDER for size in cell]
    scale = min(size / own for size, own in zip(room, picture, strict=True))
    shown = [max(1, round(scale * own)) for own in picture]
    first = [BORDER + (size - own) // 2 for size, own in zip(room, shown, strict=True)]
    return slice(first[0], first[0] + shown[0]), slice(first[1], first[1] + shown[1])


def _sheet_size(pictures: np.ndarray) -> tuple[int, int]:
    """Return height and width of a sheet whose cells have the shape of the pictures."""
    height, width = pictures.shape[1:3]
    scale = min(AUTO_SIZE[0] / (COLUMNS * width), AUTO_SIZE[1] / (ROWS * height))
    scale = int(scale) if scale >= 1 else scale  # whole pixels, where there are any
    least = 2 * BORDER + 1
    return ROWS * max(least, int(height * scale)), COLUMNS * max(least, int(width * scale))

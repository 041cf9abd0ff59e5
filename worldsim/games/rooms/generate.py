"""Generator of maps from a seed: rooms on a grid, joined by passages.

Every room holds the middle of its cell of the grid, so that neighbours face each other, and the walls of any
two are apart. `worldsim.games.rooms.udmf` writes a map down for the engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from worldsim.games.rooms.map import CELL, SIDES, Area, Passage, Point, RoomMap, Thing
from worldsim.games.rooms.textures import Colour, Textures

VERSION = 1
"""Changes when the same seed and textures give another map."""
STREAM = 3  # beside the seed itself, so that the map is independent of what a player draws
GRIDS = ((2, 3), (3, 2), (3, 3), (3, 3), (3, 4), (4, 3))  # columns and rows, all equally likely
REACH = (96, 192)  # from the middle of the cell to a wall
STEP = 16  # lengths are multiples of this
JOINED_SHARE = 0.6  # of the neighbours that need no passage to be reached
PASSAGE_WIDTHS = (80, 96, 112, 128)
CORNER = 32  # least wall between a passage and a corner
CEILINGS, PASSAGE_CEILINGS = (112, 128, 144, 160, 192), (80, 88, 96)
LIGHTS, PASSAGE_LIGHTS = (176, 192, 208, 224, 240), (160, 176, 192)
CANDIDATES = 8  # textures that a room's own is chosen from
ACCENT_SHARE = 0.5  # of the sides of a room, that are of its second texture
PANEL, PANEL_SHARE, PANEL_WALL = 64, 0.6, 112  # how wide, how often, and on what length of wall at least
# Editor numbers of things that stand still: columns green and red, tall and short, with heart and skull;
# lamp, candelabrum, trees, stalagmite, pillar. Torches and other lamps flicker.
DECORATIONS = (30, 31, 32, 33, 37, 2028, 35, 43, 47, 48)
MAX_DECORATIONS, TRIES = 3, 12  # in a room; where they are drawn to be put
CLEARANCE = 64  # from its middle to where one walks: its radius, the player's, and some more
WALL_DISTANCE = 40  # from the nearest wall to where something stands or the player starts, at least
PLAYER = 1  # editor number of where the player starts
Place = tuple[int, int]  # a point x, y, or a column and a row of the grid


def generate_rooms(seed: int, textures: Textures) -> RoomMap:
    """Draw a map; the same seed, 0 or more, and the same textures give the same one."""
    rng = np.random.default_rng((seed, STREAM))
    columns, rows = GRIDS[rng.integers(len(GRIDS))]
    painter = Painter(rng, textures)
    rooms = tuple(draw_room(rng, painter, (column, row)) for row in range(rows) for column in range(columns))
    passages = tuple(
        draw_passage(rng, painter, rooms, pair, runs_east=pair[1] == pair[0] + 1)
        for pair in draw_pairs(rng, columns, rows)
    )
    home = int(rng.integers(len(rooms)))
    start = Thing(PLAYER, *draw_place(rng, rooms[home]), int(rng.integers(360)))
    decorations: list[Thing] = []
    for number, room in enumerate(rooms):
        used = [passage.threshold(number) for passage in passages if number in passage.rooms]
        used += [(float(start.x), float(start.y))] if number == home else []
        decorations += decorate(rng, room, used)
    return RoomMap(
        columns=columns,
        rows=rows,
        rooms=rooms,
        passages=passages,
        decorations=tuple(decorations),
        start=start,
    )


class Painter:
    """Textures of walls and of flats, handed out at random."""

    def __init__(self, rng: np.random.Generator, textures: Textures) -> None:
        self.walls = Palette(rng, textures.walls)
        self.flats = Palette(rng, textures.flats)


class Palette:
    """Textures of one kind, by name with their mean colours; each is handed out once, in a random order."""

    def __init__(self, rng: np.random.Generator, colours: Mapping[str, Colour]) -> None:
        self._colours = colours
        self._left = [str(name) for name in rng.permutation(list(colours))]
        self._prominent: list[str] = []

    def next(self) -> str:
        """Return the name of any other texture."""
        return self._left.pop()

    def next_prominent(self) -> str:
        """Return the name of one that tells its room from the others: of some, the least like theirs."""
        candidates = self._left[-CANDIDATES:]
        chosen = max(candidates, key=self._difference)
        self._left.remove(chosen)
        self._prominent.append(chosen)
        return chosen

    def _difference(self, name: str) -> float:
        others = (self._colours[other] for other in self._prominent)
        return min((math.dist(self._colours[name], other) for other in others), default=0.0)


def draw_room(rng: np.random.Generator, painter: Painter, cell: Place) -> Area:
    """Draw the room of a cell of the grid."""
    x, y = (CELL * (2 * index + 1) // 2 for index in cell)
    west, south, east, north = (int(reach) for reach in rng.integers(*REACH, 4, endpoint=True) // STEP * STEP)
    first, second = painter.walls.next_prominent(), painter.walls.next()
    walls = [second if rng.random() < ACCENT_SHARE else first for _ in SIDES]
    panels = [painter.walls.next() if rng.random() < PANEL_SHARE else "" for _ in SIDES]
    return Area(
        west=x - west,
        south=y - south,
        east=x + east,
        north=y + north,
        ceiling=int(rng.choice(CEILINGS)),
        light=int(rng.choice(LIGHTS)),
        floor_flat=painter.flats.next_prominent(),
        ceiling_flat=painter.flats.next(),
        walls=(walls[0], walls[1], walls[2], walls[3]),
        panels=(panels[0], panels[1], panels[2], panels[3]),
    )


def draw_pairs(rng: np.random.Generator, columns: int, rows: int) -> list[tuple[int, int]]:
    """Draw which neighbours are joined: a tree of all rooms, four rooms in a ring, and some more."""
    numbers = np.arange(columns * rows).reshape(rows, columns)
    pairs = [
        *zip(numbers[:, :-1].ravel().tolist(), numbers[:, 1:].ravel().tolist(), strict=True),
        *zip(numbers[:-1].ravel().tolist(), numbers[1:].ravel().tolist(), strict=True),
    ]
    row, column = int(rng.integers(rows - 1)), int(rng.integers(columns - 1))
    ring = set(numbers[row : row + 2, column : column + 2].ravel().tolist())
    group = list(range(columns * rows))  # for each room, the least number of a room that it is joined with
    joined = []
    for index in rng.permutation(len(pairs)):
        first, second = pairs[index]
        is_needed = group[first] != group[second] or {first, second} <= ring
        if is_needed or rng.random() < JOINED_SHARE:
            joined.append((first, second))
            old, new = max(group[first], group[second]), min(group[first], group[second])
            group = [new if number == old else number for number in group]
    return sorted(joined)


def draw_passage(
    rng: np.random.Generator,
    painter: Painter,
    rooms: tuple[Area, ...],
    pair: tuple[int, int],
    *,
    runs_east: bool,
) -> Passage:
    """Draw the passage between two rooms, somewhere along the walls that face each other."""
    first, second = rooms[pair[0]], rooms[pair[1]]
    if runs_east:
        low, high = max(first.south, second.south), min(first.north, second.north)
    else:
        low, high = max(first.west, second.west), min(first.east, second.east)
    width = int(rng.choice(PASSAGE_WIDTHS))
    start = int(rng.integers(low + CORNER, high - CORNER - width, endpoint=True)) // STEP * STEP
    across = (start, start + width)
    along = (first.east, second.west) if runs_east else (first.north, second.south)
    (west, east), (south, north) = (along, across) if runs_east else (across, along)
    wall = painter.walls.next()
    area = Area(
        west=west,
        south=south,
        east=east,
        north=north,
        ceiling=int(rng.choice(PASSAGE_CEILINGS)),
        light=int(rng.choice(PASSAGE_LIGHTS)),
        floor_flat=painter.flats.next(),
        ceiling_flat=painter.flats.next(),
        walls=(wall, wall, wall, wall),
    )
    return Passage(rooms=pair, runs_east=runs_east, area=area)


def decorate(rng: np.random.Generator, room: Area, used: list[Point]) -> list[Thing]:
    """Put up to three things into a room, off the straight ways between its middle and the places `used`."""
    ways = list(combinations([room.middle, *used], 2))
    wanted = int(rng.integers(MAX_DECORATIONS, endpoint=True))
    placed: list[Thing] = []
    for _ in range(TRIES):
        thing = Thing(int(rng.choice(DECORATIONS)), *draw_place(rng, room))
        place = (thing.x, thing.y)
        is_apart = all(math.dist(place, (one.x, one.y)) >= CLEARANCE for one in placed)
        if len(placed) < wanted and is_apart and all(distance_to_way(place, w) >= CLEARANCE for w in ways):
            placed.append(thing)
    return placed


def draw_place(rng: np.random.Generator, room: Area) -> Place:
    """Draw a point of a room that is not at a wall."""
    x = rng.integers(room.west + WALL_DISTANCE, room.east - WALL_DISTANCE, endpoint=True)
    y = rng.integers(room.south + WALL_DISTANCE, room.north - WALL_DISTANCE, endpoint=True)
    return int(x), int(y)


def distance_to_way(point: Point, way: tuple[Point, Point]) -> float:
    """Return how far a point is from a straight way, given by its ends."""
    (x, y), (end_x, end_y) = way
    along, across = end_x - x, end_y - y
    length = along**2 + across**2
    share = ((point[0] - x) * along + (point[1] - y) * across) / length if length else 0.0
    share = min(max(share, 0.0), 1.0)
    return math.dist(point, (x + share * along, y + share * across))

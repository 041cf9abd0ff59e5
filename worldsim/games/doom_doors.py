"""Doors of a Doom map: where they are, and a script that makes the engine tell how far each is open."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldsim.errors import WorldError
from worldsim.games.rooms.wad import Lump, encode_wad

LINE = struct.Struct("<7H")  # two vertices, flags, special, tag, two sides
SIDE = struct.Struct("<hh8s8s8sH")  # offsets, three textures, sector
SECTOR = struct.Struct("<hh8s8shhh")  # floor, ceiling, textures, light, special, tag
VERTEX = struct.Struct("<hh")
NO_SIDE = 0xFFFF
NUM_LUMPS = 10  # of a map, behind its name
# Line specials of doors that `use` opens at the door itself, without a key.
BY_HAND = frozenset((1, 31, 117, 118))
WIDE = 48  # of a leaf, in map units; narrower ones are the jambs of a door that stands apart
LIP = 4  # an open door ends so far below the lowest ceiling beside it
# Operations of compiled scripts (ACS): how each is numbered in the engine.
PUSH, GO_TO, DELAY, ASSIGN_GLOBAL, CEILING = 3, 52, 56, 181, 262
OPENS = 1000  # added to the number of a script that runs from a level's start
FIXED = 65536  # the engine's heights are whole numbers of this part of a map unit


@dataclass(frozen=True, slots=True)
class Leaf:
    """One face of a door.

    Attributes:
        x, y: Its middle.
        angle: In degrees, out of the door: who stands there looks at the door along `angle + 180`.
    """

    x: float
    y: float
    angle: float


@dataclass(frozen=True, slots=True)
class Door:
    """A door.

    Attributes:
        x, y: A point in its sector.
        shut, open: Heights of its ceiling.
        leaves: Its faces, from which it opens by hand.
    """

    x: float
    y: float
    shut: float
    open: float
    leaves: tuple[Leaf, ...]

    def openness(self, ceiling: float) -> float:
        """Return how far it is open, 0 to 1, given the height of its ceiling."""
        return min(max((ceiling - self.shut) / (self.open - self.shut), 0.0), 1.0)


def read_doors(lumps: Iterable[Lump], map_name: str) -> list[Door]:
    """Return the doors of a map of Doom's own format that open by hand, without keys.

    Raises:
        WorldError: If there is no such map.
    """
    found = _read_map(lumps, map_name)
    vertices = list(VERTEX.iter_unpack(found["VERTEXES"]))
    sectors = [row[-1] for row in SIDE.iter_unpack(found["SIDEDEFS"])]
    heights = [row[:2] for row in SECTOR.iter_unpack(found["SECTORS"])]
    leaves: dict[int, list[tuple[Leaf, float]]] = {}
    for first, second, _, special, _, right, left in LINE.iter_unpack(found["LINEDEFS"]):
        (x, y), (to_x, to_y) = vertices[first], vertices[second]
        if special not in BY_HAND or left == NO_SIDE or math.hypot(to_x - x, to_y - y) < WIDE:
            continue
        # The right side of a line, seen along it, is the one from which it is used.
        angle = math.degrees(math.atan2(-(to_x - x), to_y - y))
        leaf = Leaf((x + to_x) / 2, (y + to_y) / 2, angle)
        leaves.setdefault(sectors[left], []).append((leaf, float(heights[sectors[right]][1])))
    return [_build_door(faces, float(heights[sector][1])) for sector, faces in sorted(leaves.items())]


def read_walls(lumps: Iterable[Lump], map_name: str, *, with_shut: bool = False) -> np.ndarray:
    """Return what nobody sees through, `[N, 4]` int64: x, y of both ends of the lines with one side.

    Args:
        lumps: Of the WAD.
        map_name: Of the map.
        with_shut: Also lines between whose sides nothing is open, as those of doors.

    Raises:
        WorldError: If there is no such map.
    """
    found = _read_map(lumps, map_name)
    vertices = np.array(list(VERTEX.iter_unpack(found["VERTEXES"])), dtype=np.int64)
    sectors = [row[-1] for row in SIDE.iter_unpack(found["SIDEDEFS"])]
    heights = [row[:2] for row in SECTOR.iter_unpack(found["SECTORS"])]

    def is_shut(right: int, left: int) -> bool:
        floors, ceilings = zip(*(heights[sectors[side]] for side in (right, left)), strict=True)
        return min(ceilings) <= max(floors)

    lines = [
        ends
        for *ends, _, _, _, right, left in LINE.iter_unpack(found["LINEDEFS"])
        if left == NO_SIDE or (with_shut and is_shut(right, left))
    ]
    return vertices[lines].reshape(-1, 4)


def _read_map(lumps: Iterable[Lump], map_name: str) -> dict[str, bytes]:
    following = iter(lumps)
    if not any(name == map_name for name, _ in following):
        raise WorldError(f"there is no map {map_name}")
    return dict(itertools.islice(following, NUM_LUMPS))


def _build_door(faces: Sequence[tuple[Leaf, float]], shut: float) -> Door:
    leaves = tuple(leaf for leaf, _ in faces)
    # Between two leaves, or behind the only one.
    x, y = (sum(getattr(leaf, axis) for leaf in leaves) / len(leaves) for axis in ("x", "y"))
    if len(leaves) == 1:
        x -= 2 * math.cos(math.radians(leaves[0].angle))
        y -= 2 * math.sin(math.radians(leaves[0].angle))
    return Door(x, y, shut, min(ceiling for _, ceiling in faces) - LIP, leaves)


def encode_watch(doors: Sequence[Door]) -> list[Lump]:
    """Return lumps by which the engine writes the ceilings of doors into global variables 1, 2 and so on.

    ViZDoom shows these as `USER1` and so on, in 1/65536 of a map unit. The alternative, its information about
    sectors, describes all of them in every tic and takes four times as long as the game.
    """
    start = len(b"ACS\0") + 4
    code: list[int] = []
    for number, door in enumerate(doors, start=1):
        code += [PUSH, 0, PUSH, round(door.x), PUSH, round(door.y), CEILING, ASSIGN_GLOBAL, number]
    code += [DELAY, 1, GO_TO, start]
    body = struct.pack(f"<{len(code)}i", *code)
    scripts = struct.pack("<iiii", 1, OPENS + 1, start, 0) + struct.pack("<i", 0)  # and no texts
    behavior = b"ACS\0" + struct.pack("<i", start + len(body)) + body + scripts
    return [("LOADACS", b"DOORS\n"), ("A_START", b""), ("DOORS", behavior), ("A_END", b"")]


def write_watch(path: Path, doors: Sequence[Door]) -> None:
    """Write `encode_watch` as a WAD."""
    path.write_bytes(encode_wad(encode_watch(doors)))

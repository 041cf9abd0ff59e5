"""Maps of rooms as text in the Universal Doom Map Format, which the engine reads and cuts up by itself.

Format: https://github.com/ZDoom/gzdoom/blob/master/specs/udmf.txt
"""

from __future__ import annotations

from worldsim.games.rooms.generate import PANEL, PANEL_WALL
from worldsim.games.rooms.map import SIDES, Area, Passage, RoomMap, Thing

Corner = tuple[int, int]
Opening = tuple[int, Passage]  # number of the sector behind it, and the passage


def write_udmf(rooms: RoomMap) -> str:
    """Return the content of a map's TEXTMAP lump: a sector for each room, then one for each passage."""
    text = MapText()
    for area in (*rooms.rooms, *(passage.area for passage in rooms.passages)):
        text.add_sector(area)
    for number, area in enumerate(rooms.rooms):
        openings: dict[str, Opening] = {}
        for index, passage in enumerate(rooms.passages):
            if number in passage.rooms:
                is_first = number == passage.rooms[0]
                ahead, behind = ("east", "west") if passage.runs_east else ("north", "south")
                openings[ahead if is_first else behind] = (len(rooms.rooms) + index, passage)
        for side in SIDES:
            add_side(text, number, area, side, openings.get(side))
    for index, passage in enumerate(rooms.passages):
        for side in ("north", "south") if passage.runs_east else ("west", "east"):
            corners = ends_of(passage.area, side)
            text.add_wall(*corners, len(rooms.rooms) + index, passage.area.walls[0])
    for thing in (rooms.start, *rooms.decorations):
        text.add_thing(thing)
    return str(text)


class MapText:
    """The parts of a map, written down one by one; points that are used twice are the same vertex."""

    def __init__(self) -> None:
        self._vertices: dict[Corner, int] = {}
        self._sectors: list[str] = []
        self._sides: list[str] = []
        self._lines: list[str] = []
        self._things: list[str] = []

    def add_sector(self, area: Area) -> None:
        """Add an area of floor; sectors are numbered in the order they are added."""
        self._sectors.append(
            f"sector{{heightfloor=0;heightceiling={area.ceiling};lightlevel={area.light};"
            f'texturefloor="{area.floor_flat}";textureceiling="{area.ceiling_flat}";}}'
        )

    def add_wall(self, start: Corner, end: Corner, sector: int, texture: str) -> None:
        """Add a wall; its sector is on the right of who looks from its start to its end."""
        side = self._add_side(f'sector={sector};texturemiddle="{texture}";')
        self._add_line(start, end, f"sidefront={side};blocking=true;")

    def add_opening(self, start: Corner, end: Corner, sectors: tuple[int, int], texture: str) -> None:
        """Add an opening between two sectors, right and left; the texture is above it, on the right."""
        front = self._add_side(f'sector={sectors[0]};texturetop="{texture}";')
        back = self._add_side(f"sector={sectors[1]};")
        self._add_line(start, end, f"sidefront={front};sideback={back};twosided=true;")

    def add_thing(self, thing: Thing) -> None:
        """Add a thing that is there in every kind of game."""
        levels = "".join(f"skill{level}=true;" for level in range(1, 6))
        self._things.append(
            f"thing{{x={thing.x}.0;y={thing.y}.0;angle={thing.angle_degrees};type={thing.kind};"
            f"{levels}single=true;coop=true;dm=true;}}"
        )

    def _add_side(self, content: str) -> int:
        self._sides.append(f"sidedef{{{content}}}")
        return len(self._sides) - 1

    def _add_line(self, start: Corner, end: Corner, content: str) -> None:
        first, second = (self._vertices.setdefault(point, len(self._vertices)) for point in (start, end))
        self._lines.append(f"linedef{{v1={first};v2={second};{content}}}")

    def __str__(self) -> str:
        vertices = [f"vertex{{x={x}.0;y={y}.0;}}" for x, y in self._vertices]
        parts = [*self._things, *vertices, *self._lines, *self._sides, *self._sectors]
        return "\n".join(['namespace="zdoom";', *parts, ""])


def add_side(text: MapText, sector: int, area: Area, side: str, opening: Opening | None) -> None:
    """Write one side of a room: walls, perhaps with a panel each, and the opening between them."""
    start, end = ends_of(area, side)
    wall, panel = area.walls[SIDES.index(side)], area.panels[SIDES.index(side)]
    if opening is None:
        add_panelled_wall(text, start, end, sector, wall, panel)
        return
    behind, passage = opening
    # Clockwise around the room is anticlockwise around the passage: its far side, turned about.
    opposite = SIDES[(SIDES.index(side) + 2) % 4]
    last, first = ends_of(passage.area, opposite)
    add_panelled_wall(text, start, first, sector, wall, panel)
    text.add_opening(first, last, (sector, behind), wall)
    add_panelled_wall(text, last, end, sector, wall, panel)


def add_panelled_wall(text: MapText, start: Corner, end: Corner, sector: int, wall: str, panel: str) -> None:
    """Write a wall whose middle is a panel, if it has one and is long enough."""
    length = abs(end[0] - start[0]) + abs(end[1] - start[1])  # one of them is 0
    if not panel or length < PANEL_WALL:
        text.add_wall(start, end, sector, wall)
        return
    step = ((end[0] - start[0]) // length, (end[1] - start[1]) // length)
    before = (length - PANEL) // 2
    points = [(start[0] + step[0] * far, start[1] + step[1] * far) for far in (before, before + PANEL)]
    text.add_wall(start, points[0], sector, wall)
    text.add_wall(points[0], points[1], sector, panel)
    text.add_wall(points[1], end, sector, wall)


def ends_of(area: Area, side: str) -> tuple[Corner, Corner]:
    """Return where a side begins and ends, clockwise around the area."""
    corners = {
        "west": ((area.west, area.south), (area.west, area.north)),
        "north": ((area.west, area.north), (area.east, area.north)),
        "east": ((area.east, area.north), (area.east, area.south)),
        "south": ((area.east, area.south), (area.west, area.south)),
    }
    return corners[side]

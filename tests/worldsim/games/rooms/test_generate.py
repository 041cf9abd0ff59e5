"""Maps drawn from a seed: what is in them, how they are written, and what the engine makes of them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from worldsim.errors import WorldError
from worldsim.games.doom import MAP_BYTES, DoomGame, iwad_path
from worldsim.games.registry import open_game
from worldsim.games.rooms.generate import (
    CLEARANCE,
    CORNER,
    GRIDS,
    WALL_DISTANCE,
    distance_to_way,
    generate_rooms,
)
from worldsim.games.rooms.map import Area, RoomMap
from worldsim.games.rooms.textures import HOLE, Textures, draw_patch, mean_colours, paste, read_textures
from worldsim.games.rooms.udmf import write_udmf
from worldsim.games.rooms.wad import encode_wad, read_wad

SEEDS = range(40)
TEXTURES = Textures(
    walls={f"WALL{i:03}": (float(i), 100.0, 255.0 - i) for i in range(200)},
    flats={f"FLAT{i:03}": (255.0 - i, float(i), 50.0) for i in range(100)},
)


@pytest.fixture(scope="module")
def maps() -> list[RoomMap]:
    return [generate_rooms(seed, TEXTURES) for seed in SEEDS]


@pytest.fixture(scope="module")
def game() -> Iterator[DoomGame]:
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    with open_game("doom-fresh-rooms") as game:
        yield game


def reachable(rooms: RoomMap, start: int, without: tuple[int, int] | None = None) -> set[int]:
    """Return the rooms that can be reached, perhaps without one of the passages."""
    found, left = {start}, [start]
    while left:
        here = left.pop()
        for room in rooms.neighbours(here):
            if room not in found and {here, room} != set(without or ()):
                found.add(room)
                left.append(room)
    return found


def overlap(one: Area, other: Area) -> bool:
    """Whether two areas share more than a border."""
    apart = one.east <= other.west or other.east <= one.west
    return not (apart or one.north <= other.south or other.north <= one.south)


def test_every_seed_has_a_map_of_its_own(maps: list[RoomMap]) -> None:
    assert len({write_udmf(rooms) for rooms in maps}) == len(maps)
    assert generate_rooms(7, TEXTURES) == maps[7]
    assert {(rooms.columns, rooms.rows) for rooms in maps} == set(GRIDS)


def test_every_room_can_be_reached_and_there_are_rings(maps: list[RoomMap]) -> None:
    for rooms in maps:
        everywhere = set(range(rooms.columns * rooms.rows))
        assert len(rooms.rooms) == len(everywhere)
        assert reachable(rooms, 0) == everywhere
        in_rings = [
            passage.rooms
            for passage in rooms.passages
            if passage.rooms[1] in reachable(rooms, passage.rooms[0], without=passage.rooms)
        ]
        assert len(in_rings) >= 4


def test_no_two_areas_overlap_and_passages_touch_their_rooms(maps: list[RoomMap]) -> None:
    for rooms in maps:
        areas = [*rooms.rooms, *(passage.area for passage in rooms.passages)]
        assert not any(overlap(one, other) for one, other in combinations(areas, 2))
        for passage in rooms.passages:
            first, second = (rooms.rooms[number] for number in passage.rooms)
            area = passage.area
            if passage.runs_east:
                assert (first.east, second.west) == (area.west, area.east)
                spans = [(room.south, room.north) for room in (first, second)]
                inside = (area.south, area.north)
            else:
                assert (first.north, second.south) == (area.south, area.north)
                spans = [(room.west, room.east) for room in (first, second)]
                inside = (area.west, area.east)
            for least, greatest in spans:
                assert least + CORNER <= inside[0] < inside[1] <= greatest - CORNER
            assert area.ceiling < min(first.ceiling, second.ceiling)


def test_what_stands_in_a_room_is_in_nobodys_way(maps: list[RoomMap]) -> None:
    assert sum(len(rooms.decorations) for rooms in maps) > 4 * len(maps)
    for rooms in maps:
        home = rooms.find_room(rooms.start.x, rooms.start.y)
        for thing in rooms.decorations:
            number = rooms.find_room(thing.x, thing.y)
            room = rooms.rooms[number]
            assert room.west + WALL_DISTANCE <= thing.x <= room.east - WALL_DISTANCE
            assert room.south + WALL_DISTANCE <= thing.y <= room.north - WALL_DISTANCE
            points = [rooms.threshold(number, other) for other in rooms.neighbours(number)]
            points += [(rooms.start.x, rooms.start.y)] if number == home else []
            for way in combinations(points, 2):
                assert distance_to_way((thing.x, thing.y), way) >= CLEARANCE


def test_rooms_of_a_map_share_no_texture(maps: list[RoomMap]) -> None:
    for rooms in maps:
        surfaces = [{*room.walls, *room.panels} - {""} for room in rooms.rooms]
        assert not any(one & other for one, other in combinations(surfaces, 2))
        flats = [flat for room in rooms.rooms for flat in (room.floor_flat, room.ceiling_flat)]
        assert len(flats) == len(set(flats))


def test_thresholds_lie_in_front_of_each_other(maps: list[RoomMap]) -> None:
    rooms = maps[0]
    for passage in rooms.passages:
        here, there = passage.rooms
        points = rooms.threshold(here, there), rooms.threshold(there, here)
        axis = 1 if passage.runs_east else 0
        assert points[0][axis] == points[1][axis], "straight through the passage"
        for number, (x, y) in zip(passage.rooms, points, strict=True):
            room = rooms.rooms[number]
            assert room.west < x < room.east and room.south < y < room.north
            assert rooms.find_room(x, y) == number


def test_distance_to_a_way_is_that_of_its_nearest_point() -> None:
    assert distance_to_way((5, 3), ((0, 0), (10, 0))) == 3
    assert distance_to_way((13, 4), ((0, 0), (10, 0))) == 5
    assert distance_to_way((3, 4), ((0, 0), (0, 0))) == 5


def test_every_corner_has_two_walls_and_every_sector_is_closed(maps: list[RoomMap]) -> None:
    """Around each sector the lines are a ring: as often as one begins at a point, one ends there."""
    for rooms in maps:
        text = write_udmf(rooms)
        sides = [int(number) for number in re.findall(r"sidedef\{sector=(\d+);", text)]
        ends: dict[tuple[int, str], int] = {}
        for first, second, rest in re.findall(r"linedef\{v1=(\d+);v2=(\d+);(.*?)\}", text):
            front = sides[int(re.findall(r"sidefront=(\d+)", rest)[0])]
            rims = [(front, first, second)]
            if back := re.findall(r"sideback=(\d+)", rest):
                rims.append((sides[int(back[0])], second, first))
            for sector, begin, end in rims:
                ends[sector, begin] = ends.get((sector, begin), 0) + 1
                ends[sector, end] = ends.get((sector, end), 0) - 1
        assert not any(ends.values())
        assert {sector for sector, _ in ends} == set(range(len(rooms.rooms) + len(rooms.passages)))
        assert len(text) < MAP_BYTES / 2


def test_wad_is_read_as_it_was_written(tmp_path: Path) -> None:
    lumps = [("MAP01", b""), ("TEXTMAP", b"namespace"), ("ENDMAP", b"")]
    path = tmp_path / "a.wad"
    path.write_bytes(encode_wad(lumps))
    assert path.read_bytes()[:12] == b"PWAD" + struct.pack("<ii", 3, 12 + len("namespace"))
    assert read_wad(path) == lumps


@pytest.mark.parametrize("content", [b"", b"PK\3\4 something else", b"PWAD\5\0\0\0\xff\0\0\0"])
def test_what_is_no_wad_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.wad"
    path.write_bytes(content)
    with pytest.raises(WorldError, match="other.wad is no WAD"):
        read_wad(path)


def test_patch_has_pixels_and_holes() -> None:
    posts = bytes([1, 2, 0, 7, 8, 0, 255]), bytes([255])  # two pixels from row 1 on; nothing
    offsets = 8 + 8, 8 + 8 + len(posts[0])
    data = struct.pack("<hhhhii", 2, 4, 0, 0, *offsets) + posts[0] + posts[1]
    patch = draw_patch(data)
    assert patch.tolist() == [[HOLE, HOLE], [7, HOLE], [8, HOLE], [HOLE, HOLE]]
    pixels = np.full((3, 3), 5, dtype=np.int16)
    paste(pixels, patch, left=2, top=-1)
    assert pixels.tolist() == [[5, 5, 7], [5, 5, 8], [5, 5, 5]]


def test_textures_with_holes_and_those_that_show_nothing_are_left_out() -> None:
    palette = np.array([[0, 0, 0], [100, 100, 100], [200, 100, 0], [255, 255, 255]], dtype=np.uint8)
    checks = np.indices((4, 4)).sum(axis=0) % 2
    kinds = {"FINE": 1 - checks, "DARK": checks * 0, "PLAIN": checks * 0 + 1, "WHITE": checks + 2}
    kinds["HOLES"] = np.where(checks == 1, HOLE, 1)
    kinds["BROWN"] = 1 + checks
    found = mean_colours([(name, pixels.astype(np.int16)) for name, pixels in kinds.items()], palette)
    assert found == {"FINE": (50.0, 50.0, 50.0), "WHITE": (227.5, 177.5, 127.5)}


def test_freedoom_has_many_textures_that_stand_still() -> None:
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    textures = read_textures(iwad_path())
    assert len(textures.walls) > 400 and len(textures.flats) > 120
    moving = ("FIRE", "BFALL", "SKY", "SW1", "NUKAGE", "F_SKY", "LAVA", "AASTINKY")
    assert not [name for name in [*textures.walls, *textures.flats] if name.startswith(moving)]


def test_a_seed_is_the_same_map_whatever_was_played_before(game: DoomGame) -> None:
    turn = np.array([0, 0, 1])
    first = [game.reset(5), *(game.step(turn) for _ in range(20))]
    for seed in (6, 4_000_000_000, 2**32 - 1):
        other = game.reset(seed)
        assert (other.frame != first[0].frame).mean() > 0.3
    with open_game("doom-fresh-rooms") as fresh:
        again = [fresh.reset(5), *(fresh.step(turn) for _ in range(20))]
    assert all((one.frame == two.frame).all() for one, two in zip(first, again, strict=True))
    assert [one.pose for one in first] == [two.pose for two in again]


def test_player_starts_where_the_map_says_and_nothing_moves(game: DoomGame) -> None:
    for seed in range(8):
        seen = game.reset(seed)
        assert game.rooms is not None
        start = game.rooms.start
        assert seen.pose[:2] == (start.x, start.y)
        assert seen.pose[2] == pytest.approx(start.angle_degrees, abs=3), "the engine rounds it"
        later = [game.step(game.entry.actions.noop()) for _ in range(12)][-1]
        assert (later.frame == seen.frame).all()
        assert later.reward == 0 and not later.terminated
        assert seen.frame.std() > 8 and seen.frame.mean() > 15


def test_walls_stop_the_player(game: DoomGame) -> None:
    for seed in range(3):
        game.reset(seed)
        assert game.rooms is not None
        poses = [game.step(np.array([1, 1, 0])).pose for _ in range(250)]
        areas = [*game.rooms.rooms, *(passage.area for passage in game.rooms.passages)]
        assert all(any(area.contains(x, y) for area in areas) for x, y, _ in poses)
        assert np.hypot(poses[-1][0] - poses[0][0], poses[-1][1] - poses[0][1]) > 30


def test_other_games_have_no_map() -> None:
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    with open_game("doom-rooms") as game:
        game.reset(0)
        assert game.rooms is None

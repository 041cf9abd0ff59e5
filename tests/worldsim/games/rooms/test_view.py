"""Views from a pose, by geometry, and by the engine's own depth."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from worldsim.games.doom import HEIGHT, WIDTH, DoomGame
from worldsim.games.registry import open_game
from worldsim.games.rooms.generate import generate_rooms
from worldsim.games.rooms.map import Area, Passage, RoomMap, Thing
from worldsim.games.rooms.view import BLOCK, EYE, find_seen, look


def area(west: int, south: int, east: int, north: int, ceiling: int) -> Area:
    return Area(
        west=west,
        south=south,
        east=east,
        north=north,
        ceiling=ceiling,
        light=200,
        floor_flat="F",
        ceiling_flat="C",
        walls=("W", "W", "W", "W"),
    )


# Two rooms of 300 x 300, 48 apart, with a passage of 100 in the middle of the walls that face each other.
ROOMS = RoomMap(
    columns=2,
    rows=1,
    rooms=(area(100, 100, 400, 400, 160), area(448, 100, 748, 400, 160)),
    passages=(Passage(rooms=(0, 1), runs_east=True, area=area(400, 200, 448, 300, 80)),),
    decorations=(),
    start=Thing(1, 250, 250),
)
WEST, EAST, NORTH = 180.0, 0.0, 90.0


def seen(context: list[tuple[float, float, float]], pose: tuple[float, float, float]) -> np.ndarray:
    return find_seen(ROOMS, np.array(context), np.array([pose]))[0]


def test_points_lie_on_the_walls_and_floors_ahead() -> None:
    points = look(ROOMS, np.array([250.0, 250.0, WEST])).find_points()
    assert points.shape == (HEIGHT // BLOCK, WIDTH // BLOCK, 3)
    middle = points[HEIGHT // BLOCK // 2, WIDTH // BLOCK // 2]
    assert middle[0] == pytest.approx(100) and abs(middle[1] - 250) < 6 and abs(middle[2] - EYE) < 6
    assert points[-1, :, 2] == pytest.approx(0), "the floor is below"
    far = look(ROOMS, np.array([390.0, 150.0, WEST])).find_points()
    assert far[0, WIDTH // BLOCK // 2 :, 2] == pytest.approx(160) and far[..., 2].max() <= 160.01, (
        "the ceiling is above"
    )
    assert points[:, 0, 1].max() < 250 < points[:, -1, 1].min(), "the south is on the left"
    inside = (points[..., 0] >= 99.9) & (points[..., 0] <= 400.1)
    assert inside.all()


def test_through_a_passage_one_sees_the_next_room_below_its_lintel() -> None:
    points = look(ROOMS, np.array([250.0, 250.0, EAST])).find_points()
    column = points[:, WIDTH // BLOCK // 2]
    assert column[HEIGHT // BLOCK // 2, 0] == pytest.approx(748), "the far wall"
    lintel = column[np.abs(column[:, 0] - 400) < 0.1]
    assert len(lintel) > 3 and (lintel[:, 2] >= 79.9).all()
    beyond = column[column[:, 0] > 449]
    # Nobody sees higher there than past the lower edge of the lintel, 150 ahead.
    assert (beyond[:, 2] <= EYE + (80 - EYE) / 150 * (beyond[:, 0] - 250) + 1).all()


@pytest.mark.parametrize("pose", [(250, 250, EAST), (120, 380, 300), (430, 250, 17), (740, 110, 133)])
def test_what_is_seen_now_has_been_seen_from_here(pose: tuple[float, float, float]) -> None:
    assert seen([pose], pose).all()


def test_what_was_behind_was_not_seen() -> None:
    assert not seen([(250, 250, WEST)], (250, 250, EAST)).any()
    around = [(250.0, 250.0, angle) for angle in (90.0, 180.0, 270.0, 0.0)]
    known = seen(around, (250, 250, 45))
    # At the edge of a picture, floor and ceiling are cut off farther away than in its middle.
    assert known[HEIGHT // 2].all() and not known[0].all() and known.mean() > 0.8


def test_after_turning_left_the_right_half_is_known() -> None:
    known = seen([(250, 250, WEST)], (250, 250, WEST + 45))
    assert known[:, WIDTH // 2 + 8 :].mean() > 0.95
    assert not known[:, : WIDTH // 2 - 8].any()


def test_walls_hide_the_next_room() -> None:
    known = seen([(250, 380, EAST)], (598, 380, NORTH))
    assert not known.any(), "its north wall is not seen through the passage"
    ahead = find_seen(ROOMS, np.array([[250, 250, EAST]]), np.array([[598.0, 250.0, EAST]]))[0]
    assert 0.1 < ahead.mean() < 0.9, "some of the far wall is"
    assert ahead[HEIGHT // 2, WIDTH // 2]
    assert not ahead[HEIGHT // 2, :8].any() and not ahead[HEIGHT // 2, -8:].any()


def test_every_view_is_judged_on_its_own() -> None:
    poses = np.array([(250, 250, EAST), (250, 250, WEST)])
    masks = find_seen(ROOMS, poses[:1], poses)
    assert masks.shape == (2, HEIGHT, WIDTH) and masks.dtype == bool
    assert masks[0].all() and not masks[1].any()
    assert not find_seen(ROOMS, poses[:0], poses).any(), "nothing was seen before"


def test_a_pose_in_a_wall_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the pose \[420.0, 150.0\] is not inside the map"):
        look(ROOMS, np.array([420.0, 150.0, 0.0]))


def test_distances_are_those_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    generate, configure = generate_rooms, DoomGame._configure

    def with_depth(game: DoomGame, vizdoom: ModuleType) -> None:
        configure(game, vizdoom)
        game._game.set_depth_buffer_enabled(True)

    # Things are looked through, so there may be none.
    monkeypatch.setattr(
        "worldsim.games.doom.generate_rooms", lambda *args: replace(generate(*args), decorations=())
    )
    monkeypatch.setattr(DoomGame, "_configure", with_depth)
    with open_game("doom-fresh-rooms") as game:
        for seed in range(6):
            pose = np.array(game.reset(seed).pose)
            assert game.rooms is not None
            view = look(game.rooms, pose)
            distance = (view.find_points()[..., :2] - view.eye) @ view.ahead
            depth = game._game.get_state().depth_buffer[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
            # The engine counts in steps of about 7.4 units, and floors up to two less than walls.
            error = np.abs(distance / 7.4 - depth)
            assert np.mean(error <= 2 + 0.05 * depth) > 0.97

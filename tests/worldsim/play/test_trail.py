"""The map of the way: drawn from poses that states hold, to and fro in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import TINY_ACTIONS, tiny_world
from tests.window import advance, open_viewer, press, release, tap
from worldsim.envs.single import ARL2WorldEnv
from worldsim.model.memory.pose import kept_poses
from worldsim.play.session import PlaySession
from worldsim.play.trail import LINES, MAX_POINTS, OLD, PAPER, PLAYER, SIZE, Trail, draw_map

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return rows and columns `[N, 2]` of the pixels of a colour."""
    return np.argwhere((picture == colour).all(axis=-1))


def straight(*places: tuple[float, float], heading: float = 0.0) -> np.ndarray:
    return np.array([(*place, heading) for place in places])


def test_x_is_to_the_right_and_y_up_and_the_player_looks_along_the_heading() -> None:
    east = draw_map(straight((0, 0), (100, 0), (200, 0)))
    (row, first), (_, last) = pixels(east, OLD)[0], pixels(east, PLAYER).min(axis=0)
    assert abs(row - SIZE / 2) <= 1 and first < SIZE / 2 < last
    opened = pixels(east, PLAYER)
    assert opened[:, 1].max() > last + 5, "the player looks to the right"
    assert np.ptp(opened[:, 0]) > 10, "within a quarter turn"
    north = draw_map(straight((0, 0), (0, 200), heading=90.0))
    assert pixels(north, OLD)[:, 0].mean() > SIZE / 2 > pixels(north, PLAYER)[:, 0].mean()
    assert (pixels(draw_map(straight((0, 0))), PLAYER)).size, "one point is a map"


def test_a_way_that_leaves_the_torus_goes_on() -> None:
    inside = straight((0, 0), (100, 0), (200, 0))
    around = straight((4000, 10), (-4092, 10), (-3992, 10))
    for colour in (OLD, PLAYER):
        there, here = (pixels(draw_map(way), colour) for way in (inside, around))
        assert np.array_equal(there, here) and len(there)


def test_lines_are_never_crowded() -> None:
    for length in (10.0, 1_000.0, 8_000.0, 100_000.0):
        places = [(x, 0.0) for x in np.arange(0, length, 500)] or [(0.0, 0.0)]
        row = draw_map(straight(*places))[3]
        lines = np.flatnonzero((row == LINES).all(axis=-1))
        assert len(lines) < SIZE and (row == PAPER).all(axis=-1).any()
        if (row[0] == PAPER).all():  # not a line itself
            assert 1 <= len(lines) <= SIZE / 11


def test_the_trail_is_that_of_the_states_and_goes_back_with_them() -> None:
    session = PlaySession(ARL2WorldEnv(tiny_world(has_odometry=True)), rewind_bytes=2**26)
    session.reset(0)
    states = [session.env.get_state()]
    for _ in range(6):
        session.begin(TINY_ACTIONS.noop())
        session.finish()
        states.append(session.env.get_state())
    poses = [tuple(kept_poses(state.memory.phase)[0].tolist()) for state in states]
    assert session.trail._poses == poses
    picture = session.trail.picture()
    assert picture is not None and session.trail.picture() is picture
    session.zero_memory()
    assert session.trail._poses == poses, "the way stays when what was seen on it is forgotten"
    session.go_to(states[3])
    assert session.trail._poses == poses[:4]
    assert session.trail.picture() is not picture
    session.go_to(states[5])
    assert session.trail._poses == poses[5:6], "how it came here is not known"
    session.reset(1)
    assert len(session.trail._poses) == 1


def test_a_trail_is_bounded_and_other_worlds_have_none() -> None:
    env = ARL2WorldEnv(tiny_world(has_odometry=True))
    env.reset(seed=0)
    state, trail = env.get_state(), Trail()
    trail.go_to(state)
    for _ in range(MAX_POINTS + 5):
        trail.add(state)
    assert len(trail._poses) == MAX_POINTS and trail._first == 6
    plain = PlaySession(ARL2WorldEnv(tiny_world()))
    plain.reset(0)
    plain.begin(TINY_ACTIONS.noop())
    plain.finish()
    assert plain.trail.picture() is None


def test_the_map_lies_in_the_other_corner_while_layers_are_shown(tmp_path: Path) -> None:
    viewer = open_viewer(tmp_path, tiny_world(has_odometry=True))
    try:
        advance(viewer, 3)
        tap("space")
        viewer.advance()
        tap("i")
        viewer.advance()
        after = viewer.window.screenshot()
        picture = viewer.game.inspector.map()
        assert picture is not None
        place = viewer.window._place
        width = viewer.window._picture.get_width()
        shown = after[place[1] : place[1] + SIZE, place[0] + width - SIZE : place[0] + width]
        assert np.array_equal(shown, picture)
        press("backspace")
        for _ in range(2):
            viewer.advance()
        release("backspace")
        viewer.advance()
        assert len(viewer.session.trail._poses) < 4
        tap("i")
        viewer.advance()
        assert viewer.game.inspector.map() is None
    finally:
        viewer.window.close()

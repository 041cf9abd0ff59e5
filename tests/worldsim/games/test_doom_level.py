"""The level of Doom: where its games begin, what is shown, and what its buttons do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import policies
from worldsim.errors import WorldError
from worldsim.games.doom import BAR_COLOUR, BAR_HEIGHT, DoomEntry, DoomGame, iwad_path
from worldsim.games.doom_level import Level
from worldsim.games.entry import Observation
from worldsim.games.registry import GAMES
from worldsim.games.rooms.wad import read_things, read_wad

vizdoom = pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')

ENTRY = GAMES["doom-level"]
assert isinstance(ENTRY, DoomEntry) and isinstance(ENTRY.place, Level)
LEVEL = ENTRY.place
START = (-192, -192)
"""Where the map itself lets a player begin."""
SECRET, DOOR = (472, -1344), (664, -160)
FORWARD, ATTACK, USE = ([1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2])
NOTHING = [0, 0, 0, 0]


@pytest.fixture(scope="module")
def game() -> Iterator[DoomGame]:
    with ENTRY.open() as game:
        assert isinstance(game, DoomGame)
        yield game


def engine_of(game: DoomGame) -> Any:
    return game._game


def hold(game: DoomGame, action: list[int], frames: int) -> Observation:
    for _ in range(frames):
        seen = game.step(np.array(action))
    return seen


def put(game: DoomGame, x: int, y: int, angle: int = 0) -> Observation:
    """Begin a game in which nothing hurts, somewhere else."""
    engine = engine_of(game)
    game.reset(0)
    engine.send_game_command("god")
    engine.send_game_command("notarget")
    engine.send_game_command(f"warp {x} {y}")
    here = engine.get_game_variable(vizdoom.GameVariable.ANGLE)
    engine.make_action([0.0] * 8 + [float(here - angle)], 1)
    return hold(game, NOTHING, 4)


def test_most_episodes_begin_at_things_half_of_them_with_a_shotgun(game: DoomGame) -> None:
    places, angles, shotguns = [], [], 0
    for seed in range(60):
        x, y, angle = game.reset(seed).pose
        places.append((round(x), round(y)))
        angles.append(angle)
        shotguns += engine_of(game).get_game_variable(vizdoom.GameVariable.AMMO3) > 0
    assert places.count(START) == pytest.approx(12, abs=6)
    assert {place for place in places if place != START} <= set(LEVEL.find_places())
    assert len(set(places)) > 30 and len(set(np.round(angles))) > 45
    assert shotguns == pytest.approx(30, abs=10)


def test_a_player_can_walk_away_from_each_place(game: DoomGame) -> None:
    places = LEVEL.find_places()
    assert len(places) > 80 and not set(places) & set(LEVEL.shut)
    for x, y in places[::3]:
        moved = 0.0
        for angle in (0, 90, 180, 270):
            if moved < 40:
                begin = put(game, x, y, angle)
                assert np.allclose(begin.pose[:2], (x, y), atol=24), "it was not put there"
                end = hold(game, FORWARD, 10).pose
                moved = max(moved, np.hypot(end[0] - begin.pose[0], end[1] - begin.pose[1]))
        assert moved >= 40, (x, y)


def test_same_seed_gives_the_same_game(game: DoomGame) -> None:
    def play(seed: int) -> list[Observation]:
        player.reset(seed)
        shown = [game.reset(seed)]
        while len(shown) < 120 and not shown[-1].terminated:
            shown.append(game.step(player.act(shown[-1].frame)))
        return shown

    player = policies.make("scripted", num_values=ENTRY.actions.num_values, game=ENTRY)
    first, *_ = play(1), play(0)
    hold(game, FORWARD, 40)  # the weapon swings
    for one, two in zip(first, play(1), strict=True):
        assert np.array_equal(one.frame, two.frame) and one.pose == two.pose and one.reward == two.reward


def test_weapon_and_health_are_drawn_and_a_shot_is_seen(game: DoomGame) -> None:
    still = put(game, *START, angle=180).frame
    full = (still[-BAR_HEIGHT // 2] == BAR_COLOUR).all()
    assert full, "unhurt"
    shots = [hold(game, ATTACK, 1).frame for _ in range(12)]
    changed = [np.abs(frame[80:112, 60:100].astype(int) - still[80:112, 60:100]).mean() for frame in shots]
    assert max(changed) > 15, "nothing flashed where the weapon is"
    sides = [np.abs(frame[:40, :20].astype(int) - still[:40, :20]).mean() for frame in shots]
    assert max(sides) < 15


def test_a_secret_is_not_written_into_the_picture(game: DoomGame) -> None:
    frame = put(game, *SECRET).frame
    assert engine_of(game).get_game_variable(vizdoom.GameVariable.SECRETCOUNT) == 1
    assert ((frame[..., 0] > 200) & (frame[..., 2] < 90)).sum() == 0, "the colour of the message"


def test_use_opens_a_door(game: DoomGame) -> None:
    walked = []
    for action in (NOTHING, USE):
        begin = put(game, *DOOR).pose[0]
        hold(game, action, 1)
        hold(game, NOTHING, 25)
        walked.append(hold(game, FORWARD, 14).pose[0] - begin)
    assert walked[0] < 30 and walked[1] > 100


def test_death_ends_the_game_under_an_empty_bar(game: DoomGame) -> None:
    game.reset(0)
    engine_of(game).send_game_command("kill")
    seen = game.step(np.array(NOTHING))
    while not seen.terminated:
        before, seen = seen, game.step(np.array(NOTHING))
        assert (seen.frame[:-BAR_HEIGHT] == before.frame[:-BAR_HEIGHT]).all() or not seen.terminated
    assert seen.reward <= -1 and (seen.frame[-BAR_HEIGHT:] == 0).all()


def test_things_of_a_map_that_is_not_there_are_refused() -> None:
    lumps = read_wad(iwad_path())
    assert len(read_things(lumps, "MAP01")) == 200
    with pytest.raises(WorldError, match="there is no map MAP99"):
        read_things(lumps, "MAP99")

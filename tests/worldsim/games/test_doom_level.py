"""The level of Doom: where its games begin, what is shown, and what its buttons do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import policies
from worldsim.errors import WorldError
from worldsim.games.doom import DoomEntry, DoomGame, iwad_path
from worldsim.games.doom_level import Level
from worldsim.games.entry import Observation
from worldsim.games.registry import GAMES
from worldsim.games.rooms.wad import read_things, read_wad
from worldsim.games.status import BAR_HEIGHT, read_health, read_kills, read_rounds

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
    with ENTRY.open(labelled=True) as game:
        assert isinstance(game, DoomGame)
        yield game


def engine_of(game: DoomGame) -> Any:
    return game._game


def labels_of(seen: Observation) -> dict[str, float]:
    return dict(zip(ENTRY.labels, seen.labels, strict=True))


def hold(game: DoomGame, action: list[int], frames: int) -> Observation:
    for _ in range(frames):
        seen = game.step(np.array(action))
    return seen


def put(game: DoomGame, x: int, y: int, angle: int = 0) -> Observation:
    """Begin a game in which nothing hurts, somewhere else."""
    engine = engine_of(game)
    game.reset(0, "calm")
    engine.send_game_command("god")
    engine.send_game_command("notarget")
    engine.send_game_command(f"warp {x} {y}")
    here = engine.get_game_variable(vizdoom.GameVariable.ANGLE)
    engine.make_action([0.0] * 8 + [float(here - angle)], 1)
    return hold(game, NOTHING, 4)


def test_episodes_begin_all_over_the_map_armed_and_hurt_in_many_ways(game: DoomGame) -> None:
    places, angles, told = [], [], []
    for seed in range(40):
        seen = game.reset(seed)
        places.append(seen.pose[:2])
        angles.append(seen.pose[2])
        told.append(labels_of(seen))
    assert sum(np.allclose(place, START, atol=1) for place in places) == pytest.approx(4, abs=4)
    assert len({tuple(np.round(place, -1)) for place in places}) > 28
    assert len(set(np.round(angles))) > 30
    weapons = Counter(labels["weapon"] for labels in told)
    assert min(weapons[number] for number in (2, 3, 4)) > 4 and sum(weapons.values()) == 40
    assert len({labels["rounds"] for labels in told}) > 18
    assert 10 < sum(labels["health"] < 100 for labels in told) < 32
    assert min(labels["health"] for labels in told) < 40
    assert all(
        labels["kills"] == labels["hits"] == labels["hurt"] == labels["pick_ups"] == 0 for labels in told
    )


@pytest.mark.parametrize("start", ["door", "monster", "calm", "calm-door"])
def test_an_episode_begins_where_it_is_asked_to(game: DoomGame, start: str) -> None:
    told = [labels_of(game.reset(seed, start)) for seed in range(12)]
    if start.endswith("door"):
        assert all(30 < one["door_distance"] < 130 and abs(one["door_bearing"]) < 60 for one in told)
    elif start == "monster":
        assert sum(one["monsters"] > 0 for one in told) > 8
    if start.startswith("calm"):
        hurt = []
        for seed in range(3):
            game.reset(seed, start)
            hurt.append(labels_of(hold(game, NOTHING, 60))["hurt"])
        assert not any(hurt), "a monster took notice"


def test_other_starts_are_refused(game: DoomGame) -> None:
    with pytest.raises(
        WorldError, match="doom-level has no start 'nowhere'; known are map, thing, door, mon"
    ):
        game.reset(0, "nowhere")


def test_a_player_can_walk_away_from_each_place(game: DoomGame) -> None:
    places = LEVEL.find_places()
    assert len(places) > 80 and not set(places) & set(LEVEL.shut)
    for x, y in places[::3]:
        moved = 0.0
        for angle in range(0, 360, 45):
            if moved < 40:
                begin = put(game, x, y, angle)
                assert np.allclose(begin.pose[:2], (x, y), atol=24), "it was not put there"
                end = hold(game, FORWARD, 20).pose
                moved = max(moved, np.hypot(end[0] - begin.pose[0], end[1] - begin.pose[1]))
        assert moved >= 40, (x, y)


def test_same_seed_gives_the_same_game_and_labels_change_no_picture(game: DoomGame) -> None:
    def play(game: DoomGame, seed: int) -> list[Observation]:
        player.reset(seed)
        shown = [game.reset(seed, "monster")]
        while len(shown) < 90 and not shown[-1].terminated:
            shown.append(game.step(player.act(shown[-1].frame)))
        return shown

    player = policies.make("scripted", num_values=ENTRY.actions.num_values, game=ENTRY)
    first, *_ = play(game, 1), play(game, 0)
    hold(game, FORWARD, 40)  # the weapon swings
    again = play(game, 1)
    with ENTRY.open() as another:
        unlabelled = play(another, 1)
    assert len(first) == len(again) == len(unlabelled)
    for one, two, three in zip(first, again, unlabelled, strict=True):
        assert np.array_equal(one.frame, two.frame) and np.array_equal(one.frame, three.frame)
        assert one.pose == two.pose == three.pose and one.reward == two.reward == three.reward
        assert one.labels == two.labels and len(one.labels) == len(ENTRY.labels) and three.labels == ()


def test_weapon_and_status_are_drawn_and_a_shot_is_seen_and_told(game: DoomGame) -> None:
    before = put(game, *START, angle=180)
    still, told = before.frame, labels_of(before)
    assert read_health(still) == pytest.approx(told["health"], abs=0.7)
    assert (read_rounds(still), read_kills(still)) == (told["rounds"], 0)
    seen = [hold(game, ATTACK, 1) for _ in range(12)]
    shots = [one.frame for one in seen]
    changed = [np.abs(frame[80:112, 60:100].astype(int) - still[80:112, 60:100]).mean() for frame in shots]
    assert max(changed) > 15, "nothing flashed where the weapon is"
    sides = [np.abs(frame[:40, :20].astype(int) - still[:40, :20]).mean() for frame in shots]
    assert max(sides) < 15
    assert labels_of(seen[-1])["rounds"] < told["rounds"]
    assert read_rounds(shots[-1]) == labels_of(seen[-1])["rounds"]


def test_a_secret_is_not_written_into_the_picture(game: DoomGame) -> None:
    frame = put(game, *SECRET).frame[:-BAR_HEIGHT]
    assert engine_of(game).get_game_variable(vizdoom.GameVariable.SECRETCOUNT) == 1
    assert ((frame[..., 0] > 200) & (frame[..., 2] < 90)).sum() == 0, "the colour of the message"


def test_use_opens_a_door_and_its_state_is_told(game: DoomGame) -> None:
    walked, opened = [], []
    for action in (NOTHING, USE):
        begin = put(game, *DOOR)
        assert labels_of(begin)["door_distance"] == pytest.approx(48, abs=4)
        assert abs(labels_of(begin)["door_bearing"]) < 6 and labels_of(begin)["door_open"] == 0
        hold(game, action, 1)
        opened.append(labels_of(hold(game, NOTHING, 25))["door_open"])
        walked.append(hold(game, FORWARD, 14).pose[0] - begin.pose[0])
    assert walked[0] < 30 and walked[1] > 100
    assert opened == [0, 1]


def test_use_shuts_an_open_door(game: DoomGame) -> None:
    open_after = []
    for action in (NOTHING, USE):
        put(game, *DOOR)
        hold(game, USE, 1)
        hold(game, NOTHING, 25)
        hold(game, action, 1)
        open_after.append(labels_of(hold(game, NOTHING, 20))["door_open"])
    assert open_after == [1, 0]


def test_death_ends_the_game_under_an_empty_bar(game: DoomGame) -> None:
    game.reset(0)
    engine_of(game).send_game_command("kill")
    seen = game.step(np.array(NOTHING))
    while not seen.terminated:
        before, seen = seen, game.step(np.array(NOTHING))
        assert (seen.frame[:-BAR_HEIGHT] == before.frame[:-BAR_HEIGHT]).all() or not seen.terminated
    assert seen.reward <= -1 and read_health(seen.frame) == 0 and labels_of(seen)["health"] == 0


def test_things_of_a_map_that_is_not_there_are_refused() -> None:
    lumps = read_wad(iwad_path())
    assert len(read_things(lumps, "MAP01")) == 200
    with pytest.raises(WorldError, match="there is no map MAP99"):
        read_things(lumps, "MAP99")


@pytest.mark.parametrize(
    ("name", "seed", "did"),
    [
        ("fight", 3, lambda told, poses: told[-1]["kills"] >= 1 and told[-1]["hits"] >= 2),
        ("open-doors", 0, lambda told, poses: count_openings(told) >= 3),
        ("charge", 0, lambda told, poses: told[-1]["hurt"] > 20 and told[-1]["hits"] == 0),
        ("push", 4, lambda told, poses: longest_rest(poses) >= 30),
        ("turn-round", 0, lambda told, poses: len(set(np.round(poses[:90, 2], -1))) > 30),
        ("idle", 2, lambda told, poses: longest_rest(poses) >= 20),
    ],
)
def test_players_that_are_told_labels_do_what_they_are_for(
    game: DoomGame, name: str, seed: int, did: Callable[[list[dict[str, float]], np.ndarray], bool]
) -> None:
    player = policies.SCRIPTED[name](ENTRY.actions.num_values)
    assert isinstance(player, policies.Insider) and isinstance(player, policies.Navigator)
    player.reset(seed)
    shown = [game.reset(seed, player.start)]
    while len(shown) < 250 and not shown[-1].terminated:
        player.locate(shown[-1].pose)
        player.inform(labels_of(shown[-1]))
        shown.append(game.step(player.act(shown[-1].frame)))
    assert did([labels_of(one) for one in shown], np.array([one.pose for one in shown]))


def count_openings(told: list[dict[str, float]]) -> int:
    """Return how often a shut door nearby began to open."""
    return sum(
        before["door_open"] == 0 < after["door_open"] and after["door_distance"] < 90
        for before, after in itertools.pairwise(told)
    )


def longest_rest(poses: np.ndarray) -> int:
    """Return the most frames in a row in which the place hardly changes."""
    moved = np.hypot(*np.diff(poses[:, :2], axis=0).T) > 1
    return max((len(list(run)) for still, run in itertools.groupby(moved) if not still), default=0)

"""The player that makes excursions without a map: it comes back to the pose where each began."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

import policies
from policies.scripted.excursions import BACK, ExcursionPolicy, without_detours
from policies.scripted.guided import difference
from tests.tours import Tour, find_tours
from worldsim.games.registry import GAMES, open_game

NUM_VALUES = (3, 3, 3)
PICTURE = np.zeros((120, 160, 3), dtype=np.uint8)


def play(kind: str, game: str, seed: int, frames: int) -> tuple[np.ndarray, np.ndarray, list[Tour]]:
    """Return poses `[T + 1, 3]`, what is pressed, `[T, 3]`, and the excursions of a game."""
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    recorded = replace(GAMES[game], players=GAMES[game].recorded_players)  # who plays where it is recorded
    player = policies.make(kind, num_values=NUM_VALUES, game=recorded)
    assert isinstance(player, policies.Navigator)
    poses, pressed, names = [], [], []
    with open_game(game) as running:
        player.reset(seed)
        seen = running.reset(seed)
        for _ in range(frames):
            player.locate(seen.pose)
            poses.append(seen.pose)
            pressed.append(player.act(seen.frame))
            names.append(player.activity)
            seen = running.step(pressed[-1])
            if seen.terminated:
                break
    return np.array([*poses, seen.pose]), np.array(pressed), find_tours(names)


def off(poses: np.ndarray, tour: Tour) -> tuple[float, float]:
    """Return by how many units and degrees an excursion ends beside where it began."""
    first, last = poses[tour.begin], poses[tour.end]
    return float(np.hypot(*(last[:2] - first[:2]))), abs(difference(last[2], first[2]))


def test_looking_around_turns_by_quarters_halves_and_all_around_at_several_speeds() -> None:
    widths: set[int] = set()
    speeds: set[int] = set()
    for seed in range(3, 6):
        poses, pressed, tours = play("look-around", "doom-rooms", seed, 700)
        assert tours and {tour.kind for tour in tours} == {"look-around"}
        for tour in tours:
            assert not pressed[tour.begin : tour.end, :2].any(), "it walked"
            distance, angle = off(poses, tour)
            assert distance < 16 and angle < 2
            headings = np.rad2deg(np.unwrap(np.deg2rad(poses[tour.begin : tour.end + 1, 2])))
            widths.add(round(float(np.ptp(headings)) / 90))
            held = max(len(list(run)) for key, run in groupby(pressed[tour.begin : tour.end, 2]) if key)
            speeds.add(min(held, 4))
    assert widths == {1, 2, 4} and len(speeds) >= 2
    assert pressed[:, 0].any(), "between two excursions it walks on"


@pytest.mark.parametrize("game", ["doom-rooms", "doom-fresh-rooms"])
def test_retracing_leads_back_along_its_trail(game: str) -> None:
    poses, pressed, tours = play("retrace", game, 0, 700)
    assert len(tours) >= 2 and all(tour.back < tour.end for tour in tours)
    for tour in tours:
        distance, angle = off(poses, tour)
        assert distance < 24 and angle < 2
        back = poses[tour.back : tour.end + 1, :2]
        trail = poses[tour.begin : tour.back + 1, :2]
        beside = np.hypot(*(back[:, None] - trail[None]).T).min(axis=0)
        assert beside.max() < 72, "it left its trail, where nothing stands in its way"
    longest = max(np.hypot(*(poses[t.begin : t.end, :2] - poses[t.begin, :2]).T).max() for t in tours)
    assert longest > 256


def test_detours_are_cut() -> None:
    square = [(0.0, 0.0), (50.0, 0.0), (100.0, 0.0), (100.0, 50.0), (50.0, 50.0), (52.0, 4.0), (50.0, -40.0)]
    assert without_detours(square) == [(0.0, 0.0), (50.0, 0.0), (52.0, 4.0), (50.0, -40.0)]
    assert without_detours(square[:3]) == square[:3]


def test_who_is_told_no_pose_and_other_axes_is_told_so() -> None:
    with pytest.raises(ValueError, match="goes by its pose is told none here"):
        policies.make("look-around", num_values=NUM_VALUES).act(PICTURE)
    with pytest.raises(ValueError, match=r"three axes .* got axes of \[2, 3\]"):
        policies.make("retrace", num_values=(2, 3))
    leader = policies.make("random", num_values=NUM_VALUES)
    with pytest.raises(ValueError, match="kinds of excursions are look-around, retrace, got .'spin'"):
        ExcursionPolicy(NUM_VALUES, leader, ["spin"])
    with pytest.raises(ValueError, match="out_frames"):
        ExcursionPolicy(NUM_VALUES, leader, out_frames=(9, 3))


def test_after_somebody_else_has_played_it_makes_another_excursion_from_there() -> None:
    leader = policies.make("random", num_values=NUM_VALUES)
    player = ExcursionPolicy(NUM_VALUES, leader, ["look-around"])
    player.locate((0.0, 0.0, 0.0))
    actions = [player.act(PICTURE) for _ in range(12)]
    assert not np.any(actions[:10]) and np.any(actions[10:]) and player.activity == "look-around"
    player.watch(PICTURE)
    assert player.activity == "" and not np.any([player.act(PICTURE) for _ in range(10)])
    assert BACK not in player.activity

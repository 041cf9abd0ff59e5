"""The player that knows its way: where its tours lead, and that they come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import policies
from policies.mixed import MixedPolicy
from policies.scripted.guided import difference
from policies.scripted.returning import REST_FRAMES
from policies.scripted.tours import TourPolicy, find_ring, find_way
from tests.tours import Tour, find_tours
from worldsim.evaluation.inputs.out_and_back import Tolerance, find_way_back
from worldsim.games.entry import Observation
from worldsim.games.registry import GAMES, open_game

PICTURE = np.zeros((120, 160, 3), dtype=np.uint8)
NUM_VALUES = (3, 3, 3)


@dataclass(frozen=True)
class Doors:
    """A floor plan of which only the graph is asked for."""

    doors: dict[int, tuple[int, ...]]

    def find_room(self, x: float, y: float) -> int:
        raise AssertionError("nobody stands here")

    def threshold(self, room: int, other: int) -> tuple[float, float]:
        raise AssertionError("nobody walks here")

    def neighbours(self, room: int) -> tuple[int, ...]:
        return self.doors[room]


SQUARE_AND_TAIL = Doors({0: (1, 3), 1: (0, 2), 2: (1, 3), 3: (0, 2, 4), 4: (3,)})


def test_ring_is_the_shortest_one_in_either_direction() -> None:
    rings = {tuple(find_ring(SQUARE_AND_TAIL, 0, np.random.default_rng(seed))) for seed in range(20)}
    assert rings == {(1, 2, 3), (3, 2, 1)}
    assert find_ring(SQUARE_AND_TAIL, 4, np.random.default_rng(0)) == []
    assert find_way(SQUARE_AND_TAIL, 0, 4, avoid=2) == [0, 3, 4]
    assert find_way(SQUARE_AND_TAIL, 0, 4, avoid=3) == []


@pytest.mark.parametrize(("heading", "other", "left"), [(10, 350, 20), (350, 10, -20), (90, 90, 0)])
def test_difference_of_headings_is_the_short_way(heading: float, other: float, left: float) -> None:
    assert difference(heading, other) == left


def play(
    kind: str, seed: int, frames: int, **options: Any
) -> tuple[list[Observation], np.ndarray, list[Tour]]:
    """Return what is seen, what is pressed, `[frames, 3]`, and the tours that were announced."""
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    player = policies.make(kind, num_values=NUM_VALUES, game=GAMES["doom-fresh-rooms"], **options)
    assert isinstance(player, policies.Navigator)
    seen, pressed, names = [], [], []
    with open_game("doom-fresh-rooms") as game:
        player.reset(seed)
        seen.append(game.reset(seed))
        assert game.rooms is not None
        player.enter(game.rooms)
        for _ in range(frames):
            player.locate(seen[-1].pose)
            pressed.append(player.act(PICTURE))
            names.append(player.activity)
            seen.append(game.step(pressed[-1]))
    return seen, np.array(pressed), find_tours(names)


def moved(one: Observation, other: Observation) -> tuple[float, float]:
    """Return the distance of two places, in map units, and of two headings, in degrees."""
    distance = np.hypot(one.pose[0] - other.pose[0], one.pose[1] - other.pose[1])
    return float(distance), abs(difference(one.pose[2], other.pose[2]))


def test_turning_around_shows_everything_and_ends_where_it_began() -> None:
    seen, pressed, tours = play("turn-around", 3, 1000)
    assert len(tours) >= 4 and {tour.kind for tour in tours} == {"turn-around"}
    for tour in tours:
        assert not pressed[tour.begin : tour.end, :2].any(), "it walked"
        distance, angle = moved(seen[tour.begin], seen[tour.end])
        assert distance < 1 and angle < 2
    headings = [np.array([one.pose[2] for one in seen[tour.begin : tour.back]]) for tour in tours]
    widths = [np.ptp(np.rad2deg(np.unwrap(np.deg2rad(heading)))) for heading in headings]
    assert max(widths) > 350 and min(widths) < 181, "of 360 degrees, and out and back"


def test_leaving_leads_through_a_door_and_back_by_the_same_keys() -> None:
    seen, pressed, tours = play("leave-and-return", 1, 600)
    tour = tours[0]
    out, back = pressed[tour.begin : tour.back - 10], pressed[tour.back : tour.end]
    assert (back[::-1] == np.array([0, 2, 1])[out]).all()
    assert moved(seen[tour.begin], seen[tour.back])[0] > 200
    distance, angle = moved(seen[tour.begin], seen[tour.end])
    assert distance < 12 and angle < 0.1
    # Who walks slides on, so it is not the same places in the same frames; but the same places.
    poses = np.array([one.pose for one in seen])
    there = poses[tour.begin : tour.back]
    is_seen = []
    for x, y, angle in poses[tour.back : tour.end]:
        near = np.hypot(there[:, 0] - x, there[:, 1] - y) < 24
        turned = np.abs((there[:, 2] - angle + 180) % 360 - 180)
        is_seen.append((near & (turned < 8)).any())
    assert np.mean(is_seen) > 0.9


@pytest.mark.parametrize("gap", [16, 50, 100])
def test_a_way_out_and_half_the_rest_is_a_gap_of_the_suite(gap: int) -> None:
    num_frames = 2 * gap + 61
    out_frames = (gap - REST_FRAMES // 2,) * 2
    for seed in range(2):
        seen, _, _ = play("leave-and-return", seed, num_frames - 1, out_frames=out_frames)
        poses = np.array([one.pose for one in seen])
        way = find_way_back(poses, gap, Tolerance(distance=32.0, angle_degrees=4.0))
        assert way is not None
        assert (way.seen >= 0).mean() > 0.85, "what the way back shows was seen"
        if gap > 16:  # who only turned a little, is back on the way to the next room as well
            assert abs(way.turn - gap - REST_FRAMES) <= 1


def test_a_loop_leads_through_four_rooms_and_ends_where_it_began() -> None:
    seen, pressed, tours = play("loop", 1, 400)
    tour = tours[0]
    cells = [(int(one.pose[0] // 448), int(one.pose[1] // 448)) for one in seen[tour.begin : tour.end]]
    order = [cell for index, cell in enumerate(cells) if index == 0 or cell != cells[index - 1]]
    assert len(order) >= 5 and order[0] == order[-1] and len(set(order)) == len(order) - 1
    distance, angle = moved(seen[tour.begin], seen[tour.end])
    assert distance < 24 and angle < 3
    assert tour.back == tour.end and not (pressed == 2).all(axis=1).any()
    assert not pressed[:, 1].any() and (pressed[:, 0] != 2).all(), "it walks ahead"


def test_tours_touch_no_wall() -> None:
    seen, pressed, _ = play("tours", 2, 800)
    held = np.convolve(pressed[:, 0] == 1, np.ones(8), "valid") == 8
    poses = np.array([one.pose[:2] for one in seen])
    steps = np.hypot(*np.diff(poses, axis=0).T)
    assert held.sum() > 20
    assert steps[7:][held].min() > 12, "something slows it down"


def test_without_a_map_it_says_so() -> None:
    player = TourPolicy(NUM_VALUES)
    with pytest.raises(ValueError, match="told no map"):
        player.act(PICTURE)
    with pytest.raises(ValueError, match="the game 'doom-rooms' tells none"):
        policies.make("loop", num_values=NUM_VALUES, game=GAMES["doom-rooms"])


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"three axes .* got axes of \[2, 3\]"):
        TourPolicy((2, 3))
    with pytest.raises(ValueError, match="kinds of tours are turn-around, .* got .'spin'"):
        TourPolicy(NUM_VALUES, ["spin"])
    with pytest.raises(ValueError, match="out_frames"):
        TourPolicy(NUM_VALUES, out_frames=(9, 3))


def test_among_mixed_players_only_who_navigates_is_told() -> None:
    tours, blind = TourPolicy(NUM_VALUES), policies.make("random", num_values=NUM_VALUES)
    for player in (tours, blind):
        mixed = MixedPolicy({"one": player}, {"one": 1.0})
        mixed.enter(SQUARE_AND_TAIL)
        mixed.locate((0.0, 0.0, 0.0))
        assert mixed.act(PICTURE).shape == (3,)
    assert mixed.activity == ""


def test_after_somebody_else_has_played_it_begins_anew_with_a_rest() -> None:
    player = TourPolicy(NUM_VALUES, ["turn-around"])
    player.enter(SQUARE_AND_TAIL)
    player.locate((0.0, 0.0, 0.0))
    actions = [player.act(PICTURE) for _ in range(12)]
    assert not np.any(actions[:10]) and np.any(actions[10:]) and player.activity == "turn-around"
    player.watch(PICTURE)
    assert player.activity == "" and not np.any([player.act(PICTURE) for _ in range(10)])


def test_tours_are_read_from_what_was_recorded() -> None:
    names = ["", "", "loop", "loop", "", "leave-and-return", "leave-and-return back", "", "turn-around"]
    assert find_tours(names) == [
        Tour("loop", 2, 4, 4),
        Tour("leave-and-return", 5, 6, 7),
    ], "the last one is not complete"
    assert find_tours([]) == find_tours(["", ""]) == []

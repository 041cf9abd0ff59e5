"""Players that show a world: what they tell of depth, and that they do not look at walls for long."""

from __future__ import annotations

import numpy as np
import pytest

import policies
from policies.scripted import wander
from policies.scripted.depth import FARTHEST, NEAREST, NUM_STRIPS, depth_estimator
from policies.scripted.wander import BACKWARD, FORWARD, LEFT, NEAR, RIGHT, WanderPolicy
from worldsim.starts import read_starts
from worldsim.world.world import SHIPPED, STARTS_FOLDER

WALL, ROOM = np.full(NUM_STRIPS, 40.0), np.full(NUM_STRIPS, 300.0)
PICTURE = np.zeros((120, 160, 3), np.uint8)


def act(player: WanderPolicy, depths: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Act with a picture in which these are the depths."""
    with monkeypatch.context() as patch:
        patch.setattr(wander, "depth_estimator", lambda: lambda frame: depths)
        return player.act(np.random.default_rng().integers(0, 255, PICTURE.shape, np.uint8)).tolist()


def test_start_moments_of_a_world_are_rooms_and_an_enlarged_wall_is_a_wall() -> None:
    """A wall that one stands before is a small part of it, enlarged; its bricks have no floor below them."""
    rooms, estimator = read_starts(SHIPPED / "doom-rooms" / STARTS_FOLDER), depth_estimator()
    far = [estimator(start.frames[-1].numpy()) for start in rooms]
    assert all(NEAREST <= depth <= FARTHEST for depths in far for depth in depths)
    assert np.median([depths.max() for depths in far]) > 2 * NEAR
    bricks = rooms[0].frames[-1].numpy()[40:55, 70:90].repeat(8, axis=0).repeat(8, axis=1)
    assert np.median(estimator(bricks)) < NEAR


def test_mirror_images_have_mirrored_depths() -> None:
    picture = read_starts(SHIPPED / "doom-rooms" / STARTS_FOLDER)[0].frames[-1].numpy()
    seen, mirrored = (np.log(depth_estimator()(frame)) for frame in (picture, picture[:, ::-1]))
    assert np.abs(seen - mirrored[::-1]).mean() < 0.5 * np.abs(seen - mirrored).mean()


def test_it_walks_where_the_way_is_free_and_turns_to_the_farthest(monkeypatch: pytest.MonkeyPatch) -> None:
    player = WanderPolicy((3, 3, 3))
    assert act(player, ROOM, monkeypatch) == [FORWARD, 0, 0]
    for strip, turn in ((2, LEFT), (17, RIGHT)):
        depths = ROOM.copy()
        depths[strip - 1 : strip + 2] = 500.0
        assert act(player, depths, monkeypatch) == [FORWARD, 0, turn]


def test_before_a_wall_it_turns_one_way_until_the_way_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    player = WanderPolicy((3, 3, 3))
    turns = [act(player, WALL, monkeypatch) for _ in range(20)]
    assert turns == [[BACKWARD, 0, turns[0][2]]] * 20
    assert turns[0][2] in (LEFT, RIGHT)
    assert act(player, np.full(NUM_STRIPS, 130.0), monkeypatch) == [0, 0, turns[0][2]]
    assert act(player, ROOM, monkeypatch) == [FORWARD, 0, 0]


def test_where_nothing_is_far_it_takes_the_best_after_a_full_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    player = WanderPolicy((3, 3, 3))
    actions = [act(player, WALL, monkeypatch) for _ in range(60)]
    assert [FORWARD, 0, 0] in actions[wander.FULL_TURN :]
    assert [FORWARD, 0, 0] not in actions[: wander.FULL_TURN]


def test_now_and_then_it_looks_for_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    player = WanderPolicy((3, 3, 3))
    turned = sum(act(player, ROOM, monkeypatch)[2] != 0 for _ in range(600))
    assert 20 < turned < 200


def test_the_same_seed_and_pictures_give_the_same_actions() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (30, *PICTURE.shape), np.uint8)
    one, other = policies.SCRIPTED["patrol"]((3,) * 4), policies.SCRIPTED["patrol"]((3,) * 4)
    for player in (one, other):
        player.reset(4)
    assert [one.act(each).tolist() for each in pictures] == [other.act(each).tolist() for each in pictures]


def test_it_hardly_faces_a_wall_in_the_real_game() -> None:
    """True depth tells; the explorer faces a wall in half of the frames, for up to 100 in a row."""
    pytest.importorskip("vizdoom")
    from training.depth.footage import DepthGame
    from training.depth.train import is_wall, longest_run
    from worldsim.games.registry import GAMES

    with DepthGame(GAMES["doom-rooms"]) as game:  # type: ignore[arg-type]
        for seed in (5003, 5004):
            seen, walls = game.reset(seed), []
            player = WanderPolicy((3, 3, 3))
            for _ in range(150):
                seen = game.step(player.act(seen.frame))
                if seen.terminated:
                    break
                walls.append(bool(is_wall(game.depths())))
            assert longest_run(walls) <= 20
            assert np.mean(walls) < 0.3

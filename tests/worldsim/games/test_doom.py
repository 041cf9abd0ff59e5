"""The real games: what they reward, how they end, and what is drawn, in the engine itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from worldsim.errors import WorldError
from worldsim.games.doom import HEIGHT, WIDTH, DoomGame
from worldsim.games.entry import Observation
from worldsim.games.registry import GAMES, open_game
from worldsim.games.status import BAR_COLOUR, BAR_HEIGHT, draw_health

MORTAL = ["doom-take-cover", "doom-health"]


@pytest.fixture(scope="module", params=MORTAL)
def game(request: pytest.FixtureRequest) -> Iterator[DoomGame]:
    with open_game(request.param) as game:
        yield game


def play(game: DoomGame, seed: int) -> Iterator[tuple[Observation, float]]:
    """Hold random actions to the end; yield what is seen, and the player's health."""
    rng = np.random.default_rng(seed)
    seen = game.reset(seed)
    action = game.entry.actions.noop()
    yield seen, game.health
    for frame in range(1050):
        if seen.terminated or seen.truncated:
            return
        if frame % 8 == 0:
            action = rng.integers(game.entry.actions.num_values)
        seen = game.step(action)
        yield seen, game.health


def bar_length(frame: np.ndarray) -> int:
    return int((frame[-BAR_HEIGHT // 2] == BAR_COLOUR).all(axis=-1).sum())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rewards_add_up_to_the_engines_own(game: DoomGame, seed: int) -> None:
    observations = [seen for seen, _ in play(game, seed)]
    rewards = [seen.reward for seen in observations[1:]]
    assert sum(rewards) == game.total_reward
    assert observations[0].reward == 0
    assert set(rewards[:-1]) == {2.0}, "1 for each of a frame's two tics"
    penalty = 100 if game.entry.name == "doom-health" else 0
    assert rewards[-1] + penalty in (1, 2), "the last tic may be the first of its frame"


def test_death_ends_the_game_under_an_empty_bar(game: DoomGame) -> None:
    *_, (before, health_before), (last, health) = play(game, 5)
    assert [before.terminated, last.terminated] == [False, True]
    assert health <= 0 < health_before
    assert (last.frame[:-BAR_HEIGHT] == before.frame[:-BAR_HEIGHT]).all(), "there is no later picture"
    assert (last.frame[-BAR_HEIGHT:] == 0).all() and bar_length(before.frame) > 0
    with pytest.raises(WorldError, match="call reset first"):
        game.step(game.entry.actions.noop())


def test_bar_shows_the_health_and_pain_the_picture(game: DoomGame) -> None:
    hits = 0
    red_before, health_before = 0.0, 100.0
    for seed in (3, 4):
        for seen, health in play(game, seed):
            assert bar_length(seen.frame) == round(WIDTH * max(health, 0) / 100)
            # A tinge moves the whole picture, black sky and grey floor alike, away from green.
            red = float(np.subtract(*np.median(seen.frame[:-BAR_HEIGHT, :, :2], axis=(0, 1))))
            if 0 < health < health_before and red_before < red:
                hits += 1
            red_before, health_before = red, health
    assert hits > 0, "nothing flashed"


def test_same_seed_gives_the_same_game(game: DoomGame) -> None:
    first, second = ([seen for seen, _ in play(game, 7)] for _ in range(2))
    assert len(first) == len(second)
    assert all((one.frame == two.frame).all() for one, two in zip(first, second, strict=True))
    assert [seen.pose for seen in first] == [seen.pose for seen in second]
    assert first[0].frame.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", MORTAL)
def test_a_game_is_cut_off_at_its_last_tic_alive(name: str) -> None:
    with open_game(replace(GAMES[name], max_tics=20)) as game:
        observations = [seen for seen, _ in play(game, 0)]
        assert len(observations) == 11
        assert [seen.truncated for seen in observations] == [False] * 10 + [True]
        assert not observations[-1].terminated
        assert game.total_reward == 20
        with pytest.raises(WorldError, match="call reset first"):
            game.step(game.entry.actions.noop())
        assert not game.reset(1).truncated


def test_take_cover_left_is_left_and_nothing_turns() -> None:
    with open_game("doom-take-cover") as game:
        start = game.reset(0)
        left = [game.step(np.array([1])) for _ in range(12)][-1]
        right = [game.step(np.array([2])) for _ in range(30)][-1]
    assert left.pose[1] > start.pose[1] > right.pose[1], "the player faces east: left is north"
    assert start.pose[2] == left.pose[2] == right.pose[2] == 0


@pytest.mark.parametrize(("health", "length"), [(-5, 0), (0, 0), (1, 2), (50, 80), (100, 160), (150, 160)])
def test_bar_is_as_long_as_the_health(health: float, length: int) -> None:
    frame = np.full((HEIGHT, WIDTH, 3), 77, dtype=np.uint8)
    draw_health(frame, health)
    assert bar_length(frame) == length
    assert (frame[:-BAR_HEIGHT] == 77).all()
    assert (frame[-BAR_HEIGHT] == 0).all(), "a dark line above it"

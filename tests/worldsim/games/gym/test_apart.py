"""Environments in processes of their own: the same game, and a sentence where it hangs or crashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.data.recorders import EpisodeTask, Recorders, Setup
from worldsim.errors import WorldError
from worldsim.games.gym.apart import ApartGame, describe_apart
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import describe_env

DOT = "tests.own_games:Dot-v0"
LIVELY, HUNG = 60.0, 0.3
"""Seconds to be waited for what answers, and for what does not."""


def test_it_is_the_same_game() -> None:
    with ApartGame(DOT, GymConfig()) as apart, describe_env(DOT, GymConfig()).open() as here:
        assert apart.entry == here.entry
        for game in (apart, here):
            game.reset(3)
            with pytest.raises(WorldError, match="axis 'action.0' takes 0 to 4, got 9"):
                game.step(np.array([9, 0]))
        pairs = [(apart.reset(3), here.reset(3))]
        pairs += [(apart.step(action), here.step(action)) for action in np.array([[1, 0], [4, 2], [0, 1]])]
    for one, other in pairs:
        assert np.array_equal(one.frame, other.frame)
        assert (one.reward, one.terminated) == (other.reward, other.terminated)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("hang", "^tests.own_games:Dot-v0 hangs in step: it has not returned for 0.3 s"),
        ("abort", "crashes in step: its process was ended by SIGSEGV$"),
        ("exit", "crashes in step: its process ended with status 3$"),
        ("crash", "Dot-v0 fails in step: RuntimeError: the floor is lava$"),
    ],
)
def test_what_never_returns_is_one_sentence(fault: str, sentence: str) -> None:
    with ApartGame(DOT, GymConfig(kwargs={"fault": fault}), HUNG) as game:  # being made may take longer
        game._timeout = LIVELY
        for _ in range(2):
            game.reset(0)
        for _ in range(2):
            game.step(game.entry.actions.noop())
        game._timeout = HUNG if fault == "hang" else LIVELY
        with pytest.raises(WorldError, match=sentence) as found:
            game.step(game.entry.actions.noop())
    assert "\n" not in str(found.value)


def test_what_cannot_be_a_game_is_said_as_here() -> None:
    for env_id, sentence in [("Nowhere-v7", "NameNotFound"), ("tests.own_games:stillborn", "status 7")]:
        with pytest.raises(WorldError, match=sentence):
            describe_apart(env_id, GymConfig())


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("hang", "Dot-v0, after 3 frames of .*two, hangs, or who plays it: there was no other frame"),
        ("abort", "Dot-v0, after 3 frames of .*one, crashes: its process was ended by SIGSEGV"),
        ("grows", "shows pictures of 48 x 34 after those of 48 x 32"),
    ],
)
def test_recorders_end_and_leave_no_half_episode(fault: str, sentence: str, tmp_path: Path) -> None:
    entry = describe_env(DOT, GymConfig(kwargs={"fault": fault}))
    entry.dataset_info("a test").save(tmp_path)
    setup = Setup(scenario=entry, policy="still", episode_frames=10, step_timeout=LIVELY)
    with Recorders(1, setup) as recorders, pytest.raises(WorldError, match=sentence) as found:
        for name in ("one", "two"):
            recorders.submit(task := EpisodeTask(folder=tmp_path, name=name, seed=0))
            assert recorders.wait() == [(task, 10)]
            recorders.step_timeout = HUNG
    assert "\n" not in str(found.value)
    whole = {"hang": ["dataset.json", "one.jsonl", "one.mp4"]}.get(fault, ["dataset.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == whole

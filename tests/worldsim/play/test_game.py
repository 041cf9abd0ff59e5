"""A game's story: its score, its end, what closes and what goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pygame
import pytest

from tests.fakes import tiny_world
from tests.window import open_viewer, tap
from worldsim.outcome import OutcomeConfig
from worldsim.play.desktop.viewer import Viewer

ENDS_AT_ONCE = OutcomeConfig(end_threshold=1e-6, reward_mean=2.0, reward_scale=1.0)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    viewer = open_viewer(tmp_path)
    yield viewer
    viewer.window.close()


def test_an_end_waits_for_the_player_and_enter_begins_again(tmp_path: Path) -> None:
    viewer = open_viewer(tmp_path, tiny_world(outcome=ENDS_AT_ONCE))
    for _ in range(3):
        viewer.advance()
    session = viewer.session
    assert (session.num_frames, session.ended, session.start) == (1, True, "start-00")
    score = session.score
    assert score is not None
    expected = f"Game over after 1 frame (0.1 s), score {score:.0f}. Number 1 of the best games. Enter: again"
    assert viewer.game.status.message == expected
    tap("f5")
    viewer.advance()
    assert viewer.game.status.message == "the game is over: there is nothing to go on from"
    tap("b")
    viewer.advance()
    assert viewer._panes is None, "a game that is over goes on in panes"
    tap("return")
    viewer.advance()
    assert (session.num_frames, session.start) == (2, "start-00")
    tap("tab")
    viewer.advance()
    assert (session.num_frames, session.start) == (3, "start-01")


def test_a_world_that_goes_on_has_a_score_and_one_without_rewards_has_none(
    viewer: Viewer, tmp_path: Path
) -> None:
    viewer.advance()
    assert viewer.session.score is None
    assert not any("score" in text for text in viewer.game.texts())
    viewer.window.close()
    judged = open_viewer(tmp_path, tiny_world(outcome=OutcomeConfig(end_threshold=1.0, reward_mean=2.0)))
    assert judged.session.score == 0.0
    rewards = []
    for _ in range(3):
        judged.advance()
        rewards.append(judged.session._reward)
    assert not judged.session.ended
    assert judged.session.score == pytest.approx(sum(rewards))
    judged.game.restart_measuring()
    assert f"score {judged.session.score:.0f}" in judged.game.texts()


def test_a_pane_that_is_picked_goes_on_with_the_score(tmp_path: Path) -> None:
    world = tiny_world(outcome=OutcomeConfig(end_threshold=1.0, reward_mean=2.0))
    viewer = open_viewer(tmp_path, world)
    viewer.advance()
    score = viewer.session.score
    assert score
    tap("b")
    tap("return")
    viewer.advance()
    assert viewer._panes is None
    rewards = viewer.session.score - score
    assert rewards == pytest.approx(viewer.session._reward)


def test_after_a_programs_end_the_next_episode_begins_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = open_viewer(tmp_path, tiny_world(outcome=ENDS_AT_ONCE))
    tap("m")
    for _ in range(3):
        viewer.advance()
    assert (viewer.session.num_frames, viewer.session.ended) == (1, True)
    monkeypatch.setattr("worldsim.play.game.ENDED_SECONDS", 0.0)
    viewer.advance()
    assert viewer.session.num_frames == 2


@pytest.mark.parametrize("opened", ["h", "o", "b"])
def test_escape_closes_what_is_open_before_it_quits(viewer: Viewer, opened: str) -> None:
    viewer.advance()
    tap(opened)
    viewer.advance()
    tap("escape")
    viewer.advance()
    assert not viewer.game.is_closed
    assert viewer._panes is None
    assert viewer._page == []
    tap("escape")
    viewer.advance()
    assert viewer.game.is_closed
    assert not viewer.game.wants_choice


def test_the_window_is_closed_whatever_is_open(viewer: Viewer) -> None:
    tap("h")
    viewer.advance()
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    viewer.advance()
    assert viewer.game.is_closed


def test_a_key_leads_back_to_the_choice_of_worlds(viewer: Viewer) -> None:
    tap("u")
    viewer.advance()
    assert viewer.game.is_closed
    assert viewer.game.wants_choice


def test_help_says_what_the_world_is_about(tmp_path: Path) -> None:
    world = tiny_world()
    world.config.about = "Walk, and look around you."
    assert open_viewer(tmp_path, world)._help[0] == ("", "Walk, and look around you.")

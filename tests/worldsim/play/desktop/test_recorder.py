"""A person plays an environment in a window: what is pressed is what is recorded, as programs record it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pygame
import pytest

from policies import KeyboardPolicy
from tests.public_runs import run_command
from tests.window import press, release, tap
from training.learn.plan import Footage
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import list_episodes, read_episode
from worldsim.errors import WorldError
from worldsim.games.entry import MAX_SEED
from worldsim.games.env import EVALUATION_SEEDS
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.game import GymEntry, GymGame, describe_env
from worldsim.play.desktop import recorder
from worldsim.play.desktop.dataset import PlayedDataset
from worldsim.play.desktop.recorder import FIRST_SEED, RecorderWindow
from worldsim.ui.bindings import bind

DOT = "tests.own_games:Dot-v0"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recorder, "ENDED_SECONDS", 0.0)
    monkeypatch.setattr(recorder, "PAUSE_POLL_MS", 1)
    yield
    pygame.display.quit()


def described(**kwargs: object) -> GymEntry:
    return describe_env(DOT, GymConfig(kwargs=kwargs))


def open_window(entry: GymEntry, folder: Path | None, seed: int = 0) -> RecorderWindow:
    bindings = bind(entry.actions)
    person = KeyboardPolicy(entry.actions.num_values, bindings.buttons, entry.actions.centres)
    dataset = PlayedDataset(folder, entry.dataset_info("by hand")) if folder is not None else None
    return RecorderWindow(entry.open(), person, bindings, dataset, seed=seed, frame_rate=0, scale=2)


def advance(window: RecorderWindow, count: int) -> None:
    for _ in range(count):
        window.advance()


def test_what_is_pressed_is_recorded_and_can_be_learned_from(tmp_path: Path) -> None:
    entry = described(lasts=12)
    window = open_window(entry, tmp_path / "mine")
    advance(window, 3)
    assert not (tmp_path / "mine").exists(), "nobody has begun to play"
    press("right")
    advance(window, 4)
    release("right")
    advance(window, 9)
    assert list_episodes(tmp_path / "mine/train") == ["episode-000000"], "the game has ended"
    for _ in range(2):
        tap("left")
        advance(window, 9)
        tap("return")
    advance(window, 1)
    tap("escape")
    window.run()
    one = read_episode(tmp_path / "mine/train", "episode-000000")
    assert [action[0] for action in one.actions] == [3, 4, 4, 4, *[0] * 9], "by one bin a frame"
    assert one.rewards is not None and one.terminated is not None
    assert one.rewards.tolist() == [0, *[1] * 12]
    assert one.terminated.tolist() == [False] * 12 + [True]
    assert one.players == (*["human"] * 12, "")
    assert np.abs(one.frames[4].astype(int) - one.frames[0]).max() > 100, "the dot has moved"
    assert list_episodes(tmp_path / "mine/heldout") == ["episode-000001"]
    assert list_episodes(tmp_path / "mine/train") == ["episode-000000", "episode-000002"]
    for split in ("train", "heldout"):
        assert DatasetInfo.load(tmp_path / "mine" / split).environment["id"] == DOT
    footage = Footage.of(tmp_path / "mine/train", tmp_path / "mine/heldout")
    assert footage.has_outcomes and footage.train_lengths == (13, 10) and footage.heldout_lengths == (10,)


def test_it_goes_on_in_a_folder_of_the_same_game_alone(tmp_path: Path) -> None:
    entry = described(lasts=3)
    for number in range(2):
        window = open_window(entry, tmp_path)
        assert window._dataset is not None and window._dataset.number == number
        press("right")
        advance(window, 4)
        assert window._dataset.number == number + 1
        release("right")
    assert sum(path.suffix == ".jsonl" for path in tmp_path.rglob("*")) == 2
    with pytest.raises(WorldError, match="train was recorded with other settings .*; give another record"):
        PlayedDataset(tmp_path, entry.dataset_info("by foot"))
    with pytest.raises(WorldError, match="record= of env is a folder for its episodes, got the file"):
        PlayedDataset(tmp_path / "play.mp4", entry.dataset_info("by hand"))
    with pytest.raises(WorldError, match="holds episodes itself, not in train and heldout"):
        PlayedDataset(tmp_path / "train", entry.dataset_info("by hand"))


def test_keys_pause_and_stop_the_recording(tmp_path: Path) -> None:
    window = open_window(described(), tmp_path)
    press("left")
    advance(window, 3)
    tap("p")
    advance(window, 3)
    assert window.is_paused and window._num_frames == 3
    tap("n")
    advance(window, 2)
    assert window._num_frames == 4
    tap("r")
    tap("p")
    advance(window, 3)
    assert not window.is_recording and window._num_frames == 7
    assert len(read_episode(tmp_path / "train", "episode-000000")) == 5
    tap("r")
    advance(window, 2)
    tap("h")
    advance(window, 1)
    assert window._page
    for _ in range(2):
        tap("escape")
    window.run()
    assert window.is_closed and len(read_episode(tmp_path / "heldout", "episode-000001")) == 4


def test_what_is_tapped_after_the_end_begins_no_other_game() -> None:
    window = open_window(described(lasts=2), None)
    tap("left")
    advance(window, 2)
    assert window._num_frames == 2 and window._has_ended
    tap("left")
    advance(window, 3)
    assert window._num_frames == 2 and window._num_games == 2 and not window._has_ended
    window.window.close()


def test_games_of_a_person_are_those_of_nobody_else() -> None:
    game = open_window(described(), None, seed=20_261_130)._game  # of a day
    assert isinstance(game, GymGame)
    assert EVALUATION_SEEDS < FIRST_SEED <= (game.env.unwrapped.np_random_seed or 0) <= MAX_SEED
    game.close()


def test_a_game_that_fails_leaves_what_was_played(tmp_path: Path) -> None:
    window = open_window(described(fault="crash"), tmp_path)
    press("left")
    with pytest.raises(WorldError, match="fails in step: RuntimeError: the floor is lava"):
        window.run()
    episode = read_episode(tmp_path / "train", "episode-000000")
    assert len(episode) == 3, "that which nobody saw is not in it"
    assert not list(tmp_path.rglob("*.part")) and not window.window.is_open


def test_nothing_is_recorded_where_nobody_wants_it(tmp_path: Path) -> None:
    window = open_window(described(), None)
    press("left")
    tap("r")
    advance(window, 3)
    assert window._num_frames == 3 and not window.is_recording
    assert not list(tmp_path.iterdir())
    window.window.close()


def test_the_command_records_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play_for = RecorderWindow.run

    def run(window: RecorderWindow, num_frames: int) -> None:
        press("right")
        play_for(window, num_frames)

    monkeypatch.setattr(RecorderWindow, "run", run)
    monkeypatch.setattr("worldsim.ui.display.choose_headless", lambda asked: False)
    monkeypatch.chdir(tmp_path)
    said = []
    for _ in range(2):
        run_command("play", f"env={DOT}", "steps=4", "fps=0", "record=mine", "seed=today")
        said.append(capsys.readouterr().out)
    assert "recorded 1 episodes to learn from and 0 held out, 5 frames: mine\nplay another" in said[0]
    assert said[1].endswith("learn from it: python -m training.learn data=mine\n")
    assert len(read_episode(tmp_path / "mine/train", "episode-000000")) == 5
    heldout = read_episode(tmp_path / "mine/heldout", "episode-000001")
    assert heldout.actions[:, 0].tolist() == [3, 4, 4, 4, 0]

"""The best games: what counts, what is kept of it, and files that are damaged or somebody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import tiny_world
from tests.window import open_viewer, press, release, tap
from worldsim.errors import WorldError
from worldsim.outcome import OutcomeConfig
from worldsim.play.best import NUM_BEST, BestGame, BestGames, remove_recordings
from worldsim.play.desktop.viewer import Viewer
from worldsim.play.replay import Replay
from worldsim.play.session import PlaySession
from worldsim.seeds import find_seed, seed_of_day

GOES_ON = OutcomeConfig(end_threshold=1.0, reward_mean=2.0, reward_scale=1.0)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    """A window on a game that ends when a test says so."""
    viewer = open_viewer(tmp_path, tiny_world(outcome=GOES_ON))
    yield viewer
    viewer.window.close()


def play(viewer: Viewer, num_frames: int = 3) -> None:
    for _ in range(num_frames):
        viewer.advance()


def end(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a frame at which the game ends."""
    finish = viewer.session.env.finish_step

    def finish_and_end() -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frame, reward, _, truncated, info = finish()
        return frame, reward, True, truncated, info

    with monkeypatch.context() as patch:
        patch.setattr(viewer.session.env, "finish_step", finish_and_end)
        viewer.advance()


def game(score: float, world: str = "tiny@1", **changes: object) -> BestGame:
    return BestGame(score=score, frames=10, seconds=1.0, seed=3, world=world, **changes)  # type: ignore[arg-type]


def test_a_game_is_kept_with_a_recording_that_replays_to_the_same_bytes(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(viewer)
    end(viewer, monkeypatch)
    files, session = viewer.game.files, viewer.session
    (kept,) = files.best.read()
    assert (kept.frames, kept.start, kept.seed, kept.game) == (4, "start-00", 0, 1)
    assert kept.score == session.score
    assert "Number 1 of the best games." in viewer.game.status.message
    assert viewer._page[1][0] == "> 1"
    replay = Replay(files.best.folder / kept.recordings[0])
    again = PlaySession(session.env, seed=5, replay=replay)
    again.reset()
    rows = (files.best.folder / kept.recordings[0]).with_suffix(".jsonl").read_text().splitlines()
    for row in rows[:-1]:
        again.begin(session.env.world.config.actions.validate(json.loads(row)["action"]))
        again.finish()
    assert replay.result(session.env).startswith("replayed 4 of 4 frames")


def test_a_game_whose_time_is_up_is_over_and_kept(tmp_path: Path) -> None:
    viewer = open_viewer(tmp_path, tiny_world(outcome=GOES_ON, max_episode_steps=4))
    play(viewer, 3)
    assert not viewer.session.ended
    play(viewer, 2)
    files, session = viewer.game.files, viewer.session
    assert session.ended and session.time_is_up and session.num_frames == 4
    assert viewer.game.status.message.startswith("Time is up after 4 frames (0.4 s), ")
    assert "Number 1 of the best games." in viewer.game.status.message
    (kept,) = files.best.read()
    rows = (files.best.folder / kept.recordings[0]).with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(row)["terminated"] for row in rows] == [False] * 5, "nobody is to learn an end of it"
    viewer.game.restart(None)
    play(viewer, 1)
    assert not session.ended and not session.time_is_up
    viewer.window.close()


@pytest.mark.parametrize("key", ["backspace", "f9", "m", "z", "x"])
def test_a_game_that_was_not_played_in_one_go_does_not_count(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    play(viewer)
    tap("f5")
    viewer.advance()
    press(key)
    viewer.advance()
    release(key)
    play(viewer)
    end(viewer, monkeypatch)
    assert viewer.session.ended
    assert viewer.game.files.best.read() == []
    assert not list(viewer.game.files.best.folder.glob("game-*"))


def test_a_game_that_is_kept_does_not_hinder_more_denoising_steps(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is always recorded: the rate that is held would otherwise never have its steps back."""
    game, asked = viewer.game, []
    monkeypatch.setattr(game._governor, "note", lambda *_, may_rise: asked.append(may_rise))
    play(viewer, 1)
    tap("r")
    play(viewer, 1)
    assert asked == [True, False]


def test_a_game_that_cannot_be_kept_says_so_at_its_first_frame(viewer: Viewer) -> None:
    viewer.game.files.best.folder.parent.write_text("no folder")
    play(viewer, 1)
    assert viewer.game.status.message.startswith("this game is not kept: cannot record to ")


def test_recordings_that_cannot_be_removed_end_no_game(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    play(viewer)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        remove_recordings([viewer.game.files.best.folder / "game-0001.mp4"])


def test_a_table_says_why_it_is_empty(tmp_path: Path, viewer: Viewer) -> None:
    files = viewer.game.files
    assert files.best_games() == [("no game that you played in one go has ended yet",)]
    files._config.best = ""
    assert files.best_games() == [("no games are kept: best='' says so",)]
    without = open_viewer(tmp_path)
    assert without.game.files.best_games() == [("this world counts no score",)]
    without.window.close()


def test_a_game_that_is_left_leaves_nothing(viewer: Viewer) -> None:
    play(viewer)
    tap("return")
    play(viewer)
    viewer.session.__exit__()
    assert not list(viewer.game.files.best.folder.glob("game-*"))


DAMAGE: list[tuple[str, str]] = [
    ("{", "is not JSON"),
    ('{"format": 1, "world": "tiny", "games": [{"score": "many"}]}', "game 1"),
    ('{"notes": []}', "is no table of best games"),
    ('{"format": 1, "world": "another", "games": []}', "is the table of another"),
]


@pytest.mark.parametrize(("text", "said"), DAMAGE)
def test_a_damaged_or_foreign_table_stays_and_so_does_the_recording(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    table = viewer.game.files.best
    table.folder.mkdir(parents=True)
    table.path.write_text(text)
    play(viewer)
    end(viewer, monkeypatch)
    assert said in viewer.game.status.message
    assert table.path.read_text() == text
    assert f"The game is recorded in {table.folder / 'game-0001.mp4'}." in viewer.game.status.message
    assert Replay(table.folder / "game-0001.mp4").num_frames == 4
    assert said in str(viewer.game.files.best_games()[0][0])


def test_the_eleventh_game_falls_out_with_its_recording(tmp_path: Path) -> None:
    table = BestGames(tmp_path, "tiny", "tiny@1")
    other = BestGames(tmp_path, "tiny", "tiny@2")
    assert other.add(game(1000.0, "tiny@2")) == 1
    places = []
    for score in range(NUM_BEST):
        (table.folder / f"game-{score}.mp4").write_bytes(b"")
        places.append(table.add(game(score, recordings=[f"game-{score}.mp4"])))
    assert set(places) == {1}
    assert table.add(game(-1.0)) is None
    assert table.add(game(4.5)) == 6
    assert [row.score for row in table.read()] == [9, 8, 7, 6, 5, 4.5, 4, 3, 2, 1]
    assert not (table.folder / "game-0.mp4").exists()
    assert (table.folder / "game-1.mp4").exists()
    assert [row.score for row in other.read()] == [1000.0], "a game of another world by this name is gone"


def test_a_table_that_somebody_edited_is_shown_in_order(tmp_path: Path) -> None:
    table = BestGames(tmp_path, "tiny", "tiny@1")
    table.add(game(1.0))
    data = json.loads(table.path.read_text())
    data["games"] = [data["games"][0] | {"score": score} for score in range(15)]
    table.path.write_text(json.dumps(data))
    assert [row.score for row in table.read()] == list(range(14, 4, -1))


@pytest.mark.parametrize("name", ["../game.mp4", "/game.mp4", "game.txt", "a\\b.mp4"])
def test_a_table_names_no_files_elsewhere(name: str) -> None:
    with pytest.raises(WorldError, match="must be a file beside the table"):
        game(1.0, recordings=[name])


def test_with_the_seed_of_a_day_each_game_is_the_same_dream(viewer: Viewer) -> None:
    def dream(session: PlaySession) -> bytes:
        session.reset()
        session.begin(session.env.world.config.actions.noop())
        session.finish()
        return session.observation.tobytes()

    assert seed_of_day(date(2026, 11, 30)) == 20261130
    assert find_seed("today") == seed_of_day()
    env = viewer.session.env
    again, on = PlaySession(env, seed=3, repeats_seed=True), PlaySession(env, seed=3)
    assert dream(again) == dream(again) == dream(on)
    assert (again.game, on.game) == (1, 1)
    assert dream(on) != dream(again)
    assert on.game == 2


@pytest.mark.parametrize("seed", ["tomorrow", "-1", -1, "1.5", True])
def test_other_seeds_are_refused(seed: int | str) -> None:
    with pytest.raises(WorldError, match="seed must be a whole number of at least 0, or today"):
        find_seed(seed)

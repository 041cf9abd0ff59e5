"""Rewinding, slots, takeover and recording, driven by real key events."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pygame
import pytest
import torch

from policies.ppo import PPOPolicy
from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, save_untrained_policy, tiny_world
from tests.window import SCALE, advance, open_viewer, post, press, release, same, tap
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import list_episodes, read_table, verify
from worldsim.data.video import VideoWriter
from worldsim.outcome import OutcomeConfig
from worldsim.play.desktop.viewer import Viewer
from worldsim.state import WorldState
from worldsim.storage.images import read_picture
from worldsim.ui.bindings import COMMAND_KEYS, Command


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    viewer = open_viewer(tmp_path)
    yield viewer
    viewer.window.close()


@contextmanager
def smallest_disk() -> Iterator[None]:
    """Let no file grow beyond 1 kB; not as a fixture, or the log of the tests could not grow either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def shown(viewer: Viewer) -> np.ndarray:
    """Return the picture in the window, without what may lie over its lower part."""
    return viewer.window.screenshot()[: HEIGHT * SCALE // 2 : SCALE, : WIDTH * SCALE : SCALE]


def is_frame(viewer: Viewer, state: WorldState) -> bool:
    return np.array_equal(shown(viewer), state.frames[0, : HEIGHT // 2].numpy())


def tap_with_shift(name: str) -> None:
    post(pygame.KEYDOWN, name, pygame.KMOD_LSHIFT)
    post(pygame.KEYUP, name, pygame.KMOD_LSHIFT)


def test_held_backspace_shows_a_frame_before_each_time_and_play_goes_on_there(viewer: Viewer) -> None:
    press("up")
    states = advance(viewer, 12)
    press("backspace")
    for state in states[-2:4:-1]:
        viewer.advance()
        assert is_frame(viewer, state)
    release("backspace")
    viewer.advance()
    viewer.advance()
    assert same(viewer.session.env.get_state(), states[7])


def test_the_score_goes_back_with_the_game(tmp_path: Path) -> None:
    world = tiny_world(outcome=OutcomeConfig(end_threshold=1.0, reward_mean=2.0))
    viewer = open_viewer(tmp_path, world)
    scores = [viewer.session.score]
    for _ in range(5):
        viewer.advance()
        scores.append(viewer.session.score)
    press("backspace")
    advance(viewer, 2)
    release("backspace")
    tap("space")
    advance(viewer)
    assert viewer.session.score == scores[3]
    viewer.window.close()


def test_a_tap_goes_one_frame_back_while_paused(viewer: Viewer) -> None:
    states = advance(viewer, 3)
    tap("space")
    tap("backspace")
    viewer.advance()
    assert is_frame(viewer, states[1])
    viewer.advance()
    assert viewer.game.is_paused
    assert same(viewer.session.env.get_state(), states[1])


def test_at_the_oldest_moment_rewinding_stands_still(viewer: Viewer) -> None:
    advance(viewer, 2)
    press("backspace")
    for _ in range(6):
        viewer.advance()
    release("backspace")
    tap("space")
    viewer.advance()
    assert viewer.session.info["frame_index"] == 0


def test_quick_save_and_load(viewer: Viewer) -> None:
    press("left")
    states = advance(viewer, 2)
    tap("f5")
    later = advance(viewer, 3)
    tap("f9")
    again = advance(viewer, 3)
    assert all(same(*pair) for pair in zip(later, again, strict=True))
    assert not same(states[-1], later[-1])


def test_slots_survive_a_restart_with_their_picture(viewer: Viewer, tmp_path: Path) -> None:
    (state,) = advance(viewer)
    tap_with_shift("3")
    viewer.advance()
    viewer.window.close()
    assert np.array_equal(
        read_picture(tmp_path / "slots" / "tiny" / "3.png"), state.frames[0, ::2, ::2].numpy()
    )
    other = open_viewer(tmp_path)
    tap("3")
    tap("space")
    other.advance()
    assert same(other.session.env.get_state(), state)
    assert other.session.start == "start-00"
    before = shown(other)
    tap("o")
    other.advance()
    assert not np.array_equal(shown(other), before), "the list of slots is not to be seen"
    other.window.close()


def test_an_empty_a_cut_and_a_foreign_slot_are_refused_in_a_sentence(tmp_path: Path, viewer: Viewer) -> None:
    advance(viewer)
    tap_with_shift("1")
    advance(viewer)
    file = tmp_path / "slots" / "tiny" / "1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    tap("space")
    viewer.advance()
    before = viewer.session.env.get_state()

    def say(key: str) -> str:
        tap(key)
        viewer.advance()
        assert viewer.session.env.get_state() is before
        return viewer.game.status.message

    assert "slot 1: " in say("1") and "not a complete saved state" in say("1")
    assert say("2") == "slot 2 is empty"
    other = tiny_world(num_steps=1)
    other.denoiser.patch_embedding.weight.data += 1
    viewer.window.close()
    stranger = open_viewer(tmp_path, other)
    tap_with_shift("2")
    stranger.advance()
    stranger.window.close()
    viewer = open_viewer(tmp_path)
    tap("space")
    viewer.advance()
    before = viewer.session.env.get_state()
    assert "was saved in another world (tiny@" in say("2")
    viewer.window.close()


def test_a_full_disk_loses_no_slot_and_no_game(viewer: Viewer, tmp_path: Path) -> None:
    (saved,) = advance(viewer)
    tap("f5")
    advance(viewer)
    with smallest_disk():
        tap("f5")
        viewer.advance()
    assert "slot quick cannot be saved" in viewer.game.status.message
    assert sorted(path.name for path in (tmp_path / "slots" / "tiny").iterdir()) == [
        "quick.png",
        "quick.safetensors",
    ]
    tap("f9")
    tap("space")
    viewer.advance()
    assert same(viewer.session.env.get_state(), saved)


def test_two_players_share_a_folder(viewer: Viewer, tmp_path: Path) -> None:
    from worldsim.play.slots import SlotFolder

    mine, theirs = advance(viewer, 2)
    identity = viewer.session.env.world.identity
    one, other = (SlotFolder(tmp_path / "shared", "tiny", identity) for _ in range(2))
    one.save("4", mine)
    assert other.load("4")[0].frame_index.tolist() == [1]
    other.save("4", theirs)
    assert one.load("4")[0].frame_index.tolist() == [2], "what was kept in memory is out of date"
    assert [slot.name for slot in one.list()] == ["4"]


def test_every_player_takes_over_without_a_reset_and_lines_say_who_acted(
    tmp_path: Path,
) -> None:
    ppo = PPOPolicy(TINY_ACTIONS.num_values, save_untrained_policy(tmp_path / "policy"))
    viewer = open_viewer(tmp_path, ppo=ppo)
    tap("r")
    advance(viewer, 2)
    for count in (3, 2, 1):
        tap("m")
        advance(viewer, count)
    tap("r")
    tap("escape")
    viewer.advance()
    viewer.window.close()
    folder = tmp_path / "video"
    (name,) = list_episodes(folder)
    assert verify(folder) == 9
    players = read_table(folder, name, DatasetInfo.load(folder).actions).players
    assert players == ("human",) * 2 + ("random",) * 3 + ("ppo",) * 2 + ("human",) + ("",)
    assert viewer.session.info["frame_index"] == 8


def test_a_learned_player_sees_the_frames_it_did_not_play(tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy")
    ppo, whole = (PPOPolicy(TINY_ACTIONS.num_values, folder) for _ in range(2))
    viewer = open_viewer(tmp_path, ppo=ppo)
    whole.act(viewer.session.observation)
    for state in advance(viewer, 6):
        whole.act(state.frames[0].numpy())
    assert whole._seen is not None
    expected = whole._seen
    tap("m")
    tap("m")
    viewer.advance()
    assert ppo._seen is not None
    assert torch.equal(ppo._seen, expected)
    press("backspace")
    advance(viewer, 4)
    release("backspace")
    tap("space")
    viewer.advance()
    assert viewer.session.info["frame_index"] == 3
    tap("n")
    viewer.advance()
    frames = viewer.session.recent_frames(5)[:-1]  # of 4 frames until the action
    whole.reset(0)
    for frame in frames:
        whole.watch(frame)
    assert torch.equal(ppo._seen, whole._seen)
    viewer.window.close()


def test_a_recording_goes_on_in_another_file_after_a_jump(viewer: Viewer, tmp_path: Path) -> None:
    tap("r")
    advance(viewer, 4)
    press("backspace")
    advance(viewer, 2)
    release("backspace")
    advance(viewer, 3)
    tap("r")
    viewer.advance()
    assert len(list_episodes(tmp_path / "video")) == 2
    assert verify(tmp_path / "video") == 5 + 4
    assert viewer.session.recording is None


def test_a_disk_that_fills_up_ends_the_recording_and_keeps_it(
    viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    tap("r")
    advance(viewer, 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    advance(viewer, 15)
    assert "the disk is almost full" in viewer.game.status.message
    assert viewer.session.recording is None
    assert verify(tmp_path / "video") == 32
    assert viewer.session.info["frame_index"] == 35


def test_a_recording_that_cannot_be_written_ends_in_a_sentence(
    viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap("r")
    advance(viewer, 2)
    write = VideoWriter.write

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(VideoWriter, "write", full)
    advance(viewer)
    assert "No space left on device" in viewer.game.status.message
    assert viewer.session.recording is None
    monkeypatch.setattr(VideoWriter, "write", write)
    advance(viewer, 2)
    assert viewer.session.info["frame_index"] == 5
    assert not list((tmp_path / "video").glob("*.part"))


@pytest.mark.parametrize("moment", ["predict", "commit"])
@pytest.mark.parametrize("way", ["closed", "taken away"])
def test_a_window_that_goes_in_the_middle_of_a_step_ends_the_game_and_keeps_the_recording(
    viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, way: str
) -> None:
    simulator = viewer.session.env.simulator
    method = getattr(simulator, moment)

    def lose_window(*arguments: object) -> object:
        if viewer.session.num_frames == 3:
            pygame.event.post(pygame.event.Event(pygame.QUIT)) if way == "closed" else pygame.display.quit()
        return method(*arguments)

    tap("r")
    advance(viewer)
    monkeypatch.setattr(simulator, moment, lose_window)
    with viewer.session:
        viewer._advance_while_open()
        while not viewer.game.is_closed:
            viewer._advance_while_open()
    assert viewer.session.num_frames in (3, 4)
    viewer.session.stop_recording()
    assert verify(tmp_path / "video") == viewer.session.num_frames + 1
    pygame.display.init()


def test_screenshot_is_what_the_window_shows(viewer: Viewer, tmp_path: Path) -> None:
    advance(viewer)
    picture = viewer.window.screenshot()
    tap("f12")
    viewer.advance()
    assert np.array_equal(read_picture(tmp_path / "shots" / "screenshot-0001.png"), picture)
    assert "screenshot-0001.png" in viewer.game.status.message


def test_any_keys_at_all_break_nothing(viewer: Viewer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    commands = [
        keys[0].removeprefix("shift+")
        for command, keys in COMMAND_KEYS.items()
        if command not in (Command.QUIT, Command.CHOOSE, Command.SCREENSHOT)
    ]
    others = ["up", "left", "a", "z"]
    events, frames = 0, 0
    while events < 10_000:
        for _ in range(100):
            kind = pygame.KEYDOWN if rng.random() < 0.6 else pygame.KEYUP
            names = commands if rng.random() < 0.05 else others
            post(kind, str(rng.choice(names)), int(rng.choice([0, 0, pygame.KMOD_LSHIFT])))
            events += 1
        viewer.game.is_paused = False
        viewer.advance()
        frames += 1
    if viewer.session.recording is not None:
        viewer.session.stop_recording()
    state = viewer.session.env.get_state()
    assert all(torch.isfinite(tensor.float()).all() for tensor in state.tensors().values())
    assert viewer.session.num_frames > 10
    if list((tmp_path / "video").glob("*.jsonl")):
        verify(tmp_path / "video")
    assert not list(tmp_path.rglob("*.part"))

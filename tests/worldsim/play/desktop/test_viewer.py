"""The window, driven by real events: what keys do, what is on the screen, in which order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pygame
import pytest

from policies import KeyboardPolicy, RandomPolicy
from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world
from tests.window import play_config, post, press, release, tap
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.episodes import list_episodes, verify
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.outcome import OutcomeConfig
from worldsim.play.desktop.viewer import Viewer
from worldsim.play.game import Game
from worldsim.play.recording import Recording
from worldsim.play.session import PlaySession
from worldsim.ui.bindings import Command, bind, help_texts
from worldsim.ui.input import CommandKeys, HeldKeys
from worldsim.ui.window import Window

SCALE = 4


class Spy(ARL2WorldEnv):
    """Notes the order of what the viewer asks for."""

    def __init__(self, outcome: OutcomeConfig | None = None) -> None:
        super().__init__(tiny_world(outcome=outcome))
        self.actions: list[list[int]] = []
        self.calls: list[str] = []

    def begin_step(self, action: np.ndarray) -> np.ndarray:
        self.actions.append(action.tolist())
        self.calls.append("draw")
        return super().begin_step(action)

    def finished_info(self) -> dict:
        return self._info()

    def finish_step(self) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.calls.append("commit")
        return super().finish_step()


@pytest.fixture
def env() -> Spy:
    return Spy()


@pytest.fixture
def viewer(env: Spy, tmp_path: Path) -> Iterator[Viewer]:
    yield from open_viewer(env, tmp_path)


def open_viewer(env: Spy, folder: Path, recording: Recording | None = None) -> Iterator[Viewer]:
    session = PlaySession(env, recording, rewind_bytes=2**26)
    keyboard = KeyboardPolicy(TINY_ACTIONS.num_values, [axis.keys for axis in TINY_ACTIONS.axes])
    policy = RandomPolicy(TINY_ACTIONS.num_values)
    game = Game(session, keyboard, {"random": policy}, bind(TINY_ACTIONS), play_config(folder))
    viewer = Viewer(game, scale=SCALE)
    session.reset(0)
    yield viewer
    viewer.window.close()


def test_held_key_reaches_the_environment_until_it_is_released(viewer: Viewer, env: Spy) -> None:
    press("up")
    viewer.advance()
    viewer.advance()
    release("up")
    viewer.advance()
    assert env.actions == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_wasd_and_arrows_mean_what_the_world_says(viewer: Viewer, env: Spy) -> None:
    press("w", "a", "right")
    viewer.advance()
    assert env.actions == [[1, 1, 2]]


def test_opposite_keys_cancel(viewer: Viewer, env: Spy) -> None:
    press("left", "right", "up")
    viewer.advance()
    release("left")
    viewer.advance()
    assert env.actions == [[1, 0, 0], [1, 0, 2]]


def test_tap_between_two_frames_counts_for_one(viewer: Viewer, env: Spy) -> None:
    tap("left")
    viewer.advance()
    viewer.advance()
    assert env.actions == [[0, 0, 1], [0, 0, 0]]


def test_keys_are_let_go_when_another_window_is_in_front(viewer: Viewer, env: Spy) -> None:
    press("up")
    viewer.advance()
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    viewer.advance()
    assert env.actions == [[1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("key", ["space", "p"])
def test_pause_stops_and_goes_on(viewer: Viewer, env: Spy, key: str) -> None:
    tap(key)
    viewer.advance()
    viewer.advance()
    assert env.actions == []
    tap(key)
    viewer.advance()
    assert len(env.actions) == 1


@pytest.mark.parametrize("key", ["n", "."])
def test_single_step_advances_by_one_and_takes_the_tapped_key(viewer: Viewer, env: Spy, key: str) -> None:
    tap("space")
    viewer.advance()
    tap("up")
    viewer.advance()
    tap(key)
    for _ in range(3):
        viewer.advance()
    assert env.actions == [[1, 0, 0]]
    assert viewer.game.is_paused


def test_single_step_does_nothing_while_playing(viewer: Viewer, env: Spy) -> None:
    tap("n")
    viewer.advance()
    tap("space")
    viewer.advance()
    assert len(env.actions) == 1


@pytest.mark.parametrize("key", ["escape", "q"])
def test_quit_plays_no_further_frame(viewer: Viewer, env: Spy, key: str) -> None:
    tap(key)
    viewer.advance()
    assert viewer.game.is_closed
    assert env.actions == []


def test_closing_the_window_ends_the_game(viewer: Viewer, env: Spy) -> None:
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    viewer.run(start=0)
    assert env.actions == []
    assert not viewer.window.is_open


def test_run_ends_after_its_frames(viewer: Viewer, env: Spy) -> None:
    viewer.run(3, start=0)
    assert len(env.actions) == 3


def test_reset_and_next_start(viewer: Viewer, env: Spy) -> None:
    viewer.advance()
    seed = int(env.get_state().seed[0])
    tap("return")
    viewer.advance()
    assert env.finished_info() == {"frame_index": 1, "start": "start-00"}
    assert int(env.get_state().seed[0]) != seed
    for expected in ("start-01", "start-02", "start-00"):
        tap("tab")
        viewer.advance()
        assert env.finished_info() == {"frame_index": 1, "start": expected}


def test_policy_takes_over_and_hands_back_without_a_reset(viewer: Viewer, env: Spy) -> None:
    press("up")
    viewer.advance()
    tap("m")
    for _ in range(30):
        viewer.advance()
    assert viewer.players.name == "random"
    assert {tuple(action) for action in env.actions[1:]} != {(1, 0, 0)}
    tap("m")
    viewer.advance()
    assert env.actions[-1] == [1, 0, 0]
    assert env.finished_info()["frame_index"] == 32


def test_screen_holds_the_frame_scaled_exactly(viewer: Viewer, env: Spy) -> None:
    env.render_mode = "rgb_array"
    viewer.advance()
    screen = viewer.window.screenshot()
    frame = env.render()
    assert frame is not None
    expected = frame.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    assert np.array_equal(screen[: HEIGHT * SCALE, : WIDTH * SCALE], expected)


def test_strip_below_the_picture_has_text(viewer: Viewer) -> None:
    viewer.advance()
    strip = viewer.window.screenshot()[HEIGHT * SCALE :]
    assert len(strip) > 10
    assert len(np.unique(strip.reshape(-1, 3), axis=0)) > 2


def test_frame_is_on_the_screen_before_its_commit(
    viewer: Viewer, env: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = viewer.window.show

    def note_and_show(*arguments: object) -> None:
        env.calls.append("show")
        show(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(viewer.window, "show", note_and_show)
    viewer.advance()
    assert env.calls == ["draw", "show", "commit"]


def test_help_lies_over_the_picture_and_goes_away(viewer: Viewer, env: Spy) -> None:
    tap("space")
    viewer.advance()
    before = viewer.window.screenshot()[: HEIGHT * SCALE]
    tap("h")
    viewer.advance()
    with_help = viewer.window.screenshot()[: HEIGHT * SCALE]
    tap("f1")
    viewer.advance()
    after = viewer.window.screenshot()[: HEIGHT * SCALE]
    assert not np.array_equal(before, with_help)
    assert np.array_equal(before, after)


def test_help_names_every_binding() -> None:
    rows = dict(help_texts(TINY_ACTIONS, bind(TINY_ACTIONS)))
    assert rows["Up or W or Pad lefty- or Pad dpup"] == "move forward"
    assert rows["A or Pad leftx-"] == "strafe left"
    assert rows["Esc or Q"] == "quit"
    assert {command.value for command in Command} <= set(rows.values())


def test_the_worlds_keys_come_before_commands() -> None:
    layout = ActionLayout((ActionAxis(name="jump", buttons=("jump",), keys=(("space", "h"),)),))
    bindings = bind(layout)
    commands = CommandKeys(bindings.commands)
    assert bindings.commands[Command.PAUSE] == ("p", "pad start")
    assert bindings.commands[Command.HELP] == ("f1", "pad back")
    event = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_SPACE, mod=0)
    assert commands.find(event) is None
    held = HeldKeys(["space", "h"])
    assert held.handle(event)
    assert held.take() == {"space"}


def test_keys_of_the_window_system_are_left_alone(viewer: Viewer, env: Spy) -> None:
    post(pygame.KEYDOWN, "tab", pygame.KMOD_LALT)
    post(pygame.KEYDOWN, "w", pygame.KMOD_LCTRL)
    viewer.advance()
    assert env.actions == [[0, 0, 0]]
    assert env.finished_info()["start"] == "start-00"


def test_unknown_key_name_is_named() -> None:
    pygame.display.init()
    with pytest.raises(WorldError, match="'jumpkey'"):
        HeldKeys(["jumpkey"])


def test_scale_is_chosen_to_fit() -> None:
    for size, scale in (((160, 120), 5), ((48, 32), 16), ((832, 480), 1)):
        window = Window(*size, title="test")
        assert window.scale == scale
        window.close()


def test_recording_follows_resets(env: Spy, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "walk.mp4", env.world.config)
    with recording:
        for viewer in open_viewer(env, tmp_path, recording):
            for key in ("up", "return", "up", "escape"):
                viewer.advance()
                tap(key)
            viewer.advance()
            recording.end_episode(viewer.session.observation)
    assert list_episodes(tmp_path) == ["walk", "walk-2"]
    assert verify(tmp_path) == 3 + 3


@pytest.mark.parametrize("moment", ["draw", "commit"])
def test_ctrl_c_inside_a_step_finishes_frame_and_recording(
    env: Spy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name = {"draw": "predict", "commit": "commit"}[moment]
    method = getattr(env.simulator, name)

    def interrupted(*arguments: object) -> object:
        if len(env.actions) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return method(*arguments)

    monkeypatch.setattr(env.simulator, name, interrupted)
    recording = Recording(tmp_path / "walk.mp4", env.world.config)
    with recording:
        for viewer in open_viewer(env, tmp_path, recording):
            with pytest.raises(KeyboardInterrupt):
                viewer.run(start=0)
    assert verify(tmp_path) == 3

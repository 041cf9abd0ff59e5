"""Knobs while playing, gamepads, the mouse, windows of any size: by real events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pygame
import pytest
import torch

from policies import KeyboardPolicy
from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world
from tests.window import SCALE, advance, open_viewer, play_config, post, press, release, tap
from worldsim.data.episodes import verify
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.play.desktop.viewer import Viewer
from worldsim.play.game import Game
from worldsim.play.replay import Opening, Replay
from worldsim.play.session import PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.ui.bindings import Command, bind
from worldsim.ui.input import CommandKeys, HeldKeys, MouseTurn
from worldsim.ui.window import Window

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    viewer = open_viewer(tmp_path)
    yield viewer
    viewer.window.close()


def make_viewer(config: PlayConfig, keys: dict | None = None) -> Viewer:
    bindings = bind(TINY_ACTIONS, keys)
    game = Game(
        PlaySession(ARL2WorldEnv(tiny_world(num_steps=4)), rewind_bytes=2**26),
        KeyboardPolicy(TINY_ACTIONS.num_values, bindings.buttons),
        {},
        bindings,
        config,
    )
    viewer = Viewer(game, scale=SCALE)
    viewer.game.restart(0)
    return viewer


def pad(kind: int, **values: int) -> None:
    pygame.event.post(pygame.event.Event(kind, **values))


def test_brackets_change_the_denoising_steps(viewer: Viewer) -> None:
    sampler = viewer.session.env.simulator.sampler
    tap("]")
    tap("]")
    viewer.advance()
    assert viewer.session.env.simulator.sampler.num_steps == sampler.num_steps + 2
    assert viewer.game.status.message == "4 denoising steps a frame"
    for _ in range(9):
        tap("[")
    viewer.advance()
    assert viewer.session.env.simulator.sampler.num_steps == 1
    assert "1 step" in viewer.game.texts()
    assert sampler == viewer.session.env.world.config.sampler, "the world's own way was changed"


def test_noise_goes_round_its_temperatures(viewer: Viewer) -> None:
    scales = []
    for _ in range(5):
        tap("t")
        viewer.advance()
        scales.append(viewer.session.env.simulator.sampler.noise_scale)
    assert scales == [1.15, 1.3, 0.7, 0.85, 1.0]
    post(pygame.KEYDOWN, "t", pygame.KMOD_LSHIFT)
    viewer.advance()
    assert viewer.session.env.simulator.sampler.noise_scale == 0.85
    assert "noise 0.85" in viewer.game.texts()


def test_a_recording_is_cut_where_the_steps_change_and_each_part_replays(
    viewer: Viewer, tmp_path: Path
) -> None:
    tap("r")
    advance(viewer, 3)
    tap("]")
    advance(viewer, 2)
    tap("r")
    viewer.advance()
    video = tmp_path / "video"
    assert verify(video) == 4 + 3
    for name, steps in (("play-0001", 2), ("play-0001-2", 3)):
        env = ARL2WorldEnv(viewer.session.env.world, denoising_steps=steps)
        replay = Replay(video / f"{name}.mp4")
        session = PlaySession(env, replay=replay)
        session.reset()
        for _ in range(replay.num_frames):
            session.begin(TINY_ACTIONS.noop())
            session.finish()
        assert "all bit-identical" in replay.result(env)


def test_the_rate_is_held_by_fewer_steps_and_the_window_says_so(tmp_path: Path) -> None:
    viewer = make_viewer(play_config(tmp_path, hold_rate=True))
    simulator, fast = viewer.session.env.simulator, viewer.session.env.simulator.predict

    def slow(*arguments: object) -> object:
        time.sleep(0.03 * simulator.sampler.num_steps)
        return fast(*arguments)  # type: ignore[arg-type]

    simulator.predict = slow  # type: ignore[method-assign,assignment]
    advance(viewer, 17)
    assert simulator.sampler.num_steps < 4
    viewer.game.restart_measuring()
    steps = simulator.sampler.num_steps
    assert f"holding 10 frames/s with {steps} of 4 steps" in viewer.game.texts()
    tap("g")
    viewer.advance()
    assert simulator.sampler.num_steps == 4
    viewer.window.close()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of threads that were set, the present one last, without starting any."""
    threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    return threads


def test_fewer_threads_are_taken_where_more_are_slow_and_a_recording_goes_on_in_another_file(
    tmp_path: Path, threads: list[int]
) -> None:
    viewer = make_viewer(play_config(tmp_path, threads=0))
    game, seconds = viewer.game, {2: 0.02, 1: 0.04}
    game.clock.wait = lambda: setattr(game.clock, "busy_seconds", seconds[threads[-1]])  # type: ignore[method-assign]
    tap("r")
    advance(viewer, 20)
    assert threads == [2]
    seconds[2] = 0.2  # another program has begun to compute
    advance(viewer, 30)
    assert threads == [2, 1]
    assert game.status.message == "computing with 1 thread: that is faster"
    tap("r")
    viewer.advance()
    openings = sorted((tmp_path / "video").glob("*.replay.safetensors"))
    assert [Opening.load(path).settings["threads"] for path in openings] == ["1", "2"]  # -2 before .replay
    viewer.window.close()


@pytest.mark.parametrize("adapts", [True, False])
def test_threads_that_were_asked_for_stay(tmp_path: Path, threads: list[int], adapts: bool) -> None:
    viewer = make_viewer(play_config(tmp_path, fps=100_000, threads=0 if adapts else 1))
    advance(viewer, 40)
    assert (set(threads) == {2}) is not adapts
    viewer.window.close()


def test_another_key_does_what_the_settings_say(tmp_path: Path) -> None:
    viewer = make_viewer(play_config(tmp_path), {"pause": ["j"], "save_slot": ["y", "e"]})
    tap("j")
    tap("e")
    viewer.advance()
    assert viewer.game.is_paused
    assert viewer.game.status.message == "saved to slot 1"
    tap("space")
    viewer.advance()
    assert viewer.game.is_paused
    viewer.window.close()


@pytest.mark.parametrize("name", ["jumpkey", "pad jump"])
def test_a_control_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(WorldError, match=f"there is no .*'{name}'"):
        CommandKeys(bind(TINY_ACTIONS, {"pause": [name]}).commands)


def test_a_stick_is_held_until_it_is_back_in_the_middle() -> None:
    held = HeldKeys(["pad lefty-", "pad lefty+"])
    seen = []
    for value in (0, -20_000, -15_000, -10_000, 30_000, 0):
        held.handle(pygame.event.Event(pygame.CONTROLLERAXISMOTION, axis=1, value=value, instance_id=0))
        seen.append(held.take())
    assert seen == [set(), {"pad lefty-"}, {"pad lefty-"}, set(), {"pad lefty+"}, set()]


def test_the_distance_of_a_stick_counts_where_its_axis_is_analog() -> None:
    held = HeldKeys(["pad lefty-", "pad lefty+", "pad righttrigger", "a"], ["pad lefty-", "pad lefty+"])
    seen = []
    for axis, value in ((1, -3_000), (1, -32_767), (1, 18_350), (5, 30_000), (1, 0), (5, 0)):
        held.handle(pygame.event.Event(pygame.CONTROLLERAXISMOTION, axis=axis, value=value, instance_id=0))
        seen.append(held.take_distances())
    half = {"pad lefty+": pytest.approx(0.5, abs=0.001)}
    trigger = {"pad righttrigger": None}
    assert seen == [{}, {"pad lefty-": 1.0}, half, half | trigger, trigger, {}]
    held.handle(pygame.event.Event(pygame.CONTROLLERAXISMOTION, axis=1, value=30_000, instance_id=0))
    held.handle(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    assert held.take_distances() == {}


def test_the_mouse_goes_as_far_as_it_was_moved_and_keeps_the_rest() -> None:
    def moved(mouse: MouseTurn, *pixels: tuple[int, int]) -> list[dict[str, float | None]]:
        taken = []
        for rel in pixels:
            mouse.handle(pygame.event.Event(pygame.MOUSEMOTION, rel=rel))
            taken.append(mouse.take())
        return taken

    right, half = {"mouse right": 1.0}, {"mouse right": 0.5}
    analog = MouseTurn({"mouse right": (0.5, 1.0), "mouse up": (1.0,)})
    assert moved(analog, (9, 0), (1, 0), (30, 0), (0, 0), (0, -20)) == [
        {},
        half,
        right,
        half,
        {"mouse up": 1.0},
    ]
    assert moved(MouseTurn(), (-19, 0), (-21, 0), (0, 0)) == [{}, *[{"mouse left": None}] * 2]


def test_a_gamepad_plays_and_commands(tmp_path: Path) -> None:
    viewer = make_viewer(play_config(tmp_path))
    pad(pygame.CONTROLLERBUTTONDOWN, button=11, instance_id=0)  # the cross, up
    pad(pygame.CONTROLLERAXISMOTION, axis=2, value=30_000, instance_id=0)
    states = [viewer.session.env.get_state(), *advance(viewer, 2)]
    expected = viewer.session.env.simulator.step(states[0], torch.tensor([[1, 0, 2]]))[0]
    assert np.array_equal(states[1].frames, expected)
    pad(pygame.CONTROLLERBUTTONDOWN, button=9, instance_id=0)  # the left shoulder goes back
    viewer.advance()
    assert viewer.game.is_rewinding
    pad(pygame.CONTROLLERBUTTONUP, button=9, instance_id=0)
    pad(pygame.CONTROLLERBUTTONDOWN, button=6, instance_id=0)  # start
    viewer.advance()
    assert viewer.game.is_paused
    viewer.window.close()


def test_the_mouse_turns_where_it_was_asked_to(tmp_path: Path) -> None:
    viewer = make_viewer(play_config(tmp_path))
    actions: list[list[int]] = []
    begin = viewer.session.begin
    viewer.session.begin = lambda action, who=None: (actions.append(action.tolist()), begin(action, who))[1]  # type: ignore[method-assign]

    def move(pixels: int) -> None:
        pygame.event.post(
            pygame.event.Event(pygame.MOUSEMOTION, rel=(pixels, 0), pos=(5, 5), buttons=(0, 0, 0))
        )

    move(45)
    viewer.advance()
    tap("c")
    viewer.advance()
    move(45)
    advance(viewer, 3)
    move(-25)
    advance(viewer, 1)
    assert viewer.window.has_mouse
    tap("c")
    viewer.advance()
    assert not viewer.window.has_mouse
    turns = [action[2] for action in actions]
    assert turns == [0, 0, 2, 2, 0, 1, 0]
    viewer.window.close()


def test_pixels_stay_whole_in_a_window_of_any_size() -> None:
    window = Window(WIDTH, HEIGHT, title="test", scale=2, has_strip=True)
    frame = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    for size in ((400, 500), (333, 222), (48, 32), (30, 20), (1000, 90)):
        window._screen = pygame.display.set_mode(size, pygame.RESIZABLE)
        window.show(frame, ["text"])
        shot = window.screenshot()
        assert shot.shape[:2] == size[::-1]
        if window.scale >= 1:
            x, y = window._place
            expected = frame.repeat(window.scale, axis=0).repeat(window.scale, axis=1)
            assert np.array_equal(shot[y : y + len(expected), x : x + expected.shape[1]], expected)
    window.close()


def test_full_screen_and_back() -> None:
    window = Window(WIDTH, HEIGHT, title="test", scale=3, has_strip=True)
    size = window.screenshot().shape
    window.toggle_full_screen()
    assert window.is_full_screen
    window.show(np.zeros((HEIGHT, WIDTH, 3), np.uint8), ["text"])
    window.toggle_full_screen()
    assert not window.is_full_screen
    assert window.screenshot().shape == size
    window.close()


def test_help_fits_and_lists_what_a_gamepad_does(viewer: Viewer) -> None:
    tap("h")
    viewer.advance()
    texts = [row[1] for row in viewer._page]
    assert Command.HOLD_RATE.value in texts and Command.FULL_SCREEN.value in texts
    page = viewer.window._page
    assert page is not None
    assert page[1].get_width() <= WIDTH * SCALE and page[1].get_height() <= HEIGHT * SCALE


def test_releasing_a_key_of_the_window_still_counts(viewer: Viewer) -> None:
    press("up")
    viewer.advance()
    release("up")
    viewer.advance()
    assert viewer._held.take() == set()

"""Watch a player in any environment that shows frames, a dream or a real game: in a window, or as a video."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from worldsim.actions import ActionLayout
from worldsim.play.game import ENDED_SECONDS
from worldsim.play.recording import Recording
from worldsim.play.session import Player
from worldsim.runtime.interrupt import StopRequest
from worldsim.runtime.timing import FrameClock
from worldsim.ui.display import PAUSE_POLL_MS, saving_when_display_is_lost

if TYPE_CHECKING:  # pygame, which play without a window does not need
    from worldsim.ui.window import Window


@dataclass(slots=True)
class Watched:
    """An episode that was watched, so far."""

    num_frames: int = 0
    total_reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        return self.terminated or self.truncated


class Spectator:
    """Shows and records what a player does.

    Args:
        env: Observations are frames `[H, W, 3]` uint8.
        frame_rate: Frames per second to hold in the window.

    Attributes:
        is_paused: Whether frames wait for a key.
    """

    def __init__(
        self,
        env: gym.Env[np.ndarray, np.ndarray],
        player: Player,
        actions: ActionLayout,
        *,
        name: str = "policy",
        window: Window | None = None,
        recording: Recording | None = None,
        frame_rate: float = 0.0,
    ) -> None:
        self._env, self._player, self._name = env, player, name
        self._window, self._recording = window, recording
        self._clock = FrameClock(frame_rate if window is not None else 0.0)
        self.is_closed = self.is_paused = False
        self._commands: Any = None
        if window is not None:
            from worldsim.ui.bindings import bind
            from worldsim.ui.input import CommandKeys

            self._commands = CommandKeys(bind(actions).commands)

    def watch(self, seed: int, num_frames: int = 0) -> Iterator[Watched]:
        """Yield each episode when it has ended, and the one under way when there is nothing more to watch.

        Args:
            seed: Of the environment; the player gets it and those after it, one for each episode.
            num_frames: End after so many; 0 goes on until the window is closed.

        Raises:
            KeyboardInterrupt: After Ctrl-C, once the frame under way is done.
        """
        seen, env_seed = 0, seed
        with self._saving(), StopRequest() as stop:
            while not (self.is_closed or stop.requested or 0 < num_frames <= seen):
                frame, _ = self._env.reset(seed=env_seed)
                self._player.reset(seed)
                limit = num_frames - seen if num_frames else None
                episode = self._play(frame, limit, stop)
                yield episode
                seen += episode.num_frames
                seed, env_seed = seed + 1, None  # the environment's stream goes on by itself

    def _saving(self) -> AbstractContextManager[None]:
        """While entered, finish the recording if the window's display goes away."""
        if self._window is None or self._recording is None:
            return nullcontext()
        recording = self._recording

        def save() -> str:
            recording.close()
            return f"recorded {', '.join(map(str, recording.paths)) or 'nothing'}"

        return saving_when_display_is_lost(save)

    def _play(self, frame: np.ndarray, limit: int | None, stop: StopRequest) -> Watched:
        """Play an episode to its end, or until there is nothing more to watch."""
        episode, reward = Watched(), 0.0
        self._show(frame, episode)
        while not (episode.has_ended or episode.num_frames == limit or stop.requested):
            self._answer_keys(frame, episode, stop)
            if self.is_closed:
                break
            action = self._player.act(frame)
            if self._recording is not None:
                self._recording.add(frame, action, reward=reward, terminated=False)
            frame, reward, episode.terminated, episode.truncated, _ = self._env.step(action)
            reward = float(reward)
            episode.num_frames += 1
            episode.total_reward += reward
            self._show(frame, episode)
            self._clock.wait()
        if self._recording is not None:
            self._recording.end_episode(frame, reward=reward, terminated=episode.terminated)
        self._linger(frame, episode, stop)
        return episode

    def _linger(self, frame: np.ndarray, episode: Watched, stop: StopRequest) -> None:
        """Let an end be looked at for a moment, in a window."""
        if self._window is None or not episode.has_ended:
            return
        until = time.perf_counter() + ENDED_SECONDS
        while time.perf_counter() < until and not (self.is_closed or stop.requested):
            self._window.wait_for_event(PAUSE_POLL_MS)
            self._answer_keys(frame, episode, stop)

    def _answer_keys(self, frame: np.ndarray, episode: Watched, stop: StopRequest) -> None:
        """Do what keys command; while paused, wait for more of them."""
        if self._window is None:
            return
        self._answer()
        while self.is_paused and not (self.is_closed or stop.requested):
            self._show(frame, episode)
            self._window.wait_for_event(PAUSE_POLL_MS)
            self._answer()

    def _answer(self) -> None:
        from worldsim.ui.bindings import Command

        assert self._window is not None
        for event in self._window.events():
            match self._commands.find(event):
                case Command.QUIT:
                    self.is_closed = True
                case Command.PAUSE:
                    self.is_paused = not self.is_paused

    def _show(self, frame: np.ndarray, episode: Watched) -> None:
        if self._window is None:
            return
        numbers = [f"frame {episode.num_frames}", f"return {episode.total_reward:.0f}"]
        paused = ["paused"] if self.is_paused else []
        texts = [f"{self._name} plays", *numbers, *paused, "Space pauses, Esc quits"]
        self._window.show(frame, texts)

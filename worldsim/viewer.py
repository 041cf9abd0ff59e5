"""Play in a window: keys to action, frame to screen, then the commit, at the world's frame rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from typing import Protocol

import numpy as np

from worldsim.interrupt import StopRequest
from worldsim.session import Player, PlaySession, steady_memory
from worldsim.timing import FrameClock
from worldsim.viewer_keys import Command, CommandKeys, HeldKeys, help_rows
from worldsim.viewer_window import Window

TEXT_SECONDS = 0.25
PAUSE_POLL_MS = 50


class KeyboardPlayer(Player, Protocol):
    """A player that is told which keys are down."""

    held: Collection[str]

    @property
    def keys(self) -> frozenset[str]:
        """Names of all keys that mean something."""
        ...


class Viewer:
    """A window to play in.

    Args:
        session: What is played.
        keyboard: The person.
        policy: A program that can play instead.
        policy_name: What to call it.
        policy_plays: Whether the program plays first.
        frame_rate: Frames per second to hold; None is the world's own, 0 as many as possible.
        scale: Screen pixels per frame pixel; 0 chooses.
        seed: For the program.

    Attributes:
        session: What is played.
        window: The window.
        policy_plays: Whether the program plays at the moment.
        is_paused: Whether frames wait for a key.
        shows_help: Whether the help lies over the picture.
        is_closed: Whether the person has had enough.

    Raises:
        WorldError: If no window can be opened, or the world's keys do not exist.
    """

    def __init__(
        self,
        session: PlaySession,
        keyboard: KeyboardPlayer,
        policy: Player,
        *,
        policy_name: str = "policy",
        policy_plays: bool = False,
        frame_rate: float | None = None,
        scale: int = 0,
        seed: int = 0,
    ) -> None:
        world = session.env.world.config
        self.session = session
        self._keyboard, self._policy = keyboard, policy
        self._policy_name, self.policy_plays = policy_name, policy_plays
        self._policy_seed = seed
        self._clock = FrameClock(world.frame_rate if frame_rate is None else frame_rate)
        self.window = Window(world.width, world.height, title=world.name, scale=scale, has_strip=True)
        self._held = HeldKeys(keyboard.keys)
        self._commands = CommandKeys(world.actions)
        self._help = help_rows(world.actions, self._commands)
        self.is_paused, self.shows_help, self.is_closed = False, False, False
        self._wants_step = False
        help_keys = self._commands.keys[Command.HELP]
        self._status = _Status(session, f"{help_keys[0].upper()}: help" if help_keys else "")

    def run(self, num_frames: int = 0, start: int | str | None = None) -> None:
        """Play until the window is closed.

        Args:
            num_frames: End after so many; 0 does not.
            start: Start moment to begin from; None draws one.

        Raises:
            KeyboardInterrupt: After Ctrl-C, once the frame under way is done.
        """
        self._restart(start)
        try:
            with StopRequest() as stop, steady_memory():
                while not (self.is_closed or stop.requested):
                    if num_frames and self.session.num_frames >= num_frames:
                        break
                    self.advance()
        finally:
            self.window.close()

    def advance(self) -> None:
        """Answer keys, then play one frame and wait for the next one to be due; while paused only wait."""
        for event in self.window.events():
            command = None if self._held.handle(event) else self._commands.find(event)
            if command is not None:
                self._obey(command)
        if self.is_closed:
            return
        if self.is_paused and not self._wants_step:
            self._draw(self.session.observation)
            self.window.wait_for_event(PAUSE_POLL_MS)
            return
        self._wants_step = False
        self._play_frame()
        self._clock.wait()

    def _play_frame(self) -> None:
        """The order of things: the picture is on the screen before its commit begins."""
        self._keyboard.held = self._held.take()
        player = self._policy if self.policy_plays else self._keyboard
        frame = self.session.begin(player.act(self.session.observation))
        self._draw(frame)
        self.session.finish()
        self._status.note_frame(is_single=self.is_paused)
        if self.session.has_ended:
            self._restart(None)
            self._status.restart()

    def _obey(self, command: Command) -> None:
        match command:
            case Command.HELP:
                self.shows_help = not self.shows_help
            case Command.PAUSE:
                self.is_paused = not self.is_paused
            case Command.STEP:
                self._wants_step = self.is_paused
            case Command.RESET:
                self._restart(self.session.info["start"])
            case Command.NEXT_START:
                names = self.session.env.start_names
                self._restart((names.index(self.session.info["start"]) + 1) % len(names))
            case Command.TAKE_OVER:
                self.policy_plays = not self.policy_plays
            case Command.QUIT:
                self.is_closed = True
        self._status.restart()

    def _restart(self, start: int | str | None) -> None:
        self.session.reset(start)
        self._policy.reset(self._policy_seed)
        self._policy_seed += 1
        self._draw(self.session.observation)

    def _draw(self, frame: np.ndarray) -> None:
        who = f"{self._policy_name} plays" if self.policy_plays else "you play"
        texts = self._status.texts(is_paused=self.is_paused, who=who)
        self.window.show(frame, texts, self._help if self.shows_help else ())


class _Status:
    """What the strip below the picture says; measured a few times a second, so that it can be read."""

    def __init__(self, session: PlaySession, hint: str) -> None:
        self.session = session
        self._hint = hint
        self._frame_times: deque[float] = deque(maxlen=30)
        self._texts: list[str] = []
        self._expires = 0.0

    def note_frame(self, *, is_single: bool) -> None:
        self._frame_times.append(time.perf_counter())
        if is_single:
            self.restart()

    def restart(self) -> None:
        """Measure anew: what happened so far says nothing about the frames to come."""
        self._frame_times.clear()
        self._expires = 0.0

    def texts(self, *, is_paused: bool, who: str) -> list[str]:
        now = time.perf_counter()
        if now >= self._expires:
            self._texts = self._measure(is_paused, who)
            self._expires = now + TEXT_SECONDS
        return self._texts

    def _measure(self, is_paused: bool, who: str) -> list[str]:
        session = self.session
        texts = [
            "paused" if is_paused else f"{self._frames_per_second():.1f} frames/s",
            f"step {session.times.latest_p50_ms():.0f} ms",
            session.env.device_choice.name,
            f"memory {session.env.memory_bytes / 2**20:.2f} MiB",
            f"frame {session.info['frame_index']}",
            who,
            "recording" if session.recording is not None else "",
            self._hint,
        ]
        return [text for text in texts if text]

    def _frames_per_second(self) -> float:
        if len(self._frame_times) < 2:
            return 0.0
        return (len(self._frame_times) - 1) / (self._frame_times[-1] - self._frame_times[0])

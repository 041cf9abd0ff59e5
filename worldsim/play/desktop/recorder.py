"""A person plays a real game in a window, and it is recorded."""

from __future__ import annotations

import time
from contextlib import closing

import pygame

from worldsim.games.entry import MAX_SEED, RealGame
from worldsim.play.desktop.dataset import PlayedDataset
from worldsim.play.game import ENDED_SECONDS, HUMAN, KeyboardPlayer
from worldsim.play.recording import Recording
from worldsim.runtime.interrupt import StopRequest
from worldsim.runtime.timing import FrameClock
from worldsim.ui.bindings import Bindings, Command, analog_controls, help_texts, join_controls
from worldsim.ui.display import PAUSE_POLL_MS, saving_when_display_is_lost
from worldsim.ui.input import CommandKeys, Gamepads, HeldKeys, MouseTurn
from worldsim.ui.keys import printed_names
from worldsim.ui.window import Row, Window

FIRST_SEED, SEEDS_PER_RUN = 4_100_000_000, 10_000
"""Games of this seed and above are a person's: programs that record, agents that train, and evaluations have
smaller ones."""
COMMANDS = {
    Command.HELP: "show or hide this help",
    Command.PAUSE: "pause, go on",
    Command.STEP: "one frame, while paused",
    Command.RESET: "end this episode, begin the next",
    Command.RECORD: "record no longer, or again",
    Command.MOUSE: "steer with the mouse, or no longer",
    Command.FULL_SCREEN: "full screen, or a window again",
    Command.QUIT: "quit",
}
"""What can be asked for here."""
KEY_BEGINS = "a key of the game begins"


class RecorderWindow:
    """A window to play a real game in, each of whose episodes is recorded.

    Args:
        game: What is played.
        person: The person at the keys.
        bindings: Which keys do what.
        dataset: Where the episodes go; None records nothing.
        seed: Decides which games are played.
        frame_rate: Frames a second to hold; None is the game's own, 0 as many as possible.
        scale: Screen pixels per frame pixel to begin with; 0 chooses.
        full_screen: Begin with the whole screen.

    Attributes:
        is_closed: Whether the person has had enough.
        is_paused: Whether frames wait for a key.
        is_recording: Whether what is played from now on is recorded.

    Raises:
        WorldError: If no window can be opened, or keys do not exist.
    """

    def __init__(
        self,
        game: RealGame,
        person: KeyboardPlayer,
        bindings: Bindings,
        dataset: PlayedDataset | None,
        *,
        seed: int = 0,
        frame_rate: float | None = None,
        scale: int = 0,
        full_screen: bool = False,
    ) -> None:
        self._game, self._person, self._dataset = game, person, dataset
        entry = game.entry
        analog = analog_controls(entry.actions, bindings)
        self._held = HeldKeys(person.keys, analog)
        commands = {command: bindings.commands[command] for command in COMMANDS}
        self._commands = CommandKeys(commands)
        self._mouse = MouseTurn(analog) if bindings.has_mouse else None
        title = f"{entry.name}, the game itself"
        self.window = Window(entry.width, entry.height, title=title, scale=scale, has_strip=True)
        if full_screen:
            self.window.toggle_full_screen()
        self._gamepads = Gamepads()
        printed = printed_names()
        self._help: list[Row] = [
            *help_texts(entry.actions, Bindings(bindings.buttons, {}), printed),
            *(
                (join_controls(keys, printed), COMMANDS[command])
                for command, keys in commands.items()
                if keys
            ),
        ]
        self._hint = f"{join_controls(commands[Command.HELP][:1], printed)}: help"
        self._page: list[Row] = []
        self._clock = FrameClock(entry.frame_rate if frame_rate is None else frame_rate)
        self.is_closed = self.is_paused = self._wants_step = False
        self.is_recording = dataset is not None
        self._recording: Recording | None = None
        self._seed = seed
        self._num_games = self._num_frames = 0
        self._ended_at = 0.0
        self._is_shown = True  # whether what the action recorded last led to has been seen
        self.begin()

    def run(self, num_frames: int = 0) -> None:
        """Play until the window is closed, or for so many frames; what was played is whole, however it ends.

        Raises:
            WorldError: If the game fails, or nothing can be recorded any more.
            KeyboardInterrupt: After a request to stop, once the frame under way is done.
        """
        with StopRequest() as stop, saving_when_display_is_lost(self._save), closing(self.window):
            try:
                while not (self.is_closed or stop.requested or 0 < num_frames <= self._num_frames):
                    if not self.window.survives(self.advance):  # which is as if it had been closed
                        self.is_closed = True
            finally:
                self.end_recording()

    def begin(self) -> None:
        """End the episode, and begin the next."""
        self.end_recording()
        before = self._num_games if self._dataset is None else max(self._num_games, self._dataset.number)
        number = self._seed * SEEDS_PER_RUN + before
        self._seen = self._game.reset(FIRST_SEED + number % (MAX_SEED + 1 - FIRST_SEED))
        self._num_games = before + 1
        self._person.reset(before)
        self._held.take_distances(
            self._mouse
        )  # what was tapped after the end of the last one begins no other
        self._num_steps, self._return = 0, 0.0
        self._waits_for_key = True  # nobody wants to learn from a game that nobody plays

    def advance(self) -> None:
        """Answer keys, then play a frame and wait until the next one is due; while paused only wait."""
        for event in self.window.events():
            self._answer(event)
        if self.is_closed:
            return
        if self._has_ended and time.perf_counter() > self._ended_at + ENDED_SECONDS:
            self.begin()
        is_still = self._has_ended or (self.is_paused and not self._wants_step)
        held = {} if is_still else self._held.take_distances(self._mouse)
        if is_still or (self._waits_for_key and not held):
            self._draw()
            self.window.wait_for_event(PAUSE_POLL_MS)
            return
        self._wants_step = self._waits_for_key = False
        self._play_frame(held)
        self._draw()
        self._clock.wait()

    def end_recording(self) -> None:
        """Finish the file of this episode, if anything of it was recorded; what follows goes into another."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        with recording:  # closes it; without the frame that was not seen it is whole, too
            if self._is_shown:
                seen = self._seen
                recording.end_episode(seen.frame, reward=seen.reward, terminated=seen.terminated)
        assert self._dataset is not None
        self._dataset.note(self._num_recorded + self._is_shown)

    @property
    def _has_ended(self) -> bool:
        return self._seen.terminated or self._seen.truncated

    def _play_frame(self, held: dict[str, float | None]) -> None:
        self._person.held = held
        action = self._person.act(self._seen.frame)
        if self.is_recording and self._dataset is not None:
            if self._recording is None:
                self._recording, self._num_recorded = self._dataset.open(), 0
            reward = self._seen.reward
            self._recording.add(self._seen.frame, action, reward=reward, terminated=False, player=HUMAN)
            self._num_recorded += 1
        self._is_shown = False
        self._seen = self._game.step(action)
        self._is_shown = True
        self._num_steps += 1
        self._num_frames += 1
        self._return += self._seen.reward
        if self._has_ended:
            self._ended_at = time.perf_counter()
            self.end_recording()

    def _answer(self, event: pygame.event.Event) -> None:
        self._gamepads.handle(event)
        if event.type == pygame.QUIT:
            self.is_closed = True
        if self.window.has_mouse and self._mouse is not None:
            self._mouse.handle(event)
        if not self._held.handle(event) and (command := self._commands.find(event)) is not None:
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Command.HELP:
                self._page = [] if self._page else self._help
            case Command.QUIT if self._page:
                self._page = []
            case Command.QUIT:
                self.is_closed = True
            case Command.PAUSE:
                self.is_paused = not self.is_paused
            case Command.STEP:
                self._wants_step = self.is_paused
            case Command.RESET:
                self.begin()
            case Command.RECORD if self._dataset is not None:
                self.end_recording()
                self.is_recording = not self.is_recording
            case Command.MOUSE if self._mouse is not None:
                self._mouse.stop()
                self.window.has_mouse = not self.window.has_mouse
            case Command.FULL_SCREEN:
                self.window.toggle_full_screen()

    def _draw(self) -> None:
        doing = "paused" if self.is_paused else KEY_BEGINS if self._waits_for_key else "you play"
        doing = "the game is over" if self._has_ended else doing
        what = "not recorded"
        if self.is_recording and self._dataset is not None:
            what = f"recorded as episode {self._dataset.number} ({self._dataset.split})"
        texts = [doing, f"frame {self._num_steps}", f"return {self._return:.4g}", what, self._hint]
        self.window.show(self._seen.frame, texts, self._page)

    def _save(self) -> str:
        """Finish what is being recorded; returns what was recorded."""
        self.end_recording()
        return "; ".join(self._dataset.summary()) if self._dataset is not None else "nothing was recorded"

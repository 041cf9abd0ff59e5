"""Play in a window: keys to action, frame to screen, then the commit, at the world's frame rate."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

import numpy as np
import pygame

from worldsim.errors import WorldError
from worldsim.interrupt import StopRequest
from worldsim.players import NUM_WATCHED, Players
from worldsim.session import Player, PlaySession, steady_memory
from worldsim.slots import QUICK
from worldsim.timing import FrameClock
from worldsim.viewer_branches import BranchPanes, Kind
from worldsim.viewer_files import PlayFiles, PlayFolders
from worldsim.viewer_keys import Command, CommandKeys, HeldKeys, help_rows
from worldsim.viewer_status import Status
from worldsim.viewer_window import Row, Window

PAUSE_POLL_MS = 50
HUMAN = "human"
# Any other command leaves the panes first.
COMMANDS_WITH_PANES = {
    Command.BRANCH,
    Command.HELP,
    Command.NEXT_START,
    Command.PAUSE,
    Command.RESET,
    Command.SCREENSHOT,
    Command.STEP,
}


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
        programs: Those who can play instead, by name; they take turns in this order.
        folders: Where slots, recordings and screenshots go.
        first: Who plays first, `human` or the name of a program.
        frame_rate: Frames per second to hold; None is the world's own, 0 as many as possible.
        scale: Screen pixels per frame pixel; 0 chooses.
        seed: For the programs.

    Attributes:
        session: What is played.
        window: The window.
        players: Who plays.
        is_paused: Whether frames wait for a key.
        is_closed: Whether the person has had enough.

    Raises:
        WorldError: If no window can be opened, or the world's keys do not exist.
    """

    def __init__(
        self,
        session: PlaySession,
        keyboard: KeyboardPlayer,
        programs: Mapping[str, Player],
        folders: PlayFolders,
        *,
        first: str = HUMAN,
        frame_rate: float | None = None,
        scale: int = 0,
        seed: int = 0,
    ) -> None:
        world = session.env.world.config
        self.session = session
        self._keyboard = keyboard
        self.players = Players({HUMAN: keyboard, **programs}, first, seed)
        self._clock = FrameClock(world.frame_rate if frame_rate is None else frame_rate)
        self._files = PlayFiles(session, folders)
        self.window = Window(world.width, world.height, title=world.name, scale=scale, has_strip=True)
        self._held = HeldKeys(keyboard.keys)
        self._commands = CommandKeys(world.actions)
        self._rewind_keys = HeldKeys(self._commands.keys[Command.REWIND])
        self._help = help_rows(world.actions, self._commands)
        self._page: list[Row] = []
        self._panes: BranchPanes | None = None
        self.is_paused, self.is_closed = False, False
        self._wants_step, self._is_rewinding = False, False
        help_keys = self._commands.keys[Command.HELP]
        self._status = Status(session, f"{help_keys[0].upper()}: help" if help_keys else "")

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
                    self._advance_while_open()
        finally:
            self.window.close()

    def advance(self) -> None:
        """Answer keys, then show one frame and wait for the next one to be due; while paused only wait."""
        for event in self.window.events():
            if self._panes is not None and self._panes.handle(event, self.window):
                self._pick()
            is_held = self._held.handle(event) or self._rewind_keys.handle(event)
            command = None if is_held else self._commands.find(event)
            if command is not None:
                self._obey(command, event)
        if self.is_closed:
            return
        if self._rewind_keys.take():
            self._leave_panes()
            self._rewind()
        elif self._is_rewinding:
            self._end_rewind()
        if self._is_rewinding:
            self._clock.wait()
        elif self.is_paused and not self._wants_step:
            self._draw(self.session.observation)
            self.window.wait_for_event(PAUSE_POLL_MS)
        else:
            self._wants_step = False
            if self._panes is None:
                self._play_frame()
            else:
                self._play_panes(self._panes)
            self._clock.wait()

    def _advance_while_open(self) -> None:
        """Advance; a window that was taken away in the middle of it ends the game as closing it does."""
        try:
            self.advance()
        except pygame.error:
            if self.window.is_open:
                raise
            self.is_closed = True

    def _play_frame(self) -> None:
        """The order of things: the picture is on the screen before its commit begins."""
        if self.session.has_ended:
            self._restart(None)
            self._status.restart()
        self._keyboard.held = self._held.take()
        action = self.players.act(self.session.observation)
        self._draw(self.session.begin(action, self.players.name))
        with self._saying_errors():
            self.session.finish()
        self._status.note_frame(is_single=self.is_paused)
        if self.session.has_ended:
            self._restart(None)
            self._status.restart()

    def _play_panes(self, panes: BranchPanes) -> None:
        self._keyboard.held = self._held.take()
        panes.begin()
        self._draw(self.session.observation)
        panes.finish()
        self._status.note_frame(is_single=self.is_paused)

    def _next_panes(self) -> None:
        """Show branches of one kind, then of the other, then none."""
        if self._is_rewinding:
            self._end_rewind()
        shown = None if self._panes is None else self._panes.kind
        self._leave_panes()
        following = {None: Kind.SEEDS, Kind.SEEDS: Kind.PLAYERS, Kind.PLAYERS: None}[shown]
        if following is not None:
            self._panes = BranchPanes(self.session, self.players, following)

    def _leave_panes(self) -> None:
        if self._panes is not None:
            self._panes = None
            self.players.begin(self.session.recent_frames(NUM_WATCHED))

    def _pick(self) -> None:
        panes, self._panes = self._panes, None
        assert panes is not None
        with self._saying_errors():
            panes.pick()
        self._after_jump()

    def _rewind(self) -> None:
        """Show the frame before the one that is shown, and get ready to play on from there."""
        history = self.session.history
        if history is None:
            return
        if not self._is_rewinding:
            self._is_rewinding = True
            self._status.restart()
        frame = history.back()
        if frame is not None:
            self._draw(frame)
            history.prepare()

    def _end_rewind(self) -> None:
        assert self.session.history is not None
        self._is_rewinding = False
        with self._saying_errors():
            self.session.go_to(*self.session.history.now(), is_rewound=True)
        self._after_jump()

    def _obey(self, command: Command, event: pygame.event.Event) -> None:
        if self._panes is not None and command not in COMMANDS_WITH_PANES:
            self._leave_panes()
        match command:
            case Command.RESET if self._panes is not None:
                self._pick()
            case Command.NEXT_START if self._panes is not None:
                self._panes.choose_next()
            case Command.BRANCH:
                self._next_panes()
            case Command.HELP:
                self._page = [] if self._page is self._help else self._help
            case Command.SLOTS:
                self._page = self._files.slot_rows() if self._page in ([], self._help) else []
            case Command.PAUSE:
                self.is_paused = not self.is_paused
            case Command.STEP:
                self._wants_step = self.is_paused
            case Command.RESET:
                self._restart(self.session.start or None)
            case Command.NEXT_START:
                names = self.session.env.start_names
                known = self.session.start in names
                self._restart((names.index(self.session.start) + 1) % len(names) if known else 0)
            case Command.TAKE_OVER:
                self.players.switch(self.session.recent_frames(NUM_WATCHED))
            case Command.QUICK_SAVE:
                self._save(QUICK)
            case Command.QUICK_LOAD:
                self._load(QUICK)
            case Command.SAVE_SLOT:
                self._save(pygame.key.name(event.key))
            case Command.LOAD_SLOT:
                self._load(pygame.key.name(event.key))
            case Command.RECORD:
                self._status.say(self._files.toggle_recording())
            case Command.SCREENSHOT:
                self._status.say(self._files.screenshot(self.window.screenshot()))
            case Command.QUIT:
                self.is_closed = True
        self._status.restart()

    def _save(self, slot: str) -> None:
        if self._is_rewinding:
            self._end_rewind()  # what is on the screen is what is saved
        self._status.say(self._files.save_slot(slot))

    def _load(self, slot: str) -> None:
        self._is_rewinding = False
        before = self.session.observation
        self._status.say(self._files.load_slot(slot))
        if self.session.observation is not before:
            self._after_jump()

    def _after_jump(self) -> None:
        self.players.begin(self.session.recent_frames(NUM_WATCHED))
        self._status.restart()
        self._draw(self.session.observation)

    def _restart(self, start: int | str | None) -> None:
        self._is_rewinding = False
        with self._saying_errors():
            self.session.reset(start)
        self.players.begin()
        self._draw(self.session.observation)

    @contextmanager
    def _saying_errors(self) -> Iterator[None]:
        """Say that nothing can be recorded any more, and let play go on; other errors go their way."""
        recording = self.session.recording
        try:
            yield
        except WorldError as error:
            if recording is None:
                raise
            self._status.say(str(error))
            with suppress(WorldError):
                self.session.stop_recording()

    def _draw(self, frame: np.ndarray) -> None:
        who = "you play" if self.players.name == HUMAN else f"{self.players.name} plays"
        if self._panes is not None:
            who = "Tab chooses a pane, Enter picks it"
        doing = "rewinding" if self._is_rewinding else "paused" if self.is_paused else ""
        texts = self._status.texts(doing=doing, who=who)
        page, message, panes = self._page, self._status.message, self._panes
        if panes is None:
            self.window.show(frame, texts, page, message)
        else:
            self.window.show_panes(panes.frames, panes.labels, panes.chosen, texts, page, message)

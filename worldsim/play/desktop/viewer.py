"""Play in a window: keys to action, frame to screen, then the commit, at the world's frame rate."""

from __future__ import annotations

import textwrap
from contextlib import closing

import numpy as np
import pygame

from worldsim.play.desktop.branch_panes import BranchPanes, Kind
from worldsim.play.game import OVER, Game
from worldsim.play.session import NUM_WATCHED
from worldsim.ui.bindings import Command, analog_controls, help_texts
from worldsim.ui.display import PAUSE_POLL_MS, saving_when_display_is_lost
from worldsim.ui.input import CommandKeys, Gamepads, HeldKeys, MouseTurn, is_shifted
from worldsim.ui.keys import printed_names
from worldsim.ui.window import Row, Window

ABOUT_WIDTH = 64
"""Letters in a line of what a world is about."""
# Any other command leaves the panes first.
COMMANDS_WITH_PANES = {
    Command.BEST,
    Command.BRANCH,
    Command.CLIP,
    Command.FULL_SCREEN,
    Command.HELP,
    Command.NEXT_START,
    Command.PAUSE,
    Command.RESET,
    Command.SCREENSHOT,
    Command.STEP,
}


class Viewer:
    """A window to play in.

    Args:
        game: What is done in the window, which shows its frames from now on.
        scale: Screen pixels per frame pixel to begin with; 0 chooses.
        full_screen: Begin with the whole screen.

    Raises:
        WorldError: If no window can be opened, or keys do not exist.
    """

    def __init__(self, game: Game, *, scale: int = 0, full_screen: bool = False) -> None:
        self.game, self.session, self.players = game, game.session, game.players
        game.show = self._draw
        world, bindings = game.session.env.world.config, game.bindings
        # Keys that do not exist are found before a window is opened for them.
        analog = analog_controls(world.actions, bindings)
        self._held = HeldKeys(game.person.keys, analog)
        self._commands = CommandKeys(bindings.commands)
        self._rewind_keys = HeldKeys(bindings.commands[Command.REWIND])
        self._mouse = MouseTurn(analog) if bindings.has_mouse else None
        self.window = Window(world.width, world.height, title=world.name, scale=scale, has_strip=True)
        if full_screen:
            self.window.toggle_full_screen()
        self._gamepads = Gamepads()
        self._help: list[Row] = []
        self._page: list[Row] = []
        self._best: list[Row] = []
        self._was_over = False
        self._name_keys()
        self._panes: BranchPanes | None = None

    def run(self, num_frames: int = 0, start: int | str | None = None) -> None:
        """Play until the window is closed; see `Game.run`."""
        with saving_when_display_is_lost(self._save), closing(self.window):
            self.game.run(self._advance_while_open, num_frames, start)

    def advance(self) -> None:
        """Answer keys, then show one frame and wait for the next one to be due; while paused only wait."""
        for event in self.window.events():
            self._answer(event)
        if self.game.is_closed:
            return
        rewinds = bool(self._rewind_keys.take())
        if rewinds:
            self._leave_panes()
        if self._panes is not None and not self.game.is_rewinding:
            has_moved = self._play_panes(self._panes)
        else:
            is_playing = rewinds or not self.game.is_paused or self.game.wants_step
            has_moved = self.game.advance(
                self._held.take_distances(self._mouse) if is_playing else (), rewinds=rewinds
            )
        self._tell_ending()
        if not has_moved:
            self._draw(self.session.observation)
            self.window.wait_for_event(PAUSE_POLL_MS)

    def _tell_ending(self) -> None:
        """Show the best games once a game of the person's has ended, until the next begins."""
        was_over, self._was_over = self._was_over, self.session.ended
        if self._was_over and not was_over and self.game.status.verdict and not self._page:
            self._page = self._best = self._best_rows()
        elif was_over and not self._was_over and self._page is self._best:
            self._page = []

    def _best_rows(self) -> list[Row]:
        return list(self.game.files.best_games())

    def _name_keys(self) -> None:
        """Name the keys in help and strip as the keyboard's layout prints them."""
        is_open, printed = self._page is self._help, printed_names()
        world = self.session.env.world.config
        about = [("", line) for line in textwrap.wrap(world.about, ABOUT_WIDTH)]
        self._help = [
            *about,
            *([("", "")] if about else []),
            *help_texts(world.actions, self.game.bindings, printed),
        ]
        self._page = self._help if is_open and self._page else self._page
        self.game.name_keys(printed)

    def _answer(self, event: pygame.event.Event) -> None:
        self._gamepads.handle(event)
        if event.type == pygame.QUIT:
            self.game.is_closed = True
        if event.type == pygame.KEYMAPCHANGED:
            self._name_keys()
        if self.window.has_mouse and self._mouse is not None:
            self._mouse.handle(event)
        elif self._panes is not None and self._panes.handle(event, self.window):
            self._pick()
        held, rewinds = self._held.handle(event), self._rewind_keys.handle(event)
        found = None if held or rewinds else self._commands.find_numbered(event)
        if found is not None:
            self._obey(*found, is_shifted=is_shifted(event))

    def _advance_while_open(self) -> None:
        """Advance; a window that was taken away in the middle of it ends the game as closing it does."""
        if not self.window.survives(self.advance):
            self.game.is_closed = True

    def _save(self) -> str:
        """Finish what is being recorded; returns what was recorded."""
        self.session.stop_recording()
        return f"recorded {', '.join(map(str, self.session.recorded)) or 'nothing'}"

    def _play_panes(self, panes: BranchPanes) -> bool:
        if not self.game.take_step():
            return False
        self.game.hold(self._held.take_distances(self._mouse))
        panes.act()
        self._draw(self.session.observation)
        panes.finish()
        self.game.status.note_frame(is_single=self.game.is_paused)
        self.game.clock.wait()
        return True

    def _next_panes(self) -> None:
        """Show branches of one kind, then of the other, then none."""
        if self.game.is_rewinding:
            self.game.end_rewind()
        shown = None if self._panes is None else self._panes.kind
        self._leave_panes()
        following = {None: Kind.SEEDS, Kind.SEEDS: Kind.PLAYERS, Kind.PLAYERS: None}[shown]
        if self.session.ended:
            self.game.status.say(OVER)
        elif following is not None:
            self._panes = BranchPanes(self.session, self.players, following)

    def _leave_panes(self) -> None:
        if self._panes is not None:
            self._panes = None
            self.players.begin(self.session.recent_frames(NUM_WATCHED))

    def _pick(self) -> None:
        panes, self._panes = self._panes, None
        assert panes is not None
        with self.game.saying_errors():
            panes.pick_chosen()
        self.game.after_jump()

    def _obey(self, command: Command, number: int, *, is_shifted: bool) -> None:
        if command is Command.QUIT and (self._page or self._panes is not None):
            if self._page:
                self._page = []
            else:
                self._leave_panes()
            return
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
                self._page = self._slot_rows() if self._page in ([], self._help) else []
            case Command.BEST:
                self._page = [] if self._page and self._page is self._best else self._best_rows()
                self._best = self._page
            case Command.SCREENSHOT:
                self.game.status.say(self.game.files.screenshot(self.window.screenshot()))
            case Command.FULL_SCREEN:
                self.window.toggle_full_screen()
            case Command.MOUSE:
                self._toggle_mouse()
            case Command.SAVE_SLOT | Command.LOAD_SLOT:
                self.game.obey(command, str(number))
            case _:
                self.game.obey(command, is_shifted=is_shifted)
        self.game.restart_measuring()

    def _toggle_mouse(self) -> None:
        if self._mouse is None:
            self.game.status.say("there is nothing in this world that the mouse turns")
            return
        self._mouse.stop()
        self.window.has_mouse = not self.window.has_mouse

    def _slot_rows(self) -> list[Row]:
        rows: list[Row] = [
            (
                "" if slot.picture is None else slot.picture,
                f"{slot.name}: {slot.saved_at:%Y-%m-%d %H:%M:%S}  {slot.note}",
            )
            for slot in self.game.files.slots()
        ]
        return rows or [("", "no slot holds anything")]

    def _draw(self, frame: np.ndarray) -> None:
        panes, page, message = self._panes, self._page, self.game.status.message
        if panes is None:
            inspector = self.game.inspector
            self.window.show(frame, self.game.texts(), page, message, inspector.rows(), inspector.map())
        else:
            texts = self.game.texts("Tab chooses a pane, Enter picks it, Esc leaves")
            self.window.show_panes(panes.frames, panes.labels, panes.chosen, texts, page, message)

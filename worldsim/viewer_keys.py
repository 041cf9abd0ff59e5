"""Keys: which are held, which were tapped between two frames, and which command the player."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import pygame

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.viewer_window import Row


class Command(Enum):
    """What a key can do besides playing; the value says it in the help."""

    HELP = "show or hide this help"
    PAUSE = "pause, go on"
    STEP = "one frame, while paused"
    RESET = "begin again from this start; of panes, pick one"
    NEXT_START = "begin from the next start; of panes, choose the next"
    REWIND = "hold to go back, let go to play on from there"
    QUICK_SAVE = "save quickly"
    QUICK_LOAD = "go on from what was saved quickly"
    SAVE_SLOT = "save to a slot"
    LOAD_SLOT = "go on from a slot"
    SLOTS = "show or hide the slots"
    TAKE_OVER = "let the next player take over"
    BRANCH = "go on in panes: four seeds, then the players; again to leave"
    RECORD = "begin or end a recording"
    SCREENSHOT = "take a screenshot"
    QUIT = "quit"


SHIFT = "shift+"
"""What the name of a key begins with that counts only together with Shift."""
DIGITS = tuple("0123456789")
COMMAND_KEYS: dict[Command, tuple[str, ...]] = {
    Command.HELP: ("h", "f1"),
    Command.PAUSE: ("space", "p"),
    Command.STEP: ("n", "."),
    Command.RESET: ("return", "f2"),
    Command.NEXT_START: ("tab", "f3"),
    Command.REWIND: ("backspace",),
    Command.QUICK_SAVE: ("f5",),
    Command.QUICK_LOAD: ("f9",),
    Command.SAVE_SLOT: tuple(f"{SHIFT}{digit}" for digit in DIGITS),
    Command.LOAD_SLOT: DIGITS,
    Command.SLOTS: ("f6", "o"),
    Command.TAKE_OVER: ("m", "f4"),
    Command.BRANCH: ("b", "f7"),
    Command.RECORD: ("r", "f8"),
    Command.SCREENSHOT: ("f12",),
    Command.QUIT: ("escape", "q"),
}
# With these held a key belongs to the window system.
SYSTEM_MODIFIERS = pygame.KMOD_ALT | pygame.KMOD_CTRL | pygame.KMOD_META
NAMES_IN_HELP = {"return": "Enter", "escape": "Esc", ".": ". (full stop)"}


def key_codes(names: Iterable[str]) -> dict[int, str]:
    """Return the names of keys by their codes.

    Raises:
        WorldError: If there is no key of such a name.
    """
    pygame.display.init()  # key names are not complete before
    codes = {}
    for name in names:
        try:
            codes[pygame.key.key_code(name)] = name
        except ValueError as error:
            raise WorldError(f"the world's buttons name a key {name!r} that does not exist") from error
    return codes


class HeldKeys:
    """Follow some keys through their events. A tap that is over before the next frame still counts for it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = key_codes(names)
        self._held: set[str] = set()
        self._tapped: set[str] = set()

    def handle(self, event: pygame.event.Event) -> bool:
        """Take note of an event; returns whether it was about one of the keys."""
        if event.type == pygame.WINDOWFOCUSLOST:
            self._held.clear()  # their release will go to another window
            return False
        if event.type not in (pygame.KEYDOWN, pygame.KEYUP) or event.key not in self._names:
            return False
        name = self._names[event.key]
        if event.type == pygame.KEYUP:
            self._held.discard(name)
        elif not event.mod & SYSTEM_MODIFIERS:
            self._held.add(name)
            self._tapped.add(name)
        return True

    def take(self) -> set[str]:
        """Return the keys that count for the next frame: held, or pressed since the last call."""
        pressed = self._held | self._tapped
        self._tapped.clear()
        return pressed


class CommandKeys:
    """Find the command of a key. A key that the world plays with commands nothing.

    Args:
        layout: The world's buttons.
    """

    def __init__(self, layout: ActionLayout) -> None:
        pygame.display.init()  # key names are not complete before
        taken = {pygame.key.key_code(name) for axis in layout.axes for keys in axis.keys for name in keys}
        self.keys = {
            command: tuple(name for name in names if _code(name)[0] not in taken)
            for command, names in COMMAND_KEYS.items()
        }
        self._commands = {_code(name): command for command, names in self.keys.items() for name in names}

    def find(self, event: pygame.event.Event) -> Command | None:
        """Return what an event commands, if anything."""
        if event.type == pygame.QUIT:
            return Command.QUIT
        if event.type != pygame.KEYDOWN or event.mod & SYSTEM_MODIFIERS:
            return None
        has_shift = bool(event.mod & pygame.KMOD_SHIFT)
        with_shift = self._commands.get((event.key, True)) if has_shift else None
        return with_shift or self._commands.get((event.key, False))


def help_rows(layout: ActionLayout, commands: CommandKeys) -> list[Row]:
    """Return the help page: the keys of each button and of each command, and what they do."""
    rows: list[Row] = [
        (_join(keys), f"{axis.name} {button}")
        for axis in layout.axes
        for button, keys in zip(axis.buttons, axis.keys, strict=True)
    ]
    rows.append(("", ""))
    rows += [(_join(names), command.value) for command, names in commands.keys.items() if names]
    return rows


def _code(name: str) -> tuple[int, bool]:
    """Return the code of a key, and whether it counts only together with Shift."""
    return pygame.key.key_code(name.removeprefix(SHIFT)), name.startswith(SHIFT)


def _join(names: Iterable[str]) -> str:
    names = tuple(names)
    if len(names) == len(DIGITS) and all(name[-1] in DIGITS for name in names):
        return f"{names[0].removesuffix(DIGITS[0]).capitalize()}{DIGITS[0]} to {DIGITS[-1]}"
    return " or ".join(NAMES_IN_HELP.get(name, name.capitalize()) for name in names)

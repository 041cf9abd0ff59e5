"""Keys, gamepads and the mouse: what is held, what was tapped between two frames, and what it commands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import pygame

from worldsim.errors import WorldError
from worldsim.ui.bindings import DIGITS, MOUSE, MOUSE_MOVEMENTS, PAD, SHIFT, Bindings, Command
from worldsim.ui.display import DRIVER
from worldsim.ui.keys import check_key, key_names

# With these held a key belongs to the window system.
SYSTEM_MODIFIERS = pygame.KMOD_ALT | pygame.KMOD_CTRL | pygame.KMOD_META
# SDL's names, as its lists of gamepads have them, by SDL's numbers.
PAD_BUTTONS = (
    *("a", "b", "x", "y", "back", "guide", "start", "leftstick", "rightstick", "leftshoulder"),
    *("rightshoulder", "dpup", "dpdown", "dpleft", "dpright"),
)
PAD_STICKS = ("leftx", "lefty", "rightx", "righty")
PAD_TRIGGERS = ("lefttrigger", "righttrigger")
PAD_CONTROLS = (*PAD_BUTTONS, *(stick + sign for stick in PAD_STICKS for sign in "-+"), *PAD_TRIGGERS)
KEYPAD_DIGITS = {f"[{digit}]" for digit in DIGITS}
PRESSED, RELEASED = 0.5, 0.4
"""How far a stick or a trigger must move to count as pressed, and back to count as let go."""
DEAD = 0.12
"""How far a stick may be from the middle and still be at rest, where its distance counts."""
MOUSE_PIXELS = 20
"""How far the mouse moves for one frame of turning, or for the end of an analog axis."""
MAX_MOUSE_FRAMES = 6
"""Most frames that a movement turns for: a swing of the mouse is no journey."""


def check_controls(controls: Iterable[str]) -> None:
    """Raise `WorldError` if a name is not that of a key, of a gamepad's control or of a mouse movement."""
    try:
        pygame.display.init()  # key names are not complete before
    except pygame.error as error:
        raise WorldError(f"no window can be opened ({error}); headless=true plays without one") from error
    for control in controls:
        if control.startswith(PAD):
            if control.removeprefix(PAD) not in PAD_CONTROLS:
                known = ", ".join(PAD_CONTROLS)
                raise WorldError(f"there is no {control!r} on a gamepad; there are {known}")
        elif control not in MOUSE_MOVEMENTS:
            check_key(control)


def check_without_window(bindings: Bindings) -> None:
    """Raise `WorldError` if a control does not exist, as a window would; opens none and needs no display."""
    commands = (name.removeprefix(SHIFT) for names in bindings.commands.values() for name in names)
    buttons = (name for axis in bindings.buttons for names in axis for name in names)
    driver = os.environ.get(DRIVER)
    if not pygame.display.get_init():
        os.environ[DRIVER] = "dummy"  # SDL knows its keys once it has a display; this is none
    try:
        check_controls([*commands, *buttons])
    finally:  # whether there is a display is asked later on, too
        if driver is None:
            os.environ.pop(DRIVER, None)
        else:
            os.environ[DRIVER] = driver


class HeldKeys:
    """Follow some controls through their events. A tap that is over before the next frame still counts.

    Args:
        names: Of the controls.
        analog: Those of them that are sticks and triggers whose distance counts.
    """

    def __init__(self, names: Iterable[str], analog: Iterable[str] = ()) -> None:
        names = tuple(names)
        self._far = {name: 0.0 for name in analog if name.startswith(PAD)}
        check_controls(names)
        self._controls = frozenset(name for name in names if name.startswith(PAD))
        self._keys = {check_key(name): name for name in names if not name.startswith((PAD, MOUSE))}
        self._down: dict[int, str] = {}  # by the key that is down: another one may print it by then
        self._held: set[str] = set()
        self._tapped: set[str] = set()

    def handle(self, event: pygame.event.Event) -> bool:
        """Take note of an event; returns whether it was about one of the controls."""
        if event.type in (pygame.WINDOWFOCUSLOST, pygame.CONTROLLERDEVICEREMOVED):
            self._held.clear()  # their release will go to another window, or will never be
            self._far = dict.fromkeys(self._far, 0.0)
            return False
        if event.type in (pygame.KEYDOWN, pygame.KEYUP):
            return self._handle_key(event, event.type == pygame.KEYDOWN)
        self._far |= {name: far for name, far in pad_distances(event).items() if name in self._far}
        moved = {name: down for name, down in pad_moves(event, self._held).items() if name in self._controls}
        for name, is_down in moved.items():
            self._note(name, is_down)
        return bool(moved)

    def _handle_key(self, event: pygame.event.Event, is_down: bool) -> bool:
        found = next((self._keys[name] for name in key_names(event) if name in self._keys), None)
        key = getattr(event, "scancode", 0) or event.key
        if not is_down:
            found = self._down.pop(key, found)
        if found is None:
            return False
        if not is_down:
            self._note(found, False)
        elif not event.mod & SYSTEM_MODIFIERS:
            self._down[key] = found
            self._note(found, True)
        return True

    def take(self) -> set[str]:
        """Return the controls that count for the next frame: held, or pressed since the last call."""
        pressed = self._held | self._tapped
        self._tapped.clear()
        return pressed

    def take_distances(self, mouse: MouseTurn | None = None) -> dict[str, float | None]:
        """Return the same with how far each is moved, above 0 to 1, where that counts; None of others.

        Args:
            mouse: Whose movements are among them.
        """
        taken: dict[str, float | None] = dict.fromkeys(self.take() - self._far.keys())
        taken |= {name: min(1.0, (far - DEAD) / (1 - DEAD)) for name, far in self._far.items() if far > DEAD}
        return taken if mouse is None else taken | mouse.take()

    def _note(self, name: str, is_down: bool) -> None:
        if not is_down:
            self._held.discard(name)
        elif name not in self._held:
            self._held.add(name)
            self._tapped.add(name)


class CommandKeys:
    """Find the command of a control."""

    def __init__(self, commands: Mapping[Command, tuple[str, ...]]) -> None:
        # The place of a control among those of its command is the number of the slot that it means.
        self._commands = {
            name: (command, number)
            for command, controls in commands.items()
            for number, name in enumerate(controls)
        }
        check_controls(name.removeprefix(SHIFT) for name in self._commands)
        self._keys: dict[tuple[str, bool], str] = {}
        for name in self._commands:
            if not name.startswith((PAD, MOUSE)):
                key = check_key(name.removeprefix(SHIFT)), name.startswith(SHIFT)
                if self._keys.setdefault(key, name) != name:
                    raise WorldError(f"{name!r} and {self._keys[key]!r} are one key, which is bound twice")
        self._held: set[str] = set()

    def find(self, event: pygame.event.Event) -> Command | None:
        """Return what an event commands, if anything."""
        found = self.find_numbered(event)
        return None if found is None else found[0]

    def find_numbered(self, event: pygame.event.Event) -> tuple[Command, int] | None:
        """Return what an event commands, and the number of its control among those of the command."""
        if event.type == pygame.QUIT:
            return Command.QUIT, 0
        name = self._name(event)
        return None if name is None else self._commands.get(name)

    def _name(self, event: pygame.event.Event) -> str | None:
        """Return the name of the control that an event has just pressed."""
        if event.type == pygame.KEYDOWN and not event.mod & SYSTEM_MODIFIERS:
            names = key_names(event)
            # The digits of the number pad are digits, where nothing else was chosen for them.
            names += [name[1] for name in names if name in KEYPAD_DIGITS]
            both = (True, False) if is_shifted(event) else (False,)
            found = (self._keys.get((name, shift)) for name in names for shift in both)
            return next((name for name in found if name is not None), None)
        for name, is_down in pad_moves(event, self._held).items():
            if not is_down:
                self._held.discard(name)
            elif name not in self._held:
                self._held.add(name)
                return name
        return None


class MouseTurn:
    """Turns movements of the mouse into frames of turning left or right, up or down.

    Args:
        distances: By the name of a movement, how far it can go in a frame, ascending to 1; others go all the
            way or not at all.
    """

    def __init__(self, distances: Mapping[str, Sequence[float]] | None = None) -> None:
        self._distances = distances or {}
        self._pixels = [0.0, 0.0]

    def handle(self, event: pygame.event.Event) -> None:
        """Take note of a movement."""
        if event.type == pygame.MOUSEMOTION:
            most = MAX_MOUSE_FRAMES * MOUSE_PIXELS
            for axis, moved in enumerate(event.rel):
                self._pixels[axis] = min(max(self._pixels[axis] + moved, -most), most)

    def take(self) -> dict[str, float | None]:
        """Return the movements that count for the next frame, and how far; what is left waits."""
        taken: dict[str, float | None] = {}
        for axis, pixels in enumerate(self._pixels):
            name = MOUSE_MOVEMENTS[2 * axis + (pixels > 0)]
            reached = [far for far in self._distances.get(name, (1.0,)) if far * MOUSE_PIXELS <= abs(pixels)]
            if reached:
                taken[name] = reached[-1] if name in self._distances else None
                self._pixels[axis] -= reached[-1] * MOUSE_PIXELS * (1 if pixels > 0 else -1)
        return taken

    def stop(self) -> None:
        """Forget what was not taken yet."""
        self._pixels = [0.0, 0.0]


class Gamepads:
    """Keeps gamepads open, also those that are plugged in later; only then do they say anything."""

    def __init__(self) -> None:
        self._open: list[object] = []
        self._module = None
        with suppress(ImportError, pygame.error):  # a system without gamepads is none to complain about
            from pygame._sdl2 import controller

            controller.init()
            self._module = controller

    def handle(self, event: pygame.event.Event) -> None:
        """Open a gamepad that was plugged in."""
        if event.type == pygame.CONTROLLERDEVICEADDED and self._module is not None:
            with suppress(pygame.error):  # gone again
                self._open.append(self._module.Controller(event.device_index))


def pad_moves(event: pygame.event.Event, held: Iterable[str]) -> dict[str, bool]:
    """Return what a gamepad's event presses (True) and lets go (False), by the names of its controls.

    Args:
        held: What is pressed, so that a stick near the threshold does not flutter.
    """
    if event.type in (pygame.CONTROLLERBUTTONDOWN, pygame.CONTROLLERBUTTONUP):
        if event.button >= len(PAD_BUTTONS):
            return {}
        return {PAD + PAD_BUTTONS[event.button]: event.type == pygame.CONTROLLERBUTTONDOWN}
    directions = pad_distances(event)
    return {name: far > (RELEASED if name in held else PRESSED) for name, far in directions.items()}


def pad_distances(event: pygame.event.Event) -> dict[str, float]:
    """Return how far a gamepad's stick or trigger is moved now, -1 to 1, by the names of its directions."""
    if event.type != pygame.CONTROLLERAXISMOTION or event.axis >= len(PAD_STICKS) + len(PAD_TRIGGERS):
        return {}
    value = event.value / 32767
    if event.axis >= len(PAD_STICKS):
        return {PAD + PAD_TRIGGERS[event.axis - len(PAD_STICKS)]: value}
    stick = PAD + PAD_STICKS[event.axis]
    return {f"{stick}-": -value, f"{stick}+": value}


def is_shifted(event: pygame.event.Event) -> bool:
    """Whether Shift was held with a key."""
    return bool(getattr(event, "mod", 0) & pygame.KMOD_SHIFT)

"""Bindings of keys, gamepad controls and mouse movements to buttons and commands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.errors import WorldError

SHIFT, PAD, MOUSE = "shift+", "pad ", "mouse "
"""What the name begins with of a key that counts only together with Shift, of a control of a gamepad (then
SDL's name of it), and of a movement of the mouse. Names of keys are SDL's; they mean the place where a US
keyboard has the key."""
MOUSE_MOVEMENTS = ("mouse left", "mouse right", "mouse up", "mouse down")
DIGITS = tuple("0123456789")


class Command(Enum):
    """What a key can do besides playing: the value says it in the help, `keys` are its default controls."""

    _value_: str
    keys: tuple[str, ...]

    HELP = "show or hide this help", "h", "f1", "pad back"
    PAUSE = "pause, go on", "space", "p", "pad start"
    STEP = "one frame, while paused", "n", "."
    RESET = "begin again from this start; of panes, pick one", "return", "f2"
    NEXT_START = "begin from the next start; of panes, choose the next", "tab", "f3", "pad rightshoulder"
    REWIND = "hold to go back, let go to play on from there", "backspace", "pad leftshoulder"
    QUICK_SAVE = "save quickly", "f5", "k", "pad x"
    QUICK_LOAD = "go on from what was saved quickly", "f9", "l", "pad b"
    SAVE_SLOT = "save to a slot", *(f"{SHIFT}{digit}" for digit in DIGITS)
    LOAD_SLOT = "go on from a slot", *DIGITS
    SLOTS = "show or hide the slots", "f6", "o"
    TAKE_OVER = "let the next player take over", "m", "f4", "pad y"
    BRANCH = "go on in panes: four seeds, then the players; again to leave", "b", "f7"
    FEWER_STEPS = "fewer denoising steps: faster", "[", "-"
    MORE_STEPS = "more denoising steps: sharper", "]", "="
    NOISE = "the next noise temperature; with Shift the one before", "t"
    HOLD_RATE = "hold the frame rate by lowering the steps, or no longer", "g"
    INSPECT = "show or hide what each layer remembers", "i", "f10"
    FREEZE_MEMORY = "freeze the memory, or let it go on", "z"
    ZERO_MEMORY = "empty the memory", "x"
    RESTORE_MEMORY = "restore the memory as it was before that", "v"
    RECORD = "begin or end a recording", "r", "f8"
    CLIP = "write the last 15 seconds as a clip", ","
    BEST = "show or hide the best games", ";"
    SCREENSHOT = "take a screenshot", "f12"
    MOUSE = "turn with the mouse, or no longer", "c"
    FULL_SCREEN = "full screen, or a window again", "f11", "f"
    CHOOSE = "choose another world, or where to begin", "u", "home"
    QUIT = "quit", "escape", "q"

    def __new__(cls, title: str, *keys: str) -> Command:
        """Make `title` alone the value."""
        command = object.__new__(cls)
        command._value_, command.keys = title, keys
        return command

    @property
    def setting(self) -> str:
        """Its name in settings."""
        return self.name.lower()


COMMAND_KEYS = {command: command.keys for command in Command}

# Beside a world's own keys, by `axis/button`, or by the button alone.
PAD_AND_MOUSE: dict[str, tuple[str, ...]] = {
    "forward": ("pad lefty-", "pad dpup"),
    "backward": ("pad lefty+", "pad dpdown"),
    "turn/left": ("pad rightx-", "pad dpleft", "mouse left"),
    "turn/right": ("pad rightx+", "pad dpright", "mouse right"),
    "up": ("pad lefty-", "pad dpup"),
    "down": ("pad lefty+", "pad dpdown"),
    "left": ("pad leftx-",),
    "right": ("pad leftx+",),
    "attack": ("pad righttrigger",),
}
FREE_PAD_BUTTONS = ("pad a", "pad b", "pad x", "pad y")
"""For a world's other buttons, in their order."""
STICKS = {
    "left": (("pad leftx-", "pad leftx+"), ("pad rightx-", "pad rightx+")),
    "up": (("pad lefty-", "pad lefty+"), ("pad righty-", "pad righty+")),
    "": (
        *(("pad leftx-", "pad leftx+"), ("pad lefty+", "pad lefty-")),
        *(("pad rightx-", "pad rightx+"), ("pad righty+", "pad righty-")),
    ),
}
"""For the two ends of an analog axis, by the direction of its lowest; the first that are free."""
TRIGGERS = ("pad righttrigger", "pad lefttrigger")
"""For those with one end."""
ANALOG_PARTS = ("leftx", "lefty", "rightx", "righty", "lefttrigger", "righttrigger")
"""Of a gamepad, without the direction."""
MOUSE_PAIRS = {"left": MOUSE_MOVEMENTS[:2], "up": MOUSE_MOVEMENTS[2:], "": MOUSE_MOVEMENTS[:2]}
NAMES_IN_HELP = {
    "return": "Enter",
    "escape": "Esc",
    ".": ". (full stop)",
    ",": ", (comma)",
    ";": "; (semicolon)",
}


@dataclass(frozen=True, slots=True)
class Bindings:
    """What each control does.

    Attributes:
        buttons: `buttons[axis][value - 1]` are the controls of this value of this axis.
        commands: The controls of each command; none for one that cannot be given.
    """

    buttons: tuple[tuple[tuple[str, ...], ...], ...]
    commands: Mapping[Command, tuple[str, ...]]

    @property
    def has_mouse(self) -> bool:
        """Whether the mouse presses a button."""
        return any(control in MOUSE_MOVEMENTS for axis in self.buttons for own in axis for control in own)


def bind(
    layout: ActionLayout,
    keys: Mapping[str, Sequence[str]] | None = None,
    buttons: Mapping[str, Sequence[str]] | None = None,
) -> Bindings:
    """Return the bindings of a world. A control that the world plays with by default gives no command.

    Args:
        keys: Other controls of commands, by the name of the command in small letters.
        buttons: Other controls of buttons, by `axis/button`.

    Raises:
        WorldError: If there is no such command or button, or a control that was chosen would do two things.
            Whether a key exists is for `worldsim.ui.input` to say.
    """
    changed = {_command(name): _controls(controls) for name, controls in (keys or {}).items()}
    changed = {c: controls for c, controls in changed.items() if controls != COMMAND_KEYS[c]}
    for command in (Command.SAVE_SLOT, Command.LOAD_SLOT):
        if len(changed.get(command, ())) > len(DIGITS):
            raise WorldError(f"keys: {command.setting} takes a key for each of {len(DIGITS)} slots, no more")
    _refuse_what_commands_nothing(changed)
    chosen_buttons = {name: _controls(controls) for name, controls in (buttons or {}).items()}
    played = _bind_buttons(layout, chosen_buttons)
    chosen = [(control, name) for name, controls in chosen_buttons.items() for control in controls]
    chosen += [(control, command.setting) for command, own in changed.items() for control in own]
    _refuse_double(chosen)
    _refuse_taken(layout, dict(chosen), {*chosen_buttons}, {*changed})
    taken = {control for controls in _flat(played) for control in controls}
    commands = {
        command: changed[command] if command in changed else tuple(c for c in controls if c not in taken)
        for command, controls in COMMAND_KEYS.items()
    }
    return Bindings(played, commands)


def help_texts(
    layout: ActionLayout, bindings: Bindings, printed: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Return a help page: the controls of each button and command, named by `join_controls`; what for."""
    analog = {f"{axis.name}/{button}" for axis in layout.axes if axis.centres for button in axis.buttons}
    rows = [
        (join_controls(controls, printed), name.replace("/", " "))
        for name, controls in zip(layout.buttons, _flat(bindings.buttons), strict=True)
        if controls or name not in analog  # what lies between the ends is reached on the way there
    ]
    rows.append(("", ""))
    rows += [
        (join_controls(own, printed), command.value) for command, own in bindings.commands.items() if own
    ]
    return rows


def join_controls(controls: Iterable[str], printed: Mapping[str, str] | None = None) -> str:
    """Return the names of controls as a person reads them.

    Args:
        printed: What keys print in the layout in use, by their names, '' where it is not known; None is a US
            keyboard's.
    """
    controls = tuple(controls)
    if len(controls) == len(DIGITS) and all(name[-1] in DIGITS for name in controls):
        return f"{controls[0].removesuffix(DIGITS[0]).capitalize()}{DIGITS[0]} to {DIGITS[-1]}"
    known = [(printed or {}).get(name, name) for name in controls]
    shown = [name for name in known if name] or controls
    return " or ".join(NAMES_IN_HELP.get(name, name.capitalize()) for name in dict.fromkeys(shown))


def _controls(controls: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(control).lower() for control in controls)


def _command(name: str) -> Command:
    try:
        return Command[name.upper()]
    except KeyError:
        known = ", ".join(command.setting for command in Command)
        raise WorldError(f"keys: there is no command {name!r}; there are {known}") from None


def _bind_buttons(
    layout: ActionLayout, changes: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    for name in changes:
        if name not in layout.buttons:
            raise WorldError(f"buttons: there is no {name!r}; this world has {', '.join(layout.buttons)}")
    taken = {control for controls in changes.values() for control in controls}
    free = iter([pad for pad in FREE_PAD_BUTTONS if pad not in taken])
    bound: dict[str, list[tuple[str, ...]]] = {}
    # Buttons have names, and controls by them; sticks take what is left.
    for axis in sorted(layout.axes, key=lambda axis: bool(axis.centres)):
        more = _analog_controls(axis, taken) if axis.centres else {}
        own = bound[axis.name] = []
        for value, (button, keys) in enumerate(zip(axis.buttons, axis.keys, strict=True), start=1):
            name = f"{axis.name}/{button}"
            if name in changes:
                own.append(changes[name])
                continue
            found = more.get(value, ()) if axis.centres else _pad_and_mouse(name) or (next(free, ""),)
            found = tuple(control for control in found if control and control not in taken)
            own.append((*keys, *found))
            taken.update(found)
    return tuple(tuple(bound[axis.name]) for axis in layout.axes)


def _analog_controls(axis: ActionAxis, taken: Collection[str]) -> dict[int, tuple[str, ...]]:
    """Return the stick or trigger, and the movements of the mouse, for the ends of an analog axis."""
    low, high = axis.ends
    if not low or not high:
        trigger = next((each for each in TRIGGERS if each not in taken), "")
        return {low or high: (trigger,)}
    way = axis.buttons[low - 1].partition("-")[0]
    way = way if way in MOUSE_PAIRS else ""
    pairs = (*STICKS[way], *STICKS[""])
    first = next((pair for pair in pairs if not {*pair} & {*taken}), ("", ""))
    moves = MOUSE_PAIRS[way]
    mouse = moves if not {*moves} & {*taken} else ("", "")
    return {value: (first[side], mouse[side]) for side, value in enumerate((low, high))}


def analog_controls(layout: ActionLayout, bindings: Bindings) -> dict[str, tuple[float, ...]]:
    """Return the sticks, triggers and movements of the mouse whose distance counts, not only that they moved.

    With each come the distances, above 0 to 1 and ascending, that are those of the bins of its axis.
    """
    found = {}
    for axis, bound in zip(layout.axes, bindings.buttons, strict=True):
        for value, controls in enumerate(bound if axis.centres else (), start=1):
            rest, end = axis.centres[0], axis.centres[value]
            shares = sorted((centre - rest) / (end - rest) for centre in axis.centres)
            for control in controls:
                if control.startswith(MOUSE) or control.removeprefix(PAD).startswith(ANALOG_PARTS):
                    found[control] = tuple(share for share in shares if 0 < share <= 1)
    return found


def _pad_and_mouse(button: str) -> tuple[str, ...]:
    return PAD_AND_MOUSE.get(button) or PAD_AND_MOUSE.get(button.rpartition("/")[2]) or ()


def _flat(buttons: Sequence[Sequence[tuple[str, ...]]]) -> Iterator[tuple[str, ...]]:
    for axis in buttons:
        yield from axis


def _refuse_what_commands_nothing(changed: Mapping[Command, tuple[str, ...]]) -> None:
    for command, controls in changed.items():
        for control in controls:
            if control in MOUSE_MOVEMENTS:
                raise WorldError(
                    f"keys: {control!r} is a movement, which gives no command ({command.setting})"
                )
            if control.startswith(SHIFT) and command is Command.REWIND:
                raise WorldError(f"keys: {command.setting} is held down, which {control!r} cannot be")


def _refuse_double(named: Collection[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for control, name in named:
        if control in first:
            raise WorldError(f"{control!r} is bound twice: to {first[control]} and to {name}")
        first[control] = name


def _refuse_taken(
    layout: ActionLayout, chosen: Mapping[str, str], buttons: Collection[str], commands: Collection[Command]
) -> None:
    """Refuse a chosen control that something else has already: nothing loses a key without being named."""
    keys_of = zip(layout.buttons, (keys for axis in layout.axes for keys in axis.keys), strict=True)
    own = {name: keys for name, keys in keys_of if name not in buttons}
    for name, keys in own.items():
        for control in (*keys, *_pad_and_mouse(name)):
            if control in chosen:
                raise WorldError(
                    f"{control!r} is bound twice: to {name} and to {chosen[control]}; "
                    f"'+buttons={{{name}:[...]}}' gives the former other keys"
                )
    for command, keys in COMMAND_KEYS.items():
        for control in keys if command not in commands else ():
            if control in chosen:
                raise WorldError(
                    f"{control!r} is bound twice: to {command.setting} and to {chosen[control]}; "
                    f"keys.{command.setting}=[...] gives the former other keys, [] none"
                )

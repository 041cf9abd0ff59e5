"""Input from the network, queued until the game takes it: bounded, whoever sends how much."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from worldsim.errors import WorldError
from worldsim.play.slots import QUICK, SLOTS
from worldsim.storage.files import check_bool, check_number, parse_json
from worldsim.ui.bindings import Command

MAX_COMMANDS = 32
"""Commands that wait for the next frame; more are dropped."""
SERVED_COMMANDS = frozenset(
    {
        Command.PAUSE,
        Command.STEP,
        Command.RESET,
        Command.NEXT_START,
        Command.QUICK_SAVE,
        Command.QUICK_LOAD,
        Command.SAVE_SLOT,
        Command.LOAD_SLOT,
        Command.SLOTS,
        Command.BEST,
        Command.CLIP,
        Command.TAKE_OVER,
        Command.FEWER_STEPS,
        Command.MORE_STEPS,
        Command.NOISE,
        Command.HOLD_RATE,
        Command.RECORD,
        Command.INSPECT,
        Command.FREEZE_MEMORY,
        Command.ZERO_MEMORY,
        Command.RESTORE_MEMORY,
    }
)
"""Commands that may be given over the network: those about the game, but for the one that ends it."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command with what belongs to it."""

    command: Command
    slot: str = QUICK
    is_shifted: bool = False


class Inbox:
    """Filled by the server's thread, emptied by the game's.

    Args:
        keys: The names of the keys that mean something; others are ignored.
    """

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = frozenset(keys)
        self._changed = threading.Condition()
        self._held: frozenset[str] = frozenset()
        self._far: dict[str, float] = {}
        self._tapped: set[str] = set()
        self._orders: deque[Order] = deque()
        self._rewinds = self._rewind_tapped = False
        self.is_present = False  # whether somebody sits at the keys
        self._has_left = False

    def seat(self, is_present: bool) -> None:
        """Note that somebody has sat down at the keys, or has gone: keys are then no longer held."""
        with self._changed:
            self.is_present = is_present
            self._held, self._rewinds = frozenset(), False
            if not is_present:
                self._has_left = True
                self._tapped.clear()
                self._orders.clear()
                self._rewind_tapped = False
            self._changed.notify_all()

    def take_departure(self) -> bool:
        """Return whether somebody has gone since the last call, even if they are back already."""
        with self._changed:
            has_left, self._has_left = self._has_left, False
            return has_left

    def hold(self, names: Collection[str], far: Mapping[str, float] | None = None) -> None:
        """Note which keys are down now, and how far, above 0 to 1, sticks and triggers of analog axes."""
        with self._changed:
            held = self._keys.intersection(names)
            self._far = {name: each for name, each in (far or {}).items() if name in held}
            self._tapped |= held - self._held
            self._held = held
            self._changed.notify_all()

    def rewind(self, is_on: bool) -> None:
        """Note whether time is to run backward."""
        with self._changed:
            self._rewinds = is_on
            self._rewind_tapped |= is_on
            self._changed.notify_all()

    def order(self, order: Order) -> None:
        """Note a command."""
        with self._changed:
            if len(self._orders) < MAX_COMMANDS:
                self._orders.append(order)
            self._changed.notify_all()

    def take_orders(self) -> list[Order]:
        """Return the commands since the last call."""
        with self._changed:
            orders = list(self._orders)
            self._orders.clear()
            return orders

    def take_held(self) -> set[str]:
        """Return the keys that count for the next frame: down, or pressed since the last call."""
        with self._changed:
            held = set(self._held | self._tapped)
            self._tapped.clear()
            return held

    def take_distances(self) -> dict[str, float | None]:
        """Return the same with how far each is moved; None of those that are pressed or not."""
        with self._changed:
            return {name: self._far.get(name) for name in self.take_held()}

    def take_rewinds(self) -> bool:
        """Return whether time is to run backward for the next frame."""
        with self._changed:
            rewinds = self._rewinds or self._rewind_tapped
            self._rewind_tapped = False
            return rewinds

    @property
    def wants_keys(self) -> bool:
        """Whether a key is down, or was pressed since the last call of `take_held`."""
        return bool(self._held or self._tapped)

    def wait(self, seconds: float) -> None:
        """Sleep until something is asked for, or the time has passed."""
        with self._changed:
            if not self._orders and not self._tapped and not self._rewind_tapped:
                self._changed.wait(seconds)


def read_message(text: str) -> dict[str, object]:
    """Return a message that a page sent.

    Raises:
        WorldError: If it is none.
    """
    message = parse_json(text, "the message")
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WorldError("a message must be an object with a type")
    return message


def read_held(message: dict[str, object]) -> tuple[list[str], dict[str, float]]:
    """Return which keys a message holds down, and how far each of those is moved of which it says so.

    Raises:
        WorldError: If it says neither.
    """
    held, far = message.get("held"), message.get("far", {})
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise WorldError("keys: held must be a list of names")
    if not isinstance(far, dict):
        raise WorldError("keys: far must be an object of numbers")
    return held, {name: check_number(each, "keys: far", 0, 1) for name, each in far.items()}


def read_order(message: dict[str, object]) -> Order:
    """Return the command that a message gives.

    Raises:
        WorldError: If it gives none, or one that is not for the network.
    """
    name, slot = message.get("name"), message.get("slot", QUICK)
    known = {command.setting: command for command in SERVED_COMMANDS}
    if not isinstance(name, str) or name not in known:
        raise WorldError(f"there is no command {name!r} here")
    if slot not in SLOTS:
        raise WorldError(f"there is no slot {slot!r}")
    return Order(known[name], str(slot), check_bool(message.get("is_shifted", False), "is_shifted"))

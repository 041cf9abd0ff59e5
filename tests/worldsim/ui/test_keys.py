"""Keys by their places, on keyboards of several layouts."""

from __future__ import annotations

import pygame
import pytest

from tests.fakes import TINY_ACTIONS
from worldsim.errors import WorldError
from worldsim.ui.bindings import Command, bind
from worldsim.ui.input import CommandKeys, HeldKeys
from worldsim.ui.keys import PLACES, check_key, key_names, printed_names

UNNAMED = 1 << 30  # what SDL calls a key that prints an accent for the next letter


@pytest.fixture(autouse=True)
def display() -> None:
    pygame.display.init()


def pressed(place: str, printed: str, *, code: int | None = None, mod: int = 0) -> pygame.event.Event:
    code = ord(printed) if code is None else code
    return pygame.event.Event(pygame.KEYDOWN, scancode=PLACES[place], key=code, unicode=printed, mod=mod)


@pytest.mark.parametrize(
    ("event", "names"),
    [
        (pressed("a", "q"), ["a"]),  # French
        (pressed("6", "-", code=pygame.K_6), ["-", "6"]),
        (pressed("6", "6", mod=pygame.KMOD_LSHIFT), ["6"]),
        (pressed("[", "", code=UNNAMED), ["["]),
        (pressed("]", "+"), ["]"]),  # German
        (pressed("0", "=", code=pygame.K_0, mod=pygame.KMOD_LSHIFT), ["0"]),
        (pressed("/", "-"), ["-", "/"]),
        (pressed(";", "\u00f6"), [";", "\u00f6"]),
        (pressed("a", "\u0444"), ["a", "\u0444"]),  # Russian
    ],
    ids=["q", "minus on 6", "shift 6", "dead", "plus", "shift 0", "minus on slash", "umlaut", "cyrillic"],
)
def test_a_key_is_known_by_its_place_and_a_symbol_by_what_is_printed(
    event: pygame.event.Event, names: list[str]
) -> None:
    assert key_names(event) == names


def test_a_key_without_a_place_is_known_by_its_letter() -> None:
    for more in ({}, {"scancode": 0}):
        assert key_names(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_a, mod=0, **more)) == ["a"]


def test_caps_lock_that_was_made_an_escape_is_one() -> None:
    event = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE, scancode=pygame.KSCAN_CAPSLOCK, mod=0)
    assert key_names(event) == ["escape"]


def test_what_was_pressed_is_let_go_though_the_layout_has_changed_in_between() -> None:
    held = HeldKeys(["a", ","])
    down, up = pressed("w", ","), pressed("w", "z")
    assert held.handle(down)
    assert held.take() == {","}
    assert held.handle(pygame.event.Event(pygame.KEYUP, up.dict))
    assert held.take() == set()


def test_no_key_saves_over_a_slot_by_its_second_symbol_and_a_slot_has_a_key_on_the_number_pad() -> None:
    commands = CommandKeys(bind(TINY_ACTIONS).commands)
    assert commands.find_numbered(pressed("6", "-", code=pygame.K_6)) == (Command.FEWER_STEPS, 1)
    keypad = pygame.event.Event(
        pygame.KEYDOWN, key=pygame.K_KP6, scancode=pygame.KSCAN_KP6, unicode="6", mod=0
    )
    assert commands.find_numbered(keypad) == (Command.LOAD_SLOT, 6)
    assert commands.find_numbered(pressed("]", "+")) == (Command.MORE_STEPS, 0)


def test_a_key_under_two_names_is_bound_twice() -> None:
    with pytest.raises(WorldError, match="'pageup' and 'page up' are one key, which is bound twice"):
        CommandKeys({Command.PAUSE: ("page up",), Command.STEP: ("pageup",)})


def test_every_printed_key_has_a_name_to_show() -> None:
    assert printed_names() == {name: name for name in PLACES}  # SDL without a keyboard has a US one


def test_names_that_mean_one_key_are_one_name() -> None:
    assert check_key("A") == "a"
    assert check_key("PageUp") == check_key("page up")
    assert check_key("\u00f6") == "\u00f6"
    with pytest.raises(WorldError, match="there is no key 'jumpkey'"):
        check_key("jumpkey")

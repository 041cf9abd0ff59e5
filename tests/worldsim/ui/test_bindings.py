"""Bindings of controls: defaults, changes, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pygame
import pytest
from omegaconf import OmegaConf

from tests.fakes import TINY_ACTIONS
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.errors import WorldError
from worldsim.ui.bindings import COMMAND_KEYS, Command, analog_controls, bind, help_texts
from worldsim.ui.input import check_without_window

ROOT = Path(__file__).resolve().parents[3]


def test_the_settings_list_the_defaults() -> None:
    listed = OmegaConf.to_object(OmegaConf.load(ROOT / "conf" / "keys" / "default.yaml"))
    assert listed == {command.setting: list(keys) for command, keys in COMMAND_KEYS.items()}


def test_no_control_gives_two_commands() -> None:
    controls = [control for keys in COMMAND_KEYS.values() for control in keys]
    assert len(set(controls)) == len(controls)


def test_a_command_gets_other_keys() -> None:
    bindings = bind(TINY_ACTIONS, {"rewind": ["h"], "help": ["f1", "pad back"], "quit": []})
    assert bindings.commands[Command.REWIND] == ("h",)
    assert bindings.commands[Command.HELP] == ("f1", "pad back")
    assert bindings.commands[Command.QUIT] == ()
    texts = dict(help_texts(TINY_ACTIONS, bindings))
    assert texts["H"] == Command.REWIND.value
    assert Command.QUIT.value not in texts.values()


def test_two_commands_change_places() -> None:
    bindings = bind(TINY_ACTIONS, {"freeze_memory": ["x"], "zero_memory": ["z"]})
    assert bindings.commands[Command.FREEZE_MEMORY] == ("x",)
    assert bindings.commands[Command.ZERO_MEMORY] == ("z",)


def test_the_help_names_keys_as_they_are_printed() -> None:
    printed = {"a": "q", "[": "", "-": ")", "h": "h"}
    texts = {what: keys for keys, what in help_texts(TINY_ACTIONS, bind(TINY_ACTIONS), printed)}
    assert texts["strafe left"] == "Q or Pad leftx-"
    assert texts[Command.FEWER_STEPS.value] == ")"
    assert texts[Command.QUIT.value] == "Esc or Q"


def test_a_button_gets_other_keys() -> None:
    bindings = bind(TINY_ACTIONS, buttons={"turn/left": ["j", "mouse left"]})
    assert bindings.buttons[2] == (
        ("j", "mouse left"),
        ("right", "pad rightx+", "pad dpright", "mouse right"),
    )
    assert bindings.has_mouse


def test_buttons_without_a_direction_get_the_pad_buttons_that_are_free() -> None:
    layout = ActionLayout((ActionAxis(name="do", buttons=("jump", "use"), keys=(("space",), ("e",))),))
    bindings = bind(layout)
    assert bindings.buttons == ((("space", "pad a"), ("e", "pad b")),)
    assert bindings.commands[Command.QUICK_LOAD] == ("f9", "l")
    assert not bindings.has_mouse


def test_ends_of_analog_axes_get_sticks_triggers_and_the_mouse() -> None:
    steer = ActionAxis(
        name="steer",
        buttons=("left-2", "left-1", "right-1", "right-2"),
        keys=(("left",), (), (), ("right",)),
        centres=(0, -1, -0.5, 0.5, 1),
    )
    gas = ActionAxis(name="gas", buttons=("+0.25", "+1"), keys=((), ("up",)), centres=(0, 0.25, 1))
    torque = ActionAxis(name="torque", buttons=("-2", "+2"), keys=(("s",), ("w",)), centres=(0, -2, 2))
    strafe = ActionAxis(name="strafe", buttons=("left", "jump"), keys=(("a",), ("j",)))
    layout = ActionLayout((steer, gas, torque, strafe))
    bindings = bind(layout)
    assert bindings.buttons == (
        (("left", "pad rightx-", "mouse left"), (), (), ("right", "pad rightx+", "mouse right")),
        ((), ("up", "pad righttrigger")),
        (("s", "pad lefty+"), ("w", "pad lefty-")),
        (("a", "pad leftx-"), ("j", "pad a")),
    ), "buttons come first, and what is between two ends needs no control"
    assert analog_controls(layout, bindings) == {
        **dict.fromkeys(("pad rightx-", "mouse left", "pad rightx+", "mouse right"), (0.5, 1)),
        "pad righttrigger": (0.25, 1),
        **dict.fromkeys(("pad lefty+", "pad lefty-"), (1,)),
    }
    named = [what for _, what in help_texts(layout, bindings)]
    assert named[:3] == ["steer left-2", "steer right-2", "gas +1"]
    chosen = bind(layout, buttons={"steer/left-1": ["mouse left"]})
    assert chosen.buttons[0][:2] == (("left", "pad rightx-"), ("mouse left",))
    assert analog_controls(layout, chosen)["mouse left"] == (1,)


@pytest.mark.parametrize(
    ("keys", "buttons", "message"),
    [
        ({"fly": ["z"]}, {}, "there is no command 'fly'; there are help, pause"),
        ({}, {"turn/up": ["z"]}, "there is no 'turn/up'; this world has move/forward"),
        ({"pause": ["z"], "help": ["z"]}, {}, "'z' is bound twice: to pause and to help"),
        ({"pause": ["up"]}, {}, "'up' is bound twice: to move/forward and to pause"),
        ({}, {"turn/left": ["j"], "turn/right": ["j"]}, "'j' is bound twice: to turn/left and to turn/right"),
        ({"rewind": ["z"]}, {}, r"'z' is bound twice: to freeze_memory and to rewind; keys.freeze_memory=\["),
        ({"rewind": ["Z"]}, {}, "'z' is bound twice: to freeze_memory and to rewind"),
        ({"rewind": ["h"]}, {}, "'h' is bound twice: to help and to rewind"),
        ({}, {"turn/right": ["right", "l"]}, "'l' is bound twice: to quick_load and to turn/right"),
        ({}, {"turn/left": ["a"]}, "'a' is bound twice: to strafe/left and to turn/left"),
        ({"pause": ["pad lefty-"]}, {}, "'pad lefty-' is bound twice: to move/forward and to pause"),
        ({"pause": ["mouse left"]}, {}, "'mouse left' is a movement, which gives no command"),
        ({"rewind": ["shift+e"]}, {}, "rewind is held down, which 'shift\\+e' cannot be"),
        ({"save_slot": list("abcdefghijk")}, {}, "save_slot takes a key for each of 10 slots"),
    ],
)
def test_a_binding_that_cannot_be_is_named(keys: dict, buttons: dict, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        bind(TINY_ACTIONS, keys, buttons)


def test_keys_are_looked_up_without_a_display_and_nobody_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame.display.quit()
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    try:
        check_without_window(bind(TINY_ACTIONS))
        with pytest.raises(WorldError, match="there is no key 'nokey'"):
            check_without_window(bind(TINY_ACTIONS, {"rewind": ["nokey"]}))
        assert "SDL_VIDEODRIVER" not in os.environ
    finally:
        pygame.display.quit()

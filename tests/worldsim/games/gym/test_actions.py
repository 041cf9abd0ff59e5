"""Actions of any space as buttons: each comes back as it was, and value 0 does nothing where it can."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest

from tests.own_games import SPACES
from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.games.gym.actions import ActionMap, map_actions

PONG = ("noop", "fire", "right", "left", "rightfire", "leftfire")
DRIVE = gym.spaces.Box(np.array([-1, 0, 0]), np.array([1, 1, 1]), dtype=np.float32)
RETRO = ("fire", "", "up", "down", "left", "right")


def mapped(space: gym.Space, *names: str, bins: tuple[int, ...] = (5,), scale: str = "uniform") -> ActionMap:
    return map_actions(space, names, bins, scale, "Test-v0")


MAPS = [
    mapped(gym.spaces.Discrete(6), *PONG),
    mapped(gym.spaces.Discrete(3, start=-1), "left", "nothing", "right"),
    mapped(gym.spaces.Discrete(2), "left", "right"),
    mapped(gym.spaces.Discrete(4), "left", "down", "right", "up"),
    mapped(SPACES["multi"]),
    mapped(gym.spaces.MultiDiscrete([[2, 3], [1, 4]], start=[[1, 0], [5, -2]])),
    mapped(gym.spaces.MultiBinary(6), *RETRO),
    mapped(DRIVE, "steer", "gas", "brake"),
    mapped(DRIVE, "steer", "gas", "brake", bins=(7, 3, 2), scale="mu-law"),
    mapped(gym.spaces.Box(-2, 2, (2, 1), np.int64), bins=(9,)),
    mapped(gym.spaces.Box(np.array([1.0, 3.0]), np.array([2.0, 3.0]))),
]


@pytest.mark.parametrize("map_", MAPS, ids=lambda map_: "+".join(map_.layout.buttons[:3]))
def test_every_action_comes_back(map_: ActionMap) -> None:
    layout, waits = map_.layout, []
    for values in itertools.product(*map(range, layout.num_values)):
        own = map_.decode(np.array(values))
        if own is None:
            waits.append(values)
        else:
            assert map_.encode(own).tolist() == list(values)
    assert waits in ([], [(0,) * len(layout.axes)])
    assert ActionLayout.from_json(layout.to_json()) == layout
    keys = [key for axis in layout.axes for own in axis.keys for key in own]
    assert len(keys) == len(set(keys))


def test_names_of_atari_become_sticks_where_all_combinations_are_there() -> None:
    pong = MAPS[0]
    assert pong.layout.buttons == ("horizontal/left", "horizontal/right", "fire/fire")
    assert [pong.decode(np.array(each)) for each in ([0, 0], [0, 1], [1, 1])] == [0, 1, 5]
    breakout = mapped(gym.spaces.Discrete(4), *PONG[:4])
    assert breakout.layout.buttons == ("action/fire", "action/right", "action/left")
    assert breakout.layout.axes[0].keys == (("left ctrl",), ("right", "d"), ("left", "a"))


def test_value_0_does_nothing_or_the_game_waits() -> None:
    left_or_right, two, four = MAPS[1:4]
    assert left_or_right.layout.buttons == ("action/left", "action/right")
    assert left_or_right.decode(np.array([0])) == 0, "of -1, 0 and 1"
    assert two.layout.buttons == ("action/right",) and "left while nothing" in two.about
    assert four.decode(np.array([0])) is None and "stands still" in four.about
    assert [four.decode(np.array([value])) for value in (1, 2, 3, 4)] == [0, 1, 2, 3]
    unnamed = mapped(gym.spaces.Discrete(3))
    assert unnamed.layout.buttons == ("action/1", "action/2") and unnamed.decode(np.array([0])) == 0


def test_analog_axes_have_neutral_bins_and_tell_their_centres() -> None:
    steer, gas, brake = MAPS[7].layout.axes
    assert steer.buttons == ("left-2", "left-1", "right-1", "right-2")
    assert steer.centres == (0, -1, -0.5, 0.5, 1) and gas.centres == (0, 0.25, 0.5, 0.75, 1)
    assert (steer.keys[0], steer.keys[-1], gas.keys[-1], brake.keys[-1]) == (
        *(("left", "a"), ("right", "d")),
        *(("up", "w"), ("down", "s")),
    )
    fine, third, half = MAPS[8].layout.axes
    assert len(fine.centres) == 7 and sorted(fine.centres)[4] < 1 / 3, "finer near 0"
    assert (len(third.centres), half.centres) == (3, (0, 1))
    assert MAPS[7].encode(np.array([-0.8, 0.3, 0.9], np.float32)).tolist() == [1, 1, 4]
    assert MAPS[7].decode(np.array([1, 4, 0])).dtype == np.float32
    three = mapped(gym.spaces.Box(-1, 1, (1,)), "turn", bins=(3,)).layout
    assert three.axes[0].buttons == ("left", "right") and three.one_way == ()


def test_a_number_that_never_changes_keeps_its_value() -> None:
    constant = MAPS[-1]
    assert len(constant.layout.axes) == 1
    assert constant.decode(np.array([4])).tolist() == [2, 3]


def test_buttons_of_a_pad_become_sticks() -> None:
    pad = MAPS[6]
    assert [axis.name for axis in pad.layout.axes] == ["vertical", "horizontal", "fire"]
    assert pad.decode(np.array([2, 1, 1])).tolist() == [1, 0, 0, 1, 1, 0]
    assert pad.encode([0, 0, 0, 0, 0, 0]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("space", "names", "sentence"),
    [
        (SPACES["dict"], (), "Test-v0 has actions that cannot be made buttons, a Dict space"),
        (SPACES["text"], (), "a Text space: wrap it so that they are Discrete"),
        (SPACES["graph"], (), "a Graph space"),
        (SPACES["unbounded"], (), "an action without bounds, action from -inf to inf"),
        (gym.spaces.Discrete(1), (), "a single action: there is nothing to press"),
        (gym.spaces.Discrete(3), ("a",), "needs 3 action_names, got 1: a"),
        (gym.spaces.MultiDiscrete([1, 1]), (), "actions that never change"),
        (gym.spaces.Box(-1, 1, (9, 9)), (), "actions of 81 numbers; those of 1 to 64"),
    ],
)
def test_what_cannot_be_pressed_is_one_sentence(
    space: gym.Space, names: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(WorldError, match=sentence):
        mapped(space, *names)


def test_actions_outside_of_the_space_are_named() -> None:
    with pytest.raises(WorldError, match="give 1 or 3 bins"):
        mapped(DRIVE, "steer", "gas", "brake", bins=(5, 3))
    for wrong in (np.array([np.nan, 0, 0]), np.zeros(2), "left", None):
        with pytest.raises(WorldError, match=r"an action is an array \[3\] of finite numbers, got"):
            MAPS[7].encode(wrong)
    for wrong in (6, -1, 0.5, np.nan, [0, 1]):
        with pytest.raises(WorldError, match="an action is"):
            MAPS[0].encode(wrong)

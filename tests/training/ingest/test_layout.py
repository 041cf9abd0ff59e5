"""Columns of actions as axes of buttons: nothing that was pressed gets lost, and value 0 is at rest."""

from __future__ import annotations

import numpy as np
import pytest

from training.ingest.resampling import resample, shown_frames
from worldsim.data.axes import Axis, axes_of, axis_of, compress, expand, with_limits
from worldsim.data.default_keys import layout_of
from worldsim.data.formats import counter_strike, vpt
from worldsim.data.formats.source import Channel, Kind, SourceTable
from worldsim.errors import WorldError

STEER = Channel(name="steer", kind=Kind.ANALOG, limits=(-1.0, 1.0))
GAS = Channel(name="gas", kind=Kind.ANALOG, limits=(0.0, 1.0))
JUMP = Channel(name="jump", kind=Kind.BUTTON)
MOVE = Channel(name="move", kind=Kind.CHOICE, options=("none", "left", "right"))
MOUSE = Channel(name="mouse", kind=Kind.ANALOG, limits=(-10.0, 10.0), is_added=True, scale="mu-law")


def decoded(axis: Axis, values: np.ndarray) -> np.ndarray:
    """Return the centres that values of an axis stand for."""
    return np.array([axis.centres[axis.order[value]] for value in axis.encode(values)])


@pytest.mark.parametrize("channel", [STEER, GAS, MOUSE])
@pytest.mark.parametrize("scale", ["uniform", "mu-law"])
def test_analog_values_go_to_the_nearest_bin(channel: Channel, scale: str) -> None:
    axis = axis_of(channel, 11, scale)
    assert channel.limits is not None
    low, high = channel.limits
    values = np.linspace(low, high, 1001)
    centres = np.array(axis.centres)
    assert (centres[0], centres[-1]) == (pytest.approx(low), pytest.approx(high))
    assert axis.encode(np.array([0.0])).tolist() == [0]
    np.testing.assert_allclose(decoded(axis, centres), centres)
    if scale == "uniform":
        assert np.abs(decoded(axis, values) - values).max() <= (high - low) / 20 + 1e-9
    else:
        widths = np.diff(centres)
        assert widths[0 if low == 0 else 5] < widths[-1], "bins are finer near 0"
    assert axis.encode(np.array([low - 5, high + 5])).tolist() == axis.encode(np.array([low, high])).tolist()


def test_unbounded_values_have_the_range_that_occurs() -> None:
    unbounded = Channel(name="steer", kind=Kind.ANALOG)
    assert with_limits([unbounded, GAS], [STEER, STEER]) == [STEER, GAS]
    as_button = Channel(name="steer", kind=Kind.BUTTON)
    assert with_limits([unbounded], [as_button]) == [as_button]
    nothing_to_tell = Channel(name="steer", kind=Kind.ANALOG, limits=(2.0, 2.0))
    assert axis_of(nothing_to_tell, 11, "").buttons == ()


def test_the_mu_law_is_undone() -> None:
    values = np.linspace(-10, 10, 101)
    np.testing.assert_allclose(expand(compress(values, 10.0), 10.0), values, atol=1e-12)


def test_choices_buttons_and_levels_keep_their_values() -> None:
    texts = Channel(name="go", kind=Kind.CHOICE, options=("left", "right"), rest=None)
    levels = Channel(name="lift", kind=Kind.ANALOG, levels=(-1.0, 0.0, 2.0))
    dead = Channel(name="dead", kind=Kind.ANALOG, levels=(3.0,))
    axes, unused = axes_of([JUMP, MOVE, texts, levels, dead], 5, "")
    assert unused == ["dead"]
    layout = layout_of(axes)
    assert layout.buttons == (
        *("jump/jump", "move/left", "move/right", "go/left", "go/right"),
        *("lift/-1", "lift/+2"),
    )
    assert axes[1].encode(np.array([0, 2, 1])).tolist() == [0, 2, 1]
    assert axes[2].encode(np.array(["right", "left"])).tolist() == [2, 1]
    assert axes[3].encode(np.array([0.0, 2.0, -1.0])).tolist() == [0, 2, 1]
    with pytest.raises(WorldError, match="move takes 0 to 2, got 3"):
        axes[1].encode(np.array([0, 3]))
    with pytest.raises(WorldError, match="no action ever changes"):
        axes_of([dead], 5, "")


def test_no_key_is_given_twice() -> None:
    many = [Channel(name=f"b{index}", kind=Kind.BUTTON) for index in range(30)]
    axes, _ = axes_of([STEER, GAS, MOVE, MOUSE, JUMP, *many], 11, "")
    keys = [key for axis in layout_of(axes).axes for own in axis.keys for key in own]
    assert len(keys) == len(set(keys))
    by_name = {axis.name: axis.keys for axis in layout_of(axes).axes}
    assert by_name["jump"] == (("space",),)
    assert by_name["move"] == (("a",), ("d",))
    assert (by_name["steer"][0], by_name["steer"][-1]) == (("left",), ("right",))


@pytest.mark.parametrize(
    ("channels", "up"), [(vpt.CHANNELS, "camera_pitch"), (counter_strike.CHANNELS, "mouse_y")]
)
def test_shooters_walk_by_letters_and_look_by_arrows(channels: tuple[Channel, ...], up: str) -> None:
    axes, _ = axes_of(channels, 11, "")
    keys = {axis.name: axis.keys for axis in layout_of(axes).axes}
    assert [keys[name] for name in ("forward", "left", "back", "right")] == [((key,),) for key in "wasd"]
    across = "camera_yaw" if up == "camera_pitch" else "mouse_x"
    assert (keys[across][0], keys[across][-1]) == (("left",), ("right",))
    assert (keys[up][0], keys[up][-1]) == (("up",), ("down",))  # down is positive, as on a screen
    slots = keys["hotbar"] if "hotbar" in keys else (keys["1"][0], keys["2"][0])
    assert slots[:2] == (("1",), ("2",))


def test_resampling_loses_no_input() -> None:
    axes, _ = axes_of([JUMP, MOVE, MOUSE, STEER], 11, "")
    table = SourceTable(
        num_frames=6,
        actions={
            "jump": np.array([0, 1, 0, 0, 0, 0]),
            "move": np.array([1, 0, 2, 2, 0, 0]),
            "mouse": np.array([1.0, 2.0, 3.0, -1.0, 0.5, 9.0]),
            "steer": np.array([0.0, 1.0, 0.5, 0.5, -1.0, 0.0]),
        },
        rewards=np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        terminated=np.array([0, 0, 0, 0, 0, 1], bool),
    )
    half = resample(table, shown_frames(np.arange(6) / 30, 15.0), axes)
    assert half.num_frames == 3
    assert half.actions["jump"].tolist() == [1, 0, 0]
    assert half.actions["move"].tolist() == [1, 2, 0]
    assert half.actions["mouse"].tolist() == [3.0, 2.0, 9.5]
    assert half.actions["steer"].tolist() == [0.5, 0.5, -0.5]
    assert half.rewards is not None and half.terminated is not None
    assert half.rewards.tolist() == [0, 3, 12]
    assert half.terminated.tolist() == [False, False, True]
    double = resample(table, shown_frames(np.arange(6) / 30, 60.0), axes)
    assert double.actions["mouse"][:4].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert double.actions["mouse"].sum() == pytest.approx(table.actions["mouse"].sum())
    assert double.rewards is not None
    assert double.rewards.tolist() == [0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5]
    assert double.actions["jump"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]

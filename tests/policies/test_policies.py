"""Every policy keeps the protocol; the scripted one does what its tables say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import policies
from policies.scripted.explore import STUCK_FRAMES
from tests.fakes import save_untrained_policy

NUM_VALUES = (3, 3, 3)
KEYS = ((("up", "w"), ("down", "s")), (("a",), ("d",)), (("left",), ("right",)))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    actions: list[list[int] | None] = [[1, 0, 2], [0, 2, 0], None]
    path.write_text("".join(json.dumps({"action": action}) + "\n" for action in actions))
    return path


def changing_picture(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    return np.repeat(rng.integers(0, 256, (1, 160, 3), dtype=np.uint8), 120, axis=0)


def play(policy: policies.Policy, count: int, seed: int = 0, still: bool = False) -> np.ndarray:
    policy.reset(seed)
    return np.stack([policy.act(changing_picture(0 if still else index)) for index in range(count)])


@pytest.mark.parametrize(
    "name", sorted(policies.POLICIES.keys() - {"own", *policies.TOURS, *policies.EXCURSIONS})
)
def test_policy_keeps_the_protocol(name: str, recording: Path) -> None:
    options = {
        "keyboard": {"keys": KEYS},
        "ppo": {"folder": save_untrained_policy(recording.parent / "policy", NUM_VALUES)},
        "recorded": {"path": recording},
    }.get(name, {})
    num_values = policies.OutAndBackPolicy.NUM_VALUES if name == "out-and-back" else NUM_VALUES
    policy = policies.make(name, num_values=num_values, **options)
    count = 30 if name == "ppo" else 300  # a network takes its time
    actions = play(policy, count, seed=5)
    assert actions.shape == (count, len(num_values))
    assert actions.dtype == np.int64
    assert (actions >= 0).all() and (actions < num_values).all()
    assert (play(policy, count, seed=5) == actions).all(), "the same seed gave other actions"


@pytest.mark.parametrize("name", ["random", "scripted"])
def test_another_seed_gives_other_actions(name: str) -> None:
    policy = policies.make(name, num_values=NUM_VALUES)
    assert (play(policy, 300, seed=1) != play(policy, 300, seed=2)).any()


def test_changing_the_returned_action_changes_nothing() -> None:
    policy = policies.make("scripted", num_values=NUM_VALUES)
    expected = play(policy, 50)
    policy.reset(0)
    for index in range(50):
        action = policy.act(changing_picture(index))
        assert (action == expected[index]).all()
        action += 1


def test_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match="there is no policy 'psychic'; known are keyboard, .*mixed, .*ppo"):
        policies.make("psychic", num_values=NUM_VALUES)


def test_scripted_balances_its_buttons() -> None:
    actions = np.concatenate(
        [play(policies.make("scripted", num_values=NUM_VALUES), 1000, seed) for seed in range(60)]
    )
    move, strafe, turn = (np.bincount(actions[:, axis], minlength=3) / len(actions) for axis in range(3))
    assert 0.15 < move[2] < 0.25, "backward"
    assert 0.3 < move[1] < 0.6, "forward"
    assert abs(strafe[1] - strafe[2]) < 0.03, "strafing left and right"
    assert abs(turn[1] - turn[2]) < 0.03, "turning left and right"
    assert min(strafe[1:]) > 0.06
    assert min(turn[1:]) > 0.15
    assert 0.04 < (actions == 0).all(axis=1).mean() < 0.09, "no button at all"


def test_scripted_holds_its_actions() -> None:
    actions = play(policies.make("scripted", num_values=NUM_VALUES), 3000)
    changes = np.flatnonzero((np.diff(actions, axis=0) != 0).any(axis=1))
    assert 6 < np.diff(changes).mean() < 20


def test_scripted_turns_away_when_the_picture_stands_still() -> None:
    """Against a wall it does not press on for longer than it takes to notice."""
    actions = play(policies.make("scripted", num_values=NUM_VALUES), 2000, still=True)
    walking = (actions[:, 0] != 0) | (actions[:, 1] != 0)
    turning = actions[:, 2] != 0
    longest = max(len(run) for run in "".join("w" if w else " " for w in walking).split())
    assert longest <= STUCK_FRAMES + 1 + 10, "it kept walking into the wall"
    assert turning.mean() > 0.35


def test_scripted_refuses_other_axes() -> None:
    with pytest.raises(ValueError, match=r"three axes \(move, strafe, turn\).*\[2, 5\]"):
        policies.ScriptedPolicy((2, 5))
    with pytest.raises(ValueError, match=r"no scripted player for axes of \[2, 5\] values, only for \[3, 3"):
        policies.make("scripted", num_values=(2, 5))


def test_recorded_plays_the_file_then_nothing(recording: Path) -> None:
    policy = policies.make("recorded", num_values=NUM_VALUES, path=str(recording))
    assert play(policy, 4).tolist() == [[1, 0, 2], [0, 2, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "{}",
        '{"action": [1, 0]}',
        '{"action": [1, 0, 3]}',
        '{"action": [1, 0, -1]}',
        '{"action": null}',
        '{"action": [true, 0, 0]}',
        '{"action": [1.0, 0, 0]}',
        '{"action": ["1", 0, 0]}',
        '{"action": [[1], 0, 0]}',
        '{"action": "100"}',
        '{"action": [1%s, 0, 0]}' % ("0" * 5000),
        "[" * 100_000,
        "\\xff",
    ],
)
def test_recorded_names_the_bad_line(recording: Path, line: str) -> None:
    lines = recording.read_text().splitlines()
    recording.write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(ValueError, match=r"a\.jsonl line 2"):
        policies.make("recorded", num_values=NUM_VALUES, path=recording)


def test_recorded_takes_line_breaks_of_unicode_for_a_part_of_a_name(recording: Path) -> None:
    lines = recording.read_text().splitlines()
    lines[1] = '{"action": [2, 1, 0], "player": "a\u2028b"}'
    recording.write_text("\n".join(lines) + "\n", encoding="utf-8")
    policy = policies.make("recorded", num_values=NUM_VALUES, path=recording)
    assert play(policy, 2).tolist() == [[1, 0, 2], [2, 1, 0]]


def test_recorded_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl"):
        policies.make("recorded", num_values=NUM_VALUES, path=tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("held", "action"),
    [
        ((), [0, 0, 0]),
        (("up",), [1, 0, 0]),
        (("up", "w"), [1, 0, 0]),
        (("up", "s"), [0, 0, 0]),
        (("w", "d", "left"), [1, 2, 1]),
        (("left", "right", "down"), [2, 0, 0]),
        (("f1", "a"), [0, 1, 0]),
    ],
)
def test_keyboard_turns_held_keys_into_an_action(held: tuple[str, ...], action: list[int]) -> None:
    policy = policies.KeyboardPolicy(NUM_VALUES, KEYS)
    policy.held = set(held)
    assert policy.act(changing_picture(0)).tolist() == action


def analog(*helds: object) -> list[int]:
    """Return what is played on an axis of numbers -1, -0.5, 0, 0.5, 1, whose values are 1, 2, 0, 3, 4."""
    keys = ((("left", "stick-"), (), (), ("right", "stick+")),)
    policy = policies.KeyboardPolicy((5,), keys, ((0.0, -1.0, -0.5, 0.5, 1.0),))
    played = []
    for held in helds:
        policy.held = held  # type: ignore[assignment]
        played.append(int(policy.act(changing_picture(0))[0]))
    return played


def test_a_key_moves_an_analog_axis_by_a_bin_a_frame() -> None:
    left, right = {"left"}, {"right": None}
    assert analog(left, left, left, set(), left) == [2, 1, 1, 0, 2], "a tap is a little, all of it is held"
    assert analog(left, left, right, right, left) == [2, 1, 3, 4, 2], "not by way of rest"
    assert analog(left, {"left", "right"}, right) == [2, 0, 3], "they cancel each other"


def test_a_stick_moves_an_analog_axis_as_far_as_it_is_moved() -> None:
    moved = [{"stick+": far} for far in (1.0, 0.1, 0.3, 0.74, 0.76)]
    assert analog(*moved) == [4, 0, 3, 3, 4]
    assert analog({"stick-": 0.5}, {"stick-": 1.0}, {"stick-": 0.2, "left": None}) == [2, 1, 1]


def test_keyboard_refuses_centres_of_other_axes() -> None:
    with pytest.raises(ValueError, match="centres are for each value of an axis, or for none of"):
        policies.KeyboardPolicy((3,), ((("up",), ("down",)),), ((0.0, 1.0),))


def test_keyboard_refuses_a_key_with_two_meanings() -> None:
    with pytest.raises(ValueError, match="key 'up' is used twice"):
        policies.KeyboardPolicy((3,), ((("up",), ("up",)),))


def test_keyboard_refuses_a_table_of_other_axes() -> None:
    with pytest.raises(ValueError, match=r"values, but the world's have \[3, 3\]"):
        policies.KeyboardPolicy((3, 3), KEYS)


def test_still_presses_nothing() -> None:
    assert np.array_equal(play(policies.make("still", num_values=(3, 2)), 5), np.zeros((5, 2)))


def test_to_and_fro_changes_sides_each_half_period() -> None:
    actions = play(policies.make("to-and-fro", num_values=(2, 3), period_frames=8), 40)
    assert (actions[:, 0] == 0).all()
    changes = np.flatnonzero(np.diff(actions[:, 1]))
    assert set(actions[:, 1]) == {1, 2} and (np.diff(changes) == 4).all()


def test_to_and_fro_begins_anywhere_in_its_period() -> None:
    policy = policies.make("to-and-fro", num_values=(3,), period_frames=20)
    assert len({tuple(play(policy, 20, seed)[:, 0]) for seed in range(20)}) > 5


def test_to_and_fro_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"needs an axis of three values, got \[2, 5\]"):
        policies.make("to-and-fro", num_values=(2, 5))
    with pytest.raises(ValueError, match="period_frames must be at least 2, got 1"):
        policies.make("to-and-fro", num_values=(3,), period_frames=1)

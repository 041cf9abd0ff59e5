"""Players that do not look at the picture: still, random, to and fro, a person at the keys, a recording."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.base import Policy, check_range

FIRST, SECOND = 1, 2
MAX_RECORDING_BYTES = 2**29
# keys[axis][value - 1] are the names of the keys that choose this value of this axis.
KeyTable = Sequence[Sequence[Sequence[str]]]


class StillPolicy(Policy):
    """Press nothing.

    Args:
        num_values: Number of values of each axis.
    """

    def __init__(self, num_values: Sequence[int]) -> None:
        self._num_axes = len(num_values)

    def reset(self, seed: int) -> None:
        """Start a new episode, which is no different."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return zeros, `[axes]` int64; the picture does not matter."""
        return np.zeros(self._num_axes, dtype=np.int64)


class RandomPolicy(Policy):
    """Hold an action drawn uniformly from all actions, then draw the next.

    Args:
        num_values: Number of values of each axis.
        hold_frames: Minimum and maximum number of frames an action is held.
    """

    def __init__(self, num_values: Sequence[int], hold_frames: Sequence[int] = (4, 25)) -> None:
        self._num_values = np.asarray(num_values, dtype=np.int64)
        self._hold_frames = check_range("hold_frames", hold_frames)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng(seed)
        self._frames_left = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the held action, `[axes]` int64; the picture does not matter."""
        if self._frames_left == 0:
            self._action = self._rng.integers(self._num_values)
            self._frames_left = int(self._rng.integers(*self._hold_frames, endpoint=True))
        self._frames_left -= 1
        return self._action.copy()


class StickyPolicy(RandomPolicy):
    """Hold actions drawn uniformly, some episodes longer than others.

    Each episode draws how many frames an action is held at most, all orders of magnitude alike: where one
    wrong move ends a game, short ones go on longest, and where nothing happens in a frame, long ones get
    somewhere.

    Args:
        num_values: Number of values of each axis.
        most_frames: Maximum of these maxima.
    """

    def __init__(self, num_values: Sequence[int], most_frames: int = 32) -> None:
        if most_frames < 1:
            raise ValueError(f"most_frames must be at least 1, got {most_frames}")
        self._most_frames = most_frames
        super().__init__(num_values)

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        super().reset(seed)
        most = np.exp(self._rng.uniform(0, np.log(self._most_frames + 1)))
        self._hold_frames = 1, max(1, int(most))


class ToAndFroPolicy(Policy):
    """Hold the first button of an axis for half a period, then the second, and so on.

    Args:
        num_values: Number of values of each axis; the last one of three values is used.
        period_frames: Frames of a run there and back, at least 2.

    Raises:
        ValueError: If there is no such axis, or the period is too short.
    """

    def __init__(self, num_values: Sequence[int], period_frames: int = 120) -> None:
        axes = [axis for axis, count in enumerate(num_values) if count == 3]
        if not axes:
            raise ValueError(
                f"the player that runs to and fro needs an axis of three values, got {list(num_values)}"
            )
        if period_frames < 2:
            raise ValueError(f"period_frames must be at least 2, got {period_frames}")
        self._axis, self._num_axes = axes[-1], len(num_values)
        self._period_frames = period_frames
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode, somewhere in the run to the first side."""
        self._frame = int(np.random.default_rng(seed).integers(self._period_frames))

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64; the picture does not matter."""
        action = np.zeros(self._num_axes, dtype=np.int64)
        is_first = self._frame % self._period_frames < self._period_frames / 2
        action[self._axis] = FIRST if is_first else SECOND
        self._frame += 1
        return action


class KeyboardPolicy(Policy):
    """Press what the held keys say; keys of different values of one axis cancel each other.

    Set `held` to the names of the keys that are down before each `act`; of sticks, triggers and the mouse as
    a mapping to how far they are moved, above 0 to 1 (None of keys). An analog axis goes there at once, by a
    key one bin a frame, so that a tap is a little and holding it is all.

    Args:
        num_values: Number of values of each axis.
        keys: For each axis, for each value from 1, the names of its keys.
        centres: For each axis the numbers that its values stand for, value 0 first; none of buttons.

    Raises:
        ValueError: If the table does not fit the axes or a key has two meanings.
    """

    def __init__(
        self, num_values: Sequence[int], keys: KeyTable, centres: Sequence[Sequence[float]] = ()
    ) -> None:
        self._num_axes = len(num_values)
        self._centres = [np.asarray(each, dtype=np.float64) for each in centres or [()] * len(num_values)]
        pairs = zip(self._centres, num_values, strict=True)
        if any(len(each) not in (0, count) for each, count in pairs):
            raise ValueError(f"centres are for each value of an axis, or for none of {list(num_values)}")
        self._meaning: dict[str, tuple[int, int]] = {}
        if [len(axis) + 1 for axis in keys] != list(num_values):
            raise ValueError(
                f"the table of keys has axes of {[len(axis) + 1 for axis in keys]} values, "
                f"but the world's have {list(num_values)}"
            )
        for axis, values in enumerate(keys):
            for value, names in enumerate(values, start=1):
                for name in names:
                    if name in self._meaning:
                        raise ValueError(f"key {name!r} is used twice")
                    self._meaning[name] = (axis, value)
        self.held: Collection[str] = ()
        self.reset(0)

    @property
    def keys(self) -> frozenset[str]:
        """Names of all keys that mean something."""
        return frozenset(self._meaning)

    def reset(self, seed: int) -> None:
        """Start a new episode; keys still held stay held, analog axes go back to rest."""
        self._last = np.zeros(self._num_axes, dtype=np.int64)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the action of the held keys, `[axes]` int64."""
        far = dict(self.held) if isinstance(self.held, Mapping) else dict.fromkeys(self.held)
        pressed: list[dict[int, float | None]] = [{} for _ in range(self._num_axes)]
        for name in far.keys() & self._meaning.keys():
            axis, value = self._meaning[name]
            both = far[name], pressed[axis].get(value, 0.0)
            pressed[axis][value] = None if None in both else max(both)  # type: ignore[type-var]
        action = np.zeros(self._num_axes, dtype=np.int64)
        for axis, values in enumerate(pressed):
            if len(values) == 1:
                value, amount = values.popitem()
                action[axis] = self._approach(axis, value, amount) if len(self._centres[axis]) else value
        self._last = action
        return action.copy()

    def _approach(self, axis: int, value: int, amount: float | None) -> int:
        """Return the value of an analog axis on the way from rest to another value."""
        centres = self._centres[axis]
        if amount is not None:
            wanted = centres[0] + amount * (centres[value] - centres[0])
            return int(np.abs(centres - wanted).argmin())
        order = np.argsort(centres, kind="stable")
        place = {int(each): number for number, each in enumerate(order)}
        rest, target, last = place[0], place[value], place[int(self._last[axis])]
        if (last - rest) * (target - rest) < 0:  # from the other side: through rest at once
            last = rest
        return int(order[last + np.sign(target - last)])


class RecordedPolicy(Policy):
    """Play the actions of a recorded episode, then press nothing.

    Args:
        num_values: Number of values of each axis.
        path: The episode's `NAME.jsonl`, one object a frame with its `action`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line holds no action that fits the axes.
    """

    def __init__(self, num_values: Sequence[int], path: str | Path) -> None:
        self._num_values = np.asarray(num_values, dtype=np.int64)
        self._actions = self._read(Path(path))
        self.reset(0)

    def __len__(self) -> int:
        return len(self._actions)

    def reset(self, seed: int) -> None:
        """Start from the first action again; there is nothing random."""
        self._next = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next recorded action, `[axes]` int64; the picture does not matter."""
        if self._next >= len(self._actions):
            return np.zeros_like(self._num_values)
        self._next += 1
        return self._actions[self._next - 1].copy()

    def _read(self, path: Path) -> list[np.ndarray]:
        if not path.is_file():
            raise FileNotFoundError(f"there is no recording {path}")
        if path.stat().st_size > MAX_RECORDING_BYTES:
            raise ValueError(f"{path} is larger than {MAX_RECORDING_BYTES / 2**20:g} MiB")
        actions = []
        with path.open("rb") as file:  # only a line feed ends a line: a name may hold what else breaks one
            lines = list(file)
        for number, line in enumerate(lines, start=1):
            try:
                action = json.loads(line)["action"]
                if action is None and number == len(lines):
                    break
                actions.append(self._check(action))
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{path} line {number} holds no action for this world: {error}") from error
        return actions

    def _check(self, action: Any) -> np.ndarray:
        counts = self._num_values.tolist()
        if not isinstance(action, list) or len(action) != len(counts):
            raise ValueError(f"expected {len(counts)} integers, got {str(action):.40}")
        if not all(type(value) is int for value in action):
            raise ValueError(f"expected integers, got {str(action):.40}")
        if not all(0 <= value < count for value, count in zip(action, counts, strict=True)):
            raise ValueError(f"{str(action):.40} is outside the axes' {counts} values")
        return np.array(action, dtype=np.int64)

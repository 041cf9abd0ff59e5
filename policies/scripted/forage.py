"""A player of Health Gathering that sees nothing but the picture: it walks to the nearest medikit it sees.

Without one in sight it walks in curves; where the picture stands still it turns away from the wall.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from policies.base import ScriptedPlayer

NOTHING, LEFT, RIGHT = 0, 1, 2
FORWARD = 1
BOTTOM = 0.92  # where the bar of health begins, as a share of the picture's height
# A medikit is white; floor, sky and walls stay below this in blue, also when a hit tinges all with red.
WHITE_BLUE = 120
# All as shares of the picture's width: what one frame of turning moves the picture by is 0.05.
STRAIGHT, AHEAD = 0.035, 0.2  # walk without turning, or while turning, towards what is so near the middle
NEAR = 0.12  # a medikit so wide is taken by walking on, though it leaves the picture at the bottom
REACH_FRAMES = 7
CURVE_FRAMES = (5, 25)
CURVES, CURVE_SHARES = (NOTHING, LEFT, RIGHT), (0.5, 0.25, 0.25)
# Walking changes a picture by more than this, in grey levels of 255, unless a wall is in the way.
STUCK_FRAMES, STUCK_CHANGE = 5, 1.5
TURN_FRAMES, LEAVE_FRAMES = (6, 20), (10, 25)


class ForagePolicy(ScriptedPlayer):
    """Walk from medikit to medikit."""

    NUM_VALUES = (2, 3)
    NEEDS = "the player that gathers needs two axes (move, turn) of two and three values"

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng(seed)
        self._plan: deque[tuple[int, int]] = deque()  # what is done whatever is in sight
        self._curve: deque[tuple[int, int]] = deque()  # what is done with nothing in sight
        self._pictures: deque[np.ndarray] = deque(maxlen=STUCK_FRAMES + 1)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[2]` int64, for `observation`, `[height, width, 3]` uint8."""
        if self._is_stuck(observation):
            self._leave()
        action = self._plan.popleft() if self._plan else self._approach(observation)
        if action[0] != FORWARD or action[1] != NOTHING:
            self._pictures.clear()
        return np.array(action, dtype=np.int64)

    def _approach(self, observation: np.ndarray) -> tuple[int, int]:
        medikits = find_medikits(observation)
        if not len(medikits):
            return self._stroll()
        middle, width = medikits[np.argmax(medikits[:, 1] - 0.1 * np.abs(medikits[:, 0]))]
        if width > NEAR and abs(middle) < AHEAD / 2:
            self._plan.extend([(FORWARD, NOTHING)] * REACH_FRAMES)
        turn = NOTHING if abs(middle) < STRAIGHT else LEFT if middle < 0 else RIGHT
        return (FORWARD if abs(middle) < AHEAD else 0, turn)

    def _stroll(self) -> tuple[int, int]:
        if not self._curve:
            turn = int(self._rng.choice(CURVES, p=CURVE_SHARES))
            self._curve.extend([(FORWARD, turn)] * int(self._rng.integers(*CURVE_FRAMES, endpoint=True)))
        return self._curve.popleft()

    def _leave(self) -> None:
        """Turn away from what is in the way, and walk on."""
        turn = int(self._rng.choice((LEFT, RIGHT)))
        self._plan.clear()
        self._curve.clear()
        self._plan.extend([(0, turn)] * int(self._rng.integers(*TURN_FRAMES, endpoint=True)))
        self._plan.extend([(FORWARD, NOTHING)] * int(self._rng.integers(*LEAVE_FRAMES, endpoint=True)))

    def _is_stuck(self, observation: np.ndarray) -> bool:
        """Whether walking straight on has changed nothing; a tinge of the picture only moves the mean."""
        columns = observation[: int(BOTTOM * len(observation)), :, 2].mean(axis=0)
        self._pictures.append(columns - columns.mean())
        if len(self._pictures) <= STUCK_FRAMES:
            return False
        return float(np.abs(self._pictures[-1] - self._pictures[0]).mean()) < STUCK_CHANGE


def find_medikits(observation: np.ndarray) -> np.ndarray:
    """Return each medikit's middle and width, `[count, 2]`: shares of the picture's width, 0 its centre."""
    height, width = observation.shape[:2]
    white = (observation[height // 3 : int(BOTTOM * height), :, 2] > WHITE_BLUE).any(axis=0)
    edges = np.flatnonzero(np.diff(white.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return np.stack([edges.mean(axis=1) / width - 0.5, (edges[:, 1] - edges[:, 0]) / width], axis=1)

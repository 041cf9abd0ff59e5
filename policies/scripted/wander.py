"""Players that show a world: they walk from room to room and turn away from a wall before it fills the view.

They know how far it is to what they see (`policies.scripted.depth`), from the picture alone, in games of Doom
and in dreams of them. No world should learn from their recordings alone: they hardly run into anything.
"""

from __future__ import annotations

import numpy as np

from policies import streams
from policies.scripted.depth import NUM_STRIPS, depth_estimator
from policies.scripted.explore import ScriptedPolicy, SkirmishPolicy

FORWARD, BACKWARD, LEFT, RIGHT = 1, 2, 1, 2
# Distances in map units; the player is 32 wide and stands 16 from a wall at the nearest.
NEAR, CLEAR = 120.0, 150.0  # turns away from what is nearer straight ahead, until it is so far
STEP_BACK_FROM = 100.0  # while it turns
AHEAD = slice(7, 13)  # of 20 strips: 27 degrees
OPENING = np.ones(3) / 3  # strips of the narrowest opening
ASIDE = 0.03  # of an opening's logarithmic depth for each strip that it lies aside
STEER_FROM = 2.0  # strips that it may lie beside the middle
FULL_TURN = 53  # frames
STROLL = (60, 140)  # frames, after which it looks for another way
GLANCE = (6, 16)  # frames of turning to find one


class WanderPolicy(ScriptedPolicy):
    """Walk towards the farthest that is seen; now and then look for another way."""

    NEEDS = "the player that wanders needs three axes (move, strafe, turn) of three values each"

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        super().reset(seed)
        self._rng = np.random.default_rng((seed, streams.WANDER))
        self._way = 0  # value of the axis `turn` while it looks for a way
        self._turned = self._least = 0  # frames of turning: so far, at least
        self._farthest = 0.0
        self._stroll = self._draw_frames(STROLL)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[3]` int64, for `observation`, `[height, width, 3]` uint8."""
        self.watch(observation)
        self.was_stuck = self._is_stuck()
        depths = depth_estimator()(observation)
        ahead = float(np.median(depths[AHEAD]))
        if not self._way:
            if self.was_stuck or self._stroll <= 0:
                self._begin_turn(depths, self._draw_frames(GLANCE))
            elif ahead < NEAR:
                self._begin_turn(depths, 0)
        if self._way and self._is_clear(ahead):
            self._way = 0
        action = self._turn(ahead) if self._way else self._walk(find_opening(depths))
        self._walked_frames = self._walked_frames + 1 if action[0] and not action[2] else 0
        return action

    def _begin_turn(self, depths: np.ndarray, least: int) -> None:
        sides = np.log(depths[: NUM_STRIPS // 2]).mean() - np.log(depths[NUM_STRIPS // 2 :]).mean()
        self._way = LEFT if sides + self._rng.normal(scale=0.2) > 0 else RIGHT
        self._turned, self._least, self._farthest = 0, least, 0.0
        self._stroll = self._draw_frames(STROLL)

    def _is_clear(self, ahead: float) -> bool:
        """Whether there is a way; after a full turn, whether it is about as clear as it gets."""
        self._farthest = max(self._farthest, ahead)
        wanted = CLEAR if self._turned <= FULL_TURN else min(CLEAR, 0.9 * self._farthest)
        return self._turned > self._least and ahead >= wanted

    def _turn(self, ahead: float) -> np.ndarray:
        self._turned += 1
        return np.array([BACKWARD if ahead < STEP_BACK_FROM else 0, 0, self._way])

    def _walk(self, offset: float) -> np.ndarray:
        self._stroll -= 1
        return np.array([FORWARD, 0, 0 if abs(offset) <= STEER_FROM else LEFT if offset < 0 else RIGHT])

    def _draw_frames(self, limits: tuple[int, int]) -> int:
        return int(self._rng.integers(*limits, endpoint=True))


def find_opening(depths: np.ndarray) -> float:
    """Return where the farthest is seen, in strips to the right of the middle.

    Args:
        depths: Of each strip, `[N]` in map units.
    """
    seen = np.convolve(np.log(depths), OPENING, mode="valid")
    offsets = np.arange(len(seen)) - (len(seen) - 1) / 2
    return float(offsets[(seen - ASIDE * np.abs(offsets)).argmax()])


class PatrolPolicy(SkirmishPolicy):
    """Wander through a level as `WanderPolicy` does; fire in bursts, and try to open what stops it."""

    EXPLORER = WanderPolicy

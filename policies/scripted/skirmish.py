"""A player of a level of Doom: it explores, fires in bursts, and tries to open what stops it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies import streams
from policies.base import check_axes
from policies.scripted.explore import ScriptedPolicy

ATTACK, USE = 1, 2
BURST_FRAMES, PAUSE_FRAMES = (4, 24), (12, 48)  # in a third of the frames it fires
# Held down, `use` opens nothing more; the explorer turns and walks on meanwhile.
OPENING = [USE, 0, 0] * 8


class SkirmishPolicy:
    """Explore as `ScriptedPolicy` does, and press the buttons of a fourth axis meanwhile.

    Args:
        num_values: Number of values of each axis; must be (3, 3, 3, 3): move, strafe, turn and act.
    """

    NUM_VALUES = (3, 3, 3, 3)

    def __init__(self, num_values: Sequence[int]) -> None:
        needs = "the player of a level needs four axes (move, strafe, turn, act) of three values each"
        check_axes(num_values, self.NUM_VALUES, needs)
        self._explorer = ScriptedPolicy(num_values[:3])
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng((seed, streams.SKIRMISH))
        self._explorer.reset(seed)
        self._acts: list[int] = []  # the next one last

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[4]` int64, for `observation`, `[height, width, 3]` uint8."""
        action = self._explorer.act(observation)
        if not self._acts:
            burst, pause = (int(self._rng.integers(*r, endpoint=True)) for r in (BURST_FRAMES, PAUSE_FRAMES))
            self._acts = [ATTACK] * burst + [0] * pause
        if self._explorer.was_stuck:
            self._acts = OPENING[::-1]
        return np.append(action, self._acts.pop())

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts."""
        self._explorer.watch(observation)

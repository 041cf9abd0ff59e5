"""Players that explore: walk, look around, come back, rest, turn away from walls; one of them also fires.

It sees nothing but the picture, so it plays the real game and a learned one alike. What it does is in the
two tables below; left and right are equally likely everywhere.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies import streams
from policies.base import ScriptedPlayer

# Weights of an axis' values: nothing, first button, second button.
Weights = tuple[float, float, float]
Frames = tuple[int, int]  # minimum and maximum number of frames

OFF: Weights = (1, 0, 0)
FORWARD: Weights = (0, 1, 0)
BACKWARD: Weights = (0, 0, 1)
EITHER: Weights = (0, 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """A kind of behaviour: actions are drawn from the axes' weights, each held for some frames.

    Attributes:
        share: How often it is chosen, relative to the other modes.
        move, strafe, turn: Weights of each axis' values.
        hold: Frames each action is held.
        repeats: Minimum and maximum number of actions in a row.
        undo: After each action pause for up to 10 frames, then hold the opposite action as long.
    """

    share: float = 1.0
    move: Weights = OFF
    strafe: Weights = OFF
    turn: Weights = OFF
    hold: Frames = (4, 25)
    repeats: Frames = (1, 1)
    undo: bool = False


MODES = {
    "walk": Mode(share=6.0, move=FORWARD, strafe=(10, 1, 1), turn=(5, 3, 3), repeats=(2, 5)),
    "walk in a curve": Mode(share=2.5, move=FORWARD, turn=EITHER, repeats=(1, 3)),
    "walk backward": Mode(share=5.0, move=BACKWARD, strafe=(8, 1, 1), turn=(3, 1, 1), repeats=(1, 3)),
    "strafe": Mode(share=2.5, move=(4, 2, 1), strafe=EITHER, turn=(6, 1, 1), repeats=(1, 3)),
    "look around": Mode(share=2.0, turn=EITHER, hold=(6, 52), repeats=(1, 2)),
    "look away and return": Mode(share=1.5, turn=EITHER, hold=(4, 30), undo=True),
    "walk away and return": Mode(share=1.0, move=EITHER, hold=(8, 25), undo=True),
    "step aside and return": Mode(share=1.0, strafe=EITHER, hold=(6, 20), undo=True),
    "anything": Mode(share=2.0, move=(1, 1, 1), strafe=(1, 1, 1), turn=(1, 1, 1), repeats=(2, 5)),
    "rest": Mode(share=2.0, hold=(4, 40)),
}
# The view bobs while a walking button is held, even against a wall, once in 10 frames of the Doom world; so
# a picture is compared with the one 10 frames before it, by the means of its columns, which bobbing hardly
# changes. In the real game their mean difference is below 0.3 for 3 in 4 blocked frames (median 0.1), and
# above 0.57 for 99 in 100 moving ones (grey levels of 255).
STUCK_FRAMES = 10
STUCK_CHANGE = 0.5
# After walking into something, in this order; the first step ends before it could count as blocked too.
ESCAPE = (
    Mode(move=(1, 1, 1), strafe=(2, 1, 1), hold=(4, STUCK_FRAMES - 1)),
    Mode(turn=EITHER, hold=(8, 26)),
    Mode(move=FORWARD, hold=(12, 25)),
)
ATTACK, USE = 1, 2
BURST_FRAMES, PAUSE_FRAMES = (4, 24), (12, 48)  # in a third of the frames it fires
# Held down, `use` opens nothing more; the explorer turns and walks on meanwhile.
OPENING = [USE, 0, 0] * 8


class ScriptedPolicy(ScriptedPlayer):
    """Explore with the modes above.

    `was_stuck` is whether it noticed at the last `act` that something stops it.
    """

    NUM_VALUES = (3, 3, 3)
    NEEDS = "the scripted player needs three axes (move, strafe, turn) of three values each"

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng(seed)
        self._plan: deque[np.ndarray] = deque()
        self._columns: deque[np.ndarray] = deque(maxlen=STUCK_FRAMES + 1)
        self._walked_frames = 0
        self.was_stuck = False

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[3]` int64, for `observation`, `[height, width, 3]` uint8."""
        self.watch(observation)
        self.was_stuck = self._is_stuck()
        if self.was_stuck:
            self._plan.clear()
            self._walked_frames = 0
            for mode in ESCAPE:
                self._extend_plan(mode)
        while not self._plan:
            modes = list(MODES.values())
            shares = np.array([mode.share for mode in modes])
            self._extend_plan(modes[self._rng.choice(len(modes), p=shares / shares.sum())])
        action = self._plan.popleft()
        self._walked_frames = self._walked_frames + 1 if action[0] or action[1] else 0
        return action.copy()

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts."""
        # The green channel stands for brightness; every second row is enough for a column's mean.
        self._columns.append(observation[::2, :, 1].mean(axis=0))

    def _is_stuck(self) -> bool:
        if self._walked_frames < STUCK_FRAMES or len(self._columns) <= STUCK_FRAMES:
            return False
        return float(np.abs(self._columns[-1] - self._columns[0]).mean()) < STUCK_CHANGE

    def _extend_plan(self, mode: Mode) -> None:
        for _ in range(self._rng.integers(*mode.repeats, endpoint=True)):
            action = np.array([self._draw(weights) for weights in (mode.move, mode.strafe, mode.turn)])
            frames = int(self._rng.integers(*mode.hold, endpoint=True))
            self._plan.extend([action] * frames)
            if mode.undo:
                self._plan.extend([np.zeros_like(action)] * int(self._rng.integers(0, 10, endpoint=True)))
                self._plan.extend([(3 - action) % 3] * frames)  # 1 <-> 2, 0 stays

    def _draw(self, weights: Weights) -> int:
        return int(self._rng.choice(3, p=np.array(weights) / sum(weights)))


class SkirmishPolicy(ScriptedPlayer):
    """Explore a level as `ScriptedPolicy` does; fire in bursts, and try to open what stops it."""

    NUM_VALUES = (3, 3, 3, 3)
    NEEDS = "the player of a level needs four axes (move, strafe, turn, act) of three values each"
    EXPLORER: ClassVar[type[ScriptedPolicy]] = ScriptedPolicy

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        self._rng = np.random.default_rng((seed, streams.SKIRMISH))
        self._explorer = self.EXPLORER(self.EXPLORER.NUM_VALUES)
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

    @property
    def was_stuck(self) -> bool:
        """Whether it noticed at the last `act` that something stops it."""
        return self._explorer.was_stuck

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts."""
        self._explorer.watch(observation)

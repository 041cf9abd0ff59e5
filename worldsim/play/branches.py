"""One moment that goes on in several ways at once, as one batched state."""

# B branches, H W frame size, A action axes

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from worldsim.simulator import Prediction, Simulator
from worldsim.state import WorldState


class Branches:
    """Step several futures of one moment; the moment itself stays as it is.

    The first has the noise that the moment would have gone on with, each other one a seed of its own.

    Args:
        count: How many, B.
        num_recent: How many of the latest frames of each are kept.
    """

    def __init__(self, simulator: Simulator, moment: WorldState, count: int, num_recent: int = 1) -> None:
        self._simulator = simulator
        state = moment.rows([0] * count)
        sequence = np.random.SeedSequence((int(moment.seed[0]), int(moment.frame_index[0])))
        drawn = np.random.default_rng(sequence).integers(2**63 - 1, size=count)
        drawn[0] = int(moment.seed[0])
        self._state = replace(state, seed=torch.from_numpy(drawn))
        self._prediction: Prediction | None = None
        self._num_recent = num_recent
        self._recent: list[np.ndarray] = []
        self.frames = self._shown(state.frames)
        """The frames shown last, `[B, H, W, 3]` uint8."""

    def __len__(self) -> int:
        return len(self._state.seed)

    def begin(self, actions: np.ndarray) -> np.ndarray:
        """Return the frames `[B, H, W, 3]` uint8 that actions `[B, A]` lead to; show them, then `finish`."""
        self._prediction = self._simulator.predict(self._state, torch.from_numpy(actions))
        self.frames = self._shown(self._prediction.frames)
        return self.frames

    def finish(self) -> None:
        """Remember the frames."""
        assert self._prediction is not None, "finish needs a begin before it"
        self._state = self._simulator.commit(self._state, self._prediction)
        self._prediction = None
        self._recent = [*self._recent, self.frames][-self._num_recent :]

    def pick(self, branch: int) -> tuple[WorldState, list[np.ndarray]]:
        """Return where one of them stands, and its latest frames but the last, `[H, W, 3]`, oldest first."""
        # Copies: a view would keep the frames of all branches.
        return self._state.rows([branch]), [frames[branch].copy() for frames in self._recent[:-1]]

    @staticmethod
    def _shown(frames: torch.Tensor) -> np.ndarray:
        return frames.cpu().numpy().copy()

"""Moments that were played, to go back to: all frames, a state now and then, the rest worked out again."""

# H W frame size, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.simulator import Simulator
from worldsim.state import WorldState

SPACING = 8
"""Frames from a state that is kept to the next one."""
NUM_RECENT = 2 * SPACING
"""Latest frames whose states are all kept."""


@dataclass(slots=True)
class _Moment:
    """A frame that was shown.

    Attributes:
        frame: `[1, H, W, 3]` uint8.
        start: Name of the start moment of its episode.
        state: The state after it, where it is kept.
        latents: `[1, C, h, w]`, what was remembered of it; None where an episode begins.
        action: `[A]` int64, what led to it.
        offset: Frames since a state that stays; 0 for such a one.
        before: Frames `[H, W, 3]` of the same episode that came before and are no moments to go back to.
        score: What the episode had brought until then.
        noise_scale: Of the noise that it was drawn from.
    """

    frame: Tensor
    start: str
    state: WorldState | None
    latents: Tensor | None = None
    action: np.ndarray | None = None
    offset: int = 0
    before: Sequence[np.ndarray] = ()
    score: float = 0.0
    noise_scale: float = 1.0

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        parts = (self.frame, self.latents, self.state, *self.before)
        return sum(part.nbytes for part in parts if part is not None)


class History:
    """Go back frame by frame. Frames, what was remembered of them and actions are small and kept of each.

    States are large: of the latest frames all are kept, of older ones each eighth. What lies between is
    remembered again from the one before, to the same bytes, while the way back is still on its way there
    (`prepare`), so that nobody waits for it. The oldest moments go when there is no room for more.

    Args:
        max_bytes: Room for them; the moment that is played from is kept in any case.
    """

    def __init__(self, simulator: Simulator, max_bytes: int) -> None:
        self._simulator = simulator
        self._max_bytes = max_bytes
        self._moments: list[_Moment] = []
        self.nbytes = 0
        """Size of what is kept in bytes."""

    def __len__(self) -> int:
        """Return how many frames one can go back."""
        return max(0, len(self._moments) - 1)

    def begin(
        self, state: WorldState, start: str, before: Sequence[np.ndarray] = (), *, score: float = 0.0
    ) -> None:
        """Note a moment that does not follow from the one before: an episode's first, or one jumped to.

        Args:
            before: Frames `[H, W, 3]` of its episode that came before it, as far as they are known.
        """
        self._append(_Moment(state.frames, start, state, before=before, score=score))

    def append(
        self,
        state: WorldState,
        latents: Tensor,
        action: np.ndarray,
        *,
        follows: bool = True,
        score: float = 0.0,
    ) -> None:
        """Note the next moment.

        Args:
            latents: `[1, C, h, w]`, the frame as it was drawn.
            action: `[A]` int64, what led to it.
            follows: Whether the state is what remembering the frame makes of the one before; one that is not
                is kept.
        """
        last = self._moments[-1]
        offset = (last.offset + 1) % SPACING if follows else 0
        moment = _Moment(state.frames, last.start, state, latents, action.copy(), offset, score=score)
        moment.noise_scale = self._simulator.sampler.noise_scale
        self._append(moment)
        for moment in self._moments[-NUM_RECENT - SPACING : -NUM_RECENT]:
            if moment.offset:
                self._keep(moment, None)

    def back(self) -> np.ndarray | None:
        """Go one frame back; returns the frame `[H, W, 3]` uint8 there, or None if there is none before."""
        if not len(self):
            return None
        self.nbytes -= self._moments.pop().nbytes
        return self._moments[-1].frame[0].cpu().numpy()

    def prepare(self) -> None:
        """Work out one of the states that the way back will reach soon, if one is missing."""
        soon = self._moments[-NUM_RECENT:]
        missing = [
            number
            for number, moment in enumerate(soon, len(self._moments) - len(soon))
            if moment.state is None
        ]
        if missing:
            self._restore_one(missing[-1])

    def now(self) -> tuple[WorldState, str]:
        """Return the state of the moment gone back to, and the name of its start moment."""
        while (state := self._moments[-1].state) is None:
            self._restore_one(len(self._moments) - 1)
        return state, self._moments[-1].start

    @property
    def score(self) -> float:
        """What the episode had brought until the moment gone back to."""
        return self._moments[-1].score

    def frames(self, count: int) -> list[np.ndarray]:
        """Return the latest frames of this episode, at most so many, `[H, W, 3]` uint8, the oldest first."""
        found = []
        for moment in reversed(self._moments[-count:]):
            found.append(moment.frame[0].cpu().numpy())
            if moment.latents is None:
                found += reversed(moment.before)
                break
        return found[:count][::-1]

    @torch.inference_mode()
    def _restore_one(self, number: int) -> None:
        """Work out the first missing state on the way to that of moment `number`."""
        before = number - 1
        while (state := self._moments[before].state) is None:
            before -= 1
        moment = self._moments[before + 1]
        assert moment.latents is not None and moment.action is not None, "an episode's first state stays"
        actions = torch.from_numpy(moment.action)[None]
        given = (state, moment.frame, moment.latents, actions, moment.noise_scale)
        self._keep(moment, self._simulator.commit_again(*given))

    def _append(self, moment: _Moment) -> None:
        self._moments.append(moment)
        self.nbytes += moment.nbytes
        while self.nbytes > self._max_bytes and (count := self._oldest_stretch()):
            self.nbytes -= sum(old.nbytes for old in self._moments[:count])
            del self._moments[:count]

    def _oldest_stretch(self) -> int:
        """Return how many moments come before the second state that stays; 0 if there is none."""
        following = (number for number, m in enumerate(self._moments[1:], 1) if not m.offset)
        return next(following, 0)

    def _keep(self, moment: _Moment, state: WorldState | None) -> None:
        self.nbytes -= moment.nbytes
        moment.state = state
        self.nbytes += moment.nbytes

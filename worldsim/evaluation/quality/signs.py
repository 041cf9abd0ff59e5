"""Detectors of what a picture shows, learned from labelled recordings and checked on other episodes."""

# N frames, H W frame size, D features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import pick
from worldsim.evaluation.inputs.situations import LabelledRecordings, Situation, spread
from worldsim.evaluation.quality.features import FeatureNetwork
from worldsim.evaluation.statistics import Estimate, rate
from worldsim.games.events import Sign

BLOCK, SMALL_BLOCK = 16, 4
"""Pixels of the sides of the blocks whose mean colours are looked at, of what lasts and of what is sudden."""
RIDGE, SUDDEN_RIDGE = 0.03, 0.3
"""Of the squared weights, beside features of unit variance, whose frames count 1 together."""
FALSE_SHARE = 0.002
"""Of the frames without a sudden sign, learned from, that count as showing it: they are many."""
NUM_SHOWN, NUM_HIDDEN = 800, 3000
"""Frames of each side to learn from, and to check on."""
MIN_FRAMES = 8
NUM_EPISODES = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Of a detector on real frames of episodes that it has not seen: shares that are right, 0 to 1."""

    shown: Estimate
    hidden: Estimate


class Detector:
    """Says whether frames show a sign.

    Ridge regression of +1 and -1 on the mean colours of blocks, where the sign is sudden also on their change
    since the frame before, and else on the features of the whole picture. Half-way between the means of both
    sides is the bound, of a sudden sign higher up.

    Args:
        sign: What is looked for.
        network: Gives whole frames features.
        recordings: Half of their episodes are learned from, the others are to check on.
        seed: Of the frames that are chosen.

    Attributes:
        accuracy: On the other episodes.

    Raises:
        WorldError: If recordings show the sign, or hide it, in too few frames.
    """

    def __init__(
        self, sign: Sign, network: FeatureNetwork, recordings: LabelledRecordings, seed: int = 0
    ) -> None:
        self.sign, self._network = sign, network
        (shown, hidden), others = (self._choose(recordings, parity, seed) for parity in (0, 1))
        x = torch.cat([self._look_at(recordings, side) for side in (shown, hidden)]).double()
        y = torch.cat([torch.ones(len(shown)), -torch.ones(len(hidden))]).double()
        weight = torch.where(y > 0, 0.5 / len(shown), 0.5 / len(hidden))  # both sides count alike
        self._mean = (weight[:, None] * x).sum(dim=0)
        self._std = (weight[:, None] * (x - self._mean).square()).sum(dim=0).sqrt().clamp(min=1e-3)
        z = (x - self._mean) / self._std
        ridge = SUDDEN_RIDGE if sign.is_sudden else RIDGE
        gram = z.T @ (weight[:, None] * z) + ridge * torch.eye(z.shape[1], dtype=z.dtype)
        self._weights = torch.linalg.solve(gram, z.T @ (weight * y))
        scores = z @ self._weights
        if sign.is_sudden:
            self._bias = float(scores[y < 0].quantile(1 - FALSE_SHARE))
        else:
            self._bias = float(scores[y > 0].mean() + scores[y < 0].mean()) / 2
        found = []
        for side, is_shown in zip(others, (True, False), strict=True):
            said = self._decide(self._look_at(recordings, side)).numpy()
            found.append(rate(said == is_shown, recordings.names(side)))
        self.accuracy = Accuracy(shown=found[0], hidden=found[1])

    def detect(self, frames: Tensor, before: Tensor) -> Tensor:
        """Return which frames `[N, H, W, 3]` uint8 show it, `[N]` bool, given the frame before each."""
        return self._decide(self._features(frames, before))

    def _decide(self, features: Tensor) -> Tensor:
        return ((features.double() - self._mean) / self._std) @ self._weights > self._bias

    def _choose(
        self, recordings: LabelledRecordings, parity: int, seed: int
    ) -> tuple[list[Situation], list[Situation]]:
        """Choose frames of both sides from a few of every other episode."""
        sides = [
            [one for one in recordings.sign(self.sign, shown=shown) if one.episode % 2 == parity]
            for shown in (True, False)
        ]
        if min(map(len, sides)) < MIN_FRAMES:
            raise WorldError(
                f"{recordings.recordings.folder}: of half of the episodes {len(sides[0])} frames show "
                f"{self.sign.name!r} and {len(sides[1])} hide it; at least {MIN_FRAMES} of each are needed "
                "to learn what it looks like"
            )
        # Decoding takes longer than all else: as few episodes as possible, those with the rarer side.
        rare = sorted({one.episode for one in min(sides, key=len)})
        kept = set(pick(rare, NUM_EPISODES, seed))
        few = [[one for one in side if one.episode in kept] or side for side in sides]
        return spread(few[0], NUM_SHOWN, seed), spread(few[1], NUM_HIDDEN, seed)

    def _look_at(self, recordings: LabelledRecordings, situations: Sequence[Situation]) -> Tensor:
        parts = []
        for one in situations:
            frames = torch.from_numpy(recordings.recordings.read(one.episode).frames)
            parts.append((frames[one.frame], frames[one.frame - 1]))
        return self._features(*(torch.stack(side) for side in zip(*parts, strict=True)))

    def _features(self, frames: Tensor, before: Tensor) -> Tensor:
        if self.sign.is_sudden:
            now, last = (self._blocks(each, SMALL_BLOCK) for each in (frames, before))
            return torch.cat([now, now - last], dim=1)
        return torch.cat([self._blocks(frames, BLOCK), self._network.embed(frames)], dim=1)

    def _blocks(self, frames: Tensor, size: int) -> Tensor:
        part = frames[:, slice(*self.sign.rows), slice(*self.sign.columns)].movedim(-1, 1).float() / 255
        return F.avg_pool2d(part, size).flatten(1).cpu()


def view_change(frames: Tensor, others: Tensor, num_rows: int) -> np.ndarray:
    """Return how much the view has changed between frames `[N, H, W, 3]`, `[N]` grey levels of 255.

    Means of columns are compared, which the bobbing of a walk hardly changes, and of the upper half, into
    which no weapon reaches.
    """
    one, other = (each[:, : num_rows // 2, :, 1].float().mean(dim=1) for each in (frames, others))
    return (one - other).abs().mean(dim=1).cpu().numpy()

"""Whether a dream judges players as its game does: the same players in both, beside each other."""

# E episodes, P players

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.agents.episodes import Episodes
from worldsim.evaluation.metrics import bootstrap
from worldsim.evaluation.report.targets import align

PER_FRAMES = 1000
MOST_UNSEEN = 3.689
"""Expected ends of which none is seen in 2.5 % of cases, -ln 0.025: the upper end where none was."""
LEAST_PLAYERS = 3
"""Fewer have no order worth a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndRate:
    """How often a player's episodes end.

    Attributes:
        per_1000: Ends in 1,000 frames. Frames of episodes that were cut off count, too.
        low: Lower end of the 95 % interval from resampling episodes, or None if there is only one. Where none
            ended it is that of a Poisson distribution.
        high: Its upper end.
    """

    per_1000: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.1f} to {self.high:.1f})"
        return f"{self.per_1000:.1f}{interval}"


def end_rate(episodes: Episodes, seed: int = 0) -> EndRate:
    """Return how often these episodes end: the estimate of a constant hazard with cut-off episodes."""
    num_frames = int(episodes.frames.sum())
    is_end = np.zeros(num_frames)
    is_end[np.cumsum(episodes.frames) - 1] = episodes.terminated
    of_episode = np.repeat(np.arange(len(episodes.frames)), episodes.frames)
    found = bootstrap(PER_FRAMES * is_end, of_episode.tolist(), seed)
    high = found.high
    if high is not None and not episodes.terminated.any():
        high = PER_FRAMES * MOST_UNSEEN / num_frames
    return EndRate(per_1000=found.mean, low=found.low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What one player gets in the dream and in the game.

    Attributes:
        label: Which player.
        learned_in_dreams: Whether it learned in a dream; such a player has looked for what only dreams allow.
        dream_return: Mean return there.
        real_return: Mean return in the game.
        dream_ends: How often its dreams end.
        real_ends: How often its games end.
    """

    label: str
    learned_in_dreams: bool
    dream_return: float
    real_return: float
    dream_ends: EndRate
    real_ends: EndRate

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "learned_in_dreams": self.learned_in_dreams,
            "return": {"dream": self.dream_return, "real": self.real_return},
            "ends_per_1000_frames": {
                name: {"rate": rate.per_1000, "low": rate.low, "high": rate.high}
                for name, rate in (("dream", self.dream_ends), ("real", self.real_ends))
            },
        }


def compare(label: str, dream: Episodes, real: Episodes, *, learned_in_dreams: bool) -> Agreement:
    """Put what a player got in the dream beside what it got in the game."""
    return Agreement(
        label=label,
        learned_in_dreams=learned_in_dreams,
        dream_return=float(dream.returns.mean()),
        real_return=float(real.returns.mean()),
        dream_ends=end_rate(dream),
        real_ends=end_rate(real),
    )


def rank_correlation(players: Sequence[Agreement]) -> float | None:
    """Return Spearman's correlation of the mean returns in the dream and in the game, -1 to 1.

    Of the players that did not learn in dreams: those are the ones that a dream can be judged by. None if
    there are fewer than three, or one side tells none apart.
    """
    judged = [player for player in players if not player.learned_in_dreams]
    if len(judged) < LEAST_PLAYERS:
        return None
    dream = _ranks(np.array([player.dream_return for player in judged]))
    real = _ranks(np.array([player.real_return for player in judged]))
    if dream.std() == 0 or real.std() == 0:
        return None
    return float(np.corrcoef(dream, real)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each of `[P]` values from 0 on; equal ones share the mean of theirs."""
    below, equal = values[:, None] > values, values[:, None] == values
    return below.sum(axis=1) + (equal.sum(axis=1) - 1) / 2


def format_agreement(players: Sequence[Agreement]) -> str:
    """Return a table, a line for each player, and how well both agree on who is better."""
    rows: list[tuple[str, ...]] = [
        ("policy", "learned in", "return: dream", "game", "ends in 1,000 frames: dream", "game")
    ]
    for player in players:
        returns = f"{player.dream_return:.1f}", f"{player.real_return:.1f}"
        ends = str(player.dream_ends), str(player.real_ends)
        rows.append((player.label, "dreams" if player.learned_in_dreams else "", *returns, *ends))
    correlation = rank_correlation(players)
    num_judges = sum(not player.learned_in_dreams for player in players)
    verdict = (
        "no rank correlation: that needs three players that did not learn in dreams, of different returns"
        if correlation is None
        else f"rank correlation of returns of {num_judges} that did not learn in dreams: {correlation:.2f}"
    )
    return f"{align(rows)}\n{verdict}"

"""Agreement of a dream and its game on the same players: returns, rates of ends, rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.agents.episodes import Episodes
from worldsim.evaluation.report.text import align
from worldsim.evaluation.statistics import Estimate, event_rate, rank_correlation

PER_FRAMES = 1000
MIN_PLAYERS = 3
"""Fewer have no order worth a number."""


def end_rate(episodes: Episodes, seed: int = 0) -> Estimate:
    """Return how many of these episodes end in 1,000 frames; frames of those that were cut off count, too."""
    return event_rate(episodes.terminated, episodes.frames, PER_FRAMES, seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Mean returns and `end_rate` of one player in the dream and in the game.

    Attributes:
        learned_in_dreams: Whether it learned in a dream; such a player has looked for what only dreams allow.
    """

    label: str
    learned_in_dreams: bool
    dream_return: float
    real_return: float
    dream_ends: Estimate
    real_ends: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "learned_in_dreams": self.learned_in_dreams,
            "return": {"dream": self.dream_return, "real": self.real_return},
            "ends_per_1000_frames": {
                name: {"rate": rate.mean, "low": rate.low, "high": rate.high}
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


def agreement_on_ranks(players: Sequence[Agreement]) -> float | None:
    """Return the rank correlation of the mean returns in the dream and in the game, -1 to 1.

    Of the players that did not learn in dreams: those are the ones that a dream can be judged by. None if
    there are fewer than three, or one side tells none apart.
    """
    judged = [player for player in players if not player.learned_in_dreams]
    if len(judged) < MIN_PLAYERS:
        return None
    dream, real = np.array([(player.dream_return, player.real_return) for player in judged]).T
    return rank_correlation(dream, real)


def format_agreement(players: Sequence[Agreement]) -> str:
    """Return a table, a line for each player, and how well both agree on who is better."""
    heading = ("policy", "learned in", "return: dream", "game", "ends in 1,000 frames: dream", "game")
    rows: list[tuple[str, ...]] = [heading]
    for player in players:
        returns = f"{player.dream_return:.1f}", f"{player.real_return:.1f}"
        ends = _rate(player.dream_ends), _rate(player.real_ends)
        rows.append((player.label, "dreams" if player.learned_in_dreams else "", *returns, *ends))
    correlation = agreement_on_ranks(players)
    num_judges = sum(not player.learned_in_dreams for player in players)
    verdict = (
        "no rank correlation: that needs three players that did not learn in dreams, of different returns"
        if correlation is None
        else f"rank correlation of returns of {num_judges} that did not learn in dreams: {correlation:.2f}"
    )
    return f"{align(rows)}\n{verdict}"


def _rate(rate: Estimate) -> str:
    interval = "" if rate.low is None else f" ({rate.low:.1f} to {rate.high:.1f})"
    return f"{rate.mean:.1f}{interval}"

"""Dreams along recorded play: counted beside the game, and ending as often as it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world, write_outcome_dataset
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.end_rate import DreamtEpisode, dream_along, end_rates, match_rate
from worldsim.evaluation.quality.outcome import TOLERANCE
from worldsim.outcome import OutcomeConfig
from worldsim.simulator import Simulator

pytestmark = pytest.mark.usefixtures("one_thread")


def dreamt(peak: float, *, length: int = 10, at: int = 4, ended: bool = False) -> DreamtEpisode:
    """Return a dream with one frame that looks like an end."""
    logits = np.full(length + TOLERANCE * ended, -8.0)
    logits[at] = peak
    return DreamtEpisode(logits, ended)


def test_a_dream_that_ended_is_at_risk_no_longer() -> None:
    dreams = [dreamt(2.0), dreamt(-4.0), dreamt(-4.0, ended=True)]
    rates = end_rates(dreams, OutcomeConfig(end_threshold=0.5))
    assert (rates.num_game, rates.num_dreams) == (1, 1)
    assert rates.game == 1 / 30
    assert rates.dreams == 1 / (5 + 10 + 12)


def test_the_threshold_lets_dreams_end_as_often_as_the_game() -> None:
    deadly = [dreamt(3.0 - 0.25 * index, at=9) for index in range(20)]
    deadly += [dreamt(2.9, at=11, ended=True), dreamt(-6.0, ended=True)]
    before = OutcomeConfig(end_threshold=0.05)
    assert end_rates(deadly, before).num_dreams > 15
    after = match_rate(deadly, before)
    rates = end_rates(deadly, after)
    assert (rates.num_game, rates.num_dreams) == (2, 2)
    assert rates.dreams <= rates.game
    assert (after.end_scale, after.end_bias) == (before.end_scale, before.end_bias)
    calm = [dreamt(-5.0 - index / 2, at=11, ended=True) for index in range(4)]
    assert end_rates(calm, before).num_dreams == 0
    assert end_rates(calm, match_rate(calm, before)).num_dreams == 4


def test_where_the_game_never_ends_no_dream_does() -> None:
    dreams = [dreamt(3.0), dreamt(1.0)]
    assert end_rates(dreams, match_rate(dreams, OutcomeConfig())).num_dreams == 0


def test_dreams_last_as_long_as_the_game_did(tmp_path: Path) -> None:
    recordings = Recordings(
        write_outcome_dataset(tmp_path / "data", episodes=3, frames=6), TINY_ACTIONS, (HEIGHT, WIDTH)
    )
    simulator = Simulator(tiny_world(outcome=OutcomeConfig()))

    def dream(batch_size: int, seed: int = 0) -> list[DreamtEpisode]:
        return dream_along(
            simulator,
            recordings,
            num_dreams=99,
            context_frames=3,
            horizon=2,
            batch_size=batch_size,
            seed=seed,
        )

    # Places of episodes of 6, 7 and 8 frames; the first two end, and are dreamt for TOLERANCE frames more.
    together, alone, other = dream(99), dream(1), dream(99, seed=100)
    assert [one.ended for one in together] == [False, True, True] + [False, False, True, True] + [False] * 5
    lengths = [2, 2 + TOLERANCE, 1 + TOLERANCE]
    assert [len(one.logits) for one in together] == [*lengths, 2, *lengths, 2, 2, 2, 2, 1]
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-3)
    assert not np.allclose(together[0].logits, other[0].logits)


def test_dreams_that_end_for_certain_are_no_matter_of_a_threshold() -> None:
    certain = [dreamt(40.0) for _ in range(5)]  # a probability of exactly 1 in fp32
    with pytest.raises(WorldError, match="5 of 5 dreams end for certain, the game in 0 of these places"):
        match_rate(certain, OutcomeConfig())

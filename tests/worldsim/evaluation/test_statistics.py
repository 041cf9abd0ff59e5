"""Intervals: their coverage, the values of committed reports, and no other module that computes any."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from worldsim.evaluation.statistics import (
    Estimate,
    bootstrap,
    draw_counts,
    event_rate,
    interval,
    jackknife,
    median_ratio,
    rank_correlation,
    rate,
    ratio_of_means,
    ratio_of_sums,
    resample,
)

ROOT = Path(__file__).resolve().parents[3]
ELSEWHERE = re.compile(r"0\.025|97\.5|0\.975|1\.96|NUM_RESAMPLES")
"""Marks of an interval."""


def test_bootstrap_covers_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = rng.normal(3.0, 1.0, size=60)
        estimate = bootstrap(values, list(range(60)), seed)
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.mean < estimate.high
        hits += estimate.low <= 3.0 <= estimate.high
    assert 0.90 <= hits / 200 <= 0.99


def test_bootstrap_resamples_episodes_and_not_values() -> None:
    """Ten equal values from each of six episodes know no more than six values."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=6)
    values = np.repeat(means, 10)
    grouped = bootstrap(values, [episode for episode in "abcdef" for _ in range(10)])
    apart = bootstrap(values, list(range(60)))
    once = bootstrap(means, list("abcdef"))
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high))
    assert grouped.high is not None and grouped.low is not None
    assert apart.high is not None and apart.low is not None
    assert grouped.high - grouped.low > 2 * (apart.high - apart.low)


def test_a_rate_of_all_or_none_has_wilson_s_interval_and_others_are_resampled() -> None:
    hits, groups = np.ones(24, bool), [f"episode {index // 2}" for index in range(24)]
    found = rate(hits, groups)
    assert (found.mean, found.high, found.count) == (1.0, 1.0, 24)
    assert found.low == pytest.approx(12 / (12 + 1.96**2)), "Wilson's of 12 of 12"
    none = rate(~hits, groups)
    assert (none.mean, none.low) == (0.0, 0.0) and none.high == pytest.approx(1.96**2 / (12 + 1.96**2))
    hits[:6] = False
    assert rate(hits, groups) == bootstrap(hits, groups)


def test_one_episode_gives_no_interval() -> None:
    estimate = bootstrap([1.0, 3.0], ["a", "a"])
    assert estimate == Estimate(2.0, None, None, 2)


def test_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="values and one group each"):
        bootstrap([], [])


@pytest.fixture
def numbers() -> np.ndarray:
    """Three rows of numbers whose estimates are stored below."""
    return np.random.default_rng(7).normal(3.0, 1.0, (3, 40))


def equals(estimate: Estimate, mean: float, low: float, high: float, count: int) -> bool:
    """Whether an estimate is one that was stored, up to how a processor adds."""
    found = [estimate.mean, estimate.low, estimate.high]
    return found == pytest.approx([mean, low, high], rel=1e-13) and estimate.count == count


def test_estimates_are_those_of_committed_reports(numbers: np.ndarray) -> None:
    first, second, third = numbers
    groups = [f"e{index % 9}" for index in range(40)]
    found = bootstrap(first, groups, 3)
    assert equals(found, 2.6048148396665396, 2.3555941069538324, 2.8535907662836832, 40)
    found = median_ratio(np.exp(first))
    assert equals(found, 13.951620686082812, 11.000737694855063, 19.47464253067372, 40)
    found = ratio_of_means(first, third + 2, second, 5)
    assert equals(found, -0.23384093447576962, -0.537579689655534, -0.024095002703403028, 40)
    found = ratio_of_means(*(numbers[:2, :20] < 2.5))
    assert equals(found, 1.4, 0.5, 4.5, 20)
    found = jackknife(lambda pairs: float(np.stack([first[2 * pairs], first[2 * pairs + 1]]).mean()), 20)
    assert equals(found, 2.604814839666539, 2.337908022884843, 2.8717216564482353, 20)
    ends = np.arange(10) % 3 == 0
    frames = np.array([68, 134, 180, 66, 72, 105, 54, 114, 179, 133])
    found = event_rate(ends, frames, 1000.0, 4)
    assert equals(found, 3.6199095022624435, 0.7973061026567715, 7.960510658552339, 10)
    assert equals(event_rate(ends & False, frames, 1000.0, 4), 0, 0, 3.3384615384615386, 10)


def test_recovery_is_the_share_of_the_way_from_a_base_to_the_others(numbers: np.ndarray) -> None:
    window = 20 + numbers[0]
    ratio = ratio_of_means(window + 6, window + 10, window)
    assert (ratio.mean, ratio.low) == pytest.approx((0.6, 0.6))
    assert ratio_of_means(window + 6, window, window) == Estimate(None, None, None, 40)


def test_the_median_ratio_is_the_same_whichever_way_it_is_turned() -> None:
    ratios = np.array([0.5, 2.0, 4.0, 1.0, 3.0])
    found = median_ratio(ratios)
    assert found.mean == pytest.approx(2.0)
    assert median_ratio(1 / ratios).mean == pytest.approx(0.5)
    assert found.low is not None and found.high is not None
    assert found.low < 2.0 < found.high


def test_the_jackknife_of_a_mean_has_the_interval_of_its_standard_error() -> None:
    values = np.random.default_rng(5).normal(size=16)
    found = jackknife(lambda rows: float(values[rows].mean()), 16)
    assert found.high is not None and found.mean is not None
    assert found.high - found.mean == pytest.approx(1.96 * values.std(ddof=1) / 4)
    assert jackknife(lambda rows: float(values[rows].mean()), 1).low is None


def test_one_thing_alone_gives_no_interval() -> None:
    one = np.ones(1)
    assert ratio_of_sums(one, one) == Estimate(1.0, None, None, 1)
    assert resample(lambda rows: one[rows].mean(axis=-1), 1).low is None
    assert interval(np.array([])) == (None, None)


def test_as_many_are_drawn_as_there_are() -> None:
    assert (draw_counts(7, 0).sum(axis=1) == 7).all()


def test_ranks_share_the_mean_of_equal_ones() -> None:
    assert rank_correlation(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(0.75**0.5)
    assert rank_correlation(np.ones(3), np.arange(3)) is None


def test_no_other_module_computes_an_interval() -> None:
    packages = ("worldsim", "training", "policies", "kernels")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    own = ROOT / "worldsim" / "evaluation" / "statistics.py"
    found = [str(file) for file in files if file != own and ELSEWHERE.search(file.read_text("utf-8"))]
    assert not found, f"worldsim/evaluation/statistics.py computes intervals, not {', '.join(found)}"

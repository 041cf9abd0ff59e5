"""Estimates with 95 % intervals: grouped bootstrap, ratios, rates, jackknife; rank correlation.

All intervals of the project are computed here. Resamples are drawn from a seed, so they can be repeated.
"""

# N values or things, R resamples

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

NUM_RESAMPLES = 2000
JACKKNIFE_GROUPS = 16
Z_95 = 1.96
"""Standard deviations on each side of a normal distribution's mean that 95 % of it lie within."""
UPPER_OF_NONE = 3.689
"""Expected events of which none is seen in 2.5 % of cases, -ln 0.025: the upper end where none was."""
Statistic = Callable[[np.ndarray], np.ndarray]
"""Takes which things count, `[..., N]` int64, and returns `[...]` fp64."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        mean: The value, mostly a mean; None where it is not defined, as a ratio to nothing.
        low: Lower end; None where there is nothing to resample.
        high: Upper end.
        count: Number of values.
        median: Of the values, where it is reported beside their mean: one value may decide a mean.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int
    median: float | None = None


def interval(resampled: np.ndarray) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % interval of a statistic of resamples, `[R]`; None where there are none."""
    if not len(resampled):
        return None, None
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def draw_rows(count: int, seed: int) -> np.ndarray:
    """Return which of some things are drawn, with repetition and as many as there are, `[R, count]` int64."""
    return np.random.default_rng(seed).integers(count, size=(NUM_RESAMPLES, count))


def draw_counts(count: int, seed: int) -> np.ndarray:
    """Return how often each of some things is drawn, `[R, count]` int64; other draws than `draw_rows`."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)


def bootstrap(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Return the mean of values with an interval from resampling whole groups.

    Values from one episode are not independent, so episodes are resampled, not values. Of a paired
    difference, the differences are the values. Both are `[N]`, at least one value; fewer than two different
    groups give no interval.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or len(groups) != len(array):
        raise ValueError(f"bootstrap needs values and one group each, got {array.shape} and {len(groups)}")
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if len(names) < 2:
        return Estimate(float(array.mean()), None, None, len(array))
    index = np.array([names[group] for group in groups])
    sums, counts, rows = np.bincount(index, weights=array), np.bincount(index), draw_rows(len(names), seed)
    low, high = interval(sums[rows].sum(axis=1) / counts[rows].sum(axis=1))
    return Estimate(float(array.mean()), low, high, len(array))


def bootstrap_known(values: np.ndarray, groups: Sequence[Hashable]) -> Estimate | None:
    """Return `bootstrap` of the values that are not NaN; None if all are."""
    rows = np.flatnonzero(~np.isnan(values)).tolist()
    return bootstrap(values[rows], [groups[row] for row in rows]) if rows else None


def rate(hits: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Return the share of hits `[N]` bool with an interval from resampling whole groups.

    Where all or none are hits resampling finds no spread: the interval is then Wilson's of as many trials as
    there are groups.
    """
    found = bootstrap(hits, groups, seed)
    if found.mean not in (0.0, 1.0):
        return found
    trials = len(set(groups))
    reach = Z_95**2 / (trials + Z_95**2)
    low, high = (1 - reach, 1.0) if found.mean else (0.0, reach)
    return Estimate(found.mean, low, high, found.count)


def estimate_of(values: np.ndarray, groups: Sequence[Hashable]) -> Estimate:
    """Return `bootstrap` with the median."""
    return replace(bootstrap(values, groups), median=float(np.median(values)))


def resample(statistic: Statistic, count: int, seed: int = 0) -> Estimate:
    """Return a statistic of `count` things with an interval from resampling them; finite values of it count.

    One thing alone gives no interval.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = float(statistic(np.arange(count)))
        found = statistic(draw_rows(count, seed)) if count > 1 else np.array([])
    low, high = interval(found[np.isfinite(found)])
    return Estimate(mean if np.isfinite(mean) else None, low, high, count)


def ratio_of_means(
    values: np.ndarray, others: np.ndarray, base: np.ndarray | float = 0.0, seed: int = 0
) -> Estimate:
    """Return `(values - base) / (others - base)` of the means, `[N]` all, resampled by the same things.

    Where `others` is hardly above the base the ratio is one of two kinds of noise, and the interval wide.
    """
    bases = np.broadcast_to(base, values.shape)

    def ratio(rows: np.ndarray) -> np.ndarray:
        zero = bases[rows].mean(axis=-1)
        return (values[rows].mean(axis=-1) - zero) / (others[rows].mean(axis=-1) - zero)

    return resample(ratio, len(values), seed)


def ratio_of_sums(values: np.ndarray, others: np.ndarray, seed: int = 0) -> Estimate:
    """Return the sum of values over the sum of others, `[N]` both, resampled by the same things."""
    return resample(lambda rows: values[rows].sum(axis=-1) / others[rows].sum(axis=-1), len(values), seed)


def median_ratio(ratios: np.ndarray) -> Estimate:
    """Return the median of ratios `[N]` above 0, resampled: the same whichever way they are turned."""
    logs = np.log(ratios)
    found = resample(lambda rows: np.median(logs[rows], axis=-1), len(logs))
    mean, low, high = (
        None if end is None else float(np.exp(end)) for end in (found.mean, found.low, found.high)
    )
    return Estimate(mean, low, high, found.count)


def event_rate(events: np.ndarray, exposure: np.ndarray, per: float, seed: int = 0) -> Estimate:
    """Return how many events there are in `per` units of exposure: the estimate of a constant hazard.

    Both are `[N]`: the events of each thing, and for how long it was watched. Where no event was seen the
    upper end is that of a Poisson distribution.
    """
    found = ratio_of_sums(per * events, exposure, seed)
    if found.high is None or events.any():
        return found
    return Estimate(found.mean, found.low, float(per * UPPER_OF_NONE / exposure.sum()), found.count)


def jackknife(statistic: Callable[[np.ndarray], float], count: int) -> Estimate:
    """Return a statistic of things with an interval from leaving groups of them out, one after the other.

    For statistics that resampling with repetition would distort; they take the numbers of the things that
    count, int64. One thing alone gives no interval.
    """
    everything = np.arange(count)
    value = statistic(everything)
    groups = np.array_split(everything, min(JACKKNIFE_GROUPS, count))
    if len(groups) < 2:
        return Estimate(value, None, None, count)
    left = [statistic(np.setdiff1d(everything, group)) for group in groups]
    error = np.sqrt((len(left) - 1) * np.var(left))
    return Estimate(value, float(value - Z_95 * error), float(value + Z_95 * error), count)


def rank_correlation(values: np.ndarray, others: np.ndarray) -> float | None:
    """Return Spearman's correlation of values `[N]`, -1 to 1; None if one side tells none apart."""
    ranks, other_ranks = _ranks(values), _ranks(others)
    if ranks.std() == 0 or other_ranks.std() == 0:
        return None
    return float(np.corrcoef(ranks, other_ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each of `[N]` values from 0 on; equal ones share the mean of theirs."""
    below, equal = values[:, None] > values, values[:, None] == values
    return below.sum(axis=1) + (equal.sum(axis=1) - 1) / 2

"""Accuracy of predicted outcomes: ends found, false alarms, rewards. Pure functions.

An end counts as found if one of the frames within `TOLERANCE` of it is flagged. A false alarm is a run of
flagged frames of which at least one is further away: play would have stopped there, once. With a tolerance
of 2, `.` not flagged, `x` flagged and `|` the end:

    ....x|     found
    x.xx.|     found, and one false alarm: the first x
    xxxxx|     found, and one false alarm: the run begins too early
    ......     missed
"""

# T frames of an episode, E episodes, K thresholds, R resamples

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldsim.evaluation.statistics import Estimate, bootstrap, draw_counts, interval

TOLERANCE = 2
"""Frames that an end may be flagged too early or too late."""
TARGET_PRECISION = 0.9
NUM_BINS = 10
"""Equal parts of [0, 1] over which the calibration error is summed."""


@dataclass(frozen=True, slots=True)
class JudgedEpisode:
    """What was recorded of an episode and what a world says of it, without its first frame.

    Attributes:
        rewards: `[T]`, as the game gave them.
        judged_rewards: `[T]`, as the world expects them.
        ends: `[T]` bool, with which frame the game ended.
        probabilities: `[T]`, of an end, after calibration.
    """

    name: str
    rewards: np.ndarray
    judged_rewards: np.ndarray
    ends: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True, slots=True)
class Detection:
    """What is flagged at each of some thresholds, in falling order.

    Attributes:
        thresholds: `[K]`.
        found: `[E, K]`, how many ends of each episode are found.
        false_alarms: `[E, K]`, how often an end is flagged where there is none.
        num_ends: `[E]`.
    """

    thresholds: np.ndarray
    found: np.ndarray
    false_alarms: np.ndarray
    num_ends: np.ndarray

    def rates(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return precision and recall at each threshold, `[R, K]`, of episodes counted `weights` `[R, E]`.

        Where nothing is flagged the precision is 1, where nothing ends the recall is NaN.
        """
        found, false_alarms = weights @ self.found, weights @ self.false_alarms
        num_ends = (weights @ self.num_ends)[:, None]
        flagged = found + false_alarms
        precision = np.where(flagged > 0, found / np.maximum(flagged, 1), 1.0)
        recall = np.where(num_ends > 0, found / np.maximum(num_ends, 1), np.nan)
        return precision, recall


def near(ends: np.ndarray) -> list[slice]:
    """Return the frames within the tolerance of each of the ends `[T]`."""
    return [slice(max(0, end - TOLERANCE), end + TOLERANCE + 1) for end in np.flatnonzero(ends).tolist()]


def count_found(flagged: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how many ends `[T]` are found by the frames flagged `[K, T]`; a flag finds one end at most."""
    left = flagged.copy()
    found = np.zeros(len(flagged), dtype=np.int64)
    rows = np.arange(len(flagged))
    for frames in near(ends):
        window = left[:, frames]
        hits = window.any(axis=1)
        window[rows[hits], window.argmax(axis=1)[hits]] = False
        found += hits
    return found


def count_false_alarms(flagged: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how many runs of flagged frames `[K, T]` have a frame that is not near one of the ends `[T]`."""
    outside = flagged.copy()
    for frames in near(ends):
        outside[:, frames] = False
    begins = flagged & ~np.pad(flagged, ((0, 0), (1, 0)))[:, :-1]
    count = outside.cumsum(axis=1)
    # How many of them there were when the run at hand began: its own first is the one after.
    before = np.maximum.accumulate(np.where(begins, count - outside, 0), axis=1)
    return (outside & (count - before == 1)).sum(axis=1)


def detect(episodes: Sequence[JudgedEpisode], thresholds: np.ndarray) -> Detection:
    """Count what is flagged at each threshold `[K]`: a frame whose probability reaches it."""
    found, alarms = [], []
    for episode in episodes:
        flagged = episode.probabilities >= thresholds[:, None]
        found.append(count_found(flagged, episode.ends))
        alarms.append(count_false_alarms(flagged, episode.ends))
    num_ends = np.array([int(episode.ends.sum()) for episode in episodes])
    return Detection(thresholds, np.stack(found), np.stack(alarms), num_ends)


def end_thresholds(episodes: Sequence[JudgedEpisode]) -> np.ndarray:
    """Return the thresholds at which one more end is found, `[K]`, in falling order, without repetition."""
    peaks = [episode.probabilities[frames].max() for episode in episodes for frames in near(episode.ends)]
    return np.unique(np.array(peaks, dtype=np.float64))[::-1]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A probability from which on frames are flagged, the share that is an end, that of the ends found."""

    threshold: float
    precision: float
    recall: float


def choose_threshold(
    episodes: Sequence[JudgedEpisode], precision: float = TARGET_PRECISION
) -> OperatingPoint | None:
    """Choose the threshold that finds most ends at this precision; None if the episodes hold no end.

    Where no threshold is that precise it is the one with the best harmonic mean of precision and recall. It
    lies half-way to the next probability below, so that a rounding changes nothing.
    """
    thresholds = end_thresholds(episodes)
    if not len(thresholds):
        return None
    detection = detect(episodes, thresholds)
    reached, recall = (rate[0] for rate in detection.rates(np.ones((1, len(episodes)))))
    precise = reached >= precision
    balance = reached * recall / np.maximum(reached + recall, 1e-12)
    best = int(np.argmax(np.where(precise, recall, -1.0) if precise.any() else balance))
    everything = np.concatenate([episode.probabilities for episode in episodes]).astype(np.float64)
    below = everything[everything < thresholds[best]].max(initial=0.0)
    threshold = float(thresholds[best] + below) / 2
    return OperatingPoint(threshold, float(reached[best]), float(recall[best]))


def recall_at_precision(episodes: Sequence[JudgedEpisode]) -> Estimate | None:
    """Return the largest recall at 90 % precision, and its interval over episodes; None without ends.

    For each resampled set the threshold is chosen anew, as for the set itself. It is 0 where no threshold is
    that precise.
    """
    thresholds = end_thresholds(episodes)
    if not len(thresholds):
        return None
    detection = detect(episodes, thresholds)

    def best(weights: np.ndarray) -> np.ndarray:
        reached, recall = detection.rates(weights)
        return np.where(reached >= TARGET_PRECISION, recall, 0.0).max(axis=1)

    count = len(episodes)
    num_ends = int(detection.num_ends.sum())
    mean = float(best(np.ones((1, count)))[0])
    if count < 2:
        return Estimate(mean, None, None, num_ends)
    drawn = draw_counts(count, 0)
    low, high = interval(best(drawn[drawn @ detection.num_ends > 0]))
    return Estimate(mean, low, high, num_ends)


def calibration_error(probabilities: np.ndarray, happened: np.ndarray) -> float:
    """Return the expected calibration error of probabilities `[T]`: how far they are from shares of `[T]`.

    The mean over frames of the distance between the mean probability and the share of ends in each of ten
    equal parts of [0, 1] (arXiv 1706.04599).
    """
    part = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    expected = np.bincount(part, weights=probabilities, minlength=NUM_BINS)
    found = np.bincount(part, weights=happened.astype(np.float64), minlength=NUM_BINS)
    return float(np.abs(expected - found).sum() / len(probabilities))


def summarize_ends(episodes: Sequence[JudgedEpisode], threshold: float) -> dict[str, Any]:
    """Return the report on ends: at the world's own threshold, and at 90 % precision."""
    detection = detect(episodes, np.array([threshold]))
    precision, recall = (float(rate[0, 0]) for rate in detection.rates(np.ones((1, len(episodes)))))
    probabilities = np.concatenate([episode.probabilities for episode in episodes])
    ends = np.concatenate([episode.ends for episode in episodes])
    chosen, at_precision = choose_threshold(episodes), recall_at_precision(episodes)
    return {
        "num_ends": int(ends.sum()),
        "tolerance_frames": TOLERANCE,
        "at_threshold": {
            "threshold": threshold,
            "precision": precision,
            "recall": recall,
            "found": int(detection.found.sum()),
            "false_alarms": int(detection.false_alarms.sum()),
        },
        "recall_at_90_precision": None if at_precision is None else at_precision.to_json(),
        "threshold_at_90_precision": None if chosen is None else chosen.threshold,
        "calibration_error": calibration_error(probabilities, ends),
        "expected_ends": float(probabilities.sum()),
    }


def summarize_rewards(episodes: Sequence[JudgedEpisode]) -> dict[str, Any]:
    """Return the report on rewards: errors of a step, and of the sum over an episode.

    `of_mean` is what would be wrong if the mean of these very rewards were expected of every step.
    """
    names = [episode.name for episode in episodes]
    rewards = np.concatenate([episode.rewards for episode in episodes]).astype(np.float64)
    wrong = np.concatenate([e.judged_rewards - e.rewards for e in episodes]).astype(np.float64)
    mean = rewards.mean()
    returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in episodes])
    judged = np.array([episode.judged_rewards.sum(dtype=np.float64) for episode in episodes])
    constant = np.array([mean * len(episode.rewards) for episode in episodes])
    absolute = [float(np.abs(e.judged_rewards - e.rewards).mean()) for e in episodes]
    return {
        "per_step": {
            "mean": float(mean),
            "root_mean_square_error": float(np.sqrt(np.square(wrong).mean())),
            "root_mean_square_error_of_mean": float(np.sqrt(np.square(rewards - mean).mean())),
            "mean_absolute_error": bootstrap(absolute, names).to_json(),
        },
        "per_episode": {
            "mean": float(returns.mean()),
            "mean_absolute_error": bootstrap(np.abs(judged - returns), names).to_json(),
            "mean_absolute_error_of_mean": float(np.abs(constant - returns).mean()),
        },
    }


def summarize_outcomes(episodes: Sequence[JudgedEpisode], threshold: float) -> dict[str, Any]:
    """Return the report on predictions for recorded episodes, at least one, at the threshold of the world."""
    return {
        "num_episodes": len(episodes),
        "num_frames": sum(len(episode.ends) for episode in episodes),
        "ends": summarize_ends(episodes, threshold),
        "rewards": summarize_rewards(episodes),
    }


def format_outcomes(report: Mapping[str, Any]) -> str:
    """Return what `summarize_outcomes` reports in a few lines."""
    ends, rewards = report["ends"], report["rewards"]
    at, best = ends["at_threshold"], ends["recall_at_90_precision"]
    step, episode = rewards["per_step"], rewards["per_episode"]
    lines = [
        f"{ends['num_ends']} ends in {report['num_episodes']} episodes, {report['num_frames']} frames",
        f"at the world's threshold {at['threshold']:.3g}: {at['found']} found, {at['false_alarms']} false "
        f"alarms (precision {at['precision']:.2f}, recall {at['recall']:.2f})",
    ]
    if best is not None:
        ends_of = "" if best["low"] is None else f" ({best['low']:.2f} to {best['high']:.2f})"
        lines.append(f"recall at 90 % precision {best['mean']:.2f}{ends_of}")
    lines += [
        f"calibration error {ends['calibration_error']:.4f}, {ends['expected_ends']:.1f} ends expected",
        f"reward of a step: off by {step['root_mean_square_error']:.3g} (root mean square), "
        f"{step['root_mean_square_error_of_mean']:.3g} if its mean {step['mean']:.3g} were expected",
        f"reward of an episode: off by {episode['mean_absolute_error']['mean']:.3g} on average, "
        f"{episode['mean_absolute_error_of_mean']:.3g} by the mean; it is {episode['mean']:.3g}",
    ]
    return "\n".join(lines)

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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldsim.evaluation.statistics import Estimate, bootstrap, draw_counts, interval

TOLERANCE = 2
"""Frames that an end may be flagged too early or too late."""
TARGET_PRECISION = 0.9
NUM_BINS = 10
"""Equal parts of [0, 1] over which the calibration error is summed."""


@dataclass(frozen=True, slots=True)
class CalibratedEpisode:
    """What was recorded of an episode and what a world predicts, without its first frame.

    Attributes:
        rewards: `[T]`, as the game gave them.
        predicted_rewards: `[T]`, in the units of the game.
        ends: `[T]` bool, with which frame the game ended.
        probabilities: `[T]`, of an end, after calibration.
    """

    name: str
    rewards: np.ndarray
    predicted_rewards: np.ndarray
    ends: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True, slots=True)
class Detection:
    """What is flagged at each of some thresholds, in falling order.

    Attributes:
        found: `[E, K]`, how many ends of each episode are found.
        false_alarms: `[E, K]`, how often an end is flagged where there is none.
        num_ends: `[E]`.
    """

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


def detect(episodes: Sequence[CalibratedEpisode], thresholds: np.ndarray) -> Detection:
    """Count what is flagged at each threshold `[K]`: a frame whose probability reaches it."""
    found, alarms = [], []
    for episode in episodes:
        flagged = episode.probabilities >= thresholds[:, None]
        found.append(count_found(flagged, episode.ends))
        alarms.append(count_false_alarms(flagged, episode.ends))
    num_ends = np.array([int(episode.ends.sum()) for episode in episodes])
    return Detection(np.stack(found), np.stack(alarms), num_ends)


def end_thresholds(episodes: Sequence[CalibratedEpisode]) -> np.ndarray:
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
    episodes: Sequence[CalibratedEpisode], precision: float = TARGET_PRECISION
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


def recall_at_precision(episodes: Sequence[CalibratedEpisode]) -> Estimate | None:
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


@dataclass(frozen=True, slots=True)
class Detections(OperatingPoint):
    """An operating point with the number of ends found there and of false alarms."""

    found: int
    false_alarms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EndAccuracy:
    """Accuracy of predicted ends at the world's own threshold and at 90 % precision, None without ends.

    The calibration error is the expected one, 0 to 1; `expected_ends` the sum of all probabilities.
    """

    num_ends: int
    tolerance_frames: int
    at_threshold: Detections
    recall_at_90_precision: Estimate | None
    threshold_at_90_precision: float | None
    calibration_error: float
    expected_ends: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepErrors:
    """Errors of the reward of a step; those `of_mean` if the mean of these very rewards were predicted."""

    mean: float
    root_mean_square_error: float
    root_mean_square_error_of_mean: float
    mean_absolute_error: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class ReturnErrors:
    """Errors of the sum of rewards over an episode."""

    mean: float
    mean_absolute_error: Estimate
    mean_absolute_error_of_mean: float


@dataclass(frozen=True, slots=True)
class RewardErrors:
    """Errors of predicted rewards, in the units of the game."""

    per_step: StepErrors
    per_episode: ReturnErrors


@dataclass(frozen=True, slots=True)
class OutcomeAccuracy:
    """Accuracy of predictions for recorded episodes."""

    num_episodes: int
    num_frames: int
    ends: EndAccuracy
    rewards: RewardErrors


def summarize_ends(episodes: Sequence[CalibratedEpisode], threshold: float) -> EndAccuracy:
    """Return how well ends are predicted, at the world's own threshold and at 90 % precision."""
    detection = detect(episodes, np.array([threshold]))
    precision, recall = (float(rate[0, 0]) for rate in detection.rates(np.ones((1, len(episodes)))))
    found, false_alarms = int(detection.found.sum()), int(detection.false_alarms.sum())
    probabilities = np.concatenate([episode.probabilities for episode in episodes])
    ends = np.concatenate([episode.ends for episode in episodes])
    chosen = choose_threshold(episodes)
    return EndAccuracy(
        num_ends=int(ends.sum()),
        tolerance_frames=TOLERANCE,
        at_threshold=Detections(threshold, precision, recall, found, false_alarms),
        recall_at_90_precision=recall_at_precision(episodes),
        threshold_at_90_precision=None if chosen is None else chosen.threshold,
        calibration_error=calibration_error(probabilities, ends),
        expected_ends=float(probabilities.sum()),
    )


def summarize_rewards(episodes: Sequence[CalibratedEpisode]) -> RewardErrors:
    """Return the errors of predicted rewards, of a step and of an episode."""
    names = [episode.name for episode in episodes]
    rewards = np.concatenate([episode.rewards for episode in episodes]).astype(np.float64)
    wrong = np.concatenate([e.predicted_rewards - e.rewards for e in episodes]).astype(np.float64)
    mean = rewards.mean()
    returns, predicted = (
        np.array([values.sum(dtype=np.float64) for values in each])
        for each in zip(*((e.rewards, e.predicted_rewards) for e in episodes), strict=True)
    )
    constant = np.array([mean * len(episode.rewards) for episode in episodes])
    absolute = [float(np.abs(e.predicted_rewards - e.rewards).mean()) for e in episodes]
    of_step = StepErrors(
        mean=float(mean),
        root_mean_square_error=float(np.sqrt(np.square(wrong).mean())),
        root_mean_square_error_of_mean=float(np.sqrt(np.square(rewards - mean).mean())),
        mean_absolute_error=bootstrap(absolute, names),
    )
    of_episode = ReturnErrors(
        mean=float(returns.mean()),
        mean_absolute_error=bootstrap(np.abs(predicted - returns), names),
        mean_absolute_error_of_mean=float(np.abs(constant - returns).mean()),
    )
    return RewardErrors(of_step, of_episode)


def summarize_outcomes(episodes: Sequence[CalibratedEpisode], threshold: float) -> OutcomeAccuracy:
    """Return the accuracy of predictions for episodes, at least one, at the threshold of the world."""
    num_frames = sum(len(episode.ends) for episode in episodes)
    ends, rewards = summarize_ends(episodes, threshold), summarize_rewards(episodes)
    return OutcomeAccuracy(len(episodes), num_frames, ends, rewards)

"""Found ends and false alarms, on episodes written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from worldsim.evaluation.quality.outcome import (
    CalibratedEpisode,
    calibration_error,
    choose_threshold,
    count_false_alarms,
    count_found,
    detect,
    recall_at_precision,
    summarize_outcomes,
)


def judged(
    probabilities: list[float] | np.ndarray, *, ends: bool = True, name: str = "", rewards: float = 1.0
) -> CalibratedEpisode:
    """Return an episode of these probabilities, which ends with its last frame or is cut off."""
    values = np.array(probabilities, dtype=np.float64)
    happened = np.zeros(len(values), dtype=bool)
    happened[-1] = ends
    given = np.full(len(values), rewards)
    return CalibratedEpisode(name, given, given + 0.5, happened, values)


def flags(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return frames flagged, `[1, T]`, and ends, `[T]`, of a picture: `x` flagged, `|` end, `X` both."""
    return np.array([[c in "xX" for c in text]]), np.array([c in "|X" for c in text])


@pytest.mark.parametrize(
    ("picture", "found", "false_alarms"),
    [
        ("......", 0, 0),
        (".....|", 0, 0),
        (".....X", 1, 0),
        ("...x.|", 1, 0),
        ("..x..|", 0, 1),
        ("...xxX", 1, 0),
        ("...x.X", 1, 0),
        ("x.xx.|", 1, 2),
        ("xxxxxX", 1, 1),
        ("xx.x..........", 0, 2),
        ("xxxx..........", 0, 1),
        ("..|..x........", 0, 1),
        ("..|.x.........", 1, 0),
        ("xxxxXxxxx", 1, 1),
        (".|.x.|.", 1, 0),
        (".|xx.|.", 2, 0),
    ],
)
def test_an_end_is_found_once_and_a_run_of_flags_is_one_false_alarm(
    picture: str, found: int, false_alarms: int
) -> None:
    flagged, ends = flags(picture)
    assert count_found(flagged, ends).tolist() == [found]
    assert count_false_alarms(flagged, ends).tolist() == [false_alarms]


def test_runs_of_flags_do_not_reach_into_the_next_episode() -> None:
    episodes = [judged([0.1, 0.1, 0.9], ends=False), judged([0.9, 0.1, 0.1, 0.1], ends=False)]
    assert detect(episodes, np.array([0.5])).false_alarms.tolist() == [[1], [1]]


def test_the_threshold_finds_most_ends_at_the_precision() -> None:
    quiet = [0.0] * 10
    episodes = [judged([*quiet, p]) for p in (0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35)]
    episodes += [judged([*quiet, 0.38, *quiet], ends=False), judged([*quiet, 0.36, *quiet], ends=False)]
    point = choose_threshold(episodes)
    assert point is not None
    assert point.threshold == pytest.approx((0.4 + 0.38) / 2)
    assert (point.precision, point.recall) == (1.0, pytest.approx(8 / 9))
    lenient = choose_threshold(episodes, precision=0.8)
    assert lenient is not None
    assert lenient.recall == 1.0
    assert lenient.precision == pytest.approx(9 / 11)


def test_where_no_threshold_is_precise_enough_the_best_balance_is_taken() -> None:
    episodes = [judged([0.9, 0, 0, 0, 0, 0.8]), judged([0, 0, 0, 0, 0, 0.7]), judged([0.85, 0, 0, 0, 0, 0.1])]
    point = choose_threshold(episodes)
    assert point is not None
    assert (point.precision, point.recall) == (0.6, 1.0)
    assert point.threshold == pytest.approx(0.05)
    estimate = recall_at_precision(episodes)
    assert estimate is not None
    assert estimate.mean == 0.0


def test_without_ends_there_is_no_threshold() -> None:
    episodes = [judged([0.1, 0.9], ends=False)]
    assert choose_threshold(episodes) is None
    assert recall_at_precision(episodes) is None
    report = summarize_outcomes(episodes, 0.5)
    assert report.ends.at_threshold.false_alarms == 1
    assert report.ends.recall_at_90_precision is None


def test_the_interval_of_the_recall_holds_it_and_narrows_with_more_episodes() -> None:
    rng = np.random.default_rng(0)

    def episodes(count: int) -> list[CalibratedEpisode]:
        strength = rng.uniform(0.3, 1.0, count)
        return [judged(np.append(rng.uniform(0, 0.5, 30), s)) for s in strength]

    widths = []
    for count in (12, 300):
        estimate = recall_at_precision(episodes(count))
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.mean <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths[1] < widths[0]


def test_calibration_error_is_the_distance_of_probability_and_share() -> None:
    probabilities, ends = np.full(10, 0.35), np.array([True] * 3 + [False] * 7)
    assert calibration_error(probabilities, ends) == pytest.approx(0.05)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_the_report_says_how_far_off_steps_and_episodes_are() -> None:
    episodes = [
        judged([0.0] * 4 + [0.9], name="a"),
        judged([0.0] * 10, ends=False, name="b", rewards=3.0),
    ]
    report = summarize_outcomes(episodes, 0.5)
    assert report.num_frames == 15
    assert report.ends.num_ends == 1
    assert report.ends.at_threshold.precision == report.ends.at_threshold.recall == 1.0
    assert report.ends.recall_at_90_precision.mean == 1.0
    assert report.rewards.per_step.root_mean_square_error == pytest.approx(0.5)
    assert report.rewards.per_step.mean == pytest.approx(35 / 15)
    assert report.rewards.per_episode.mean_absolute_error.mean == pytest.approx((2.5 + 5) / 2)

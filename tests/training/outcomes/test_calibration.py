"""Scale and bias of end logits, fitted to what happened."""

from __future__ import annotations

import numpy as np
import pytest

from training.outcomes.calibration import fit_end_calibration
from worldsim.evaluation.quality.outcome import calibration_error


def test_calibration_recovers_scale_and_bias() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 2, 200_000)
    ends = rng.random(len(logits)) < 1 / (1 + np.exp(-(0.7 * logits - 1.5)))
    scale, bias = fit_end_calibration(logits, ends)
    assert scale == pytest.approx(0.7, abs=0.03)
    assert bias == pytest.approx(-1.5, abs=0.1)
    before, after = (1 / (1 + np.exp(-z)) for z in (logits, scale * logits + bias))
    assert calibration_error(after, ends) < 0.003
    assert calibration_error(before, ends) > 10 * calibration_error(after, ends)


def test_calibration_of_ends_told_apart_without_a_mistake_is_finite() -> None:
    logits, ends = np.append(np.full(500, -5.0), [8.0, 9.0]), np.append(np.zeros(500), [1, 1]).astype(bool)
    scale, bias = fit_end_calibration(logits, ends)
    probability = 1 / (1 + np.exp(-(scale * logits + bias)))
    assert 0 < scale < 10
    assert probability[:500].max() < 0.01
    assert probability[500:].min() > 0.5


def test_logits_that_say_the_opposite_are_not_believed() -> None:
    logits, ends = np.array([3.0, 3, 3, 3, -3]), np.array([False, False, False, False, True])
    scale, bias = fit_end_calibration(logits, ends)
    assert scale == 0
    assert bias < 0

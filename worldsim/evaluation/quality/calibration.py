"""Calibration of end probabilities: Platt scaling and the expected calibration error."""

# T frames

from __future__ import annotations

import numpy as np

NUM_BINS = 10


def fit_end_calibration(logits: np.ndarray, ends: np.ndarray) -> tuple[float, float]:
    """Fit the scale and the bias of end logits `[T]` to what happened, `[T]` bool (Platt, 1999).

    Logistic regression of one variable by Newton's method. The targets are Platt's, a little inside of 0 and
    1, so that ends that are told apart without a mistake give no infinite scale. Logits that say the opposite
    of what happens get a scale of 0: the probability is then the share of ends.
    """
    positives, negatives = int(ends.sum()), int((~ends).sum())
    target = np.where(ends, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.stack([logits.astype(np.float64), np.ones(len(logits))], axis=1)
    constant = np.array([0.0, np.log(target.mean() / (1 - target.mean()))])
    weights = constant

    def loss(at: np.ndarray) -> float:
        z = inputs @ at
        return float((np.logaddexp(0, z) - target * z).sum())

    for _ in range(100):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -60, 60)))
        gradient = inputs.T @ (probability - target)
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > loss(weights):
            size /= 2
        weights = weights - size * step
        if np.abs(size * step).max() < 1e-8:
            break
    scale, bias = weights if weights[0] > 0 else constant
    return float(scale), float(bias)


def calibration_error(probabilities: np.ndarray, happened: np.ndarray) -> float:
    """Return the expected calibration error of probabilities `[T]`: how far they are from shares of `[T]`.

    The mean over frames of the distance between the mean probability and the share of ends in each of ten
    equal parts of [0, 1] (arXiv 1706.04599).
    """
    part = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    expected = np.bincount(part, weights=probabilities, minlength=NUM_BINS)
    found = np.bincount(part, weights=happened.astype(np.float64), minlength=NUM_BINS)
    return float(np.abs(expected - found).sum() / len(probabilities))

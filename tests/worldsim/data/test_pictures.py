"""Frames of any shape become frames of one size, by a rule that says what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from worldsim.data.pictures import Size, choose_size, fit_frame, shrunk_size

HALVES = np.zeros((30, 60, 3), np.uint8)
HALVES[:, :30], HALVES[:, 30:] = 200, 100
"""A picture whose left is lighter than its right."""


def fit(frame: np.ndarray, height: int, width: int, how: str) -> np.ndarray:
    return fit_frame(frame, Size(height, width, how), VideoReformatter())


def test_letterboxing_keeps_all_and_adds_black_bars() -> None:
    fitted = fit(HALVES, 20, 20, "letterbox")
    assert fitted.shape == (20, 20, 3)
    assert fitted[:5].max() == fitted[15:].max() == 0
    assert (fitted[10, 2, 0], fitted[10, 17, 0]) == (200, 100)


def test_cropping_fills_the_frame_from_the_middle() -> None:
    fitted = fit(HALVES, 20, 20, "crop")
    assert fitted.min() >= 100
    assert (fitted[0, 2, 0], fitted[19, 17, 0]) == (200, 100)


def test_stretching_keeps_all_and_fills_the_frame() -> None:
    fitted = fit(HALVES, 60, 20, "stretch")
    assert fitted.shape == (60, 20, 3)
    assert (fitted[0, 2, 0], fitted[59, 17, 0]) == (200, 100)


def test_a_frame_of_the_size_and_one_that_is_only_made_even_keep_their_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (31, 45, 3)).astype(np.uint8)
    np.testing.assert_array_equal(fit(frame, 31, 45, "letterbox"), frame)
    fitted = fit(frame, 32, 46, "letterbox")
    np.testing.assert_array_equal(fitted[:31, :45], frame)
    np.testing.assert_array_equal(fitted[31, :45], frame[30])


@pytest.mark.parametrize("how", ["letterbox", "crop", "stretch"])
def test_a_frame_that_its_reader_has_scaled_down_is_only_completed(how: str) -> None:
    size = Size(22, 30, how)
    rows, columns = shrunk_size(90, 160, size)
    frame = np.random.default_rng(0).integers(1, 255, (rows, columns, 3)).astype(np.uint8)
    fitted = fit_frame(frame, size, VideoReformatter())
    assert fitted.shape == (22, 30, 3)
    kept = fitted[(fitted > 0).any(axis=(1, 2))][:, : min(columns, 30)]
    left = max(0, columns - 30) // 2
    np.testing.assert_array_equal(kept, frame[:22, left : left + 30])
    assert shrunk_size(10, 10, size) == (10, 10)


def test_sizes_are_even_and_keep_the_proportion() -> None:
    assert choose_size(HALVES, None, None, "crop") == Size(30, 60, "crop")
    assert choose_size(HALVES, None, 41, "crop") == Size(20, 42, "crop")
    assert choose_size(HALVES, 15, None, "crop") == Size(16, 30, "crop")

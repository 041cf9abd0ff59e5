"""A player's state, drawn over a picture and read from it."""

from __future__ import annotations

import numpy as np
import pytest

from worldsim.games.status import CELL, draw_status, read_health, read_kills, read_rounds


def draw(health: float, rounds: float, kills: float) -> np.ndarray:
    frame = np.full((120, 160, 3), 77, dtype=np.uint8)
    draw_status(frame, health, rounds, kills)
    return frame


def test_what_is_drawn_is_read_also_from_soft_pictures() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        health, rounds, kills = rng.integers(0, 101), rng.integers(0, 300), rng.integers(0, 100)
        frame = draw(health, rounds, kills)
        soft = np.clip(0.7 * frame + 30 + rng.normal(0, 20, frame.shape), 0, 255).astype(np.uint8)
        for seen in (frame, soft):
            assert read_health(seen) == pytest.approx(health, abs=1.3)
            assert (read_rounds(seen), read_kills(seen)) == (rounds, kills)
    both = np.stack([draw(100, 50, 0), draw(10, 8, 3)])
    assert read_rounds(both).tolist() == [50, 8] and read_kills(both).tolist() == [0, 3]
    assert read_health(both).tolist() == [100, 10]


def test_more_than_fits_is_shown_as_the_most() -> None:
    frame = draw(200, 5000, 123)
    assert (read_health(frame), read_rounds(frame), read_kills(frame)) == (100, 999, 99)
    assert read_health(draw(-20, -1, 0)) == 0 and read_rounds(draw(0, -1, 0)) == 0


def test_nothing_shares_a_cell_and_the_picture_above_is_left_alone() -> None:
    frames = [draw(100, 0, 0), draw(35, 0, 0), draw(100, 888, 0), draw(100, 0, 77)]
    row = np.stack([frame[-CELL:].reshape(CELL, 20, CELL, 3) for frame in frames])
    changed = [sorted(set(np.nonzero((row[n] != row[0]).any(axis=(0, 2, 3)))[0])) for n in (1, 2, 3)]
    assert set(changed[0]) <= set(range(10)) and changed[1:] == [[12, 13, 14], [17, 18]]
    assert all((frame[:-CELL] == 77).all() for frame in frames)

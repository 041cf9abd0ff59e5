"""Pixels of several samples: what the engine draws larger, and what one frame then foretells of the next."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from worldsim.errors import WorldError
from worldsim.games.doom import DoomEntry, average_samples
from worldsim.games.entry import Observation
from worldsim.games.registry import GAMES
from worldsim.games.rooms.view import FOCUS, HEIGHT, WIDTH

ENTRY = GAMES["doom-level"]
assert isinstance(ENTRY, DoomEntry)
TURN = np.array([0, 0, 1, 0])


def test_mean_of_squares_is_rounded_to_the_nearest() -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:2, :2, 0] = [[255, 255], [255, 255]]
    picture[:2, 2:4, 1] = [[1, 0], [1, 0]]  # 0.5 is rounded up
    picture[2:, 6:, 2] = [[1, 0], [0, 0]]
    averaged = average_samples(picture, 2)
    assert averaged.shape == (2, 4, 3) and averaged.dtype == np.uint8
    assert [averaged[0, 0, 0], averaged[0, 1, 1], averaged[1, 3, 2]] == [255, 1, 0]
    assert average_samples(picture, 4).shape == (1, 2, 3)
    assert average_samples(picture, 1) is picture


def test_mean_of_sixteen_bright_samples_does_not_overflow() -> None:
    assert (average_samples(np.full((16, 16, 3), 255, np.uint8), 16) == 255).all()


@pytest.mark.parametrize("samples", [0, 3, 8])
def test_sizes_that_the_engine_lacks_are_refused(samples: int) -> None:
    with pytest.raises(WorldError, match=rf"supersampling is one of \[1, 2, 4\], got {samples}"):
        replace(ENTRY, supersampling=samples)


def test_a_recording_tells_how_many_samples_a_pixel_has() -> None:
    assert ENTRY.game == "Freedoom 2 MAP01, skill 4, 4 x 4 samples a pixel"
    assert replace(ENTRY, supersampling=1).game == "Freedoom 2 MAP01, skill 4"


def turned(frame: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what a frame foretells after a turn to the left, in its middle rows, and of which columns."""
    across = np.arange(WIDTH) + 0.5 - WIDTH / 2
    source = FOCUS[0] * np.tan(np.arctan(across / FOCUS[0]) - math.radians(degrees)) + WIDTH / 2 - 0.5
    seen = (source >= 0) & (source <= WIDTH - 1)
    left = np.clip(np.floor(source), 0, WIDTH - 2).astype(int)
    share = np.clip(source - left, 0, 1)[None, :, None]
    middle = frame[HEIGHT // 2 - 6 : HEIGHT // 2 + 2].astype(float)
    return middle[:, left] * (1 - share) + middle[:, left + 1] * share, seen


def test_same_game_at_more_samples_is_better_foretold_and_labelled_in_pixels_of_the_frame() -> None:
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    errors: dict[int, float] = {}
    played: dict[int, list[Observation]] = {}
    for samples in (1, 4):
        with replace(ENTRY, supersampling=samples).open(labelled=True) as game:
            played[samples] = [
                seen for seed in range(6) for seen in (game.reset(seed), *(game.step(TURN) for _ in range(6)))
            ]
        squared: list[float] = []
        for before, after in zip(played[samples], played[samples][1:], strict=False):
            assert before.pose is not None and after.pose is not None
            turn = after.pose[2] - before.pose[2]
            if 1 < turn < 10 and before.pose[:2] == after.pose[:2]:
                foretold, seen = turned(before.frame, turn)
                middle = after.frame[HEIGHT // 2 - 6 : HEIGHT // 2 + 2].astype(float)
                squared.append(float(np.square(foretold - middle)[:, seen].mean()))
        assert len(squared) > 10
        errors[samples] = float(np.median(squared))
    assert errors[4] < 0.5 * errors[1]
    assert [seen.pose for seen in played[1]] == [seen.pose for seen in played[4]]
    assert all(seen.frame.shape == (HEIGHT, WIDTH, 3) for seen in played[4])
    ours, theirs = (np.array([seen.labels for seen in played[samples]]) for samples in (4, 1))
    box = slice(ENTRY.labels.index("monster_left"), ENTRY.labels.index("monster_height") + 1)
    together = (ours[:, box.start + 2] > 0) & (theirs[:, box.start + 2] > 0)
    assert together.sum() > 5
    apart = np.abs(ours[together, box] - theirs[together, box])
    assert np.median(apart) <= 1 and apart.max() <= 4  # an edge of the picture may cut off thin parts

"""Noise that is drawn ahead is the noise that would have been drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from worldsim.runtime import noise as noise_module
from worldsim.runtime.noise import COMMIT_FRAME, DRAW_FRAME, NoiseAhead, draw_noise

SHAPE = (2, 3, 4)
CPU = torch.device("cpu")


@pytest.fixture
def ahead() -> Iterator[NoiseAhead]:
    noise = NoiseAhead(SHAPE, CPU)
    yield noise
    noise.close()


@pytest.fixture
def drawn_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Note the seed, frame and purpose of every row that is drawn."""
    noted, fill = [], noise_module.fill_noise

    def note(noise: Any, seeds: list[int], frames: list[int], purpose: int, rows: Any = None) -> None:
        noted.extend((seeds[row], frames[row], purpose) for row in rows or ())
        fill(noise, seeds, frames, purpose, rows)

    monkeypatch.setattr(noise_module, "fill_noise", note)
    return noted


def test_frames_in_order_have_their_noise_and_are_drawn_once(
    ahead: NoiseAhead, drawn_rows: list[tuple[int, int, int]]
) -> None:
    seeds, frames = torch.tensor([5, 2**62, 0]), torch.tensor([0, 7, 10**6])
    for step in range(4):
        for purpose in (DRAW_FRAME, COMMIT_FRAME):
            noise = ahead.draw(seeds, frames + step, purpose)
            assert torch.equal(noise, draw_noise(seeds, frames + step, SHAPE, purpose))
    ahead.close()  # what was begun is drawn, or never will be
    assert len(drawn_rows) == len(set(drawn_rows))
    assert len(drawn_rows) >= 2 * 4 * len(seeds)


def test_rows_that_begin_anew_are_drawn_again_and_the_others_are_not(
    ahead: NoiseAhead, drawn_rows: list[tuple[int, int, int]]
) -> None:
    seeds, frames = torch.arange(6), torch.full((6,), 3)
    ahead.draw(seeds, frames)
    later, after = seeds.clone(), frames + 1
    later[[1, 4]], after[[1, 4]] = torch.tensor([77, 78]), 0
    noise = ahead.draw(later, after)
    assert torch.equal(noise, draw_noise(later, after, SHAPE))
    assert {(77, 0, DRAW_FRAME), (78, 0, DRAW_FRAME)} <= set(drawn_rows)
    assert len(drawn_rows) == len(set(drawn_rows))


def test_what_was_returned_stays_what_it_was(ahead: NoiseAhead) -> None:
    seeds, frames = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    kept = [ahead.draw(seeds, frames + step) for step in range(5)]
    for step, noise in enumerate(kept):
        assert torch.equal(noise, draw_noise(seeds, frames + step, SHAPE))


def test_going_back_and_other_batch_sizes_are_no_trouble(ahead: NoiseAhead) -> None:
    for count, frame in ((3, 4), (3, 4), (70, 5), (2, 0), (70, 1)):
        seeds, frames = torch.arange(count), torch.full((count,), frame)
        assert torch.equal(ahead.draw(seeds, frames), draw_noise(seeds, frames, SHAPE))


def test_what_fails_in_a_thread_is_raised_to_who_asked(ahead: NoiseAhead) -> None:
    with pytest.raises(OverflowError):
        ahead.draw(torch.tensor([-1]), torch.tensor([0]))


@pytest.mark.gpu
def test_noise_on_a_card_has_the_same_bytes() -> None:
    device = torch.device("cuda", 0)
    ahead = NoiseAhead((16, 16, 20), device)
    seeds = torch.arange(256)
    for step in (0, 1, 2, 3, 9):
        frames = torch.full((256,), step)
        noise = ahead.draw(seeds, frames)
        assert noise.device == device
        torch.cuda._sleep(50_000_000)  # work that the copy of the next frames must not overtake
        assert torch.equal(noise.cpu(), draw_noise(seeds, frames, (16, 16, 20)))
    ahead.close()

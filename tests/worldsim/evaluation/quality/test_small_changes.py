from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldsim.evaluation.quality.small_changes import (
    CELL,
    MAX_SHARE,
    energies,
    errors,
    outstanding_energy,
    outstanding_error,
    squared_difference,
    standing_out,
)

GREY = 100
STEP = 51
"""A fifth of the range: its square is 0.04."""


def grey(count: int = 1) -> Tensor:
    return torch.full((count, 120, 160, 3), GREY, dtype=torch.uint8)


def with_cells(*cells: tuple[int, int], brighter: int = STEP) -> Tensor:
    """Return a grey frame in which some cells of 8 x 8 pixels are brighter."""
    frame = grey()
    for row, column in cells:
        frame[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] += brighter
    return frame


def test_a_cell_that_changes_alone_stands_out_with_its_squared_change() -> None:
    after = with_cells((3, 7))
    change = squared_difference(grey(), after)
    assert change.shape == (1, 15, 20)
    assert standing_out(change).nonzero().tolist() == [[0, 3, 7]]
    assert outstanding_energy(grey(), after).tolist() == pytest.approx([0.04])


def test_what_moves_has_twice_the_energy_of_what_vanishes() -> None:
    before = with_cells((3, 7))
    moved, vanished = with_cells((3, 9)), grey()
    assert outstanding_energy(before, moved).tolist() == pytest.approx([0.08])
    assert outstanding_energy(before, vanished).tolist() == pytest.approx([0.04])


@pytest.mark.parametrize("brighter", [0, 4, STEP], ids=["still", "compression", "flash"])
def test_nothing_stands_out_if_all_changes_alike(brighter: int) -> None:
    assert not standing_out(squared_difference(grey(), grey() + brighter)).any()
    assert outstanding_energy(grey(), grey() + brighter).tolist() == [0]


def test_a_change_no_larger_than_compression_leaves_is_none() -> None:
    assert outstanding_energy(grey(), with_cells((3, 7), brighter=8)).tolist() == [0]
    assert outstanding_energy(grey(), with_cells((3, 7), brighter=9))[0] > 0


def test_no_more_cells_stand_out_than_their_share() -> None:
    after = with_cells(*((row, 2) for row in range(10)))
    assert standing_out(squared_difference(grey(), after)).sum() == round(MAX_SHARE * 15 * 20) == 3


def test_frames_of_a_batch_are_judged_each_by_itself() -> None:
    """A change that stands out in a still frame does not in one that moves as a whole."""
    still, moving = grey(), grey() + 40
    still[:, :CELL, :CELL] += STEP
    moving[:, :CELL, :CELL] += 10
    energy = outstanding_energy(grey(2), torch.cat([still, moving]))
    assert energy.tolist() == pytest.approx([0.04, 0])


def test_error_of_copying_is_the_energy_and_of_the_truth_nothing() -> None:
    before, after = with_cells((3, 7)), with_cells((3, 9))
    assert outstanding_error(before, after, before).tolist() == pytest.approx([0.08])
    assert outstanding_error(before, after, after).tolist() == [0]
    assert outstanding_error(before, after, grey()).tolist() == pytest.approx([0.04])  # it vanished


def test_errors_elsewhere_do_not_count() -> None:
    before, after = with_cells((3, 7)), with_cells((3, 9))
    elsewhere = with_cells((3, 9), (12, 12))
    assert outstanding_error(before, after, elsewhere).tolist() == [0]


def test_cells_at_the_edge_may_be_smaller() -> None:
    before = torch.zeros(1, 20, 12, 3, dtype=torch.uint8)
    after = before.clone()
    after[:, 16:, 8:] = 255
    change = squared_difference(before, after)
    assert change.shape == (1, 3, 2)
    assert change[0, 2, 1] == 1
    assert change.sum() == 1


def test_sequences_are_measured_frame_after_frame() -> None:
    first, second, third = with_cells((3, 7)), with_cells((3, 9)), with_cells((3, 9))
    real = torch.stack([second, third], dim=1)
    assert energies(first[:, None], real).flatten().tolist() == pytest.approx([0.08, 0])
    before, copied = torch.stack([first, second], dim=1), torch.stack([first, first], dim=1)
    assert errors(before, real, copied).flatten().tolist() == pytest.approx([0.08, 0])

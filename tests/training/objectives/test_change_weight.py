from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fakes import tiny_world
from training.objectives.distillation import VelocityDistillation
from training.objectives.flow_matching import FlowMatchingLoss, SequenceFlowMatching, change_weights
from training.objectives.noise import ObjectiveConfig
from worldsim.errors import WorldError

BATCH, FRAMES, CHANNELS, ROWS, COLUMNS = 2, 5, 4, 4, 6
CELLS = ROWS * COLUMNS


def still_clip() -> Tensor:
    frame = torch.randn(1, 1, CHANNELS, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    return frame.repeat(1, FRAMES, 1, 1, 1)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, FRAMES, CHANNELS, ROWS, COLUMNS, generator=generator)
    return latents, torch.randint(3, (BATCH, FRAMES, 3), generator=generator)


def losses_with(config: ObjectiveConfig) -> dict[str, Tensor]:
    module = SequenceFlowMatching(tiny_world().denoiser.float(), config)
    return module(*batch(), torch.Generator().manual_seed(2))


def test_a_cell_that_changes_alone_counts_as_often_as_there_are_cells() -> None:
    latents = still_clip()
    latents[0, 2:, :, 1, 3] += 10  # from frame 2 on it stays so: only there it changes
    weights = change_weights(latents, weight=1.0, cap=1000.0)
    assert weights.shape == (1, FRAMES, 1, ROWS, COLUMNS)
    elsewhere = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    elsewhere[1, 3] = False
    assert weights[0, 2, 0, 1, 3].item() == pytest.approx((1 + CELLS) / 2, rel=1e-3)
    assert weights[0, 2, 0][elsewhere].tolist() == pytest.approx([0.5] * (CELLS - 1), rel=1e-3)
    others = weights[0, [0, 1, 3, 4]]
    assert torch.equal(others, torch.ones_like(others))


def test_the_cap_bounds_how_much_more_one_cell_counts_than_another() -> None:
    latents = still_clip()
    latents[0, 1, :, 1, 3] += 10
    weights = change_weights(latents, weight=2.0, cap=4.0)[0, 1]
    assert (weights.max() / weights.min()).item() == pytest.approx(1 + 2.0 * 4.0)


def test_a_picture_that_changes_alike_everywhere_is_weighted_alike() -> None:
    latents = still_clip() + torch.arange(FRAMES).view(1, -1, 1, 1, 1)
    weights = change_weights(latents, weight=5.0, cap=20.0)
    torch.testing.assert_close(weights, torch.ones_like(weights))


def test_what_compression_leaves_is_not_taken_for_motion() -> None:
    latents = still_clip()
    latents[0, 1, :, 1, 3] += 0.01
    assert change_weights(latents, weight=1.0, cap=20.0).max() < 1.1


def test_every_frame_counts_as_much_as_without_weights() -> None:
    weights = change_weights(batch()[0], weight=3.0, cap=2.0)
    torch.testing.assert_close(weights.mean(dim=(2, 3, 4)), torch.ones(BATCH, FRAMES))
    assert weights.std() > 0.1


def test_a_weight_of_zero_is_the_mean_squared_error_to_the_bit() -> None:
    latents, _ = batch()
    module = FlowMatchingLoss(tiny_world().denoiser, ObjectiveConfig(change_weight=0.0))
    squared = torch.rand(latents.shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(module.frame_means(squared, latents), squared.mean(dim=(2, 3, 4)))
    losses = losses_with(ObjectiveConfig())
    assert torch.equal(
        losses_with(ObjectiveConfig(change_weight=0.0, change_cap=3.0))["loss"], losses["loss"]
    )
    assert "loss_unweighted" not in losses


def test_the_log_tells_the_loss_without_weights() -> None:
    plain, weighted = losses_with(ObjectiveConfig()), losses_with(ObjectiveConfig(change_weight=4.0))
    assert torch.equal(weighted["loss_unweighted"], plain["loss"])
    assert not torch.allclose(weighted["loss"], plain["loss"], rtol=1e-3)


def test_gradients_are_those_of_the_weighted_errors() -> None:
    """A prediction that is the same for two futures settles where the weights say: towards the change."""
    futures = still_clip().repeat(2, 1, 1, 1, 1)[:, :2]
    futures[1, 1, :, 1, 3] += 1.0
    weights = change_weights(futures, weight=1.0, cap=5.0)[:, 1]
    guess = torch.zeros(CHANNELS, ROWS, COLUMNS, requires_grad=True)
    module = FlowMatchingLoss(tiny_world().denoiser, ObjectiveConfig(change_weight=1.0, change_cap=5.0))
    target = futures - futures[:1, :1]

    module.frame_means((guess - target).square(), futures)[:, 1].mean().backward()
    assert guess.grad is not None
    expected = -2 * (weights * target[:, 1]).mean(dim=0) / guess.numel()
    torch.testing.assert_close(guess.grad, expected)
    likeliest = (weights * target[:, 1]).sum(dim=0) / weights.sum(dim=0)
    assert 0.5 < likeliest[0, 1, 3] < 1.0  # without weights 0.5, as likely as it is


def test_a_student_is_taught_with_the_same_weights() -> None:
    teacher, student = (tiny_world(is_teacher=is_teacher).denoiser.float() for is_teacher in (True, False))
    plain, weighted = (
        VelocityDistillation(teacher, student, ObjectiveConfig(change_weight=weight), data_weight=0.25)(
            *batch(), torch.Generator().manual_seed(2)
        )
        for weight in (0.0, 4.0)
    )
    assert not torch.allclose(plain["loss_teacher"], weighted["loss_teacher"], rtol=1e-3)
    assert not torch.allclose(plain["loss_data"], weighted["loss_data"], rtol=1e-3)


@pytest.mark.parametrize(
    ("weight", "cap", "message"),
    [
        (-1.0, 20.0, "change_weight must be at least 0 and finite, got -1.0"),
        (float("nan"), 20.0, "change_weight must be at least 0 and finite, got nan"),
        (1.0, 0.0, "change_cap must be above 0 and finite, got 0.0"),
        (1.0, float("inf"), "change_cap must be above 0 and finite, got inf"),
    ],
)
def test_settings_that_weigh_nothing_sensibly_are_refused(weight: float, cap: float, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        ObjectiveConfig(change_weight=weight, change_cap=cap)


def test_the_frame_that_ends_a_game_is_not_made_likelier_by_its_change() -> None:
    """A last frame repeats the one before it but for one cell, all of whose change would be the end's."""
    latents = still_clip()
    latents[0, 2:, :, 1, 3] += 1.0
    ended = torch.zeros(latents.shape[:2], dtype=torch.bool)
    ended[0, 2] = True
    module = FlowMatchingLoss(tiny_world().denoiser, ObjectiveConfig(change_weight=2.0))
    cell = torch.zeros_like(latents)
    cell[..., 1, 3] = 1.0
    others, alone = module.frame_means(cell, latents), module.frame_means(cell, latents, ended)
    assert torch.equal(alone[~ended], others[~ended])
    assert others[0, 2] > 10 * others[0, 1]
    # As much as in a frame that changes elsewhere: no future of the cell is learned too little either.
    moving = latents.clone()
    moving[0, 2] = latents[0, 1]
    moving[0, 2, :, 0] += 1.0
    assert alone[0, 2].item() == pytest.approx(module.frame_means(cell, moving)[0, 2].item(), rel=0.05)

"""Targets of outcome heads: sequences that hold ends, rewards in their own units, nothing past an end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import tiny_world
from training.data.latents import DataConfig, LatentVideo, OutcomeTargets
from training.engine.fabric import FabricConfig, make_fabric
from training.objectives.flow_matching import SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig
from training.objectives.outcome import OutcomeLoss, OutcomeLossConfig, reward_units
from training.world.batches import end_draws, make_batches
from training.world.settings import TrainWorldConfig
from worldsim.outcome import OutcomeConfig


def counted_video(*lengths: int, ended: list[bool]) -> LatentVideo:
    """Return video whose latents, actions and rewards are the number of the frame."""
    number = torch.arange(sum(lengths))
    latents = number.half()[:, None, None, None].expand(-1, 4, 4, 6)
    ends = torch.zeros(len(number), dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = torch.tensor(ended)
    return LatentVideo(latents, number[:, None].expand(-1, 3), list(lengths), number.float(), ends)


def drawn(video: LatentVideo, steps: int, *, segments: int = 1) -> list[tuple[Tensor, OutcomeTargets]]:
    config = TrainWorldConfig(
        out="", data=DataConfig(train=[], heldout=[]), batch_size=8, sequence_length=6, segments=segments
    )
    batch_at = make_batches(video, config, 0, with_outcomes=True)
    pairs = []
    for step in range(steps):
        batch = batch_at(step)
        actions, targets = batch[1], batch[-1]
        assert isinstance(actions, Tensor)
        assert isinstance(targets, OutcomeTargets)
        pairs.append((actions[..., 0], targets))
    return pairs


def test_ends_are_drawn_often_and_not_always_as_the_last_frame() -> None:
    video = counted_video(300, 200, 250, ended=[True, False, True])
    batches = drawn(video, 200)
    has_end = torch.cat([targets.ends.any(dim=1) for _, targets in batches])
    assert 0.2 < has_end.float().mean() < 0.32
    places = torch.cat([targets.ends.nonzero()[:, 1] for _, targets in batches])
    assert set(places.tolist()) == {1, 2, 3, 4, 5}
    # As many early as late: the network could tell by the place else.
    assert places.bincount(minlength=6)[1:].min() > 0.12 * len(places)
    assert places.bincount(minlength=6)[1:].max() < 0.28 * len(places)
    for numbers, targets in batches:
        assert torch.equal(targets.rewards, numbers.float())
        is_end = (numbers == 299) | (numbers == 749)
        assert torch.equal(targets.ends, is_end & targets.is_real)
        # Past the end the last frame stands still, and counts for nothing.
        assert torch.equal(targets.is_real[:, 1:], numbers.diff(dim=1) == 1)
        assert targets.is_real[:, 0].all()


@pytest.mark.parametrize("segments", [1, 3])
def test_how_much_rarer_ends_are_than_in_the_draws_is_known(segments: int) -> None:
    lengths, ended = (60, 45, 80, 33), [True, True, False, True]
    video = counted_video(*lengths, ended=ended)
    config = TrainWorldConfig(
        out="", data=DataConfig(train=[], heldout=[]), batch_size=8, sequence_length=6, segments=segments
    )
    batches = drawn(video, 600, segments=segments)
    # Rows begin out of step, and the first frame of a sequence has no past.
    num_sequences = 600 * 8 / segments
    counted = sum(int(targets.is_real.sum()) for _, targets in batches) - num_sequences
    share = sum(int(targets.ends.sum()) for _, targets in batches) / counted
    recorded = sum(ended) / (sum(lengths) - len(lengths))
    assert end_draws(video, config).frequency == pytest.approx(recorded / share, rel=0.08)
    without_ends = counted_video(60, ended=[False])
    assert end_draws(without_ends, config).frequency == 1.0


def test_an_expected_reward_is_not_that_of_the_frames_that_were_drawn() -> None:
    world = tiny_world(outcome=OutcomeConfig())
    heads, meaning = world.denoiser.outcome, world.config.outcome
    assert heads is not None
    assert meaning is not None
    heads.requires_grad_(True)
    # Nothing tells a frame that ends from another. One in 10 was recorded, every second one is drawn.
    summary, ends = torch.ones(1, 20, 32), torch.arange(20)[None] % 2 == 0
    targets = OutcomeTargets(torch.where(ends, -50.0, 1.0), ends, torch.ones(1, 20, dtype=torch.bool))
    loss = OutcomeLoss(heads, meaning, OutcomeLossConfig(), end_frequency=(0.1 / 0.9) / (0.5 / 0.5))
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss(heads, summary, targets, targets.is_real)["loss_outcome"].backward()
        optimizer.step()
    assert heads(summary)[0].mean().item() == pytest.approx(0.1 * -50 + 0.9 * 1, abs=0.3)


def test_ends_in_long_sequences_come_in_all_segments() -> None:
    batches = drawn(counted_video(60, 45, ended=[True, True]), 120, segments=3)
    rows = [row for numbers, targets in batches for row in zip(numbers, targets.ends, strict=True)]
    assert sum(bool(ends.any()) for _, ends in rows) > 40
    for numbers, ends in rows:
        assert numbers[0] // 60 == numbers[-1] // 60, "a sequence runs on into another episode"
        if ends.any():
            assert int(numbers[ends][0]) in (59, 104)
    # With rows out of step, a third of the segments that end an episode is followed by one that stands still.
    still = sum(int(numbers[0] == numbers[-1]) for numbers, _ in rows)
    assert still > 20


def test_batches_of_a_world_without_heads_are_as_they_were() -> None:
    video = counted_video(300, 200, ended=[True, True])
    config = TrainWorldConfig(out="", data=DataConfig(train=[], heldout=[]), batch_size=4, sequence_length=6)
    latents, actions, generator = make_batches(video, config, 0)(3)
    assert isinstance(actions, Tensor)
    assert (actions[..., 0].diff(dim=1) == 1).all()
    without_ends = replace(config, outcome=OutcomeLossConfig(end_share=0.0))
    theirs, _, _, _ = make_batches(video, without_ends, 0, with_outcomes=True)(3)
    assert isinstance(latents, Tensor)
    assert isinstance(theirs, Tensor)
    assert torch.equal(latents, theirs)
    assert isinstance(generator, torch.Generator)


def test_reward_units_are_mean_and_deviation_of_what_actions_led_to(tmp_path: Path) -> None:
    fabric = make_fabric(FabricConfig(accelerator="cpu"), tmp_path)
    video = counted_video(3, 2, ended=[True, True])
    units = reward_units(video, fabric)
    assert units.reward_mean == pytest.approx(np.mean([1, 2, 4]))
    assert units.reward_scale == pytest.approx(np.std([1, 2, 4]))
    video.rewards = torch.full((5,), 1.0)
    assert reward_units(video, fabric) == OutcomeConfig(reward_mean=1.0, reward_scale=1.0)


def losses_of(detach: bool, targets: OutcomeTargets | None) -> tuple[dict[str, Tensor], SequenceFlowMatching]:
    torch.manual_seed(0)
    world = tiny_world(outcome=OutcomeConfig(reward_mean=1.0, reward_scale=2.0))
    denoiser = world.denoiser.float().requires_grad_(True)
    assert denoiser.outcome is not None
    assert world.config.outcome is not None
    outcome = OutcomeLoss(denoiser.outcome, world.config.outcome, OutcomeLossConfig(detach=detach))
    module = SequenceFlowMatching(denoiser, ObjectiveConfig(), outcome)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 5, 4, 4, 6, generator=generator)
    actions = torch.randint(3, (2, 5, 3), generator=generator)
    losses = module(latents, actions, generator, targets)
    losses["loss"].backward()
    return losses, module


def some_targets() -> OutcomeTargets:
    ends = torch.zeros(2, 5, dtype=torch.bool)
    ends[0, 3] = True
    is_real = torch.ones(2, 5, dtype=torch.bool)
    is_real[0, 4] = False
    return OutcomeTargets(torch.arange(10.0).reshape(2, 5), ends, is_real)


def test_detached_heads_leave_the_picture_alone() -> None:
    targets = some_targets()._replace(is_real=torch.ones(2, 5, dtype=torch.bool))
    (plain, without), (together, detached), (_, attached) = (
        losses_of(False, None),
        losses_of(True, targets),
        losses_of(False, targets),
    )
    assert torch.equal(plain["loss"], together["loss_picture"])
    assert together["loss"] > together["loss_picture"]
    gradients = [
        {n: p.grad for n, p in module.denoiser.named_parameters() if p.grad is not None}
        for module in (without, detached, attached)
    ]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    changed = [n for n, g in gradients[0].items() if not torch.equal(g, gradients[2][n])]
    assert any(name.startswith("blocks.0.") for name in changed)
    assert gradients[1]["outcome.value.weight"].abs().sum() > 0


def test_what_lies_past_an_end_counts_for_nothing() -> None:
    targets = some_targets()
    other = targets._replace(rewards=targets.rewards.clone())
    other.rewards[0, 4] = 1e6
    ours, theirs = losses_of(False, targets)[0], losses_of(False, other)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other.rewards[0, 3] = 1e6
    assert losses_of(False, other)[0]["loss_reward"] > ours["loss_reward"]


def test_the_first_frame_has_no_outcome() -> None:
    targets = some_targets()
    other = targets._replace(rewards=targets.rewards.clone())
    other.rewards[:, 0] = 1e6
    assert torch.equal(losses_of(False, targets)[0]["loss"], losses_of(False, other)[0]["loss"])

"""The critic: its shapes, what its logits see, and whose weights each loss reaches."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.selection import using
from tests.devices import HostLooks
from tests.fakes import TINY_ACTIONS, tiny_denoiser_config, tiny_world
from training.objectives.adversarial import pair_loss
from training.sharpen.adversarial import (
    SelfRolloutCritic,
    anchor_loss,
    penalty,
    scale_gradient,
)
from training.sharpen.critic import Critic, Logits, VideoHead, frozen
from training.sharpen.energy import EnergyScore, SelfRolloutEnergy
from training.sharpen.rollouts import OwnFrames, watch_clips
from training.sharpen.settings import CriticConfig, EnergyConfig, RolloutConfig
from worldsim.model.denoiser import Denoiser
from worldsim.sampler import SamplerConfig

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, WATCHED, DRAWN = 2, 3, 4
CONFIG = RolloutConfig(prefix_frames=WATCHED, frames=[DRAWN], begins=[0], batch_sizes=[ROWS])


def clips(rows: int = ROWS, count: int = WATCHED + DRAWN) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, count, 4, 4, 6, generator=generator)
    return latents, torch.randint(3, (rows, count, 3), generator=generator)


def make_objective(anchor_weight: float = 1.0) -> SelfRolloutCritic:
    world = tiny_world()
    torch.manual_seed(1)
    denoiser = world.denoiser.requires_grad_(True)
    return SelfRolloutCritic(
        denoiser, Critic(denoiser), CONFIG, CriticConfig(anchor_weight=anchor_weight), world.config.sampler
    )


def judge(critic: Critic, frames: Tensor) -> Logits:
    latents, actions = clips()
    real = latents[:, :WATCHED]
    memory = watch_clips(critic.trunk, real, actions[:, :WATCHED], real)
    return critic(frames, frames, torch.full((ROWS,), 0.3), actions[:, WATCHED:], memory)


def losses_of(objective: SelfRolloutCritic, balanced: float = 0.0) -> dict[str, Tensor]:
    return objective(*clips(), torch.Generator().manual_seed(5), torch.tensor(balanced))


def test_the_score_beside_the_critic_counts_by_its_weight() -> None:
    plain = losses_of(make_objective())
    found = {}
    for weight in (0.0, 2.0):
        objective = make_objective()
        objective.score = EnergyScore(objective.denoiser, EnergyConfig(feature_weight=0))
        objective.goals = replace(objective.goals, energy_weight=weight)
        found[weight] = losses_of(objective)
    assert "spread" not in plain and found[2.0]["spread"] > 0
    for name in ("loss_critic", "penalty", "loss_generator", "loss_anchor"):
        torch.testing.assert_close(found[2.0][name], found[0.0][name], rtol=1e-4, atol=1e-5)
    sum_of = sum(found[2.0][name] for name in ("loss_critic", "penalty", "loss_generator", "loss_anchor"))
    torch.testing.assert_close(found[0.0]["loss"].detach(), sum_of, rtol=1e-4, atol=1e-4)
    assert float(found[2.0]["loss"] - found[0.0]["loss"]) > 0.1


def test_a_clip_has_a_logit_for_each_token_of_three_depths_and_one_of_its_own() -> None:
    critic = make_objective().critic
    logits = judge(critic, clips()[0][:, WATCHED:])
    tokens = critic.trunk.config.tokens_per_frame
    assert logits.patches.shape == (ROWS, 3, DRAWN, tokens)
    assert logits.video.shape == logits.total().shape == (ROWS,)
    torch.testing.assert_close(logits.total(), logits.patches.flatten(1).mean(1) + logits.video)


def test_logits_of_places_are_causal_and_the_logit_of_the_clip_is_not() -> None:
    critic = make_objective().critic
    frames = clips()[0][:, WATCHED:]
    permuted = frames[:, [0, 1, 3, 2]]
    before, after = judge(critic, frames), judge(critic, permuted)
    torch.testing.assert_close(before.patches[:, :, :2], after.patches[:, :, :2], rtol=1e-4, atol=1e-5)
    assert (before.patches[:, :, 2:] - after.patches[:, :, 2:]).abs().max() > 1e-3
    assert (before.video - after.video).abs().min() > 1e-5


def test_what_a_frame_counts_in_the_logit_of_the_clip_depends_on_later_frames() -> None:
    torch.manual_seed(0)
    head, tokens = VideoHead(16), torch.randn(1, 4, 5, 16)
    slopes = []
    for later in (tokens, torch.cat([tokens[:, :2], torch.randn(1, 2, 5, 16)], dim=1)):
        x = later.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(head(x).sum(), x)
        slopes.append(slope[:, 0])
    assert (slopes[0] - slopes[1]).norm() > 0.01 * slopes[0].norm()


def test_the_order_of_frames_counts_in_the_logit_of_the_clip() -> None:
    torch.manual_seed(0)
    head, tokens = VideoHead(16), torch.randn(1, 4, 5, 16)
    assert (head(tokens) - head(tokens.flip(1))).detach().abs() > 1e-5


def test_paired_losses_are_those_computed_by_hand() -> None:
    real, drawn = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    by_hand = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(3.0))) / 2
    assert float(pair_loss(real, drawn)) == pytest.approx(by_hand)
    by_hand = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-3.0))) / 2
    assert float(pair_loss(drawn, real)) == pytest.approx(by_hand)
    assert float(penalty(real, torch.tensor([0.0, -2.0]))) == pytest.approx(0.5)


def test_the_anchor_sees_the_mean_of_cells_and_no_texture() -> None:
    flat = torch.zeros(1, 1, 4, 8)
    texture = torch.tensor([1.0, -1.0]).repeat(4)[None, None, None].expand(1, 1, 4, 8)
    assert float(anchor_loss(flat, texture)) == pytest.approx(0.0)
    shifted = texture.clone()
    shifted[..., :4] += 2.0
    assert float(anchor_loss(flat, shifted)) == pytest.approx(2.0)  # 4 in one of two cells


def test_the_pass_computes_the_losses_of_its_parts() -> None:
    found = losses_of(make_objective())
    parts = ("loss_critic", "penalty", "loss_generator", "loss_anchor")
    assert float(found["loss"].detach()) == pytest.approx(sum(float(found[name]) for name in parts), rel=1e-5)
    assert all(float(found[name]) > 0 for name in parts)


def reached(objective: SelfRolloutCritic, name: str) -> dict[str, Tensor]:
    """Return the gradients of one of the losses, by the names of the parameters."""
    generator = torch.Generator().manual_seed(5)
    clip = objective.watched(*clips(), generator)
    drawn = objective.draw(clip, generator).float()
    noise, levels = torch.randn(drawn.shape), torch.full((ROWS,), 0.5)
    taught, real = objective._teach_critic(clip, drawn.detach(), noise, levels, generator)
    anchor = anchor_loss(drawn[:, 0], clip.real[:, 0])
    asked = objective._ask_critic(clip, drawn, noise, levels, real, anchor, torch.tensor(0.0))
    loss = {"critic": taught["loss_critic"] + taught["penalty"], "generator": asked}[name]
    loss.backward()
    return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}


def test_each_loss_reaches_its_own_side_alone() -> None:
    by_critic, by_generator = (reached(make_objective(), name) for name in ("critic", "generator"))
    assert {name.partition(".")[0] for name in by_critic} == {"critic"}
    assert {name.partition(".")[0] for name in by_generator} == {"denoiser"}
    assert "critic.video.query" in by_critic
    assert "critic.trunk.blocks.0.self_attn.q.weight" in by_critic
    assert "denoiser.head.head.weight" in by_generator


def test_a_frozen_critic_trains_its_heads_alone() -> None:
    denoiser = tiny_world().denoiser.requires_grad_(True)
    trained = {
        n.partition(".")[0] for n, p in Critic(denoiser, is_frozen=True).named_parameters() if p.requires_grad
    }
    assert trained == {"patches", "video"}


def test_weights_are_trained_again_after_they_were_frozen() -> None:
    critic = make_objective().critic
    before = [parameter.requires_grad for parameter in critic.parameters()]
    with frozen(critic):
        assert not any(parameter.requires_grad for parameter in critic.parameters())
    assert [parameter.requires_grad for parameter in critic.parameters()] == before


def test_a_balanced_gradient_has_the_norm_of_the_anchors() -> None:
    gradient = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(
        scale_gradient(gradient, torch.tensor(0.5), torch.tensor(1.0)), torch.tensor([0.3, 0.4])
    )
    torch.testing.assert_close(scale_gradient(gradient, torch.tensor(0.5), torch.tensor(0.0)), gradient)


@pytest.mark.parametrize("balanced", [0.0, 1.0])
def test_the_gradient_of_a_pass_is_balanced_where_that_is_asked_for(balanced: float) -> None:
    objective = make_objective(anchor_weight=1e-3)
    losses_of(objective, balanced)["loss"].backward()
    with_critic = objective.denoiser.head.head.weight.grad
    assert with_critic is not None
    # The anchor is weak here: balanced, what the critic asks for hardly moves the world.
    assert (float(with_critic.norm()) < 0.05) == (balanced == 1.0), float(with_critic.norm())


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize("count", [1, DRAWN])
@pytest.mark.parametrize("recycled", [False, True])
@pytest.mark.parametrize("objective", ["critic", "energy"])
def test_a_pass_neither_looks_at_numbers_nor_waits_for_the_host(
    objective: str, recycled: bool, count: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a GPU can replay it; on a device without numbers, which does not know autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    # Heads of 32 features, which the Triton forms take.
    shape = replace(tiny_denoiser_config(), dim=64, num_values=TINY_ACTIONS.num_values, recycled=recycled)
    denoiser = Denoiser(shape)
    module: OwnFrames = SelfRolloutEnergy(denoiser, CONFIG, EnergyConfig(), SamplerConfig())
    if objective == "critic":
        module = SelfRolloutCritic(denoiser, Critic(denoiser), CONFIG, CriticConfig(), SamplerConfig())
    module, meta = module.to("meta"), torch.device("meta")
    latents, actions = (tensor.to(meta) for tensor in clips(count=WATCHED + count))
    more = (torch.empty((), device=meta),) if objective == "critic" else ()
    given: Any = None  # the generator: a device without numbers has none
    with HostLooks() as looks, using(form=form, layers=form):
        module(latents, actions, given, *more)["loss"].backward()
    assert looks.mixed == []

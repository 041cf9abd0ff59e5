"""The energy score: its value, its propriety, and that it chooses a future where an error draws the mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.sharpen.adversarial import SelfRolloutCritic
from training.sharpen.critic import Critic
from training.sharpen.energy import SelfRolloutEnergy, distance, energy_score, score_of, vectors
from training.sharpen.rollouts import OwnFrames
from training.sharpen.settings import CriticConfig, EnergyConfig, RolloutConfig
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.sampler import SamplerConfig


def test_the_score_is_that_computed_by_hand() -> None:
    first, second, target = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.zeros(2)
    assert float(energy_score(first, second, target)) == pytest.approx((3 + 4 - 5) / 2, abs=1e-5)


def test_equal_draws_have_a_slope_that_is_a_number() -> None:
    first = torch.zeros(2, 3, requires_grad=True)
    energy_score(first, torch.zeros(2, 3), torch.zeros(2, 3)).sum().backward()
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()


@pytest.mark.parametrize("width", [1, 4])
def test_no_spread_scores_better_than_that_of_the_data(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, target = torch.randn(3, 200_000, width, generator=generator)
    scores = {
        scale: float(energy_score(scale * first, scale * second, target).mean())
        for scale in (0.0, 0.5, 0.8, 1.0, 1.25, 2.0)
    }
    assert min(scores, key=lambda scale: scores[scale]) == 1.0, scores


def test_distances_are_taken_of_patches_and_of_coarser_cells() -> None:
    latents = torch.arange(2 * 4 * 6, dtype=torch.float32).view(1, 2, 4, 6)
    patches, halves, quarters = vectors(latents)
    assert (patches.shape, halves.shape, quarters.shape) == ((1, 6, 8), (1, 6, 2), (1, 2, 2))
    expected = latents[0, :, :2, 2:4].flatten() * 8**-0.5  # second place of the first row
    torch.testing.assert_close(patches[0, 1], expected)
    torch.testing.assert_close(quarters[0, 0], latents[0, :, :4, :4].mean(dim=(1, 2)) * 2**-0.5)
    assert float(distance(halves, halves).max()) == pytest.approx(1e-3)


MODEL = DenoiserConfig(
    latent_shape=[4, 4, 4],
    num_values=[2],
    dim=32,
    ffn_dim=64,
    num_heads=2,
    num_layers=2,
    window_layers=[],
    window=2,
    memory_phase="time",
)
CLIPS = RolloutConfig(prefix_frames=2, frames=[1], begins=[0], batch_sizes=[32], single_every=0)


def two_futures(generator: torch.Generator, rows: int = 32) -> tuple[Tensor, Tensor]:
    """Return clips whose last frame is all 1 or all -1, at random, and nothing before it tells which."""
    latents = torch.zeros(rows, 3, 4, 4, 4)
    latents[:, 2] = torch.where(torch.rand(rows, 1, 1, 1, generator=generator) < 0.5, 1.0, -1.0)
    return latents, torch.zeros(rows, 3, 1, dtype=torch.int64)


class SquaredError(OwnFrames):
    """What the velocity's error at pure noise teaches: the mean."""

    def forward(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        clips = self.watched(latents, actions, generator)
        return {"loss": (self.draw(clips, generator) - clips.real).square().mean()}


def mean_of_draws(objective: OwnFrames) -> Tensor:
    """Return the mean of each of many drawn frames."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        clips = objective.watched(*two_futures(generator, 128), generator)
        return objective.draw(clips, generator).mean(dim=(1, 2, 3, 4))


def learn(objective: OwnFrames, updates: int, rates: dict[nn.Module, float]) -> Tensor:
    """Make updates, and return the mean of each of many drawn frames."""
    optimizers = [
        torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate, betas=(0.0, 0.99))
        for module, rate in rates.items()
    ]
    generator = torch.Generator().manual_seed(1)
    more = (torch.tensor(0.0),) if isinstance(objective, SelfRolloutCritic) else ()
    for _ in range(updates):
        for optimizer in optimizers:
            optimizer.zero_grad()
        objective(*two_futures(generator), generator, *more)["loss"].backward()
        for module, optimizer in zip(rates, optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    return mean_of_draws(objective)


def decided(drawn: Tensor) -> float:
    """Return the share of frames that are nearer to one of the two futures than to their mean."""
    return float((drawn.abs() > 0.5).float().mean())


def test_features_tell_a_picture_from_grain_whose_places_are_each_right() -> None:
    torch.manual_seed(0)
    objective = SelfRolloutEnergy(Denoiser(MODEL), CLIPS, EnergyConfig(), SamplerConfig())
    generator = torch.Generator().manual_seed(2)
    rows = 256
    clips = objective.watched(*two_futures(generator, rows), generator)
    noise = torch.randn(clips.real.shape, generator=generator)
    pictures = [two_futures(generator, rows)[0][:, 2:] for _ in range(2)]
    # Each token's patch is all 1 or all -1 by itself.
    signs = [torch.randint(0, 2, (rows, 1, 1, 2, 2), generator=generator) * 2.0 - 1 for _ in range(2)]
    grain = [s.repeat_interleave(2, -1).repeat_interleave(2, -2).expand_as(noise) for s in signs]

    def patch_score(draws: list[Tensor]) -> float:
        return float(energy_score(*(vectors(each)[0] for each in (*draws, clips.real))).mean())

    def score(draws: list[Tensor]) -> float:
        three = (objective.score.features(clips, each, noise) for each in (*draws, clips.real))
        return float(score_of(list(zip(*three, strict=True))))

    with torch.no_grad():
        assert patch_score(grain) == pytest.approx(patch_score(pictures), rel=0.1)
        assert score(grain) > 1.1 * score(pictures)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_of_two_futures_an_error_draws_the_mean_and_the_score_either() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(MODEL)
    by_error = learn(SquaredError(denoiser, CLIPS, SamplerConfig()), 40, {denoiser: 3e-3})
    assert decided(by_error) < 0.05
    latents_alone = EnergyConfig(feature_weight=0)
    objective = SelfRolloutEnergy(denoiser, CLIPS, latents_alone, SamplerConfig())
    by_score = learn(objective, 260, {denoiser: 3e-3})
    assert decided(by_score) > 0.7
    assert 0.2 < (by_score > 0).float().mean() < 0.8


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_critic_makes_a_world_draw_a_future_in_the_place_of_the_mean() -> None:
    """Perhaps always the same one: the score, which draws either, is where a critic is to begin."""
    torch.manual_seed(0)
    denoiser = Denoiser(MODEL)
    assert decided(learn(SquaredError(denoiser, CLIPS, SamplerConfig()), 40, {denoiser: 3e-3})) < 0.05
    critic, goals = Critic(denoiser), CriticConfig(penalty=10.0, anchor_weight=0.1)
    objective = SelfRolloutCritic(denoiser, critic, CLIPS, goals, SamplerConfig())
    by_critic = learn(objective, 120, {denoiser: 5e-4, critic: 1e-3})
    assert decided(by_critic) > 0.9
    assert 0.6 < by_critic.abs().mean() < 1.4

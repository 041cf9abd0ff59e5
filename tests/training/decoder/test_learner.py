from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from training.decoder.critic import PatchCritic, relativistic_loss, slope_penalty
from training.decoder.learner import DecoderLearner, PairBatch, energy_ratio
from training.decoder.settings import DecoderConfig, PatchCriticConfig
from training.objectives.codec import CodecLossConfig
from worldsim.codec import CodecConfig, FrameCodec
from worldsim.model.pictures import frames_of

SIDE, CELLS = 16, 2


def small_codec() -> FrameCodec:
    torch.manual_seed(0)
    return FrameCodec(
        CodecConfig(
            height=SIDE,
            width=SIDE,
            size_multiple=8,
            latent_channels=4,
            widths=[8, 8, 8],
            encoder_blocks=[0, 0, 0],
            decoder_widths=[8, 16, 16],
            decoder_blocks=[1, 0, 0],
        )
    )


def small_critic() -> PatchCritic:
    torch.manual_seed(1)
    return PatchCritic(4, [16, 32, 32])


def textured_batch(step: int, *, num_pairs: int = 4, num_own: int = 0) -> PairBatch:
    """Return pairs of equal frames: colours that the latents say, and noise that they do not say."""
    generator = torch.Generator().manual_seed(step)
    latents = torch.randn(num_pairs, 1, 4, CELLS, CELLS, generator=generator).expand(-1, 2, -1, -1, -1)
    colours = 0.1 * functional.interpolate(latents[:, 0, :3], scale_factor=8, mode="bilinear") + 0.5
    texture = (torch.rand(num_pairs, 1, SIDE, SIDE, generator=generator) < 0.5).float() - 0.5
    frames = frames_of(colours + 0.3 * texture)[:, None].expand(-1, 2, -1, -1, -1)
    return PairBatch(latents, frames, num_own, (0, 0), step, generator)


def train(codec: FrameCodec, config: DecoderConfig, critic: PatchCritic | None, num_steps: int) -> None:
    learner = DecoderLearner(codec, config, CodecLossConfig(), critic)
    learning = [(codec.decoder, 3e-3 if critic is None else 1e-3), *([(critic, 1e-3)] if critic else [])]
    optimizers = [torch.optim.Adam(module.parameters(), rate, betas=(0.5, 0.99)) for module, rate in learning]
    for step in range(num_steps):
        loss = learner(*textured_batch(step))["loss"]
        learner.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def energy_of(codec: FrameCodec) -> float:
    batch = textured_batch(10_000, num_pairs=32)
    made = codec.decode(batch.latents[:, 0])
    return float(energy_ratio(made, batch.frames[:, 0]))


@pytest.mark.usefixtures("one_thread")
def test_a_critic_gives_texture_where_the_codec_loss_alone_leaves_none() -> None:
    codec = small_codec()
    config = DecoderConfig(
        critic=PatchCriticConfig(widths=[16, 32, 32], alone_steps=20, crop=SIDE), steering=0.02
    )
    train(codec, config, None, 50)
    assert energy_of(codec) < 0.1
    train(codec, config, small_critic(), 130)
    assert 0.5 < energy_of(codec) < 1.6


def test_the_critic_learns_alone_at_first() -> None:
    """The decoder's gradient is then that of the pixel losses."""
    codec, config = small_codec(), DecoderConfig(critic=PatchCriticConfig(alone_steps=5, crop=SIDE))
    gradients = []
    for critic, step in ((None, 0), (small_critic(), 4), (small_critic(), 5)):
        learner = DecoderLearner(codec, config, CodecLossConfig(), critic)
        learner.zero_grad()
        learner(*textured_batch(0)._replace(step=step))["loss"].backward()
        gradients.append(
            torch.cat([each.grad.flatten() for each in codec.decoder.parameters() if each.grad is not None])
        )
        assert all(each.grad is None for each in codec.encoder.parameters())
        if critic is not None:
            assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in critic.parameters())
    plain, alone, pushed = gradients
    torch.testing.assert_close(alone, plain, rtol=1e-3, atol=1e-6)
    assert (pushed - plain).norm() > 0.05 * plain.norm()


def test_the_weight_rises_where_energy_is_missing_and_falls_where_there_is_too_much() -> None:
    critic = PatchCriticConfig(widths=[16, 32, 32], alone_steps=0, crop=SIDE)
    config = DecoderConfig(critic=critic, weight=0.5, max_weight=0.52, steering=1.0)
    learner = DecoderLearner(small_codec(), config, CodecLossConfig(), small_critic())
    batch = textured_batch(0, num_own=2)
    images = batch.frames.movedim(-1, 2).float() / 255
    smooth = images.mean(dim=(3, 4), keepdim=True).expand_as(images)
    rough = (images - smooth) * 1.4 + smooth
    told = learner._steer(torch.cat([smooth[:2], rough[2:]]), images, batch)
    assert learner.weights[0] == pytest.approx(0.52)  # 0.5 * 1.05, at its limit
    assert learner.weights[1] < 0.5
    assert told["energy_encoded"] == pytest.approx(0.95) and told["energy_own"] > 1


def test_own_latents_are_held_to_means_alone() -> None:
    learner = DecoderLearner(small_codec(), DecoderConfig(), CodecLossConfig(), None)
    batch = textured_batch(0, num_own=2)
    images = batch.frames.movedim(-1, 2).float() / 255
    squares = images.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4))
    shuffled = squares.flip(-1, -3).flatten(-4, -3).flatten(-2)  # within squares of 4 x 4
    moved = torch.cat([images[:2], shuffled[2:]])
    assert not torch.equal(moved, images)
    losses = learner.pixel_losses(moved, images, 2)
    assert losses["reconstruction"] == 0 and losses["reconstruction_own"] == pytest.approx(0, abs=1e-6)
    assert learner.pixel_losses(1 - images, images, 2)["reconstruction_own"] > 0


def test_the_critic_sees_the_frame_before_and_the_latents() -> None:
    critic, batch = small_critic(), textured_batch(0)
    images = batch.frames.movedim(-1, 2).float() / 255
    scores = critic(images, batch.latents)
    assert [each.shape for each in scores] == [(4, 64), (4, 16), (4, 4)]
    before = torch.stack([images[:, 0] + 0.02, images[:, 1]], dim=1)
    for other in (critic(before, batch.latents), critic(images, batch.latents + 0.1)):
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(scores, other, strict=True))


def test_relativistic_loss_and_slope_penalty_have_their_closed_forms() -> None:
    zero, two = [torch.zeros(3, 5)], [torch.full((3, 5), 2.0)]
    assert relativistic_loss(zero, zero) == pytest.approx(math.log(2))
    assert relativistic_loss(two, zero) == pytest.approx(math.log1p(math.exp(-2)))
    assert slope_penalty(two, zero, 0.5) == pytest.approx((2 / 0.5) ** 2 / 2)

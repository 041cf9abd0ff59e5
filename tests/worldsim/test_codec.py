import pytest
import torch
from torch import Tensor

from training.objectives.codec import (
    CodecLossConfig,
    gradient_difference,
    reconstruction_loss,
    reconstruction_terms,
    sample_latent_noise,
)
from worldsim.codec import CodecConfig, FrameCodec, bound_softly
from worldsim.errors import WorldError


def small_config(**changes) -> CodecConfig:
    shape = {"height": 24, "width": 40, "latent_channels": 4, "widths": [8, 8, 16]}
    return CodecConfig(**{**shape, **changes})


def small_codec(**changes) -> FrameCodec:
    torch.manual_seed(0)
    return FrameCodec(small_config(**changes)).eval()


def random_frames(batch_size: int, codec: FrameCodec, seed: int = 0) -> Tensor:
    shape = (batch_size, codec.config.height, codec.config.width, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def images_of(frames: Tensor) -> Tensor:
    return frames.movedim(-1, 1).float() / 255


def calibrated_codec(**changes) -> tuple[FrameCodec, Tensor]:
    codec = small_codec(**changes)
    frames = random_frames(16, codec)
    with torch.no_grad():
        codec.calibrate(codec.reconstruct(images_of(frames))[1])
    return codec, frames


def test_the_default_codec_has_16_channels_on_16_by_20_and_stays_small():
    codec = FrameCodec(CodecConfig())
    assert codec.latent_shape == (16, 16, 20)
    assert sum(p.numel() for p in codec.decoder.parameters()) <= 2.5e6
    assert sum(p.numel() for p in codec.parameters()) <= 4.5e6


@pytest.mark.parametrize(
    ("height", "width", "size_multiple", "latent_shape"),
    [(24, 40, 16, (4, 4, 6)), (24, 40, 8, (4, 3, 5)), (30, 33, 8, (4, 4, 5)), (8, 8, 8, (4, 1, 1))],
    ids=["padded", "exact", "odd", "smallest"],
)
def test_any_frame_size_comes_back_with_its_own_shape(height, width, size_multiple, latent_shape):
    codec = small_codec(height=height, width=width, size_multiple=size_multiple)
    frames = random_frames(2, codec)
    latents = codec.encode(frames)
    assert codec.latent_shape == latent_shape
    assert latents.shape == (2, *latent_shape) and latents.dtype == torch.float32
    decoded = codec.decode(latents)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8 and decoded.is_contiguous()


def test_padding_repeats_the_last_row():
    codec, frames = calibrated_codec(size_multiple=16)
    taller = small_codec(height=32, width=48)
    taller.load_state_dict(codec.state_dict())
    rows = torch.arange(32).clamp(max=23)
    columns = torch.arange(48).clamp(max=39)
    assert torch.equal(codec.encode(frames), taller.encode(frames[:, rows][:, :, columns]))


def test_calibrated_latents_have_unit_variance_in_every_channel():
    codec, frames = calibrated_codec()
    std, mean = torch.std_mean(codec.encode(frames), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-3, rtol=0)


def test_encode_then_decode_is_reconstruct():
    codec, frames = calibrated_codec()
    images, _ = codec.reconstruct(images_of(frames))
    expected = images.movedim(1, -1).clamp(0, 1) * 255
    difference = codec.decode(codec.encode(frames)).float() - expected
    assert difference.abs().max() <= 0.51


def test_the_statistics_are_saved_with_the_weights():
    codec, frames = calibrated_codec()
    copy = small_codec()
    copy.load_state_dict(codec.state_dict())
    assert torch.equal(copy.encode(frames), codec.encode(frames))


def test_bfloat16_weights_stay_close_to_fp32():
    codec, frames = calibrated_codec()
    latents, decoded = codec.encode(frames), codec.decode(codec.encode(frames)).float()
    codec.to(torch.bfloat16)
    assert codec.encode(frames).dtype == torch.float32
    torch.testing.assert_close(codec.encode(frames), latents, atol=0.15, rtol=0.05)
    assert (codec.decode(latents).float() - decoded).abs().mean() < 2


def test_raw_latents_stay_inside_the_bound_and_wild_ones_decode_like_the_bound():
    codec, frames = calibrated_codec()
    with torch.no_grad():
        codec.encoder[-1].weight.mul_(1e4)
    bound = codec.config.latent_bound
    assert codec.reconstruct(images_of(frames))[1].abs().max() <= bound
    wild = torch.full((1, *codec.latent_shape), 1e6)
    edge = (bound - codec.latent_mean) / codec.latent_std * 1.01
    assert torch.equal(codec.decode(wild), codec.decode(edge.view(1, -1, 1, 1).expand_as(wild)))


def test_the_bound_is_the_identity_near_zero_and_keeps_a_gradient_far_out():
    x = torch.tensor([0.001, 30.0], requires_grad=True)
    y = bound_softly(x, 1.0)
    y.sum().backward()
    assert y[0].item() == pytest.approx(0.001, rel=1e-5) and y[1].item() < 1
    assert x.grad is not None and x.grad[1] > 1e-5


def test_latent_noise_is_in_units_of_the_latents_deviation():
    codec, frames = calibrated_codec()
    images = images_of(frames)
    seen: list[Tensor] = []
    codec.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    _, raw = codec.reconstruct(images, torch.ones(16, *codec.latent_shape))
    expected = raw.std(dim=(0, 2, 3)).view(1, -1, 1, 1).expand_as(raw)
    torch.testing.assert_close(seen[0] - raw, expected)


def test_the_same_seed_draws_the_same_noise_of_bounded_level():
    config = CodecLossConfig(latent_noise=0.1)
    first, second = (
        sample_latent_noise(64, (4, 8, 8), config, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)
    levels = first.std(dim=(1, 2, 3))
    assert levels.max() < 0.12 and levels.min() < 0.02


def test_the_loss_is_zero_for_equal_images_and_weighs_its_terms():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    config = CodecLossConfig(l1_weight=2.0, mse_weight=3.0, gradient_weight=5.0)
    assert reconstruction_loss(images, images, config).item() == 0
    shifted = images + 0.1
    assert gradient_difference(shifted, images).item() == pytest.approx(0, abs=1e-6)
    terms = {name: term.item() for name, term in reconstruction_terms(shifted, images).items()}
    assert terms == pytest.approx({"l1": 0.1, "mse": 0.01, "gradient": 0.0}, abs=1e-6)
    assert reconstruction_loss(shifted, images, config).item() == pytest.approx(0.23, abs=1e-5)


def test_a_few_steps_of_training_lower_the_loss_and_reach_every_weight():
    codec = small_codec().train()
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 6, 10), size=(24, 40), mode="bilinear")
    config, generator = CodecLossConfig(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        noise = sample_latent_noise(4, codec.latent_shape, config, generator)
        loss = reconstruction_loss(codec(images, noise)[0], images, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in codec.parameters())


def test_decoding_again_gives_the_same_bytes():
    codec, frames = calibrated_codec()
    latents = codec.encode(frames)
    assert torch.equal(codec.decode(latents), codec.decode(latents.clone()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "height must be at least 1"),
        ({"latent_channels": 0}, "latent_channels must be at least 1"),
        ({"size_multiple": 12}, "multiple of 8, got 12"),
        ({"widths": [8, 8]}, "widths must be 3 numbers"),
        ({"decoder_blocks": [1, -1, 1]}, "decoder_blocks must be numbers of at least 0"),
        ({"latent_bound": 0.0}, "latent_bound must be above 0 and finite, got 0.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_shape_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    "changes", [{"latent_noise": -0.1}, {"l1_weight": 0.0, "mse_weight": 0.0, "gradient_weight": 0.0}]
)
def test_an_impossible_loss_is_refused(changes):
    with pytest.raises(ValueError, match="codec loss"):
        CodecLossConfig(**changes)


def test_wrong_frames_and_latents_are_refused_with_what_was_expected():
    codec = small_codec()
    with pytest.raises(TypeError, match=r"frames must be uint8, got torch\.float32"):
        codec.encode(torch.zeros(1, 24, 40, 3))
    with pytest.raises(WorldError, match=r"expected frames \[batch, 24, 40, 3\], got \(1, 40, 24, 3\)"):
        codec.encode(torch.zeros(1, 40, 24, 3, dtype=torch.uint8))
    with pytest.raises(WorldError, match=r"expected latents \[batch, 4, 4, 6\], got \(1, 4, 4, 5\)"):
        codec.decode(torch.zeros(1, 4, 4, 5))


def test_calibration_refuses_channels_without_variance():
    with pytest.raises(WorldError, match="vary in every channel"):
        small_codec().calibrate(torch.zeros(2, 4, 4, 6))
    with pytest.raises(WorldError, match="expects raw latents"):
        small_codec().calibrate(torch.zeros(0, 4, 4, 6))

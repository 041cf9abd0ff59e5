"""Latents that move as pictures do: the shifts of the codec's loss, and how far held-out latents follow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.fakes import tiny_codec_config, write_tiny_dataset
from training.codec import Reconstruction, TrainCodecConfig, shifted_psnr, train_codec
from training.data.latents import DataConfig, choose_episodes, load_frames
from training.decoder.settings import DecoderConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.objectives.codec import (
    MAX_SHIFT,
    CodecLossConfig,
    reconstruction_loss,
    sample_latent_noise,
    sample_shifts,
)
from worldsim.codec import DOWNSAMPLING, FrameCodec, load_codec
from worldsim.errors import WorldError
from worldsim.model.pictures import move_first, move_pictures


class PoolingCodec(FrameCodec):
    """Has the mean of each square for latents, and repeats it: latents and pictures are alike."""

    def __init__(self) -> None:
        super().__init__(replace(tiny_codec_config(), latent_channels=3))

    def _encode_images(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, DOWNSAMPLING)

    def _decode_images(self, raw: Tensor) -> Tensor:
        return raw.repeat_interleave(DOWNSAMPLING, 2).repeat_interleave(DOWNSAMPLING, 3)


def random_frames(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 32, 48, 3), generator=generator, dtype=torch.uint8)


def train_config(folder: Path, loss: CodecLossConfig, steps: int = 3, **changes: object) -> TrainCodecConfig:
    video = str(write_tiny_dataset(folder / "data"))
    settings = {
        "out": str(folder / "run"),
        "data": DataConfig(train=[video], heldout=[video], num_workers=1),
        "codec": tiny_codec_config(),
        "loop": LoopConfig(num_steps=steps, warmup_steps=1, decay_fraction=0.0, ema_decay=0.0, log_every=1),
        "fabric": FabricConfig(accelerator="cpu", precision="32-true"),
        "batch_size": 8,
    }
    return TrainCodecConfig(**{**settings, "loss": loss, **changes})


def test_whole_cells_are_moved_exactly_and_the_border_is_repeated() -> None:
    pictures = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    moved = move_pictures(pictures, torch.tensor([[2.0, 1.0], [-3.0, 0.0]]))
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(moved[0, :, 1:, 2:], pictures[0, :, :-1, :-2], **close)
    torch.testing.assert_close(moved[0, :, 1:, :2], pictures[0, :, :-1, :1].expand(-1, -1, 2), **close)
    torch.testing.assert_close(moved[1, :, :, :-3], pictures[1, :, :, 3:], **close)
    torch.testing.assert_close(move_first(pictures, torch.tensor([[2.0, 1.0]]))[0], moved[0])
    assert torch.equal(move_first(pictures, torch.tensor([[2.0, 1.0]]))[1], pictures[1])


@pytest.mark.parametrize("shift", [(0.5, 0.0), (0.3, 0.25), (-1.0, -0.2)])
def test_latents_and_pictures_move_by_the_same_pixels(shift: tuple[float, float]) -> None:
    # A mean of squares moves exactly as the picture where that is a plane.
    x, y = torch.arange(80.0) / 80, torch.arange(64.0) / 64
    pictures = (0.6 * x[None, :] + 0.3 * y[:, None]).expand(1, 3, 64, 80)
    shifts = torch.tensor([shift])
    latents = move_pictures(functional.avg_pool2d(pictures, DOWNSAMPLING), shifts)
    expected = functional.avg_pool2d(move_pictures(pictures, shifts * DOWNSAMPLING), DOWNSAMPLING)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(latents[inner], expected[inner], atol=1e-5, rtol=0)
    assert (latents - functional.avg_pool2d(pictures, DOWNSAMPLING))[inner].abs().min() > 0.01


def test_the_first_pictures_of_a_batch_are_moved_and_only_those() -> None:
    codec, images = PoolingCodec(), random_frames().movedim(-1, 1).float() / 255
    shifts = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    moved, raw = codec(images, None, shifts)
    still, same_raw = codec(images)
    assert torch.equal(raw, same_raw), "what the encoder returned"
    assert torch.equal(moved[2:], still[2:])
    torch.testing.assert_close(moved[0, :, :, 8:], still[0, :, :, :-8])
    assert (moved[1] - still[1]).abs().mean() > 0.01


def test_shifts_are_drawn_within_their_bounds_for_the_share() -> None:
    shifts = sample_shifts(2000, CodecLossConfig(shift_share=0.25), torch.Generator().manual_seed(0))
    assert shifts is not None and shifts.shape == (500, 2)
    assert torch.equal(shifts * DOWNSAMPLING, (shifts * DOWNSAMPLING).round()), "whole pixels"
    for i, largest in enumerate(MAX_SHIFT):
        assert (
            0.9 * largest < shifts[:, i].max() <= largest and -largest <= shifts[:, i].min() < -0.9 * largest
        )


def test_without_a_share_loss_and_random_numbers_are_what_they_were() -> None:
    torch.manual_seed(0)
    codec, frames, config = FrameCodec(tiny_codec_config()), random_frames(), CodecLossConfig()
    images = frames.movedim(-1, 1).float() / 255
    generator, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    noise = sample_latent_noise(len(frames), codec.latent_shape, config, own)
    expected = reconstruction_loss(codec.reconstruct(images, noise)[0], images, config)
    assert torch.equal(Reconstruction(codec, config)(frames, generator)["loss"], expected)
    assert torch.equal(generator.get_state(), own.get_state())


def test_the_loss_compares_with_the_moved_picture() -> None:
    ramp = torch.arange(48, dtype=torch.float32).mul(5).to(torch.uint8)[None, None, :, None]
    frames = ramp.expand(8, 32, 48, 3)
    config = CodecLossConfig(shift_share=1.0, latent_noise=0.0)
    codec = PoolingCodec()
    loss = Reconstruction(codec, config)(frames, torch.Generator().manual_seed(0))["loss"]
    images = frames.movedim(-1, 1).float() / 255
    generator = torch.Generator().manual_seed(0)
    sample_latent_noise(8, codec.latent_shape, config, generator)
    shifts = sample_shifts(8, config, generator)
    decoded, _ = codec(images, None, shifts)
    assert loss < 0.8 * reconstruction_loss(decoded, images, config), "not with the picture as it was"


def test_gradients_pass_through_the_shift_and_bf16_stays_bf16() -> None:
    torch.manual_seed(0)
    codec = FrameCodec(tiny_codec_config())
    loss = Reconstruction(codec, CodecLossConfig(shift_share=1.0))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(random_frames(), torch.Generator().manual_seed(0))["loss"]
    value.backward()
    assert value.dtype == torch.float32
    reached = {name for name, p in codec.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"encoder.1.weight", "decoder.0.weight"} <= reached
    pictures = torch.rand(1, 3, 120, 160)
    moved = move_pictures(pictures.bfloat16(), torch.tensor([[4.0, 0.0]]))
    assert moved.dtype == torch.bfloat16
    torch.testing.assert_close(moved[..., 4:], pictures.bfloat16()[..., :-4], atol=1e-2, rtol=0)


def test_the_measure_tells_latents_that_move_from_those_that_do_not() -> None:
    codec, ramp = PoolingCodec(), torch.arange(48).mul(4).to(torch.uint8)
    smooth = ramp[None, None, :, None].expand(2, 32, 48, 3).contiguous()
    assert shifted_psnr(codec, smooth) == pytest.approx(28.9, abs=0.1), "its squares, as unmoved"
    stripes = torch.where(torch.arange(48) // 8 % 2 == 0, 0, 255).to(torch.uint8)
    assert shifted_psnr(codec, stripes[None, None, :, None].expand(2, 32, 48, 3).contiguous()) < 10


def test_training_with_a_share_runs_and_reports_the_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_codec(train_config(tmp_path, CodecLossConfig(shift_share=0.5))) > 0
    (shown,) = re.findall(
        r"step 3: psnr_heldout_db [0-9.]+, psnr_shifted_db ([0-9.]+)", capsys.readouterr().out
    )
    heldout = load_frames(choose_episodes([str(tmp_path / "data")], 0), (32, 48), 1)
    codec = load_codec(tmp_path / "run" / "codec").eval()
    assert shifted_psnr(codec, heldout) == pytest.approx(float(shown), abs=0.02)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(WorldError, match="codec loss shift_share must lie in"):
        CodecLossConfig(shift_share=share)


def test_a_share_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="moves no picture of a batch of 8: raise it or batch_size"):
        train_config(tmp_path, CodecLossConfig(shift_share=0.01))
    with pytest.raises(WorldError, match=r"loss\.shift_share must be 0 with decoder\.alone"):
        alone = {"decoder": DecoderConfig(alone=True), "init": "doom-rooms"}
        train_config(tmp_path / "alone", CodecLossConfig(shift_share=0.5), **alone)

"""Training of the frame autoencoder: `python -m training.codec`."""

# B batch, H W frame size

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.cli.entry import entry
from training.data.latents import DataConfig, choose_episodes, digest_of, load_frames
from training.engine.fabric import FabricConfig, make_fabric, share_passes
from training.engine.loop import LoopConfig, fit, seed_of
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare
from training.objectives.codec import CodecLossConfig, reconstruction_loss, sample_latent_noise
from training.world.clips import own_shares, own_workers
from worldsim.codec import CodecConfig, FrameCodec, save_codec
from worldsim.errors import WorldError
from worldsim.evaluation.metrics import psnr
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.world.world import find_codec

VALIDATION_FRAMES = 512


@dataclass(kw_only=True, slots=True)
class TrainCodecConfig:
    """Settings of `python -m training.codec`."""

    out: str = setting(REQUIRED, "The run's folder; the codec is written to OUT/codec.")
    data: DataConfig = setting(REQUIRED, "Gameplay video.")
    codec: CodecConfig = setting(CodecConfig, "Shape; video is scaled to its frame size. Not used with init.")
    loss: CodecLossConfig = setting(CodecLossConfig, "Weights of the loss.")
    loop: LoopConfig = setting(LoopConfig, "Length and care.")
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")
    batch_size: int = setting(
        64, "Frames of a pass: of an update on each device, without loop.global_batch_size.", minimum=1
    )
    learning_rate: float = setting(1e-3, "Of AdamW, at full height.", above=0)
    init: str = setting(
        "", "Folder of a codec or a world, or the name of one that ships, to go on from; '' is none."
    )

    def __post_init__(self) -> None:
        check_settings(self)


class Reconstruction(nn.Module):
    """The codec's loss as a module that Fabric can wrap."""

    def __init__(self, codec: FrameCodec, config: CodecLossConfig) -> None:
        super().__init__()
        self.codec = codec
        self.config = config

    def forward(self, frames: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of frames `[B, H, W, 3]` uint8."""
        images = frames.movedim(-1, 1).float() / 255
        noise = sample_latent_noise(len(frames), self.codec.latent_shape, self.config, generator)
        reconstructed, _ = self.codec(images, noise)
        return {"loss": reconstruction_loss(reconstructed, images, self.config)}


def export_codec(training: Training, frames: Tensor, folder: Path, *, write: bool) -> float:
    """Write the averaged codec, if this process is to, and return its PSNR in dB on held-out `frames`."""
    codec = training.averaged().codec
    assert isinstance(codec, FrameCodec)
    codec.eval()
    with torch.no_grad():
        images = frames.movedim(-1, 1).float() / 255
        codec.calibrate(torch.cat([codec.reconstruct(batch)[1].float() for batch in images.split(64)]))
        decoded = torch.cat([codec.decode(codec.encode(batch)) for batch in frames.split(64)])
    if write:
        save_codec(codec, folder)
    return float(psnr(decoded, frames).mean())


def train_codec(config: TrainCodecConfig) -> float:
    """Train, and return the PSNR in dB on held-out frames."""
    run = RunFolder(config.out, config)
    fabric = make_fabric(config.fabric, run.path)
    torch.manual_seed(config.loop.seed)
    codec = find_codec(config.init) if config.init else FrameCodec(config.codec)
    size = (codec.config.height, codec.config.width)
    workers = own_workers(config.data, fabric)
    chosen = choose_episodes(config.data.train, config.data.max_frames)
    passes = share_passes(fabric, config.batch_size, config.loop.global_batch_size)
    parts = {
        number: load_frames(share, size, workers).to(fabric.device)
        for number, share in zip(passes.own, own_shares(chosen, passes), strict=True)
    }
    if (fewest := min(len(frames) for frames in parts.values())) < config.batch_size:
        raise WorldError(f"a batch needs {config.batch_size} frames, {config.data.train} hold {fewest}")
    heldout_episodes = choose_episodes(config.data.heldout, 8 * VALIDATION_FRAMES, chosen[0].info.actions)
    heldout = load_frames(heldout_episodes, size, workers)
    stride = max(1, len(heldout) // VALIDATION_FRAMES)
    heldout = heldout[::stride][:VALIDATION_FRAMES].to(fabric.device)
    digests = {"train": digest_of(None, chosen), "heldout": digest_of(None, heldout_episodes)}
    run.check_inputs(fabric, passes.total, **digests)

    optimizer = torch.optim.AdamW(codec.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    training = prepare(fabric, Reconstruction(codec, config.loss), [optimizer], config.loop.ema_decay, passes)
    if config.fabric.compile:
        codec.compile(dynamic=False)

    def batch_at(step: int, number: int) -> tuple[Tensor, torch.Generator]:
        seed, frames = seed_of(config.loop.seed, step, number), parts[number]
        chosen = np.random.default_rng(seed).integers(len(frames), size=config.batch_size)
        generator = torch.Generator(fabric.device).manual_seed(seed)
        return frames[torch.from_numpy(chosen).to(fabric.device)], generator

    result = {"psnr_heldout_db": 0.0}

    def on_checkpoint(training: Training) -> dict[str, float]:
        result["psnr_heldout_db"] = export_codec(
            training, heldout, run.path / "codec", write=fabric.global_rank == 0
        )
        return result

    fit(
        fabric,
        training,
        batch_at,
        config.loop,
        run,
        frames_per_batch=config.batch_size,
        on_checkpoint=on_checkpoint,
    )
    fabric.print(f"codec in {run.path / 'codec'}, held-out PSNR {result['psnr_heldout_db']:.2f} dB")
    return result["psnr_heldout_db"]


@entry("codec", TrainCodecConfig)
def main(config: TrainCodecConfig) -> None:
    """Train the frame autoencoder."""
    train_codec(config)


if __name__ == "__main__":
    main()

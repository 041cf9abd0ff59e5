"""Train the frame autoencoder: `python -m training.codec`."""

# B batch, H W frame size

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.cli.entry import entry
from training.data.latents import DataConfig, choose_episodes, digest_of, load_frames
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.loop import LoopConfig, Training, fit, prepare, seed_of
from training.engine.run_folder import RunFolder
from training.objectives.codec import CodecLossConfig, reconstruction_loss, sample_latent_noise
from worldsim.codec import CodecConfig, FrameCodec, save_codec
from worldsim.errors import WorldError
from worldsim.evaluation.metrics import psnr
from worldsim.world.world import find_codec

VALIDATION_FRAMES = 512


@dataclass(kw_only=True, slots=True)
class TrainCodecConfig:
    """Settings of `python -m training.codec`.

    Attributes:
        out: The run's folder; the codec is written to `out/codec`.
        data: Gameplay video.
        codec: Shape; its frame size decides what size the video is scaled to. Not used with `init`.
        init: Folder of a codec, or folder or shipped name of a world, whose codec to go on training; empty
            starts from nothing.
        loss: Weights of the loss.
        loop: Length and care.
        fabric: Device, precision, distribution.
        batch_size: Frames per update and device.
        learning_rate: Of AdamW, at full height.
    """

    out: str
    data: DataConfig
    codec: CodecConfig = field(default_factory=CodecConfig)
    loss: CodecLossConfig = field(default_factory=CodecLossConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)
    batch_size: int = 64
    learning_rate: float = 1e-3
    init: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise WorldError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 < self.learning_rate < math.inf:
            raise WorldError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")


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
    codec = training.average.module.codec
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
    workers = config.data.num_workers
    chosen = choose_episodes(config.data.train, config.data.max_frames)
    frames = load_frames(chosen, size, workers).to(fabric.device)
    heldout_episodes = choose_episodes(config.data.heldout, 8 * VALIDATION_FRAMES, chosen[0].info.actions)
    heldout = load_frames(heldout_episodes, size, workers)
    stride = max(1, len(heldout) // VALIDATION_FRAMES)
    heldout = heldout[::stride][:VALIDATION_FRAMES].to(fabric.device)
    run.check_inputs(fabric, train=digest_of(None, chosen), heldout=digest_of(None, heldout_episodes))
    if len(frames) < config.batch_size:
        raise WorldError(f"a batch needs {config.batch_size} frames, {config.data.train} hold {len(frames)}")

    optimizer = torch.optim.AdamW(codec.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    training = prepare(fabric, Reconstruction(codec, config.loss), [optimizer], config.loop.ema_decay)
    if config.fabric.compile:
        codec.compile(dynamic=False)

    def batch_at(step: int) -> tuple[Tensor, torch.Generator]:
        seed = seed_of(config.loop.seed, step, fabric.global_rank)
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

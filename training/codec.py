"""Training of the frame autoencoder: `python -m training.codec`.

Or of its decoder alone, with a critic (`decoder.alone=true`), and the way of such a decoder into a world
(`decoder.into=WORLD`).
"""

# B batch, H W frame size

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.cli.entry import entry
from training.data.latents import DataConfig, choose_episodes, digest_of, load_frames
from training.decoder.footage import PairSource, draw_own, load_footage
from training.decoder.settings import DecoderConfig
from training.decoder.train import DecoderRun, check_footage, new_decoder, open_own_world
from training.engine.fabric import FabricConfig, make_fabric, share_passes
from training.engine.loop import LoopConfig, fit, seed_of
from training.engine.run_folder import FREE_SETTINGS, RunFolder
from training.engine.update import Training, prepare
from training.objectives.codec import (
    CodecLossConfig,
    num_shifted,
    reconstruction_loss,
    sample_latent_noise,
    sample_shifts,
)
from training.world.clips import own_shares, own_workers
from training.world.train import add_provenance
from worldsim.codec import DOWNSAMPLING, CodecConfig, FrameCodec, save_codec
from worldsim.errors import WorldError
from worldsim.evaluation.metrics import as_images, psnr
from worldsim.model.pictures import frames_of, move_first, move_pictures
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.world.rewrite import save_described
from worldsim.world.world import World, find_codec

VALIDATION_FRAMES = 512
SHIFT_BORDER = 2 * DOWNSAMPLING
"""Pixels at the left and at the right that `shifted_psnr` leaves out: what comes into view is not known."""
HELDOUT_PIECES = 128
"""Roll-outs of a world along held-out play."""


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
    grow_channels: int = setting(
        0,
        "Channels of latents to go on with, more than init has; what its own tell stays. 0 keeps them.",
        minimum=0,
    )
    decoder: DecoderConfig = setting(DecoderConfig, "Training of the decoder of init alone.")

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.decoder.alone or self.decoder.into) and not self.init:
            raise WorldError(
                "decoder.alone and decoder.into need init=, the codec or world whose decoder it is"
            )
        if self.grow_channels and (not self.init or self.decoder.alone or self.decoder.into):
            raise WorldError(
                "grow_channels needs init=, the codec that gets more of them, without decoder.alone and "
                "decoder.into, which keep its encoder as it is"
            )
        if self.decoder.alone and self.loop.global_batch_size:
            raise WorldError("loop.global_batch_size must be 0 with decoder.alone: an update is one pass")
        if self.decoder.alone and self.decoder.world and self.batch_size < 2:
            raise WorldError("batch_size must be at least 2 with decoder.world, for pairs of both kinds")
        if self.decoder.alone and self.loss.shift_share:
            raise WorldError(
                "loss.shift_share must be 0 with decoder.alone, which keeps the encoder as it is"
            )
        if self.loss.shift_share and not num_shifted(self.batch_size, self.loss):
            raise WorldError(
                f"loss.shift_share {self.loss.shift_share:g} moves no picture of a batch of "
                f"{self.batch_size}: raise it or batch_size"
            )


GROWN_SCALE = 0.05
"""Of fresh weights that read further channels: the picture is what it was, but they are learned from."""


@torch.no_grad()
def with_channels(codec: FrameCodec, channels: int) -> FrameCodec:
    """Return a codec with more channels of latents, whose first ones are those of the one given.

    Raises:
        WorldError: If it has as many already.
    """
    has = codec.config.latent_channels
    if channels <= has:
        raise WorldError(f"grow_channels must be more than the {has} that init has, got {channels}")
    grown = FrameCodec(replace(codec.config, latent_channels=channels)).to(codec.latent_mean.device)
    weights = grown.state_dict()
    weights["decoder.0.weight"] *= GROWN_SCALE
    for name, known in codec.state_dict().items():
        weights[name][tuple(slice(size) for size in known.shape)] = known
    grown.load_state_dict(weights)
    return grown


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
        shifts = sample_shifts(len(frames), self.config, generator)
        reconstructed, _ = self.codec(images, noise, shifts)
        target = images if shifts is None else move_first(images, shifts * DOWNSAMPLING)
        return {"loss": reconstruction_loss(reconstructed, target, self.config)}


def export_codec(training: Training, frames: Tensor, folder: Path, *, write: bool) -> dict[str, float]:
    """Write the averaged codec, if this process is to, and return what was measured on held-out `frames`."""
    codec = training.averaged().codec
    assert isinstance(codec, FrameCodec)
    codec.eval()
    with torch.no_grad():
        images = frames.movedim(-1, 1).float() / 255
        codec.calibrate(torch.cat([codec.reconstruct(batch)[1].float() for batch in images.split(64)]))
        codec = round_weights(codec)
        decoded = torch.cat([codec.decode(codec.encode(batch)) for batch in frames.split(64)])
    if write:
        save_codec(codec, folder)
    return {
        "psnr_heldout_db": float(psnr(decoded, frames).mean()),
        "psnr_shifted_db": shifted_psnr(codec, frames),
    }


@torch.no_grad()
def shifted_psnr(codec: FrameCodec, frames: Tensor) -> float:
    """Return the mean PSNR in dB of frames decoded from latents moved to the right by half a cell.

    Against the pictures moved as far, `SHIFT_BORDER` pixels at either side left out, at most a quarter of the
    width, and the lowest fifth, where games have bars that never move. It is as high as that of
    the frames themselves where latents move as pictures do.

    Args:
        codec: Calibrated.
        frames: `[N, H, W, 3]`, uint8.
    """
    border = min(SHIFT_BORDER, frames.shape[2] // 4)
    inside = (slice(None), slice(frames.shape[1] * 4 // 5 or 1), slice(border, frames.shape[2] - border))
    scores = []
    for batch in frames.split(64):
        half = torch.tensor([[0.5, 0.0]], device=frames.device).expand(len(batch), 2)
        decoded = codec.decode(move_pictures(codec.encode(batch), half))
        target = frames_of(move_pictures(as_images(batch), half * DOWNSAMPLING))
        scores.append(psnr(decoded[inside], target[inside]))
    return float(torch.cat(scores).mean())


def round_weights(codec: FrameCodec) -> FrameCodec:
    """Return a codec with the weights that a world stores of this one.

    So what reads its latents, odometry or another decoder, also fits a world that is trained on them.
    """
    rounded = FrameCodec(codec.config).to(codec.latent_mean.device).eval()
    rounded.load_state_dict({name: tensor.bfloat16() for name, tensor in codec.state_dict().items()})
    return rounded


def train_codec(config: TrainCodecConfig) -> float:
    """Train, and return the PSNR in dB on held-out frames."""
    run = RunFolder(config.out, config)
    fabric = make_fabric(config.fabric, run.path)
    torch.manual_seed(config.loop.seed)
    codec = find_codec(config.init) if config.init else FrameCodec(config.codec)
    codec = with_channels(codec, config.grow_channels) if config.grow_channels else codec
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

    result = {"psnr_heldout_db": 0.0, "psnr_shifted_db": 0.0}

    def on_checkpoint(training: Training) -> dict[str, float]:
        result.update(export_codec(training, heldout, run.path / "codec", write=fabric.global_rank == 0))
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
    fabric.print(
        f"codec in {run.path / 'codec'}, held-out PSNR {result['psnr_heldout_db']:.2f} dB, "
        f"{result['psnr_shifted_db']:.2f} dB moved by half a cell"
    )
    return result["psnr_heldout_db"]


def train_decoder(config: TrainCodecConfig) -> dict[str, float]:
    """Train the decoder of `init` alone, and return what was measured of it on held-out frames."""
    before = find_codec(config.init).eval().requires_grad_(False)
    fabric = make_fabric(config.fabric, Path(config.out))
    if fabric.world_size > 1:
        raise WorldError("decoder.alone trains on one device: set fabric.devices=1")
    simulator = open_own_world(config.decoder, before, fabric.device)
    actions = simulator.world.config.actions if simulator else None
    chosen = choose_episodes(config.data.train, config.data.max_frames, actions)
    heldout_episodes = choose_episodes(config.data.heldout, 8 * VALIDATION_FRAMES, chosen[0].info.actions)
    for name, references in (("data.train", chosen), ("data.heldout", heldout_episodes)):
        check_footage(references, name, before, config.decoder)
    runs = [RunFolder(path, config, FREE_SETTINGS + ("decoder.world",)) for path in stage_folders(config.out)]
    digests = {"train": digest_of(before, chosen), "heldout": digest_of(None, heldout_episodes)}
    digests["world"] = simulator.world.identity if simulator else ""
    for run in runs:
        run.check_inputs(fabric, **digests)

    torch.manual_seed(config.loop.seed)
    codec = new_decoder(before, config.decoder.widths)
    before.to(fabric.device)
    workers = own_workers(config.data, fabric)
    footage = load_footage(chosen, before, fabric.device, workers)
    heldout = load_footage(heldout_episodes, before, fabric.device, workers)
    own = None
    if simulator:
        held_config = replace(config.decoder.own, pieces=min(HELDOUT_PIECES, config.decoder.own.pieces))
        own = draw_own(simulator, heldout.video, held_config, seed=0)
    source = PairSource(footage, config.decoder, config.loss, config.batch_size, config.loop.seed, simulator)
    stages = DecoderRun(
        fabric, before, config.decoder, config.loop, config.learning_rate, source, heldout, own
    )
    first, second = runs
    codec = stages.reconstruct(codec, first, compile=config.fabric.compile)
    stages.sharpen(codec, second, compile=config.fabric.compile)
    fabric.print(f"codec in {second.path / 'codec'}, its measures and pictures beside it")
    return stages.result


def stage_folders(out: str) -> tuple[Path, Path]:
    """Return the run folders of the two stages of a decoder's training, the second of which is the run's."""
    return Path(out) / "reconstruct", Path(out)


def write_world(config: TrainCodecConfig) -> None:
    """Write the world `decoder.into` with the decoder of `init` to `out`; nothing else of it changes."""
    world, codec = World.from_pretrained(config.decoder.into), find_codec(config.init)
    widths = ", ".join(map(str, codec.config.widths_of_decoder))
    told = f"decoder of {widths} channels trained again behind the same encoder, by python -m training.codec"
    provenance = add_provenance(world.config.provenance, "training", told)
    described = replace(world.config, codec=codec.config, provenance=provenance)
    save_described(world, described, Path(config.out), codec=codec)
    print(f"world in {config.out}")


@entry("codec", TrainCodecConfig)
def main(config: TrainCodecConfig) -> None:
    """Train the frame autoencoder, or its decoder alone."""
    if config.decoder.into:
        write_world(config)
    elif config.decoder.alone:
        train_decoder(config)
    else:
        train_codec(config)


if __name__ == "__main__":
    main()

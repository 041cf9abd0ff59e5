"""The two stages of the training of a decoder alone, and what they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.decoder.critic import PatchCritic
from training.decoder.footage import Footage, OwnLatents, PairSource
from training.decoder.learner import HALVES, DecoderLearner
from training.decoder.measures import decode_times, measure_decoder, write_pictures
from training.decoder.settings import DecoderConfig
from training.engine.export import ExportConfig
from training.engine.loop import LoopConfig, fit, is_done
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare
from worldsim.codec import FrameCodec, save_codec
from worldsim.data.sequences import EpisodeReference, SequenceIndex
from worldsim.errors import WorldError
from worldsim.runtime.config import RuntimeConfig
from worldsim.simulator import Simulator, open_world
from worldsim.storage.files import write_json
from worldsim.world.rewrite import is_same_encoder
from worldsim.world.world import find_codec

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BETAS = (0.5, 0.99)
"""Of AdamW for both networks: with a critic, what the gradient was long ago says little."""
WEIGHT_DECAY = 1e-4
MEASURES_FILE, PICTURE_FILE = "measures.json", "decoded.png"


def new_decoder(codec: FrameCodec, widths: Sequence[int]) -> FrameCodec:
    """Return a codec of the same latents whose decoder has other widths and random weights.

    Without widths, or with those that it has, it is a copy, decoder and all.
    """
    fitting = replace(codec.config, decoder_widths=list(widths)) if widths else codec.config
    if fitting.widths_of_decoder == codec.config.widths_of_decoder:
        fitting = codec.config
    made = FrameCodec(fitting)
    load_encoder(made, codec)
    if fitting is codec.config:
        made.decoder.load_state_dict(codec.decoder.state_dict())
    return made


def load_encoder(codec: FrameCodec, source: FrameCodec) -> None:
    """Give a codec the encoder and the statistics of another, bit for bit."""
    codec.encoder.load_state_dict(source.encoder.state_dict())
    codec.latent_mean.copy_(source.latent_mean)
    codec.latent_std.copy_(source.latent_std)


def open_own_world(config: DecoderConfig, codec: FrameCodec, device: torch.device) -> Simulator | None:
    """Return what steps the world whose own latents are learned from; None if there is none.

    Raises:
        WorldError: If there is no such world, its codec has another encoder, or it draws a level by its map.
    """
    if not config.world:
        return None
    if not is_same_encoder(find_codec(config.world), codec):
        raise WorldError(
            f"decoder.world={config.world} has another encoder than init=: its latents mean something else; "
            "give init= the same world"
        )
    world = open_world(config.world, RuntimeConfig(device=str(device)))[0]
    if world.on_level_map:
        raise WorldError(
            f"decoder.world={config.world} draws a level by its map: its own latents are not learned from, "
            "since footage keeps no poses"
        )
    return Simulator(world)


def check_footage(
    references: Sequence[EpisodeReference], name: str, codec: FrameCodec, config: DecoderConfig
) -> None:
    """Make sure that recorded play can be learned from, before it is decoded.

    Args:
        references: The episodes.
        name: The setting that names them.
        codec: Of the frames.
        config: How long sequences are.

    Raises:
        WorldError: If frames have another size, or no episode is long enough.
    """
    size = codec.config.width, codec.config.height
    for each in references:
        if (found := (each.info.width, each.info.height)) != size:
            raise WorldError(
                f"{each.folder} holds frames of {found[0]} x {found[1]}, the codec makes {size[0]} x "
                f"{size[1]}: a decoder learns no texture from frames that were scaled"
            )
    length = config.own.context_frames + config.own.horizon if config.world else 3
    try:
        SequenceIndex([each.num_frames for each in references], length)
    except WorldError as error:
        raise WorldError(f"{name}: {error}") from error


@dataclass(slots=True)
class DecoderRun:
    """A training of a decoder alone: what both stages share.

    Attributes:
        fabric: One device.
        before: The codec whose decoder is trained again, on the device; stays as it is.
        config: How.
        loop: Of the second stage.
        learning_rate: Of the second stage.
        source: Batches.
        heldout: To measure on.
        heldout_own: What the world draws along it, if there is one.
        result: What was measured last.
    """

    fabric: Fabric
    before: FrameCodec
    config: DecoderConfig
    loop: LoopConfig
    learning_rate: float
    source: PairSource
    heldout: Footage
    heldout_own: OwnLatents | None
    result: dict[str, float] = field(default_factory=dict)

    def reconstruct(self, codec: FrameCodec, run: RunFolder, *, compile: bool) -> FrameCodec:
        """Train by the codec's loss on encoded latents alone; returns the codec."""
        if not (self.config.reconstruct_steps or self.config.reconstruct_seconds):
            return codec
        loop = replace(
            self.loop,
            num_steps=max(1, self.config.reconstruct_steps),
            train_seconds=self.config.reconstruct_seconds,
            export=ExportConfig(),
        )
        source = replace(self.source, simulator=None)
        learner = DecoderLearner(codec, self.config, self.source.loss, None)
        training = self._prepare(learner, self.config.reconstruct_learning_rate, compile)
        return self._fit(training, source, loop, run)

    def sharpen(self, codec: FrameCodec, run: RunFolder, *, compile: bool) -> FrameCodec:
        """Train with a critic; returns the codec."""
        torch.manual_seed(self.loop.seed)  # whatever the first stage drew, and however often it was resumed
        critic = PatchCritic(codec.config.latent_channels, self.config.critic.widths)
        learner = DecoderLearner(codec, self.config, self.source.loss, critic)
        training = self._prepare(learner, self.learning_rate, compile)
        return self._fit(training, self.source, self.loop, run)

    def _prepare(self, learner: DecoderLearner, learning_rate: float, compile: bool) -> Training:
        def adam(module: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
            return torch.optim.AdamW(module.parameters(), lr=rate, betas=BETAS, weight_decay=WEIGHT_DECAY)

        optimizers = [adam(learner.codec.decoder, learning_rate)]
        if learner.critic is not None:
            optimizers.append(adam(learner.critic, self.config.critic.learning_rate))
        training = prepare(self.fabric, learner, optimizers, self.loop.ema_decay)
        if compile:
            learner.codec.decoder.compile(dynamic=False)
        return training

    def _fit(self, training: Training, source: PairSource, loop: LoopConfig, run: RunFolder) -> FrameCodec:
        """Train a stage; the codec, its measures and pictures lie in its folder then."""

        def on_checkpoint(training: Training) -> dict[str, float]:
            return self._write(training, run.path, is_last=is_done(training, loop))

        fit(
            self.fabric,
            training,
            source.batch_at,
            loop,
            run,
            frames_per_batch=2 * source.batch_size,
            on_checkpoint=on_checkpoint,
        )
        return self._codec_of(training)

    def _write(self, training: Training, folder: Path, *, is_last: bool) -> dict[str, float]:
        """Write codec, measures and pictures; returns the measures."""
        codec = self._codec_of(training)
        codecs = {"before": self.before, "after": codec}
        found = {name: measure_decoder(each, self.heldout, self.heldout_own) for name, each in codecs.items()}
        measured: dict[str, object] = {"steps": training.step, **found}
        measured["critic_weights"] = dict(zip(HALVES, self._weights(training), strict=True))
        if is_last:
            measured["decode_ms_2_threads"] = times = decode_times(codecs)
            self.fabric.print(format_measures(found["before"], found["after"], times))
        save_codec(codec, folder / "codec")
        write_json(folder / MEASURES_FILE, measured)
        write_pictures(folder / PICTURE_FILE, codecs, self.heldout, self.heldout_own)
        self.result = found["after"]
        return self.result

    def _weights(self, training: Training) -> list[float]:
        """Return what the critic's gradients are multiplied by at last, of each kind of latents."""
        learner = training.averaged()
        assert isinstance(learner, DecoderLearner)
        return learner.weights.tolist() if learner.critic is not None else [0.0, 0.0]

    def _codec_of(self, training: Training) -> FrameCodec:
        """Return the averaged decoder behind the encoder that was there before."""
        learner = training.averaged()
        assert isinstance(learner, DecoderLearner)
        codec = FrameCodec(learner.codec.config).to(self.fabric.device).eval()
        load_encoder(codec, self.before)
        codec.decoder.load_state_dict(learner.codec.decoder.state_dict())
        return codec


def format_measures(before: dict[str, float], after: dict[str, float], times: dict[str, float]) -> str:
    """Return a table of what was measured of both decoders, and the time in which each draws a frame."""
    rows = [f"{name:<20} {before[name]:>9.3f} {value:>9.3f}" for name, value in after.items()]
    rows.append(f"{'decode_ms, 2 threads':<20} {times['before']:>9.2f} {times['after']:>9.2f}")
    return "\n".join([f"{'held out':<20} {'before':>9} {'after':>9}", *rows])

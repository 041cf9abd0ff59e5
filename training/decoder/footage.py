"""Pairs of frames in a row with their latents, of the encoder and of a world's own roll-outs."""

# T frames of all episodes end to end, R roll-outs, F frames of each, C h w latent size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.data.latents import LatentVideo, encode_frames, leading_actions, load_frames, to_device
from training.decoder.learner import PairBatch, crop_size
from training.decoder.settings import DecoderConfig, OwnLatentsConfig
from training.engine.loop import seed_of
from training.objectives.codec import CodecLossConfig, sample_latent_noise
from worldsim.codec import DOWNSAMPLING, FrameCodec
from worldsim.data.episodes import read_table
from worldsim.data.sequences import EpisodeReference, SequenceIndex
from worldsim.sampler import watch
from worldsim.simulator import Simulator
from worldsim.state import WorldState

PAIR = 2
BATCHES, DRAWINGS = 0, 1
"""Purposes of random numbers."""


@dataclass(frozen=True, slots=True)
class Footage:
    """Recorded play on a device.

    Attributes:
        frames: `[T, H, W, 3]` uint8.
        video: The same as latents, with the actions.
    """

    frames: Tensor
    video: LatentVideo


@dataclass(frozen=True, slots=True)
class OwnLatents:
    """What a world drew along recorded play.

    Attributes:
        latents: `[R, F, C, h, w]` fp16; the first of each is the encoder's, of the frame watched last.
        index: `[R, F]` int64, the frames of the recording that they are to show.
    """

    latents: Tensor
    index: Tensor


def load_footage(
    references: Sequence[EpisodeReference], codec: FrameCodec, device: torch.device, num_workers: int
) -> Footage:
    """Decode episodes, scaled to the codec's frame size, and encode them on the device."""
    frames = load_frames(references, (codec.config.height, codec.config.width), num_workers)
    latents = encode_frames(codec, frames.numpy(), device)
    actions = [read_table(each.folder, each.name, each.info.actions).actions for each in references]
    leading = torch.cat([leading_actions(each) for each in actions]).to(device)
    lengths = [reference.num_frames for reference in references]
    return Footage(frames.to(device), LatentVideo(latents, leading, lengths))


@torch.no_grad()
def draw_own(simulator: Simulator, video: LatentVideo, config: OwnLatentsConfig, seed: int) -> OwnLatents:
    """Let a world watch recorded play and draw the frames that follow, with the recorded actions.

    Args:
        simulator: On the video's device. It draws in its own way, as in play.
        video: From its codec's encoder.
        config: How many, and how long.
        seed: Decides where, and the noise.

    Raises:
        WorldError: If no episode is long enough.
    """
    length = config.context_frames + config.horizon
    starts = SequenceIndex(video.lengths, length).sample(np.random.default_rng(seed), config.pieces)
    at_a_time = config.at_a_time or (128 if video.latents.is_cuda else 16)
    parts = [
        _draw_batch(simulator, video, starts[first : first + at_a_time], config, seed + first)
        for first in range(0, config.pieces, at_a_time)
    ]
    index = (starts + config.context_frames - 1)[:, None] + np.arange(config.horizon + 1)
    return OwnLatents(torch.cat(parts), to_device(index, video.latents.device))


def _draw_batch(
    simulator: Simulator, video: LatentVideo, starts: np.ndarray, config: OwnLatentsConfig, seed: int
) -> Tensor:
    """Return the latents of some roll-outs, `[R, F, C, h, w]` fp16."""
    world, seeds = simulator.world, torch.arange(len(starts)) + seed
    memory = world.initial_memory(len(starts))
    latents, actions = video.sequences(starts, config.context_frames + config.horizon)
    for number in range(config.context_frames):
        index = torch.full_like(seeds, number)
        given = latents[:, number].float(), actions[:, number], memory, seeds, index
        memory = watch(world.denoiser, *given, odometry=world.odometry)
    state = WorldState(
        memory=memory,
        frame_index=torch.zeros(len(starts), dtype=torch.int64),
        seed=seeds,
        frames=torch.empty(len(starts), 0, dtype=torch.uint8),
    )
    found = [latents[:, config.context_frames - 1]]
    for number in range(config.context_frames, config.context_frames + config.horizon):
        prediction = simulator.predict(state, actions[:, number])
        state = simulator.commit(state, prediction)
        found.append(prediction.latents.half())
    return torch.stack(found, dim=1)


@dataclass(slots=True)
class PairSource:
    """Batches that depend on the seed, the step and the pass alone, so that a resumed run repeats them.

    Attributes:
        footage: Recorded play.
        config: Of the training.
        loss: Says how noisy latents are.
        batch_size: Pairs of a pass.
        seed: Of the run.
        simulator: Of the world whose latents are learned from as well; None if there is none.
    """

    footage: Footage
    config: DecoderConfig
    loss: CodecLossConfig
    batch_size: int
    seed: int
    simulator: Simulator | None = None
    _own: OwnLatents | None = None
    _own_number: int = -1
    _index: SequenceIndex = field(init=False)

    def __post_init__(self) -> None:
        self._index = SequenceIndex(self.footage.video.lengths, PAIR)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.footage.video.latents.shape[1:]
        return channels, height, width

    @property
    def num_own(self) -> int:
        """Pairs of a pass whose latents are a world's own."""
        if self.simulator is None:
            return 0
        return min(self.batch_size - 1, round(self.config.own.share * self.batch_size))

    def batch_at(self, step: int, number: int) -> PairBatch:
        """Return the batch of a pass of an update."""
        seed = seed_of(self.seed, step, number, BATCHES)
        rng, device = np.random.default_rng(seed), self.footage.frames.device
        generator = torch.Generator(device).manual_seed(seed)
        begins = self._index.sample(rng, self.batch_size - self.num_own)
        index = to_device(begins[:, None] + np.arange(PAIR), device)  # [E, 2]
        latents = self.footage.video.latents[index].float()
        noise = sample_latent_noise(index.numel(), self._latent_shape, self.loss, generator)
        latents = latents + noise.view_as(latents)
        if self.num_own:
            own, own_index = self._own_pairs(step, rng)
            latents, index = torch.cat([latents, own]), torch.cat([index, own_index])
        return PairBatch(latents, self.footage.frames[index], self.num_own, self._place(rng), step, generator)

    def _own_pairs(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return latents `[O, 2, C, h, w]` of a world and the numbers `[O, 2]` of their frames."""
        assert self.simulator is not None, "asked for where there is a world"
        if self._own is None or self._own_number != step // self.config.own.every:
            self._own_number = step // self.config.own.every
            seed = seed_of(self.seed, self._own_number, DRAWINGS) % 2**31
            self._own = draw_own(self.simulator, self.footage.video, self.config.own, seed)
        rows = rng.integers(len(self._own.index), size=self.num_own)
        first = rng.integers(self.config.own.horizon, size=self.num_own)
        device = self._own.index.device
        at = to_device(rows, device)[:, None], to_device(first[:, None] + np.arange(PAIR), device)
        return self._own.latents[at].float(), self._own.index[at]

    def _place(self, rng: np.random.Generator) -> tuple[int, int]:
        frames = self.footage.frames[:1].movedim(-1, 1)
        size = crop_size(self.config.critic.crop, frames)
        room = [side // DOWNSAMPLING - crop + 1 for side, crop in zip(frames.shape[2:], size, strict=True)]
        top, left = rng.integers(room)
        return int(top), int(left)

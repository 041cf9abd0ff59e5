"""Gameplay video in memory: as frames for the codec, as latents for the world model."""

# T frames of all episodes end to end, C h w latent size, A action axes

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from worldsim.actions import ActionLayout
from worldsim.codec import FrameCodec
from worldsim.data.sequences import EpisodeReference, SequenceIndex, load_episodes, read_episodes
from worldsim.errors import WorldError
from worldsim.weights import write_tensors

ENCODE_BATCH = 256


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which gameplay video.

    Attributes:
        train: Folders to learn from.
        heldout: Folders to measure on.
        max_frames: Use at most this many frames of `train`, whole episodes, in order; 0 is all.
        num_workers: Decoding threads; 0 is one per core.
        cache_latents: Keep the encoded video beside the run, so that a resumed run need not encode it again.
    """

    train: list[str]
    heldout: list[str]
    max_frames: int = 0
    num_workers: int = 0
    cache_latents: bool = True


def choose_episodes(
    folders: Sequence[str], max_frames: int, expected_actions: ActionLayout | None = None
) -> list[EpisodeReference]:
    """List episodes of some folders up to a number of frames; see `load_episodes` for what is checked."""
    chosen, total = [], 0
    for reference in load_episodes(folders, expected_actions):
        if max_frames and total >= max_frames:
            break
        chosen.append(reference)
        total += reference.num_frames
    return chosen


def load_frames(references: Sequence[EpisodeReference], size: tuple[int, int], num_workers: int) -> Tensor:
    """Decode episodes into one `[T, H, W, 3]` uint8 tensor on the CPU, scaled to `size` (height, width)."""
    total = sum(reference.num_frames for reference in references)
    frames = torch.empty(total, *size, 3, dtype=torch.uint8)
    position = 0
    for episode in read_episodes(references, num_workers=num_workers, size=size, show_progress=True):
        frames[position : position + len(episode)] = torch.from_numpy(episode.frames)
        position += len(episode)
    return frames


@dataclass(slots=True)
class LatentVideo:
    """Encoded episodes end to end.

    Attributes:
        latents: `[T, C, h, w]` fp16.
        leading: `[T, A]` int64, the action that leads to each frame; none for the first of an episode.
        lengths: Frames of each episode.
    """

    latents: Tensor
    leading: Tensor
    lengths: list[int]

    def to(self, device: torch.device) -> LatentVideo:
        """Return the same video on a device."""
        return LatentVideo(self.latents.to(device), self.leading.to(device), self.lengths)

    def sequences(self, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Return latents `[B, length, C, h, w]` and actions `[B, length, A]` from frames `starts` [B] on."""
        device = self.latents.device
        index = torch.from_numpy(starts).to(device)[:, None] + torch.arange(length, device=device)
        return self.latents[index], self.leading[index]


def leading_actions(actions: np.ndarray) -> Tensor:
    """Shift recorded actions `[T, A]` by one frame: action i leads to frame i + 1."""
    return torch.from_numpy(np.concatenate([np.zeros_like(actions[:1]), actions[:-1]]))


@torch.no_grad()
def encode_episodes(
    codec: FrameCodec, references: Sequence[EpisodeReference], device: torch.device, num_workers: int
) -> LatentVideo:
    """Decode and encode episodes; the latents stay on `device`."""
    half = torch.float32 if device.type == "cpu" else torch.bfloat16
    total = sum(reference.num_frames for reference in references)
    latents = torch.empty(total, *codec.latent_shape, dtype=torch.float16, device=device)
    leading, position = [], 0
    size = (codec.config.height, codec.config.width)
    for episode in read_episodes(references, num_workers=num_workers, size=size, show_progress=True):
        for frames in torch.from_numpy(episode.frames).split(ENCODE_BATCH):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half is torch.bfloat16):
                latents[position : position + len(frames)] = codec.encode(frames.to(device)).half()
            position += len(frames)
        leading.append(leading_actions(episode.actions))
    return LatentVideo(latents, torch.cat(leading).to(device), [r.num_frames for r in references])


def digest_of(codec: FrameCodec | None, references: Sequence[EpisodeReference]) -> str:
    """Return a digest of a codec's weights, if given, and of which episodes there are."""
    digest = hashlib.sha256()
    for tensor in codec.state_dict().values() if codec else ():
        digest.update(tensor.cpu().float().numpy().tobytes())
    for reference in references:
        video = reference.folder / f"{reference.name}.mp4"
        digest.update(f"{reference.name} {reference.num_frames} {video.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def latent_video(
    codec: FrameCodec,
    references: Sequence[EpisodeReference],
    device: torch.device,
    *,
    num_workers: int = 0,
    cache: Path | None = None,
) -> LatentVideo:
    """Encode episodes, or read them from the cache if they were encoded by the same codec before.

    The codec is moved to `device` in either case.
    """
    codec.to(device).eval()
    if cache is None:
        return encode_episodes(codec, references, device, num_workers)
    path = cache / f"latents-{digest_of(codec, references)}.safetensors"
    if path.is_file():
        tensors = load_file(path)
        lengths = [reference.num_frames for reference in references]
        return LatentVideo(tensors["latents"], tensors["leading"], lengths).to(device)
    video = encode_episodes(codec, references, device, num_workers)
    cache.mkdir(parents=True, exist_ok=True)
    write_tensors({"latents": video.latents, "leading": video.leading}, path)
    return video


def fixed_starts(lengths: Sequence[int], sequence_length: int, count: int) -> np.ndarray:
    """Return `count` start frames spread evenly over all places where a sequence fits."""
    index = SequenceIndex(lengths, sequence_length)
    if count < 1:
        raise WorldError(f"at least one sequence is needed, got {count}")
    return index.start(np.linspace(0, len(index) - 1, count).astype(np.int64))

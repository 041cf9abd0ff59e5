"""Gameplay video in memory: as frames for the codec, as latents for the world model."""

# T frames of all episodes end to end, C h w latent size, A action axes

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from training.data.latent_cache import LatentCache, video_digest
from training.data.tables import NO_OUTCOMES, NO_POSES, load_tables
from training.data.video_codec import VideoCodec
from worldsim.actions import ActionLayout
from worldsim.codec import FrameCodec
from worldsim.data.sequences import EpisodeReference, SequenceIndex, load_episodes, read_episodes
from worldsim.errors import WorldError
from worldsim.model.memory.pose import moved_poses
from worldsim.runtime.cores import check_workers
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.storage.tensors import sha256_of

ENCODE_BATCH = 256
EpisodeCodec = FrameCodec | VideoCodec


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which gameplay video."""

    train: list[str] = setting(REQUIRED, "Folders to learn from.")
    heldout: list[str] = setting(REQUIRED, "Folders to measure on.")
    max_frames: int = setting(0, "Frames of train to use, whole episodes in order; 0 is all.", minimum=0)
    num_workers: int = setting(0, "Decoding processes; 0 is one per core that may be used.")
    cache_latents: bool = setting(True, "Keep the encoded video for other commands with the same codec.")
    cache_folder: str = setting(
        "", "Where to keep it; '' is a folder `latents` beside the video. What lies there may be deleted."
    )

    def __post_init__(self) -> None:
        check_settings(self, "data.")
        check_workers(self.num_workers, "data.num_workers")


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


class OutcomeTargets(NamedTuple):
    """What the outcome heads are to say of sequences.

    Attributes:
        rewards: `[B, F]` float32, in the game's units.
        ends: `[B, F]` bool, with which frames the game ended.
        is_real: `[B, F]` bool; False where an episode was over and its last frame is repeated.
    """

    rewards: Tensor
    ends: Tensor
    is_real: Tensor


@dataclass(slots=True)
class LatentVideo:
    """Encoded episodes end to end.

    Attributes:
        latents: `[T, C, h, w]` fp16.
        leading: `[T, A]` int64, the action that leads to each frame; none for the first of an episode.
        lengths: Frames of each episode.
        rewards: `[T]` float32, given on the way to each frame; None if one of the episodes records none.
        ends: `[T]` bool, whether the game ended with each frame; None if one of the episodes does not say.
        poses: `[T, 3]` float32, x and y in map units and the heading in degrees; None if one of the episodes
            records none.
    """

    latents: Tensor
    leading: Tensor
    lengths: list[int]
    rewards: Tensor | None = None
    ends: Tensor | None = None
    poses: Tensor | None = None

    def to(self, device: torch.device) -> LatentVideo:
        """Return the same video on a device."""
        told = (None if t is None else t.to(device) for t in (self.rewards, self.ends, self.poses))
        return LatentVideo(self.latents.to(device), self.leading.to(device), self.lengths, *told)

    def split(self, counts: Sequence[int]) -> list[LatentVideo]:
        """Return the first `counts[0]` episodes, the next `counts[1]` and so on, without copies."""
        parts, first, begin = [], 0, 0
        for count in counts:
            lengths = self.lengths[first : first + count]
            place = slice(begin, begin + sum(lengths))
            told = (None if t is None else t[place] for t in (self.rewards, self.ends, self.poses))
            parts.append(LatentVideo(self.latents[place], self.leading[place], lengths, *told))
            first, begin = first + count, place.stop
        return parts

    def sequences(self, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Return latents `[B, length, C, h, w]` and actions `[B, length, A]` from frames `starts` [B] on."""
        index, _ = self._places(starts, length, 0)
        return self.latents[index], self.leading[index]

    def sequences_with_outcomes(
        self, starts: np.ndarray, length: int, skipped: np.ndarray
    ) -> tuple[Tensor, Tensor, OutcomeTargets]:
        """Return pieces of sequences, which may run past the end of their episode: it then stands still.

        Args:
            starts: `[B]`, where each sequence begins.
            length: Frames of a piece.
            skipped: `[B]`, frames of each sequence before its piece.

        Returns:
            Latents and actions as from `sequences`, and what is to be said of the frames.

        Raises:
            WorldError: If rewards or ends were not recorded.
        """
        rewards, ends = self.outcomes()
        index, is_real = self._places(starts, length, skipped)
        targets = OutcomeTargets(rewards[index], ends[index] & is_real, is_real)
        return self.latents[index], self.leading[index], targets

    def pose_sequences(
        self,
        starts: np.ndarray,
        length: int,
        skipped: np.ndarray | int = 0,
        turns: np.ndarray | None = None,
        *,
        on_map: bool,
    ) -> Tensor:
        """Return the poses `[B, length, 3]` of pieces of sequences, by default from where each begins.

        Args:
            starts: As in `sequences_with_outcomes`, and so are `length` and `skipped`.
            turns: `[B]` in degrees, the heading's turn of each sequence; None lets it begin with heading 0.
            on_map: Whether they are poses on the level's map instead, as recorded (`level_map`).

        Raises:
            WorldError: If poses were not recorded.
        """
        if self.poses is None:
            raise WorldError(NO_POSES.format("an episode"))
        index, _ = self._places(starts, length, skipped)
        if on_map:
            return self.poses[index]
        origin = self.poses[to_device(starts, self.poses.device)][:, None]  # [B, 1, 3]
        turn = -origin[..., 2] if turns is None else to_device(turns, origin.device)[:, None]
        return moved_poses(self.poses[index], origin, turn.float())

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """Return rewards and ends.

        Raises:
            WorldError: If they were not recorded.
        """
        if self.rewards is None or self.ends is None:
            raise WorldError(NO_OUTCOMES.format("an episode"))
        return self.rewards, self.ends

    def ended_episodes(self) -> np.ndarray:
        """Return which episodes ended with their last frame, `[E]` bool, instead of being cut off."""
        _, ends = self.outcomes()
        return ends[torch.tensor(self.lengths).cumsum(0) - 1].cpu().numpy()

    def _places(self, starts: np.ndarray, length: int, skipped: np.ndarray | int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the frames, `[B, length]`, and which of them are not past their episode."""
        ends = np.cumsum(self.lengths)
        last = ends[np.searchsorted(ends, starts, side="right")] - 1
        wanted = (starts + skipped)[:, None] + np.arange(length)
        device, last = self.latents.device, last[:, None]
        return to_device(np.minimum(wanted, last), device), to_device(wanted <= last, device)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; a GPU is not waited for, so that it never runs dry."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def leading_actions(actions: np.ndarray) -> Tensor:
    """Shift recorded actions `[T, A]` by one frame: action i leads to frame i + 1."""
    return torch.from_numpy(np.concatenate([np.zeros_like(actions[:1]), actions[:-1]]))


@torch.no_grad()
def encode_frames(codec: EpisodeCodec, frames: np.ndarray, device: torch.device) -> Tensor:
    """Return the latents `[F, C, h, w]` fp16 of an episode's frames `[T, H, W, 3]`, on the codec's device."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision_on(device) is torch.bfloat16):
        if isinstance(codec, VideoCodec):
            return codec.encode_video(frames, device)
        chunks = torch.from_numpy(frames).split(ENCODE_BATCH)
        return torch.cat([codec.encode(chunk.to(device)).half() for chunk in chunks])


def num_latents(codec: EpisodeCodec, reference: EpisodeReference) -> int:
    """Return how many latent frames an episode becomes: one for each frame, or fewer of a video codec."""
    frames = reference.num_frames
    return codec.num_latents(frames) if isinstance(codec, VideoCodec) else frames


def precision_on(device: torch.device) -> torch.dtype:
    """Return in which number format a codec encodes there."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def encode_episodes(
    codec: EpisodeCodec,
    references: Sequence[EpisodeReference],
    device: torch.device,
    num_workers: int,
    cache: LatentCache | None,
) -> Tensor:
    """Return the latents of all episodes end to end, `[F, C, h, w]` fp16 on `device`.

    Those in the cache are read, the others decoded, encoded, and kept there, the same video once. What other
    processes encode at the same time, of this run or of others, is waited for.
    """
    counts = [num_latents(codec, reference) for reference in references]
    latents = torch.empty(sum(counts), *codec.latent_shape, dtype=torch.float16, device=device)
    missing: list[tuple[EpisodeReference, slice]] = []
    repeated: list[tuple[slice, slice]] = []
    first: dict[Path, slice] = {}
    position = 0
    for reference, count in zip(references, counts, strict=True):
        place = slice(position, position := position + count)
        known = cache.load(reference) if cache is not None else None
        if known is not None:
            latents[place] = known.to(device)
        elif cache is not None and cache.path(reference) in first:  # to wait for itself would be for ever
            repeated.append((place, first[cache.path(reference)]))
        else:
            missing.append((reference, place))
            if cache is not None:
                first[cache.path(reference)] = place
    if missing and cache is not None:
        cache.check_writable([reference for reference, _ in missing])
    while missing:
        missing = _encode_missing(codec, missing, latents, num_workers, cache)
        if missing and cache is not None:
            cache.release(cache.claim(missing[0][0], wait=True))
    for place, same in repeated:
        latents[place] = latents[same]
    return latents


def _encode_missing(
    codec: EpisodeCodec,
    missing: Sequence[tuple[EpisodeReference, slice]],
    latents: Tensor,
    num_workers: int,
    cache: LatentCache | None,
) -> list[tuple[EpisodeReference, slice]]:
    """Encode episodes to their places in `latents`; return those that other processes are encoding."""
    left: list[tuple[EpisodeReference, slice]] = []
    claimed: deque[tuple[EpisodeReference, slice, FileLock | None]] = deque()
    asked = iter(missing)

    def claim(reference: EpisodeReference) -> bool:
        place = next(asked)[1]
        lock = cache.claim(reference) if cache is not None else None
        if cache is not None and lock is None:
            left.append((reference, place))
            return False
        known = cache.load(reference) if cache is not None else None
        if cache is not None and known is not None:  # another process was done with it in the meantime
            latents[place] = known.to(latents.device)
            cache.release(lock)
            return False
        claimed.append((reference, place, lock))
        return True

    def keep(reference: EpisodeReference, place: slice, lock: FileLock | None) -> None:
        if cache is not None:
            try:
                cache.save(reference, latents[place])
            finally:
                cache.release(lock)

    size = (codec.config.height, codec.config.width)
    chosen = [reference for reference, _ in missing]
    with ThreadPoolExecutor(1) as writer:  # the device does not wait for the disk
        try:
            written: Future[None] | None = None
            for episode in read_episodes(
                chosen, num_workers=num_workers, size=size, show_progress=True, claim=claim
            ):
                latents[claimed[0][1]] = encode_frames(codec, episode.frames, latents.device)
                if written is not None:
                    written.result()
                written = writer.submit(keep, *claimed.popleft())
            if written is not None:
                written.result()
        finally:
            for _, _, lock in claimed:
                if cache is not None:
                    cache.release(lock)
    return left


def _joined(parts: Sequence[np.ndarray | None]) -> Tensor | None:
    found = [torch.from_numpy(part) for part in parts if part is not None]
    return torch.cat(found) if len(found) == len(parts) else None


def digest_of(codec: EpisodeCodec | None, references: Sequence[EpisodeReference]) -> str:
    """Return a digest of a codec's weights, if given, and of all that episodes hold."""
    digest = hashlib.sha256()
    for tensor in codec.state_dict().values() if codec else ():
        digest.update(tensor.cpu().float().numpy().tobytes())
    for reference in references:
        table = reference.folder / f"{reference.name}.jsonl"
        actions, rate = reference.info.actions, reference.info.frame_rate
        told = [reference.name, reference.num_frames, rate, actions.buttons, actions.num_values]
        digest.update(repr([*told, sha256_of(table), video_digest(reference)]).encode())
    return digest.hexdigest()[:16]


def latent_video(
    codec: EpisodeCodec,
    references: Sequence[EpisodeReference],
    device: torch.device,
    *,
    num_workers: int = 0,
    cache: LatentCache | None = None,
) -> LatentVideo:
    """Encode episodes, or read those that the same codec encoded before, and what happens in them.

    The codec is moved to `device` in either case. Of a video codec all is by latent frames, and of what
    happens there are the actions alone.
    """
    codec.to(device).eval()
    latents = encode_episodes(codec, references, device, num_workers, cache)
    tables = load_tables(references)
    leading = [leading_actions(table.actions) for table in tables]
    lengths = [num_latents(codec, reference) for reference in references]
    if isinstance(codec, VideoCodec):
        return LatentVideo(latents, torch.cat([codec.leading(each) for each in leading]), lengths).to(device)
    return LatentVideo(
        latents,
        torch.cat(leading),
        lengths,
        _joined([table.rewards for table in tables]),
        _joined([table.terminated for table in tables]),
        _joined([table.poses for table in tables]),
    ).to(device)


def fixed_starts(lengths: Sequence[int], sequence_length: int, count: int) -> np.ndarray:
    """Return `count` start frames spread evenly over all places where a sequence fits."""
    index = SequenceIndex(lengths, sequence_length)
    if count < 1:
        raise WorldError(f"at least one sequence is needed, got {count}")
    return index.start(np.linspace(0, len(index) - 1, count).astype(np.int64))

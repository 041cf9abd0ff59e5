"""Cache of encoded episodes on disk, one file each, shared by all commands with the same video and codec."""

# T frames of an episode, C h w latent size

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.data.video_codec import VideoCodec
from worldsim.codec import FrameCodec
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError
from worldsim.storage.files import writing
from worldsim.storage.tensors import sha256_of, write_tensors

CACHE_FOLDER = "latents"
NAME = "latents"
LOCK_SUFFIX = ".lock"


def video_digest(reference: EpisodeReference) -> str:
    """Return the SHA-256 of an episode's video; each is read once for it, unless it changes."""
    path = reference.folder / f"{reference.name}.mp4"
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


class LatentCache:
    """Where the latents of episodes are kept, by what decides them: the codec, and the video itself.

    A file appears whole or not at all, and an episode is written as soon as it is encoded: an encoding that
    was killed goes on where it was. Commands and devices that want the same video at once share the work:
    each encodes the episodes that it locked first.

    Args:
        codec: Its weights and shape are part of the place.
        precision: In which it computes.
        folder: Where to; None is `latents` beside each video.
    """

    def __init__(
        self, codec: FrameCodec | VideoCodec, precision: torch.dtype, folder: Path | None = None
    ) -> None:
        self.folder = folder
        self.latent_shape = tuple(codec.latent_shape)
        self._num_latents = codec.num_latents if isinstance(codec, VideoCodec) else int
        digest = hashlib.sha256(f"{json.dumps(asdict(codec.config))} {precision}".encode())
        for tensor in codec.state_dict().values():
            digest.update(tensor.cpu().float().numpy().tobytes())
        self.key = digest.hexdigest()[:16]

    def path(self, reference: EpisodeReference) -> Path:
        """Return the file of an episode, whether it is there or not."""
        folder = self.folder or reference.folder / CACHE_FOLDER
        return folder / self.key / f"{video_digest(reference)[:16]}.safetensors"

    def load(self, reference: EpisodeReference) -> Tensor | None:
        """Return an episode's latents `[T, C, h, w]` fp16 on the CPU; None if none are whole there."""
        path = self.path(reference)
        if not path.is_file():
            return None
        try:
            latents = load_file(path)[NAME]
        except (SafetensorError, KeyError):  # a disk's or a copy's doing: it is encoded anew
            return None
        is_whole = latents.shape == (self._num_latents(reference.num_frames), *self.latent_shape)
        return latents if is_whole and latents.dtype == torch.float16 else None

    def claim(self, reference: EpisodeReference, *, wait: bool = False) -> FileLock | None:
        """Return the lock of an episode that this process may now encode; `release` gives it back.

        Args:
            reference: The episode.
            wait: Until the process that has it is done, or gone.

        Returns:
            None if another process has it.

        Raises:
            OSError: If it cannot be written there.
        """
        path = self.path(reference)
        lock = FileLock(path.with_suffix(LOCK_SUFFIX), timeout=-1 if wait else 0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def release(self, lock: FileLock | None) -> None:
        """Give the lock of an episode back; its file goes."""
        if lock is None:
            return
        with suppress(OSError):  # while it is held: who comes now makes another; Windows keeps it
            Path(lock.lock_file).unlink()
        lock.release()

    def save(self, reference: EpisodeReference, latents: Tensor) -> None:
        """Keep an episode's latents.

        Raises:
            OSError: If they cannot be written.
        """
        path = self.path(reference)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as part:
            write_tensors({NAME: latents}, part)

    def check_writable(self, references: Sequence[EpisodeReference]) -> None:
        """Find out before an hour of encoding whether these episodes could be kept.

        Raises:
            WorldError: If a folder cannot be written to.
        """
        for folder in {self.path(reference).parent for reference in references}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                reason = "" if os.access(folder, os.W_OK) else "Permission denied"
            if reason:
                raise WorldError(
                    f"encoded video cannot be kept in {folder} ({reason}): give data.cache_folder= another "
                    "folder, or data.cache_latents=false"
                )

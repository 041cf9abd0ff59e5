"""Record what is played as gameplay video that a world can learn from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import numpy as np

from worldsim.data.dataset_info import INFO_FILE, DatasetInfo
from worldsim.data.episodes import EpisodeWriter
from worldsim.errors import WorldError
from worldsim.play.replay import STATE_SUFFIX, Opening, frame_digest
from worldsim.runtime.interrupt import defer_interrupt
from worldsim.storage.files import file_name
from worldsim.world import WorldConfig

SUFFIX = ".mp4"
MIN_FREE_BYTES = 8 * 2**20
FRAMES_BETWEEN_CHECKS = 32


class Recording(AbstractContextManager["Recording"]):
    """Write FILE.mp4 beside FILE.jsonl; after a reset go on in FILE-2, FILE-3: an episode has no jumps.

    Use as a context manager: however it is left, what was played so far becomes a valid episode. A file
    appears under its name only when it is whole.

    Args:
        path: The first video, ending in `.mp4`.
        played: What is played: a world, or the description of the dataset that a real game's episodes make.

    Raises:
        WorldError: If nothing can be written there, or the folder holds gameplay of another form.
    """

    def __init__(self, path: Path, played: WorldConfig | DatasetInfo) -> None:
        if path.suffix != SUFFIX:
            raise WorldError(f"a recording is a file that ends in {SUFFIX}, got {str(path)!r}")
        self.path = path
        self.paths: list[Path] = []
        self._part = 0  # number of the file that is written, or was written last
        self._folder_is_ours = not path.parent.exists()
        self._info_is_ours = not (path.parent / INFO_FILE).exists()
        self._is_exact = False  # whether this episode can be replayed to the same bytes
        self._info = played if isinstance(played, DatasetInfo) else _dreamt(played)
        with self._os_errors():
            # Opened at once: a folder that cannot be written to is found before play, not after it.
            self._writer: EpisodeWriter | None = self._open()
            self._check_space()

    def add(
        self,
        frame: np.ndarray,
        action: np.ndarray,
        *,
        reward: float | None = None,
        terminated: bool | None = None,
        player: str | None = None,
        opening: Opening | None = None,
    ) -> None:
        """Append a frame `[H, W, 3]` uint8, the action `[A]` that led on from it, and what it had brought.

        Args:
            opening: With an episode's first frame, where it begins, so that it can be replayed.

        Raises:
            WorldError: If it cannot be written.
        """
        with self._os_errors():
            self._writer = self._writer or self._open()
            if self._writer.num_frames % FRAMES_BETWEEN_CHECKS == FRAMES_BETWEEN_CHECKS - 1:
                self._end_before_the_disk_is_full(frame, reward, terminated)
            if self._writer.num_frames == 0 and opening is not None:
                opening.save(self._opening_path())
                self._is_exact = True
            digest = frame_digest(frame) if self._is_exact else None
            self._writer.add(
                frame, action, reward=reward, terminated=terminated, player=player, sha256=digest
            )

    def end_episode(
        self,
        last_frame: np.ndarray | None,
        *,
        reward: float | None = None,
        terminated: bool | None = None,
    ) -> None:
        """Finish the file; the next frame added begins another one. Without frames there is none.

        Args:
            last_frame: `[H, W, 3]` uint8, from which no action led on; None if the frame added last was it.
        """
        if self._writer is None or self._writer.num_frames == 0:
            return
        writer, path, opening = self._writer, self._part_path(), self._opening_path()
        digest = frame_digest(last_frame) if self._is_exact and last_frame is not None else None
        with defer_interrupt():  # a file that is there is one that we know of
            self._writer, self._is_exact = None, False
            try:
                with writer:  # finishes the file, or removes it if even that is not possible
                    if last_frame is not None:
                        writer.add(last_frame, None, reward=reward, terminated=terminated, sha256=digest)
            except OSError as error:
                opening.unlink(missing_ok=True)
                raise WorldError(f"cannot record to {path}: {error.strerror or error}") from error
            self.paths.append(path)

    def _end_before_the_disk_is_full(
        self, frame: np.ndarray, reward: float | None, terminated: bool | None
    ) -> None:
        """Finish the file while there is room to do so: of one that cannot be finished nothing is left."""
        if shutil.disk_usage(self.path.parent).free < MIN_FREE_BYTES:
            path = self._part_path()
            self.end_episode(frame, reward=reward, terminated=terminated)
            raise WorldError(f"the disk is almost full: the recording has ended, {path} is complete")

    def close(self) -> None:
        """Finish the file with the frames it has."""
        with defer_interrupt():
            try:
                self.end_episode(None)
                if self._writer is not None:
                    self._writer.close()  # nothing was played: it leaves nothing
                    self._writer = None
            finally:
                self._leave_no_empty_folder()

    def _leave_no_empty_folder(self) -> None:
        if self._info_is_ours and not self.paths:
            (self.path.parent / INFO_FILE).unlink(missing_ok=True)
            if self._folder_is_ours:
                with suppress(OSError):  # somebody else has put something there
                    self.path.parent.rmdir()

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Say which file cannot be written."""
        try:
            yield
        except OSError as error:
            raise WorldError(f"cannot record to {self._part_path()}: {error.strerror or error}") from error

    def _part_path(self) -> Path:
        return self.path if self._part == 1 else self.path.with_name(f"{self.path.stem}-{self._part}{SUFFIX}")

    def _opening_path(self) -> Path:
        return self._part_path().with_suffix(STATE_SUFFIX)

    def _open(self) -> EpisodeWriter:
        self._part += 1
        while _is_taken(path := self._part_path()):
            if self._part == 1:
                raise WorldError(f"{path} is there already, and no recording is written over: name another")
            self._part += 1
        return EpisodeWriter(path.parent, path.stem, self._info, keep_on_error=True)

    def _check_space(self) -> None:
        if shutil.disk_usage(self.path.parent).free < MIN_FREE_BYTES:
            self.close()
            raise WorldError(f"cannot record to {self.path}: the disk is full")


def free_recording(folder: Path, played: WorldConfig | DatasetInfo, stem: str = "play") -> Path:
    """Return where to record what nobody named a file for: `STEM-0001.mp4`, or the next number that is free.

    A folder of gameplay video has one world's size and buttons, in its `dataset.json`. Where the folder holds
    video of something else, it is a folder in there, named after what is played.

    Raises:
        WorldError: If the folder's description cannot be read.
    """
    ours = played if isinstance(played, DatasetInfo) else _dreamt(played)
    named, number = file_name(re.sub(r"[^\w-]", "-", played.name)), 1
    target = folder
    while (target / INFO_FILE).is_file():
        found = DatasetInfo.load(target)
        if (found.name, found.shape_and_buttons) == (ours.name, ours.shape_and_buttons):
            break
        target = folder / (named if number == 1 else f"{named}-{number}")
        number += 1
    return free_path(target, stem, SUFFIX)


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """Return a numbered path that nothing has yet, nor `Recording`'s later parts of it."""
    number = 1
    while any(folder.glob(f"{stem}-{number:04d}*")):
        number += 1
    return folder / f"{stem}-{number:04d}{suffix}"


def _is_taken(path: Path) -> bool:
    if path.is_dir():
        raise WorldError(f"cannot record to {path}: it is a folder")
    return path.exists() or path.with_suffix(".jsonl").exists()


def _dreamt(world: WorldConfig) -> DatasetInfo:
    return world.dataset(f"{world.name}-played", f"dreamt by the world {world.name}")

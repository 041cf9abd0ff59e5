"""Gameplay video of a person: folders `train` and `heldout`, as `training.collect` writes them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from worldsim.data.dataset_info import INFO_FILE, DatasetInfo
from worldsim.errors import WorldError
from worldsim.play.recording import SUFFIX, Recording
from worldsim.storage.files import without_litter

HELDOUT_EVERY, FIRST_HELDOUT = 10, 1
"""One of so many episodes is held out, the second one first."""
SPLITS = ("train", "heldout")
NUMBER = re.compile(r"\d+$")


class PlayedDataset:
    """Where the episodes of a person go; those that are there already stay, and are added to.

    Args:
        folder: Of `train` and `heldout`; made when first needed.
        info: Of both.

    Attributes:
        recorded: Episodes of each split since the beginning.
        num_frames: Their frames.

    Raises:
        WorldError: If there is something else, or it is named like a video.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder, self._info = folder, info
        if folder.suffix == SUFFIX:
            raise WorldError(f"record= of env is a folder for its episodes, got the file {folder}")
        names = []
        for split in SPLITS:
            found = [path.stem for path in without_litter((folder / split).glob("*.jsonl"))]
            if found and DatasetInfo.load(folder / split) != info:
                raise WorldError(
                    f"{folder / split} was recorded with other settings "
                    f"({DatasetInfo.load(folder / split).source}; now: {info.source}); give another record"
                )
            names += found
        if (folder / INFO_FILE).exists():
            raise WorldError(f"{folder} holds episodes itself, not in train and heldout; give another record")
        numbers = [int(found[0]) for name in names if (found := NUMBER.search(name))]
        self._next = 1 + max(numbers, default=-1)
        self.recorded: Counter[str] = Counter()
        self.num_frames = 0

    @property
    def number(self) -> int:
        """Number of the next episode, from 0."""
        return self._next

    @property
    def split(self) -> str:
        """Where it goes."""
        return SPLITS[self._next % HELDOUT_EVERY == FIRST_HELDOUT]

    def open(self) -> Recording:
        """Begin the recording of the next episode.

        Raises:
            WorldError: If nothing can be written there.
        """
        folder = self.folder / self.split
        if folder.is_dir() and not without_litter(folder.glob("*.jsonl")):
            self._info.save(folder)  # in place of another's, who recorded nothing
        return Recording(folder / f"episode-{self._next:06d}{SUFFIX}", self._info)

    def note(self, num_frames: int) -> None:
        """Count the episode that was recorded, of so many frames."""
        self.recorded[self.split] += 1
        self.num_frames += num_frames
        self._next += 1

    def summary(self) -> list[str]:
        """Return in words what was recorded, and what can be done with it."""
        if not self.recorded:
            return ["nothing was recorded"]
        train, heldout = (self.recorded[split] for split in SPLITS)
        counted = f"recorded {train} episodes to learn from and {heldout} held out"
        lines = [f"{counted}, {self.num_frames} frames: {self.folder}"]
        if all(without_litter((self.folder / split).glob("*.jsonl")) for split in SPLITS):
            return [*lines, f"learn from it: python -m training.learn data={self.folder}"]
        return [*lines, "play another episode before a world learns from it: the second one is held out"]

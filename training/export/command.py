"""Export of gameplay video: `python -m training.export data=data/my-game/train out=exported format=lerobot`.

Writes a dataset of Minari (HDF5), which offline reinforcement learning reads, or a LeRobotDataset 3.0, whose
videos are copies of ours.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.export import lerobot, minari
from worldsim.data.dataset_info import PART_SUFFIX
from worldsim.data.sequences import load_episodes
from worldsim.errors import WorldError
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.storage.files import sync, sync_tree, user_path

WRITERS = {"minari": minari.write, "lerobot": lerobot.write}


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """What to export, and how."""

    data: str = setting(REQUIRED, "Folder of gameplay video.")
    out: str = setting(REQUIRED, "Folder of the other format; new.")
    format: str = setting("lerobot", "Of it.", choices=tuple(WRITERS))
    name: str = setting("", "Of the dataset there, NAMESPACE/NAME; '' is that of the recordings.")
    lossless: bool = setting(
        False,
        "Of Minari: whether pictures are stored as they are, of about ten times the size, and not as JPEG.",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.lossless and self.format != "minari":
            raise WorldError("lossless is of format=minari: LeRobot's videos are copies of the recordings'")


@entry("export", ExportConfig)
def main(config: ExportConfig) -> None:
    """Write the episodes of a folder in another format, completely or not at all."""
    folder, out = user_path(config.data), user_path(config.out)
    references = load_episodes([folder])
    name = config.name or references[0].info.name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WorldError(f"{out} is there already: give another out, or remove it")
    stage = out.with_name(out.name + PART_SUFFIX)
    with locked_folder(out, is_new=True):
        shutil.rmtree(stage, ignore_errors=True)  # of a process that was killed
        try:
            stage.mkdir(parents=True)
            WRITERS[config.format](references, stage, name, lossless=config.lossless)
            sync_tree(stage)
            stage.replace(out)
            sync(out.parent)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    frames = sum(reference.num_frames for reference in references)
    print(f"{out}: {len(references)} episodes, {frames} frames")

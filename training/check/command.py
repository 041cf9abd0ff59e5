"""Check of gameplay video: `python -m training.check data=data/my-game`.

Says what is wrong with recordings, so that a training would fail or be misled, and what is unusual; writes a
page with pictures, `check.html`, and the numbers, `check.json`. The exit status is 1 if something is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.check.findings import Finding, find_all
from training.check.measures import Explained, Measured, measure
from training.cli.entry import entry
from worldsim.actions import ActionLayout
from worldsim.data.dataset_info import INFO_FILE
from worldsim.data.episodes import DatasetInfo, count_episode_frames, list_episodes
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError
from worldsim.evaluation.report.recordings import write_recordings_page
from worldsim.runtime.child import leave_the_terminal
from worldsim.runtime.cores import check_workers, worker_count
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.storage.files import user_path, write_json

SPLITS = ("train", "heldout")
MAX_PRINTED = 40
NUM_SAMPLES = 4
"""Episodes of each folder that the page shows."""


@dataclass(kw_only=True, slots=True)
class CheckConfig:
    """What to check."""

    data: str = setting(
        REQUIRED, "Folder of gameplay video, or one that holds such folders train and heldout."
    )
    out: str = setting("runs/check", "Folder of the page check.html and of check.json.")
    strict: bool = setting(False, "Whether the exit status is 1 also if something is only unusual.")
    num_workers: int = setting(0, "Worker processes; 0 is one per core.")

    def __post_init__(self) -> None:
        check_settings(self)
        check_workers(self.num_workers, "num_workers")


@entry("check", CheckConfig)
def main(config: CheckConfig) -> None:
    """Check recordings and say what was found."""
    folders = folders_of(user_path(config.data))
    layout = common_layout(folders)
    splits, broken = read_all(folders, worker_count(config.num_workers))
    findings, explained = find_all(layout, splits, broken)
    out = user_path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    told_numbers = {"data": config.data, **numbers(layout, splits, findings, explained)}
    write_json(out / "check.json", told_numbers)
    page = out / "check.html"
    samples = [each for found in splits.values() for each in found[:NUM_SAMPLES]]
    films = [list(zip(each.episodes, each.frames, strict=True)) for each in findings]
    write_recordings_page(page, told_numbers, films, [(each.name, each.strip) for each in samples])
    for each in findings[:MAX_PRINTED]:
        print(f"{'WRONG' if each.is_wrong else 'unusual'}: {each.told}")
    if len(findings) > MAX_PRINTED:
        print(f"and {len(findings) - MAX_PRINTED} more, in {page}")
    wrong = sum(each.is_wrong for each in findings)
    told = f"{wrong} things wrong, {len(findings) - wrong} unusual"
    if wrong or (config.strict and findings):
        raise WorldError(f"{told} in {config.data}; {page} shows them")
    print(f"{told}; {page} shows more")


def folders_of(path: Path) -> dict[str, Path]:
    """Return dataset folders by their role: `train` and `heldout`, or `recordings` for a folder alone.

    Raises:
        FileNotFoundError: If there is none.
    """
    inner = {name: path / name for name in SPLITS if (path / name / INFO_FILE).is_file()}
    if not inner or (path / INFO_FILE).is_file():
        DatasetInfo.load(path)  # says what is missing
        return {path.name if path.name == "heldout" else "recordings": path}
    return inner


def common_layout(folders: dict[str, Path]) -> ActionLayout:
    """Return the buttons of folders.

    Raises:
        WorldError: If they have other buttons or sizes.
    """
    infos = {folder: DatasetInfo.load(folder) for folder in folders.values()}
    (first, known), *others = infos.items()
    for folder, info in others:
        if info.shape_and_buttons != known.shape_and_buttons or info.frame_rate != known.frame_rate:
            raise WorldError(f"{folder} has other sizes, buttons or frame rates than {first}")
    return known.actions


def read_all(folders: dict[str, Path], num_workers: int) -> tuple[dict[str, list[Measured]], list[str]]:
    """Return all episodes that can be read, measured, and a sentence for each that cannot."""
    references: list[tuple[str, EpisodeReference]] = []
    broken: list[str] = []
    for role, folder in folders.items():
        info = DatasetInfo.load(folder)
        for name in list_episodes(folder):
            try:
                count = count_episode_frames(folder, name, info)
                references.append((role, EpisodeReference(folder, name, count, info)))
            except (WorldError, OSError) as error:
                broken.append(" ".join(str(error).split()))
    splits: dict[str, list[Measured]] = {role: [] for role in folders}
    for (role, _), found in zip(
        references, _measured([each for _, each in references], num_workers), strict=True
    ):
        if isinstance(found, str):
            broken.append(found)
        else:
            splits[role].append(found)
    return splits, broken


def _measured(references: Sequence[EpisodeReference], num_workers: int) -> list[Measured | str]:
    bar = {"total": len(references), "unit": "episode", "desc": "checking"}
    if num_workers == 1 or len(references) < 4:
        return [measure(each) for each in tqdm(references, **bar)]
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=leave_the_terminal) as pool:
        return list(tqdm(pool.map(measure, references), **bar))


def numbers(
    layout: ActionLayout,
    splits: dict[str, list[Measured]],
    findings: Sequence[Finding],
    explained: Explained | None,
) -> dict[str, object]:
    """Return what was found as a JSON object."""
    return {
        "findings": [
            {
                "is_wrong": each.is_wrong,
                "about": each.about,
                "told": each.told,
                "episodes": list(each.episodes),
            }
            for each in findings
        ],
        "buttons": pressed(layout, [each for found in splits.values() for each in found]),
        "frames": {
            role: {each.reference.name: len(each) for each in found} for role, found in splits.items()
        },
        "explained_by_actions": {str(shift): share for shift, share in explained.shares.items()}
        if explained
        else {},
    }


def pressed(layout: ActionLayout, episodes: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Return by axis in which share of the frames each of its values is held."""
    actions = np.concatenate(
        [np.empty((0, len(layout.axes)), np.int64), *(each.actions[:-1] for each in episodes)]
    )
    shares = {}
    for column, axis in enumerate(layout.axes):
        counts = np.bincount(actions[:, column], minlength=len(axis.buttons) + 1) / max(1, len(actions))
        shares[axis.name] = dict(zip(("nothing", *axis.buttons), counts.tolist(), strict=True))
    return shares

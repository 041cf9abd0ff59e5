"""Record episodes of the real game: `python -m training.collect out=data/doom-rooms num_frames=200000`.

Writes two dataset folders, OUT/train and OUT/heldout, whose episodes come from different seeds. Episode
number i of a folder depends on the seed and on i alone, not on the workers; the same command continues
where it was stopped, and one with more frames goes on from there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from policies import POLICIES
from training.entry import entry
from training.recorders import EpisodeTask, Recorders
from worldsim.data.dataset_info import PART_SUFFIX
from worldsim.data.doom import DOOM_ROOMS_ACTIONS, doom_rooms_info, import_vizdoom
from worldsim.data.episodes import DatasetInfo, count_episode_frames, read_table
from worldsim.errors import WorldError

# Each split owns half of the 32-bit seeds, each `seed` a million of them.
SPLIT_SEEDS = {"heldout": 2_000_000_000, "train": 0}
SEEDS_PER_RUN = 1_000_000


@dataclass(kw_only=True, slots=True)
class CollectConfig:
    """What to record.

    Attributes:
        out: Folder that gets the dataset folders `train` and `heldout`.
        num_frames: Least number of training frames.
        heldout_frames: Least number of held-out frames.
        episode_frames: Frames of an episode that does not end earlier by reaching the goal.
        seed: Which million of seeds, 0 to 1999.
        num_workers: Worker processes; 0 means one per core.
        policy: Who plays: scripted or random.
    """

    out: str = "data/doom-rooms"
    num_frames: int = 200_000
    heldout_frames: int = 20_000
    episode_frames: int = 1050
    seed: int = 0
    num_workers: int = 0
    policy: str = "scripted"

    def __post_init__(self) -> None:
        for name, least in (
            ("num_frames", 0),
            ("heldout_frames", 0),
            ("episode_frames", 2),
            ("num_workers", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise WorldError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.seed < 2000:
            raise WorldError(f"seed must be 0 to 1999, got {self.seed}")
        if self.policy not in POLICIES or self.policy in ("keyboard", "recorded"):
            raise WorldError(f"policy must be scripted or random, got {self.policy!r}")


@entry("collect", CollectConfig)
def main(config: CollectConfig) -> None:
    """Record both splits and print what they hold."""
    version = import_vizdoom().__version__
    wanted = {"heldout": config.heldout_frames, "train": config.num_frames}
    num_workers = config.num_workers or os.cpu_count() or 1
    with Recorders(num_workers, policy=config.policy, episode_frames=config.episode_frames) as recorders:
        for split, num_frames in wanted.items():
            if num_frames:
                folder = Path(config.out) / split
                prepare_folder(folder, describe_source(config, split, version))
                collect_split(recorders, folder, config, SPLIT_SEEDS[split], num_frames)
    for split, num_frames in wanted.items():
        if num_frames:
            print(summarize(Path(config.out) / split))


def describe_source(config: CollectConfig, split: str, version: str) -> str:
    """Return how a split is made; equal texts mean that episodes of equal number are equal."""
    return (
        f"ViZDoom {version} my_way_home, {config.policy} player, seed {config.seed} ({split}), "
        f"up to {config.episode_frames} frames an episode"
    )


def prepare_folder(folder: Path, source: str) -> None:
    """Write `dataset.json` and remove what a killed run left.

    Raises:
        WorldError: If the folder was recorded with other settings.
    """
    info = doom_rooms_info(source)
    if (folder / "dataset.json").exists() and (found := DatasetInfo.load(folder)) != info:
        raise WorldError(
            f"{folder} was recorded with other settings ({found.source}; now: {source}); give another out"
        )
    info.save(folder)
    for part in folder.glob(f"*{PART_SUFFIX}"):
        part.unlink()


def collect_split(
    recorders: Recorders, folder: Path, config: CollectConfig, first_seed: int, num_frames: int
) -> None:
    """Record the first episodes of a split that together have at least `num_frames` frames.

    An episode is only begun when the ones before it cannot be enough, however long they turn out to be; so
    the number of workers does not change which episodes there are.
    """
    known_frames = running = index = 0
    with tqdm(desc=f"recording {folder.name}", total=num_frames, unit="frame", unit_scale=True) as bar:
        while True:
            while recorders.num_idle and known_frames + running * config.episode_frames < num_frames:
                name = f"episode-{index:06d}"
                if (folder / f"{name}.jsonl").exists():
                    frames = count_episode_frames(folder, name)
                    known_frames += frames
                    if not bar.disable:
                        bar.initial += frames  # not counted in frames per second
                    bar.update(frames)
                else:
                    seed = first_seed + config.seed * SEEDS_PER_RUN + index
                    recorders.submit(EpisodeTask(folder=folder, name=name, seed=seed))
                    running += 1
                index += 1
            if not running:
                return
            for frames in recorders.wait():
                known_frames += frames
                running -= 1
                bar.update(frames)


def summarize(folder: Path) -> str:
    """Return a short table: episodes, frames, size on disk, and how often each button is held."""
    tables = [read_table(folder, path.stem, DOOM_ROOMS_ACTIONS) for path in sorted(folder.glob("*.jsonl"))]
    actions = np.concatenate([table.actions[:-1] for table in tables])
    num_frames = sum(len(table.actions) for table in tables)
    size = sum(path.stat().st_size for path in folder.iterdir())
    ended = sum(bool(table.terminated is not None and table.terminated.any()) for table in tables)
    lines = [
        f"{folder}: {len(tables)} episodes ({ended} reached the goal), {num_frames} frames, "
        f"{size / 2**20:.0f} MiB, {size / num_frames:.0f} bytes a frame"
    ]
    for column, axis in enumerate(DOOM_ROOMS_ACTIONS.axes):
        shares = np.bincount(actions[:, column], minlength=len(axis.buttons) + 1) / len(actions)
        named = zip(("nothing", *axis.buttons), shares, strict=True)
        lines.append(f"  {axis.name:7}" + "  ".join(f"{button} {share:6.1%}" for button, share in named))
    lines.append(f"  no button at all {(actions == 0).all(axis=1).mean():.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Record episodes of a real game: `python -m training.collect scenario=doom-take-cover policy=mixed`.

Writes two dataset folders, OUT/train and OUT/heldout, whose episodes come from different seeds. Episode
number i of a folder depends on the seed and on i alone, not on the workers; the same command continues
where it was stopped, and one with more frames goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import policies
from training.cli.entry import entry
from training.data.recorders import EpisodeTask, Recorders, Setup
from training.data.summary import summarize
from training.engine.lock import locked_folder
from worldsim.data.dataset_info import INFO_FILE, PART_SUFFIX
from worldsim.data.episodes import (
    DatasetInfo,
    count_episode_frames,
)
from worldsim.errors import WorldError
from worldsim.games.registry import GAMES, find_game
from worldsim.runtime.cores import check_workers, worker_count
from worldsim.settings import check_settings, setting
from worldsim.storage.files import without_litter

# Each split owns half of the 32-bit seeds, each `seed` a million of them.
SPLIT_SEEDS = {"heldout": 2_000_000_000, "train": 0}
SEEDS_PER_RUN = 1_000_000
PLAYERS = (
    *("random", "scripted", "returning", "ppo", "to-and-fro"),
    *(*policies.EXCURSIONS, *policies.TOURS, "out-and-back"),
)
RETURNING = ("returning", "retrace", "leave-and-return", "tours", "out-and-back")
DEFAULT_SHARES = ("random", "scripted")


@dataclass(kw_only=True, slots=True)
class CollectConfig:
    """What to record."""

    scenario: str = setting(
        "doom-rooms",
        f"One of the games of `worldsim.games.registry`: {', '.join(GAMES)}.",
    )
    out: str | None = setting(None, "Folder of the dataset folders train and heldout; null is data/SCENARIO.")
    num_frames: int = setting(200_000, "Least number of training frames.", minimum=0)
    heldout_frames: int = setting(20_000, "Least number of held-out frames.", minimum=0)
    episode_frames: int | None = setting(None, "Of the longest episode; null is the game's own.", minimum=2)
    seed: int = setting(0, "Which million of seeds.", minimum=0, maximum=1999)
    num_workers: int = setting(0, "Worker processes; 0 is one per core.")
    policy: str = setting(
        "scripted",
        "Who plays: scripted, random, returning (walks out and back: for worlds that are to remember), ppo, "
        "to-and-fro; look-around and retrace, who look away, or walk away, and come back to the same pose; "
        "in doom-fresh-rooms tours, of which each is a turn-around, leave-and-return or loop (also policies "
        "of their own); in grid-recall out-and-back; or mixed, a player for each episode.",
        choices=("mixed", *PLAYERS),
    )
    shares: dict[str, float] = setting(
        {name: 0.5 if name in DEFAULT_SHARES else 0.0 for name in PLAYERS},
        "Of mixed: how large a share of the episodes each player plays.",
    )
    policy_folder: str | None = setting(
        None,
        "Of ppo: its folder; null is the one that ships with the world of the scenario's name. It draws its "
        "actions here, instead of pressing what is likeliest.",
    )
    out_frames: list[int] | None = setting(
        None,
        "Of returning, retrace, leave-and-return, tours and out-and-back: minimum and maximum number of "
        "frames of a way out, [50,50] say; null is the player's own.",
    )
    context_frames: list[int] | None = setting(
        None,
        "Of out-and-back: minimum and maximum frames before each way out; null is the player's own.",
    )
    paired: bool = setting(
        False, "Let each player play two episodes alike, in two games: other histories, the same actions."
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check_workers(self.num_workers, "num_workers")
        if unknown := self.shares.keys() - set(PLAYERS):
            raise WorldError(f"shares are of {', '.join(PLAYERS)}, got {', '.join(sorted(unknown))}")
        if self.out_frames is not None and not self.returning:
            raise WorldError(f"out_frames are of {', '.join(RETURNING)}, none of whom plays")
        if self.context_frames is not None and "out-and-back" not in self.returning:
            raise WorldError("context_frames are of out-and-back, who does not play")
        find_game(self.scenario)

    @property
    def folder(self) -> Path:
        """Where the splits are."""
        return Path(self.out or f"data/{self.scenario}")

    @property
    def players(self) -> dict[str, float]:
        """Shares of those who play, if they are `mixed`."""
        return {name: share for name, share in self.shares.items() if share}

    @property
    def returning(self) -> list[str]:
        """Those who play that undo a way out."""
        playing = self.players if self.policy == "mixed" else [self.policy]
        return [name for name in RETURNING if name in playing]

    @property
    def learned(self) -> Path | None:
        """Folder of the learned player; None if it does not play."""
        if self.policy != "ppo" and not (self.policy == "mixed" and "ppo" in self.players):
            return None
        from worldsim.world.world import (
            policy_folder,  # it brings PyTorch, which the others need not wait for
        )

        return policy_folder(self.policy_folder, self.scenario)

    def setup(self) -> Setup:
        """Return what is played, and by whom."""
        options: dict[str, dict[str, Any]] = {name: {} for name in self.returning}
        if self.learned is not None:
            # It draws its actions: a world has to know what comes of those it takes seldom, too.
            options["ppo"] = {"folder": str(self.learned), "deterministic": False}
        for name in self.returning:
            if self.out_frames is not None:
                options[name]["out_frames"] = self.out_frames
            if self.context_frames is not None and name == "out-and-back":
                options[name]["context_frames"] = self.context_frames
        if self.policy == "mixed":
            given = {name: of_player for name, of_player in options.items() if of_player}
            policy_options = {"shares": self.players, "options": given}
        else:
            policy_options = options.get(self.policy, {})
        return Setup(
            scenario=self.scenario,
            policy=self.policy,
            policy_options=policy_options,
            episode_frames=self.episode_frames or find_game(self.scenario).episode_frames,
        )


@entry("collect", CollectConfig)
def main(config: CollectConfig) -> None:
    """Record both splits and print what they hold."""
    game = find_game(config.scenario)
    version, setup = game.engine_version(), config.setup()
    setup.build_policy(game)  # the workers build theirs; what is wrong with it is said before they start
    wanted = {"heldout": config.heldout_frames, "train": config.num_frames}
    num_workers = worker_count(config.num_workers)
    with locked_folder(config.folder), Recorders(num_workers, setup) as recorders:
        for split, num_frames in wanted.items():
            if num_frames:
                folder = config.folder / split
                prepare_folder(folder, game.dataset_info(describe_source(config, split, version)))
                first_seed = SPLIT_SEEDS[split] + config.seed * SEEDS_PER_RUN
                collect_split(
                    recorders, folder, setup.episode_frames, first_seed, num_frames, paired=config.paired
                )
    for split, num_frames in wanted.items():
        if num_frames:
            print(summarize(config.folder / split, game.actions, game.ending))


def describe_source(config: CollectConfig, split: str, version: str) -> str:
    """Return how a split is made; equal texts mean that episodes of equal number are equal."""
    setup, game = config.setup(), find_game(config.scenario).game
    shares = ", ".join(f"{name} {share:g}" for name, share in sorted(config.players.items()))
    player = f"mixed players ({shares})" if config.policy == "mixed" else f"{config.policy} player"
    recorded = find_game(config.scenario).recorded_players
    if recorded and "scripted" in (*config.players, config.policy):
        player += " (scripted: " + ", ".join(f"{name} {share:g}" for name, share in recorded.items()) + ")"
    if config.learned is not None:
        from policies.ppo import policy_digest

        player += f" (ppo {policy_digest(config.learned)})"
    if config.out_frames is not None:
        player += f" ({' to '.join(map(str, config.out_frames))} frames out)"
    if config.context_frames is not None:
        player += f" ({' to '.join(map(str, config.context_frames))} frames before)"
    if config.paired:
        player += " who does the same in two games"
    return (
        f"{version} {game}, {player}, seed {config.seed} ({split}), "
        f"up to {setup.episode_frames} frames an episode"
    )


def prepare_folder(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json` and remove what a killed run left.

    Raises:
        WorldError: If the folder was recorded with other settings, or does not say with which.
    """
    described = (folder / INFO_FILE).exists()
    if not described and without_litter(folder.glob("*.jsonl")):
        raise WorldError(f"{folder} holds episodes but no {INFO_FILE} that says how; give another out")
    if described and (found := DatasetInfo.load(folder)) != info:
        raise WorldError(
            f"{folder} was recorded with other settings ({found.source}; now: {info.source}); "
            "give another out"
        )
    info.save(folder)
    for part in folder.glob(f"*{PART_SUFFIX}"):
        part.unlink()


def collect_split(
    recorders: Recorders,
    folder: Path,
    episode_frames: int,
    first_seed: int,
    num_frames: int,
    *,
    paired: bool = False,
) -> None:
    """Record the first episodes of a split that together have at least `num_frames` frames.

    An episode is only begun when the ones before it cannot be enough, however long they turn out to be; so
    the number of workers does not change which episodes there are.
    """
    known_frames = running = index = 0
    with tqdm(desc=f"recording {folder.name}", total=num_frames, unit="frame", unit_scale=True) as bar:
        while True:
            while recorders.num_idle and known_frames + running * episode_frames < num_frames:
                name = f"episode-{index:06d}"
                if (folder / f"{name}.jsonl").exists():
                    frames = count_episode_frames(folder, name)
                    known_frames += frames
                    if not bar.disable:
                        bar.initial += frames  # not counted in frames per second
                    bar.update(frames)
                else:
                    seed = first_seed + index
                    player_seed = seed - index % 2 if paired else None
                    recorders.submit(
                        EpisodeTask(folder=folder, name=name, seed=seed, player_seed=player_seed)
                    )
                    running += 1
                index += 1
            if not running:
                return
            for frames in recorders.wait():
                known_frames += frames
                running -= 1
                bar.update(frames)


if __name__ == "__main__":
    main()

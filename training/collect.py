"""Record episodes of a game: `python -m training.collect env=CarRacing-v3`, `scenario=doom-rooms`.

`env` is any environment of Gymnasium, `scenario` one of the games that this project knows.

Writes two dataset folders, OUT/train and OUT/heldout, whose episodes come from different seeds. Episode
number i of a folder depends on the seed and on i alone, not on the workers; the same command continues
where it was stopped, and one with more frames goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

import policies
from training.cli.entry import entry
from training.data.recorders import EpisodeTask, Recorders, Setup
from training.data.summary import summarize
from training.engine.lock import locked_folder
from worldsim.data.dataset_info import INFO_FILE, PART_SUFFIX
from worldsim.data.episodes import DatasetInfo, count_episode_frames
from worldsim.errors import WorldError
from worldsim.games.entry import GameEntry
from worldsim.games.gym.apart import STEP_TIMEOUT, describe_apart
from worldsim.games.gym.config import GymConfig
from worldsim.games.registry import GAMES, find_game
from worldsim.runtime.cores import check_workers, worker_count
from worldsim.settings import check_settings, setting
from worldsim.storage.files import without_litter

# Each split owns half of the 32-bit seeds, each `seed` a million of them.
SPLIT_SEEDS = {"heldout": 2_000_000_000, "train": 0}
SEEDS_PER_RUN, NUM_RUNS = 1_000_000, 2000
PLAYERS = (
    *("random", "scripted", "still", "returning", "ppo", "to-and-fro"),
    *(*policies.EXCURSIONS, *policies.TOURS, "out-and-back", "own", "sticky"),
)
RETURNING = ("returning", "retrace", "leave-and-return", "tours", "out-and-back")
DEFAULT_SHARES = ("random", "scripted")
PLAYER_SETTINGS = (
    *("policy", "shares", "own", "policy_folder", "hold_frames"),
    *("out_frames", "context_frames", "episode_frames", "paired"),
)
"""Who plays, and how."""


@dataclass(kw_only=True, slots=True)
class CollectConfig:
    """What to record."""

    scenario: str = setting(
        "doom-rooms",
        f"One of the games of `worldsim.games.registry`: {', '.join(GAMES)}.",
    )
    env: str | None = setting(
        None,
        "Instead of a scenario: the id of a Gymnasium environment (PACKAGE:ID imports a package first), or "
        "MODULE:NAME of what makes one.",
    )
    game: GymConfig = setting(GymConfig, "How env is made, seen and pressed.")
    out: str | None = setting(
        None, "Folder of the dataset folders train and heldout; null is data/ and the game's name."
    )
    num_frames: int = setting(200_000, "Least number of training frames.", minimum=0)
    heldout_frames: int = setting(20_000, "Least number of held-out frames.", minimum=0)
    episode_frames: int | None = setting(None, "Of the longest episode; null is the game's own.", minimum=2)
    max_seconds: float = setting(
        0.0,
        "No episode is begun after so many seconds of recording, of which each split has its share by its "
        "frames, heldout the first; one is, at least. 0 is no limit.",
        minimum=0,
    )
    seed: int = setting(0, "Which million of seeds.", minimum=0, maximum=NUM_RUNS - 1)
    num_workers: int = setting(0, "Worker processes; 0 is one per core.")
    policy: str | None = setting(
        None,
        "Who plays: scripted, random, sticky (random, each episode at its own pace), own, ppo, to-and-fro, "
        "still, who presses nothing; returning, who walks out and back, for worlds that are to remember; "
        "look-around and retrace, who look away, or walk away, and come back to the same pose; in "
        "doom-fresh-rooms tours, of which each is a turn-around, leave-and-return or loop (also policies of "
        "their own); in grid-recall out-and-back; or mixed, a player for each episode. null is scripted, in "
        "grid-recall out-and-back, with env own where there is one, else sticky.",
        choices=("mixed", *PLAYERS),
    )
    shares: dict[str, float] = setting(
        {name: 0.5 if name in DEFAULT_SHARES else 0.0 for name in PLAYERS},
        "Of mixed: how large a share of the episodes each player plays; with env, scripted has none and "
        "own half where it is named.",
    )
    own: str | None = setting(
        None,
        "Of own, with env: MODULE:NAME of a function begin(env, seed), which returns a function from the "
        "environment's observations to its actions for an episode; or an agent's .zip of Stable-Baselines3.",
    )
    hold_frames: list[int] | None = setting(
        None,
        "Of random: minimum and maximum number of frames an action is held; null is 4 to 25, [1,1] draws "
        "another one each frame.",
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
    step_timeout: float = setting(
        STEP_TIMEOUT,
        "Seconds that the game, and who plays it, may take for a frame before it counts as hung; to be made, "
        "and for an episode's first frame, there is a minute at least.",
        above=0,
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
        if self.env is None:
            find_game(self.scenario)
        self.check_own()

    def check_own(self) -> None:
        """Raise `WorldError` if a player of the user's own is named and doesn't play, or plays unnamed."""
        if ("own" in self.playing) != (self.own is not None):
            raise WorldError("own= and the player own (policy=own, or a share of mixed) go together")
        if self.env is not None and "scripted" in self.playing:
            raise WorldError("scripted players are of the scenarios: with env give policy=sticky or own=")
        if self.own is not None and self.env is None:
            raise WorldError("the player own plays environments: give env=")
        if self.hold_frames is not None and "random" not in self.playing:
            raise WorldError("hold_frames are of random, who does not play")

    def find_game(self) -> GameEntry:
        """Return the game; an environment is looked at once.

        Raises:
            WorldError: If it cannot be made, or be recorded.
        """
        if self.env is None:
            return find_game(self.scenario)
        return describe_apart(self.env, self.game, self.step_timeout)

    def folder(self, game: GameEntry) -> Path:
        """Return where the splits are."""
        return Path(self.out or f"data/{game.name}")

    @property
    def player(self) -> str:
        """Who plays."""
        if self.policy is not None:
            return self.policy
        if self.env is None:
            return find_game(self.scenario).recorded_by
        return "sticky" if self.own is None else "own"

    @property
    def players(self) -> dict[str, float]:
        """Shares of those who play, if they are `mixed`."""
        shares = dict(self.shares)
        if self.env is not None:
            shares["scripted"] = 0.0
            shares["own"] = shares["own"] or 0.5 * (self.own is not None)
        return {name: share for name, share in shares.items() if share}

    @property
    def playing(self) -> list[str]:
        """Who plays, or all of those who do in turn."""
        return list(self.players) if self.player == "mixed" else [self.player]

    @property
    def returning(self) -> list[str]:
        """Those who play that undo a way out."""
        return [name for name in RETURNING if name in self.playing]

    @property
    def recording(self) -> dict[str, Any]:
        """Settings that let the same players play again, for `DatasetInfo.recording`."""
        told: dict[str, Any] = {"policy": self.player}
        if self.player == "mixed":  # those that play by default are named also where they do not
            told["shares"] = dict.fromkeys(DEFAULT_SHARES, 0.0) | self.players
        others = (name for name in PLAYER_SETTINGS if name not in ("policy", "shares"))
        return told | {name: value for name in others if (value := getattr(self, name))}

    @property
    def learned(self) -> Path | None:
        """Folder of the learned player; None if it does not play."""
        if "ppo" not in self.playing:
            return None
        from worldsim.world.world import (
            policy_folder,  # it brings PyTorch, which the others need not wait for
        )

        return policy_folder(self.policy_folder, self.scenario)

    def setup(self, game: GameEntry) -> Setup:
        """Return what is played, and by whom."""
        options: dict[str, dict[str, Any]] = {name: {} for name in self.returning}
        if self.own is not None:
            options["own"] = {"path": self.own}
        if self.hold_frames is not None:
            options["random"] = {"hold_frames": self.hold_frames}
        if self.learned is not None:
            # It draws its actions: a world has to know what comes of those it takes seldom, too.
            options["ppo"] = {"folder": str(self.learned), "deterministic": False}
        for name in self.returning:
            if self.out_frames is not None:
                options[name]["out_frames"] = self.out_frames
            if self.context_frames is not None and name == "out-and-back":
                options[name]["context_frames"] = self.context_frames
        if self.player == "mixed":
            given = {name: of_player for name, of_player in options.items() if of_player}
            policy_options = {"shares": self.players, "options": given}
        else:
            policy_options = options.get(self.player, {})
        return Setup(
            scenario=game,
            policy=self.player,
            policy_options=policy_options,
            episode_frames=self.episode_frames or game.episode_frames,
            step_timeout=self.step_timeout,
        )


@entry("collect", CollectConfig)
def main(config: CollectConfig) -> None:
    """Record both splits and print what they hold."""
    game = config.find_game()
    setup, folder = config.setup(game), config.folder(game)
    setup.build_policy(game)  # the workers build theirs; what is wrong with it is said before they start
    wanted = {"heldout": config.heldout_frames, "train": config.num_frames}
    num_workers = worker_count(config.num_workers)
    with locked_folder(folder), Recorders(num_workers, setup) as recorders:
        splits, seconds = [], 0.0
        for name, num_frames in wanted.items():
            if num_frames:
                info = game.dataset_info(describe_source(config, name, game))
                prepare_folder(folder / name, replace(info, recording=config.recording))
                first_seed = SPLIT_SEEDS[name] + config.seed * SEEDS_PER_RUN
                seconds += config.max_seconds * num_frames / sum(wanted.values())
                splits.append(Split(folder / name, num_frames, first_seed, config.paired, seconds))
        collect_splits(recorders, splits, setup.episode_frames)
    for split, num_frames in wanted.items():
        if num_frames:
            print(summarize(folder / split, game.actions, game.ending))


def describe_source(config: CollectConfig, split: str, game: GameEntry) -> str:
    """Return how a split is made; equal texts mean that episodes of equal number are equal."""
    shares, scripted = (
        ", ".join(f"{name} {share:g}" for name, share in players)
        for players in (sorted(config.players.items()), game.recorded_players.items())
    )
    player = f"mixed players ({shares})" if config.player == "mixed" else f"{config.player} player"
    is_usual = game.recorded_players == policies.find_scripted(game.actions.num_values)
    if scripted and not is_usual and "scripted" in (*config.players, config.player):
        player += f" (scripted: {scripted})"
    if config.learned is not None:
        from policies.ppo import policy_digest

        player += f" (ppo {policy_digest(config.learned)})"
    if config.own is not None:
        player += f" (own {config.own})"
    if config.hold_frames is not None:
        player += f" (random holds {' to '.join(map(str, config.hold_frames))} frames)"
    if config.out_frames is not None:
        player += f" ({' to '.join(map(str, config.out_frames))} frames out)"
    if config.context_frames is not None:
        player += f" ({' to '.join(map(str, config.context_frames))} frames before)"
    if config.paired:
        player += " who does the same in two games"
    return (
        f"{game.engine_version()} {game.game}, {player}, seed {config.seed} ({split}), "
        f"up to {config.episode_frames or game.episode_frames} frames an episode"
    )


def prepare_folder(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json` and remove what a killed run left.

    Raises:
        WorldError: If the folder was recorded with other settings, or does not say with which.
    """
    described, is_empty = (folder / INFO_FILE).exists(), not without_litter(folder.glob("*.jsonl"))
    if not described and not is_empty:
        raise WorldError(f"{folder} holds episodes but no {INFO_FILE} that says how; give another out")
    if not is_empty and (found := DatasetInfo.load(folder)) != info:
        raise WorldError(
            f"{folder} was recorded with other settings ({found.source}; now: {info.source}); "
            "give another out"
        )
    info.save(folder)
    for part in folder.glob(f"*{PART_SUFFIX}"):
        part.unlink()


@dataclass(slots=True)
class Split:
    """The first episodes of a folder that together have at least `num_frames` frames.

    An episode is only begun when the ones before it cannot be enough, however long they turn out to be; so
    the number of workers does not change which episodes there are.

    Attributes:
        folder: Where they are; it has its `dataset.json`.
        num_frames: How many frames are wanted.
        first_seed: Of episode 0.
        paired: Whether each player plays two episodes alike.
        max_seconds: From the start of all recording on, after which none but the first is begun; 0 is never.
        known_frames: Of the episodes that are there.
        running: Episodes under way.
        index: Of the next episode.
    """

    folder: Path
    num_frames: int
    first_seed: int
    paired: bool
    max_seconds: float
    known_frames: int = 0
    running: int = 0
    index: int = 0

    def next_task(self, episode_frames: int, seconds: float, bar: tqdm) -> EpisodeTask | None:
        """Return the next episode to record, None if there is none now; those that are there are counted.

        Args:
            episode_frames: Of the longest episode.
            seconds: Since the start of all recording.
            bar: Shows what is there.
        """
        while self.known_frames + self.running * episode_frames < self.num_frames:
            name = f"episode-{self.index:06d}"
            is_there = (self.folder / f"{name}.jsonl").exists()
            if not is_there and self.index and self.max_seconds and seconds > self.max_seconds:
                return None
            seed, self.index = self.first_seed + self.index, self.index + 1
            if not is_there:
                self.running += 1
                player_seed = seed - (seed - self.first_seed) % 2 if self.paired else None
                return EpisodeTask(folder=self.folder, name=name, seed=seed, player_seed=player_seed)
            frames = count_episode_frames(self.folder, name)
            self.known_frames += frames
            if not bar.disable:
                bar.initial += frames  # not counted in frames per second
            bar.update(frames)
        return None


def collect_splits(recorders: Recorders, splits: Sequence[Split], episode_frames: int) -> None:
    """Record folders, one after the other; workers that one has no episode for begin with the next.

    Args:
        recorders: Who records.
        splits: The folders, in turn.
        episode_frames: Of the longest episode.
    """
    begun, by_folder = time.monotonic(), {split.folder: split for split in splits}
    with tqdm(
        desc="recording", total=sum(each.num_frames for each in splits), unit="frame", unit_scale=True
    ) as bar:
        while True:
            while recorders.num_idle:
                seconds = time.monotonic() - begun
                tasks = (split.next_task(episode_frames, seconds, bar) for split in splits)
                task = next(filter(None, tasks), None)
                if task is None:
                    break
                recorders.submit(task)
            if not any(split.running for split in splits):
                return
            for task, frames in recorders.wait():
                by_folder[task.folder].known_frames += frames
                by_folder[task.folder].running -= 1
                bar.update(frames)


if __name__ == "__main__":
    main()

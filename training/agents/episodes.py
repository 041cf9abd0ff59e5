"""Evaluation episodes of policies, in the game and in dreams, from the same fixed seeds for all."""

# N dreams, E episodes, A action axes

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import policies
from policies.base import Policy
from policies.ppo import PPOPolicy
from training.data.game_process import Game, begin_game
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.evaluation.report.text import align
from worldsim.evaluation.statistics import estimate_of
from worldsim.games.entry import GameEntry
from worldsim.games.env import EVALUATION_SEEDS
from worldsim.runtime.child import interrupts_are_for_the_parent

DREAM_SEEDS = 4_000_000_000
"""Seed of the first episode that is evaluated in a dream; trainings have smaller ones."""


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A policy that is to be measured, by its label in the report and its name in `policies.POLICIES`.

    Attributes:
        num_values: Number of values of each axis of the actions.
        game: What is played, or what the world was made from, where it is known.
        options: Further arguments of `policies.make`.
    """

    label: str
    policy: str
    num_values: Sequence[int]
    game: GameEntry | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Policy:
        """Return it, ready for `reset`."""
        return policies.make(self.policy, num_values=self.num_values, game=self.game, **self.options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """Episodes that were played, E of them in the order of their seeds.

    Attributes:
        returns: `[E]` float64, sums of the game's rewards.
        frames: `[E]` int64, frames until the end.
        terminated: `[E]` bool, whether the game ended; otherwise it was cut off.
    """

    returns: np.ndarray
    frames: np.ndarray
    terminated: np.ndarray

    def summary(self, game: GameEntry | None) -> dict[str, Any]:
        """Return a JSON object: returns, and lengths by the game's own clock, in frames without one."""
        steps, unit = (1, "frames") if game is None else (game.tics_per_frame, game.clock_unit)
        return {
            "episodes": len(self.returns),
            "ended": int(self.terminated.sum()),
            "return": _spread(self.returns),
            "length": _spread(self.frames * steps) | {"unit": unit},
            "returns": self.returns.tolist(),
            "frames": self.frames.tolist(),
            "terminated": self.terminated.tolist(),
        }


def _spread(values: np.ndarray) -> dict[str, Any]:
    found = asdict(estimate_of(values, range(len(values))))
    del found["count"]
    return found | {"std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def format_scores(scores: dict[str, dict[str, Any]]) -> str:
    """Return the summaries of several policies, by their label, as a table."""
    unit = next(iter(scores.values()))["length"]["unit"]
    rows = [("policy", "episodes", "mean return", "std", "median", "95 % interval", f"mean {unit}")]
    for label, summary in scores.items():
        found = summary["return"]
        interval = "" if found["low"] is None else f"{found['low']:.1f} to {found['high']:.1f}"
        std = "" if found["std"] is None else f"{found['std']:.1f}"
        numbers = (f"{found['mean']:.1f}", std, f"{found['median']:.1f}", interval)
        rows.append((label, str(summary["episodes"]), *numbers, f"{summary['length']['mean']:.1f}"))
    return align(rows)


class _Worker:
    """What a worker process keeps between episodes."""

    game: Game
    players: dict[str, Policy]


def play_games(
    policy_entries: Sequence[PolicyEntry],
    num_episodes: int,
    *,
    game: GameEntry,
    max_episode_steps: int,
    num_workers: int,
    first_game: int = 0,
) -> dict[str, Episodes]:
    """Let each policy play the same real games, in worker processes; a progress bar is shown.

    A game is cut off after `max_episode_steps` frames; `first_game` is a number among the games that belong
    to evaluations.

    Raises:
        WorldError: If there is no such game, or what plays it is not installed.
    """
    games = range(first_game, first_game + num_episodes)
    tasks = [(policy_entry, index) for policy_entry in policy_entries for index in games]
    context = multiprocessing.get_context("spawn")
    found: dict[tuple[str, int], tuple[float, int, bool]] = {}
    pool = ProcessPoolExecutor(
        min(num_workers, len(tasks)), context, _begin_worker, (game, max_episode_steps)
    )
    try:
        with interrupts_are_for_the_parent():  # with the first task the processes start
            running = {pool.submit(_play_game, *task): task for task in tasks}
        for done in tqdm(as_completed(running), total=len(running), desc="real games", unit="episode"):
            policy_entry, index = running[done]
            found[policy_entry.label, index] = done.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return {
        policy_entry.label: _collect([found[policy_entry.label, index] for index in games])
        for policy_entry in policy_entries
    }


def _begin_worker(game: GameEntry, max_episode_steps: int) -> None:
    torch.set_num_threads(1)  # a process for each core
    _Worker.game, _Worker.players = begin_game(game, max_episode_steps), {}
    atexit.register(_Worker.game.close)


def _play_game(policy_entry: PolicyEntry, index: int) -> tuple[float, int, bool]:
    player = _Worker.players.get(policy_entry.label)
    if player is None:
        player = _Worker.players[policy_entry.label] = policy_entry.build()
    player.reset(index)
    observation, info = _Worker.game.reset(options={"game_seed": EVALUATION_SEEDS + index})
    total, terminated, truncated = 0.0, False, False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = _Worker.game.step(player.act(observation))
        total += float(reward)
    return total, info["frame_index"], terminated


def _collect(rows: Sequence[tuple[float, int, bool]]) -> Episodes:
    returns, frames, terminated = zip(*rows, strict=True)
    return Episodes(returns=np.array(returns), frames=np.array(frames), terminated=np.array(terminated))


class SingleTeam:
    """N players of their own."""

    def __init__(self, policy_entry: PolicyEntry, num_players: int) -> None:
        self._players = [policy_entry.build() for _ in range(num_players)]

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes, of the seeds `[N]`."""
        for player, seed in zip(self._players, seeds, strict=True):
            player.reset(seed)

    def act(self, frames: Tensor) -> np.ndarray:
        """Return actions `[N, A]` for frames `[N, H, W, 3]` uint8, one player at a time."""
        pictures = frames.cpu().numpy()
        return np.stack([player.act(frame) for player, frame in zip(self._players, pictures, strict=True)])


class LearnedTeam:
    """One learned policy that plays N episodes in one pass of its network, on the device of the frames."""

    def __init__(self, player: PPOPolicy, device: torch.device, *, deterministic: bool) -> None:
        self._network, self._sight = player.network.to(device), player.description.sight
        self._repeat = player.description.action_repeat
        self._device, self._deterministic = device, deterministic

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes; what is drawn depends on all seeds."""
        self._generator = torch.Generator(self._device).manual_seed(seeds[0])
        self._seen: Tensor | None = None
        self._frame_index = 0

    def act(self, frames: Tensor) -> Tensor:
        """Return actions of all at once; like each of them alone it decides at every so many frames."""
        if self._frame_index % self._repeat == 0:
            seen = self._seen
            self._seen = self._sight.begin(frames) if seen is None else self._sight.follow(seen, frames)
            drawn_with = None if self._deterministic else self._generator
            self._held = self._network.choose(self._seen, drawn_with)
        self._frame_index += 1
        return self._held


Team = SingleTeam | LearnedTeam


def make_team(policy_entry: PolicyEntry, num_players: int, device: torch.device) -> Team:
    """Return N players of a kind."""
    player = policy_entry.build()
    if isinstance(player, PPOPolicy):
        return LearnedTeam(player, device, deterministic=policy_entry.options.get("deterministic", True))
    return SingleTeam(policy_entry, num_players)


def play_dreams(
    policy_entries: Sequence[PolicyEntry],
    num_episodes: int,
    envs: ARL2WorldVectorEnv,
    *,
    first_dream: int = 0,
) -> dict[str, Episodes]:
    """Let each policy play episodes of the same seeds in a dream; a progress bar is shown.

    They are played N at a time, the first of each row, in dreams of the mode `SameStep` that give tensors and
    have a limit on their episodes. `first_dream` is a number among the seeds that belong to evaluations.
    """
    assert envs.max_episode_steps is not None, "an episode in a dream may never end"
    scores = {}
    with tqdm(total=len(policy_entries) * num_episodes, desc="dreams", unit="episode") as bar:
        for policy_entry in policy_entries:
            team = make_team(policy_entry, envs.num_envs, envs.world.device)
            rows: list[tuple[float, int, bool]] = []
            while len(rows) < num_episodes:
                wanted = min(envs.num_envs, num_episodes - len(rows))
                rows += _dream_round(envs, team, first_dream + len(rows), wanted)
                bar.update(wanted)
            scores[policy_entry.label] = _collect(rows)
    return scores


def _dream_round(
    envs: ARL2WorldVectorEnv, team: Team, first: int, wanted: int
) -> list[tuple[float, int, bool]]:
    """Play the first episode of each row to its end; return those of the first `wanted` rows."""
    numbers = range(first, first + envs.num_envs)
    frames, _ = envs.reset(seed=[DREAM_SEEDS + number for number in numbers])
    team.reset(list(numbers))
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    ended, is_over = np.zeros(envs.num_envs, dtype=np.bool_), np.zeros(envs.num_envs, dtype=np.bool_)
    while not is_over[:wanted].all():
        frames, *outcome, _ = envs.step(team.act(torch.as_tensor(frames)))
        rewards, terminated, truncated = (torch.as_tensor(values).cpu().numpy() for values in outcome)
        returns += np.where(is_over, 0.0, rewards)
        lengths += ~is_over
        ended |= terminated & ~is_over
        is_over |= terminated | truncated
    return list(zip(returns.tolist(), lengths.tolist(), ended.tolist(), strict=True))[:wanted]

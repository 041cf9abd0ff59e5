"""Worker processes that play the real game and write episodes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import policies
from training.data.game_process import interrupts_are_for_the_parent, leave_the_terminal
from worldsim.data.episodes import DatasetInfo, EpisodeWriter
from worldsim.games.entry import GameEntry, RealGame
from worldsim.games.registry import open_game


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeTask:
    """One episode to record into a folder that has its `dataset.json`.

    Attributes:
        folder: Dataset folder.
        name: Of its files.
        seed: Of the game.
        player_seed: Of the player, None for the game's: another one lets a player do the same in two games.
    """

    folder: Path
    name: str
    seed: int
    player_seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What is played, and by whom: the same for all episodes.

    Attributes:
        scenario: The game, or its name.
        policy: Name of the policy that plays.
        policy_options: Further arguments of `policies.make`.
        episode_frames: Greatest number of frames of an episode.
    """

    scenario: str | GameEntry
    policy: str
    policy_options: dict[str, Any] = field(default_factory=dict)
    episode_frames: int

    def build_policy(self, entry: GameEntry) -> policies.Policy:
        """Return the policy, ready for `reset`."""
        num_values = entry.actions.num_values
        if entry.recorded_players:
            entry = replace(entry, players=entry.recorded_players)
        return policies.make(self.policy, num_values=num_values, game=entry, **self.policy_options)


class Recorders(AbstractContextManager["Recorders"]):
    """A pool of worker processes, each with its own game; a context manager.

    Leaving it stops the workers; episodes that are not finished leave nothing behind.

    Args:
        num_workers: Number of processes.
        setup: What they play.
    """

    def __init__(self, num_workers: int, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._busy: dict[Connection, EpisodeTask] = {}
        self._idle: list[Connection] = []
        self._processes: list[BaseProcess] = []
        with interrupts_are_for_the_parent():  # who then stops its workers
            for _ in range(num_workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=run_worker, args=(theirs, setup))
                process.start()
                theirs.close()  # only the worker holds it now, so that its death is seen here
                self._idle.append(ours)
                self._processes.append(process)

    @property
    def num_idle(self) -> int:
        """Workers that wait for a task."""
        return len(self._idle)

    def submit(self, task: EpisodeTask) -> None:
        """Give a task to an idle worker."""
        connection = self._idle.pop()
        self._busy[connection] = task
        connection.send(task)

    def wait(self) -> list[int]:
        """Wait until at least one task is done; return the numbers of frames recorded.

        Raises:
            OSError: If a worker could not write.
            RuntimeError: If a worker died.
        """
        finished = []
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            task = self._busy.pop(connection)
            try:
                result = connection.recv()
            except EOFError as error:
                raise RuntimeError(f"the process that recorded {task.folder / task.name} died") from error
            self._idle.append(connection)
            if isinstance(result, Exception):
                raise result
            finished.append(result)
        return finished

    def __exit__(self, *_: object) -> None:
        for connection in [*self._idle, *self._busy]:
            connection.close()  # the worker notices within a few frames
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
                process.join()


class Stopped(Exception):
    """The parent wants no more, or is gone."""


def run_worker(connection: Connection, setup: Setup) -> None:
    """Record the episodes that arrive on `connection` until it is closed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of PyTorch, which a learned player brings
    leave_the_terminal()

    def stop_if_asked() -> None:
        if connection.poll():  # nothing is sent during an episode: the other end has been closed
            raise Stopped

    with open_game(setup.scenario, labelled=True) as game, suppress(EOFError, ConnectionError, Stopped):
        policy = setup.build_policy(game.entry)
        if isinstance(policy, policies.Insider):
            policy.join(game)
        while True:
            task = connection.recv()
            try:
                result = record_episode(game, policy, task, setup.episode_frames, stop_if_asked)
            except (OSError, ValueError) as error:  # the disk, the game, the player; the parent reports it
                result = error
            connection.send(result)


def record_episode(
    game: RealGame,
    policy: policies.Policy,
    task: EpisodeTask,
    episode_frames: int,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Play one episode, write it, and return its number of frames; `check` runs every few frames."""
    info = DatasetInfo.load(task.folder)
    policy.reset(task.seed if task.player_seed is None else task.player_seed)
    informed = policy if isinstance(policy, policies.Informed) and game.entry.labels else None
    wanted = informed.start if informed is not None else ""
    start = wanted if wanted in game.entry.starts else ""
    seen = game.reset(task.seed, start)
    # What was drawn from the seed can then be drawn again, and games with labels played again.
    is_repeatable = game.rooms is not None or bool(seen.labels)
    navigator = policy if isinstance(policy, policies.Navigator) else None
    if navigator is not None and game.rooms is not None:
        navigator.enter(game.rooms)
    with EpisodeWriter(task.folder, task.name, info) as writer:
        while True:
            is_last = seen.terminated or seen.truncated or writer.num_frames == episode_frames - 1
            if navigator is not None and seen.pose is not None:
                navigator.locate(seen.pose)
            if informed is not None and seen.labels:
                informed.inform(dict(zip(game.entry.labels, seen.labels, strict=True)))
            action = None if is_last else policy.act(seen.frame)
            writer.add(
                seen.frame,
                action,
                reward=seen.reward,
                terminated=seen.terminated,
                pose=seen.pose,
                labels=seen.labels or None,
                player=navigator.activity or None if navigator is not None else None,
                game_seed=task.seed if is_repeatable and writer.num_frames == 0 else None,
                game_start=start or None if writer.num_frames == 0 else None,
            )
            if action is None:
                return writer.num_frames
            if writer.num_frames % 32 == 0:
                check()
            seen = game.step(action)

"""Worker processes that play the real game and write episodes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import policies
from worldsim.data.dataset_info import PART_SUFFIX
from worldsim.data.episodes import DatasetInfo, EpisodeWriter
from worldsim.errors import WorldError
from worldsim.games.entry import GameEntry, RealGame
from worldsim.games.gym.apart import MAKING_TIMEOUT, STEP_TIMEOUT
from worldsim.games.registry import open_game
from worldsim.runtime.child import describe_exit, end, interrupts_are_for_the_parent, leave_the_terminal


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
        step_timeout: Seconds that the game and who plays it may take for a frame.
    """

    scenario: str | GameEntry
    policy: str
    policy_options: dict[str, Any] = field(default_factory=dict)
    episode_frames: int
    step_timeout: float = STEP_TIMEOUT

    def build_policy(self, entry: GameEntry) -> policies.Policy:
        """Return the policy, ready for `reset`."""
        num_values = entry.actions.num_values
        if entry.recorded_players:
            entry = replace(entry, players=entry.recorded_players)
        return policies.make(self.policy, num_values=num_values, game=entry, **self.policy_options)


@dataclass(slots=True)
class Worker:
    """A process that records.

    Attributes:
        process: Itself.
        connection: Our end: tasks go in, numbers of frames or errors come out.
        num_frames: Of the episode under way, counted by the worker in shared memory.
        task: Of that episode; None while it waits for one.
        seen: The frames counted when we looked last.
        since: When these were counted, in seconds of the monotonic clock.
    """

    process: BaseProcess
    connection: Connection
    num_frames: Any
    task: EpisodeTask | None = None
    seen: int = 0
    since: float = 0.0

    def begin(self, task: EpisodeTask) -> None:
        """Give it a task, while it waits for one."""
        self.task, self.since = task, time.monotonic()
        self.num_frames.value = self.seen = 0
        with suppress(ConnectionError):  # it has died; `Recorders.wait` says so
            self.connection.send(task)

    def stood_still(self) -> float:
        """Return for how many seconds it has recorded no frame."""
        if self.num_frames.value != self.seen:
            self.seen, self.since = self.num_frames.value, time.monotonic()
        return time.monotonic() - self.since

    def discard(self) -> None:
        """Remove what it has left of an episode that it did not finish."""
        if self.task is not None:
            for part in self.task.folder.glob(f"{self.task.name}.*{PART_SUFFIX}"):
                part.unlink(missing_ok=True)


class Recorders(AbstractContextManager["Recorders"]):
    """A pool of worker processes, each with its own game; a context manager.

    Leaving it stops the workers; episodes that are not finished leave nothing behind.

    Args:
        num_workers: Number of processes.
        setup: What they play.

    Attributes:
        step_timeout: Seconds that a frame may take; the first, for which the game is made, has
            `MAKING_TIMEOUT` at least.
    """

    def __init__(self, num_workers: int, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._scenario, self.step_timeout = setup.scenario, setup.step_timeout
        self._workers: list[Worker] = []
        with interrupts_are_for_the_parent():  # who then stops its workers
            for _ in range(num_workers):
                ours, theirs = context.Pipe()
                num_frames = context.Value("q", 0, lock=False)
                process = context.Process(target=run_worker, args=(theirs, setup, num_frames))
                process.start()
                theirs.close()  # only the worker holds it now, so that its death is seen here
                self._workers.append(Worker(process, ours, num_frames))

    @property
    def num_idle(self) -> int:
        """Workers that wait for a task."""
        return sum(worker.task is None for worker in self._workers)

    def submit(self, task: EpisodeTask) -> None:
        """Give a task to an idle worker."""
        next(worker for worker in self._workers if worker.task is None).begin(task)

    def wait(self) -> list[tuple[EpisodeTask, int]]:
        """Wait until at least one task is done; return those that are, with their numbers of frames.

        Raises:
            OSError: If a worker could not write.
            WorldError: If the game or its player fails, hangs, or ends its process.
        """
        busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
        ready: list[Any] = []
        while not ready:
            ready = wait(list(busy), min(1.0, self.step_timeout / 4))
            for connection, worker in busy.items():
                if connection not in ready:  # others that are done hide none that hangs
                    self._check_moving(worker)
        finished = []
        for connection in ready:
            assert isinstance(connection, Connection)
            worker = busy[connection]
            try:
                result = connection.recv()
            except (EOFError, ConnectionError) as error:
                raise WorldError(f"{self._where(worker)} crashes: {describe_exit(worker.process)}") from error
            task, worker.task = worker.task, None
            if isinstance(result, Exception):
                raise result
            finished.append((task, result))
        return finished

    def _check_moving(self, worker: Worker) -> None:
        stood_still = worker.stood_still()
        seconds = self.step_timeout if worker.seen else max(self.step_timeout, MAKING_TIMEOUT)
        if stood_still > seconds:
            end(worker.process, 0.0)
            raise WorldError(
                f"{self._where(worker)} hangs, or who plays it: there was no other frame for "
                f"{seconds:g} s (step_timeout=)"
            )

    def _where(self, worker: Worker) -> str:
        """Return what is played, and how far it had come."""
        assert worker.task is not None
        scenario = self._scenario
        game = scenario if isinstance(scenario, str) else getattr(scenario, "env_id", scenario.name)
        after = f"after {worker.num_frames.value} frames of {worker.task.folder / worker.task.name}"
        return f"{game}, {after},"

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + 10
        for worker in self._workers:
            worker.connection.close()  # the worker notices within a few frames
        try:
            for worker in self._workers:
                worker.process.join(max(until - time.monotonic(), 0.0))
        finally:  # of the second Ctrl-C, too
            for worker in self._workers:
                end(worker.process, 0.0)
                worker.discard()


class Stopped(Exception):
    """The parent wants no more, or is gone."""


def run_worker(connection: Connection, setup: Setup, num_frames: Any) -> None:
    """Record the episodes that arrive on `connection` until it is closed; count their frames."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of PyTorch, which a learned player brings
    leave_the_terminal()

    def count_frame() -> None:
        num_frames.value += 1
        # Nothing is sent during an episode: the other end has been closed.
        if num_frames.value % 32 == 0 and connection.poll():
            raise Stopped

    with suppress(EOFError, ConnectionError, Stopped):
        try:
            with open_game(setup.scenario, labelled=True) as game:
                policy = setup.build_policy(game.entry)
                if isinstance(policy, policies.Insider):
                    policy.join(game)
                while True:
                    task = connection.recv()
                    connection.send(record_episode(game, policy, task, setup.episode_frames, count_frame))
        except (OSError, ValueError) as error:  # the disk, the game, the player; the parent reports it
            connection.send(error)
            connection.recv()  # until it does not want to know more


def record_episode(
    game: RealGame,
    policy: policies.Policy,
    task: EpisodeTask,
    episode_frames: int,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Play one episode, write it, and return its number of frames; `check` runs after each of them."""
    info = DatasetInfo.load(task.folder)
    policy.reset(task.seed if task.player_seed is None else task.player_seed)
    informed = policy if isinstance(policy, policies.Insider) and game.entry.labels else None
    wanted = informed.start if informed is not None else ""
    start = wanted if wanted in game.entry.starts else ""
    seen = game.reset(task.seed, start)
    # What was drawn from the seed can then be drawn again, and games with labels played again.
    is_repeatable = game.rooms is not None or bool(seen.labels)
    navigator = policy if isinstance(policy, policies.Navigator) else None
    if navigator is not None and game.rooms is not None:
        navigator.enter(game.rooms)
    with EpisodeWriter(task.folder, task.name, info, in_batches=True) as writer:
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
            check()
            seen = game.step(action)

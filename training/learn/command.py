"""A world from a game, by all commands in turn: `python -m training.learn env=CarRacing-v3 minutes=60`.

Records (or takes what is recorded, `data=FOLDER`), checks, trains the codec and the world, measures, and says
how to play. Every stage is one of the other commands, printed as it can be typed; the same command goes on
where it was stopped, and does no stage twice.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import torch

from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.learn.plan import (
    LEAST_FRAMES,
    SHARES,
    Footage,
    codec_settings,
    evaluate_settings,
    frame_counts,
    pretrain_settings,
    record_settings,
    train_seconds,
)
from worldsim.data.dataset_info import INFO_FILE
from worldsim.data.episodes import count_lines, list_episodes
from worldsim.errors import WorldError
from worldsim.games.gym.game import name_of
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.storage.files import read_json, user_path, write_json

STATE_FILE = "learn.json"
STAGES = ("ingest", "collect", "check", "codec", "pretrain", "evaluate")
"""Those that there may be, in turn."""
Run = Callable[[str, Sequence[str]], None]
"""Runs a command by its name with its settings."""


@dataclass(kw_only=True, slots=True)
class LearnConfig:
    """What to learn, and in what time."""

    env: str = setting(REQUIRED, "Id of a Gymnasium environment, as training.collect takes it.")
    data: str | None = setting(
        None,
        "Instead of env: folder of gameplay video, with train and heldout inside, or of recordings in "
        "another format that training.ingest reads.",
    )
    out: str | None = setting(None, "Folder of all that is made; null is runs/learn- and the game's name.")
    minutes: float = setting(
        60.0,
        "For all of it: "
        + ", ".join(f"{share:.0%} {stage}" for stage, share in SHARES.items())
        + "; the rest is for starting them. With more of them the same command trains the world that it has "
        "made for longer.",
        above=0,
    )
    device: str = setting(
        "auto", "What the sizes are for; auto is gpu if PyTorch finds one.", choices=("auto", "cpu", "gpu")
    )
    num_frames: int | None = setting(
        None, "Training frames to record; null is what fits into the minutes.", minimum=1
    )
    must_pass: bool | None = setting(
        None,
        "Whether to end where training.check finds something wrong; null is true for data, false for what "
        "this command records itself (short games of few moves look like one another).",
    )
    collect: list[str] = setting(
        [], "More settings of training.collect: [own=my_game:play,game.frame_skip=2]."
    )
    ingest: list[str] = setting([], "More settings of training.ingest, the same way.")
    codec: list[str] = setting([], "More settings of training.codec.")
    pretrain: list[str] = setting([], "More settings of training.pretrain.")
    evaluate: list[str] = setting([], "More settings of training.evaluate.")

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        name = name_of(self.env) if self.data is None else user_path(self.data).name
        return user_path(self.out or f"runs/learn-{name}")


@entry("learn", LearnConfig)
def main(config: LearnConfig) -> None:
    """Run the stages, each in a process of its own."""
    with locked_folder(config.folder):
        Learning(config, run_command).learn()


def run_command(name: str, settings: Sequence[str]) -> None:
    """Run a command in a process of its own; end it when this one is told to end.

    Raises:
        WorldError: If it fails; it has said why.
    """
    process = subprocess.Popen([sys.executable, "-m", f"training.{name}", *settings])
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status:
        raise WorldError(f"training.{name} ended with status {status}: the same command goes on from there")


class Learning:
    """All stages of a world, and which of them are done.

    Args:
        config: Settings.
        run: Runs a command.
    """

    def __init__(self, config: LearnConfig, run: Run) -> None:
        self.config, self.out, self._run = config, config.folder, run
        found = "gpu" if torch.cuda.is_available() else "cpu"
        self.device = found if config.device == "auto" else config.device
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / STATE_FILE
        self._state: dict[str, Any] = read_json(path) if path.is_file() else {"done": {}}

    def learn(self) -> None:
        """Run what is not done yet, and say how to play."""
        data = self.record() if self.config.data is None else self.take(user_path(self.config.data))
        self.check(data)
        folders = {split: data / split for split in ("train", "heldout")}
        footage = Footage.of(**folders)
        video = [f"data.{split}=[{json.dumps(str(folder))}]" for split, folder in folders.items()]
        config, minutes = self.config, self.config.minutes
        how = footage, self._state.setdefault("sized_for_minutes", minutes), self.device
        codec, world = self.out / "codec", self.out / "pretrain"
        told = [*video, *codec_settings(*how), train_seconds("codec", minutes)]
        # The world that has learned its latents needs it as it is.
        self.stage("codec", [f"out={codec}", *told, *config.codec], is_kept=True)
        told = [*video, *pretrain_settings(*how), train_seconds("pretrain", minutes)]
        self.stage("pretrain", [f"out={world}", f"codec={codec / 'codec'}", *told, *config.pretrain])
        measured = [f"world={world / 'world'}", f"data={folders['heldout']}", f"out={self.out / 'evaluate'}"]
        measured += evaluate_settings(footage, minutes, self.device, self.frame_seconds(world / "world"))
        self.stage("evaluate", [*measured, *config.evaluate])
        print(f"\nplay it: python play.py world={world / 'world'}")
        if footage.has_outcomes:
            print(f"let an agent learn in it: python -m training.rl world={world / 'world'}")

    def record(self) -> Path:
        """Record as many frames as fit into their share of the minutes; return the folder."""
        data, config = self.out / "data", self.config
        settings = [f"env={config.env}", f"out={data}"]
        minutes = self._state.setdefault("sized_for_minutes", config.minutes)
        sizes = record_settings(config.num_frames, minutes, self.device)
        self.stage("collect", [*settings, *sizes, *config.collect])
        recorded = num_recorded(data / "train"), num_recorded(data / "heldout")
        if config.num_frames is None and (recorded[0] < LEAST_FRAMES or recorded[1] < LEAST_FRAMES // 4):
            # Of a game so slow, or episodes so short, that a share of the minutes shows next to nothing.
            self.run("collect", [*settings, *frame_counts(LEAST_FRAMES), *config.collect])
        return data

    def take(self, data: Path) -> Path:
        """Return the folder of what is recorded, imported from `data` if it is in another format.

        Raises:
            WorldError: If nothing of it is held out.
        """
        if (data / INFO_FILE).is_file():
            raise WorldError(f"{data} holds episodes itself: data= is a folder with train and heldout inside")
        if not (data / "train" / INFO_FILE).is_file():
            self.stage("ingest", [f"path={data}", f"out={self.out / 'data'}", *self.config.ingest])
            data = self.out / "data"
        if not (data / "heldout" / INFO_FILE).is_file():
            raise WorldError(
                f"{data} has no heldout beside train: a world is measured on what it has not seen"
            )
        return data

    def check(self, data: Path) -> None:
        """Check what is recorded.

        Raises:
            WorldError: If something is wrong with it, and `must_pass` is set.
        """
        try:
            self.stage("check", [f"data={data}", f"out={self.out / 'check'}"])
        except WorldError as error:
            must_pass = self.config.must_pass
            if self.config.data is not None if must_pass is None else must_pass:
                raise WorldError(f"{error}; must_pass=false goes on in spite of it") from error
            print("going on in spite of it")

    def stage(self, name: str, settings: list[str], *, is_kept: bool = False) -> None:
        """Run a stage, unless it was done with the same settings, or `is_kept` and done with any."""
        before = self._state["done"].get(name)
        if before == settings or (is_kept and before is not None):
            print(f"\n== {name}: done", flush=True)
            return
        self.run(name, settings)
        place = STAGES.index(name)  # what was done after it was done with what it made before
        done = {each: how for each, how in self._state["done"].items() if STAGES.index(each) < place}
        self._save(done=done | {name: settings})

    def run(self, name: str, settings: list[str]) -> None:
        """Say what is run, and run it."""
        share = f", about {self.config.minutes * SHARES[name]:.2g} minutes" if name in SHARES else ""
        print(f"\n== {name}{share}\npython -m training.{name} {shlex.join(settings)}", flush=True)
        self._run(name, settings)

    def frame_seconds(self, world: Path) -> float:
        """Return how long a frame of a world takes here, once measured."""
        if "frame_seconds" not in self._state:
            self._save(frame_seconds=time_frame(world, self.device))
        return self._state["frame_seconds"]

    def _save(self, **changed: Any) -> None:
        self._state |= changed
        write_json(self.out / STATE_FILE, self._state)


def num_recorded(folder: Path) -> int:
    """Return how many frames there are in a folder."""
    return sum(count_lines(folder, name) for name in list_episodes(folder))


def time_frame(world: Path, device: str) -> float:
    """Return how many seconds a world takes for a frame: the median of five."""
    on = "cuda" if device == "gpu" and torch.cuda.is_available() else "cpu"
    seconds = []
    with closing(gym.make("ARL2World-v0", world=str(world), device=on)) as env:
        env.reset(seed=0)
        for _ in range(6):  # the first is slower
            begin = time.perf_counter()
            *_, terminated, _, _ = env.step(env.action_space.sample())
            seconds.append(time.perf_counter() - begin)
            if terminated:
                env.reset()
    return round(median(seconds[1:]), 4)

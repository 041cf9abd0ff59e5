"""A world from a game, by all commands in turn: `python -m training.learn env=CarRacing-v3 minutes=60`.

Records (or takes what is recorded, `data=FOLDER`), checks, trains the codec and the world, measures, and says
how to play. `init=WORLD` goes on from a world: it records fresh video of its game, and trains its network on.
Every stage is one of the other commands, printed as it can be typed; the same command goes on where it was
stopped, and does no stage twice.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import torch

from training import STARTED
from training.cli.entry import entry
from training.cli.overrides import play_command, quoted
from training.engine.lock import locked_folder, wait_for_folder
from training.learn.before import Before
from training.learn.plan import (
    LEAST_FRAMES,
    MAX_FRAMES,
    SHARES,
    Footage,
    clock_settings,
    codec_settings,
    evaluate_settings,
    finetune_settings,
    frame_counts,
    fresh_frames,
    pretrain_settings,
    record_settings,
    train_seconds,
)
from training.learn.settings import LearnConfig
from worldsim.data.dataset_info import INFO_FILE, DatasetInfo
from worldsim.data.episodes import count_lines, list_episodes
from worldsim.errors import WorldError
from worldsim.runtime.child import ending_with_parent
from worldsim.storage.files import read_json, user_path, write_json

STATE_FILE = "learn.json"
STAGES = ("ingest", "collect", "check", "codec", "pretrain", "finetune", "evaluate")
"""Those that there may be, in turn."""
FOLDERS = {"ingest": "data", "collect": "data"}
"""Of stages that do not write where their name says."""
ENDING_SECONDS = 120.0
"""That a stage has to end whose learn was killed: it writes its checkpoint."""
LATENT_BYTES, GPU_PART = 2, 0.25
"""Of a number of latents; of a GPU's memory, for those of what is recorded."""
Run = Callable[[str, Sequence[str]], None]
"""Runs a command by its name with its settings."""


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
    command = [sys.executable, "-m", f"training.{name}", *settings]
    process = subprocess.Popen(command, preexec_fn=ending_with_parent())
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
        started: When the time began that `minutes` counts, as `time.monotonic` tells it.
    """

    def __init__(self, config: LearnConfig, run: Run, started: float = STARTED) -> None:
        self.config, self.out, self._run, self._started = config, config.folder, run, started
        self._before = None if config.init is None else Before.find(config.init)
        found = "gpu" if torch.cuda.is_available() else "cpu"
        self.device = found if config.device == "auto" else config.device
        self.out.mkdir(parents=True, exist_ok=True)
        self._state = read_state(self.out / STATE_FILE)
        self._spent_before: float = self._state.get("spent_seconds", 0.0)

    @property
    def spent(self) -> float:
        """Seconds that this command and those before it took for the same world."""
        return self._spent_before + time.monotonic() - self._started

    def learn(self) -> None:
        """Run what is not done yet, and say how to play."""
        config = self.config
        data = self.record() if config.data is None else self.take(user_path(config.data))
        folders = {split: data / split for split in ("train", "heldout")}
        if self._before is not None:
            self._before.check_same(DatasetInfo.load(folders["train"]), str(folders["train"]))
        self.check(data)
        footage = Footage.of(**folders)
        if self._before is not None and not self._before.config.denoiser.outcome_heads:
            footage = replace(footage, has_outcomes=False)
        video = [f"data.{split}=[{quoted(str(folder))}]" for split, folder in folders.items()]
        world = (
            self.train(footage, video) if self._before is None else self.go_on(footage, video, self._before)
        )
        measured = [f"world={world}", f"data={folders['heldout']}", f"out={self.out / 'evaluate'}"]
        measured += evaluate_settings(footage, config.minutes, self.device, self.frame_seconds(world))
        self.stage("evaluate", [*measured, *config.evaluate])
        print(f"\nplay it: {play_command(world)}")
        if footage.has_outcomes:
            print(f"let an agent learn in it: python -m training.rl {shlex.quote(f'world={world}')}")
        again = shlex.join([f"init={world}", f"minutes={config.minutes:g}"])
        print(f"go on from it: python -m training.learn {again}")

    def train(self, footage: Footage, video: Sequence[str]) -> Path:
        """Train a codec and a world from nothing; return the world's folder."""
        how = footage, self._state.setdefault("sized_for_minutes", self.config.minutes), self.device
        codec, world = self.out / "codec", self.out / "pretrain"
        told = [*video, *codec_settings(*how), *self.clock("codec")]
        # The world that has learned its latents needs it as it is.
        self.stage("codec", [f"out={codec}", *told, *self.config.codec], is_kept=True)
        told = [f"codec={codec / 'codec'}", *video, *pretrain_settings(*how), *self.clock("pretrain")]
        self.stage("pretrain", [f"out={world}", *told, *self.config.pretrain])
        return world / "world"

    def go_on(self, footage: Footage, video: Sequence[str], before: Before) -> Path:
        """Train the network of a world on, with the codec that it has; return the new world's folder."""
        how = footage, self._state.setdefault("sized_for_minutes", self.config.minutes), self.device
        world, model = self.out / "finetune", before.config.denoiser
        told = finetune_settings(*how, model, before.config.sampler.num_steps)
        told = [f"init={before.name}", *video, *told, *self.clock("finetune")]
        self.stage("finetune", [f"out={world}", *told, *self.config.finetune])
        return world / "world"

    def clock(self, stage: str) -> list[str]:
        """Return the settings of a training's length; one that was begun for as many minutes keeps it."""
        minutes, known = self.config.minutes, self._state.get("trainings", {})
        begun = known.get(stage)
        if begun is None or begun["minutes"] != minutes:
            trained = begun["seconds"] if begun is not None and stage in self._state["done"] else 0.0
            seconds = train_seconds(stage, minutes, self.spent, self.device, trained)
            begun = {"minutes": minutes, "seconds": round(seconds, 3)}
            self._save(trainings=known | {stage: begun})
        return clock_settings(begun["seconds"])

    def record(self) -> Path:
        """Record as many frames as fit into their share of the minutes; return the folder."""
        data, config = self.out / "data", self.config
        asked = {each.partition("=")[0] for each in config.collect}
        settings = [*self.game_settings(asked), f"out={data}"]
        minutes = self._state.setdefault("sized_for_minutes", config.minutes)
        wanted = asked_number("num_frames", config.collect) or config.num_frames
        sizes = record_settings(wanted, minutes, self.device, self.most_frames(minutes))
        self.stage("collect", [*settings, *sizes, *config.collect])
        recorded = num_recorded(data / "train"), num_recorded(data / "heldout")
        is_short = (
            recorded[0] < LEAST_FRAMES,
            recorded[1] < LEAST_FRAMES // 4 and "heldout_frames" not in asked,
        )
        if wanted is None and "max_seconds" not in asked and any(is_short):
            # Of a game so slow, or episodes so short, that a share of the minutes shows next to nothing.
            self.run("collect", [*settings, *frame_counts(LEAST_FRAMES), *config.collect])
        return data

    def game_settings(self, asked: set[str]) -> list[str]:
        """Return what `training.collect` is told to record.

        Raises:
            WorldError: If a world is gone on from, and its game is not known, or another one.
        """
        config, before = self.config, self._before
        if before is None:
            return [f"env={config.env}"] if config.env is not None else [f"scenario={config.scenario}"]
        settings = before.collect_settings(config.scenario, config.env, sorted(asked))
        if "collect" not in self._state["done"]:
            before.check_game(settings, sorted(asked))
        return settings

    def most_frames(self, minutes: float) -> int | None:
        """Return how many frames are of use to a world that goes on; None for one from nothing."""
        if self._before is None:
            return None
        model, most = self._before.config.denoiser, MAX_FRAMES[self.device]
        if self.device == "gpu" and torch.cuda.is_available():
            room = torch.cuda.get_device_properties(0).total_memory * GPU_PART
            most = int(room / (LATENT_BYTES * math.prod(model.latent_shape)))
        return fresh_frames(minutes, self.device, model.min_weights, most)

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
        wait_for_folder(self.out / FOLDERS.get(name, name), ENDING_SECONDS)
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
        self._state |= {**changed, "spent_seconds": round(self.spent, 1)}
        write_json(self.out / STATE_FILE, self._state)


def read_state(path: Path) -> dict[str, Any]:
    """Return what an earlier command has noted of its stages; nothing is done where there is no such file.

    Raises:
        WorldError: If it is no such note.
    """
    state = read_json(path) if path.is_file() else {"done": {}}
    is_ours = isinstance(state, dict) and all(
        isinstance(state.get(name, kind()), kind)
        for name, kind in (("done", dict), ("trainings", dict), ("spent_seconds", float))
    )
    if not is_ours or "done" not in state:
        raise WorldError(f"{path} is not what this command writes: without it all stages are run again")
    return state


def asked_number(name: str, settings: Sequence[str]) -> int | None:
    """Return the number that a setting is given among others, the last one counts; None if there is none."""
    given = [value for key, _, value in (each.partition("=") for each in settings) if key == name]
    text = given[-1].replace("_", "") if given else ""
    return int(text) if text.isdecimal() else None


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

"""The world that another one goes on from: its game, its players, and what its video has to be like."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from training.cli.overrides import quoted
from training.collect import NUM_RUNS, PLAYER_SETTINGS
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.games.gym.apart import STEP_TIMEOUT, describe_apart
from worldsim.games.gym.config import GymConfig
from worldsim.games.registry import GAMES, find_game
from worldsim.storage.files import shown
from worldsim.storage.tensors import check_file
from worldsim.world.config import WorldConfig
from worldsim.world.video_config import VideoWorldConfig
from worldsim.world.world import MODEL_FILE, find_world, read_config

OUR_CODE = "policies."
"""Before the names of players that are part of this project."""


@dataclass(frozen=True)
class Before:
    """A world to go on from.

    Attributes:
        name: As it was given.
        config: Its description.
        digest: SHA-256 of its network's file.
    """

    name: str
    config: WorldConfig
    digest: str

    @classmethod
    def find(cls, name: str) -> Before:
        """Look for a world, whose network's file is compared with its checksum.

        Raises:
            WorldError: If there is none, it is damaged, or it is one of a video transformer.
        """
        folder = find_world(name)
        config, checksums = read_config(folder)
        if isinstance(config, VideoWorldConfig):
            raise WorldError(
                f"{name} is a world of a video transformer, which training.finetune init={name} trains on"
            )
        check_file(folder, MODEL_FILE, checksums.get(MODEL_FILE))
        return cls(name, config, checksums[MODEL_FILE])

    @property
    def seed(self) -> int:
        """Of recordings that it has not seen: each world has its own, and the same command the same one."""
        return int(self.digest[:8], 16) % NUM_RUNS

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What makes the environment that it was recorded from; empty if there is none."""
        known = {"id", *(each.name for each in fields(GymConfig))}
        return self._told("environment", known)

    @cached_property
    def recording(self) -> dict[str, Any]:
        """Who played, as settings of `training.collect`; empty if it does not say."""
        return self._told("recording", PLAYER_SETTINGS)

    def _told(self, name: str, known: Collection[str]) -> dict[str, Any]:
        """Return an object of its provenance, {} if there is none; no other settings than these are taken.

        Nor is what Hydra would put something else in the place of: `${...}` can stand for code that is named.
        """
        told = self.config.provenance.get(name, {})
        if not isinstance(told, dict) or told.keys() - set(known) or "${" in json.dumps(told):
            raise WorldError(f"the world {self.name} has {name} that is not known: {shown(told)}")
        return told

    def collect_settings(self, scenario: str | None, env: str | None, asked: Sequence[str]) -> list[str]:
        """Return the settings that record its game by its players, with a seed of its own.

        Args:
            scenario: Given beside it, if it is.
            env: The same.
            asked: Names of the settings of `training.collect` that are given as well, and come before these.

        Raises:
            WorldError: If it does not say which game that is, or only names code that would have to be run.
        """
        game = self._game(scenario, env, asked)
        return [*game, f"seed={self.seed}", *self._players(game[0], asked)]

    def _game(self, scenario: str | None, env: str | None, asked: Sequence[str]) -> list[str]:
        if scenario is not None:
            return [f"scenario={scenario}"]
        made = {name: value for name, value in self.environment.items() if name != "id"}
        own = self.environment.get("id")
        if env is None and own is None:
            if self.config.name not in GAMES:
                raise WorldError(
                    f"the world {self.name} does not say which game it was recorded from: give "
                    "scenario=, env= or data= beside init="
                )
            return [f"scenario={self.config.name}"]
        if env is None and (not isinstance(own, str) or ":" in own):
            raise WorldError(
                f"the world {self.name} was recorded from {own}, code named by its file, not run unasked: "
                f"give {shlex.quote(f'env={own}')} beside init="
            )
        if env not in (None, own):
            return [f"env={env}"]
        if made.get("wrappers") and "game.wrappers" not in asked:
            wrappers = typed(made["wrappers"]).replace('"', "")
            raise WorldError(
                f"the world {self.name} was recorded in wrappers, code named by its file, not run unasked: "
                f"give {_asked(f'game.wrappers={wrappers}')} beside init="
            )
        return [f"env={own}", *(f"game.{name}={typed(value)}" for name, value in made.items())]

    def check_game(self, settings: Sequence[str], asked: Sequence[str]) -> None:
        """Raise `WorldError` if what is about to be recorded has another size, or other buttons, than before.

        Args:
            settings: From `collect_settings`.
            asked: Names of those that are given as well: where one is of the game, nobody knows yet.
        """
        kind, _, name = settings[0].partition("=")
        if kind == "scenario":
            game = find_game(name)
        elif any(each.startswith("game.") for each in asked):
            return
        else:
            made = {key: value for key, value in self.environment.items() if key != "id"}
            config = GymConfig(**made) if name == self.environment.get("id") else GymConfig()
            game = describe_apart(name, config, STEP_TIMEOUT)
        self.check_same(game.dataset_info(""), f"the game {name}")

    def _players(self, game: str, asked: Sequence[str]) -> list[str]:
        if "policy" in asked:
            return []
        recording = self.recording
        if not recording:
            kind, _, name = game.partition("=")
            who = "its game's usual players" if kind == "scenario" else "random buttons"
            print(f"{self.name} does not say who played: {who} do ('collect=[policy=...]' says otherwise)")
            return ["policy=mixed"] if kind == "scenario" and GAMES[name].players else []
        own = recording.get("own")
        is_code = isinstance(own, str) and not own.startswith(OUR_CODE) and not own.endswith(".zip")
        if is_code and "own" not in asked:
            raise WorldError(
                f"the world {self.name} was recorded with own={own}, code named by its file, not run "
                f"unasked: give {_asked(f'own={own}')} beside init="
            )
        return [f"{name}={typed(value)}" for name, value in recording.items()]

    def check_same(self, info: DatasetInfo, source: str) -> None:
        """Raise `WorldError` unless video has the world's frame size, buttons and frame rate.

        Args:
            info: Of the video, or of what would be recorded.
            source: What it is of, for the sentence.
        """
        config = self.config
        for what, found, needed in (
            ("frames of", f"{info.width} x {info.height}", f"{config.width} x {config.height}"),
            ("the buttons", _buttons(info.actions), _buttons(config.actions)),
            ("frames a second:", f"{info.frame_rate:g}", f"{config.frame_rate:g}"),
        ):
            if found != needed:
                raise WorldError(
                    f"{source} has {what} {found}, the world {self.name} {needed}: it goes on with video of "
                    "its own kind alone"
                )


def typed(value: Any) -> str:
    """Return a value of JSON as it is typed for a setting; a key of an object is not quoted."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{typed(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(typed, value)) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def _asked(setting: str) -> str:
    """Return how a shell is told to give a setting to the recording."""
    return shlex.quote(f"collect=[{quoted(setting)}]")


def _buttons(actions: Any) -> str:
    return "; ".join(f"{axis.name} ({', '.join(axis.buttons)})" for axis in actions.axes)

"""A Gymnasium environment as a game: its entry, made by looking at it once, and the game while it runs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from worldsim.errors import WorldError
from worldsim.games.entry import GameEntry, Observation, RealGame
from worldsim.games.gym.actions import ActionMap, map_actions
from worldsim.games.gym.config import GymConfig
from worldsim.games.gym.making import Env, open_env, told, version_of
from worldsim.games.gym.names import find_names
from worldsim.games.gym.pictures import RENDER, Fitting, Shrinker, as_picture, choose_fitting, choose_picture
from worldsim.storage.files import shown

DEFAULT_RATE = 30.0
"""Frames per second of an environment that does not say."""
MAX_EPISODE_FRAMES = 2001
"""Of a recording, unless told otherwise: longer episodes are cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GymEntry(GameEntry):
    """An environment.

    Attributes:
        env_id: As `gymnasium.make` takes it, or an import path (`worldsim.games.gym.making.open_env`).
        config: How it is made, seen and pressed.
        action_map: What its buttons do.
        picture: Where its pictures come from.
        fitting: What becomes of them.
        version: Of the packages it is from.
    """

    env_id: str
    config: GymConfig
    action_map: ActionMap = field(compare=False)
    picture: str
    fitting: Fitting
    version: str
    ending: str = field(default="ended", init=False)
    clock_unit: str = field(default="steps", init=False)

    def engine_version(self) -> str:
        """Return the versions of the packages that it is from."""
        return self.version

    def open(self, *, labelled: bool = False) -> GymGame:
        """Make the environment; it has no labels."""
        return GymGame(self)

    @property
    def environment(self) -> dict[str, Any]:
        """What makes this entry again, as a JSON object; see `restore_entry`."""
        return {"id": self.env_id, **self.config.to_json()}


class GymGame(RealGame):
    """A running environment.

    Attributes:
        env: The environment itself, for players that know it.
        observation: Its own, of the moment that is shown.

    Args:
        entry: What is played.

    Raises:
        WorldError: If it cannot be made.
    """

    def __init__(self, entry: GymEntry) -> None:
        self.entry: GymEntry = entry  # type: ignore[override] - nobody sets another one
        config = entry.config
        self.env = open_env(entry.env_id, config.arguments, config.wrappers, renders=entry.picture == RENDER)
        self.observation: Any = None
        self._shrinker, self._reformatter = Shrinker(), VideoReformatter()
        self._last: Observation | None = None

    def reset(self, seed: int, start: str = "") -> Observation:
        """Begin an episode of a seed; there are no other starts."""
        with told(f"{self.entry.env_id} fails in reset"):
            self.observation, _ = self.env.reset(seed=seed)
        self._last = Observation(self._frame(), None)
        return self._last

    def step(self, action: np.ndarray) -> Observation:
        """Take a step, or `frame_skip` of them, with an action `[axes]`.

        Raises:
            WorldError: If the action does not fit, no episode is under way, or the environment fails, changes
                the size of its pictures or gives a reward that is no finite number.
        """
        if self._last is None or self._last.terminated or self._last.truncated:
            raise WorldError("the game has not been started or has ended: call reset first")
        own = self.entry.action_map.decode(self.entry.actions.validate(action))
        if own is None:
            self._last = Observation(self._last.frame, None)
            return self._last
        reward, terminated, truncated = 0.0, False, False
        with told(f"{self.entry.env_id} fails in step"):
            for _ in range(self.entry.config.frame_skip):
                self.observation, gained, terminated, truncated, _ = self.env.step(own)
                reward += float(gained)
                if terminated or truncated:
                    break
        if not np.isfinite(reward):
            raise WorldError(f"{self.entry.env_id} gives the reward {reward}: it must be a finite number")
        self._last = Observation(self._frame(), None, reward, bool(terminated), bool(truncated))
        return self._last

    def encode(self, action: Any) -> np.ndarray:
        """Return the layout's action `[axes]` that is nearest to one of the environment's own.

        Raises:
            WorldError: If it is none of its space.
        """
        try:
            return self.entry.action_map.encode(action)
        except WorldError as error:
            raise WorldError(f"{self.entry.env_id}: {error}") from error

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _frame(self) -> np.ndarray:
        picture = take_picture(self.env, self.observation, self.entry.picture, self.entry.env_id)
        fitting = self.entry.fitting
        if picture.shape[:2] != (fitting.rows, fitting.columns):
            raise WorldError(
                f"{self.entry.env_id} shows pictures of {picture.shape[1]} x {picture.shape[0]} after those "
                f"of {fitting.columns} x {fitting.rows}: a recording has one size"
            )
        return fitting.fit(picture, self._shrinker, self._reformatter)


def take_picture(env: Env, observation: Any, source: str, env_id: str) -> np.ndarray:
    """Return what is seen now, `[H, W, 3]` uint8.

    Raises:
        WorldError: If it is no picture.
    """
    if source == RENDER:
        with told(f"{env_id} fails in render"):
            found: Any = env.render()
        if not isinstance(found, np.ndarray):
            raise WorldError(
                f"{env_id} shows nothing to record: its observations are no pictures, and render gives a "
                f"{type(found).__name__} for render_mode rgb_array"
            )
        return as_picture(found, f"render of {env_id}")
    found = observation[source] if isinstance(observation, dict) else observation
    return as_picture(found, f"observation of {env_id}")


def describe_env(env_id: str, config: GymConfig) -> GymEntry:
    """Look at an environment once, and return its entry.

    Raises:
        WorldError: If it cannot be made, shows no pictures, or has actions that cannot be made buttons.
    """
    env = open_env(env_id, config.arguments, config.wrappers, renders=config.picture == RENDER)
    try:
        source = choose_picture(env.observation_space, config.picture, env_id)
        if source == RENDER and env.render_mode is None:
            env.close()
            env = open_env(env_id, config.arguments, config.wrappers, renders=True)
        names = config.action_names or find_names(env, env_id)
        action_map = map_actions(env.action_space, names, config.bins, config.scale, env_id)
        with told(f"{env_id} fails in reset"):
            observation, _ = env.reset(seed=0)
        fitting = choose_fitting(take_picture(env, observation, source, env_id), config)
        rate = config.frame_rate or float(env.metadata.get("render_fps") or DEFAULT_RATE) / config.frame_skip
        steps = None if env.spec is None else env.spec.max_episode_steps
        version = version_of(env)
    finally:
        env.close()
    longest = None if steps is None else -(-steps // config.frame_skip)
    return GymEntry(
        name=config.name or name_of(env_id),
        game=describe_game(env_id, config, action_map, source, fitting),
        licence=config.licence,
        actions=action_map.layout,
        height=fitting.size.height,
        width=fitting.size.width,
        episode_frames=MAX_EPISODE_FRAMES if longest is None else min(longest + 1, MAX_EPISODE_FRAMES),
        max_episode_steps=longest,
        tics_per_second=rate * config.frame_skip,
        tics_per_frame=config.frame_skip,
        lossless=config.lossless,
        env_id=env_id,
        config=config,
        action_map=action_map,
        picture=source,
        fitting=fitting,
        version=version,
    )


def restore_entry(environment: dict[str, Any]) -> GymEntry:
    """Return the entry of an environment as `GymEntry.environment` describes it, in a world's file say.

    Such a file may be somebody else's: what names code to import is not followed.

    Raises:
        WorldError: If it does, or is no such description.
    """
    settings = dict(environment)
    env_id = settings.pop("id", None)
    if not isinstance(env_id, str) or settings.keys() - {field.name for field in fields(GymConfig)}:
        raise WorldError(f"an environment is an id and settings of game, got {shown(environment)}")
    if ":" in env_id or settings.get("wrappers"):
        raise WorldError(
            f"{env_id} is made by code that its description names, which is not run unasked: register it "
            "with Gymnasium, wrappers included, under an id of its own"
        )
    with told(f"{env_id} cannot be made as it is described"):
        config = GymConfig(**settings)
    return describe_env(env_id, config)


def describe_game(
    env_id: str, config: GymConfig, action_map: ActionMap, source: str, fitting: Fitting
) -> str:
    """Return in words how an environment is made, seen and pressed."""
    parts = [
        env_id + (f" {json.dumps(config.arguments, sort_keys=True, default=str)}" if config.kwargs else ""),
        f"in {', '.join(config.wrappers)}" if config.wrappers else "",
        f"{config.frame_skip} steps a frame" if config.frame_skip > 1 else "",
        source,
        fitting.describe(),
        action_map.about,
    ]
    return "; ".join(filter(None, parts))


def name_of(env_id: str) -> str:
    """Return a name for a game and its world: `car-racing` of `CarRacing-v3`, `pong` of `ALE/Pong-v5`."""
    last = re.split(r"[:/]", env_id)[-1].replace("MiniGrid", "Minigrid")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", re.sub(r"-v\d+$", "", last))
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "game"

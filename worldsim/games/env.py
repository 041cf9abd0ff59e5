"""A real game as a Gymnasium environment, beside the world that learned it: `gym.make("DoomGame-v0")`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from worldsim.envs.vector_arguments import read_options
from worldsim.errors import WorldError
from worldsim.games.entry import MAX_SEED, GameEntry, Observation, RealGame
from worldsim.games.registry import find_game
from worldsim.storage.files import plain

EVALUATION_SEEDS = 4_000_000_000
"""Games of this seed and above, up to 2^32 - 1, are never drawn: they are left to evaluations."""
OPTIONS = ("game_seed",)


class RealGameEnv(gym.Env[np.ndarray, np.ndarray]):
    """A registered game with the spaces, the rewards and the ends that a world of it has.

    Observations are frames, `[height, width, 3]` uint8; actions are one whole number for each axis of the
    game's buttons, held for its `tics_per_frame`. The reward adds up those tics, in the game's own units.
    `terminated` is True when the game ended, `truncated` where it was cut off. `info` holds `frame_index`,
    the number of frames since the start, and `game_seed`, which decides the game.

    Args:
        scenario: What is played: the name of a game in the registry, or its entry.
        render_mode: `rgb_array` or None.

    Raises:
        WorldError: If there is no such game or render mode, or what plays it is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 17.5}

    def __init__(self, scenario: GameEntry | str = "doom-take-cover", render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise WorldError(f"render_mode of a real game must be rgb_array or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.entry = find_game(scenario)
        self.observation_space = gym.spaces.Box(0, 255, (self.entry.height, self.entry.width, 3), np.uint8)
        self.action_space = self.entry.actions.space()
        self.metadata = self.metadata | {"render_fps": self.entry.frame_rate}
        self._game: RealGame | None = self.entry.open()
        self._seen: Observation | None = None
        self._frame_index, self._game_seed = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a game.

        Args:
            seed: Decides which games are played from here on; without one the stream goes on.
            options: `game_seed`, 0 to 2^32 - 1, the game itself; without it one below `EVALUATION_SEEDS` is
                drawn.

        Raises:
            WorldError: If there is no such game, or an option is unknown.
            ResetNeeded: After `close`.
        """
        game = self._open_game("reset")
        chosen = plain(read_options(options, OPTIONS).get("game_seed"))
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen <= MAX_SEED):
            raise WorldError(f"game_seed must be a whole number from 0 to {MAX_SEED}, got {chosen!r}")
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(EVALUATION_SEEDS))  # in any case: the stream stays as it is
        self._game_seed = drawn if chosen is None else chosen
        self._frame_index = 0
        self._seen = game.reset(self._game_seed)
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold an action for a frame.

        Raises:
            ResetNeeded: Before `reset`, and after the game has ended or was cut off.
            WorldError: If the action is outside the space.
        """
        game = self._open_game("step")
        if self._seen is None:
            raise ResetNeeded("step was called before reset")
        if self._seen.terminated or self._seen.truncated:
            raise ResetNeeded("step was called after the episode had ended: call reset")
        seen = self._seen = game.step(np.asarray(action))
        self._frame_index += 1
        return self._observation(), float(seen.reward), seen.terminated, seen.truncated, self._info()

    def render(self) -> np.ndarray | None:  # type: ignore[override] - Gymnasium leaves the frame's type open
        """Return the frame shown last, `[height, width, 3]` uint8; None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing without a render_mode, for example 'rgb_array'")
            return None
        return self._observation()

    def close(self) -> None:
        """End the engine's process; may be called again."""
        if self._game is not None:
            self._game.close()
            self._game = None

    def _open_game(self, caller: str) -> RealGame:
        if self._game is None:
            raise ResetNeeded(f"{caller} was called after close")
        return self._game

    def _observation(self) -> np.ndarray:
        if self._seen is None:
            raise ResetNeeded("render was called before reset")
        return self._seen.frame.copy()  # a copy: the last frame may be shown again after an end

    def _info(self) -> dict[str, Any]:
        return {"frame_index": self._frame_index, "game_seed": self._game_seed}

"""Adapter of vector environments to Stable-Baselines3: `PPO("CnnPolicy", SB3VecEnv(envs))`.

Needs the extra `rl`.
"""

# N environments

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from worldsim.errors import WorldError

Infos = list[dict[str, Any]]


class SB3VecEnv(VecEnv):
    """Hand a Gymnasium vector environment to Stable-Baselines3 as it is, without copies of it.

    Episodes that end are reset in the same step, in the mode `Disabled` by a reset of their rows alone: that
    is the mode for Gymnasium's wrappers of observations, which refuse `SameStep`. The last frame of the old
    one is in its info as `terminal_observation`, and `TimeLimit.truncated` says whether it was cut off, as
    SB3's own environments do. What a vector wrapper adds to the infos, `RecordEpisodeStatistics`' `episode`
    for one, is passed on.

    Args:
        envs: Environment, wrapped or not, with `autoreset_mode="SameStep"` or `"Disabled"` and NumPy output.
        keeps_tensors: Take one with `output="torch"` as well and leave its observations as they are, for a
            wrapper that makes of them what SB3 takes; `terminal_observation` is a tensor then.

    Raises:
        WorldError: If it has another autoreset mode, or gives tensors that are not wanted.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], *, keeps_tensors: bool = False) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            found = mode.value if isinstance(mode, AutoresetMode) else mode
            raise WorldError(
                "SB3 needs environments with autoreset_mode='SameStep' or 'Disabled' (that for wrappers of "
                f"observations), these have {found!r}"
            )
        if not keeps_tensors and getattr(envs.unwrapped, "output", "numpy") != "numpy":
            raise WorldError("SB3 needs environments with output='numpy', these give tensors")
        self.envs = envs
        self._actions: np.ndarray | None = None
        self._resets_rows = mode is AutoresetMode.DISABLED
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        # The frame rate above all: SB3's recorder of videos looks for it here.
        self.metadata = dict(envs.metadata) | self.metadata

    def reset(self) -> np.ndarray:
        """Reset with what `seed` and `set_options` gave; returns observations `[N, H, W, 3]`."""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, infos = self.envs.reset(seed=seeds, options=self._joined_options())  # type: ignore[arg-type]
        self.reset_infos = _rows_of(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions, `[N, A]`, for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Step; returns observations, rewards `[N]` float32, dones `[N]` bool, and an info for each row."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        rewards, terminated, truncated = map(_to_numpy, (rewards, terminated, truncated))
        final_frames, final_info = infos.pop("final_obs", None), infos.pop("final_info", {})
        rows, done = _rows_of(infos, self.num_envs), terminated | truncated
        if self._resets_rows:
            final_frames = observations
        for info, is_cut in zip(rows, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = is_cut
        if done.any():
            finals = _rows_of(final_info, self.num_envs)
            for row in np.flatnonzero(done):
                # A step that ends an episode tells of that episode; what tells of the next is kept apart.
                self.reset_infos[row] = {name: rows[row][name] for name in finals[row] if name in rows[row]}
                rows[row] |= finals[row] | {"terminal_observation": final_frames[row]}
            if self._resets_rows:
                observations = self._reset_rows(done)
        return observations, rewards.astype(np.float32), done, rows

    def _reset_rows(self, done: np.ndarray) -> np.ndarray:
        """Reset the rows whose episodes have ended; returns the observations of all."""
        observations, infos = self.envs.reset(options={"reset_mask": done.copy()})
        begun = _rows_of(infos, self.num_envs)
        for row in np.flatnonzero(done):
            self.reset_infos[row] = begun[row]
        return observations

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return the frames shown last."""
        frames = self.envs.render()
        return [None] * self.num_envs if frames is None else list(frames)  # type: ignore[arg-type]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, once for each row asked for: all rows share one environment.

        Raises:
            AttributeError: If there is no such attribute.
        """
        value = getattr(self.envs.unwrapped, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: rows have no attributes of their own.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"{attr_name!r} cannot be set for single rows: they share one environment")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: rows have no methods of their own; call those of `envs`.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            f"{method_name!r} cannot be called on single rows: they share one environment, `envs`"
        )

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each row: no single environment is there to be wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _joined_options(self) -> dict[str, Any] | None:
        if not any(self._options):
            return None
        names = {name for options in self._options for name in options}
        return {name: [options.get(name) for options in self._options] for name in sorted(names)}


def _to_numpy(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def _rows_of(infos: dict[str, Any], num_envs: int) -> Infos:
    """Return Gymnasium's dictionary of arrays as one dictionary for each environment."""
    rows: Infos = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        if name.startswith("_"):
            continue
        # `tolist`: one call for all rows, and plain numbers instead of NumPy's.
        listed = _rows_of(values, num_envs) if isinstance(values, dict) else values.tolist()
        mask = infos.get(f"_{name}")
        for row in range(num_envs) if mask is None else np.flatnonzero(mask).tolist():
            rows[row][name] = listed[row]
    return rows

"""Many dreams of one world as a Gymnasium vector environment: `gym.make_vec("ARL2World-v0", num_envs=8)`.

One forward pass steps all dreams; on a CPU, one for each thread. What may be asked of them is read in
`worldsim.envs.vector_arguments`.
"""

# N environments, H W frame size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldsim.envs.base import DreamEnv
from worldsim.envs.row_threads import RowThreads
from worldsim.envs.vector_arguments import (
    OPTIONS,
    Seeds,
    check_settings,
    read_actions,
    read_autoreset_mode,
    read_mask,
    read_options,
    read_seeds,
    read_starts,
)
from worldsim.errors import WorldError
from worldsim.runtime.config import RuntimeConfig
from worldsim.runtime.isolation import isolated
from worldsim.starts import Start
from worldsim.state import WorldState
from worldsim.storage.files import check_integer, plain
from worldsim.world import World

Array = np.ndarray | torch.Tensor
Step = tuple[Array, Array, Array, Array, dict[str, Any]]


class ARL2WorldVectorEnv(DreamEnv, VectorEnv[Array, Array, Array]):
    """N dreams of a learned world, stepped together.

    Observations are frames, `[N, H, W, 3]` uint8; actions `[N, A]`, whole numbers of the world's axes;
    rewards `[N]`, terminations and truncations `[N]` bool; `infos` are those of Gymnasium's own vector
    environments, with `frame_index` and `start`, in a world with outcome heads with `end_probability` of the
    frames that were dreamt, and in a video world with `frames_until_action`, see the single environment. Row
    i with seed s is the dream of the single environment with seed s; products of more rows may round
    otherwise, and the two then drift apart slowly. The same calls with the same N and number of threads give
    the same bytes.

    Without outcome heads every reward is 0 and no episode terminates: the first `reset` warns of that.

    Args:
        num_envs: N, at least 1.
        world: As in `worldsim.envs.single.ARL2WorldEnv`, as are `device`, `dtype`, `denoising_steps` and
            `noise_scale`. Its memory may not grow.
        render_mode: `rgb_array` or None.
        max_episode_steps: Frames after which an episode is truncated; None is the world's own longest game,
            if it has one, else never.
        autoreset_mode: Of Gymnasium: `NextStep`, `SameStep` or `Disabled`.
        output: `numpy`, or `torch` for tensors on the world's device (rewards then fp32); `infos` stay NumPy.
        starts: Start moments to begin from, instead of the world's own; `worldsim.starts.draw_starts` takes
            some from recorded episodes.
        compile: How a GPU is given its kernels: `none` one by one, `cudagraphs` all of a step at once,
            `inductor` those of `torch.compile`, at once; `auto` is `cudagraphs` on a GPU, else `none`. Of a
            video world `inductor`, its choice on a GPU, compiles the decoder and records the rest.
        discrete_actions: Whether each action is one number, as in the single environment; `[N]` then.

    Raises:
        WorldError: If the world, or one of the settings, is not there or not valid.
    """

    metadata = {
        "render_modes": ["rgb_array"],
        "render_fps": 17.5,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        world: str | Path | World | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        denoising_steps: int | None = None,
        noise_scale: float | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        starts: Sequence[Start] | None = None,
        compile: str = "auto",
        discrete_actions: bool = False,
    ) -> None:
        runtime = RuntimeConfig(
            device=device,
            dtype=dtype,
            denoising_steps=denoising_steps,
            noise_scale=noise_scale,
            compile=compile,
        )
        num_envs, max_episode_steps = plain(num_envs), plain(max_episode_steps)
        check_settings(num_envs, max_episode_steps, output)
        self.autoreset_mode = read_autoreset_mode(autoreset_mode)
        self.num_envs, self.max_episode_steps, self.output = num_envs, max_episode_steps, output
        config = self._open(
            world,
            render_mode,
            runtime,
            starts=starts,
            batch_size=num_envs,
            frames_on_device=output == "torch",
            discrete_actions=discrete_actions,
        )
        if config.memory_grows:
            raise WorldError(
                f"world {config.name!r} keeps all past frames, so its dreams cannot be reset one by one: "
                "use vectorization_mode='sync'"
            )
        self.metadata = self.metadata | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self._env_world.observation_space
        self.single_action_space = self._env_world.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = RowThreads(self.simulator, num_envs)
        self._rngs, self._rng_seeds = self._new_rngs([None] * num_envs)
        self._finished = np.zeros(num_envs, dtype=np.bool_)
        self._start_of = np.full(num_envs, "", dtype=object)
        self._has_warned = False

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override] - as SyncVectorEnv's
        """The generators that draw each environment's start moments and noise seeds."""
        return tuple(self._rngs)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override] - as SyncVectorEnv's
        """What they were seeded with."""
        return tuple(self._rng_seeds)

    def watch_starts(self, batch_size: int = 32) -> None:
        """Watch all start moments now, `batch_size` at a time: every later reset then takes milliseconds.

        Each costs `memory_bytes / num_envs` for as long as the environment lives. Without this call a moment
        is watched when a dream first begins there, and forgotten where there are too many.

        Raises:
            WorldError: If they are not all of one length, or the batch is empty.
            ClosedEnvironmentError: After `close`.
        """
        self._check_open("watch_starts")
        self._env_world.watch_all(check_integer(plain(batch_size), "batch_size", 1))

    @isolated
    def reset(  # type: ignore[override] - Gymnasium's own vector environments take lists of seeds, too
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin at start moments, in all environments or in some.

        Args:
            seed: s gives environment i the seed s + i; or one for each, None to go on with its stream.
            options: `start`, the number or the name of a start moment, or one for each environment (None
                draws it); `reset_mask`, `[N]` bool, which environments to reset: the others go on.

        Raises:
            WorldError: If there is no such start moment, or an option is unknown.
            ValueError: If the seeds or the mask are not N, or the mask is False everywhere.
            TypeError: If the mask is no array of bool.
            ResetNeeded: If there is a mask before all environments were reset once.
            ClosedEnvironmentError: After `close`.
        """
        self._check_open("reset")
        seeds = read_seeds(seed, self.num_envs)
        given = read_options(options, OPTIONS)
        mask = read_mask(given.get("reset_mask"), self.num_envs)
        starts = read_starts(given.get("start"), self.num_envs)
        chosen = [self._env_world.find_start(start) for start in starts]
        if not mask.all():
            self._current_state("reset with a reset_mask")
        rngs, rng_seeds = self._new_rngs(seeds)  # fails for a seed below 0, before anything has changed
        for row in np.flatnonzero(mask):
            if seeds[row] is not None:
                self._rngs[row], self._rng_seeds[row] = rngs[row], rng_seeds[row]
        self._state = self._begin(self._state, mask, chosen)
        self._finished = self._finished & ~mask
        self._warn_without_heads()
        return self._observations(self._state), self._infos(self._state, mask)

    @isolated
    def step(self, actions: Array) -> Step:
        """Take one step in every environment: draw the frames that `actions` lead to, and remember them.

        In the mode `NextStep` an environment whose episode has ended is reset instead, its action is
        ignored and its reward is 0.

        Args:
            actions: `[N, A]` whole numbers of `action_space`; `[N]` with `discrete_actions`.

        Raises:
            ResetNeeded: Before `reset`, or in the mode `Disabled` for an environment whose episode has ended.
            InvalidAction: If the actions have another shape, or one is outside the space.
            ClosedEnvironmentError: After `close`.
        """
        state = self._current_state("step")
        is_discrete = self._env_world.discrete_actions
        valid = read_actions(actions, self.num_envs, self.world.config.actions, is_discrete=is_discrete)
        renewed = self._finished.copy() if self.autoreset_mode is AutoresetMode.NEXT_STEP else None
        if self.autoreset_mode is AutoresetMode.DISABLED and self._finished.any():
            rows = ", ".join(map(str, np.flatnonzero(self._finished)))
            raise ResetNeeded(
                f"the episodes of environments {rows} have ended and autoreset is disabled: "
                "reset them first, with options={'reset_mask': ...}"
            )
        if renewed is None or not renewed.all():
            # All rows, whether they go on or not: the batch, and with it the rounding, stays the same.
            state = self._rows.step(state, torch.from_numpy(valid))
        if renewed is not None and renewed.any():
            state = self._begin(state, renewed)
        return self._result(state, renewed)

    def _result(self, state: WorldState, renewed: np.ndarray | None) -> Step:
        """Read the outcome of what was drawn, reset in the mode `SameStep`, and return a step."""
        rewards, terminated, probabilities = self._rows.alone(self._env_world.predict_outcome, state)
        truncated = self._are_truncated(state)
        if renewed is not None:
            rewards, terminated, truncated = (
                np.where(renewed, np.zeros_like(values), values)
                for values in (rewards, terminated, truncated)
            )
        done, infos, is_dreamt = terminated | truncated, {}, np.ones(self.num_envs, dtype=np.bool_)
        if renewed is not None:
            is_dreamt &= ~renewed
        if self.autoreset_mode is AutoresetMode.SAME_STEP and done.any():
            infos = self._final(state, done, probabilities)
            state = self._begin(state, done)
            is_dreamt &= ~done
        else:
            self._finished = done
        self._state = state
        infos |= _end_probabilities(probabilities, is_dreamt)
        infos |= self._infos(state, np.ones(self.num_envs, dtype=np.bool_))
        rewards, terminated, truncated = map(self._array, (rewards, terminated, truncated))
        return self._observations(state), rewards, terminated, truncated, infos

    @isolated
    def set_state(self, state: WorldState) -> None:
        """Go on from a state of N dreams of this world, for example from `get_state`.

        The draw of later start moments is not part of it. An episode that had ended has still ended.

        Raises:
            WorldError: If it is not a state of N dreams of this world, or holds numbers that none has.
            ClosedEnvironmentError: After `close`.
        """
        self._check_open("set_state")
        self._state = self._env_world.adopt(state, self.num_envs)
        ended = self._env_world.predict_outcome(self._state)[1] | self._are_truncated(self._state)
        is_dreamt = self._state.frame_index.numpy() > 0
        self._finished = ended & is_dreamt & (self.autoreset_mode is not AutoresetMode.SAME_STEP)
        self._start_of = np.full(self.num_envs, "", dtype=object)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the frames shown last, N times `[H, W, 3]` uint8; None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing without a render_mode, for example 'rgb_array'")
            return None
        return tuple(self._current_state("render").frames.cpu().numpy().copy())

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the dreams and end the threads; `close` calls it once."""
        self._state = None
        self._rows.close()
        self.simulator.close()

    def _new_rngs(self, seeds: list[int | None]) -> tuple[list[np.random.Generator], list[int]]:
        rngs, rng_seeds = zip(*map(seeding.np_random, seeds), strict=True)
        return list(rngs), list(rng_seeds)

    def _begin(
        self, state: WorldState | None, mask: np.ndarray, chosen: list[int | None] | None = None
    ) -> WorldState:
        """Return the state with new dreams in the rows where `mask` is True."""
        rows = [int(row) for row in np.flatnonzero(mask)]
        draws = [self._env_world.draw(self._rngs[row], chosen[row] if chosen else None) for row in rows]
        starts, seeds = zip(*draws, strict=True)
        fresh = self._env_world.begin(starts, seeds)
        self._start_of = self._start_of.copy()
        self._start_of[rows] = [self.start_names[start] for start in starts]
        return fresh if state is None or len(rows) == self.num_envs else state.with_rows(rows, fresh)

    def _are_truncated(self, state: WorldState) -> np.ndarray:
        if self.max_episode_steps is None:
            return self._env_world.time_is_up(state)
        return state.frame_index.numpy() >= self.max_episode_steps

    def _observations(self, state: WorldState) -> Array:
        # A copy: who changes it must not change what the world remembers.
        return state.frames.clone() if self.output == "torch" else state.frames.numpy().copy()

    def _array(self, values: np.ndarray) -> Array:
        if self.output == "numpy":
            return values
        values = values.astype(np.float32) if values.dtype == np.float64 else values
        return torch.from_numpy(values).to(self.world.device)

    def _infos(self, state: WorldState, mask: np.ndarray) -> dict[str, Any]:
        """Return the infos of the environments where `mask` is True, as `VectorEnv._add_info` makes them."""
        return {
            "frame_index": np.where(mask, state.frame_index.numpy(), 0),
            "_frame_index": mask.copy(),
            "start": np.where(mask, self._start_of, np.array(None)),
            "_start": mask.copy(),
        } | self._held(state, mask)

    def _held(self, state: WorldState, mask: np.ndarray) -> dict[str, Any]:
        """Return after how many frames actions are read, in a video world."""
        if self.action_repeat == 1:
            return {}
        left = -state.frame_index.numpy() % self.action_repeat
        return {"frames_until_action": np.where(mask, left, 0), "_frames_until_action": mask.copy()}

    def _final(self, state: WorldState, done: np.ndarray, probabilities: np.ndarray | None) -> dict[str, Any]:
        frames = np.full(self.num_envs, None, dtype=object)
        observations = self._observations(state)
        for row in np.flatnonzero(done):
            frames[row] = observations[row]
        return {
            "final_obs": frames,
            "_final_obs": done.copy(),
            "final_info": self._infos(state, done) | _end_probabilities(probabilities, done),
            "_final_info": done.copy(),
        }

    def _warn_without_heads(self) -> None:
        if self._has_warned or self.world.config.outcome is not None:
            return
        self._has_warned = True
        gym.logger.warn(
            f"world {self.world.config.name!r} has no outcome heads: every reward is 0 and no episode "
            "terminates, so there is nothing to learn without a wrapper that gives rewards"
        )


def _end_probabilities(probabilities: np.ndarray | None, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return the infos that tell how likely an end was where `mask` is True; none without outcome heads."""
    if probabilities is None:
        return {}
    return {"end_probability": np.where(mask, probabilities, 0.0), "_end_probability": mask.copy()}

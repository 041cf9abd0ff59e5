"""A world as a Gymnasium environment: `gym.make("ARL2World-v0")`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import TimeAwareObservation, TimeLimit

from worldsim.envs.base import DreamEnv
from worldsim.envs.vector_arguments import read_options, read_seed
from worldsim.errors import WorldError
from worldsim.runtime.config import RuntimeConfig
from worldsim.runtime.isolation import isolated
from worldsim.runtime.timing import FrameClock
from worldsim.simulator import Prediction
from worldsim.starts import picture_start
from worldsim.state import WorldState
from worldsim.world import World

if TYPE_CHECKING:
    from worldsim.ui.window import Window

PICTURE_FRAMES = 8
"""How long a picture is watched before play begins, where the world's own start moments do not say."""


class ARL2WorldEnv(DreamEnv, gym.Env[np.ndarray, np.ndarray]):
    """A learned world, stepped frame by frame.

    Observations are frames, `[H, W, 3]` uint8; actions are one whole number for each axis of the world's
    buttons. Everything random is decided by `reset(seed=...)`: the same world, seed, actions, device and
    dtype give the same bytes. `info` holds `frame_index`, the number of frames dreamt since the start, and
    `start`, the name of the start moment (empty after `set_state`).

    In a video world an action is held for `action_repeat` displayed frames, four of each latent frame of a
    block: a step shows one of them, and reads its action only where the block before has ended. `info` then
    holds `frames_until_action`, how many frames are shown before a step reads one; at 0 the next step does.

    In a world with outcome heads the reward is the one that is to be expected on the way to the frame, in the
    game's own units, and `terminated` is True once the probability that the game ended there reaches the
    world's `end_threshold`; then only `reset` or `set_state` goes on. Whether an episode has ended is part of
    the state: one that is restored after its end has still ended. In a world without such heads the reward is
    always 0 and an episode never ends by itself. With outcome heads `info` of a step also holds
    `end_probability`, 0 to 1, which `end_threshold` is compared with.

    `truncated` is True from the frame on at which time is up in the world (`WorldConfig.max_episode_steps`),
    unless a `gym.wrappers.TimeLimit` around it decides: `gym.make(..., max_episode_steps=...)`. Both count
    the frames of an episode also after `set_state`.

    Whatever the process has set of PyTorch (autocast, default dtype and device, gradients) changes nothing.
    It can be pickled and copied: a copy goes on from where this one stands.

    Args:
        world: Name of a world that ships, a folder, an id on the Hugging Face Hub, or a loaded world; by
            default the first that ships.
        render_mode: `human` for a window, `rgb_array`, or None.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a loaded world stays where it is.
        dtype: `auto`, `bfloat16` or `float32`; a loaded world stays as it is.
        denoising_steps: Denoising passes a frame, instead of the world's own number.
        noise_scale: Standard deviation of the noise that frames are drawn from, instead of the world's own;
            above 1 a dream varies more than the game.
        compile: How a GPU is given its kernels: `none` one by one, `cudagraphs` all of a frame at once,
            `inductor` those of `torch.compile`, at once; `auto` is `cudagraphs` on a GPU, else `none`. Of a
            video world `inductor`, its choice on a GPU, compiles the decoder and records the rest.
        discrete_actions: Whether an action is one number (`Discrete`) instead of one for each axis: they are
            counted up, the last axis fastest. For algorithms that know no `MultiDiscrete`.

    Raises:
        WorldError: If the world, or one of the settings, is not there or not valid.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 17.5}

    def __init__(
        self,
        world: str | Path | World | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        denoising_steps: int | None = None,
        noise_scale: float | None = None,
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
        config = self._open(world, render_mode, runtime, discrete_actions=discrete_actions)
        self.observation_space = self._env_world.observation_space
        self.action_space = self._env_world.action_space
        self._pending: Prediction | None = None
        self._has_ended = False
        self._is_restored = False  # by `set_state`, and not stepped since
        self._start_name = ""
        self._window: Window | None = None
        self._clock = FrameClock(config.frame_rate)

    def add_start_picture(self, path: Path) -> str:
        """Add a start moment made of a picture, and return its name, that of the file.

        Args:
            path: A picture of any size; what does not fit is cut off around its middle.

        Raises:
            FileNotFoundError: If there is no such file.
            WorldError: If it is no picture, there is a start moment of its name, or the world draws a level
                by its map, on which a picture lies nowhere.
        """
        config = self.world.config
        if self.world.on_level_map:
            raise WorldError(f"world {config.name!r} draws one level by its map: no picture can be its start")
        watched = [len(start.frames) for start in self.world.starts if len(start.frames)]
        num_frames = watched[0] if watched else PICTURE_FRAMES
        start = picture_start(path, config.actions, (config.height, config.width), num_frames)
        self._env_world.add_start(start)
        return start.name

    @property
    def prediction(self) -> Prediction | None:
        """The frame that `begin_step` drew, until `finish_step` has remembered it."""
        return self._pending

    @property
    def time_is_up(self) -> bool:
        """Whether the episode has reached the world's longest game; `step` goes on if it is called."""
        return bool(self._env_world.time_is_up(self._current_state("time_is_up"))[0])

    @property
    def has_ended(self) -> bool:
        """Whether the episode has ended, so that only `reset` or `set_state` goes on."""
        return self._has_ended

    @isolated
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at a start moment.

        Args:
            seed: Decides everything random from here on; without one the stream goes on.
            options: `start`, the number or the name of a start moment; without one it is drawn.

        Raises:
            WorldError: If there is no such start moment, or an option is unknown.
        """
        chosen = self._env_world.find_start(read_options(options, ("start",)).get("start"))
        super().reset(seed=read_seed(seed))
        start, noise_seed = self._env_world.draw(self.np_random, chosen)
        self._pending = None
        self._state = self._env_world.begin([start], [noise_seed])
        self._has_ended = False  # whatever the heads say of the moment that play begins at
        self._is_restored = False
        self._start_name = self.start_names[start]
        if self.render_mode == "human":
            self._show()
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step: draw the frame that `action` leads to, and remember it."""
        self.begin_step(action)
        if self._is_restored:
            _count_from(self, int(self._current_state("step").frame_index[0]))
        return self.finish_step()

    @isolated
    def begin_step(self, action: np.ndarray | int) -> np.ndarray:
        """Draw the frame that `action` leads to, without remembering it yet.

        Show it, then call `finish_step`. Called again before that, it draws another frame in place of this
        one; `reset` and `set_state` drop it.

        Args:
            action: `[axes]` whole numbers of `action_space`; one with `discrete_actions`.

        Returns:
            Frame, `[H, W, 3]` uint8.

        Raises:
            ResetNeeded: If there was no `reset` or `set_state` before, or the episode has ended.
            WorldError: If the action is outside the space.
        """
        state = self._current_state("step")
        if self._has_ended:
            raise ResetNeeded("step was called after the episode had ended (terminated was True): call reset")
        layout = self.world.config.actions
        read = layout.from_number if self._env_world.discrete_actions else layout.validate
        actions = torch.from_numpy(read(action))
        self._pending = self.simulator.predict(state, actions[None])
        if self.render_mode == "human":
            self._show()
        return self._observation()

    @isolated
    def finish_step(self) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Remember the frame of `begin_step`; returns what `step` returns.

        Raises:
            WorldError: If no step was begun.
        """
        if self._pending is None:
            raise WorldError("finish_step needs a begin_step before it")
        self._state = self.simulator.commit(self._current_state("finish_step"), self._pending)
        self._pending = None
        if self.render_mode == "human":
            self._clock.wait()
        self._is_restored = False
        rewards, ended, probabilities = self._env_world.predict_outcome(self._state)
        self._has_ended, info = bool(ended[0]), self._info()
        if probabilities is not None:
            info["end_probability"] = float(probabilities[0])
        truncated = self.time_is_up and not any(isinstance(each, TimeLimit) for each in _wrappers_of(self))
        return self._observation(), float(rewards[0]), self._has_ended, truncated, info

    def get_state(self) -> WorldState:
        """Return where the world stands: a value to keep, save, and come back to.

        Raises:
            ResetNeeded: If there was no `reset` or `set_state` before.
            WorldError: Between `begin_step` and `finish_step`, when the frame shown is not remembered yet.
        """
        if self._pending is not None:
            raise WorldError("get_state: a step is under way, call finish_step first")
        return super().get_state()

    @isolated
    def set_state(self, state: WorldState) -> None:
        """Go on from a state that `get_state` of the same world returned, here or in another process.

        No `reset` is needed before. The length of the episode so far is part of the state: a `TimeLimit`
        around the environment counts on from there. The draw of later start moments is not. On another
        device or in another dtype than the one it comes from, play goes on, but not to the same bytes.

        Raises:
            WorldError: If it is not a state of one game of this world, or holds numbers that none has.
        """
        self._state = self._env_world.adopt(state, 1)
        is_dreamt = bool(self._state.frame_index[0] > 0)
        self._has_ended = is_dreamt and bool(self._env_world.predict_outcome(self._state)[1][0])
        self._is_restored, self._pending = True, None
        self._start_name = ""

    def render(self) -> np.ndarray | None:  # type: ignore[override] - Gymnasium leaves the frame's type open
        """Return the frame shown last for `rgb_array`; with `human` the window shows it already."""
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing without a render_mode, for example 'rgb_array'")
            return None
        if self.render_mode == "human":
            self._show()
            return None
        return self._observation()

    def get_keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """Return which keys press what, by the numbers that pygame gives them, for `gymnasium.utils.play`."""
        from worldsim.ui.keys import key_combinations

        layout = self.world.config.actions
        return {
            keys: layout.to_number(action) if self._env_world.discrete_actions else action
            for keys, action in key_combinations(layout).items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return what it is made of without the window, which a copy opens itself."""
        return self.__dict__ | {"_window": None}

    def close(self) -> None:
        """Close the window, if there is one; may be called again."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _observation(self) -> np.ndarray:
        frames = self._pending.frames if self._pending is not None else self._current_state("render").frames
        return frames[0].numpy().copy()  # a copy: who changes it must not change what the world remembers

    def _info(self) -> dict[str, Any]:
        number = int(self._current_state("info").frame_index[0])
        held = {"frames_until_action": -number % self.action_repeat} if self.action_repeat > 1 else {}
        return {"frame_index": number, "start": self._start_name} | held

    def _show(self) -> None:
        if self._window is None:
            from worldsim.ui.window import Window

            config = self.world.config
            self._window = Window(config.width, config.height, title=config.name)
        self._window.discard_events()
        self._window.show(self._observation())


def _count_from(env: gym.Env, num_steps: int) -> None:
    """Let the wrappers that are stepping an environment count this step as the one after `num_steps`.

    `TimeLimit` and `TimeAwareObservation` count the steps since their own reset.
    """
    for wrapper in _wrappers_of(env):
        if isinstance(wrapper, TimeLimit):
            wrapper._elapsed_steps = num_steps
        elif isinstance(wrapper, TimeAwareObservation):
            wrapper.timesteps = num_steps + 1  # it counts a step before it takes it, a limit afterwards


def _wrappers_of(env: gym.Env) -> Iterator[gym.Wrapper]:
    """Yield the wrappers that are stepping an environment.

    It knows nothing of what is wrapped around it. Only while it is stepped its wrappers can be found: they
    are among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        wrapper = frame.f_locals.get("self")
        if isinstance(wrapper, gym.Wrapper) and wrapper.unwrapped is env:
            yield wrapper
        frame = frame.f_back

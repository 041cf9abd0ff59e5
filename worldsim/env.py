"""A world as a Gymnasium environment: `gym.make("ARL2World-v0")`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded

from worldsim.device import DeviceChoice, choose_device
from worldsim.errors import WorldError
from worldsim.simulator import Prediction, Simulator
from worldsim.state import WorldState
from worldsim.timing import FrameClock
from worldsim.world import World, shipped_worlds

if TYPE_CHECKING:
    from worldsim.viewer_window import Window

NO_REWARD = 0.0


class ARL2WorldEnv(gym.Env[np.ndarray, np.ndarray]):
    """A learned world, stepped frame by frame.

    Observations are frames, `[H, W, 3]` uint8; actions are one whole number for each axis of the world's
    buttons. Everything random is decided by `reset(seed=...)`: the same world, seed, actions, device and
    dtype give the same bytes. `info` holds `frame_index`, the number of frames dreamt since the start, and
    `start`, the name of the start moment (empty after `set_state`).

    In a world with outcome heads the reward is the one that is to be expected on the way to the frame, in the
    game's own units, and `terminated` is True once the probability that the game ended there reaches the
    world's `end_threshold`; then only `reset` or `set_state` goes on. Whether an episode has ended is part of
    the state: one that is restored after its end has still ended. In a world without such heads the reward is
    always 0 and an episode never ends by itself. `truncated` is always False: see `gym.wrappers.TimeLimit`.

    Args:
        world: Name of a world that ships, a folder, an id on the Hugging Face Hub, or a loaded world; by
            default the first that ships.
        render_mode: `human` for a window, `rgb_array`, or None.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a loaded world stays where it is.
        dtype: `auto`, `bfloat16` or `float32`; a loaded world stays as it is.
        denoising_steps: Denoising passes a frame, instead of the world's own number.

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
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise WorldError(f"render_mode must be human, rgb_array or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.device_choice, self.world = _load(world, device, dtype)
        if not self.world.starts:
            raise WorldError(f"world {self.world.config.name!r} has no start moments to begin from")
        config = self.world.config
        sampler = config.sampler
        if denoising_steps is not None:
            sampler = replace(sampler, num_steps=denoising_steps)
        self.simulator = Simulator(self.world, sampler)
        self.metadata = self.metadata | {"render_fps": config.frame_rate}
        self.observation_space = gym.spaces.Box(0, 255, (config.height, config.width, 3), np.uint8)
        self.action_space = config.actions.space()
        self._state: WorldState | None = None
        self._pending: Prediction | None = None
        self._has_ended = False
        self._start_name = ""
        self._window: Window | None = None
        self._clock = FrameClock(config.frame_rate)

    @property
    def start_names(self) -> tuple[str, ...]:
        """Names of the start moments, in order."""
        return tuple(start.name for start in self.world.starts)

    @property
    def memory_bytes(self) -> int:
        """Size of everything the world remembers, in bytes; constant unless it has full layers."""
        return self._current_state("memory_bytes").nbytes

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
        chosen = self._find_start(options or {})
        super().reset(seed=seed)
        # Both are drawn in any case, so that choosing a start leaves the stream as it is.
        drawn = int(self.np_random.integers(len(self.world.starts)))
        noise_seed = int(self.np_random.integers(2**63 - 1))
        start = self.world.starts[drawn if chosen is None else chosen]
        self._pending = None
        self._state = self.simulator.start([start], [noise_seed])
        self._has_ended = False  # whatever the heads say of the moment that play begins at
        self._start_name = start.name
        if self.render_mode == "human":
            self._show()
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step: draw the frame that `action` leads to, and remember it."""
        self.begin_step(action)
        return self.finish_step()

    def begin_step(self, action: np.ndarray) -> np.ndarray:
        """Draw the frame that `action` leads to, without remembering it yet.

        Show it, then call `finish_step`. Called again before that, it draws another frame in place of this
        one; `reset` and `set_state` drop it.

        Args:
            action: `[axes]` whole numbers of `action_space`.

        Returns:
            Frame, `[H, W, 3]` uint8.

        Raises:
            ResetNeeded: If there was no `reset` or `set_state` before, or the episode has ended.
            WorldError: If the action is outside the space.
        """
        state = self._current_state("step")
        if self._has_ended:
            raise ResetNeeded("step was called after the episode had ended (terminated was True): call reset")
        actions = torch.from_numpy(self.world.config.actions.validate(action))
        self._pending = self.simulator.predict(state, actions[None])
        if self.render_mode == "human":
            self._show()
        return self._observation()

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
        reward, self._has_ended = self._judge(self._state)
        return self._observation(), reward, self._has_ended, False, self._info()

    def get_state(self) -> WorldState:
        """Return where the world stands: a value to keep, save, and come back to.

        Raises:
            ResetNeeded: If there was no `reset` or `set_state` before.
            WorldError: Between `begin_step` and `finish_step`, when the frame shown is not remembered yet.
        """
        if self._pending is not None:
            raise WorldError("get_state: a step is under way, call finish_step first")
        return self._current_state("get_state")

    def set_state(self, state: WorldState) -> None:
        """Go on from a state that `get_state` of the same world returned, here or in another process.

        The draw of later start moments is not part of it. On another device or in another dtype than the one
        it comes from, play goes on, but not to the same bytes.

        Raises:
            WorldError: If it is not a state of one game of this world.
        """
        empty = self._empty_state()
        shapes, expected = state.shapes(), empty.shapes()
        problems = [
            f"{name} is {shapes.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
            for name in shapes | expected
            if shapes.get(name) != expected.get(name)
        ]
        if problems:
            raise WorldError(f"the state is not one of a single game of this world: {'; '.join(problems)}")
        like = empty.memory.tensors()
        memory = state.memory.map(lambda name, tensor: tensor.to(like[name].device, like[name].dtype))
        self._state = replace(state, memory=memory)
        self._has_ended = bool(state.frame_index[0] > 0) and self._judge(self._state)[1]
        self._pending = None
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

    def close(self) -> None:
        """Close the window, if there is one; may be called again."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _current_state(self, caller: str) -> WorldState:
        if self._state is None:
            raise ResetNeeded(f"{caller} was called before reset")
        return self._state

    def _observation(self) -> np.ndarray:
        frames = self._pending.frames if self._pending is not None else self._current_state("render").frames
        return frames[0].numpy().copy()  # a copy: who changes it must not change what the world remembers

    def _judge(self, state: WorldState) -> tuple[float, bool]:
        """Return the reward of the frame committed last, and whether the episode ended with it."""
        outcome = self.simulator.outcome(state)
        if outcome is None:
            return NO_REWARD, False
        return float(outcome.reward[0]), bool(outcome.end[0] >= self.world.config.end_threshold)

    def _info(self) -> dict[str, Any]:
        return {"frame_index": int(self._current_state("info").frame_index[0]), "start": self._start_name}

    def _find_start(self, options: Mapping[str, Any]) -> int | None:
        unknown = sorted(set(options) - {"start"})
        if unknown:
            raise WorldError(f"reset knows the option 'start', not {', '.join(map(repr, unknown))}")
        start = options.get("start")
        if start is None:
            return None
        names = self.start_names
        if isinstance(start, str) and start in names:
            return names.index(start)
        is_number = isinstance(start, int | np.integer) and not isinstance(start, bool)
        is_digits = isinstance(start, str) and start.isdecimal()
        if (is_number or is_digits) and 0 <= int(start) < len(names):
            return int(start)
        known = f"0 to {len(names) - 1} or one of {', '.join(names)}"
        raise WorldError(f"there is no start {start!r}: it is {known}")

    def _empty_state(self) -> WorldState:
        config = self.world.config
        return WorldState(
            memory=self.world.denoiser.initial_memory(1),
            frame_index=torch.zeros(1, dtype=torch.int64),
            seed=torch.zeros(1, dtype=torch.int64),
            frames=torch.zeros(1, config.height, config.width, 3, dtype=torch.uint8),
        )

    def _show(self) -> None:
        if self._window is None:
            from worldsim.viewer_window import Window

            config = self.world.config
            self._window = Window(config.width, config.height, title=config.name)
        self._window.discard_events()
        self._window.show(self._observation())


def _load(
    world: str | Path | World | None, device: str | torch.device, dtype: str | torch.dtype
) -> tuple[DeviceChoice, World]:
    if isinstance(world, World):
        if (str(device), dtype) != ("auto", "auto"):
            raise WorldError("a loaded world stays where it is: device and dtype go with a name or a folder")
        return DeviceChoice(world.device, world.dtype, "the world was loaded so"), world
    if world is None or world == "":
        worlds = shipped_worlds()
        if not worlds:
            raise WorldError("no world ships with this copy: name one, world=FOLDER")
        world = worlds[0]
    choice = choose_device(device, dtype)
    return choice, World.from_pretrained(world, device=choice.device, dtype=choice.dtype)

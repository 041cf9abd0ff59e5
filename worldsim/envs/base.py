"""The shared base of the single and the batched environment: a loaded world, its spaces, its starts."""

# N dreams, H W frame size

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.config import RuntimeConfig
from worldsim.runtime.isolation import isolated
from worldsim.simulator import open_simulator
from worldsim.starts import Start
from worldsim.state import MEMORY_PREFIX, WorldState, shapes_of
from worldsim.storage.files import MAX_NAME, check_bool, plain, shown
from worldsim.storage.tensors import FLOATS
from worldsim.world import World, WorldConfig

MAX_COUNT = 2**62
"""Far more frames than anybody plays, and none too many to count one more."""
COUNTERS = ("frame_index", "seed", f"{MEMORY_PREFIX}num_committed")
MAX_WATCHED_BYTES = 2**29
"""How much is kept of states after start moments, so that a second reset need not watch the frames again."""


class EnvWorld:
    """A loaded world as environments need it.

    Args:
        world: As in `worldsim.simulator.open_world`.
        starts: Start moments to begin from, instead of the world's own.
        frames_on_device: Leave frames where they are decoded instead of bringing them to the CPU.
        discrete_actions: Whether an action is one number, see `ActionLayout.from_number`.

    Raises:
        WorldError: If the world, or one of the settings, is not there or not valid.
    """

    @isolated
    def __init__(
        self,
        world: str | Path | World | None,
        runtime: RuntimeConfig,
        *,
        starts: Sequence[Start] | None = None,
        batch_size: int = 1,
        frames_on_device: bool = False,
        discrete_actions: bool = False,
    ) -> None:
        self.simulator = open_simulator(
            world, runtime, batch_size=batch_size, frames_on_device=frames_on_device
        )
        self.world = self.simulator.world
        config = self.world.config
        self._starts = self.world.starts if starts is None else _check_starts(starts, config)
        if not self._starts:
            raise WorldError(f"world {config.name!r} has no start moments to begin from")
        self.observation_space = gym.spaces.Box(0, 255, (config.height, config.width, 3), np.uint8)
        self.discrete_actions = check_bool(discrete_actions, "discrete_actions")
        actions = config.actions
        self.action_space: gym.Space[Any] = actions.discrete_space() if discrete_actions else actions.space()
        self.start_names = tuple(start.name for start in self._starts)
        self._num_drawn = len(self._starts)  # what is added later leaves the draw as it is
        self._watched: OrderedDict[int, WorldState] = OrderedDict()
        self._all_watched: WorldState | None = None

    def add_start(self, start: Start) -> int:
        """Add a start moment after those there are, and return its number; the draw does not choose it.

        Raises:
            WorldError: If there is one of its name.
        """
        if start.name in self.start_names:
            raise WorldError(f"there is a start {start.name!r} already")
        self._starts, self._all_watched = [*self._starts, start], None
        self.start_names = (*self.start_names, start.name)
        return len(self._starts) - 1

    def find_start(self, start: Any) -> int | None:
        """Return the number of a start moment that is given by number or name; None if none is given.

        Raises:
            WorldError: If there is no such start moment.
        """
        if start is None:
            return None
        names = self.start_names
        if isinstance(start, str) and start in names:
            return names.index(start)
        start = plain(start)
        is_number = isinstance(start, int) and not isinstance(start, bool)
        # Python reads no text of thousands of digits as a number.
        is_digits = isinstance(start, str) and len(start) <= MAX_NAME and start.isdecimal()
        if (is_number or is_digits) and 0 <= int(start) < len(names):
            return int(start)
        known = f"0 to {len(names) - 1} or one of {', '.join(names)}"
        raise WorldError(f"there is no start {shown(repr(start), MAX_NAME)}: it is {known}")

    def time_is_up(self, state: WorldState) -> np.ndarray:
        """Return which dreams `[N]` bool have reached the world's longest game."""
        longest = self.world.config.max_episode_steps
        return state.frame_index.numpy() >= (math.inf if longest is None else longest)

    def __getstate__(self) -> dict[str, Any]:
        """Return what it is made of without what it need not watch again."""
        return self.__dict__ | {"_watched": OrderedDict(), "_all_watched": None}

    def draw(self, rng: np.random.Generator, start: int | None) -> tuple[int, int]:
        """Return the number of a start moment, drawn unless `start` is given, and a seed of the noise."""
        # Both are drawn in any case, so that choosing a start leaves the stream as it is.
        drawn = int(rng.integers(self._num_drawn))
        noise_seed = int(rng.integers(2**63 - 1))
        return drawn if start is None else start, noise_seed

    @isolated
    def begin(self, starts: Sequence[int], seeds: Sequence[int]) -> WorldState:
        """Return dreams that have watched the start moments of these numbers, each with its noise's seed."""
        noise_seeds = torch.tensor(list(seeds), dtype=torch.int64)
        if self._all_watched is not None:
            return replace(self._all_watched.rows(starts), seed=noise_seeds)
        # Each is watched alone: what is kept then depends on nothing that was watched beside it.
        watched = {start: self._watch(start) for start in dict.fromkeys(starts) if not self._is_drawn(start)}
        pairs = zip(starts, seeds, strict=True)
        states = [
            self.simulator.start([self._starts[start]], [seed]) if self._is_drawn(start) else watched[start]
            for start, seed in pairs
        ]
        joined = states[0] if len(states) == 1 else WorldState.join(states)
        return replace(joined, seed=noise_seeds)

    @isolated
    def watch_all(self, batch_size: int) -> None:
        """Watch all start moments now, `batch_size` at a time, and keep what is remembered of each.

        Dreams then begin in milliseconds, wherever they begin. What is kept may round otherwise than that of
        a moment watched alone.

        Raises:
            WorldError: If the start moments are not all of one length.
        """
        if any(map(self._is_drawn, range(len(self._starts)))):
            return  # they are another moment for each seed
        chunks = [
            self._starts[first : first + batch_size] for first in range(0, len(self._starts), batch_size)
        ]
        watched = [self.simulator.start(chunk, [0] * len(chunk)) for chunk in chunks]
        self._all_watched = WorldState.join(watched)

    def _is_drawn(self, number: int) -> bool:
        """Return whether nothing is watched at a start moment, since the network draws it from the seed."""
        return not len(self._starts[number].frames)

    def _watch(self, number: int) -> WorldState:
        if number not in self._watched:
            self._watched[number] = self.simulator.start([self._starts[number]], [0])
        self._watched.move_to_end(number)
        state = self._watched[number]
        while len(self._watched) > 1 and len(self._watched) * state.nbytes > MAX_WATCHED_BYTES:
            self._watched.popitem(last=False)
        return state

    def named(self, state: WorldState) -> WorldState:
        """Return the state with the identity of this world."""
        return state if state.world else replace(state, world=self.world.identity)

    @isolated
    def adopt(self, state: WorldState, num_dreams: int) -> WorldState:
        """Return a state of so many dreams of this world on this device and in this dtype.

        Raises:
            WorldError: If it is not such a state.
        """
        empty = empty_state(self.world, num_dreams)
        check_state(state, empty, num_dreams, self.world.identity)
        like = empty.memory.tensors()
        memory = state.memory.map(
            lambda name, tensor: (tensor.detach() if tensor.requires_grad else tensor).to(like[name])
        )
        memory = self.world.in_places(memory)
        frames = state.frames.to(self.simulator.frames_device)
        return replace(
            state, memory=memory, frames=frames, frame_index=state.frame_index.cpu(), seed=state.seed.cpu()
        )

    @isolated
    def predict_outcome(self, state: WorldState) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return rewards `[N]` float64, ends `[N]` bool and their probabilities `[N]` of the latest frames.

        Without outcome heads they are 0, False and None.
        """
        outcome = self.simulator.outcome(state)
        if outcome is None:
            return np.zeros(len(state.seed)), np.zeros(len(state.seed), dtype=np.bool_), None
        ended = outcome.end >= self.world.config.end_threshold
        return outcome.reward.double().numpy(), ended.numpy(), outcome.end.double().numpy()


def empty_state(world: World, num_dreams: int) -> WorldState:
    """Return a state of dreams before anything happened."""
    config: WorldConfig = world.config
    return WorldState(
        memory=world.initial_memory(num_dreams),
        frame_index=torch.zeros(num_dreams, dtype=torch.int64),
        seed=torch.zeros(num_dreams, dtype=torch.int64),
        frames=torch.zeros(num_dreams, config.height, config.width, 3, dtype=torch.uint8),
    )


class DreamEnv:
    """What environments of one dream and of many share, beside Gymnasium's own class of each."""

    metadata: dict[str, Any]
    closed = False

    def _open(
        self,
        world: str | Path | World | None,
        render_mode: str | None,
        runtime: RuntimeConfig,
        *,
        starts: Sequence[Start] | None = None,
        batch_size: int = 1,
        frames_on_device: bool = False,
        discrete_actions: bool = False,
    ) -> WorldConfig:
        """Load the world, see `EnvWorld`; returns its description."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            known = ", ".join(self.metadata["render_modes"])
            raise WorldError(f"render_mode must be {known} or None, got {render_mode!r}")
        self.render_mode = render_mode
        self._env_world = EnvWorld(
            world,
            runtime,
            starts=starts,
            batch_size=batch_size,
            frames_on_device=frames_on_device,
            discrete_actions=discrete_actions,
        )
        self.world, self.simulator = self._env_world.world, self._env_world.simulator
        self.device_choice = self.simulator.device_choice
        self.compile_choice = self.simulator.compile_choice
        if self.action_repeat > 1:
            self.metadata = self.metadata | {"action_repeat": self.action_repeat}
        rate = self.world.config.frame_rate
        # An int where it is whole: `gymnasium.utils.play` takes no other.
        self.metadata = self.metadata | {"render_fps": int(rate) if rate == int(rate) else rate}
        self._state: WorldState | None = None
        return self.world.config

    @property
    def start_names(self) -> tuple[str, ...]:
        """Names of the start moments, in order."""
        return self._env_world.start_names

    @property
    def action_repeat(self) -> int:
        """Displayed frames that an action is held for; 1 where each step reads its own."""
        return self.world.config.action_repeat

    @property
    def memory_bytes(self) -> int:
        """Size of everything that all dreams remember, in bytes; constant unless it has full layers."""
        return self._current_state("memory_bytes").nbytes

    def get_state(self) -> WorldState:
        """Return where all dreams stand: a value to keep, save, and come back to; `rows` takes some of it.

        Raises:
            ResetNeeded: If there was no `reset` or `set_state` before.
            WorldError: Between `begin_step` and `finish_step`, when the frame shown is not remembered yet.
            ClosedEnvironmentError: After `close` of a vector environment.
        """
        self._state = self._env_world.named(self._current_state("get_state"))
        return self._state

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy of its own that shares the world's weights, which nothing changes."""
        memo[id(self.world)] = self.world
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__.update(deepcopy(self.__getstate__(), memo))  # type: ignore[arg-type]
        return copied

    def _check_open(self, caller: str) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{caller} was called after close")

    def _current_state(self, caller: str) -> WorldState:
        self._check_open(caller)
        if self._state is None:
            raise ResetNeeded(f"{caller} was called before reset")
        return self._state


def _check_starts(starts: Sequence[Start], config: WorldConfig) -> list[Start]:
    """Return start moments that fit a world's frames and axes."""
    if not isinstance(starts, Sequence):
        raise WorldError(f"starts must be a list of start moments, got {type(starts).__name__}")
    size, num_values = (config.height, config.width, 3), torch.tensor(config.actions.num_values)
    for start in starts:
        if not isinstance(start, Start):
            raise WorldError(f"starts must be start moments (worldsim.starts), got {type(start).__name__}")
        frames, actions, length = start.frames, start.actions, len(start.frames)
        if not length or frames.shape != (length, *size) or frames.dtype != torch.uint8:
            raise WorldError(
                f"start {start.name!r}: frames must be uint8 [frames, {', '.join(map(str, size))}], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        if actions.shape != (length, len(num_values)) or actions.dtype != torch.int64:
            raise WorldError(
                f"start {start.name!r}: actions must be int64 {[length, len(num_values)]}, "
                f"got {actions.dtype} {list(actions.shape)}"
            )
        if start.poses is not None and not _is_path(start.poses, length):
            raise WorldError(
                f"start {start.name!r}: poses must be floating-point {[length, 3]} and finite, "
                f"got {start.poses.dtype} {list(start.poses.shape)}"
            )
        if bool(((actions < 0) | (actions >= num_values)).any()):
            raise WorldError(f"start {start.name!r}: an action is outside of the world's axes")
    return list(starts)


def _is_path(poses: Tensor, length: int) -> bool:
    return poses.shape == (length, 3) and poses.is_floating_point() and bool(poses.isfinite().all())


def check_state(state: Any, empty: WorldState, num_dreams: int, identity: str) -> None:
    """Refuse what is not a state of so many dreams of a world: other shapes, types, numbers.

    Numbers of frames and seeds must be int64 and at least 0, frames uint8, and the memory of finite
    floating-point numbers, in whatever precision. Looking at 4 MB takes less than a millisecond.

    Raises:
        WorldError: If it is none; the message names every tensor that is wrong.
    """
    if not isinstance(state, WorldState):
        raise WorldError(f"a state is what get_state returns, got {type(state).__name__}")
    kind = "a single game" if num_dreams == 1 else f"{num_dreams} games"
    if problems := list(_problems(state, empty)):
        raise WorldError(f"the state is not one of {kind} of this world: {'; '.join(problems)}")
    if state.world and state.world != identity:
        raise WorldError(f"the state belongs to another world ({state.world}), not {identity}")


def _problems(state: WorldState, empty: WorldState) -> Iterator[str]:
    if not isinstance(state.memory, MemoryState):
        yield f"memory is a {type(state.memory).__name__}, expected a MemoryState"
        return
    tensors, expected = state.tensors(), empty.tensors()
    others = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if others:
        yield f"{', '.join(others)} must be tensors"
        return
    shapes, expected_shapes = shapes_of(tensors), shapes_of(expected)
    for name in shapes | expected_shapes:
        if shapes.get(name) != expected_shapes.get(name):
            yield f"{name} is {shapes.get(name, 'missing')}, expected {expected_shapes.get(name, 'nothing')}"
        elif problem := _problem(name, tensors[name], expected[name].dtype):
            yield f"{name} {problem}"


def _problem(name: str, tensor: Tensor, dtype: torch.dtype) -> str:
    """Return what is wrong with the contents of a tensor, '' if nothing is."""
    if tensor.is_meta or tensor.layout != torch.strided:
        return "holds no numbers" if tensor.is_meta else f"is {tensor.layout}, expected torch.strided"
    if dtype.is_floating_point:
        if tensor.dtype not in FLOATS:
            return f"is {tensor.dtype}, expected {dtype}"
        return "" if not tensor.numel() or _are_finite(tensor, dtype) else "holds NaN or inf"
    if tensor.dtype != dtype:
        return f"is {tensor.dtype}, expected {dtype}"
    if name in COUNTERS:
        limit = torch.iinfo(torch.int64).max if name == "seed" else MAX_COUNT
        least, most = int(tensor.min()), int(tensor.max())
        if least < 0 or most > limit:
            return f"is {least if least < 0 else most}, expected 0 to {limit}"
    return ""


def _are_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Return whether all numbers are finite, also once they are brought into a dtype."""
    # A fraction of the time of `isfinite`: one pass, nothing written. NaN is both the least and the greatest.
    both = torch.stack(torch.aminmax(tensor.detach())).to(dtype)
    return bool(both.isfinite().all())

"""A player that Stable-Baselines3 saved: PPO, A2C or DQN, from the `.zip` of `agent.save`.

Such a file holds pickles, which can run anything. None of them is opened: the shapes are read from the JSON
beside them, the weights as tensors alone. Needs the extra `rl`.
"""

# A action axes

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policies.base import Policy

MAX_BYTES = 2**30
"""Of a file in the archive, unpacked: networks that play are a thousandth of that."""
MAX_WIDTH = 16_384
MAX_PIXELS = 2**21
"""Of a frame that an agent learned from: that of the largest world."""
MODULES = ("stable_baselines3.common.policies", "stable_baselines3.dqn.policies")
ACTIVATIONS = ("ELU", "GELU", "LeakyReLU", "ReLU", "SiLU", "Tanh")
TRAINING_ONLY = ("optimizer_class", "optimizer_kwargs", "ortho_init")
PLAIN = ("net_arch", "normalize_images", "share_features_extractor")


class SB3Policy(Policy):
    """Play as an agent of Stable-Baselines3 learned to, from whole frames.

    Args:
        num_values: Number of values of each axis of the world's actions.
        path: The `.zip` that `agent.save` wrote.
        deterministic: Press what is likeliest, instead of drawing from the probabilities.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no such agent, or it learned with other actions, or with networks of its own.
    """

    def __init__(self, num_values: Sequence[int], path: str | Path, *, deterministic: bool = True) -> None:
        self._path, self._num_values, self._deterministic = Path(path), list(num_values), deterministic

        def spaces(data: Mapping[str, Any]) -> tuple[gym.spaces.Box, gym.Space]:
            actions, frames = _action_space(data["action_space"]), _frame_space(data["observation_space"])
            self._check_actions(actions)
            return frames, actions

        self._network, frames = load_network(self._path, spaces)
        self._shape = frames.shape
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode; the seed decides what is drawn."""
        self._draws = Draws(self._network, seed, deterministic=self._deterministic)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64, for `observation`, `[height, width, 3]` uint8."""
        if self._shape not in (observation.shape, np.moveaxis(observation, -1, 0).shape):
            raise ValueError(
                f"{self._path} learned from observations {list(self._shape)}, but frames here are "
                f"{list(observation.shape)}: an agent is played from whole frames, without wrappers"
            )
        action = self._draws(observation)
        if np.ndim(action) == 0:
            return np.array(np.unravel_index(int(action), self._num_values), dtype=np.int64)
        return np.asarray(action, dtype=np.int64)

    def _check_actions(self, space: gym.Space) -> None:
        if isinstance(space, gym.spaces.Discrete):
            fits, found = space.n == prod(self._num_values), f"{space.n} actions"
        else:
            assert isinstance(space, gym.spaces.MultiDiscrete)
            fits, found = space.nvec.tolist() == self._num_values, f"axes of {space.nvec.tolist()} values"
        if not fits:
            raise ValueError(f"the agent learned with {found}, but here axes have {self._num_values} values")


class Draws:
    """What an agent's network does, drawn from a stream of its own.

    Args:
        network: Of SB3.
        seed: Of the stream.
        deterministic: Do what is likeliest.
    """

    def __init__(self, network: Any, seed: int, *, deterministic: bool) -> None:
        self._network, self._deterministic = network, deterministic
        self._drawing = torch.Generator().manual_seed(seed).get_state()

    def __call__(self, observation: Any) -> np.ndarray:
        """Return an action for an observation."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._drawing)
            action, _ = self._network.predict(observation, deterministic=self._deterministic)
            self._drawing = torch.get_rng_state()
        return action


def begin_agent(path: str | Path, env: gym.Env[Any, Any]) -> Callable[[Any, int], Draws]:
    """Return what begins an episode of an environment for the agent that learned in it; it draws its actions.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no agent, or one that saw or did other things than the environment takes.
    """
    seen, done = env.observation_space, env.action_space

    def spaces(data: Mapping[str, Any]) -> tuple[gym.spaces.Box, gym.Space]:
        shape = tuple(map(int, data["observation_space"].get("_shape") or ()))
        own = seen.shape or ()
        is_turned = len(own) == 3 and shape == (own[2], *own[:2])  # SB3 puts the channels of pictures first
        if not isinstance(seen, gym.spaces.Box) or (shape != own and not is_turned):
            raise ValueError(
                f"the agent learned from observations {list(shape)}, but the environment's are "
                f"{list(own)}: give it the wrappers that the agent learned with"
            )
        found = re.sub(r"\W", "", str(data["action_space"].get(":type:")).rpartition(".")[2])
        if found != type(done).__name__:
            raise ValueError(f"the agent's actions are {found}, the environment's {type(done).__name__}")
        if is_turned:
            return gym.spaces.Box(
                np.moveaxis(seen.low, -1, 0), np.moveaxis(seen.high, -1, 0), dtype=np.uint8
            ), done
        return seen, done

    network, _ = load_network(Path(path), spaces)
    return lambda _, seed: Draws(network, seed, deterministic=False)


def load_network(
    path: Path, spaces: Callable[[Mapping[str, Any]], tuple[gym.spaces.Box, gym.Space]]
) -> tuple[Any, gym.spaces.Box]:
    """Return an agent's network, and what it sees.

    Args:
        path: The `.zip`.
        spaces: Returns the spaces of its observations and actions, given what the file says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no such agent.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no agent {path}")
    data, weights = _read(path)
    try:
        frames, actions = spaces(data)
        with torch.random.fork_rng(devices=[]):  # networks are random before they are filled
            network = _build(data, weights, frames, actions)
            network.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not the agent that it describes: {_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    network.set_training_mode(False)
    return network, frames


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what an archive says of an agent, and its weights by name; no pickle is opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: _unpack(archive, name) for name in ("data", "policy.pth")}
        data = json.loads(files["data"])
        weights = torch.load(io.BytesIO(files["policy.pth"]), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, json and torch raise a dozen kinds for what is damaged
        raise ValueError(f"{path} is no agent of Stable-Baselines3: {_line(error)}") from error
    is_agent = isinstance(data, dict) and isinstance(weights, Mapping)
    if not is_agent or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} is no agent of Stable-Baselines3: it holds other things than one")
    return data, dict(weights)


def _unpack(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES / 2**20:.0f} MiB")
    return archive.read(name)


def _frame_space(said: Mapping[str, Any]) -> gym.spaces.Box:
    shape = said.get("_shape") or ()
    if "box.Box" not in str(said.get(":type:")) or said.get("dtype") != "uint8" or len(shape) != 3:
        raise ValueError("the agent did not learn from frames, [height, width, 3] uint8")
    if prod(map(int, shape)) > 3 * MAX_PIXELS:
        raise ValueError(f"the agent's frames {list(shape)} have more than {MAX_PIXELS:,} pixels")
    return gym.spaces.Box(0, 255, tuple(map(int, shape)), np.uint8)


def _action_space(said: Mapping[str, Any]) -> gym.Space:
    kind, first = str(said.get(":type:")), _numbers(said.get("start", "0"))
    if any(first):
        raise ValueError("the agent's actions do not begin at 0")
    if "discrete.Discrete" in kind:
        return gym.spaces.Discrete(_numbers(said["n"])[0])
    if "multi_discrete.MultiDiscrete" in kind:
        return gym.spaces.MultiDiscrete(_numbers(said["nvec"]))
    raise ValueError("the agent's actions are not Discrete or MultiDiscrete")


def _numbers(text: Any) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d{1,9}", str(text))]


def _build(
    data: Mapping[str, Any], weights: Mapping[str, Tensor], frames: gym.spaces.Box, actions: gym.Space
) -> Any:
    """Return an agent's network, unfilled."""
    try:
        from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
        from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy
    except ImportError as error:
        raise ValueError("it needs Stable-Baselines3: pip install -e '.[rl]'") from error
    if (module := data["policy_class"].get("__module__")) not in MODULES:
        raise ValueError(f"its network is of a class of its own, in {module}: to open it could run anything")
    is_dqn = any(name.startswith("q_net.") for name in weights)
    is_cnn = any(".cnn." in name for name in weights)
    if not is_dqn and "action_net.weight" not in weights:
        raise ValueError("it is no agent of PPO, A2C or DQN")
    if is_dqn:
        kind = CnnPolicy if is_cnn else DQNPolicy
    else:
        kind = ActorCriticCnnPolicy if is_cnn else ActorCriticPolicy
    settings = _settings(data.get("policy_kwargs") or {})
    _check_sizes(weights, _numbers(settings.get("net_arch")), 0 if is_cnn else prod(frames.shape))
    return kind(frames, actions, lambda _: 0.0, **settings)  # type: ignore[arg-type]


def _check_sizes(weights: Mapping[str, Tensor], widths: Sequence[int], num_inputs: int) -> None:
    """Refuse layers that are not among the weights, before memory is asked for."""
    sides = {side for tensor in weights.values() for side in tensor.shape}
    needed = {*widths, num_inputs} - {0}
    if len(widths) > len(weights) or not needed <= sides:
        raise RuntimeError(f"there are no weights for layers of {', '.join(map(str, sorted(needed)))}")


def _settings(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network; classes among them are known by name, not unpickled."""
    settings: dict[str, Any] = {}
    for name, value in said.items():
        if name.startswith(":") or name in TRAINING_ONLY:
            continue
        found = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(value))
        if name == "activation_fn" and found and found[1] in ACTIVATIONS:
            settings[name] = getattr(nn, found[1])
        elif name in PLAIN and all(width <= MAX_WIDTH for width in _numbers(value)):
            settings[name] = value
        else:
            raise ValueError(f"policy_kwargs[{name!r}] is {str(value)[:80]}, which cannot be opened safely")
    return settings


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

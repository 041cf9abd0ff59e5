"""Agents of Stable-Baselines3 as policies, without opening a pickle."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import policies

pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install -e ".[rl]"')

from stable_baselines3 import A2C, DQN, PPO, SAC

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:We recommend using a `batch_size`"),
]
SHAPE = (40, 48, 3)
FRAMES = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
AXES = gym.spaces.MultiDiscrete([3, 2])


class Still(gym.Env):
    """A picture that stands still."""

    observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)

    def __init__(self, action_space: gym.Space) -> None:
        self.action_space = action_space


AGENTS: dict[str, Callable[[], Any]] = {
    "PPO": lambda: PPO("CnnPolicy", Still(AXES), n_steps=8, device="cpu", seed=0),
    "PPO of tanh": lambda: PPO(
        "MlpPolicy",
        Still(AXES),
        n_steps=8,
        device="cpu",
        seed=0,
        policy_kwargs={"net_arch": {"pi": [8], "vf": [4]}, "activation_fn": torch.nn.ELU},
    ),
    "A2C": lambda: A2C("MlpPolicy", Still(gym.spaces.Discrete(6)), device="cpu", seed=0),
    "DQN": lambda: DQN("CnnPolicy", Still(gym.spaces.Discrete(6)), buffer_size=4, device="cpu", seed=0),
}


def save(agent: Any, folder: Path) -> str:
    agent.save(folder / "agent.zip")
    return str(folder / "agent.zip")


def changed(path: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Write the archive anew with another description."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(files["data"])
    change(data)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"data": json.dumps(data).encode()}).items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_plays_as_it_does_in_sb3(name: str, tmp_path: Path) -> None:
    agent = AGENTS[name]()
    player = policies.make(save(agent, tmp_path), num_values=[3, 2])
    player.reset(0)
    for frame in FRAMES:
        expected = agent.predict(frame, deterministic=True)[0]
        if expected.ndim == 0:
            expected = np.array(np.unravel_index(expected, (3, 2)))
        action = player.act(frame)
        assert action.dtype == np.int64
        assert action.tolist() == expected.tolist()


def test_no_pickle_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudpickle

    path = save(AGENTS["PPO of tanh"](), tmp_path)
    monkeypatch.setattr(cloudpickle, "loads", lambda *_: pytest.fail("a pickle was opened"))
    policies.make(path, num_values=[3, 2]).act(FRAMES[0])


def test_drawn_actions_are_decided_by_the_seed_and_leave_other_generators_alone(tmp_path: Path) -> None:
    player = policies.make(save(AGENTS["PPO"](), tmp_path), num_values=[3, 2], deterministic=False)

    def episode(seed: int) -> list[list[int]]:
        player.reset(seed)
        return [player.act(frame).tolist() for frame in FRAMES.repeat(4, axis=0)]

    before = torch.get_rng_state()
    assert episode(1) == episode(1) != episode(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_actions_and_other_frames_are_named(tmp_path: Path) -> None:
    path = save(AGENTS["PPO"](), tmp_path)
    with pytest.raises(ValueError, match=r"axes of \[3, 2\] values, but here axes have \[3\]"):
        policies.make(path, num_values=[3])
    with pytest.raises(
        ValueError, match=r"learned from observations \[3, 40, 48\], but frames here are \[9, 9, 3"
    ):
        policies.make(path, num_values=[3, 2]).act(np.zeros((9, 9, 3), np.uint8))
    dqn = save(AGENTS["DQN"](), tmp_path)
    with pytest.raises(ValueError, match=r"learned with 6 actions, but here axes have \[5\] values"):
        policies.make(dqn, num_values=[5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["policy_class"].update(__module__="theirs"), "a class of its own, in theirs"),
        (
            lambda data: data.update(policy_kwargs={"features_extractor_class": "<class 'x.Y'>"}),
            "cannot be op",
        ),
        (lambda data: data.update(policy_kwargs={"net_arch": [10**9]}), "'net_arch'.*cannot be opened"),
        (lambda data: data.update(policy_kwargs={"net_arch": [5]}), "not the agent that it describes"),
        (lambda data: data.update(policy_kwargs={"net_arch": [64] * 999}), "no weights for layers of 64"),
        (lambda data: data["observation_space"].update(_shape=[9**5, 9**5, 3]), "more than 2,097,152 pix"),
        (lambda data: data["observation_space"].update(dtype="float32"), "did not learn from frames"),
        (lambda data: data.pop("action_space"), "not the agent that it describes"),
        (lambda data: data["action_space"].update({":type:": "Box"}), "not Discrete or MultiDiscrete"),
    ],
)
def test_what_cannot_be_opened_safely_is_named(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = changed(save(AGENTS["PPO"](), tmp_path), change)
    with pytest.raises(ValueError, match=message):
        policies.make(path, num_values=[3, 2])


def test_an_agent_of_more_inputs_than_its_weights_is_not_built(tmp_path: Path) -> None:
    path = changed(
        save(AGENTS["PPO of tanh"](), tmp_path),
        lambda data: data["observation_space"].update(_shape=[900, 900, 3]),
    )
    with pytest.raises(ValueError, match=r"there are no weights for layers of 4, 8, 2430000"):
        policies.make(path, num_values=[3, 2])


def test_what_is_no_agent_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no agent"):
        policies.make(str(tmp_path / "none.zip"), num_values=[3])
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match="is no agent of Stable-Baselines3: File is not a zip file"):
        policies.make(str(tmp_path / "text.zip"), num_values=[3])
    sac = SAC("CnnPolicy", Still(gym.spaces.Box(-1, 1, (1,))), buffer_size=4, device="cpu")
    with pytest.raises(ValueError, match="not Discrete or MultiDiscrete"):
        policies.make(save(sac, tmp_path), num_values=[3])

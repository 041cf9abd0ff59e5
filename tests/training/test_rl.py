"""Agents trained, measured and watched through `training.rl`: in tiny dreams, and once in the real game."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install -e ".[rl]"')

from lightning_fabric import Fabric
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from policies.ppo import PolicyDescription, PPOPolicy, load_policy, save_policy
from policies.sight import Sight
from tests.fakes import save_tiny_world, save_untrained_policy, tiny_world, write_tiny_dataset
from tests.public_runs import run_in
from training.agents import envs
from training.agents.envs import HeldActions, SightVecEnv
from training.agents.episodes import LearnedTeam
from training.agents.evaluate import evaluate_agents
from training.agents.ppo import Agent, Clock
from training.agents.settings import PPOConfig, RLConfig
from training.agents.train import prepare_envs, train_agent
from training.agents.watch import watch_agent
from training.engine.run_folder import RunFolder
from worldsim.data.episodes import verify
from worldsim.errors import WorldError
from worldsim.outcome import OutcomeConfig
from worldsim.sb3 import SB3VecEnv

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    tiny_world(num_steps=1, outcome=OutcomeConfig(reward_mean=2.0, end_threshold=1.0)).save_pretrained(
        folder, dtype=torch.float32
    )
    return str(folder)


def settings(world: str, out: Path, **changes: Any) -> RLConfig:
    ppo = PPOConfig(n_steps=8, batch_size=16, n_epochs=1)
    few: dict[str, Any] = {"num_envs": 2, "total_steps": 32, "max_episode_steps": 5, "ppo": ppo, "threads": 1}
    return RLConfig(world=world, out=str(out), device="cpu", dtype="float32", **(few | changes))


def progress(out: Path) -> list[dict[str, str]]:
    with (out / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_leaves_a_policy_that_plays(world: str, tmp_path: Path) -> None:
    train_agent(settings(world, tmp_path / "run", noise_scale=1.2))
    rows = progress(tmp_path / "run")
    assert [int(row["steps"]) for row in rows] == [16, 32]
    assert all(float(row["mean_frames"]) == 5 for row in rows)
    assert all(float(row["steps_per_second"]) > 0 and float(row["mean_return"]) > 0 for row in rows)
    assert float(rows[1]["entropy"]) < 0, "what the update before it measured"
    assert float(rows[1]["learning_rate"]) == pytest.approx(1.5e-4), "half of the way"
    description, network = load_policy(tmp_path / "run" / "policy")
    assert (description.scenario, description.num_values) == ("tiny", [3, 3, 3])
    training = description.training
    assert training["learned_from"].startswith("a dream of tiny@")
    assert (training["steps"], training["seed"], training["noise_scale"]) == (32, 0, 1.2)
    policy = PPOPolicy([3, 3, 3], tmp_path / "run" / "policy")
    assert policy.act(np.zeros((32, 48, 3), dtype=np.uint8)).shape == (3,)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_actions_are_held_in_dreams_in_games_and_by_the_policy(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Told(HeldActions):
        def __init__(self, venv: VecEnv, num_frames: int) -> None:
            held.append(num_frames)
            super().__init__(venv, num_frames)

    monkeypatch.setattr(envs, "HeldActions", Told)
    games = gym.vector.SyncVectorEnv([OneButton] * 2, autoreset_mode="SameStep")
    monkeypatch.setattr(envs, "AsyncVectorEnv", lambda *_, **__: games)
    train_agent(settings(world, tmp_path / "run", action_repeat=3))
    description, _ = load_policy(tmp_path / "run" / "policy")
    assert held == [3] and description.action_repeat == 3
    config = RLConfig(env="real", num_envs=2, action_repeat=2)
    prepare_envs(config, Sight(height=36, width=48), torch.device("cpu")).envs.close()
    assert held == [3, 2]


def test_many_at_once_hold_their_actions_as_one_does(tmp_path: Path) -> None:
    description, network = load_policy(save_untrained_policy(tmp_path / "every"))
    save_policy(tmp_path / "third", network, replace(description, action_repeat=3))
    player = PPOPolicy([3, 3, 3], tmp_path / "third")
    team = LearnedTeam(player, torch.device("cpu"), deterministic=True)
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 6, 8, 3), dtype=np.uint8)
    frames = frames.repeat(20, axis=2).repeat(20, axis=3)
    team.reset([0, 1])
    together = np.stack([team.act(torch.from_numpy(frames[:, i])).numpy() for i in range(12)], axis=1)
    for row in range(2):
        player.reset(row)
        assert np.array_equal(together[row], [player.act(frame) for frame in frames[row]])
    assert len(np.unique(together.reshape(-1, 3), axis=0)) > 1, "it always does the same"


def test_same_command_goes_on_and_a_finished_run_stays(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, dataset = tmp_path / "run", write_tiny_dataset(tmp_path / "data", frames=30)
    begun = {"starts": str(dataset), "num_starts": 6, "context_frames": 3}
    train_agent(settings(world, out, **begun))
    weights = load_policy(out / "policy")[1].state_dict()
    train_agent(settings(world, out, total_steps=64, **begun))
    assert "beginning at 6 moments of" in capsys.readouterr().out
    assert [int(row["steps"]) for row in progress(out)] == [16, 32, 48, 64]
    description, network = load_policy(out / "policy")
    assert description.training["steps"] == 64 and description.training["num_starts"] == 6
    assert not torch.equal(network.head.weight, weights["head.weight"])
    assert len(list((out / "checkpoints").iterdir())) == 1
    before = (out / "policy" / "policy.safetensors").read_bytes()
    train_agent(settings(world, out, total_steps=64, **begun))
    assert (out / "policy" / "policy.safetensors").read_bytes() == before
    with pytest.raises(WorldError, match=r"other settings \(ppo.n_epochs was 1 and is 4"):
        train_agent(settings(world, out, ppo=PPOConfig(n_steps=8, batch_size=16), **begun))


def test_rows_after_the_checkpoint_are_written_again(world: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_agent(settings(world, out))
    with (out / "progress.csv").open("a") as file:
        # Of a run that was killed before it wrote a checkpoint, in the middle of a line.
        file.write("48,1,2,3,4,5,6,7,8,9,10\n48,0.0")
    train_agent(settings(world, out, total_steps=48))
    rows = progress(out)
    assert [int(row["steps"]) for row in rows] == [16, 32, 48] and rows[2]["mean_return"] != "3"


def test_the_clock_ends_training_and_lowers_the_learning_rate(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count()  # a second for each step of both dreams
    monkeypatch.setattr("training.agents.ppo.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    train_agent(settings(world, tmp_path / "run", total_steps=10**9, max_minutes=0.5, checkpoint_minutes=0.2))
    rows = progress(tmp_path / "run")
    assert [float(row["minutes"]) for row in rows] == pytest.approx([8 / 60, 16 / 60, 24 / 60], rel=1e-4)
    rates = [float(row["learning_rate"]) / 3e-4 for row in rows]
    assert rates == pytest.approx([1, 1 - 8 / 30, 1 - 16 / 30], rel=1e-4)
    training = load_policy(tmp_path / "run" / "policy")[0].training
    assert (training["minutes"], training["steps"]) == (0.5, 60)


class OneButton(gym.Env[np.ndarray, np.ndarray]):
    """A grey picture, and a reward for the second button of the second axis."""

    observation_space = gym.spaces.Box(0, 255, (36, 48, 3), np.uint8)
    action_space = gym.spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.left = 8
        return np.full((36, 48, 3), 128, np.uint8), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        frame = np.full((36, 48, 3), 128, np.uint8)
        return frame, float(action[1] == 2), False, self.left == 0, {}


def check_damaged(run: RunFolder, begin: Callable[[], object]) -> None:
    """See that checkpoints which are not what was saved are one sentence each."""
    path = run.latest()
    assert path is not None
    good = path.read_bytes()
    state = torch.load(path, weights_only=True)
    for damaged in ({"steps": "3"}, {"policy": {}}, {"optimizer": []}):
        torch.save(state | damaged, path)
        with pytest.raises(WorldError, match=rf"the checkpoint {path} is damaged"):
            begin()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(WorldError, match=rf"the checkpoint {path} is damaged"):
        begin()


def test_the_chain_from_rewards_to_actions_is_whole(tmp_path: Path) -> None:
    sight = Sight(height=36, width=48, num_frames=1)
    envs = gym.vector.SyncVectorEnv([OneButton] * 8, autoreset_mode="SameStep")
    venv = SightVecEnv(VecMonitor(SB3VecEnv(envs)), sight, torch.device("cpu"))
    config = PPOConfig(n_steps=16, batch_size=64, n_epochs=4, learning_rate=2e-3, gamma=0.0)
    begin = functools.partial(
        Agent,
        envs=venv,
        config=config,
        clock=Clock(total_steps=768, max_seconds=0),
        sight=sight,
        device=torch.device("cpu"),
        seed=0,
        describe=lambda clock: PolicyDescription(scenario="", actions={}, num_values=[2, 3], sight=sight),
    )
    run = RunFolder(tmp_path, config)
    run.check_inputs(Fabric(accelerator="cpu"), source="one button")
    agent = begin(run)
    agent.train(checkpoint_seconds=60)
    check_damaged(run, lambda: begin(run))
    returns = [float(row["mean_return"]) for row in progress(tmp_path)]
    assert returns[0] < 4 and returns[-1] > returns[0] + 1, "8 / 3 at first, of 8"
    policy = PPOPolicy([2, 3], tmp_path / "policy")
    assert policy.act(OneButton().reset()[0])[1] == 2


def test_policies_are_compared_in_a_dream(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(save_untrained_policy(tmp_path / "policy"))
    labels = [folder, "random", "to-and-fro", "scripted"]
    config = settings(world, tmp_path / "out", mode="evaluate", policies=labels, episodes=3)
    evaluate_agents(config)
    report = json.loads((tmp_path / "out" / "dream.json").read_text())
    assert report["played_in"].startswith("a dream of tiny@") and report["commit"] and report["command"]
    assert list(report["policies"]) == labels
    for label, found in report["policies"].items():
        assert found["frames"] == [5, 5, 5] and found["ended"] == 0
        assert found["return"]["mean"] == pytest.approx(np.mean(found["returns"]))
        assert found["return"]["std"] == pytest.approx(np.std(found["returns"], ddof=1))
        assert found["return"]["low"] <= found["return"]["median"] <= found["return"]["high"]
        assert (found["training"] is not None) == (label == folder)
        assert (found["length"]["mean"], found["length"]["unit"]) == (5, "frames"), "its game is not known"
    told = capsys.readouterr().out
    assert folder in told and "mean frames" in told and "tics" not in told
    evaluate_agents(config)
    again = json.loads((tmp_path / "out" / "dream.json").read_text())
    assert again["policies"] == report["policies"], "the same seeds gave other episodes"
    evaluate_agents(replace(config, seed=2, episodes=2))
    later = json.loads((tmp_path / "out" / "dream.json").read_text())["policies"]
    for label, found in report["policies"].items():
        assert later[label]["returns"][0] == found["returns"][2], "the third episode is that of seed 2"


def test_an_agent_is_watched_in_a_dream(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(save_untrained_policy(tmp_path / "policy"))
    record = str(tmp_path / "video" / "agent.mp4")
    (tmp_path / "video").mkdir()
    watch_agent(settings(world, tmp_path, mode="watch", policy=folder, record=record, headless=True, steps=8))
    assert capsys.readouterr().out.count("cut off after 5 frames") == 1
    assert sorted(path.name for path in (tmp_path / "video").glob("*.mp4")) == ["agent-2.mp4", "agent.mp4"]
    assert verify(tmp_path / "video") == 6 + 4, "each frame, and those that the episodes began with"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "learn"}, "mode must be one of train, evaluate, watch, got 'learn'"),
        ({"env": "both"}, "env=both is of mode=evaluate, got mode=train"),
        (
            {"mode": "evaluate", "seed": 294_967_290, "episodes": 7},
            r"seed \+ episodes must be at most 294967296, got 294967290 \+ 7",
        ),
        ({"env": "moon"}, "env must be one of dream, real, both, got 'moon'"),
        ({"compile": "fast"}, "compile must be one of auto, none, cudagraphs, inductor, got 'fast'"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"action_repeat": 0}, "action_repeat must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 10**9}, "seed must be below 1000000000"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        RLConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.5}, r"ppo.gamma must lie in \[0, 1\], got 1.5"),
        ({"reward_scale": 0.0}, "ppo.reward_scale must be above 0 and finite, got 0.0"),
        ({"batch_size": 1}, "ppo.batch_size must be at least 2, got 1"),
    ],
)
def test_wrong_settings_of_ppo_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        PPOConfig(**changes)


def test_updates_are_of_as_many_steps_in_games_as_in_dreams() -> None:
    assert [PPOConfig().steps_of(count) for count in (8, 32, 256, 1024)] == [256, 64, 8, 8]
    assert PPOConfig(n_steps=5).steps_of(256) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "ppo"}, "comes without a learned policy: give policy_folder="),
        (
            {"policy": "psychic"},
            "policy must be ppo, random, scripted, still, to-and-fro, the folder of a learned policy or",
        ),
        ({"env": "real"}, "was not made from a game that can be played here"),
        ({"env": "real", "world": "quake"}, "there is no world 'quake'"),
        ({"policies": ["doom"]}, r"axes of \[3\] values, but here they have \[3, 3, 3\]"),
    ],
)
def test_what_cannot_be_measured_is_named(
    world: str, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_untrained_policy(tmp_path / "doom", [3], "doom-take-cover")
    with pytest.raises(ValueError, match=message):
        evaluate_agents(settings(**({"world": world, "out": tmp_path / "out"} | changes)))
    assert not (tmp_path / "out").exists()


def test_a_world_of_other_buttons_does_not_fit_its_game(tmp_path: Path) -> None:
    world = tiny_world()
    world.config.name = "doom-take-cover"
    world.save_pretrained(tmp_path / "odd")
    with pytest.raises(WorldError, match=r"\[3, 3, 3\] values, but the game doom-take-cover of \[3\]"):
        train_agent(settings(str(tmp_path / "odd"), tmp_path / "run", env="real"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WorldError, match=r'needs Stable-Baselines3: pip install -e "\.\[rl\]"'):
        train_agent(settings("anything", tmp_path))


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.rl", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.mark.slow
def test_an_agent_is_trained_measured_and_watched_in_the_real_game(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    game = ["world=doom-take-cover", "env=real", "out=out"]
    few = ["num_envs=2", "ppo.n_steps=32", "ppo.batch_size=32", "total_steps=128"]
    done = run(*game, *few, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    description = load_policy(tmp_path / "out" / "policy")[0]
    assert description.training["learned_from"] == "the real game doom-take-cover"
    labels = "policies=[out/policy,random,scripted]"
    run_in(tmp_path, "rl", *game, "mode=evaluate", labels, "episodes=4", "num_workers=2")
    report = json.loads((tmp_path / "out" / "real.json").read_text())["policies"]
    assert report["scripted"]["return"]["mean"] > report["random"]["return"]["mean"]
    for found in report.values():
        for total, frames in zip(found["returns"], found["frames"], strict=True):
            assert 2 * frames - 1 <= total <= 2 * frames, "1 for each tic alive"
        assert found["length"]["mean"] == 2 * np.mean(found["frames"]) and found["length"]["unit"] == "tics"
    assert report["random"]["returns"] != report["scripted"]["returns"]
    later = ["mode=evaluate", "policy=random", "episodes=2", "num_workers=2", "seed=2"]
    run_in(tmp_path, "rl", *game, *later)
    others = json.loads((tmp_path / "out" / "real.json").read_text())["policies"]
    assert others["random"]["returns"] == report["random"]["returns"][2:], "games 2 and 3"
    run_in(tmp_path, "rl", *game, "mode=watch", "policy=out/policy", "steps=20", "headless=true")
    assert "watched 20 frames, return 40.0" in capsys.readouterr().out
    assert verify(tmp_path / "recordings") == 21


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_a_policy(tmp_path: Path) -> None:
    save_tiny_world(tmp_path / "tiny")
    few = ["num_envs=2", "ppo.n_steps=8", "ppo.batch_size=16", "total_steps=1000000", "device=cpu"]
    command = [sys.executable, "-m", "training.rl", "world=tiny", "out=out", *few]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "out" / "progress.csv").is_file() or len(progress(tmp_path / "out")) < 2:
        assert time.monotonic() < deadline and process.poll() is None, "training did not begin"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    steps = load_policy(tmp_path / "out" / "policy")[0].training["steps"]
    assert steps >= 16 and (tmp_path / "out" / "checkpoints" / f"step-{steps:08d}").is_file()

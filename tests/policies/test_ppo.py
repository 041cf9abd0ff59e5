"""A learned policy: what it sees, that it plays as SB3 would, and what its folder holds."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.ppo import (
    ActorNetwork,
    PolicyDescription,
    PPOPolicy,
    load_policy,
    policy_digest,
    save_policy,
)
from policies.sight import Sight
from tests.fakes import TINY_ACTIONS, save_untrained_policy

pytestmark = pytest.mark.usefixtures("one_thread")


def frames(count: int, height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def scenes(count: int) -> np.ndarray:
    """Return pictures of 6 x 8 patches, which do not all look alike from afar."""
    return frames(count, 6, 8).repeat(20, axis=1).repeat(20, axis=2)


def blocks(pictures: np.ndarray) -> np.ndarray:
    """Return the means of blocks of 2 x 2 pixels, `[B, 3, h, w]`, rounded to even as PyTorch does."""
    count, height, width, _ = pictures.shape
    means = pictures.reshape(count, height // 2, 2, width // 2, 2, 3).astype(np.float64).mean(axis=(2, 4))
    return np.rint(means).astype(np.uint8).transpose(0, 3, 1, 2)


def test_frames_are_seen_as_means_of_their_pixels() -> None:
    pictures = frames(4)
    assert np.array_equal(Sight().shrink(torch.from_numpy(pictures)).numpy(), blocks(pictures))


def test_the_last_frames_are_seen_oldest_first() -> None:
    sight, pictures = Sight(), torch.from_numpy(frames(5))
    seen = sight.begin(pictures[:1])
    small = blocks(pictures.numpy())
    assert np.array_equal(seen[0].numpy(), np.concatenate([small[0]] * 3)), "it stood still before"
    for index in range(1, 5):
        seen = sight.follow(seen, pictures[index : index + 1])
    assert np.array_equal(seen[0].numpy(), np.concatenate(small[2:5]))
    assert seen.shape[1:] == sight.shape and seen.dtype is torch.uint8


@pytest.mark.parametrize("deterministic", [True, False])
def test_it_plays_what_sb3_plays(deterministic: bool, tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install -e ".[rl]"')
    import gymnasium as gym
    from stable_baselines3.common.policies import MultiInputActorCriticPolicy

    from training.agents.envs import SEEN
    from training.agents.ppo import Extractor, actor_of

    sight = Sight()
    theirs = MultiInputActorCriticPolicy(
        gym.spaces.Dict({SEEN: gym.spaces.Box(0, 255, sight.shape, np.uint8)}),
        gym.spaces.MultiDiscrete([3, 2, 3]),
        lambda _: 3e-4,
        net_arch=[],
        features_extractor_class=Extractor,
        features_extractor_kwargs={"sight": sight},
    )
    theirs.action_net.weight.data *= 100  # SB3 begins with all actions equally likely
    description = PolicyDescription(scenario="tiny", actions={}, num_values=[3, 2, 3], sight=sight)
    save_policy(tmp_path / "policy", actor_of(theirs, sight), description)
    ours = PPOPolicy([3, 2, 3], tmp_path / "policy", deterministic=deterministic)
    pictures = scenes(20)
    ours.reset(7)
    own = np.stack([ours.act(picture) for picture in pictures])
    torch.manual_seed(7)
    seen, expected = None, []
    for picture in torch.from_numpy(pictures)[:, None]:
        seen = sight.begin(picture) if seen is None else sight.follow(seen, picture)
        expected.append(theirs.predict({SEEN: seen.numpy()}, deterministic=deterministic)[0][0])
    assert np.array_equal(own, expected)
    assert len(np.unique(own, axis=0)) > 1, "it always does the same"


def test_the_seed_decides_what_is_drawn(tmp_path: Path) -> None:
    policy = PPOPolicy([3, 3, 3], save_untrained_policy(tmp_path / "policy"), deterministic=False)
    pictures = scenes(15)

    def play(seed: int) -> list[list[int]]:
        policy.reset(seed)
        return [policy.act(picture).tolist() for picture in pictures]

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_an_action_is_held_until_the_next_decision(tmp_path: Path) -> None:
    every = save_untrained_policy(tmp_path / "every")
    description, network = load_policy(every)
    save_policy(tmp_path / "third", network, replace(description, action_repeat=3))
    often, seldom = (PPOPolicy([3, 3, 3], tmp_path / name) for name in ("every", "third"))
    pictures = scenes(18)
    decided = [often.act(picture) for picture in pictures[::3]]  # sees the frames at which it decides
    held = [seldom.act(picture) for picture in pictures]
    assert np.array_equal(np.repeat(decided, 3, axis=0), held)
    assert len(np.unique(decided, axis=0)) > 1, "it always does the same"
    seldom.reset(0)
    assert np.array_equal(seldom.act(pictures[0]), held[0])


def test_who_takes_over_decides_at_once(tmp_path: Path) -> None:
    description, network = load_policy(save_untrained_policy(tmp_path / "every"))
    save_policy(tmp_path / "third", network, replace(description, action_repeat=3))
    policy, pictures = PPOPolicy([3, 3, 3], tmp_path / "third"), scenes(18)
    sight = description.sight
    for picture in pictures[:4]:  # it looks at the first and the fourth
        policy.watch(picture)
    seen = sight.begin(torch.from_numpy(pictures[:1]))
    for picture in (pictures[3], pictures[4]):
        seen = sight.follow(seen, torch.from_numpy(picture[None]))
    expected = network.choose(seen)[0].numpy()
    for picture in pictures[4:7]:
        assert np.array_equal(policy.act(picture), expected)


def test_policies_from_before_actions_were_held_act_at_every_frame(tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy")
    path = folder / "policy.json"
    data = json.loads(path.read_text()) | {"format": 1}
    del data["action_repeat"]
    path.write_text(json.dumps(data))
    assert load_policy(folder)[0].action_repeat == 1


def test_a_policy_refuses_other_axes_and_names_what_it_learned(tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy", [3], "doom-take-cover")
    with pytest.raises(ValueError, match=r"learned doom-take-cover, with axes of \[3\] values.*\[2, 3\]"):
        PPOPolicy([2, 3], folder)


def test_a_folder_holds_no_pickle_and_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy")
    assert sorted(path.name for path in folder.iterdir()) == ["policy.json", "policy.safetensors"]
    description, network = load_policy(folder)
    assert description.to_json() | {"files": {"policy.safetensors": 0}} == json.loads(
        (folder / "policy.json").read_text()
    ) | {"files": {"policy.safetensors": 0}}
    assert load_file(folder / "policy.safetensors").keys() == network.state_dict().keys()
    assert len(policy_digest(folder)) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "expected a policy of format 1 or 2 and of kind 'ppo', got format 3"),
        ({"action_repeat": 0}, "action_repeat must be a whole number of at least 1, got 0"),
        ({"action_repeat": 1.5}, "action_repeat must be a whole number of at least 1, got 1.5"),
        ({"kind": "dqn"}, "of kind 'dqn'"),
        ({"num_values": None}, "not of the expected form"),
        ({"sight": {"height": 0}}, "height of what a player sees must be at least 1, got 0"),
        ({"sight": {"depth": 3}}, "not described as expected"),
        ({"sight": {"height": 20}}, "at least 36 x 36, got 20 x 80"),
        ({"num_values": [4]}, "size mismatch"),
        ({"num_values": [3, 3, 10**9]}, "num_values must be a list of integers from 1 to 1024"),
        ({"num_values": "333"}, "num_values must be a list of integers"),
        ({"num_values": [3.0, 3, 3]}, "num_values must be a list of integers"),
        ({"sight": {"width": 10**6}}, "width of what a player sees must be at most 256, got 1000000"),
        ({"sight": {"num_frames": 10**6}}, "num_frames of what a player sees must be at most 64"),
        ({"action_repeat": 10**9}, "action_repeat must be at most 1000"),
        ({"scenario": "a\x1b[2J"}, "scenario must be printable text"),
        ({"files": []}, "describes no policy"),
        ({"training": float("nan"), "files": {}}, "describes no policy"),
    ],
)
def test_a_wrong_description_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy")
    path = folder / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        load_policy(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested too deep"), ("{" + " " * 2**20, "larger than"), ("[]", "")],
)
def test_what_is_no_description_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = save_untrained_policy(tmp_path / "policy") / "policy.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"policy\.json describes no policy: .*{message}"):
        load_policy(path.parent)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int32])
def test_weights_that_are_no_finite_numbers_are_named(kind: torch.dtype, tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy")
    path, tensors = folder / "policy.safetensors", load_file(folder / "policy.safetensors")
    for changed in (tensors["head.bias"].to(kind), tensors["head.bias"] * float("nan")):
        save_file(tensors | {"head.bias": changed}, path)
        described = json.loads((folder / "policy.json").read_text())
        described["files"]["policy.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "policy.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match="'head.bias' in policy.safetensors does not hold finite"):
            load_policy(folder)


def test_altered_weights_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy")
    tensors = load_file(folder / "policy.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "policy.safetensors")
    with pytest.raises(ValueError, match="damaged or was altered"):
        load_policy(folder)
    (folder / "policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no policy\.safetensors"):
        load_policy(folder)
    with pytest.raises(FileNotFoundError, match="is not the folder of a learned policy"):
        load_policy(tmp_path / "elsewhere")


def test_likeliest_actions_are_the_largest_logits() -> None:
    network = ActorNetwork(Sight(), [3, 2])
    seen = torch.from_numpy(frames(6, 60, 80).transpose(0, 3, 1, 2)).repeat(1, 3, 1, 1)
    logits = network(seen)
    expected = torch.stack([logits[:, :3].argmax(1), logits[:, 3:].argmax(1)], dim=1)
    assert torch.equal(network.choose(seen), expected)


@pytest.mark.parametrize("context", [torch.device("meta"), torch.autocast("cpu")], ids=["device", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_policy_plays_the_same_whatever_the_process_has_set(
    context: AbstractContextManager, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_untrained_policy(tmp_path)
    frame, logits = frames(1)[0], []
    expected = load_policy(folder)[1](Sight().begin(torch.from_numpy(frame)[None]))
    torch.set_default_dtype(dtype)
    try:
        with context:
            policy = PPOPolicy(TINY_ACTIONS.num_values, folder)
            policy.network.head.register_forward_hook(lambda *called: logits.append(called[2]))
            policy.act(frame)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(logits[0], expected)

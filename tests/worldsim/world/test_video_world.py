"""Worlds of video transformers are stepped, saved and played as others are, an action held for its block."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import worldsim.state
from tests.wan_models import REASON, import_tiny_world
from training.cli.entry import describe_error
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.play.history import History
from worldsim.runtime.noise import DRAW_FRAME, WATCH_FRAME, draw_noise
from worldsim.storage.images import write_png
from worldsim.wan.causal import FrameCache, commit_block, generate_block
from worldsim.wan.config import CausalConfig
from worldsim.wan.conversion import with_hybrid_layers
from worldsim.wan.layers import Pair, Places
from worldsim.world import World
from worldsim.world.video import VideoWorld

pytest.importorskip("diffusers", reason=REASON)

FORMS = {
    "frames": CausalConfig(block=1, window=4, sink=1, steps=[1000, 500], first_steps=[1000, 750, 500]),
    "chunks": CausalConfig(block=3, window=6, steps=[1000, 500]),
}


@pytest.fixture(scope="module", params=FORMS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoWorld:
    folder = tmp_path_factory.mktemp(request.param)
    loaded = World.from_pretrained(
        import_tiny_world(folder, causal=FORMS[request.param], actions="doom-rooms")
    )
    assert isinstance(loaded, VideoWorld)
    return loaded


@pytest.fixture(scope="module")
def taught(world: VideoWorld) -> VideoWorld:
    """Return a world whose buttons have an effect."""
    folder = world.folder
    assert folder is not None
    other = World.from_pretrained(folder)
    assert isinstance(other, VideoWorld)
    generator = torch.Generator().manual_seed(1)
    for embedding in other.transformer.action_embedding:
        embedding.weight.copy_(torch.randn(embedding.weight.shape, generator=generator))
    return other


def steps(env: ARL2WorldEnv, actions: list[list[int]]) -> list[np.ndarray]:
    return [env.step(np.array(action))[0] for action in actions]


def expected_frames(world: VideoWorld, num_blocks: int, seed: int) -> Tensor:
    """Return the frames of blocks drawn one by one and decoded as a whole by the library, `[T, H, W, 3]`."""
    causal, text = world.config.causal, world._texts(1)
    seeds, cache, clean = torch.tensor([seed]), FrameCache(), []
    for number in range(num_blocks):
        is_first = number == 0
        config = CausalConfig(
            block=causal.block,
            window=causal.window,
            sink=causal.sink,
            steps=(causal.first_steps or causal.steps) if is_first else causal.steps,
        )
        shape = (len(config.steps), 16, causal.block, 4, 6)
        index = torch.tensor([0 if is_first else (number - 1) * world.config.action_repeat])
        noise = draw_noise(seeds, index, shape, WATCH_FRAME if is_first else DRAW_FRAME)
        fresh = noise[:, 1:].transpose(0, 1)
        clean.append(generate_block(world.transformer, noise[:, 0], text, cache, config, fresh))
        cache = commit_block(world.transformer, clean[-1], text, cache, config)
    module = world.autoencoder.autoencoder
    mean, std = (
        torch.tensor(each).view(1, 16, 1, 1, 1)
        for each in (module.config.latents_mean, module.config.latents_std)
    )
    video = module.decode(torch.cat(clean, 2) * std + mean).sample
    return ((video[0].movedim(0, -1) + 1) * 127.5).round()


def test_frames_are_those_of_the_blocks_decoded_as_a_whole(world: VideoWorld) -> None:
    env = ARL2WorldEnv(world)
    first, info = env.reset(seed=3)
    repeat = env.action_repeat
    assert info == {"frame_index": 0, "start": "from-text", "frames_until_action": 0}
    frames = [first, *steps(env, [[1, 0, 0]] * (3 * repeat))]
    expected = expected_frames(world, 4, int(env.get_state().seed[0]))[-3 * repeat - 1 :]
    difference = torch.from_numpy(np.stack(frames)).float() - expected
    assert difference.abs().max() <= 1
    assert expected.std(dim=0).mean() > 1, "nothing moves"


def test_an_action_is_held_for_the_frames_of_its_block(taught: VideoWorld) -> None:
    env = ARL2WorldEnv(taught)
    repeat = 4 * taught.config.causal.block
    assert env.action_repeat == env.metadata["action_repeat"] == repeat
    idle, pressed = [0, 0, 0], [1, 2, 0]
    shown = {}
    for name, actions in {
        "idle": [idle] * repeat,
        "held": [pressed] * repeat,
        "let go": [pressed, *[idle] * (repeat - 1)],
        "late": [idle, *[pressed] * (repeat - 1)],
    }.items():
        env.reset(seed=0)
        shown[name] = np.stack(steps(env, actions))
    assert np.array_equal(shown["held"], shown["let go"]), "it is read where the block begins"
    assert np.array_equal(shown["idle"], shown["late"])
    assert not np.array_equal(shown["idle"][0], shown["held"][0])
    infos = [env.step(np.array(idle))[4]["frames_until_action"] for _ in range(repeat)]
    assert infos == [*range(repeat - 1, 0, -1), 0]


def test_buttons_that_were_not_taught_leave_the_video_as_it_is(world: VideoWorld) -> None:
    env = ARL2WorldEnv(world)
    shown = []
    for action in ([0, 0, 0], [2, 1, 2]):
        env.reset(seed=0)
        shown.append(np.stack(steps(env, [action] * (env.action_repeat + 1))))
    assert np.array_equal(*shown)


def test_a_state_is_saved_and_gone_on_from_in_the_middle_of_a_block(
    taught: VideoWorld, tmp_path: Path
) -> None:
    env = ARL2WorldEnv(taught)
    env.reset(seed=0)
    before = env.memory_bytes
    steps(env, [[1, 0, 0]] * (env.action_repeat + 2))
    state = env.get_state()
    assert state.nbytes == env.memory_bytes == before
    worldsim.state.save(state, tmp_path / "state.safetensors")
    ahead = [[0, 0, 2]] * (2 * env.action_repeat)
    expected = steps(env, ahead)
    other = ARL2WorldEnv(taught)
    other.set_state(worldsim.state.load(tmp_path / "state.safetensors"))
    assert all(np.array_equal(a, b) for a, b in zip(expected, steps(other, ahead), strict=True))
    foreign = worldsim.state.load(tmp_path / "state.safetensors").rows([0, 0])
    with pytest.raises(WorldError, match="not one of a single game of this world"):
        other.set_state(foreign)


@pytest.mark.filterwarnings("ignore:.*has no outcome heads")
def test_rows_of_different_ages_are_the_dreams_of_single_environments(taught: VideoWorld) -> None:
    """One dream is reset in the middle of the others' block."""
    envs = ARL2WorldVectorEnv(2, taught, autoreset_mode="Disabled")
    singles = [ARL2WorldEnv(taught) for _ in range(2)]
    repeat, rng = envs.action_repeat, np.random.default_rng(0)
    envs.reset(seed=[5, 6])
    for env, seed in zip(singles, (5, 6), strict=True):
        env.reset(seed=seed)
    for number in range(2 * repeat + 3):
        if number == repeat + 2:
            _, infos = envs.reset(options={"reset_mask": np.array([True, False])})
            assert infos["frames_until_action"].tolist() == [0, 0]
            assert infos["_frames_until_action"].tolist() == [True, False]
            singles[0].reset()
        actions = rng.integers(0, 3, (2, 3))
        frames, _, _, _, infos = envs.step(actions)
        for row, env in enumerate(singles):
            single, *_, info = env.step(actions[row])
            assert np.abs(frames[row].astype(int) - single).max() <= 1
            assert infos["frames_until_action"][row] == info["frames_until_action"]
    assert envs.get_state().frame_index.tolist() == [repeat + 1, 2 * repeat + 3]
    envs.close()


def test_a_picture_is_a_start_moment(world: VideoWorld, tmp_path: Path) -> None:
    """Its latents are the encoder's, so that the state is the one behind a watched video."""
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    write_png(picture, tmp_path / "room.png")
    env = ARL2WorldEnv(world)
    name = env.add_start_picture(tmp_path / "room.png")
    shown, info = env.reset(seed=0, options={"start": name})
    assert info["start"] == "room.png" and np.array_equal(shown, picture)
    video = torch.from_numpy(picture).movedim(-1, 0).expand(1, 5, -1, -1, -1) / 127.5 - 1
    latents = world.autoencoder.encode(video)
    own = env.get_state().memory.latents[:, :, -2:]
    torch.testing.assert_close(own, latents[:, :, -own.shape[2] :], rtol=1e-4, atol=1e-5)
    assert env.get_state().memory.num_committed.tolist() == [2]
    steps(env, [[0, 0, 0]] * (env.action_repeat + 1))


def test_play_goes_back_to_the_same_bytes(taught: VideoWorld) -> None:
    """States between those that are kept are worked out again."""
    env = ARL2WorldEnv(taught)
    env.reset(seed=0)
    history = History(env.simulator, 10**9)
    history.begin(env.get_state(), "from-text")
    states = [env.get_state()]
    action = np.array([1, 0, 1])
    for _ in range(40):
        env.begin_step(action)
        prediction = env.prediction
        assert prediction is not None
        env.finish_step()
        history.append(env.get_state(), prediction.latents, action, follows=True, score=0.0)
        states.append(env.get_state())
    for expected in reversed(states[10:-1]):
        history.prepare()
        assert history.back() is not None
        found = history.now()[0]
        tensors, others = found.tensors(), expected.tensors()
        assert all(torch.equal(tensors[name], others[name]) for name in others)


def test_a_world_with_hybrid_layers_is_stepped_alike(world: VideoWorld) -> None:
    """Its state holds a matrix per head in place of one layer's window."""
    torch.manual_seed(0)
    transformer = with_hybrid_layers(world.transformer, [1], tokens_per_frame=6)
    config = replace(world.config, transformer=transformer.config)
    assert world.folder is not None
    given = (world.autoencoder, world.text, world.folder, world._checksums)
    env = ARL2WorldEnv(VideoWorld(config, transformer, *given))
    env.reset(seed=0)
    before = env.memory_bytes
    steps(env, [[1, 0, 0]] * (env.action_repeat + 1))
    state = env.get_state()
    assert state.nbytes == before < _bytes_of(world)
    assert state.memory.matrices.shape == (1, 1, 2, 12, 12) and bool(state.memory.matrices.any())
    assert len(state.tensors()["memory.window_keys"]) == 1
    ahead = [[0, 0, 2]] * (2 * env.action_repeat)
    expected = steps(env, ahead)
    env.set_state(state)
    assert all(np.array_equal(a, b) for a, b in zip(expected, steps(env, ahead), strict=True))
    env.set_state(state.with_matrices(torch.zeros_like(state.memory.matrices)))
    assert not np.array_equal(expected, steps(env, ahead)), "what was written is read"


def _bytes_of(world: VideoWorld) -> int:
    env = ARL2WorldEnv(world)
    env.reset(seed=0)
    return env.memory_bytes


def test_what_it_has_not_is_one_sentence(world: VideoWorld) -> None:
    with pytest.raises(WorldError, match="is a video transformer and has no denoiser of single frames"):
        _ = world.denoiser
    with pytest.raises(WorldError, match="is a video transformer and has no codec"):
        _ = world.config.codec
    for mode in ("inductor", "cudagraphs"):
        with pytest.raises(WorldError, match=f"compile='{mode}' needs a CUDA GPU, but the world is on cpu"):
            ARL2WorldEnv(str(world.folder), compile=mode)
    env = ARL2WorldEnv(str(world.folder))
    env.reset(seed=0)
    with pytest.raises(WorldError, match="is a video transformer") as raised:
        env.simulator.commit_frames(
            env.get_state(), env.get_state().frames, torch.zeros(1, 3, dtype=torch.int64)
        )
    assert "\n" not in describe_error(raised.value)
    assert not hasattr(world, "nothing")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda whole: pickle.loads(pickle.dumps(whole))])
def test_a_copy_goes_on_alike(taught: VideoWorld, copied: Callable[[Any], Any]) -> None:
    env = ARL2WorldEnv(taught)
    env.reset(seed=0)
    world, state = copied(taught), env.get_state()
    assert world.config == taught.config and world.identity == taught.identity
    other = ARL2WorldEnv(world)
    other.set_state(state)
    ahead = [[1, 0, 2]] * 2
    assert all(np.array_equal(a, b) for a, b in zip(steps(env, ahead), steps(other, ahead), strict=True))


def test_what_is_left_without_the_window_leaves_the_state_as_it_is(taught: VideoWorld) -> None:
    """It begins to count frames anew, and so writes where the state sees some."""
    env = ARL2WorldEnv(taught)
    env.reset(seed=0)
    steps(env, [[1, 0, 0]] * (3 * env.action_repeat))
    state = env.get_state()
    before = state.tensors()
    alone = replace(state, frame_index=torch.tensor([0]), memory=state.memory.states_alone())
    env.simulator.step(alone, torch.tensor([[1, 0, 0]]))
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


def test_threads_may_step_one_state(taught: VideoWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both futures begin in the same places: the second thread waits, or moves to its own."""
    env = ARL2WorldEnv(taught)
    env.reset(seed=0)
    state, step, begun = env.get_state(), env.simulator.step, threading.Event()
    actions = [torch.tensor([action]) for action in ([1, 0, 0], [2, 1, 2])]
    alone = [step(state, action)[1].tensors() for action in actions]
    write = Places.behind

    def slow(places: Places, new: Pair) -> Pair:
        written = write(places, new)
        if not begun.is_set():
            begun.set()
            time.sleep(0.5)
        return written

    monkeypatch.setattr(Places, "behind", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(step, state, actions[0])
        assert begun.wait(60)
        second = pool.submit(step, state, actions[1])
        found = [each.result()[1].tensors() for each in (first, second)]
    for expected, tensors in zip(alone, found, strict=True):
        assert all(torch.equal(expected[name], tensor) for name, tensor in tensors.items())


def test_play_keeps_no_gradients_of_a_network_that_is_trained(taught: VideoWorld) -> None:
    """Passes write into the window that the next ones read: what autograd records would grow without end."""
    world = copy.deepcopy(taught)
    world.transformer.requires_grad_(True)
    env = ARL2WorldEnv(world)
    env.reset(seed=0)
    steps(env, [[1, 0, 0]] * (2 * env.action_repeat))
    assert not [name for name, tensor in env.get_state().tensors().items() if tensor.requires_grad]


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "kind": (lambda data: data.update(kind="sound"), "worlds of the kind sound are not known"),
    "text": (lambda data: data.update(text="\x1b[31m"), "a world's text must be printable"),
    "window": (lambda data: data["causal"].update(window=2**20), "GiB: its window of 1048576 latent frames"),
    "shape": (lambda data: data["autoencoder"].update(base_dim=10**5), "weights, they need at least"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_description_is_found_before_memory_is(
    name: str, world: VideoWorld, tmp_path: Path
) -> None:
    damage, message = DAMAGED[name]
    assert world.folder is not None
    data = json.loads((world.folder / "config.json").read_text())
    data["frame_size"] = [480, 832]
    damage(data)
    shutil.copytree(world.folder, tmp_path / "world")
    (tmp_path / "world" / "config.json").write_text(json.dumps(data))
    with pytest.raises(WorldError, match=message):
        World.from_pretrained(tmp_path / "world")


def test_a_world_without_buttons_has_one_action(tmp_path: Path) -> None:
    folder = import_tiny_world(tmp_path, causal=FORMS["frames"])
    env = gym.make("ARL2World-v0", world=str(folder), discrete_actions=True, denoising_steps=1)
    assert env.action_space == gym.spaces.Discrete(1)
    env.reset(seed=0)
    assert env.step(0)[0].shape == (32, 48, 3)
    vector = gym.make_vec("ARL2World-v0", num_envs=2, world=str(folder))
    assert vector.single_action_space == gym.spaces.MultiDiscrete([1])
    (folder / "transformer" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WorldError, match="is damaged or was altered"):
        World.from_pretrained(folder)


def test_other_worlds_open_without_the_library() -> None:
    code = (
        "import sys, worldsim.envs.single, worldsim.world as w; w.World.from_pretrained('grid-recall'); "
        "sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

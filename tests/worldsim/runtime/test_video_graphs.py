"""Recorded blocks of a video world are those drawn kernel by kernel; its window stays in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.devices import HostLooks
from tests.recorder import Recorder
from tests.wan_models import REASON, import_tiny_world
from worldsim import simulator as simulator_module
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.runtime.cuda_graphs import Replayed, tensors_of
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.wan import decoder as decoder_module
from worldsim.wan import layers as layers_module
from worldsim.wan.autoencoder import DecoderState
from worldsim.wan.config import CausalConfig
from worldsim.wan.conversion import with_hybrid_layers
from worldsim.world import World
from worldsim.world.video import VideoWorld

pytest.importorskip("diffusers", reason=REASON)

GPU = torch.device("cuda", 0)
FORMS = {
    "frames": (CausalConfig(block=1, window=4, sink=1, steps=[1000, 500]), []),
    "chunks, hybrid": (CausalConfig(block=3, window=6, steps=[1000, 500]), [1]),
}


@pytest.fixture(scope="module", params=FORMS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoWorld:
    causal, layers = FORMS[request.param]
    folder = import_tiny_world(tmp_path_factory.mktemp("world"), causal=causal, actions="doom-rooms")
    made = World.from_pretrained(folder)
    assert isinstance(made, VideoWorld) and made.folder is not None
    generator = torch.Generator().manual_seed(1)
    for embedding in made.transformer.action_embedding:
        embedding.weight.copy_(torch.randn(embedding.weight.shape, generator=generator))
    torch.manual_seed(0)
    transformer = with_hybrid_layers(made.transformer, layers, tokens_per_frame=6)
    config = replace(made.config, transformer=transformer.config)
    return VideoWorld(config, transformer, made.autoencoder, made.text, made.folder, made._checksums)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Let simulators of the mode `cudagraphs` replay on a CPU."""
    made = Recorder()
    monkeypatch.setattr(simulator_module, "compiler_of", made.compiler_of)
    return made


def env_of(world: VideoWorld, compile: str) -> ARL2WorldEnv:
    env = ARL2WorldEnv(world)
    env.simulator = env._env_world.simulator = Simulator(world, compile=compile)
    env.reset(seed=3)
    return env


def blocks(env: ARL2WorldEnv, count: int, action: list[int]) -> np.ndarray:
    return np.stack([env.step(np.array(action))[0] for _ in range(count * env.action_repeat)])


def first_full(world: VideoWorld) -> int:
    """Return behind how many blocks, the first one left out, the window is full."""
    causal = world.config.causal
    return -(-(causal.sink + (causal.kept or 0)) // causal.block) - 1


def assert_equal(one: WorldState, other: WorldState) -> None:
    tensors = other.tensors()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in one.tensors().items())


def test_replayed_blocks_are_those_drawn_kernel_by_kernel(world: VideoWorld, recorder: Recorder) -> None:
    eager, replayed = env_of(world, "none"), env_of(world, "cudagraphs")
    before = first_full(world)
    for _ in range(2):
        for count, action in ((before, [1, 0, 0]), (4, [0, 2, 1]), (2, [2, 1, 0])):
            both = [blocks(env, count, action) for env in (eager, replayed)] if count else [np.zeros(1)] * 2
            assert np.array_equal(*both)
            assert_equal(eager.get_state(), replayed.get_state())
            if (count, action) == (before, [1, 0, 0]) and not recorder.num_replayed:
                assert recorder.num_recorded == 0, "what the first blocks see grows"
        eager.reset(seed=4)
        replayed.reset(seed=4)
    assert recorder.num_recorded == 2, "drawing and committing"
    assert recorder.num_replayed == 2 * 2 * 6


def test_the_window_stays_where_it_is_and_states_stay_values(world: VideoWorld, recorder: Recorder) -> None:
    env = env_of(world, "cudagraphs")
    blocks(env, first_full(world) + 1, [1, 0, 0])
    ring = env.get_state().memory.ring
    assert ring is not None
    address = ring.keys.data_ptr()
    del ring
    blocks(env, 3, [1, 0, 0])
    kept = env.get_state()
    before = {name: tensor.clone() for name, tensor in kept.tensors().items()}
    assert kept.memory.ring is not None and kept.memory.ring.keys.data_ptr() == address
    ahead = blocks(env, 3, [0, 1, 2])
    now = env.get_state().memory.ring
    assert now is not None and now.keys.data_ptr() == address != kept.memory.ring.keys.data_ptr()
    for name, tensor in kept.tensors().items():
        assert torch.equal(tensor, before[name]), f"{name} was written to"
    env.set_state(kept)
    assert np.array_equal(ahead, blocks(env, 3, [0, 1, 2]))
    assert recorder.num_recorded == 2


@pytest.mark.parametrize("compile", ["cudagraphs", "inductor"])
def test_the_decoders_features_are_passed_on_and_never_copied(
    world: VideoWorld, recorder: Recorder, compile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (decoder_module, layers_module):
        monkeypatch.setattr(module, "fused", lambda layer: layer)
    env = env_of(world, compile)
    blocks(env, first_full(world) + 2, [1, 0, 0])
    state, simulator, seen = env.get_state(), env.simulator, []
    sizes = {each.shape for each in state.memory.features}
    for run in (simulator._run_predict, simulator._run_commit):
        assert isinstance(run, Replayed)
        for given, returned, _ in run._recorded.values():
            assert not sizes & {each.shape for each in tensors_of((given, returned))}
    decode = world.autoencoder.decode

    def noted(latents: Tensor, before: DecoderState, *, is_fused: bool) -> tuple[Tensor, DecoderState]:
        seen.append((before, is_fused))
        return decode(latents, before, is_fused=is_fused)

    monkeypatch.setattr(world.autoencoder, "decode", noted)
    prediction = simulator.predict(state, torch.tensor([[1, 0, 0]]))
    after = simulator.commit(state, prediction)
    pairs = zip(seen[0][0].features, state.memory.features, strict=True)
    assert all(given is own for given, own in pairs), "what the decoder reads is what the state holds"
    pairs = zip(after.memory.features, prediction.context.features, strict=True)
    assert all(kept is left for kept, left in pairs), "what it leaves is what the next state holds"
    assert {is_fused for _, is_fused in seen} == {compile == "inductor"}


def test_a_state_is_saved_branched_and_gone_back_to(
    world: VideoWorld, recorder: Recorder, tmp_path: Path
) -> None:
    env, other = env_of(world, "cudagraphs"), env_of(world, "cudagraphs")
    blocks(env, first_full(world) + 2, [1, 0, 0])
    kept = env.get_state()
    kept.save(tmp_path / "state.safetensors")
    futures = []
    for action in ([0, 1, 2], [2, 2, 0]):  # branched
        env.set_state(kept)
        futures.append(blocks(env, 3, action))
    assert not np.array_equal(futures[0], futures[1])
    env.set_state(kept)  # gone back to
    assert np.array_equal(blocks(env, 3, [0, 1, 2]), futures[0])
    other.set_state(WorldState.load(tmp_path / "state.safetensors"))
    assert np.array_equal(blocks(other, 3, [2, 2, 0]), futures[1])


def test_rows_of_different_ages_are_replayed_alike(world: VideoWorld, recorder: Recorder) -> None:
    """Rows whose blocks begin at different frames are drawn in batches of their own."""
    both = [ARL2WorldVectorEnv(2, world, autoreset_mode="Disabled") for _ in range(2)]
    for envs, mode in zip(both, ("none", "cudagraphs"), strict=True):
        envs.simulator = envs._env_world.simulator = Simulator(world, compile=mode)
        envs._rows = Together(envs.simulator)  # type: ignore[assignment] - as on a GPU
        envs.reset(seed=[5, 6])
    rng, repeat = np.random.default_rng(0), both[0].action_repeat
    length = (first_full(world) + 2) * repeat
    for number in range(2 * length):
        if number == length + 2:
            for envs in both:
                envs.reset(options={"reset_mask": np.array([True, False])})
        actions = rng.integers(0, 3, (2, 3))
        assert np.array_equal(*(envs.step(actions)[0] for envs in both))
    assert_equal(both[0].get_state(), both[1].get_state())
    assert recorder.num_recorded == 4, "two functions, of two rows and of one"


class Together:
    """All rows at once, as a GPU steps them."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def step(self, state: WorldState, actions: Tensor) -> WorldState:
        return self.simulator.step(state, actions)[1]

    def alone(self, call: Any, argument: Any) -> Any:
        return call(argument)

    def close(self) -> None:
        """Nothing to end."""


@pytest.mark.parametrize("is_full", [True, False])
def test_a_block_looks_at_no_number_and_fetches_nothing_from_the_host(
    world: VideoWorld, is_full: bool
) -> None:
    """A graph cannot be recorded of what does. On a device without numbers, looking at one is an error."""
    folder = world.folder
    assert folder is not None
    fresh = World.from_pretrained(folder)
    assert isinstance(fresh, VideoWorld)
    transformer = with_hybrid_layers(fresh.transformer, world.config.transformer.hybrid_layers)
    config = replace(world.config, transformer=transformer.config)
    meta = VideoWorld(config, transformer, fresh.autoencoder, world.text, folder, {}).to(
        "meta", torch.float32
    )
    simulator = Simulator(meta)
    memory = meta.in_places(meta.initial_memory(2)).map(lambda _, tensor: tensor.contiguous())
    actions = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    noise = torch.zeros(2, *meta.noise_shape(simulator.sampler), device="meta")
    latents = simulator._predict(memory, actions, None, noise, is_full)  # makes tables
    simulator._context_of(memory, latents, actions, noise, is_full)
    with HostLooks() as looks:
        latents = simulator._predict(memory, actions, None, noise, is_full)
        context = simulator._context_of(memory, latents, actions, noise, is_full)
        after = simulator._commit(memory, latents, None, context)
        with pytest.raises(RuntimeError, match="meta"):
            meta.window_is_full(memory)  # what is asked before the block does look
    assert looks.mixed == []
    assert context.pictures[:, 0].shape == (2, 32, 48, 3)
    for name, tensor in memory.tensors().items():
        assert after.tensors()[name].shape == tensor.shape, name


@pytest.mark.gpu
def test_on_a_card_recorded_blocks_have_the_bytes_of_eager_ones(world: VideoWorld) -> None:
    assert world.folder is not None
    card = World.from_pretrained(world.folder, device=GPU, dtype=torch.bfloat16)
    assert isinstance(card, VideoWorld)
    assert ARL2WorldEnv(card).compile_choice.mode == "inductor"
    kernel = card.autoencoder.autoencoder.decoder.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d) and not kernel.is_contiguous()
    envs = [env_of(card, mode) for mode in ("none", "cudagraphs")]
    for count, action in ((first_full(card) + 1, [1, 0, 0]), (4, [0, 2, 1])):
        assert np.array_equal(*(blocks(env, count, action) for env in envs))
    assert_equal(*(env.get_state() for env in envs))
    kept, ahead = envs[1].get_state(), blocks(envs[1], 3, [1, 1, 1])
    envs[1].set_state(kept)
    assert np.array_equal(ahead, blocks(envs[1], 3, [1, 1, 1]))

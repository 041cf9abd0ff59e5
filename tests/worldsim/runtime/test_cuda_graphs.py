"""CUDA graphs: the results of kernels launched one by one, and states that are values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.devices import HostLooks
from tests.fakes import tiny_starts, tiny_world
from tests.vector_envs import ACTIONS, N, make
from worldsim import simulator as simulator_module
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.model.attention.base import Cached
from worldsim.outcome import OutcomeConfig
from worldsim.runtime.cuda_graphs import Replayed, choose_compile, map_tensors, tensors_of
from worldsim.sampler import SamplerConfig
from worldsim.simulator import Simulator
from worldsim.world import World

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OUTCOME = OutcomeConfig(reward_mean=1.0, end_threshold=0.2)
ROW_TOLERANCE = 6
"""As in bf16 between a row and the dream alone (tests/worldsim/envs/test_vector.py), in steps of 1/255."""


def record_on_cpu(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Behave as a CUDA graph does: run again on the same tensors, into the same tensors."""
    returned = function()

    def replay() -> None:
        for kept, new in zip(tensors_of(returned), tensors_of(function()), strict=True):
            if kept is not new:
                kept.copy_(new)

    return returned, replay


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let simulators of the mode `cudagraphs` replay on a CPU."""
    monkeypatch.setattr(
        simulator_module,
        "compiler_of",
        lambda mode, device: lambda f: f if mode == "none" else Replayed(f, device, record_on_cpu),
    )


def windowed_world(outcome: OutcomeConfig, *, recycled: bool = False, has_odometry: bool = False) -> World:
    """Return a world that commits with noise, and whose windows are not full before the second step."""
    world = tiny_world(outcome=outcome, recycled=recycled, has_odometry=has_odometry)
    world.config.sampler = SamplerConfig(commit_level=0.2)
    world.starts = tiny_starts(length=1)
    return world


@pytest.fixture(
    scope="module",
    params=[{}, {"recycled": True}, {"has_odometry": True}],
    ids=["ordinary", "recycled", "poses"],
)
def world(request: pytest.FixtureRequest) -> World:
    return windowed_world(OUTCOME, **request.param)


def replayed_envs(world: World, **settings: Any) -> ARL2WorldVectorEnv:
    """Return a vector environment that replays what it recorded, with noise drawn ahead."""
    envs = make(world, **settings)
    envs.simulator = Simulator(world, compile="cudagraphs", noise_ahead=True)
    envs._rows = Whole(envs.simulator)  # type: ignore[assignment] - as RowThreads on a GPU
    envs._env_world.simulator = envs.simulator
    return envs


class Whole:
    """All rows at once, as a GPU steps them."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def step(self, state: Any, actions: Tensor) -> Any:
        return self.simulator.step(state, actions)[1]

    def alone(self, call: Any, argument: Any) -> Any:
        return call(argument)

    def close(self) -> None:
        """Nothing to end."""


def eager_envs(world: World, **settings: Any) -> ARL2WorldVectorEnv:
    envs = make(world, **settings)
    envs._rows = Whole(envs.simulator)  # type: ignore[assignment] - so that products round alike
    return envs


@pytest.mark.usefixtures("replaying")
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_replayed_dreams_are_the_ones_stepped_kernel_by_kernel(world: World, mode: str) -> None:
    settings = {"max_episode_steps": 3, "autoreset_mode": mode}
    both = eager_envs(world, **settings), replayed_envs(world, **settings)
    first, other = (envs.reset(seed=3)[0] for envs in both)
    assert np.array_equal(first, other)
    for step, actions in enumerate(ACTIONS[:4]):
        if step == 2:
            mask = np.array([False, True, True, False])
            first, other = (envs.reset(options={"reset_mask": mask})[0] for envs in both)
            assert np.array_equal(first, other)
        eager, replayed = (envs.step(actions) for envs in both)
        for expected, found in zip(eager[:4], replayed[:4], strict=True):
            assert np.array_equal(expected, found)
        assert eager[4].keys() == replayed[4].keys()
    for name, tensor in both[0].get_state().tensors().items():
        assert torch.equal(tensor, both[1].get_state().tensors()[name]), name
    for envs in both:
        envs.close()


@pytest.mark.usefixtures("replaying")
def test_replayed_states_are_values_that_can_be_gone_back_to(world: World) -> None:
    envs = replayed_envs(world, autoreset_mode="Disabled", max_episode_steps=100)
    envs._env_world.world.config.outcome = replace(OUTCOME, end_threshold=1.0)
    envs.reset(seed=0)
    envs.step(ACTIONS[0])
    kept = envs.get_state()
    before = {name: tensor.clone() for name, tensor in kept.tensors().items()}
    frames = [envs.step(actions)[0] for actions in ACTIONS[1:3]]
    for name, tensor in kept.tensors().items():
        assert torch.equal(tensor, before[name]), f"{name} was written to"
    envs.set_state(kept)
    again = [envs.step(actions)[0] for actions in ACTIONS[1:3]]
    assert np.array_equal(frames, again)
    assert not np.array_equal(frames[0], frames[1])
    envs._env_world.world.config.outcome = OUTCOME
    envs.close()


@pytest.mark.usefixtures("replaying")
def test_a_frame_is_shown_before_it_is_committed_in_two_recordings(world: World) -> None:
    eager, replayed = Simulator(world), Simulator(world, compile="cudagraphs")
    state, actions = eager.start(world.starts[:1], [7]), torch.from_numpy(ACTIONS[:4, :1])
    states = [state, state]
    for action in actions:
        predictions = [sim.predict(s, action) for sim, s in zip((eager, replayed), states, strict=True)]
        assert torch.equal(predictions[0].frames, predictions[1].frames)
        replayed.predict(states[1], 2 - action)  # another future, which the first prediction survives
        states = [
            sim.commit(s, prediction)
            for sim, s, prediction in zip((eager, replayed), states, predictions, strict=True)
        ]
    for name, tensor in states[0].tensors().items():
        assert torch.equal(tensor, states[1].tensors()[name]), name


@pytest.mark.parametrize(
    ("kind", "is_told"),
    [
        ({}, False),
        ({"recycled": True}, False),
        ({"has_odometry": True}, False),
        ({"has_odometry": True}, True),
    ],
    ids=["ordinary", "recycled", "poses", "told"],
)
@pytest.mark.parametrize("window_is_full", [True, False])
def test_a_step_looks_at_no_number_and_fetches_nothing_from_the_host(
    window_is_full: bool, kind: dict[str, bool], is_told: bool
) -> None:
    """A graph cannot be recorded of what does. On a device without numbers, looking at one is an error."""
    world = tiny_world(outcome=OUTCOME, **kind)
    world.denoiser.to("meta")
    world.codec.to("meta")
    if world.odometry is not None:
        world.odometry.to("meta")
    simulator = Simulator(world, SamplerConfig(commit_level=0.2))
    actions = torch.zeros(N, 3, dtype=torch.int64, device="meta")
    noise = torch.zeros(N, *world.denoiser.latent_shape, device="meta")
    with torch.inference_mode(), HostLooks() as looks:
        memory = world.initial_memory(N)
        poses = torch.zeros(N, 3, device="meta") if is_told else None
        frames, after = simulator._step(memory, actions, poses, noise, noise, window_is_full)
        assert after.summary is not None
        assert simulator._outcome(after.summary).shape == (2, N)
        assert frames.shape == (N, world.config.height, world.config.width, 3)
        with pytest.raises(RuntimeError, match="meta"):
            world.denoiser.window_is_full(memory)  # what is asked before the step does look
    assert looks.mixed == []


def test_what_is_returned_is_the_callers_and_each_shape_is_recorded_once() -> None:
    recorded = []

    def record(function: Callable[[], Any]) -> Any:
        recorded.append(function)
        return record_on_cpu(function)

    double = Replayed(lambda x, y, sign: (sign * (x + y), x), CPU, record)
    one, two = torch.ones(2), torch.full((2,), 2.0)
    first = double(one, one.expand(2), 1)
    second = double(two, two, 1)
    assert (first[0].tolist(), second[0].tolist()) == ([2.0, 2.0], [4.0, 4.0])
    assert (first[1].tolist(), second[1].tolist()) == ([1.0, 1.0], [2.0, 2.0])
    assert one.tolist() == [1.0, 1.0]
    assert double(two, two, -1)[0].tolist() == [-4.0, -4.0]
    assert double(torch.ones(3), torch.ones(3), 1)[0].tolist() == [2.0] * 3
    assert len(recorded) == 3


def test_tensors_are_mapped_in_the_order_they_are_listed(world: World) -> None:
    memory = world.denoiser.initial_memory(2)
    value = (memory, None, (torch.ones(1), 3), Cached(torch.ones(1), torch.ones(2)))
    assert len(list(tensors_of(value))) == len(memory.tensors()) + 3
    mapped = map_tensors(lambda tensor: tensor + 1, value)
    for before, after in zip(tensors_of(value), tensors_of(mapped), strict=True):
        assert torch.equal(before + 1, after)
    assert mapped[1] is None and mapped[2][1] == 3
    assert isinstance(mapped[3], Cached)


@pytest.mark.parametrize(
    ("mode", "device", "grows", "expected"),
    [
        ("auto", CPU, False, "none"),
        ("auto", GPU, False, "cudagraphs"),
        ("auto", GPU, True, "none"),
        ("cudagraphs", GPU, False, "cudagraphs"),
        ("inductor", GPU, False, "inductor"),
        ("none", GPU, True, "none"),
    ],
)
def test_the_mode_is_what_was_asked_for_or_what_fits(
    mode: str, device: torch.device, grows: bool, expected: str
) -> None:
    choice = choose_compile(mode, device, grows=grows)
    assert choice.mode == expected
    assert str(choice).startswith(f"compile {expected} (")
    if mode == "auto" and expected == "cudagraphs":
        assert choose_compile(mode, device, grows=grows, is_video=True).mode == "inductor"


@pytest.mark.parametrize("make_env", [ARL2WorldEnv, ARL2WorldVectorEnv])
def test_a_mode_that_cannot_be_had_is_named(world: World, make_env: Any) -> None:
    with pytest.raises(WorldError, match="compile must be one of auto, none, .* got 'fast'"):
        make_env(world=world, compile="fast")
    with pytest.raises(WorldError, match="compile='cudagraphs' needs a CUDA GPU, but the world is on cpu"):
        make_env(world=world, compile="cudagraphs")
    with pytest.raises(WorldError, match="compile='inductor' needs a memory of constant size"):
        choose_compile("inductor", GPU, grows=True)


@pytest.fixture(params=[False, True], ids=["", "poses"])
def card_world(request: pytest.FixtureRequest) -> World:
    """Give a world on a card whose heads are as wide as Triton's forms take."""
    world = windowed_world(OutcomeConfig(end_threshold=1.0), has_odometry=request.param)
    return world.to(GPU, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cudagraphs", "inductor"])
def test_on_a_card_a_compiled_batch_dreams_the_same(card_world: World, mode: str) -> None:
    frames = {}
    for compile in ("none", mode):
        envs = make(card_world, compile=compile, max_episode_steps=5, autoreset_mode="SameStep")
        assert envs.compile_choice.mode == compile
        envs.reset(seed=3)
        frames[compile] = np.stack([envs.step(actions)[0] for actions in ACTIONS])
        envs.reset(seed=3)
        assert np.array_equal(frames[compile], np.stack([envs.step(actions)[0] for actions in ACTIONS]))
        envs.close()
    difference = np.abs(frames["none"].astype(int) - frames[mode])
    assert difference.max() <= ROW_TOLERANCE


@pytest.mark.gpu
def test_on_a_card_the_single_environment_replays_prediction_and_commit(card_world: World) -> None:
    frames = []
    for compile in ("none", "cudagraphs"):
        env = ARL2WorldEnv(card_world, compile=compile)
        env.reset(seed=3)
        frames.append(np.stack([env.step(actions[0])[0] for actions in ACTIONS]))
    assert np.abs(frames[0].astype(int) - frames[1]).max() <= ROW_TOLERANCE

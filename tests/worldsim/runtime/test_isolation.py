"""A dream is the same whatever the process around it has set of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import save_tiny_world, tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.runtime.isolation import isolated
from worldsim.state import WorldState
from worldsim.world import World

WALK = np.array([1, 0, 2])


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("world") / "tiny")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "anomalies": torch.autograd.detect_anomaly,
    "precision": lambda: matmul_precision("medium"),
}
whatever_is_set = pytest.mark.parametrize("name", SETTINGS)


def play(world: World | Path) -> list[np.ndarray]:
    """Return what one dream and three look like, from loading the world to a state that was set."""
    device = {} if isinstance(world, World) else {"device": "cpu", "dtype": "float32"}
    env, envs = ARL2WorldEnv(world, **device), ARL2WorldVectorEnv(3, world, **device)
    frames = [env.reset(seed=3)[0], env.step(WALK)[0]]
    env.set_state(env.get_state())
    frames += [env.step(WALK)[0], envs.reset(seed=3)[0]]
    frames += [envs.step(np.tile(WALK, (3, 1)))[0] for _ in range(2)]
    numbers = [tensor.float().numpy() for tensor in env.get_state().memory.tensors().values()]
    envs.close()
    return frames + numbers


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[np.ndarray]:
    return play(folder)


@whatever_is_set
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_dream_is_the_same_to_the_bit(folder: Path, plain: list[np.ndarray], name: str) -> None:
    with SETTINGS[name]():
        inside = play(folder)
    assert len(inside) == len(plain)
    for there, here in zip(inside, plain, strict=True):
        assert np.array_equal(there, here)


@whatever_is_set
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_was_set_is_still_set_afterwards(world: World, name: str) -> None:
    def now() -> list[object]:
        return [
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.matmul.fp32_precision,
        ]

    env = ARL2WorldEnv(world)
    outside = now()
    with SETTINGS[name]():
        before = now()
        env.reset(seed=0)
        env.step(WALK)
        with pytest.raises(ValueError, match="3 whole numbers"):
            env.step(WALK[:2])
        assert now() == before
    assert now() == outside


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad], ids=["inference", "gradients"])
def test_what_is_handed_out_are_ordinary_tensors(
    world: World, mode: Callable[[], AbstractContextManager]
) -> None:
    env, envs = ARL2WorldEnv(world), ARL2WorldVectorEnv(2, world, output="torch")
    with mode():
        env.reset(seed=0)
        env.step(WALK)
        envs.reset(seed=0)
        frames, rewards, *_ = envs.step(np.tile(WALK, (2, 1)))
        states = env.get_state(), envs.get_state().rows([1, 0])
    for tensor in [frames, rewards, *states[0].tensors().values(), *states[1].tensors().values()]:
        assert isinstance(tensor, torch.Tensor)
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    weight = torch.ones((), requires_grad=True)
    (weight * frames.float()).sum().backward()  # what autograd keeps may be no inference tensor
    assert weight.grad is not None
    envs.close()


def test_no_random_numbers_of_the_process_are_used(folder: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    play(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)


def test_a_thread_that_leaves_first_changes_nothing_for_those_inside() -> None:
    @isolated
    def inner() -> torch.dtype:
        return torch.get_default_dtype()

    @isolated
    def outer() -> list[torch.dtype]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            return [pool.submit(inner).result(), torch.get_default_dtype()]

    with default_dtype(torch.float64):
        assert outer() == [torch.float32, torch.float32]
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("name", ["device context", "float64", "inference"])
def test_what_is_loaded_by_hand_is_the_same_and_ordinary(
    folder: Path, plain: list[np.ndarray], tmp_path: Path, name: str
) -> None:
    env = ARL2WorldEnv(tiny_world())
    env.reset(seed=0)
    env.get_state().save(tmp_path / "moment")
    with SETTINGS[name]():
        world, state = World.from_pretrained(folder), WorldState.load(tmp_path / "moment")
        loaded = [*world.denoiser.parameters(), *state.to("cpu").tensors().values(), world.starts[0].frames]
    assert not any(tensor.is_inference() or tensor.is_meta for tensor in loaded)
    for there, here in zip(play(world), plain, strict=True):
        assert np.array_equal(there, here)


def test_a_memory_that_grows_is_ordinary_and_not_copied_each_frame() -> None:
    env = ARL2WorldEnv(tiny_world(is_teacher=True))
    env.reset(seed=0)
    env.step(WALK)
    before = env.get_state()
    env.step(WALK)
    after = env.get_state()
    assert not any(tensor.is_inference() for tensor in after.tensors().values())
    assert before.memory.past is not None and after.memory.past is not None
    assert after.memory.past.keys.data_ptr() == before.memory.past.keys.data_ptr()
    assert after.memory.past.num_frames == before.memory.past.num_frames + 1

"""Predict reads, commit writes, and the state is the whole of what comes next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fakes import tiny_world
from worldsim.errors import WorldError
from worldsim.runtime.config import RuntimeConfig
from worldsim.runtime.noise import COMMIT_FRAME, draw_noise
from worldsim.sampler import SamplerConfig
from worldsim.simulator import Simulator, open_simulator
from worldsim.state import WorldState

ACTIONS = torch.randint(3, (12, 1, 3), generator=torch.Generator().manual_seed(3))


def begin(simulator: Simulator, seed: int = 7) -> WorldState:
    return simulator.start(simulator.world.starts[:1], [seed])


all_kinds = pytest.mark.parametrize(
    "kind",
    [{}, {"is_teacher": True}, {"recycled": True}, {"has_odometry": True, "recycled": True}],
    ids=["hybrid", "teacher", "recycled", "poses"],
)


def rollout(
    simulator: Simulator, state: WorldState, actions: torch.Tensor
) -> tuple[torch.Tensor, WorldState]:
    frames = []
    for action in actions:
        frame, state = simulator.step(state, action)
        frames.append(frame)
    return torch.stack(frames), state


@all_kinds
def test_predict_leaves_the_state_bit_identical(kind: dict[str, bool]) -> None:
    simulator = Simulator(tiny_world(**kind))
    state = begin(simulator)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    simulator.predict(state, ACTIONS[0])
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_commit_advances_by_one_frame_and_keeps_the_size() -> None:
    simulator = Simulator(tiny_world())
    state = begin(simulator)
    prediction = simulator.predict(state, ACTIONS[0])
    after = simulator.commit(state, prediction)
    assert after.frame_index.tolist() == [1]
    assert after.nbytes == state.nbytes
    assert torch.equal(after.frames, prediction.frames)
    assert not torch.equal(after.memory.matrices, state.memory.matrices)


@all_kinds
@pytest.mark.parametrize("commit_level", [0.0, 0.2])
def test_rollout_split_through_a_saved_file_equals_one_rollout_bit_for_bit(
    tmp_path: Path, commit_level: float, kind: dict[str, bool]
) -> None:
    simulator = Simulator(tiny_world(**kind), SamplerConfig(commit_level=commit_level))
    whole, _ = rollout(simulator, begin(simulator), ACTIONS)
    first, state = rollout(simulator, begin(simulator), ACTIONS[:5])
    state.save(tmp_path / "slot.safetensors", world=simulator.world.identity)
    loaded = WorldState.load(tmp_path / "slot.safetensors", world=simulator.world.identity)
    second, _ = rollout(simulator, loaded, ACTIONS[5:])
    assert torch.equal(torch.cat([first, second]), whole)


@all_kinds
def test_branches_of_a_state_are_what_they_are_alone(kind: dict[str, bool]) -> None:
    simulator = Simulator(tiny_world(**kind))
    left, right = ACTIONS[:4], ACTIONS[4:8]
    alone = [rollout(simulator, begin(simulator), actions)[0] for actions in (left, right)]
    states, frames = [begin(simulator)] * 2, ([], [])
    for actions in zip(left, right, strict=True):  # one step of each in turn
        for branch, action in enumerate(actions):
            frame, states[branch] = simulator.step(states[branch], action)
            frames[branch].append(frame)
    assert torch.equal(torch.stack(frames[0]), alone[0])
    assert torch.equal(torch.stack(frames[1]), alone[1])


@all_kinds
def test_committing_twice_from_one_state_gives_the_same_state_twice(kind: dict[str, bool]) -> None:
    simulator = Simulator(tiny_world(**kind))
    state = begin(simulator)
    prediction = simulator.predict(state, ACTIONS[0])
    first = simulator.commit(state, prediction)
    kept = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second = simulator.commit(state, prediction)
    for name, tensor in kept.items():
        assert torch.equal(first.tensors()[name], tensor), name
        assert torch.equal(second.tensors()[name], tensor), name


def test_a_recycled_frame_is_remembered_again_with_the_noise_that_drew_it() -> None:
    simulator = Simulator(tiny_world(recycled=True), SamplerConfig(noise_scale=0.5, commit_level=0.2))
    state = begin(simulator)
    drawn = simulator.predict(state, ACTIONS[0])
    given, expected = (state, drawn.frames, drawn.latents, ACTIONS[0]), simulator.commit(state, drawn)
    simulator.change_sampler(SamplerConfig(num_steps=1, commit_level=0.2))
    again, otherwise = simulator.commit_again(*given, noise_scale=0.5), simulator.commit_again(*given)
    for name, tensor in expected.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    assert not torch.equal(otherwise.memory.matrices, expected.memory.matrices)


def test_what_was_watched_depends_on_no_seed_and_dreams_have_noise_of_their_own() -> None:
    simulator = Simulator(tiny_world(recycled=True))
    one, other = begin(simulator, 7), begin(simulator, 8)
    assert (one.seed.item(), other.seed.item()) == (7, 8)
    for name, tensor in one.memory.tensors().items():
        assert torch.equal(tensor, other.memory.tensors()[name]), name
    frames = [simulator.predict(state, ACTIONS[0]).frames for state in (one, other)]
    assert not torch.equal(*frames)


def test_a_teachers_state_grows_by_the_same_for_every_frame() -> None:
    simulator = Simulator(tiny_world(is_teacher=True))
    state, sizes = begin(simulator), []
    for action in ACTIONS:
        _, state = simulator.step(state, action)
        sizes.append(state.nbytes)
    assert {new - old for old, new in zip(sizes, sizes[1:], strict=False)} == {sizes[1] - sizes[0]}
    assert sizes[1] > sizes[0]


def test_a_frame_is_committed_as_noisy_as_the_sampler_says() -> None:
    simulator = Simulator(tiny_world(), SamplerConfig(commit_level=0.25))
    state = begin(simulator)
    prediction = simulator.predict(state, ACTIONS[0])
    committed = simulator.commit(state, prediction).memory.latents
    noise = draw_noise(state.seed, state.frame_index, prediction.latents.shape[1:], COMMIT_FRAME)
    torch.testing.assert_close(committed.float(), 0.75 * prediction.latents + 0.25 * noise)


def test_same_seed_same_bytes_and_another_seed_another_dream() -> None:
    simulator = Simulator(tiny_world())
    first, _ = rollout(simulator, begin(simulator, 7), ACTIONS)
    again, _ = rollout(simulator, begin(simulator, 7), ACTIONS)
    other, _ = rollout(simulator, begin(simulator, 8), ACTIONS)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_actions_change_the_frame() -> None:
    simulator = Simulator(tiny_world())
    state = begin(simulator)
    left = simulator.predict(state, torch.tensor([[0, 0, 1]]))
    right = simulator.predict(state, torch.tensor([[0, 0, 2]]))
    assert not torch.equal(left.frames, right.frames)


def test_noise_of_a_frame_does_not_depend_on_how_one_got_there() -> None:
    simulator = Simulator(tiny_world())
    state = begin(simulator)
    _, after = simulator.step(state, ACTIONS[0])
    frame = simulator.predict(after, ACTIONS[1]).frames
    for _ in range(3):
        simulator.predict(state, ACTIONS[2])
    assert torch.equal(simulator.predict(after, ACTIONS[1]).frames, frame)


def test_state_file_of_another_world_is_refused(tmp_path: Path) -> None:
    simulator = Simulator(tiny_world())
    begin(simulator).save(tmp_path / "slot.safetensors", world="elsewhere@0000")
    with pytest.raises(WorldError, match="saved in another world"):
        WorldState.load(tmp_path / "slot.safetensors", world=simulator.world.identity)


def test_half_a_state_file_is_refused(tmp_path: Path) -> None:
    simulator = Simulator(tiny_world())
    path = tmp_path / "slot.safetensors"
    begin(simulator).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WorldError, match="not a complete saved state"):
        WorldState.load(path)


def test_state_that_cannot_be_written_is_named(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    simulator = Simulator(tiny_world())
    state = simulator.start(simulator.world.starts[:1] * 8, list(range(8)))
    with pytest.raises(OSError, match=r"No such file.*slot\.safetensors"):
        state.save(tmp_path / "nowhere" / "slot.safetensors")
    request.getfixturevalue("largest_file_50_kb")
    with pytest.raises(OSError, match=r"File too large.*slot\.safetensors"):
        state.save(tmp_path / "slot.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_decides_how_a_world_is_opened() -> None:
    world = tiny_world()
    runtime = RuntimeConfig(denoising_steps=3, noise_scale=0.5, compile="none")
    simulator = open_simulator(world, runtime)
    assert simulator.world is world
    assert (simulator.sampler.num_steps, simulator.sampler.noise_scale) == (3, 0.5)
    assert str(simulator.compile_choice) == "compile none (as asked)"
    assert simulator.device_choice.reason == "the world was loaded so"
    with pytest.raises(WorldError, match="a loaded world stays where it is"):
        open_simulator(world, RuntimeConfig(device="cpu"))
    with pytest.raises(WorldError, match="threads must be at least 0, got -1"):
        open_simulator(world, RuntimeConfig(threads=-1))


def test_real_frames_are_written_whatever_the_novelty_and_dreams_where_they_are_new() -> None:
    world = tiny_world(recycled=True)
    careful, plain = (Simulator(world, SamplerConfig(num_steps=1, write_novelty=each)) for each in (4.0, 0.0))
    state = begin(plain)
    watched = [each.commit_frames(state, state.frames, ACTIONS[0]) for each in (careful, plain)]
    assert torch.equal(watched[0].memory.matrices, watched[1].memory.matrices)
    known = watched[0]
    for _ in range(6):
        known = plain.commit_frames(known, state.frames, ACTIONS[0])
    after = [each.step(known, ACTIONS[1])[1].memory.matrices for each in (careful, plain)]
    changed = [(each - known.memory.matrices).norm() for each in after]
    assert changed[0] < 0.9 * changed[1]

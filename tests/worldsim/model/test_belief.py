"""The pose that is believed in: expected before a frame, corrected after it, a part of the state in fp32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from tests.fakes import tiny_denoiser_config, tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import integrate, wrap_poses
from worldsim.model.memory.pose import kept_poses, moved_poses, pose_phases, relative_poses
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world.config import WorldConfig
from worldsim.world.rewrite import save_described
from worldsim.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
ACTIONS = torch.randint(3, (12, 2, 3), generator=torch.Generator().manual_seed(3))
ODOMETRY_FILE = "odometry.safetensors"
recycled_or_not = pytest.mark.parametrize("recycled", [False, True], ids=["ordinary", "recycled"])


def begin(simulator: Simulator) -> WorldState:
    return simulator.start(simulator.world.starts[:2], [7, 8])


def pose_of(state: WorldState) -> Tensor:
    return kept_poses(state.memory.phase)


def same_pose(found: Tensor, expected: Tensor, tolerance: float = 2e-3) -> bool:
    return bool(wrap_poses(found.double() - expected.double()).abs().max() <= tolerance)


def walked(length: int, seed: int = 1) -> Tensor:
    """Return poses `[length, 3]` somewhere on a map."""
    generator = torch.Generator().manual_seed(seed)
    moved = torch.randn(length, 3, generator=generator) * torch.tensor([12.0, 6.0, 20.0])
    return integrate(moved, torch.tensor([3000.0, -700.0, 130.0])).float()


def test_poses_are_kept_as_angles_and_come_back() -> None:
    poses = wrap_poses(walked(50) * 3)
    assert same_pose(kept_poses(pose_phases(poses, 16)), poses)


@recycled_or_not
def test_a_frame_is_drawn_where_the_action_leads_and_remembered_where_it_shows_to_be(recycled: bool) -> None:
    simulator = Simulator(tiny_world(has_odometry=True, recycled=recycled))
    odometry, state = simulator.world.odometry, begin(simulator)
    assert odometry is not None
    for actions in ACTIONS[:3]:
        memory = state.memory
        assert memory.odometry is not None
        expected = integrate(odometry.expected(memory.odometry, actions)[:, None], pose_of(state))[:, 0]
        prediction = simulator.predict(state, actions)
        assert same_pose(kept_poses(prediction.context.phase), expected)
        after = simulator.commit(state, prediction)
        moved, own = odometry.shown(memory.odometry, actions, memory.latents, prediction.latents)
        assert same_pose(pose_of(after), integrate(moved[:, None], pose_of(state))[:, 0])
        assert not same_pose(pose_of(after), expected), "the frame said nothing"
        assert after.memory.odometry is not None
        torch.testing.assert_close(after.memory.odometry, own)
        state = after


def test_a_dream_begins_where_its_first_frame_was_and_watched_frames_move_it() -> None:
    simulator = Simulator(tiny_world(has_odometry=True))
    first = [
        replace(start, frames=start.frames[:1], actions=start.actions[:1])
        for start in simulator.world.starts[:2]
    ]
    state = simulator.start(first, [7, 8])
    assert state.memory.odometry is not None
    assert not pose_of(state).any() and not state.memory.odometry.any()
    assert pose_of(begin(simulator)).abs().amax() > 0.1


@recycled_or_not
def test_poses_that_are_told_take_the_place_of_what_odometry_finds(recycled: bool) -> None:
    simulator = Simulator(tiny_world(has_odometry=True, recycled=recycled))
    odometry = simulator.world.odometry
    assert odometry is not None
    told = relative_poses(torch.stack([walked(8), walked(8, seed=2)]))
    starts = [
        replace(start, poses=moved_poses(path, torch.tensor([100.0, 5.0, 0.0]), torch.tensor(70.0)))
        for start, path in zip(simulator.world.starts[:2], told[:, :4], strict=True)
    ]
    state = simulator.start(starts, [7, 8])
    assert same_pose(pose_of(state), told[:, 3]), "a start's poses are those of a map of its own"
    for index in (4, 5):
        prediction = simulator.predict(state, ACTIONS[index], told[:, index])
        assert same_pose(kept_poses(prediction.context.phase), told[:, index])
        state = simulator.commit(state, prediction)
        assert same_pose(pose_of(state), told[:, index])
    frames, after = simulator.step(state, ACTIONS[6], told[:, 6])
    seen = simulator.commit_frames(state, frames, ACTIONS[6], told[:, 6])
    for each in (after, seen):
        assert same_pose(pose_of(each), told[:, 6])
        assert each.memory.odometry is not None
        # The last numbers of its state are the displacement: of what was told, not of what was seen.
        moved = (each.memory.odometry[:, -3:] * odometry.units)[:, None]
        assert same_pose(integrate(moved, told[:, 5])[:, 0], told[:, 6])
    with pytest.raises(WorldError, match="all record poses, or none"):
        simulator.start([starts[0], simulator.world.starts[1]], [7, 8])


def test_starts_with_poses_are_read_and_written(tmp_path: Path) -> None:
    world = tiny_world(has_odometry=True)
    starts = [replace(start, poses=walked(4, seed)) for seed, start in enumerate(world.starts)]
    world.save_pretrained(tmp_path / "world", starts=starts)
    found = World.from_pretrained(tmp_path / "world").starts
    assert all(isinstance(start.poses, Tensor) for start in found)
    for start, expected in zip(found, starts, strict=True):
        assert start.poses is not None and expected.poses is not None
        torch.testing.assert_close(start.poses, expected.poses, rtol=0, atol=1e-3)
    wrong = replace(starts[0], poses=walked(3))
    with pytest.raises(WorldError, match=r"poses must be floating-point \[4, 3\]"):
        ARL2WorldVectorEnv(2, world, starts=[wrong])


def test_rows_are_the_dreams_alone_and_bytes_stay_the_same() -> None:
    simulator = Simulator(tiny_world(has_odometry=True, recycled=True))
    both = begin(simulator)
    alone = [both.rows([0]), both.rows([1])]
    sizes = set()
    for actions in ACTIONS:
        _, both = simulator.step(both, actions)
        sizes.add(both.nbytes)
        alone = [simulator.step(state, actions[row : row + 1])[1] for row, state in enumerate(alone)]
    joined = WorldState.join(alone)
    assert same_pose(pose_of(joined), pose_of(both), 0.01)
    assert joined.memory.odometry is not None and both.memory.odometry is not None
    torch.testing.assert_close(joined.memory.odometry, both.memory.odometry, rtol=0, atol=1e-3)
    assert len(sizes) == 1
    cleared = both.memory.reset_rows(torch.tensor([True, False]))
    assert cleared.odometry is not None
    assert not cleared.odometry[0].any() and torch.equal(cleared.odometry[1], both.memory.odometry[1])


def test_odometry_is_fp32_in_a_world_of_bf16(tmp_path: Path) -> None:
    world = tiny_world(has_odometry=True).to("cpu", torch.bfloat16)
    simulator = Simulator(world)
    _, state = simulator.step(begin(simulator), ACTIONS[0])
    assert world.odometry is not None and state.memory.odometry is not None
    kept = [*world.odometry.state_dict().values(), state.memory.odometry, state.memory.phase]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    world.save_pretrained(tmp_path / "world", bits=8)
    loaded = World.from_pretrained(tmp_path / "world", dtype=torch.bfloat16)
    assert loaded.odometry is not None
    for name, tensor in world.odometry.state_dict().items():
        assert torch.equal(loaded.odometry.state_dict()[name], tensor), name


def test_the_folder_of_a_world_holds_its_odometry(tmp_path: Path) -> None:
    world = tiny_world(has_odometry=True)
    world.save_pretrained(tmp_path / "world", dtype=torch.float32)
    described = json.loads((tmp_path / "world" / "config.json").read_text())
    assert described["odometry"]["hidden"] == 8 and ODOMETRY_FILE in described["files"]
    assert "followed by odometry" in (tmp_path / "world" / "README.md").read_text()
    loaded = World.from_pretrained(tmp_path / "world")
    assert loaded.num_parameters == world.num_parameters
    save_described(loaded, loaded.config, tmp_path / "copy")
    assert World.from_pretrained(tmp_path / "copy").odometry is not None
    assert loaded.odometry is not None
    loaded.odometry.gru.bias_hh.data += 1
    other = World(loaded.config, loaded.denoiser, loaded.codec, odometry=loaded.odometry)
    assert other.identity != world.identity, "its states mean something else"
    (tmp_path / "world" / ODOMETRY_FILE).unlink()
    with pytest.raises(WorldError, match=f"has no {ODOMETRY_FILE}"):
        World.from_pretrained(tmp_path / "world")


def test_odometry_of_other_latents_or_of_other_keys_is_refused() -> None:
    world = tiny_world(has_odometry=True)
    assert world.odometry is not None
    with pytest.raises(WorldError, match="of memory_keys pose, but these are axes"):
        replace(world.config, denoiser=tiny_denoiser_config())
    wider = replace(world.odometry.config, latent_shape=[4, 4, 8])
    with pytest.raises(WorldError, match=r"has latents \[4, 4, 6\], its odometry reads \[4, 4, 8\]"):
        replace(world.config, odometry=wider)
    described = world.config.to_json()
    assert WorldConfig.from_json(described).odometry == world.odometry.config
    assert "odometry" not in tiny_world().config.to_json()


def test_a_world_of_poses_that_nothing_follows_says_so_before_it_is_played(tmp_path: Path) -> None:
    world = tiny_world(has_odometry=True)
    bare = World(world.config, world.denoiser, world.codec)
    assert bare.config.odometry is None
    bare.save_pretrained(tmp_path / "bare", starts=world.starts)
    with pytest.raises(WorldError, match=r"remembers by poses .* python -m training\.odometry world="):
        gym.make("ARL2World-v0", world=tmp_path / "bare")


def test_a_state_of_a_world_without_odometry_is_refused_and_its_own_comes_back(tmp_path: Path) -> None:
    env, plain = ARL2WorldEnv(tiny_world(has_odometry=True)), ARL2WorldEnv(tiny_world())
    for each in (env, plain):
        each.reset(seed=0)
    with pytest.raises(WorldError, match="memory.odometry is missing"):
        env.set_state(replace(plain.get_state(), world=""))
    state = env.get_state()
    state.save(tmp_path / "slot.safetensors")
    loaded = WorldState.load(tmp_path / "slot.safetensors")
    assert loaded.memory.odometry is not None and state.memory.odometry is not None
    assert torch.equal(loaded.memory.odometry, state.memory.odometry)
    env.set_state(loaded)

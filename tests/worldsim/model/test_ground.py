"""The map of the ground: read around the player as he is turned, and what tells where walls stop him."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.odometry.learner import Clips, OdometryLearner
from training.odometry.settings import TrainOdometryConfig
from worldsim.errors import WorldError
from worldsim.model.memory.ground import CHANNELS, Ground
from worldsim.model.memory.odometry import Odometry, OdometryConfig, integrate
from worldsim.model.memory.pose import CIRCUMFERENCE

CELLS, COARSE, STEP, WALL = 128, 32, 12.0, 40.0
SHAPE = {"latent_shape": [2, 4, 4], "num_values": [2], "hidden": 8, "features": 8}


def test_points_turn_with_the_player() -> None:
    ground = Ground(CELLS)
    unit = CIRCUMFERENCE / CELLS
    place = torch.tensor([[100.0, 200.0]])
    before = {heading: features(ground, place, heading) for heading in (0.0, 90.0, 180.0)}
    # Something lies 56 units to the north, along y.
    row, column = (int((each + CIRCUMFERENCE / 2) // unit) for each in (256.0, 100.0))
    with torch.no_grad():
        ground.grid[0, :, row, column] += 1
    changed = {h: (features(ground, place, h) - old).abs().sum(-1) for h, old in before.items()}
    # Points of the outermost ring, from ahead counter-clockwise: to the left, ahead, to the right.
    assert {heading: int(each[17:].argmax()) for heading, each in changed.items()} == {
        0.0: 2,
        90.0: 0,
        180.0: 6,
    }


def features(ground: Ground, place: Tensor, heading: float) -> Tensor:
    """Return the features of each point around a player, `[P, C]`."""
    pose = torch.cat([place, torch.tensor([[heading]])], dim=-1)
    return ground(pose, ground.laid_out()).unflatten(-1, (-1, CHANNELS))[0].detach()


def walks(count: int, seed: int) -> Clips:
    """Return players who walk east from anywhere west of a wall, or stand."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.zeros(count, 3)
    begins[:, 0] = torch.rand(count, generator=generator) * 100 - 70
    actions = (torch.rand(count, 8, 1, generator=generator) < 0.8).long()
    x, steps = begins[:, 0], []
    for pressed in actions[..., 0].unbind(1):
        moved = (x + STEP * pressed).clamp(max=WALL) - x
        x = x + moved
        steps.append(torch.stack([moved, torch.zeros_like(moved), torch.zeros_like(moved)], dim=-1))
    return Clips(actions, torch.stack(steps, dim=1), torch.zeros(count, 8, 3, 5, 4, 5), begins)


def error_alone(cells: int) -> float:
    """Return by how many units paths are off that dynamics follow alone, after some learning."""
    torch.manual_seed(0)
    odometry = Odometry(OdometryConfig(**SHAPE, ground=cells))
    optimizer = torch.optim.AdamW(odometry.parameters(), lr=1e-2)
    for step in range(100):
        clips = walks(32, seed=step)
        alone = odometry.dynamics(odometry.initial_state(32), clips.actions, None, clips.begins)
        (alone - clips.displacements).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    clips = walks(256, seed=1000)
    with torch.no_grad():
        alone = odometry.dynamics(odometry.initial_state(256), clips.actions, None, clips.begins)
    ends = [integrate(each.double(), clips.begins)[:, -1, 0] for each in (alone, clips.displacements)]
    return float((ends[0] - ends[1]).abs().mean())


def test_dynamics_learn_where_a_wall_stops_the_player() -> None:
    with_map, without = error_alone(COARSE), error_alone(0)
    assert with_map < 6.0, f"{with_map:.1f} units of a way of 77"
    assert without > 2 * with_map


def test_a_map_of_the_ground_needs_a_pose_and_recordings_that_are_not_mirrored() -> None:
    odometry = Odometry(OdometryConfig(**SHAPE, ground=CELLS))
    state, pressed = odometry.initial_state(1), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(AssertionError, match="where the player stands is told"):
        odometry.expected(state, pressed)
    assert odometry.expected(state, pressed, torch.zeros(1, 3)).shape == (1, 3)
    with pytest.raises(WorldError, match="needs mirrored=false"):
        TrainOdometryConfig(out="x", data=None, codec="y", ground=CELLS)
    with pytest.raises(WorldError, match="ground"):
        OdometryConfig(**SHAPE, ground=-1)


def test_poses_are_followed_step_by_step_as_in_sequences() -> None:
    torch.manual_seed(1)
    odometry = Odometry(OdometryConfig(**SHAPE, ground=CELLS))
    odometry.ground.grid.data *= 10
    clips = walks(3, seed=2)
    frames = torch.randn(3, 9, 2, 4, 4)
    _, shown, last = odometry(odometry.initial_state(3), clips.actions, frames, clips.begins)
    state, pose = odometry.initial_state(3), clips.begins.double()
    for index in range(8):
        given = clips.actions[:, index], frames[:, index], frames[:, index + 1], pose
        moved, state = odometry.shown(state, *given)
        torch.testing.assert_close(moved, shown[:, index], rtol=1e-3, atol=1e-3)
        pose = integrate(moved[:, None], pose)[:, 0]
    torch.testing.assert_close(state, last, rtol=1e-3, atol=1e-3)
    elsewhere = odometry(odometry.initial_state(3), clips.actions, frames, clips.begins + 300)[1]
    assert (elsewhere - shown).abs().max() > 1e-2 and bool(shown.isfinite().all())


def test_a_learner_with_a_map_also_goes_on_alone() -> None:
    torch.manual_seed(0)
    clips, losses = walks(4, seed=3), {}
    for cells in (0, COARSE):
        learner = OdometryLearner(Odometry(OdometryConfig(**SHAPE, ground=cells)), summed_frames=4)
        losses[cells] = learner(clips, clips, torch.Generator().manual_seed(0))
    assert set(losses[COARSE]) - set(losses[0]) == {"alone", "summed_alone"}
    assert all(each.isfinite() for each in losses[COARSE].values())
    losses[COARSE]["loss"].backward()
    assert learner.odometry.ground.grid.grad.abs().sum() > 0

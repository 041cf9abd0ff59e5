"""Odometry: poses and displacements are inverse, and its forms by frame and by sequence agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.memory.motion_energies import FLOOR, motion_energies
from worldsim.model.memory.odometry import (
    PERIODS,
    SHAPE_FILE,
    WEIGHTS_FILE,
    Odometry,
    OdometryConfig,
    displacements_between,
    integrate,
    load_odometry,
    save_odometry,
    wrap_poses,
)


def tiny_odometry() -> Odometry:
    torch.manual_seed(0)
    config = OdometryConfig(latent_shape=[4, 6, 10], num_values=[3, 2], hidden=8, features=4)
    return Odometry(config).eval()


def walk(num_frames: int) -> Tensor:
    """Return displacements `[num_frames, 3]` fp64 of a long walk with many turns."""
    generator = torch.Generator().manual_seed(3)
    moved = torch.randn(num_frames, 3, generator=generator, dtype=torch.float64)
    return moved * torch.tensor([12.0, 6.0, 20.0])


def test_a_displacement_is_forward_left_and_counter_clockwise() -> None:
    north = torch.tensor([10.0, 20.0, 90.0])
    for displacement, pose in (
        ([16.0, 0.0, 0.0], [10.0, 36.0, 90.0]),
        ([0.0, 16.0, 0.0], [-6.0, 20.0, 90.0]),
        ([0.0, 0.0, 5.0], [10.0, 20.0, 95.0]),
    ):
        after = integrate(torch.tensor([displacement]), north)
        torch.testing.assert_close(after, torch.tensor([pose], dtype=torch.float64))


def test_a_turn_while_walking_goes_along_a_circle() -> None:
    """Each frame's way is the chord of its arc, half a turn off the old heading; 72 frames of 5 degrees."""
    circle = torch.tensor([[8.0, 0.0, 5.0]]).expand(72, -1)
    poses = integrate(circle, torch.zeros(3))
    assert poses[-1].tolist() == pytest.approx([0.0, 0.0, 360.0], abs=1e-9)
    radius = 4.0 / torch.tensor(2.5).deg2rad().sin()
    assert poses[35, :2].norm() == pytest.approx(float(2 * radius), rel=1e-6)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_poses_and_displacements_are_inverse_after_10000_frames(is_wrapped: bool) -> None:
    moved, origin = walk(10_000), torch.tensor([-4000.0, 4000.0, 170.0], dtype=torch.float64)
    poses = torch.cat([origin[None], integrate(moved, origin)])
    assert (poses[:, 0].max() - poses[:, 0].min()) > 1000  # it leaves the torus, and turns round and round
    assert (poses[:, 2].max() - poses[:, 2].min()) > 720
    found = displacements_between(wrap_poses(poses) if is_wrapped else poses)
    torch.testing.assert_close(found, moved, atol=1e-8, rtol=0)
    torch.testing.assert_close(integrate(found, origin), poses[1:], atol=1e-6, rtol=0)


def test_a_path_kept_wrapped_from_frame_to_frame_stays_exact() -> None:
    """In play a pose is advanced by one frame at a time, in fp32 on the torus."""
    moved = walk(20_000).unflatten(0, (2000, 10))  # ten players
    pose = torch.zeros(10, 3)
    for step in moved:
        pose = wrap_poses(integrate(step[:, None], pose)[:, 0]).float()
    off = wrap_poses(pose - integrate(moved.transpose(0, 1), torch.zeros(10, 3))[:, -1])
    assert off.abs().max() < 0.1, off


def test_poses_wrap_where_they_come_round() -> None:
    poses = torch.tensor([[4096.0, -4097.0, 180.0], [4095.0, 8192.0, -540.0]], dtype=torch.float64)
    expected = torch.tensor([[-4096.0, 4095.0, -180.0], [4095.0, 0.0, -180.0]], dtype=torch.float64)
    assert torch.equal(wrap_poses(poses), expected)
    assert torch.equal(wrap_poses(poses + torch.tensor(PERIODS)), expected)


def test_frame_by_frame_equals_the_sequence() -> None:
    odometry = tiny_odometry()
    actions = torch.stack([torch.randint(3, (2, 7)), torch.randint(2, (2, 7))], dim=-1)
    frames = torch.randn(2, 8, 4, 6, 10)
    expected, shown, last = odometry(odometry.initial_state(2), actions, frames)
    state = odometry.initial_state(2)
    for number in range(7):
        before, after = frames[:, number], frames[:, number + 1]
        ahead = odometry.expected(state, actions[:, number])
        torch.testing.assert_close(ahead, expected[:, number])
        one, state = odometry.shown(state, actions[:, number], before, after)
        torch.testing.assert_close(one, shown[:, number])
    torch.testing.assert_close(state, last)
    middle = odometry(odometry.initial_state(2), actions[:, :3], frames[:, :4])[2]
    torch.testing.assert_close(odometry(middle, actions[:, 3:], frames[:, 3:])[1], shown[:, 3:])


def test_what_is_expected_knows_nothing_of_the_frame_to_come() -> None:
    odometry, actions = tiny_odometry(), torch.ones(1, 5, 2, dtype=torch.int64)
    frames = torch.randn(1, 6, 4, 6, 10)
    other = frames.clone()
    other[:, 3] += 1  # comes after the third displacement was expected
    expected, shown, _ = odometry(odometry.initial_state(1), actions, frames)
    expected_other, shown_other, _ = odometry(odometry.initial_state(1), actions, other)
    assert torch.equal(expected[:, :3], expected_other[:, :3])
    assert not torch.equal(shown[:, 2], shown_other[:, 2])
    assert not torch.equal(expected[:, 3], expected_other[:, 3])


def test_dynamics_are_what_is_expected_of_a_known_movement() -> None:
    odometry = tiny_odometry()
    actions = torch.stack([torch.randint(3, (2, 6)), torch.randint(2, (2, 6))], dim=-1)
    state = odometry.initial_state(2)
    expected, shown, _ = odometry(state, actions, torch.randn(2, 7, 4, 6, 10))
    torch.testing.assert_close(odometry.dynamics(state, actions, shown), expected)
    assert not torch.allclose(odometry.dynamics(state, actions, shown + 1)[:, 1:], expected[:, 1:])


def test_motion_energies_are_least_where_each_part_of_a_picture_went() -> None:
    """The left half moves right by two cells and the right half up by one; compression is as good as none."""
    before = torch.randn(3, 16, 16, 20)
    after = torch.cat([before.roll(2, dims=3)[..., :8], before.roll(-1, dims=2)[..., 8:]], dim=3)
    energies = motion_energies(before, after)
    assert energies.shape == (3, 3, 5, 4, 5)
    left, right = energies[:, :, :, 1:3, 0], energies[:, :, :, 1:3, 3:]
    assert (left.flatten(1, 2).argmin(1) == 1 * 5 + 4).all()
    assert (right.flatten(1, 2).argmin(1) == 0 * 5 + 2).all()
    still = motion_energies(before, before)[:, 1, 2]
    torch.testing.assert_close(still, torch.full_like(still, FLOOR).log())


def test_motion_energies_of_a_mirrored_picture_are_mirrored() -> None:
    before, after = torch.randn(2, 2, 4, 16, 20)
    mirrored = motion_energies(before.flip(-1), after.flip(-1))
    torch.testing.assert_close(mirrored, motion_energies(before, after).flip(-1, -3))


def test_energies_count_as_their_deviations_from_what_is_usual() -> None:
    odometry = tiny_odometry()
    energies = 3 * torch.randn(500, 3, 5, 4, 5) - 2
    odometry.calibrate(energies)
    assert odometry.energy_mean.mean() == pytest.approx(-2, abs=0.05)
    assert odometry.energy_std.mean() == pytest.approx(3 + FLOOR, abs=0.05)


def test_displacements_are_fp32_under_autocast() -> None:
    odometry, actions = tiny_odometry(), torch.ones(1, 3, 2, dtype=torch.int64)
    frames = torch.randn(1, 4, 4, 6, 10)
    exact = odometry(odometry.initial_state(1), actions, frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = odometry(odometry.initial_state(1), actions, frames)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_saved_network_is_read_back(tmp_path: Path) -> None:
    odometry = tiny_odometry()
    save_odometry(odometry, tmp_path / "odometry")
    found = load_odometry(tmp_path / "odometry")
    assert found.config == odometry.config
    for name, tensor in odometry.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert sum(each.numel() for each in found.parameters()) > found.config.min_weights


def test_damaged_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="holds no odometry"):
        load_odometry(tmp_path)
    save_odometry(tiny_odometry(), tmp_path / "odometry")
    shape = tmp_path / "odometry" / SHAPE_FILE
    told = json.loads(shape.read_text())
    for changed, sentence in (
        ({"hidden": 4096}, "weights"),
        ({"latent_shape": [4, 6]}, "channels, height and width"),
        ({"num_values": []}, "values of each action axis"),
        ({"channels": 3}, "no field"),
    ):
        shape.write_text(json.dumps(told | {"odometry": told["odometry"] | changed}))
        with pytest.raises(WorldError, match=sentence):
            load_odometry(tmp_path / "odometry")
    shape.write_text(json.dumps(told))
    (tmp_path / "odometry" / WEIGHTS_FILE).write_bytes(b"no weights")
    with pytest.raises(WorldError, match="damaged"):
        load_odometry(tmp_path / "odometry")

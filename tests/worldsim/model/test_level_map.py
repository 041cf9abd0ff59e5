"""The map of a level: read where the player looks, the same in both forms, told poses of the level's own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import draw, make_denoiser, tiny_world, write_turning_dataset
from training.data.latents import LatentVideo
from training.outcomes import calibration
from training.world import recall
from training.world.transfer import take_over
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Clip, ClipBatch
from worldsim.model.config import DenoiserConfig, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.level_map import CHANNELS, GAIN, LevelMap, around, sample_plane
from worldsim.model.memory.pose import CIRCUMFERENCE, kept_poses, pose_phases, relative_poses
from worldsim.sampler import watch
from worldsim.simulator import Simulator
from worldsim.starts import Start, draw_starts
from worldsim.world.config import OutcomeConfig
from worldsim.world.world import World

CELLS, FRAMES = 64, 6
UNIT = CIRCUMFERENCE / CELLS
MAPPED = {"memory_keys": "pose", "memory_phase": "none", "level_map": CELLS}


def mapped(denoiser: Denoiser) -> Denoiser:
    """Return a network with a map, all of whose weights matter."""
    torch.manual_seed(3)
    other = Denoiser(replace(denoiser.config, **MAPPED)).to(denoiser.patch_embedding.weight.dtype)
    take_over(other, denoiser)
    for parameter in other.level_map.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return other.eval().requires_grad_(False)


def mapped_world(outcome: OutcomeConfig | None = None) -> World:
    """Return a tiny world of a level."""
    world = tiny_world(has_odometry=True, outcome=outcome)
    described = replace(world.config, denoiser=replace(world.config.denoiser, level_map=CELLS))
    other = World(described, mapped(world.denoiser), world.codec, world.folder, world.odometry)
    other.starts = world.starts
    return other


def test_features_between_cells_are_interpolated_and_come_round() -> None:
    middles = (torch.arange(CELLS) + 0.5) * UNIT - CIRCUMFERENCE / 2
    grid = torch.stack([middles.expand(CELLS, CELLS), middles[:, None].expand(CELLS, CELLS)])[None]
    places = torch.tensor([[0.0, 0.0], [100.0, -300.0], [4000.0, -4000.0], [1234.5, 77.0]])
    torch.testing.assert_close(sample_plane(around(grid), places), places, rtol=1e-4, atol=1e-2)
    edge = torch.tensor([[CIRCUMFERENCE / 2, 0.0]])
    round_trip = torch.tensor([[-CIRCUMFERENCE / 2, 0.0]])
    torch.testing.assert_close(sample_plane(around(grid), edge), sample_plane(around(grid), round_trip))
    assert sample_plane(around(grid), edge)[0, 0].abs() < 1e-2, "half-way between the last cell and the first"


@pytest.mark.parametrize(("heading", "column"), [(0.0, 5), (0.0, 0), (90.0, 9), (-135.0, 3), (720.0, 7)])
def test_a_column_is_told_what_lies_where_it_looks_and_others_are_not(heading: float, column: int) -> None:
    config = DenoiserConfig(**MAPPED)
    level_map, pose = LevelMap(config), (300.0, -450.0, heading)
    phase = pose_phases(torch.tensor([pose]), config.head_width)
    before = level_map.samples(phase)[1]
    # 600 units along the middle of the column, in a plane picture of 90 degrees.
    azimuth = math.radians(heading) - math.atan((column + 0.5) / 5 - 1)
    place = pose[0] + 600 * math.cos(azimuth), pose[1] + 600 * math.sin(azimuth)
    row, cell = (int((each + CIRCUMFERENCE / 2) // UNIT) for each in reversed(place))
    with torch.no_grad():
        level_map.fine[0, :, row, cell] += 1
    changed = (level_map.samples(phase)[1] - before).abs().sum(dim=(0, 2, 3))  # of each ray
    rays = changed.nonzero().flatten()
    assert rays.min() // 2 <= column <= rays.max() // 2
    assert len(rays) <= 10 and changed.argmax() // 2 in range(column - 1, column + 2)


def test_a_map_that_has_learned_nothing_changes_nothing() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, memory_keys=MAPPED["memory_keys"])
    other = Denoiser(replace(denoiser.config, level_map=CELLS)).double()
    take_over(other, denoiser)
    assert torch.equal(run(other, poses()), run(denoiser, poses()))
    assert other.level_map.fine.std().item() * GAIN == pytest.approx(0.1, rel=0.05)
    assert other.level_map.fine.shape == (1, CHANNELS, CELLS, CELLS)


def poses() -> Tensor:
    """Return poses of a walk, `[2, FRAMES, 3]`."""
    return (draw(2, FRAMES, 3, seed=5) * torch.tensor([40.0, 40.0, 10.0])).cumsum(1)


def run(denoiser: Denoiser, where: Tensor | None) -> Tensor:
    """Return velocities of whole sequences."""
    levels = draw(2, FRAMES, 2, seed=3).sigmoid()
    actions = torch.randint(3, (2, FRAMES, 3), generator=torch.Generator().manual_seed(4))
    return denoiser(draw(2, FRAMES, 4, 8, 8), draw(2, FRAMES, 4, 8, 8, seed=2), levels, actions, poses=where)


def test_frame_by_frame_is_the_same_as_whole_sequences_and_differs_from_place_to_place() -> None:
    denoiser = mapped(make_denoiser(MemoryPhase.NONE, memory_keys=MAPPED["memory_keys"]))
    where = poses()
    parallel, elsewhere = run(denoiser, where), run(denoiser, where + torch.tensor([500.0, 0, 0]))
    assert (parallel - elsewhere).abs().max() > 0.1
    levels = draw(2, FRAMES, 2, seed=3).sigmoid()
    actions = torch.randint(3, (2, FRAMES, 3), generator=torch.Generator().manual_seed(4))
    clean, noisy = draw(2, FRAMES, 4, 8, 8), draw(2, FRAMES, 4, 8, 8, seed=2)
    memory = denoiser.initial_memory(2)
    memory = replace(memory, matrices=memory.matrices.double(), phase=memory.phase.double())
    for frame in range(FRAMES):
        context = denoiser.observe(actions[:, frame], memory, pose=where[:, frame])
        velocity = denoiser.denoise(noisy[:, frame], levels[:, frame, 1], context, memory)
        torch.testing.assert_close(velocity, parallel[:, frame], rtol=1e-4, atol=1e-4)
        memory = denoiser.commit(clean[:, frame], levels[:, frame, 0], context, memory)
        memory = replace(memory, matrices=memory.matrices.double(), phase=memory.phase.double())


def test_grids_laid_out_for_inference_say_the_same() -> None:
    denoiser = mapped(make_denoiser(MemoryPhase.NONE, memory_keys=MAPPED["memory_keys"])).float()
    for parameter in denoiser.level_map.parameters():
        parameter.data = parameter.data.bfloat16()
    level_map, phase = denoiser.level_map, pose_phases(poses().float()[0], denoiser.config.head_width)
    before = level_map(phase)
    level_map.pack(denoiser.config.tokens_per_frame)
    torch.testing.assert_close(level_map(phase), before, rtol=2e-2, atol=2e-2)


def test_training_sequences_are_told_poses_of_the_level() -> None:
    where = torch.arange(30.0).reshape(10, 3) * 7
    video = LatentVideo(torch.zeros(10, 1, 2, 2), torch.zeros(10, 1, dtype=torch.int64), [10], poses=where)
    starts, turns = np.array([2, 5]), np.array([90.0, 0.0])
    told = video.pose_sequences(starts, 3, turns=turns, on_map=True)
    assert torch.equal(told, torch.stack([where[2:5], where[5:8]]))
    assert not torch.equal(video.pose_sequences(starts, 3, turns=turns, on_map=False), told)


def test_a_dream_begins_on_the_level_where_its_start_was_recorded() -> None:
    world = mapped_world()
    simulator, start = Simulator(world), world.starts[0]
    length = len(start.frames)
    path = torch.tensor([500.0, -20.0, 75.0]) + torch.arange(float(length))[:, None]
    state = simulator.start([replace(start, poses=path)], [0])
    torch.testing.assert_close(kept_poses(state.memory.phase), path[-1:].double(), rtol=0, atol=1e-2)
    other = Simulator(tiny_world(has_odometry=True)).start([replace(start, poses=path)], [0])
    told = relative_poses(path[None])[:, -1].double()
    torch.testing.assert_close(kept_poses(other.memory.phase), told, rtol=0, atol=1e-2)
    with pytest.raises(WorldError, match="start 'start-x' records no poses"):
        simulator.start([Start("start-x", start.frames, start.actions)], [0])


def test_dreams_of_a_level_are_told_where_they_begin_whoever_measures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = mapped_world(outcome=OutcomeConfig())
    where = torch.tensor([[500.0, -20.0, 75.0], [510.0, -20.0, 80.0], [520.0, -18.0, 85.0]])
    latents, pressed = torch.randn(3, *world.denoiser.latent_shape), torch.zeros(3, 3, dtype=torch.int64)
    given = latents[None], pressed[None], where[None], torch.zeros(1, dtype=torch.int64)
    followed = recall.Clips(*given, are_told=False).watched(world, 3)
    torch.testing.assert_close(kept_poses(followed.phase), where[-1:].double(), rtol=0, atol=1e-2)
    frames = torch.zeros(1, 3, world.config.height, world.config.width, 3, dtype=torch.uint8)
    clips = ClipBatch([Clip(0, 0)], 0, frames, pressed[None], where[None])
    state = clips.begin_dreams(Simulator(world), 2, seed=0)
    torch.testing.assert_close(kept_poses(state.memory.phase), where[1:2].double(), rtol=0, atol=1e-2)
    assert torch.equal(clips.path(world), where[None])
    told: list[Tensor | None] = []

    def spy(*args: Any) -> Any:
        told.append(args[6])
        return watch(*args)

    monkeypatch.setattr(calibration, "watch", spy)
    video = LatentVideo(latents, pressed, [3], torch.zeros(3), torch.zeros(3, dtype=torch.bool), where)
    calibration._predict_batch(world, video, np.array([0]), 3)
    assert torch.equal(torch.cat(told), where)


def test_a_network_with_a_map_is_never_left_without_poses() -> None:
    denoiser = mapped(make_denoiser(MemoryPhase.NONE, memory_keys=MAPPED["memory_keys"]))
    with pytest.raises(WorldError, match="needs to be told poses on its level"):
        run(denoiser, None)
    with pytest.raises(WorldError, match="needs to be told poses on its level"):
        denoiser.observe(torch.zeros(1, 3, dtype=torch.int64), denoiser.initial_memory(1))


def test_a_map_is_taken_over_by_networks_of_the_same_view_alone() -> None:
    denoiser = mapped(make_denoiser(MemoryPhase.NONE, memory_keys=MAPPED["memory_keys"]))
    same, wider = Denoiser(denoiser.config), Denoiser(replace(denoiser.config, latent_shape=[4, 8, 12]))
    for other in (same, wider):
        take_over(other, denoiser)
    assert torch.equal(same.level_map.fine, denoiser.level_map.fine.float())
    assert not wider.level_map.write.weight.any(), "it begins without a word"


def test_a_picture_cannot_be_the_start_of_a_level(tmp_path: Path) -> None:
    world = mapped_world()
    env = ARL2WorldEnv(world)
    with pytest.raises(WorldError, match="no picture can be its start"):
        env.add_start_picture(tmp_path / "photo.png")
    env.close()


def test_a_map_needs_keys_of_poses_and_a_sensible_size() -> None:
    with pytest.raises(WorldError, match="level_map needs memory_keys pose, got axes"):
        DenoiserConfig(level_map=CELLS)
    with pytest.raises(WorldError, match="level_map"):
        DenoiserConfig(**MAPPED | {"level_map": 5000})


def test_start_moments_that_are_drawn_say_where_they_are_if_asked(tmp_path: Path) -> None:
    write_turning_dataset(tmp_path / "data")
    world = tiny_world(has_odometry=True)
    size = (world.config.height, world.config.width)
    for asked in (True, False):
        drawn = draw_starts(
            tmp_path / "data", 3, 4, actions=world.config.actions, size=size, seed=1, with_poses=asked
        )
        assert all((start.poses is not None) is asked for start in drawn)

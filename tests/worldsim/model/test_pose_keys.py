"""Keys of poses: closed after a full turn, the same for a view that is seen again, equal in both forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import draw, make_denoiser
from worldsim.errors import WorldError
from worldsim.games.registry import open_game
from worldsim.model.attention.writes import key_turns
from worldsim.model.config import DenoiserConfig, MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.pose import (
    CIRCUMFERENCE,
    moved_poses,
    pose_distances,
    pose_multiples,
    pose_phases,
    pose_places,
)

FRAMES, ASKED = 6, 4
EXACT = {"rtol": 1e-6, "atol": 1e-6}
WIDTH = 64


def turned(*poses: tuple[float, float, float]) -> Tensor:
    """Return how the keys of a frame's tokens turn at poses, `[P, N, H, D / 2, 2]`."""
    phases = pose_phases(torch.tensor(poses, dtype=torch.float64), WIDTH)
    return key_turns(pose_places(8, 10, WIDTH, 90.0) + phases[:, None], pose_multiples(3, 4, WIDTH))


@pytest.mark.parametrize(
    ("pose", "again"),
    [
        ((3.0, -70.0, 12.0), (3.0, -70.0, 372.0)),
        ((3.0, -70.0, 12.0), (3.0, -70.0, 12.0 - 360 * 2778)),
        ((3.0, -70.0, 12.0), (3.0 + CIRCUMFERENCE, -70.0, 12.0)),
        ((3.0, -70.0, 12.0), (3.0, -70.0 - 100 * CIRCUMFERENCE, 12.0)),
    ],
)
def test_a_full_turn_and_a_way_round_the_torus_close_exactly(
    pose: tuple[float, float, float], again: tuple[float, float, float]
) -> None:
    first, second, other = turned(pose, again, (pose[0] + 40, pose[1], pose[2] + 5))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
    assert (first - other).abs().max() > 1


def test_without_places_keys_turn_with_heading_and_row_as_before() -> None:
    with_places, without = (pose_multiples(3, 4, WIDTH, keyed) for keyed in (True, False))
    assert torch.equal(with_places[..., [0, 3]], without[..., [0, 3]])
    assert with_places[..., 1:3].abs().max() > 0 and without[..., 1:3].abs().max() == 0


def test_without_places_a_network_sees_headings_alone() -> None:
    *rest, poses = given()
    moved = poses + torch.tensor([300.0, -70.0, 0.0])
    turned_away = poses + torch.tensor([0.0, 0.0, 1.0]) * torch.arange(poses.shape[1])[:, None]
    for keyed in (True, False):
        denoiser = make_denoiser(MemoryPhase.NONE, memory_keys=MemoryKeys.POSE)
        other = Denoiser(replace(denoiser.config, keyed_places=keyed)).double()
        other.load_state_dict(denoiser.state_dict())
        here, there, away = (other(*rest, poses=each) for each in (poses, moved, turned_away))
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
        assert (here - away).abs().max() > 1e-3
        scaled = other(*rest, poses=poses * torch.tensor([5.0, 5.0, 1.0]))
        assert torch.allclose(here, scaled, rtol=1e-4, atol=1e-4) is not keyed


def test_heads_turn_by_whole_multiples_of_their_own_the_first_by_small_ones() -> None:
    multiples = torch.stack([pose_multiples(layer, 6, WIDTH) for layer in range(8)]).double()  # [L, H, 32, 4]
    heading, place, row = multiples[..., 0], multiples[..., 1:3], multiples[..., 3]
    assert torch.equal(multiples[..., :3], multiples[..., :3].round())
    wavelength = CIRCUMFERENCE / place.norm(dim=-1)
    assert heading[:, 0].abs().max() <= 4 and wavelength[:, 0].min() > 500
    assert heading[:, 1:].abs().max() == 16 and 60 < wavelength[:, 1:].min() < 70
    assert 1800 < wavelength.max() < 2300 and row.abs().max() <= math.pi
    assert len(multiples.flatten(0, 2).unique(dim=0)) == multiples.flatten(0, 2).shape[0]


def test_views_have_keys_of_their_own_and_near_ones_are_alike() -> None:
    """Cosine of all heads' keys of two poses, token by token."""
    poses = (0.0, 0.0, 0.0), (4.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 90.0), (600.0, 0.0, 0.0)
    here, *others = turned(*poses).flatten(-3)
    near_step, near_turn, behind, elsewhere = ((here * each).sum(-1) / (4 * 32) for each in others)
    assert near_step.min() > 0.9 and near_turn.min() > 0.9
    assert behind.abs().max() < 0.3 and elsewhere.abs().max() < 0.3
    table = here @ here.T / (4 * 32)
    assert (table - torch.eye(80)).abs().max() < 0.75  # of one frame


def test_a_point_is_at_one_azimuth_from_whatever_heading_it_is_seen() -> None:
    places = pose_places(1, 10, WIDTH, 90.0)[:, 0].double()
    assert torch.equal(places, -places.flip(0)) and (places.diff() < 0).all()
    # Twice as far to the right of the middle is twice the tangent: columns of a plane picture.
    torch.testing.assert_close(places[7].tan(), 5 * places[5].tan(), **EXACT)
    edge = pose_places(1, 10_000, WIDTH, 90.0)[0, 0]
    assert edge == pytest.approx(math.pi / 4, abs=1e-3)
    turned_right = pose_phases(torch.tensor([0.0, 0.0, -30.0], dtype=torch.float64), WIDTH)[0]
    to_the_right, ahead = turned_right + places[5:], places[:5] - math.radians(30)
    assert to_the_right.max() < 0 < ahead.max()


@pytest.fixture(scope="module")
def frames() -> Iterator[list[tuple[np.ndarray, tuple[float, float, float]]]]:
    """Pictures and poses of a player who turns to the left on the spot, walks, and steps to the right."""
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    seen = []
    with open_game("doom-fresh-rooms") as game:
        seen.append(game.reset(3))
        for action in (
            [[0, 0, 1]] * 12 + [[0, 0, 0]] * 4 + [[1, 0, 0]] * 4 + [[0, 0, 0]] * 12 + [[0, 2, 0]] * 4
        ):
            seen.append(game.step(np.array(action)))
    yield [(each.frame.astype(np.float32), each.pose) for each in seen]


def test_real_pictures_turn_as_azimuths_say(frames: list) -> None:
    """What a column shows is found in a later frame in the column of the same azimuth."""
    (before, pose), (after, later) = frames[6], frames[10]
    turn = later[2] - pose[2]
    assert 5 < (turn + 180) % 360 - 180 < 45  # to the left is counter-clockwise
    columns = before.shape[1]
    azimuths = pose_places(1, columns, WIDTH, 90.0)[:, 0].double().rad2deg()
    errors = {}
    for sign in (1, -1):
        found = [(azimuths - (azimuth + sign * turn)).abs().argmin() for azimuth in azimuths]
        both = [c for c, f in enumerate(found) if abs(azimuths[f] - (azimuths[c] + sign * turn)) < 0.5]
        rows = slice(54, 66)  # about the horizon, which turning does not stretch
        pairs = before[rows, [int(found[c]) for c in both]], after[rows, both]
        errors[sign] = float(np.abs(pairs[0] - pairs[1]).mean())
    assert errors[1] < 0.5 * errors[-1]


def test_real_players_walk_along_their_heading_and_step_to_its_right(frames: list) -> None:
    for first, last, ahead in ((16, 20, True), (32, 36, False)):
        start, end = (torch.tensor(frames[index][1], dtype=torch.float64) for index in (first, last))
        forward, left, turn = moved_poses(end, start, -start[2]).tolist()
        assert abs(turn) < 1
        assert (forward > 5 * abs(left)) if ahead else (-left > 5 * abs(forward)), (forward, left)


def test_distances_of_poses_go_the_short_way_round() -> None:
    here = torch.tensor([[0.0, 0.0, 350.0], [3.0, 4.0, -170.0]])
    distance, turn = pose_distances(here[:, None], torch.tensor([[0.0, 0.0, 10.0]]))
    assert distance.flatten().tolist() == [0, 5] and turn.flatten().tolist() == [20, 180]


def pose_denoiser(*, recycled: bool = False) -> Denoiser:
    return make_denoiser(MemoryPhase.NONE, memory_keys=MemoryKeys.POSE, recycled=recycled)


def given(rows: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return clean and noisy frames, levels, actions and poses."""
    actions = torch.randint(3, (rows, FRAMES, 3), generator=torch.Generator().manual_seed(4))
    poses = 200 * draw(rows, FRAMES, 3, seed=6)
    levels = draw(rows, FRAMES, 2, seed=3).sigmoid()
    return draw(rows, FRAMES, 4, 8, 8), draw(rows, FRAMES, 4, 8, 8, seed=2), levels, actions, poses


@pytest.mark.parametrize("recycled", [False, True], ids=["ordinary", "recycled"])
def test_all_frames_at_once_equal_play_and_so_do_those_drawn_from_the_states_alone(recycled: bool) -> None:
    denoiser, (clean, noisy, levels, actions, poses) = pose_denoiser(recycled=recycled), given()
    alone = torch.zeros(2, FRAMES, dtype=torch.bool)
    alone[0, ASKED:] = True
    noise = draw(2, FRAMES, 4, 8, 8, seed=5) if recycled else None
    memory = denoiser.initial_memory(2)
    together = denoiser.run_sequences(
        clean, noisy, levels, actions, memory, noise=noise, poses=poses, alone=alone, unwritten=alone
    )
    asked = memory
    for frame in range(FRAMES):
        asked = memory.states_alone() if frame == ASKED else asked
        context = denoiser.observe(actions[:, frame], memory, pose=poses[:, frame])
        velocity = denoiser.denoise(noisy[:, frame], levels[:, frame, 1], context, memory)
        if frame >= ASKED:
            blind = denoiser.observe(actions[:, frame], asked, pose=poses[:, frame])
            other = denoiser.denoise(noisy[:, frame], levels[:, frame, 1], blind, asked)
            assert (other[0] - velocity[0]).abs().max() > 1e-3
            velocity = torch.stack([other[0], velocity[1]])
        torch.testing.assert_close(velocity, together.velocity[:, frame], **EXACT)
        if noise is not None:
            first, context = denoiser.first_pass(noise[:, frame], context, memory)
            assert together.first_velocity is not None
            torch.testing.assert_close(first[1], together.first_velocity[1, frame], **EXACT)
        memory = denoiser.commit(clean[:, frame], levels[:, frame, 0], context, memory)


def test_only_differences_of_poses_matter_and_these_do() -> None:
    """So a map's coordinates cannot be learned by heart."""
    denoiser, (*rest, poses) = pose_denoiser(), given()
    moved = poses + torch.tensor([1234.0, -777.0, 0.0], dtype=torch.float64)
    still = torch.zeros_like(poses)
    here, there, nowhere = (denoiser(*rest, poses=each) for each in (poses, moved, still))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert (here - nowhere)[:, 1:].abs().max() > 1e-3
    torch.testing.assert_close(nowhere, denoiser(*rest))  # without a motion keys are places in the frame


def test_what_poses_cannot_turn_is_said() -> None:
    with pytest.raises(WorldError, match="poses need memory_keys pose, but this world's are axes"):
        make_denoiser(MemoryPhase.PATH)(*given()[:4], poses=given()[4])
    with pytest.raises(WorldError, match="memory_keys pose needs memory_phase none.*got path"):
        DenoiserConfig(memory_keys="pose")
    with pytest.raises(WorldError, match="memory_keys pose needs heads of at least 8 features"):
        DenoiserConfig(memory_keys="pose", memory_phase="none", dim=24, num_heads=4)
    with pytest.raises(WorldError, match="keyed_places false needs memory_keys pose, got axes"):
        DenoiserConfig(keyed_places=False)
    with pytest.raises(WorldError, match="field_of_view"):
        DenoiserConfig(memory_keys="pose", memory_phase="none", field_of_view=180.0)

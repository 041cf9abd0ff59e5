"""Keys of the plane tell any two places apart, which those of row and column can't."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.fakes import PATH_KEYS, draw, make_denoiser
from worldsim.errors import WorldError
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.config import MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.motion import CIRCUMFERENCE, UNIT, PathMotion, plane_multiples, wrap
from worldsim.model.rotary import rotate_heads

HEAD_WIDTH = 64


def plane_keys(places: Tensor, layers: int = 2, heads: int = 4) -> Tensor:
    """Return keys of places `[N, 2]` that depend on nothing else, all heads side by side, of length 1."""
    multiples = torch.cat([plane_multiples(layer, heads, HEAD_WIDTH) for layer in range(layers)])
    angles = torch.einsum("nc,hpc->nhp", places.double() * UNIT, multiples[..., :2].double())
    keys = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
    return keys / keys.norm(dim=1, keepdim=True)


def grid_places(side: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


def test_keys_of_different_places_are_nearly_at_right_angles() -> None:
    places = grid_places(20)
    alike = plane_keys(places) @ plane_keys(places).T
    apart = (places[:, None] - places).abs().amax(dim=-1)
    assert alike[apart >= 2].abs().max() < 0.25
    assert alike[apart == 1].max() < 0.5
    assert alike.diagonal().sub(1).abs().max() < 1e-12


def test_a_table_of_places_fits_under_keys_of_the_plane_and_not_under_those_of_row_and_column() -> None:
    """Least squares is the best that a linear memory can do."""
    places, generator = grid_places(12), torch.Generator().manual_seed(0)
    table = torch.randn(len(places), 4, dtype=torch.float64, generator=generator)
    on_axes = torch.cat([torch.nn.functional.one_hot(part).double() for part in places.unbind(1)], dim=1)
    left = {}
    for name, keys in (("plane", plane_keys(places)), ("axes", on_axes)):
        found = keys @ torch.linalg.lstsq(keys, table, driver="gelsd").solution
        left[name] = float((found - table).square().mean() / table.square().mean())
    assert left["plane"] < 1e-6
    assert left["axes"] > 0.7


def test_turns_survive_wrapping_and_come_round() -> None:
    multiples = plane_multiples(0, 4, HEAD_WIDTH).double()
    assert torch.equal(multiples, multiples.round())
    walked = torch.tensor(12_345.25, dtype=torch.float64) * UNIT
    kept = wrap(walked)
    for exact, wrapped in (
        (multiples * walked, multiples * kept),
        (0 * multiples, multiples * CIRCUMFERENCE * UNIT),
    ):
        assert wrap(exact - wrapped).abs().max() < 1e-6


def memory_turn(denoiser: Denoiser, phase: Tensor) -> Tensor:
    attention = denoiser.layers()[0].self_attn
    assert isinstance(attention, HybridAttention)
    ones = torch.ones(16, 2, 16, dtype=phase.dtype)
    return rotate_heads(ones, attention.turns(denoiser.rotary(phase[None], range(1)).memory))[0]


def test_a_token_meets_the_key_of_its_place_after_a_walk() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, memory_keys=MemoryKeys.PLANE)
    still = torch.zeros(8, dtype=torch.float64)
    moved = still.clone()
    moved[0], moved[1] = UNIT, -2 * UNIT  # one token down, two to the left
    before = memory_turn(denoiser, still).unflatten(0, (4, 4))
    after = memory_turn(denoiser, moved).unflatten(0, (4, 4))
    torch.testing.assert_close(after[:3, 2:], before[1:, :2], atol=1e-6, rtol=0)
    assert (after[0, 0] - before[0, 0]).abs().max() > 0.1


@pytest.mark.parametrize("keys", PATH_KEYS)
def test_a_full_layer_finds_a_place_by_the_path_however_long(keys: MemoryKeys) -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, [], [0, 1, 2], memory_keys=keys, full_path=True)
    moves = torch.tensor([1.0, -2.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # tokens down and to the right
    table = denoiser.motion.table.double()
    once, often = wrap(moves @ table), wrap((1 + 3 * CIRCUMFERENCE) * moves @ table)

    def turned(phase: Tensor) -> Tensor:
        rotary = denoiser.rotary(phase[None], range(1))
        assert rotary.time is not None
        return rotary.time[0].unflatten(0, (4, 4))

    start = turned(torch.zeros(8, dtype=torch.float64))
    tolerance = 0.02 if keys is MemoryKeys.PLANE else 1e-6  # frequencies are rounded to whole units there
    torch.testing.assert_close(turned(once)[:3, 2:], start[1:, :2], atol=tolerance, rtol=0)
    if keys is MemoryKeys.PLANE:
        torch.testing.assert_close(turned(often), turned(once), atol=1e-3, rtol=0)
    assert (turned(once)[0, 0] - start[0, 0]).abs().max() > 0.1


def test_coarser_keys_turn_less() -> None:
    fine, coarse = (plane_multiples(1, 4, HEAD_WIDTH, finest) for finest in (math.pi, math.pi / 4))
    torch.testing.assert_close(coarse[..., :2] * 4, fine[..., :2], atol=2, rtol=0)  # whole multiples, both
    assert torch.equal(coarse[..., 2], fine[..., 2])
    config = replace(
        make_denoiser(MemoryPhase.PATH, memory_keys=MemoryKeys.PLANE).config, finest_key=math.pi / 4
    )
    attention = Denoiser(config).layers()[2].self_attn
    assert isinstance(attention, HybridAttention)
    expected = plane_multiples(2, config.num_heads, config.head_width, math.pi / 4)
    assert torch.equal(attention.multiples, expected)


def test_an_odometer_knows_no_displacement_at_rest_and_the_way_back() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, path_odometry=True)
    assert isinstance(denoiser.motion, PathMotion)
    before, after = draw(2, 3, 4, 8, 8), draw(2, 3, 4, 8, 8, seed=2)
    there, back = denoiser.motion.measured(before, after), denoiser.motion.measured(after, before)
    assert there.shape == (2, 3, 8)
    assert there.abs().max() > 1e-3
    torch.testing.assert_close(there, -back)
    assert denoiser.motion.measured(after, after).abs().max() == 0


def test_heads_differ_and_the_first_is_the_coarsest() -> None:
    length = plane_multiples(1, 4, HEAD_WIDTH)[..., :2].norm(dim=-1) * UNIT
    assert length.max() <= math.pi * 1.01
    assert length[0].max() == pytest.approx(math.pi / 2, rel=0.02)
    first, second = (plane_multiples(layer, 4, HEAD_WIDTH) for layer in (0, 1))
    assert not any(torch.equal(a, b) for a in first for b in second)


def test_a_clock_turns_keys_of_the_plane_too() -> None:
    latents, action = torch.zeros(1, 4, 8, 8), torch.zeros(1, 32)
    turns = {}
    for phase in (MemoryPhase.NONE, MemoryPhase.TIME):
        motion = make_denoiser(phase, memory_keys=MemoryKeys.PLANE).motion
        turns[phase] = motion(latents, action, action[0])
    assert turns[MemoryPhase.NONE].abs().max() == 0
    assert (turns[MemoryPhase.TIME][0, 2:6] - UNIT).abs().max() < 1e-9
    assert turns[MemoryPhase.TIME][0, :2].abs().max() == 0


def test_who_presses_nothing_stays_where_he_was() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, memory_keys=MemoryKeys.PLANE)
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = denoiser.displacements(latents, torch.tensor([[0, 0, 0], [1, 0, 0]]))
    assert moved[0].abs().max() == 0
    assert moved[1].abs().max() > 0
    with pytest.raises(WorldError, match="memory_phase time follows no path"):
        make_denoiser(MemoryPhase.TIME).displacements(latents, torch.zeros(2, 3, dtype=torch.int64))

"""Sight: flow to a fraction of a point, and the displacement that explains most of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worldsim.errors import WorldError
from worldsim.model.memory.odometry import (
    UNITS,
    Odometry,
    OdometryConfig,
    integrate,
    load_odometry,
    mirrored,
    save_odometry,
    seen_from_before,
)
from worldsim.model.memory.sight import (
    NUM_TOLD,
    POINTS,
    REACH,
    Flow,
    Sight,
    explain,
    matching_costs,
    mirrored_told,
    pack_told,
    solve_three,
    unpack_told,
)

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, COLUMNS = 4, 6


def texture(right: float, down: float) -> Tensor:
    """Return latents `[1, 16, 8, 12]`, one for each point of a cell, of a smooth pattern that was moved."""
    y, x = torch.meshgrid(
        torch.arange(8.0 * POINTS) - down, torch.arange(12.0 * POINTS) - right, indexing="ij"
    )
    bright = 0.5 + 0.2 * ((0.5 * x).sin() + (0.23 * x).cos() + (0.6 * y).sin())
    return functional.pixel_unshuffle(bright[None, None], POINTS)


def reader() -> Flow:
    """Return a flow that reads brightness from latents like those of `texture`."""
    flow = Flow(POINTS**2)
    with torch.no_grad():
        flow.weight[:, :, 1, 1] = torch.eye(POINTS**2)
    return flow


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (1.25, -0.75), (-4.25, 2.25)])
def test_parts_are_found_to_a_fraction_of_a_point(right: float, down: float) -> None:
    flow, known = reader()(texture(0, 0), texture(right, down))
    assert flow.shape == known.shape == (1, 2, 8, 6)
    inside = flow[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside[0], torch.full_like(inside[0], right), atol=0.25, rtol=0)
    torch.testing.assert_close(inside[1], torch.full_like(inside[1], down), atol=0.25, rtol=0)
    assert known[0, :, 1:-1, 1:-1].isfinite().all()


def test_costs_are_mean_squared_differences_also_beside_the_last_column() -> None:
    before, after = torch.rand(2, 2, 8, 20)
    costs = matching_costs(before, after)
    (down, right), (height, width) = REACH, (4, 8)
    assert costs.shape == (2, 2 * down + 1, 2 * right + 1, 2, 2)
    padded = functional.pad(after[:, None], (right, right, down, down), mode="replicate")[:, 0]
    for y, x, row, column in ((0, 0, 0, 0), (down, right, 1, 1), (2 * down, 2 * right, 1, 1), (3, 7, 0, 1)):
        top, left = row * height, column * width
        part = before[:, top : top + height, left : left + width]
        there = padded[:, top + y : top + y + height, left + x : left + x + width]
        expected = (part - there).square().mean((1, 2))
        torch.testing.assert_close(costs[:, y, x, row, column], expected, atol=1e-5, rtol=1e-4)


def test_what_flew_further_than_is_searched_is_not_known() -> None:
    """A ramp of brightness fits best as far away as is looked; nothing is across it."""
    ramp = torch.linspace(0, 1, 48).expand(32, 48)
    latents = functional.pixel_unshuffle(torch.stack([ramp, ramp - 0.5])[:, None], POINTS)
    _, known = reader()(latents[:1], latents[1:])
    assert known[0, 0, :, :4].isinf().all()


def flows_of(moved: Tensor, share: float) -> tuple[Tensor, ...]:
    """Return flows of displacements `[G, 3]`, of which a share is anything, and what `explain` needs."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.randn(len(moved), 2, 3, ROWS, COLUMNS, generator=generator)
    bends = 0.3 * torch.randn(2, ROWS, COLUMNS, generator=generator)
    flow = torch.einsum("gcirk,gi->gcrk", answers, moved)
    flow = flow + torch.einsum("crk,g->gcrk", bends, moved[:, 2].square())
    is_wild = torch.rand(flow.shape, generator=generator) < share
    flow = torch.where(is_wild, 8 * torch.rand(flow.shape, generator=generator) - 4, flow)
    return flow, answers, bends, torch.full_like(flow, -3.0), torch.ones_like(flow, dtype=torch.bool)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_displacement_is_that_of_most_parts(share: float) -> None:
    moved = torch.tensor([[1.0, 0.0, 0.0], [0.5, -0.25, 0.1], [0.0, 0.0, 0.0], [0.2, 0.7, -0.5]])
    found, information = explain(*flows_of(moved, share))
    torch.testing.assert_close(found, moved, atol=0.05, rtol=0)
    assert (information.diagonal(dim1=1, dim2=2) > 1000).all()


def test_less_is_known_where_fewer_parts_are_found() -> None:
    flow, answers, bends, scale, is_found = flows_of(torch.tensor([[1.0, 0.5, 0.1]]), 0.0)
    _, everything = explain(flow, answers, bends, scale, is_found)
    is_found[..., 1:] = False
    _, some = explain(flow, answers, bends, scale, is_found)
    _, nothing = explain(flow, answers, bends, scale, torch.zeros_like(is_found))
    assert (some.diagonal(dim1=1, dim2=2) < 0.5 * everything.diagonal(dim1=1, dim2=2)).all()
    assert not nothing.any()


def test_three_equations_are_solved() -> None:
    root = torch.randn(50, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, right = root @ root.transpose(1, 2) + 0.1 * torch.eye(3), root[:, 0] + 1
    expected = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(solve_three(matrix, right), expected)


def test_what_is_told_is_unpacked_again_also_of_halves() -> None:
    moved, information = explain(*flows_of(torch.tensor([[0.5, -0.25, 0.1], [1.0, 0.0, 0.0]]), 0.1))
    told = pack_told(moved, information)
    assert told.shape == (2, NUM_TOLD)
    found, known = unpack_told(told.half())
    torch.testing.assert_close(found, moved, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(known, information + 0.01 * torch.eye(3), rtol=0.02, atol=1.0)


def test_a_turn_that_looks_like_a_step_to_the_left_stays_two_unknowns_in_halves() -> None:
    """Information that rounding makes negative would throw the displacement far away."""
    alike = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.99998], [0.0, 0.99998, 1.0]])
    information = 1e5 * (alike + torch.diag(torch.tensor([1.0, 0.0, 0.0])))
    for scale in torch.linspace(0.9, 1.0, 20):
        _, known = unpack_told(pack_told(torch.zeros(1, 3), scale * information[None]).half())
        assert (torch.linalg.eigvalsh(known.double()) > 10).all()


def test_a_description_of_far_more_than_the_file_holds_is_not_built(tmp_path: Path) -> None:
    save_odometry(seeing(), tmp_path / "odometry")
    shape = tmp_path / "odometry" / "odometry.json"
    told = json.loads(shape.read_text())
    told["odometry"]["latent_shape"] = [8192, 8192, 8192]
    shape.write_text(json.dumps(told))
    with pytest.raises(WorldError, match="need at least"):
        load_odometry(tmp_path / "odometry")
    assert sum(t.numel() for t in seeing().state_dict().values()) > seeing().config.min_weights


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_card_sees_what_the_processor_sees(graph: bool) -> None:
    odometry, device = seeing(), torch.device("cuda", 0)
    frames = torch.randn(2, 32, 4, 6, 10)
    frames[1] = 0.9 * frames[0] + 0.1 * frames[1]
    expected = odometry.compare(*frames)
    odometry, (before, after) = odometry.to(device), frames.to(device)
    found = odometry.compare(before, after)
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            found = odometry.compare(before, after)
        captured.replay()
    assert found.device == device and found.dtype == torch.float32
    off = (found.cpu() - expected).abs()  # a part may be found elsewhere where two places fit alike
    assert off.median() < 1e-2 and (off < 0.1).float().mean() > 0.9


def test_in_a_mirror_left_and_turn_have_the_other_sign() -> None:
    flow, answers, *rest = flows_of(torch.tensor([[0.5, -0.25, 0.1], [1.0, 0.0, 0.3]]), 0.0)
    told = pack_told(*explain(flow, answers, torch.zeros(2, ROWS, COLUMNS), *rest[1:]))
    signs = torch.tensor([1.0, -1.0, -1.0]).view(1, 1, 3, 1, 1)
    other = pack_told(*explain(flow, signs * answers, torch.zeros(2, ROWS, COLUMNS), *rest[1:]))
    torch.testing.assert_close(mirrored_told(told), other, atol=1e-3, rtol=1e-3)
    assert torch.equal(mirrored(told), mirrored_told(told))


def test_a_displacement_is_seen_along_the_heading_before_its_turn() -> None:
    moved = torch.tensor([10.0, -3.0, 8.0])
    pose = integrate(moved[None], torch.zeros(3))[0]  # from heading 0: x is ahead, y is left
    seen = seen_from_before(moved / torch.tensor(UNITS)) * torch.tensor(UNITS)
    torch.testing.assert_close(seen.double(), pose, atol=1e-4, rtol=0)


def seeing() -> Odometry:
    torch.manual_seed(0)
    config = OdometryConfig(latent_shape=[4, 6, 10], num_values=[3, 2], hidden=8, features=4, sight=True)
    odometry = Odometry(config).eval()
    assert odometry.sight is not None
    for tensor in (*odometry.sight.flow.buffers(), odometry.sight.answers):
        torch.nn.init.normal_(tensor, std=0.3)
    return odometry.requires_grad_(False)


def test_frame_by_frame_equals_the_sequence_and_a_file_brings_it_back(tmp_path: Path) -> None:
    odometry = seeing()
    actions = torch.stack([torch.randint(3, (2, 5)), torch.randint(2, (2, 5))], dim=-1)
    frames = torch.randn(2, 6, 4, 6, 10)
    expected, shown, last = odometry(odometry.initial_state(2), actions, frames)
    assert not torch.allclose(expected, shown)
    state = odometry.initial_state(2)
    for number in range(5):
        one, state = odometry.shown(state, actions[:, number], frames[:, number], frames[:, number + 1])
        torch.testing.assert_close(one, shown[:, number], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(state, last, atol=1e-3, rtol=1e-3)
    save_odometry(odometry, tmp_path / "odometry")
    again = load_odometry(tmp_path / "odometry")
    assert torch.equal(again(again.initial_state(2), actions, frames)[1], shown)


def test_what_is_seen_counts_by_how_well_it_is_known() -> None:
    """Heads that say nothing: an unknown step is the expected one, a well known one is what is seen."""
    odometry = seeing()
    for module in (odometry.move, odometry.correct):
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
    seen = torch.tensor([[0.5, 0.25, 0.0]])
    actions = torch.zeros(1, 1, 2, dtype=torch.int64)
    for known, share in ((1e-3, 0.0), (1e6, 1.0)):
        told = pack_told(seen, known * torch.eye(3)[None])
        _, shown, _ = odometry.follow(odometry.initial_state(1), actions, told[:, None])
        expected = share * seen * odometry.units
        torch.testing.assert_close(shown[0], expected, atol=0.05, rtol=0)


def test_a_sight_of_narrow_latents_makes_one_column() -> None:
    sight = Sight((4, 4, 3))
    assert sight(torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 3)).shape == (2, NUM_TOLD)

"""Long dreams, masked continuation and probes, where the answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world
from tests.grids import TILE, MapSimulator, StillSimulator, write_recall_set
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.evaluation.inputs.motion import scroll
from worldsim.evaluation.inputs.out_and_back import ReturnSet, Tolerance
from worldsim.evaluation.memory.continuation import (
    ContinuationScores,
    find_masks,
    measure_continuation,
    seen_tiles,
    summarize_continuation,
)
from worldsim.evaluation.memory.probe import ProbeSamples, collect_samples, hashed, probe
from worldsim.evaluation.quality.controllability import TURN
from worldsim.evaluation.quality.long_rollouts import (
    ENERGY,
    SCROLLING,
    LongDreams,
    dream_long,
    pairs_of,
    random_walks,
    summarize_control,
    summarize_drift,
)
from worldsim.evaluation.report.targets import check_memory
from worldsim.simulator import Simulator

pytestmark = pytest.mark.usefixtures("one_thread")
GAP = 8
FROM_ABOVE = ActionLayout(
    (
        ActionAxis(name="move", buttons=("up", "down"), keys=((), ())),
        ActionAxis(name="strafe", buttons=("left", "right"), keys=((), ())),
    )
)


@pytest.fixture(scope="module")
def returns(tmp_path_factory: pytest.TempPathFactory) -> ReturnSet:
    folder = write_recall_set(tmp_path_factory.mktemp("data"), GAP, episodes=6)
    return ReturnSet(
        folder, GAP, TINY_ACTIONS, (HEIGHT, WIDTH), tolerance=Tolerance(), context_frames=3, num_episodes=0
    )


@pytest.mark.parametrize(("axis", "shift"), [(1, 16), (1, -16), (2, 16), (2, -8), (2, 0)])
def test_scrolling_by_a_tile_is_told_also_from_the_grid_lines(axis: int, shift: int) -> None:
    tiles = torch.rand(6, 14, 14, generator=torch.Generator().manual_seed(0))
    big = tiles.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    big[:, ::16] = big[:, :, ::16] = 0  # lines between the tiles look the same after each move
    before = big[:, 48:160, 48:160]
    begin = [48, 48]
    begin[axis - 1] -= shift
    after = big[:, begin[0] : begin[0] + 112, begin[1] : begin[1] + 112]
    assert scroll(before, after, axis=axis).tolist() == [shift] * 6


def test_a_world_seen_from_above_is_tested_by_scrolling_and_another_one_by_turning() -> None:
    assert pairs_of(FROM_ABOVE) == list(SCROLLING)
    assert [pair.axis for pair in pairs_of(TINY_ACTIONS)] == ["turn", "move"]


def long_dreams(motion: float, late: float, energy: float) -> LongDreams:
    """Return dreams that obey with this motion at first, with `late` later, and move with `energy`."""
    motions = {
        mark: {p.axis: {p.positive: np.full(4, m), p.negative: np.full(4, -m)} for p in SCROLLING}
        for mark, m in ((0, motion), (1000, late))
    }
    curve = np.full((4, 20), 0.5)
    curve[:, 8:10] = 0.05  # in the middle, where a comparison of first and last frames is blind
    curves = {"brightness": curve, "contrast": np.full((4, 20), 0.5), "sharpness": np.full((4, 20), 0.5)}
    real = {name: np.full(4, 0.5) for name in (*curves, ENERGY)}
    return LongDreams(list("abcd"), motions, curves | {ENERGY: np.full((4, 20), energy)}, real)


def test_control_that_is_lost_later_shows_as_a_ratio() -> None:
    kept, lost = (summarize_control(long_dreams(2, late, 0.5), FROM_ABOVE) for late in (2, 0.5))
    assert kept.late_over_early.mean == 1
    assert lost.late_over_early.mean == 0
    assert lost.marks[0]["move"].both_right.mean == 1
    assert lost.marks[1000]["strafe"].both_right.mean == 0
    assert summarize_control(long_dreams(0, 1, 0.5), FROM_ABOVE).late_over_early.mean is None


def test_a_collapse_in_the_middle_counts_and_stillness_is_said() -> None:
    found = summarize_drift(long_dreams(2, 2, 0.5))
    assert found.brightness.worst_segment == 4
    assert found.brightness.worst_ratio.mean == pytest.approx(0.1)
    assert found.brightness.last_minus_first.mean == 0
    assert found.moves
    assert not summarize_drift(long_dreams(2, 2, 0.2)).moves


def test_long_dreams_are_measured_at_each_mark_and_frame(
    returns: ReturnSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = replace(TURN, hold_frames=2, settle_frames=0)
    monkeypatch.setattr("worldsim.evaluation.quality.long_rollouts.PAIRS", (pair,))
    how: dict[str, Any] = {"num_frames": 6, "marks": (0, 4, 99), "batch_size": 2, "seed": 0}
    dreams = dream_long(Simulator(tiny_world()), returns.only(range(4)), **how)
    assert list(dreams.motions) == [0, 4]
    assert dreams.motions[4]["turn"]["left"].shape == (4,)
    assert dreams.curves[ENERGY].shape == (4, 6)
    assert (dreams.curves[ENERGY] > 0).all()
    assert dreams.real["brightness"].shape == (4,)
    assert dreams.names == returns.names[:4]


def test_each_row_walks_its_own_way_whatever_the_batch() -> None:
    walks = random_walks(TINY_ACTIONS, range(4), 20, seed=1)
    assert walks.shape == (20, 4, 3)
    assert torch.equal(walks[:, 2:], random_walks(TINY_ACTIONS, [2, 3], 20, seed=1))
    assert not torch.equal(walks[:, 0], walks[:, 1])


def test_a_tile_counts_as_seen_if_the_context_showed_it() -> None:
    poses = np.array([[0, 0, 0], [1, 0, 0], [3, 0, 0], [0, 1, 0.0]])
    masks = seen_tiles((1, 2), 4)(poses[:2], poses[2:], None)
    assert masks.shape == (2, 4, 8)
    assert not masks[0].any()  # tiles 3 and 4; 0 to 2 were seen
    assert not masks[1].any()
    there = poses[[1, 0]] + [[1, 0, 0], [0, 0, 0]]
    back = seen_tiles((1, 2), 4)(poses[:2], there, None)
    assert back[0, :, :4].all() and not back[0, :, 4:].any()
    assert back[1].all()


def test_a_perfect_memory_is_right_where_the_context_shows_and_grey_elsewhere(returns: ReturnSet) -> None:
    masks = find_masks(returns, seen_tiles((HEIGHT // TILE, WIDTH // TILE), TILE))
    found: dict[str, Any] = {
        kind.__name__: summarize_continuation(
            measure_continuation(kind(tiny_world()), returns, masks, batch_size=3, seed=0), len(masks.frames)
        )
        for kind in (MapSimulator, StillSimulator)
    }
    remembered = found["MapSimulator"].dream
    assert remembered.seen.mean > remembered.unseen.mean + 10
    assert 0 < found["MapSimulator"].seen_share < 1
    still = found["StillSimulator"]
    assert still.dream == still.copy_last


def test_episodes_without_a_kind_of_part_do_not_count_for_it() -> None:
    of_dream = {"seen": np.array([1.0, 0.0]), "unseen": np.array([0.0, 0.0])}
    errors = dict.fromkeys(("dream", "copy_last", "codec"), of_dream)
    counts = {"seen": np.array([10, 0]), "unseen": np.array([0, 0])}
    found = summarize_continuation(ContinuationScores(["a", "b"], errors, counts), 1)
    assert found.dream.seen.mean == pytest.approx(10)
    assert found.dream.unseen is None


def test_a_probe_finds_what_is_in_the_features_and_nothing_where_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(30), 8)
    truth = rng.normal(size=(240, 3)).astype(np.float32)
    mixed = np.concatenate([truth @ rng.normal(size=(3, 5)), rng.normal(size=(240, 20))], axis=1)
    features = {"state": mixed, "present_frame": rng.normal(size=(240, 8)), "oracle": truth}
    found = probe(ProbeSamples(episode, features, {"position": truth}))["position"]
    assert found["state"].mean > 0.95
    assert found["oracle"].mean > 0.99
    assert abs(found["present_frame"].mean) < 0.1
    assert abs(found["state_of_another"].mean) < 0.1
    assert found["state"].low <= found["state"].mean <= found["state"].high


def test_samples_hold_positions_and_pictures_of_the_past(returns: ReturnSet) -> None:
    samples = collect_samples(Simulator(tiny_world()), returns, batch_size=3, seed=0)
    poses = returns.poses()
    assert samples.episode.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert samples.targets["position"][7, :2].tolist() == (poses[4][4] - poses[4][0])[:2].tolist()
    assert np.isnan(samples.targets["8"][:3]).all() and not np.isnan(samples.targets["8"][3:6]).any()
    assert samples.targets["16"].shape == (12, 48)


def test_hashing_keeps_inner_products() -> None:
    values = torch.randn(6, 40_000, generator=torch.Generator().manual_seed(0))
    small = hashed(values)
    assert small.shape == (6, 512)
    assert torch.allclose(small @ small.T / 40_000, torch.eye(6), atol=0.2)


def test_a_difference_whose_intervals_overlap_falls_short() -> None:
    def report(apart: bool) -> dict[str, Any]:
        difference = {"mean": 6.0, "low": 5.0, "high": 7.0, "intervals_are_apart": apart}
        tree = {"50": {"final": {"psnr_db": difference}}}
        return {"comparisons": {"a": {"over": {"a, state zeroed": tree}}}}

    rows = {apart: check_memory(report(apart), "a", None)[1] for apart in (True, False)}
    assert rows[True]["verdict"] == "pass"
    assert rows[False]["verdict"] == "short"
    assert rows[True]["must"] == 5

"""Return recall, interventions and paired histories, of simulators that remember all and nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world
from tests.grids import TILE, MapSimulator, StillSimulator, write_recall_set
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import (
    NOT_SEEN,
    ReturnSet,
    Tolerance,
    batch_sizes,
    choose_sets,
    find_way_back,
)
from worldsim.evaluation.memory.interventions import (
    INTERVENTIONS,
    IntervenedSimulator,
    Intervention,
    intervene,
)
from worldsim.evaluation.memory.pairs import Exchange, find_pairs, measure_pairs, paired, summarize_pairs
from worldsim.evaluation.memory.recall import (
    CODEC,
    COPY,
    GapScores,
    RecallSettings,
    measure_returns,
    per_episode,
    summarize,
)
from worldsim.evaluation.memory.tiles import NEVER, absences, find_kinds, summarize_absences
from worldsim.simulator import Simulator

pytestmark = pytest.mark.usefixtures("one_thread")

GAP = 8
EXACT = Tolerance()


def open_set(folder: Path, gap: int = GAP, *, tolerance: Tolerance = EXACT, context: int = 3) -> ReturnSet:
    return ReturnSet(
        folder,
        gap,
        TINY_ACTIONS,
        (HEIGHT, WIDTH),
        tolerance=tolerance,
        context_frames=context,
        num_episodes=0,
    )


@pytest.fixture(scope="module")
def returns(tmp_path_factory: pytest.TempPathFactory) -> ReturnSet:
    return open_set(write_recall_set(tmp_path_factory.mktemp("data"), GAP))


@pytest.fixture(scope="module")
def scores(returns: ReturnSet, one_thread: None) -> GapScores:
    world = tiny_world()
    simulators = {"map": MapSimulator(world), "still": StillSimulator(world)}
    batch = next(returns.batches(2))
    tiles = find_kinds(batch.real.flatten(0, 1), TILE)
    settings = RecallSettings(batch_size=2, tiles=tiles)
    return measure_returns(simulators, returns, [Intervention.NONE, *INTERVENTIONS], settings)


def line(*places: float) -> np.ndarray:
    """Return poses along a line."""
    return np.array([[place, 0.0, 0.0] for place in places])


def test_the_turning_frame_is_counted_once() -> None:
    way = find_way_back(line(9, 0, 1, 2, 3, 2, 1, 0), 3, EXACT)
    assert way is not None
    assert way.turn == 4
    assert way.seen.tolist() == [3, 2, 1]


def test_a_pause_at_the_turn_is_not_a_way_back_of_its_own() -> None:
    way = find_way_back(line(0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0), 4, EXACT)
    assert way is not None
    assert way.turn == 4
    assert way.seen.tolist() == [4, 2, 1, 0]


def test_the_last_time_that_a_pose_was_seen_counts() -> None:
    way = find_way_back(line(0, 1, 0, 1, 2, 1, 0, 1, 0), 4, EXACT)
    assert way is not None
    assert way.seen.tolist() == [3, 2, 3, 2]


@pytest.mark.parametrize(
    "poses",
    [line(0, 1, 2, 3, 4, 5, 6), line(5, 5, 5, 5, 5, 5, 5), line(0, 1, 2, 3, 2, 1, 4), line(0, 1, 0)],
    ids=["never comes back", "never leaves", "the last pose differs", "too short"],
)
def test_an_episode_that_does_not_come_back_is_none(poses: np.ndarray) -> None:
    assert find_way_back(poses, 3, EXACT) is None


def test_poses_within_the_tolerance_are_the_same_and_headings_wrap() -> None:
    poses = np.array([[0, 0, 359.0], [5, 0, 90], [9, 0, 180], [5, 3, 90], [1, 0, 1.0]])
    assert find_way_back(poses, 2, Tolerance(distance=1, angle_degrees=3)) is not None
    assert find_way_back(poses, 2, Tolerance(distance=1, angle_degrees=1)) is None
    way = find_way_back(poses, 2, Tolerance(distance=1, angle_degrees=3))
    assert way is not None
    assert way.seen.tolist() == [NOT_SEEN, 0]


def test_the_way_back_is_cut_out_of_longer_episodes(tmp_path: Path) -> None:
    plain = open_set(write_recall_set(tmp_path / "a", GAP))
    longer = open_set(write_recall_set(tmp_path / "b", GAP, tail=4))
    assert plain.context_frames == longer.context_frames == 3
    for one, other in zip(plain.batches(4), longer.batches(4), strict=True):
        assert torch.equal(one.actions, other.actions)
        assert one.turn == 3 + GAP
        assert one.actions.shape == (4, GAP, 3)
        # Frame turn + k is the real frame turn - k, but for the video's blur.
        mirrored = one.clips.frames[:, one.turn - GAP : one.turn].flip(1).float()
        assert (one.real.float() - mirrored).abs().mean() < 3
        assert (one.real.float() - mirrored.roll(1, dims=1)).abs().mean() > 20


def test_a_perfect_memory_scores_as_the_video_allows_and_none_as_standing_still(scores: GapScores) -> None:
    remembered = summarize(scores.dreams["map"][Intervention.NONE], scores.seen, scores.names)
    forgotten = summarize(scores.dreams["still"][Intervention.NONE], scores.seen, scores.names)
    still = summarize(scores.references[COPY], scores.seen, scores.names)
    assert remembered.final["psnr_db"].mean > 20
    assert remembered.final["tile_accuracy"].mean == 1
    assert remembered.average["tile_accuracy"].mean == 1
    assert forgotten.final == still.final
    assert forgotten.final["psnr_db"].mean < 12
    assert forgotten.final["tile_accuracy"].mean < 0.5
    assert len(remembered.curve["psnr_db"]) == GAP
    assert len(remembered.episodes.final["ssim"]) == 4


def test_the_codec_is_another_reference_than_standing_still(scores: GapScores) -> None:
    codec = scores.references[CODEC]
    assert np.isfinite(codec["psnr_db"]).all()
    assert not np.array_equal(codec["psnr_db"], scores.references[COPY]["psnr_db"])


def test_emptied_and_exchanged_states_lose_what_was_seen_and_frozen_ones_keep_it(scores: GapScores) -> None:
    by_way = {way: s["tile_accuracy"][:, -1].mean() for way, s in scores.dreams["map"].items()}
    assert by_way[Intervention.NONE] == by_way[Intervention.FREEZE] == 1
    assert by_way[Intervention.ZERO] < 0.5
    assert by_way[Intervention.SWAP] < 0.5


def test_films_hold_the_last_frame_of_real_and_dream(scores: GapScores, returns: ReturnSet) -> None:
    real = torch.cat([batch.real[:, -1] for batch in returns.batches(4)])
    assert set(scores.films) == {"", "map", "still"}
    assert torch.equal(scores.films[""][:, -1], real[:2])
    blur, otherwise = 12, 40  # levels: colours have half the resolution of the picture
    drawn = scores.films["map"][:, -1].float()
    assert (drawn - real[:2].float()).abs().mean() < blur
    assert (drawn.flip(0) - real[:2].float()).abs().mean() > otherwise


def test_frames_that_were_not_seen_do_not_count() -> None:
    values = {"psnr_db": np.array([[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]])}
    seen = np.array([[True, False, True], [True, True, True]])
    singles = per_episode(values, seen)
    assert singles.average["psnr_db"].tolist() == [20.0, 2.0]
    assert singles.final["psnr_db"].tolist() == [30.0, 3.0]
    assert summarize(values, seen, ["a", "b"]).curve["psnr_db"] == [5.5, 2.0, 16.5]


def test_interventions_leave_the_state_that_they_are_given_and_all_but_the_matrices() -> None:
    simulator = Simulator(tiny_world())
    state = simulator.start(simulator.world.starts[:2], [0, 1])
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    noop = torch.zeros(2, 3, dtype=torch.int64)
    for way, changed in (
        (Intervention.ZERO, {"memory.matrices"}),
        (Intervention.SWAP, {"memory.matrices", "memory.phase"}),
    ):
        after = intervene(simulator, state, way)[1].tensors()
        assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == changed
    frozen, same = intervene(simulator, state, Intervention.FREEZE)
    assert isinstance(frozen, IntervenedSimulator)
    stepped = frozen.step(same, noop)[1]
    assert torch.equal(stepped.memory.matrices, before["memory.matrices"])
    assert not torch.equal(stepped.memory.latents, before["memory.latents"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_absence_of_a_tile_ends_with_the_frame_in_which_it_was_last_in_view() -> None:
    poses = line(0, 1, 2, 3, 2, 1, 0, -1)
    absent = absences(poses, 3, (1, 2))
    assert absent[:, 0].tolist() == [[2, 1], [4, 0], [6, 0], [NEVER, 0]]


def test_tiles_are_counted_by_their_absence_with_equal_weight_for_each_episode(
    scores: GapScores, returns: ReturnSet
) -> None:
    absent = np.stack([absences(p, returns.turn, (HEIGHT // TILE, WIDTH // TILE)) for p in returns.poses()])
    found = summarize_absences(scores.right["map"], absent, scores.names)
    assert list(found) == ["2-8", "9-16"]
    assert all(estimate.mean == 1 and estimate.count == 4 for estimate in found.values())
    assert summarize_absences(scores.right["still"], absent, scores.names)["9-16"].mean < 0.5
    right = np.array([[[[True, False, False]]], [[[True, True, True]]]])
    own = summarize_absences(right, np.array([[[[5, 5, 99]]], [[[5, 0, -1]]]]), ["a", "b"])
    assert own["2-8"].mean == 0.75
    assert (own["2-8"].num_tiles, own["65-128"].num_tiles) == (3, 1)


def test_what_is_drawn_follows_the_past_whose_memory_is_there(tmp_path: Path) -> None:
    pairs = paired(open_set(write_recall_set(tmp_path, GAP, is_paired=True)))
    settings = RecallSettings(batch_size=2)
    found = summarize_pairs(measure_pairs(MapSimulator(tiny_world()), pairs, settings))
    assert found.num_pairs == 2
    for exchange in (Exchange.HISTORY, Exchange.STATE):
        assert getattr(found, exchange).final.mean == 1
        assert getattr(found, exchange).margin_db.mean > 10
    assert found.none.final.mean == 0
    still = summarize_pairs(measure_pairs(StillSimulator(tiny_world()), pairs, settings))
    assert still.state.margin_db == still.none.margin_db


def test_pairs_are_episodes_with_the_same_actions(tmp_path: Path) -> None:
    a, b = np.zeros((3, 2)), np.ones((3, 2))
    assert find_pairs([a, b, a, b, a]) == [(0, 2), (1, 3)]
    with pytest.raises(WorldError, match="no two episodes of .* have the same actions"):
        paired(open_set(write_recall_set(tmp_path, GAP)))


def test_what_cannot_be_measured_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="records no poses"):
        open_set(write_recall_set(tmp_path / "a", GAP, has_poses=False))
    with pytest.raises(WorldError, match="0 of 4 episodes of .* come back after 12 frames: at least 2"):
        open_set(write_recall_set(tmp_path / "b", GAP), gap=12)
    with pytest.raises(FileNotFoundError, match="no folder recall-016 of episodes"):
        choose_sets(tmp_path / "a", "recall", [GAP, 16])


def test_sets_are_found_by_their_gap_also_in_the_folder_of_a_split(tmp_path: Path) -> None:
    write_recall_set(tmp_path, 12)
    inner = write_recall_set(tmp_path / "inner", 5)
    (tmp_path / "recall-005").mkdir()
    inner.rename(tmp_path / "recall-005" / "heldout")
    assert list(choose_sets(tmp_path, "recall", [])) == [5, 12]
    assert choose_sets(tmp_path, "recall", [5])[5].name == "heldout"


@pytest.mark.parametrize(
    ("arguments", "sizes"), [((5, 2), [3, 2]), ((3, 2), [3]), ((8, 3, 2), [4, 2, 2]), ((2, 99), [2])]
)
def test_no_batch_holds_one_episode_alone(arguments: tuple[int, ...], sizes: list[int]) -> None:
    assert batch_sizes(*arguments) == sizes

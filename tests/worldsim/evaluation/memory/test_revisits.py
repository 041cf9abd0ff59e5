"""Revisits of a world that remembers everything, and of ones that forget."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import TINY_ACTIONS, tiny_world
from tests.grids import COLOURS, TILE, MapSimulator, view, write_walks
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.inputs.revisits import RevisitSet, RevisitSettings
from worldsim.evaluation.memory.continuation import seen_tiles
from worldsim.evaluation.memory.revisits import (
    CODEC,
    COPY,
    EMPTIED,
    KEPT,
    OTHER,
    Revisits,
    measure_revisits,
    recognise,
    summarize_revisits,
)
from worldsim.evaluation.quality.features import load_features
from worldsim.evaluation.quality.rollouts import TRUE_POSES
from worldsim.model.memory.pose import kept_poses
from worldsim.simulator import Prediction, Simulator
from worldsim.state import WorldState

pytestmark = pytest.mark.usefixtures("one_thread")
RUNG, SIZE = "walk-away-30", (32, 48)
SETTINGS = RevisitSettings(distance=0, leave_distance=5, num_others=2, context_frames=2)


@pytest.fixture(scope="module")
def revisits(tmp_path_factory: pytest.TempPathFactory) -> RevisitSet:
    folder = write_walks(tmp_path_factory.mktemp("walks"), [30 + 3 * index % 10 for index in range(24)])
    is_clear = partial(recognise, load_features())
    return RevisitSet(Recordings(folder, TINY_ACTIONS, SIZE), SETTINGS, 0, 0, is_clear=is_clear)


def measure(simulator: Simulator, revisits: RevisitSet) -> Revisits:
    find_seen = seen_tiles((SIZE[0] // TILE, SIZE[1] // TILE), TILE)
    scores = measure_revisits(simulator, revisits, RUNG, load_features(), find_seen, batch_size=9, seed=0)
    assert scores.names == revisits.names(RUNG)
    return summarize_revisits(scores)


def test_who_remembers_is_always_recognised(revisits: RevisitSet) -> None:
    found = measure(MapSimulator(tiny_world()), revisits)
    kept, emptied = found.methods[KEPT], found.methods[EMPTIED]
    assert kept.recognised is not None and emptied.recognised is not None
    assert kept.recognised.mean == 1 and kept.recognised.count == 24
    assert kept.recognised.low == pytest.approx(0.862, abs=1e-3)
    assert kept.psnr_db.mean > 35, "but for what video compression takes"
    assert emptied.psnr_db.mean < found.methods[OTHER].psnr_db.mean + 6 < kept.psnr_db.mean
    assert found.kept_over_emptied_db is not None and found.kept_over_emptied_db.low > 20
    assert kept.parts is not None and emptied.parts is not None
    assert kept.parts.seen is not None and kept.parts.seen.mean > 35
    assert kept.parts.unseen is None, "all of the way back was seen on the way out"


class GuessingSimulator(MapSimulator):
    """Knows what such places look like, and not which one it is at: it draws any tiles."""

    def predict(self, state: WorldState, actions: Tensor, poses: Tensor | None = None) -> Prediction:
        """Draw tiles by the seed and the number of the frame."""
        drawn = super().predict(state, actions)
        grids = [
            np.random.default_rng(key) for key in torch.stack([state.seed, state.frame_index], 1).tolist()
        ]
        frames = [view(rng.integers(len(COLOURS), size=(8, 8)), np.zeros(2, np.int64)) for rng in grids]
        return replace(drawn, frames=torch.from_numpy(np.stack(frames)))


def test_who_guesses_is_recognised_as_by_chance_and_gains_nothing_by_its_state(revisits: RevisitSet) -> None:
    found = measure(GuessingSimulator(tiny_world()), revisits)
    guessed = found.methods[KEPT].recognised
    assert guessed is not None and guessed.low is not None and guessed.high is not None
    assert 0 < guessed.low < SETTINGS.chance < guessed.high < 0.7
    assert found.kept_over_emptied_db is not None and found.kept_over_emptied_db.mean == 0


def test_a_real_world_steps_each_dream_as_if_it_were_alone(revisits: RevisitSet) -> None:
    simulator, few = Simulator(tiny_world()), revisits.by_rung[RUNG]
    revisits.by_rung[RUNG] = few[:2]
    try:
        one, all_at_once = (
            measure_revisits(simulator, revisits, RUNG, load_features(), batch_size=size, seed=3)
            for size in (1, 2)
        )
    finally:
        revisits.by_rung[RUNG] = few
    assert set(one.psnr_db) == {KEPT, EMPTIED, COPY, CODEC, OTHER} and one.errors == {}
    for method, values in one.psnr_db.items():
        np.testing.assert_allclose(values, all_at_once.psnr_db[method], atol=0.05)
    assert not np.allclose(one.psnr_db[KEPT], one.psnr_db[EMPTIED], atol=1e-3)


class Counting(Simulator):
    """Keeps the poses `[B, 3]` that it believed in and those that it was told, frame by frame."""

    dreamt: list[tuple[Tensor, Tensor | None]]

    def commit(self, state: WorldState, prediction: Prediction) -> WorldState:
        after = super().commit(state, prediction)
        self.dreamt.append((kept_poses(after.memory.phase), prediction.context.pose))
        return after


def test_a_world_that_follows_poses_dreams_once_more_and_is_told_them(revisits: RevisitSet) -> None:
    few, simulator = revisits.by_rung[RUNG], Counting(tiny_world(has_odometry=True))
    simulator.dreamt = []
    revisits.by_rung[RUNG] = few[:1]
    try:
        scores = measure_revisits(simulator, revisits, RUNG, load_features(), batch_size=1, seed=3)
        (batch,) = revisits.batches(RUNG, 1)
    finally:
        revisits.by_rung[RUNG] = few
    assert set(scores.psnr_db) - {COPY, CODEC, OTHER} == {KEPT, EMPTIED, TRUE_POSES}
    count = int(batch.back[0] - batch.turn[0])
    assert [told is None for _, told in simulator.dreamt] == [True] * 2 * count + [False] * count
    path = batch.poses[0] - batch.poses[0][0]  # who walks in a grid never turns
    for frame, (believed, _) in enumerate(simulator.dreamt[-count:], int(batch.turn[0]) + 1):
        np.testing.assert_allclose(believed[0], path[frame], atol=2e-3)


def test_a_memory_that_grows_is_measured_without_being_emptied(revisits: RevisitSet) -> None:
    few = revisits.by_rung[RUNG]
    revisits.by_rung[RUNG] = few[:2]
    try:
        simulator = Simulator(tiny_world(is_teacher=True))
        scores = measure_revisits(simulator, revisits, RUNG, load_features(), batch_size=2, seed=0)
    finally:
        revisits.by_rung[RUNG] = few
    found = summarize_revisits(scores)
    assert EMPTIED not in found.methods and found.kept_over_emptied_db is None

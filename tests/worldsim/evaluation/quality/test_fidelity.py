"""FID and KID of dreams by segments: which frames are looked at, and who comes out at the floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world
from tests.grids import MapSimulator, StillSimulator, write_recall_set
from worldsim.evaluation.inputs.out_and_back import ReturnSet, Tolerance
from worldsim.evaluation.quality.features import FeatureNetwork, load_features
from worldsim.evaluation.quality.fidelity import (
    cut_segments,
    dream_features,
    real_features,
    summarize_fidelity,
)

pytestmark = pytest.mark.usefixtures("one_thread")
GAP = 9


@pytest.mark.parametrize(
    ("length", "names", "count"),
    [
        (5, ["1-5"], 5),
        (40, ["1-40"], 16),  # a rest of 8 frames would be too short
        (48, ["1-32", "33-48"], 16),
        (256, ["1-32", "33-128", "129-256"], 16),
        (1000, ["1-32", "33-128", "129-512", "513-1000"], 16),
    ],
)
def test_segments_grow_and_have_equally_many_frames(length: int, names: list[str], count: int) -> None:
    segments = cut_segments(length)
    assert [segment.name for segment in segments] == names
    for segment in segments:
        assert len(set(segment.frames)) == count
        assert (segment.frames[0], segment.frames[-1]) == (segment.first, segment.last)
    with pytest.raises(ValueError, match="at least 1 frame"):
        cut_segments(0)


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return load_features()


@pytest.fixture(scope="module")
def returns(tmp_path_factory: pytest.TempPathFactory) -> ReturnSet:
    folder = write_recall_set(tmp_path_factory.mktemp("data"), GAP, episodes=6)
    return ReturnSet(
        folder, GAP, TINY_ACTIONS, (HEIGHT, WIDTH), tolerance=Tolerance(), context_frames=3, num_episodes=0
    )


class Replay(MapSimulator):
    """Shows the recorded frames, whatever the memory: `frames` is `[N, T, H, W, 3]`, row by seed."""

    frames: Tensor

    def predict(self, state, actions, poses=None):
        """Draw the frame that was recorded."""
        drawn = super().predict(state, actions)
        rows = zip(state.seed.tolist(), state.frame_index.tolist(), strict=True)
        shown = torch.stack([self.frames[seed, index + 1] for seed, index in rows])
        return type(drawn)(shown, drawn.latents, drawn.context)


def test_a_dream_that_is_the_real_game_is_at_the_floor(returns: ReturnSet, network: FeatureNetwork) -> None:
    segments = cut_segments(2 * GAP)
    real = real_features(returns, network, segments, batch_size=3)
    assert real.shape == (6, 16, network.num_features)
    replay = Replay(tiny_world())
    replay.frames = torch.cat([batch.clips.frames for batch in returns.batches(3)])
    found: dict[str, Any] = {}
    for name, simulator in {"replay": replay, "still": StillSimulator(tiny_world())}.items():
        dreamt, decoded = dream_features(simulator, returns, network, segments, batch_size=3, seed=0)
        found[name] = summarize_fidelity(dreamt, real, segments)["1-18"]
        assert decoded.shape == real.shape
    for distance in ("fid", "kid"):
        assert found["replay"][distance].over_floor.mean == pytest.approx(0, abs=1e-6)
        assert found["still"][distance].over_floor.mean > 0
    assert found["still"]["fid"].value.count == 6


def test_each_segment_is_judged_by_its_own_frames(network: FeatureNetwork) -> None:
    segments = cut_segments(48)
    real = torch.randn(4, 32, 8, generator=torch.Generator().manual_seed(0))
    late: Sequence[float] = [0.0] * 16 + [3.0] * 16
    found = summarize_fidelity(real + torch.tensor(late)[:, None], real, segments)
    assert found["1-32"]["fid"].over_floor.mean == 0
    assert found["33-48"]["fid"].over_floor.mean > 30

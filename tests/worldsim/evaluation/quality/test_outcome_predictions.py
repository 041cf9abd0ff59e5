"""Recorded episodes shown to a world: every frame but the first is judged, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world, write_outcome_dataset, write_tiny_dataset
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality import outcome_predictions
from worldsim.evaluation.quality.outcome import CalibratedEpisode
from worldsim.evaluation.quality.outcome_predictions import DRAWN, GIVEN, predict_recordings
from worldsim.outcome import OutcomeConfig
from worldsim.simulator import Simulator
from worldsim.starts import Start
from worldsim.state import WorldState

pytestmark = pytest.mark.usefixtures("one_thread")


def recordings_of(folder: Path) -> Recordings:
    return Recordings(folder, TINY_ACTIONS, (HEIGHT, WIDTH))


def judge_recordings(
    simulator: Simulator, recordings: Recordings, *, batch_size: int, with_drawn: bool
) -> dict[str, list[CalibratedEpisode]]:
    found = predict_recordings(simulator, recordings, batch_size=batch_size, with_drawn=with_drawn)
    meaning = simulator.world.config.outcome
    assert meaning is not None
    return {kind: [one.calibrated(meaning) for one in episodes] for kind, episodes in found.items()}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    return recordings_of(write_outcome_dataset(tmp_path_factory.mktemp("data"), episodes=3, frames=6))


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(tiny_world(outcome=OutcomeConfig(reward_mean=1.0)))


def test_every_frame_but_the_first_is_judged_beside_what_was_recorded(
    simulator: Simulator, recordings: Recordings
) -> None:
    judged = judge_recordings(simulator, recordings, batch_size=2, with_drawn=True)
    assert set(judged) == {GIVEN, DRAWN}
    for episodes in judged.values():
        assert [episode.name for episode in episodes] == ["episode-000", "episode-001", "episode-002"]
        assert [len(episode.probabilities) for episode in episodes] == [5, 6, 7]
        assert [episode.ends.tolist().count(True) for episode in episodes] == [1, 1, 0]
        for episode, table in zip(episodes, recordings.tables(), strict=True):
            assert table.rewards is not None
            assert np.array_equal(episode.rewards, table.rewards[1:])
            assert len(set(episode.probabilities.tolist())) > 1
    given, drawn = (np.concatenate([e.probabilities for e in judged[kind]]) for kind in (GIVEN, DRAWN))
    assert not np.allclose(given, drawn)


def test_episodes_beside_each_other_and_drawn_frames_change_nothing(
    simulator: Simulator, recordings: Recordings
) -> None:
    together = judge_recordings(simulator, recordings, batch_size=3, with_drawn=True)[GIVEN]
    alone = judge_recordings(simulator, recordings, batch_size=1, with_drawn=False)
    assert set(alone) == {GIVEN}
    for ours, theirs in zip(together, alone[GIVEN], strict=True):
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)
        np.testing.assert_allclose(ours.predicted_rewards, theirs.predicted_rewards, atol=1e-4)


def test_what_is_heard_is_before_calibration_and_only_drawn_frames_depend_on_the_seed(
    simulator: Simulator, recordings: Recordings
) -> None:
    heard = predict_recordings(simulator, recordings, batch_size=3, with_drawn=True)
    judged = judge_recordings(simulator, recordings, batch_size=3, with_drawn=True)
    for kind, episodes in heard.items():
        for episode, known in zip(episodes, judged[kind], strict=True):
            assert np.array_equal(
                episode.calibrated(OutcomeConfig(reward_mean=1.0)).probabilities, known.probabilities
            )
            np.testing.assert_allclose(episode.logits.sigmoid().numpy(), known.probabilities, atol=1e-6)
            np.testing.assert_allclose(
                episode.predicted_rewards.numpy() + 1.0, known.predicted_rewards, atol=1e-6
            )
    other = predict_recordings(simulator, recordings, batch_size=3, with_drawn=True, seed=100)
    assert torch.equal(other[GIVEN][0].logits, heard[GIVEN][0].logits)
    assert not torch.allclose(other[DRAWN][0].logits, heard[DRAWN][0].logits)


def test_long_episodes_are_heard_a_few_at_a_time(
    simulator: Simulator, recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    start = Simulator.start

    def counted(self: Simulator, starts: Sequence[Start], seeds: Sequence[int]) -> WorldState:
        sizes.append(len(starts))
        return start(self, starts, seeds)

    monkeypatch.setattr(Simulator, "start", counted)
    monkeypatch.setattr(outcome_predictions, "DECODED_BYTES", 2 * 8 * HEIGHT * WIDTH * 3)
    predict_recordings(simulator, recordings, batch_size=3, with_drawn=False)
    assert sizes == [2, 1]
    monkeypatch.setattr(outcome_predictions, "DECODED_BYTES", 1)
    predict_recordings(simulator, recordings, batch_size=3, with_drawn=False)
    assert sizes == [2, 1, 1, 1, 1]


def test_what_is_missing_is_named(simulator: Simulator, recordings: Recordings, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="world 'tiny' has no outcome heads"):
        judge_recordings(Simulator(tiny_world()), recordings, batch_size=1, with_drawn=False)
    plain = recordings_of(write_tiny_dataset(tmp_path / "data"))
    with pytest.raises(WorldError, match=r"episode-000\.jsonl does not record both reward and terminated"):
        judge_recordings(simulator, plain, batch_size=1, with_drawn=False)

"""Training sequences: from folders of video to start positions that never cross an episode border."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data import sequences
from worldsim.data.episodes import DatasetInfo, EpisodeWriter
from worldsim.data.sequences import (
    EpisodeReference,
    SequenceIndex,
    decoding_processes,
    load_episodes,
    read_episodes,
)
from worldsim.errors import WorldError


def layout(*buttons: str) -> ActionLayout:
    return ActionLayout((ActionAxis(name="move", buttons=buttons, keys=tuple((b,) for b in buttons)),))


def record(folder: Path, lengths: list[int], actions: ActionLayout | None = None) -> None:
    info = DatasetInfo(name="test", width=32, height=16, frame_rate=10, actions=actions or layout("go"))
    for number, length in enumerate(lengths):
        with EpisodeWriter(folder, f"{number:03d}", info) as writer:
            for index in range(length):
                writer.add(np.full((16, 32, 3), 10 * number + index, np.uint8), np.array([1]))


def test_sequences_stay_inside_one_episode() -> None:
    lengths = [5, 2, 9, 4, 1]
    index = SequenceIndex(lengths, 4)
    episode_of = np.repeat(np.arange(5), lengths)
    starts = index.sample(np.random.default_rng(0), 500)
    assert starts.dtype == np.int64
    assert (episode_of[starts] == episode_of[starts + 3]).all()


def test_every_valid_start_is_equally_likely() -> None:
    index = SequenceIndex([5, 2, 9, 4, 1], 4)
    valid = [0, 1, *range(7, 13), 16]
    assert index.start(np.arange(len(index))).tolist() == valid
    starts, counts = np.unique(index.sample(np.random.default_rng(0), 90_000), return_counts=True)
    assert starts.tolist() == valid
    assert np.abs(counts / 10_000 - 1).max() < 0.05


def test_too_short_episodes_are_refused() -> None:
    with pytest.raises(WorldError, match="sequence of 8 frames; the longest has 7"):
        SequenceIndex([7, 3], 8)


def test_episodes_come_in_order_and_whole(tmp_path: Path) -> None:
    record(tmp_path / "a", [3, 8, 5])
    record(tmp_path / "b", [4])
    references = load_episodes([tmp_path / "a", str(tmp_path / "b")])
    assert [reference.num_frames for reference in references] == [3, 8, 5, 4]
    episodes = list(read_episodes(references, num_workers=2))
    assert [len(episode) for episode in episodes] == [3, 8, 5, 4]
    assert abs(int(episodes[1].frames[5].mean()) - 15) <= 2


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes for the least of video."""
    monkeypatch.setattr(sequences, "FRAMES_PER_PROCESS", 1)


@pytest.mark.usefixtures("in_processes")
def test_processes_decode_what_one_does_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, [3, 8, 5, 4, 6])
    references = load_episodes([tmp_path])
    in_two = list(read_episodes(references, num_workers=2))
    monkeypatch.setattr(sequences, "FRAMES_PER_PROCESS", 1000)
    assert decoding_processes(references, 2) == 0
    for here, there in zip(read_episodes(references, num_workers=2), in_two, strict=True):
        assert here.name == there.name
        assert np.array_equal(here.frames, there.frames)
        assert np.array_equal(here.actions, there.actions)


def test_reading_draws_no_random_numbers(tmp_path: Path) -> None:
    record(tmp_path, [3])
    before = torch.get_rng_state()
    assert len(list(read_episodes(load_episodes([tmp_path])))) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("in_processes")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_episodes_that_are_not_claimed_are_left_out(tmp_path: Path, num_workers: int) -> None:
    record(tmp_path, [3, 8, 5, 4])
    asked: list[str] = []

    def claim(reference: EpisodeReference) -> bool:
        asked.append(reference.name)
        return reference.num_frames != 8

    found = read_episodes(load_episodes([tmp_path]), num_workers=num_workers, claim=claim)
    assert [len(episode) for episode in found] == [3, 5, 4]
    assert asked == ["000", "001", "002", "003"]


@pytest.mark.usefixtures("in_processes")
def test_few_episodes_are_decoded_ahead_if_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path, [4, 4, 4, 4, 4])
    references = load_episodes([tmp_path])
    assert decoding_processes(references, 3) == 3
    assert decoding_processes(references[:2], 3) == 2
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger=sequences.__name__):
        for limit, processes in ((1, 0), (4, 2), (100, 3)):  # each is given two ahead
            monkeypatch.setattr(sequences, "MAX_WAITING_BYTES", limit * references[0].num_bytes())
            assert decoding_processes(references, 3) == processes
    assert "in 0 processes instead of 3" in caplog.text
    monkeypatch.setattr(sequences.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    assert decoding_processes(references, 3) == 0


@pytest.mark.usefixtures("in_processes")
def test_damage_found_by_a_process_is_one_sentence(tmp_path: Path) -> None:
    record(tmp_path, [3, 3])
    references = load_episodes([tmp_path])
    (tmp_path / "001.mp4").write_bytes(b"")
    with pytest.raises(WorldError, match=r"001\.mp4") as found:
        list(read_episodes(references, num_workers=2))
    assert "\n" not in str(found.value)


def test_damaged_episode_stops_the_reading(tmp_path: Path) -> None:
    record(tmp_path, [3, 3])
    references = load_episodes([tmp_path])
    (tmp_path / "001.mp4").write_bytes(b"")
    with pytest.raises(WorldError, match=r"001\.mp4"):
        list(read_episodes(references))


def test_other_buttons_are_named(tmp_path: Path) -> None:
    record(tmp_path, [3], layout("jump"))
    with pytest.raises(WorldError, match=r"has the buttons move/jump, but move/go are needed"):
        load_episodes([tmp_path], expected_actions=layout("go"))


def test_folders_with_different_buttons_are_not_mixed(tmp_path: Path) -> None:
    record(tmp_path / "a", [3], layout("jump"))
    record(tmp_path / "b", [3], layout("go"))
    with pytest.raises(WorldError, match="move/go, but move/jump"):
        load_episodes([tmp_path / "a", tmp_path / "b"])


def test_no_folder_is_refused() -> None:
    with pytest.raises(WorldError, match="no folder"):
        load_episodes([])

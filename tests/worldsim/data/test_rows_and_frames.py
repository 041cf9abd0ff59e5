"""Rows and frames of an episode agree, whatever comes between them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from tests.worldsim.data.test_episodes import INFO, smooth_frames, some_actions
from worldsim.data import episodes, video
from worldsim.data.episodes import EpisodeWriter, read_episode
from worldsim.data.video import VideoWriter


@pytest.mark.parametrize("is_late", [False, True], ids=["before the frame", "after it"])
@pytest.mark.parametrize("in_batches", [False, True])
def test_a_row_and_its_frame_are_kept_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_batches: bool, is_late: bool
) -> None:
    monkeypatch.setattr(episodes, "ROWS_AT_ONCE", 2)
    write, calls = VideoWriter.write, iter(range(10))

    def stopping(self: VideoWriter, frame: np.ndarray) -> None:
        stops = next(calls) == 3
        if is_late or not stops:
            write(self, frame)
        if stops:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", stopping)
    with EpisodeWriter(tmp_path, "a", INFO, in_batches=in_batches) as writer:
        for number in range(7):
            with suppress(KeyboardInterrupt):
                writer.add(smooth_frames(1)[0], some_actions(1)[0], reward=number)
    rewards = read_episode(tmp_path, "a").rewards  # as many as frames, or it could not be read
    assert rewards is not None
    assert rewards.tolist() == [number for number in range(7) if is_late or number != 3]


def test_rows_and_frames_agree_after_an_error_inside_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows may have been written of frames that still wait to be encoded."""
    monkeypatch.setattr(episodes, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(video, "BATCH_BYTES", 6 * smooth_frames()[0].size)

    class Failing:
        calls = iter(range(100))

        def __init__(self) -> None:
            self._reformatter = VideoReformatter()

        def reformat(self, *arguments: Any, **settings: Any) -> Any:
            if next(self.calls) == 1:
                raise OSError("once")
            return self._reformatter.reformat(*arguments, **settings)

    monkeypatch.setattr(video, "VideoReformatter", Failing)
    frames, actions = smooth_frames(), some_actions()
    with (
        pytest.raises(OSError, match="once"),
        EpisodeWriter(tmp_path, "a", INFO, keep_on_error=True, in_batches=True) as writer,
    ):
        for number in range(7):
            writer.add(frames[number], actions[number], reward=number)
    rewards = read_episode(tmp_path, "a").rewards  # as many as frames, or it could not be read
    assert rewards is not None and rewards.tolist() == list(range(6))

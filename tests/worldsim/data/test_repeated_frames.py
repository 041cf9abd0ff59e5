"""Video in which frames are as the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from worldsim.data import video
from worldsim.data.video import VideoWriter, read_video


class Counting:
    """Converts as `VideoReformatter`, and counts."""

    def __init__(self) -> None:
        self.count, self._reformatter = 0, VideoReformatter()

    def reformat(self, *arguments: Any, **settings: Any) -> Any:
        self.count += 1
        return self._reformatter.reformat(*arguments, **settings)


@pytest.mark.parametrize("in_batches", [False, True])
def test_they_are_converted_once_and_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_batches: bool
) -> None:
    blocks = np.kron(np.arange(48).reshape(4, 4, 3) * 5, np.ones((12, 12, 1))).astype(np.uint8)
    converted = {}
    for name in ("once", "each"):
        if name == "each":
            monkeypatch.setattr(video.np, "array_equal", lambda first, second: False)
        counting = Counting()
        monkeypatch.setattr(video, "VideoReformatter", lambda made=counting: made)
        frame = blocks.copy()
        path = tmp_path / name
        with VideoWriter(path, height=48, width=48, frame_rate=30.0, in_batches=in_batches) as writer:
            for shift in (0, 0, 12, 12, 12, 0, 24):
                frame[:] = np.roll(blocks, shift, axis=1)  # the caller's own, written over
                writer.write(frame)
        converted[name] = counting.count
    monkeypatch.undo()
    assert converted == {"once": 4, "each": 7}
    assert (tmp_path / "once").read_bytes() == (tmp_path / "each").read_bytes()
    frames = read_video(tmp_path / "once").astype(int)
    assert len(frames) == 7
    assert np.abs(frames[3] - frames[2]).max() <= 4
    assert np.abs(frames[5] - frames[4]).max() > 20

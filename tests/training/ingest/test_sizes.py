"""Frames of several sizes in one source: each is named, and no more recordings are opened than need be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.recordings import gradients, write_film
from tests.training.ingest.test_ingest import LEROBOT, ingest, videos
from training.ingest import command
from training.ingest.command import IngestConfig, first_frame, plan
from worldsim.data.episodes import DatasetInfo
from worldsim.data.formats.registry import open_source
from worldsim.data.formats.source import ReadOptions, Recording


def test_a_recording_of_another_shape_than_the_first_is_named(tmp_path: Path) -> None:
    path = videos(tmp_path / "videos")
    write_film(path / "c.mp4", [np.rot90(frame) for frame in gradients(12)])
    ingest(path, tmp_path / "out")
    told = DatasetInfo.load(tmp_path / "out/train").source
    assert told.count("frames of") == 1 and "frames of 48 x 64 letterboxed to 64 x 48" in told


def test_where_a_format_has_one_size_one_recording_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []

    def look(recording: Recording) -> np.ndarray:
        looked_at.append(recording.name)
        return first_frame(recording)

    monkeypatch.setattr(command, "first_frame", look)
    for path in (LEROBOT, videos(tmp_path / "videos")):
        name, source = open_source(path, ReadOptions())
        plan(IngestConfig(path=str(path), out=str(tmp_path)), source, name, tmp_path)
        of_all = [source.recordings[0].name, *(each.name for each in source.recordings)]
        assert looked_at == (of_all[:2] if path == LEROBOT else of_all) and len(of_all) > 2
        looked_at.clear()

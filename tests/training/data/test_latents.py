"""Digests of what a run learns from: every action and every byte of video."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import write_tiny_dataset
from training.data.latents import choose_episodes, digest_of
from training.data.tables import load_tables
from worldsim.actions import ActionLayout
from worldsim.data.episodes import EpisodeTable, read_table


def digest(folder: Path) -> str:
    return digest_of(None, choose_episodes([str(folder)], 0))


def alter_action(folder: Path) -> None:
    path = sorted(folder.glob("*.jsonl"))[0]
    lines = path.read_text().splitlines()
    lines[2] = '{"action": [0, 0, 0]}' if "[0, 0, 0]" not in lines[2] else '{"action": [1, 0, 0]}'
    path.write_text("\n".join(lines) + "\n")


def alter_video(folder: Path) -> None:
    path = sorted(folder.glob("*.mp4"))[0]
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def exchange_videos(folder: Path) -> None:
    first, second = sorted(folder.glob("*.mp4"))[:2]
    first.rename(folder / "other")
    second.rename(first)
    (folder / "other").rename(second)


def alter_rate(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"frame_rate": 10.0', '"frame_rate": 10.1'))


@pytest.mark.parametrize("alter", [alter_action, alter_video, exchange_videos, alter_rate])
def test_a_digest_of_episodes_is_of_all_that_they_hold(tmp_path: Path, alter: Callable[[Path], None]) -> None:
    write_tiny_dataset(tmp_path, episodes=2, frames=12)
    before = digest(tmp_path)
    assert digest(tmp_path) == before
    alter(tmp_path)
    assert digest(tmp_path) != before


def test_what_says_where_video_is_from_may_be_corrected(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path, episodes=1, frames=12)
    before = digest(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace('"source": "', '"source": "corrected: '))
    assert "corrected" in path.read_text()
    assert digest(tmp_path) == before


def test_an_episode_s_table_is_parsed_once_unless_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_dataset(tmp_path / "data", frames=20)
    references = choose_episodes([str(folder)], 0)
    parsed = []

    def counted(folder: Path, name: str, actions: ActionLayout) -> EpisodeTable:
        parsed.append(name)
        return read_table(folder, name, actions)

    monkeypatch.setattr("training.data.tables.read_table", counted)
    first = load_tables(references)
    assert load_tables(references)[0] is first[0] and len(parsed) == len(references)
    alter_action(folder)
    changed = load_tables(references)
    assert len(parsed) == len(references) + 1
    assert any((a.actions != b.actions).any() for a, b in zip(changed, first, strict=True))

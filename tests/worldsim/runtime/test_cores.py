"""Cores that a process may use, and limits of threads and processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data import sequences
from worldsim.data.episodes import DatasetInfo
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError
from worldsim.runtime import cores
from worldsim.runtime.device import set_threads
from worldsim.runtime.noise import noise_threads


@pytest.fixture
def two_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a process two cores of a machine that has 64."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 9}, raising=False)
    monkeypatch.setattr(cores, "OWN_CGROUPS", Path("/nowhere"))


def test_cores_that_are_left_to_a_process_are_counted(two_of_many: None) -> None:
    assert cores.usable_cores() == cores.worker_count(0) == noise_threads() == 2
    assert cores.worker_count(5) == 5


def test_video_is_decoded_in_as_many_processes(two_of_many: None) -> None:
    actions = ActionLayout((ActionAxis(name="move", buttons=("go",), keys=(("go",),)),))
    info = DatasetInfo(name="small", width=16, height=16, frame_rate=10, actions=actions)
    episodes = [EpisodeReference(Path(), str(number), 5000, info) for number in range(3)]
    assert sequences.decoding_processes(episodes, 0) == 2


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/outside/of/it", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/", {"cpu.max": "?\n"}, math.inf),
        ("0::/", {}, math.inf),
        ("2:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("5:memory:/a", {"memory/a/cpu.max": "100000 100000"}, math.inf),
    ],
)
def test_the_time_that_a_container_gives_is_read_from_its_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], quota: float
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "own").write_text(groups + "\n")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")
    assert cores.core_quota() == quota


def test_a_quota_bounds_cores_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("worldsim.runtime.device.core_quota", lambda: 1.5)
    monkeypatch.setattr(cores, "core_quota", lambda: 1.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    set_threads(0)
    assert chosen == [1]
    assert cores.usable_cores() == 1


@pytest.mark.parametrize("count", [257, 1_000_000])
def test_more_threads_or_processes_than_a_system_gives_are_refused(two_of_many: None, count: int) -> None:
    for ask in (set_threads, cores.worker_count):
        with pytest.raises(WorldError, match=f"must be at most 256, got {count}; there are 2 cores to use"):
            ask(count)
    with pytest.raises(WorldError, match="num_workers must be at least 0, got -1"):
        cores.worker_count(-1)


def test_a_machine_of_more_cores_takes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 384)
    assert cores.check_workers(384, "threads") == 384

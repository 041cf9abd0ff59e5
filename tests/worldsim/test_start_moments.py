"""Start moments from recorded episodes, and watching many of them ahead of play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_starts, tiny_world, write_tiny_dataset
from tests.vector_envs import ACTIONS, N, make
from worldsim import starts as starts_module
from worldsim.actions import ActionLayout
from worldsim.data.episodes import list_episodes, read_episode
from worldsim.errors import WorldError
from worldsim.starts import Start, draw_starts, read_starts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", episodes=3, frames=12)


def draw(folder: Path, count: int = 20, num_frames: int = 4, **changes: Any) -> list[Start]:
    settings: dict[str, Any] = {"actions": TINY_ACTIONS, "size": (HEIGHT, WIDTH), "seed": 1} | changes
    return draw_starts(folder, count, num_frames, **settings)


def test_moments_are_pieces_of_the_episodes(dataset: Path) -> None:
    starts = draw(dataset, frames_left=3)
    assert len({start.name for start in starts}) == 20
    places = set()
    for start in starts:
        episode_name, begin = start.name.rsplit("-", 2)[0], int(start.name.split("-")[-2])
        episode = read_episode(dataset, episode_name)
        assert np.array_equal(start.frames, episode.frames[begin : begin + 4])
        assert np.array_equal(start.actions, episode.actions[begin : begin + 4])
        assert begin + 4 + 3 <= len(episode), "too near the end"
        places.add((episode_name, begin))
    assert {name for name, _ in places} == set(list_episodes(dataset))
    assert {0, 5} <= {begin for _, begin in places}, "both the first and the last possible place come up"


def test_the_seed_decides_which_moments(dataset: Path) -> None:
    names = [[start.name for start in draw(dataset, seed=seed)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_video_of_another_size_is_scaled(dataset: Path) -> None:
    (start,) = draw(dataset, 1, size=(16, 24))
    assert start.frames.shape == (4, 16, 24, 3)


def test_what_cannot_be_drawn_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="too short to begin from: 13 frames are needed, the longest has 12"):
        draw(dataset, num_frames=12)
    with pytest.raises(WorldError, match=r"axes of \[3, 3, 3\] values, the world has \[3\]"):
        draw(dataset, actions=ActionLayout(TINY_ACTIONS.axes[:1]))
    with pytest.raises(FileNotFoundError):
        draw(tmp_path / "nowhere")


def test_start_moments_that_would_fill_the_memory_are_not_decoded(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts_module, "MAX_START_BYTES", 36 * HEIGHT * WIDTH * 3)
    assert len(read_starts(dataset)) == 3
    monkeypatch.setattr(starts_module, "MAX_START_BYTES", 36 * HEIGHT * WIDTH * 3 - 1)
    monkeypatch.setattr(starts_module, "read_episode", None)
    with pytest.raises(WorldError, match=r"tiny holds 36 frames of .* are not read"):
        read_starts(dataset)


def test_dreams_begin_at_the_given_moments() -> None:
    own = tiny_starts(5)[3:]
    envs = make(tiny_world(), starts=own)
    assert envs.start_names == ("start-03", "start-04")
    frames, infos = envs.reset(seed=0, options={"start": ["start-03", 1, 0, 1]})
    assert infos["start"].tolist() == ["start-03", "start-04"] * 2
    for row in range(N):
        assert np.array_equal(frames[row], own[row % 2].frames[-1])
    with pytest.raises(WorldError, match="has no start moments to begin from"):
        make(tiny_world(), starts=[])
    with pytest.raises(WorldError, match="starts must be a list of start moments, got int"):
        make(tiny_world(), starts=5)


def test_moments_that_were_watched_ahead_lead_to_the_same_dreams() -> None:
    world = tiny_world(num_starts=5)
    ahead, plain = make(world), make(world)
    ahead.watch_starts(2)
    calls: list[int] = []
    ahead.simulator.start = lambda starts, seeds: calls.append(len(starts))  # type: ignore[method-assign]
    for envs in (ahead, plain):
        envs.reset(seed=3)
    assert not calls, "a moment was watched again"
    assert torch.equal(ahead.get_state().seed, plain.get_state().seed)
    for actions in ACTIONS[:3]:
        (frames, *_), (expected, *_) = ahead.step(actions), plain.step(actions)
        assert np.abs(frames.astype(int) - expected).max() <= 1, "products of more rows may round otherwise"


def test_watching_ahead_needs_one_length_and_a_batch() -> None:
    uneven = [*tiny_starts(2, length=4), *tiny_starts(1, length=3)]
    with pytest.raises(WorldError, match="starts of one length"):
        make(tiny_world(), starts=uneven).watch_starts(3)
    with pytest.raises(WorldError, match="batch_size must be an integer of at least 1, got 0"):
        make(tiny_world()).watch_starts(0)

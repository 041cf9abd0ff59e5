"""A recorded episode and its replay: from the same state, to the same bytes, or a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.play.recording import Recording
from worldsim.play.replay import STATE_SUFFIX, Opening, Replay, recorded_world
from worldsim.play.run import as_recorded
from worldsim.play.session import PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.state import save


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return an episode of 5 frames whose recording begins at the third drawn one."""
    return record(tmp_path)


def record(tmp_path: Path, **kind: bool) -> Path:
    env = ARL2WorldEnv(tiny_world(**kind))
    session = PlaySession(env)
    session.reset(1)
    for number in range(7):
        if number == 3:
            session.recording = Recording(tmp_path / "walk.mp4", env.world.config)
        session.begin(np.array([1, 0, number % 3]))
        session.finish()
    session.stop_recording()
    return tmp_path / "walk.mp4"


def play(replay: Replay, actions: list[list[int]], **kind: bool) -> str:
    env = ARL2WorldEnv(tiny_world(**kind))
    session = PlaySession(env, replay=replay)
    session.reset()
    assert session.info == {"frame_index": 3, "start": "start-01"}
    for action in actions:
        session.begin(np.array(action))
        session.finish()
    return replay.result(env)


@pytest.mark.parametrize("kind", [{}, {"has_odometry": True, "recycled": True}], ids=["", "poses"])
def test_it_begins_where_the_recording_began_and_compares_every_frame(
    kind: dict[str, bool], tmp_path: Path
) -> None:
    replay = Replay(record(tmp_path, **kind))
    assert replay.num_frames == 4
    actions = [[1, 0, number % 3] for number in range(3, 7)]
    assert "replayed 4 of 4 frames" in play(replay, actions, **kind)


def test_another_action_ends_the_comparison(path: Path) -> None:
    assert "replayed 1 of 4 frames" in play(Replay(path), [[1, 0, 0], [2, 2, 2], [1, 0, 2]])


def test_what_cannot_be_replayed_is_named(path: Path) -> None:
    other = tiny_world()
    other.denoiser.patch_embedding.weight.data += 1
    with pytest.raises(WorldError, match="was recorded in another world"):
        Replay(path).check_world(ARL2WorldEnv(other))
    path.with_suffix(STATE_SUFFIX).unlink()
    with pytest.raises(WorldError, match=r"there is no walk\.replay\.safetensors beside it"):
        Replay(path)
    with pytest.raises(FileNotFoundError, match="there is no recording"):
        Replay(path.with_name("gone.mp4"))


@pytest.mark.parametrize(
    "line", ["{", "7", "[]", '{"action": [0, 0, 0]}', '{"action": [0, 0, 0], "sha256": 7}']
)
def test_a_line_that_was_not_recorded_is_named(path: Path, line: str) -> None:
    table = path.with_suffix(".jsonl")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(WorldError, match=r"walk.jsonl line 2"):
        Replay(path)


def test_a_recording_names_its_world(path: Path) -> None:
    with pytest.raises(
        WorldError, match="was recorded in the world 'tiny', which does not ship: world= says"
    ):
        recorded_world(path)
    opening = path.with_suffix(STATE_SUFFIX)
    found = Opening.load(opening)
    save(found.state, opening, world="doom-health@0123", start=found.start)
    assert recorded_world(path) == "doom-health"


def test_a_replay_computes_as_it_was_recorded_where_nothing_else_is_given() -> None:
    then = {"threads": "1", "denoising_steps": "3", "noise_scale": "0.5"}
    found = as_recorded(PlayConfig(), then)
    assert (found.threads, found.denoising_steps, found.noise_scale) == (1, 3, 0.5)
    given = PlayConfig(threads=2, denoising_steps=4, noise_scale=1.0)
    assert as_recorded(given, then) == given
    for damaged in ({}, {"threads": "4096", "denoising_steps": "", "noise_scale": "many"}):
        assert as_recorded(PlayConfig(), damaged) == PlayConfig()

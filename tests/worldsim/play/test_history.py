"""Going back: to the same bytes, within the room there is, without waiting for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.fakes import tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.outcome import OutcomeConfig
from worldsim.play.history import NUM_RECENT, SPACING, History
from worldsim.play.session import PlaySession
from worldsim.state import WorldState

PLENTY = 2**30


def play(session: PlaySession, num_frames: int, seed: int = 0) -> list[WorldState]:
    """Play random actions; returns the state after each frame."""
    rng = np.random.default_rng(seed)
    states = []
    for _ in range(num_frames):
        session.begin(rng.integers(3, size=3))
        session.finish()
        states.append(session.env.get_state())
    return states


def open_session(
    max_bytes: int = PLENTY, outcome: OutcomeConfig | None = None, **kind: bool
) -> tuple[PlaySession, History]:
    world = tiny_world(outcome=outcome, **kind)
    session = PlaySession(ARL2WorldEnv(world), rewind_bytes=max_bytes)
    session.reset(0)
    assert session.history is not None
    return session, session.history


def same(one: WorldState, other: WorldState) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in mine.items())


@pytest.mark.parametrize("num_back", [1, SPACING - 1, NUM_RECENT + 3, NUM_RECENT + SPACING + 2])
def test_every_moment_comes_back_to_the_same_bytes(num_back: int) -> None:
    session, history = open_session()
    states = play(session, 45)
    for state in states[-2 : -2 - num_back : -1]:
        frame = history.back()
        assert frame is not None
        assert np.array_equal(frame, state.frames[0].numpy())
    assert same(history.now()[0], states[-1 - num_back])


@pytest.mark.parametrize("has_odometry", [False, True], ids=["", "poses"])
def test_moments_drawn_from_noise_of_other_scales_come_back_to_the_same_bytes(has_odometry: bool) -> None:
    session, history = open_session(recycled=True, has_odometry=has_odometry)
    states, sampler = [], session.env.simulator.sampler
    for scale in (1.0, 0.5, 1.5):
        session.change_sampler(replace(sampler, noise_scale=scale))
        states += play(session, 15)
    for state in states[-2::-1]:
        history.back()
        assert same(history.now()[0], state)


def test_the_way_back_is_worked_out_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    session, history = open_session()
    states = play(session, 36)
    commits = []
    commit = session.env.simulator.commit
    monkeypatch.setattr(session.env.simulator, "commit", lambda *a: commits.append(a) or commit(*a))
    for state in states[-2:2:-1]:
        before = len(commits)
        history.back()
        history.prepare()
        assert len(commits) <= before + 1, "more than one commit for a frame that is shown"
        worked_out = len(commits)
        assert same(history.now()[0], state)
        assert len(commits) == worked_out, "letting go had to wait"


def test_play_goes_on_from_there_as_if_nothing_had_happened() -> None:
    session, history = open_session()
    states = play(session, 30)
    for _ in range(20):
        history.back()
    session.go_to(*history.now(), is_rewound=True)
    assert session.info == {"frame_index": 10, "start": "start-00"}
    rng = np.random.default_rng(0)
    rng.integers(3, size=(10, 3))
    for state in states[10:13]:
        session.begin(rng.integers(3, size=3))
        session.finish()
        assert same(session.env.get_state(), state)
    assert len(history) == 13


def test_it_keeps_to_its_room_and_drops_the_oldest() -> None:
    session, history = open_session()
    size = session.env.get_state().nbytes
    session, history = open_session(30 * size)
    for _ in range(4):
        play(session, 10)
        assert history.nbytes <= 30 * size
        assert history.nbytes == sum(moment.nbytes for moment in history._moments)
    assert NUM_RECENT < len(history) < 40
    steps = 0
    while history.back() is not None:
        history.prepare()
        steps += 1
    assert steps > NUM_RECENT
    assert int(history.now()[0].frame_index[0]) == 40 - steps


def test_one_can_go_back_behind_a_new_beginning() -> None:
    session, history = open_session()
    states = play(session, 5)
    session.reset(1)
    play(session, 1)
    assert len(history.frames(9)) == 2, "frames of another episode were handed out"
    history.back()
    history.back()
    state, start = history.now()
    assert start == "start-00"
    assert same(state, states[-1])
    assert len(history.frames(9)) == 6


def test_an_end_is_no_moment_to_go_back_to() -> None:
    session, history = open_session(outcome=OutcomeConfig(end_threshold=1e-6))
    play(session, 1)
    assert session.ended
    assert len(history) == 0
    assert session.env.get_state().frame_index.tolist() == [1]
    assert history.now()[0].frame_index.tolist() == [0]

"""Looking into the memory while playing, and what freezing, emptying and restoring it does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.fakes import TINY_ACTIONS, tiny_world
from tests.window import advance, open_viewer, press, release, same, tap
from worldsim.data.episodes import verify
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.play.desktop.viewer import Viewer
from worldsim.play.replay import STATE_SUFFIX
from worldsim.play.session import PlaySession

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    viewer = open_viewer(tmp_path)
    yield viewer
    viewer.window.close()


def play(session: PlaySession, count: int) -> None:
    for _ in range(count):
        session.begin(TINY_ACTIONS.noop())
        session.finish()


def test_parts_add_up_to_what_the_layer_puts_out() -> None:
    env = ARL2WorldEnv(tiny_world())
    env.reset(seed=0)
    env.begin_step(TINY_ACTIONS.noop())
    memory, prediction = env._current_state("test").memory, env.prediction
    assert prediction is not None
    attention = env.world.denoiser.layers()[0].self_attn
    assert isinstance(attention, HybridAttention)
    tokens, rotary = torch.randn(1, 6, 32), prediction.context.rotary
    with torch.inference_mode():
        local, recalled, decay = attention.parts(tokens, memory.matrices[0], rotary)
        expected, written = attention(tokens, memory.matrices[0], rotary)
        assert torch.allclose(attention.o((local + recalled).flatten(-2)), expected, atol=1e-5)
        assert torch.allclose(decay, attention.write_terms(written, rotary)[2], atol=1e-6)


@pytest.mark.parametrize("recycled", [False, True], ids=["ordinary", "recycled"])
def test_readings_are_those_of_the_state_and_leave_everything_as_it_was(recycled: bool) -> None:
    session = PlaySession(ARL2WorldEnv(tiny_world(recycled=recycled)))
    session.reset(0)
    assert session.inspect() == []
    play(session, 2)
    before = session.env.get_state()
    play(session, 1)
    after = session.env.get_state()
    readings = session.inspect()
    assert [reading.layer for reading in readings] == [0, 2], "the window layer has no state"
    norms = before.memory.matrices.flatten(1).norm(dim=1).tolist()
    assert [reading.norm for reading in readings] == pytest.approx(norms, rel=1e-5)
    assert all(0 < reading.share < 1 for reading in readings)
    for reading in readings:
        attention = session.env.world.denoiser.layers()[reading.layer].self_attn
        assert isinstance(attention, HybridAttention)
        assert not attention._forward_pre_hooks
        resting = math.log(2) / (attention.A_log.exp() * functional.softplus(attention.dt_bias) * 6)
        assert resting.min() / 3 < reading.half_life < resting.max() * 3
    assert session.env.get_state() is after


def test_an_empty_memory_adds_nothing() -> None:
    session = PlaySession(ARL2WorldEnv(tiny_world()))
    session.reset(0)
    session.zero_memory()
    play(session, 1)
    assert [(reading.norm, reading.share) for reading in session.inspect()] == [(0.0, 0.0)] * 2


def test_a_frozen_memory_stays_while_everything_else_goes_on(viewer: Viewer) -> None:
    (state,) = advance(viewer)
    tap("z")
    frozen = advance(viewer, 3)[-1]
    assert torch.equal(frozen.memory.matrices, state.memory.matrices)
    assert not torch.equal(frozen.memory.window_keys, state.memory.window_keys)
    assert int(frozen.frame_index[0]) == 4
    tap("z")
    (later,) = advance(viewer)
    assert not torch.equal(later.memory.matrices, state.memory.matrices)


def test_emptying_and_restoring(viewer: Viewer) -> None:
    (state,) = advance(viewer)
    tap("space")
    tap("x")
    viewer.advance()
    empty = viewer.session.env.get_state()
    assert not empty.memory.matrices.any()
    assert torch.equal(empty.memory.window_keys, state.memory.window_keys)
    tap("v")
    viewer.advance()
    assert same(viewer.session.env.get_state(), state)
    tap("v")
    viewer.advance()
    assert "nothing to restore" in viewer.game.status.message


def test_rewinding_crosses_a_frozen_memory_to_the_same_bytes(viewer: Viewer) -> None:
    advance(viewer, 3)
    tap("z")
    states = advance(viewer, 30)
    press("backspace")
    for _ in range(26):
        viewer.advance()
    release("backspace")
    tap("space")
    viewer.advance()
    assert same(viewer.session.env.get_state(), states[3])
    assert not viewer.session.is_frozen


def test_what_is_recorded_with_a_frozen_memory_is_no_replay(viewer: Viewer, tmp_path: Path) -> None:
    tap("r")
    advance(viewer, 2)
    tap("z")
    advance(viewer, 2)
    tap("z")
    advance(viewer, 2)
    tap("r")
    viewer.advance()
    assert verify(tmp_path / "video") == 3 + 3 + 3
    openings = [path.name for path in sorted((tmp_path / "video").glob(f"*{STATE_SUFFIX}"))]
    assert openings == [f"play-0001{STATE_SUFFIX}", f"play-0001-3{STATE_SUFFIX}"] or openings == [
        f"play-0001-3{STATE_SUFFIX}",
        f"play-0001{STATE_SUFFIX}",
    ]


def test_the_inspector_lies_in_the_corner(viewer: Viewer) -> None:
    advance(viewer)
    tap("space")
    viewer.advance()
    before = viewer.window.screenshot()
    tap("i")
    viewer.advance()
    after = viewer.window.screenshot()
    rows = viewer.game.inspector.rows()
    assert [row[0] for row in rows] == ["layer", "0", "2"]
    assert (before[:20, :20] != after[:20, :20]).any()
    assert viewer.game.inspector.rows() is rows, "the layers are read for every frame"
    tap("i")
    viewer.advance()
    assert (viewer.window.screenshot()[:20, :20] == before[:20, :20]).all()


def test_a_world_without_states_says_so() -> None:
    session = PlaySession(ARL2WorldEnv(tiny_world(is_teacher=True)))
    session.reset(0)
    with pytest.raises(WorldError, match="no recurrent states"):
        session.zero_memory()
    play(session, 1)
    assert session.inspect() == []

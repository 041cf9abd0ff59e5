"""Cost of emptying the state once, in worlds whose memory is known: it ends where their memory ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world, write_turning_dataset
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.inputs.returns import ReturnSettings, choose_returns
from worldsim.evaluation.memory.span import (
    CODEC,
    KEPT,
    LAST,
    SEEN,
    dream_returns,
    next_after_forgetting,
    score_references,
    spans,
    summarize_returns,
    summarize_spans,
)
from worldsim.evaluation.metrics import psnr
from worldsim.evaluation.report.markdown import format_conversion
from worldsim.evaluation.report.pictures import write_memory_plot
from worldsim.simulator import Prediction, Simulator
from worldsim.state import WorldState

CIRCLE = ReturnSettings(absence=5, context_frames=14, longest=4)
TURN = 12
"""Frames of a full turn in the video."""


class Recaller(Simulator):
    """Draws the frame of so many frames ago again, which its recurrent state holds, and black without it."""

    def __init__(self, lag: int) -> None:
        super().__init__(tiny_world())
        self.lag = lag

    def commit_frames(
        self, state: WorldState, frames: Tensor, actions: Tensor, poses: Tensor | None = None
    ) -> WorldState:
        matrices = state.memory.matrices.clone()  # [L, B, H, K, V]: the K rows of the first head are frames
        matrices[0, :, 0] = matrices[0, :, 0].roll(1, dims=1)
        matrices[0, :, 0, 0] = frames.float().mean(dim=(1, 2, 3))[:, None]
        memory = replace(state.memory, matrices=matrices)
        return replace(state, memory=memory, frame_index=state.frame_index + 1, frames=frames)

    def predict(self, state: WorldState, actions: Tensor, poses: Tensor | None = None) -> Prediction:
        grey = state.memory.matrices[0, :, 0, self.lag - 1, 0]
        frames = grey[:, None, None, None].expand(-1, HEIGHT, WIDTH, 3).round().to(torch.uint8)
        context = self.world.denoiser.observe(actions, state.memory)
        return Prediction(frames, state.memory.latents, context)

    def commit(self, state: WorldState, prediction: Prediction) -> WorldState:
        return self.commit_frames(state, prediction.frames, torch.zeros(0))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """Give video of a player who turns on the spot: every frame is that of a full turn before."""
    folder = write_turning_dataset(tmp_path_factory.mktemp("turning"))
    return Recordings(folder, TINY_ACTIONS, (HEIGHT, WIDTH))


def test_the_loss_ends_where_the_memory_ends(recordings: Recordings) -> None:
    clips = recordings.choose(18, 5, seed=0)
    scores = next_after_forgetting(Recaller(TURN), recordings, clips, 17, batch_size=2, seed=0)
    assert list(scores) == [KEPT, "0", "1", "2", "4", "8", "16"]
    assert scores[KEPT].min() > 35
    for span in (0, 1, 2, 4, 8):
        assert (scores[str(span)] < scores[KEPT] - 10).all(), span
    assert np.array_equal(scores["16"], scores[KEPT])
    report = summarize_spans(scores, [recordings.name(clip) for clip in clips])
    assert report.num_places == 5
    assert report.change_db["16"].mean == report.change_db["16"].median == 0.0
    assert report.change_db["8"].high < -10


def test_a_world_that_looks_back_one_frame_loses_nothing_beyond_it(recordings: Recordings) -> None:
    scores = next_after_forgetting(
        Recaller(1), recordings, recordings.choose(9, 4, seed=0), 8, batch_size=4, seed=0
    )
    assert (scores["0"] < scores[KEPT]).all()
    for span in ("1", "2", "4"):
        assert np.array_equal(scores[span], scores[KEPT]), span


def test_softmax_layers_begin_anew(recordings: Recordings) -> None:
    teacher = tiny_world(is_teacher=True)
    assert spans(teacher, 9) == [1, 2, 4, 8]
    clips = recordings.choose(6, 3, seed=0)
    simulator = Simulator(teacher)
    scores = next_after_forgetting(simulator, recordings, clips, 5, batch_size=3, seed=7)
    batch = next(recordings.batches(clips, 6, 3))
    # What has seen the last two frames only begins with them, and has the noise of the fifth frame.
    state = replace(
        batch.begin_dreams(simulator, 1, 7),
        memory=teacher.denoiser.initial_memory(3),
        frame_index=torch.full((3,), 2),
    )
    for index in (3, 4):
        state = simulator.commit_frames(state, batch.frames[:, index], batch.actions[:, index - 1])
    expected = simulator.predict(state, batch.actions[:, -2]).frames
    assert np.array_equal(scores["2"], psnr(expected, batch.frames[:, -1]).numpy())
    assert not np.array_equal(scores["2"], scores[KEPT])


def test_a_place_that_comes_back_is_known_only_with_the_state(recordings: Recordings) -> None:
    places, _ = choose_returns(recordings, CIRCLE, 9, seed=0)
    kept, forgotten = (
        dream_returns(Recaller(TURN), recordings, places, CIRCLE, forgets=forgets, batch_size=4, seed=0)
        for forgets in (False, True)
    )
    assert len(kept) == len(forgotten) == 9
    assert kept.min() > 35
    assert (forgotten < kept - 10).all()
    report = summarize_returns(kept, forgotten, episodes=["a"] * 9)
    assert report.change_db.mean == pytest.approx((forgotten - kept).mean())
    assert summarize_returns(kept, episodes=["a"] * 9).change_db is None


def test_what_came_after_the_place_stays_in_the_state(recordings: Recordings) -> None:
    places, _ = choose_returns(recordings, CIRCLE, 4, seed=0)
    kept, forgotten = (
        dream_returns(Recaller(1), recordings, places, CIRCLE, forgets=forgets, batch_size=4, seed=0)
        for forgets in (False, True)
    )
    assert np.array_equal(kept, forgotten)


def test_returns_are_measured_against_the_frame_seen_there_before(recordings: Recordings) -> None:
    places, _ = choose_returns(recordings, CIRCLE, 4, seed=0)
    scores = score_references(tiny_world(), recordings, places, CIRCLE)
    assert scores.keys() == {SEEN, CODEC, LAST}
    assert scores[SEEN].min() > 35
    assert (scores[LAST] < scores[SEEN] - 10).all()


def test_the_report_shows_worlds_with_and_without_states(tmp_path: Path) -> None:
    value = {"mean": -1.0, "low": -2.0, "high": 0.5, "median": -0.75}
    number = {"mean": 20.0, "low": None, "high": None, "median": 21.0}
    common = {"num_places": 3, "num_episodes": 2, "psnr_db": number}
    measured = {
        "teacher": {**common, "change_db": {"1": value, "2": value}, "returns": {"psnr_db": number}},
        "hybrid": {
            **common,
            "change_db": {"0": value, "1": value, "2": value},
            "returns": {"psnr_db": number, "change_db": value},
        },
    }
    settings = {"distance": 32.0, "angle_degrees": 15.0, "absence": 5, "view_degrees": 90.0}
    returns = {"told": "9 places come back", "settings": settings, "num_places": 9, "num_episodes": 2}
    run = {"command": "x", "commit": "y", "date": "z", "dtype": "float32", "versions": {"torch": "2"}}
    run |= {"hardware": {"device": "a GPU"}, "settings": {"memory_frames": 3}}
    world = {"identity": "tiny@0", "layers": {}, "parameters": 1, "denoising_steps": 1, "commit_level": 0.0}
    worlds = {name: world | {"memory": part} for name, part in measured.items()}

    def text_of(references: dict[str, Any]) -> str:
        found = {**returns, "references": references}
        return format_conversion({"runs": {"memory": run}, "worlds": worlds, "returns": found})

    text = text_of({SEEN: number})
    cell = "-1.00 / -0.75 (-2.00 to 0.50)"
    assert "| world | nothing emptied | the last 0 | the last 1 | the last 2 |" in text
    assert f"| teacher | 20.00 / 21.00 | - | {cell} | {cell} |" in text
    assert f"| hybrid | 20.00 / 21.00 | {cell} |" in text
    assert "| the real frame seen there before | 20.00 / 21.00 | - |" in text
    assert "9 places come back." in text
    unmeasured = text_of({})
    assert "seen there before" not in unmeasured
    assert "9 places come back." in unmeasured
    write_memory_plot(tmp_path, measured)
    assert (tmp_path / "conversion-memory.png").read_bytes().startswith(b"\x89PNG")

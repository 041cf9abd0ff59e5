"""Branches in panes: what is in them, and what picking one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pygame
import pytest
import torch

from tests.fakes import HEIGHT, WIDTH
from tests.window import SCALE, advance, open_viewer, press, tap
from worldsim.play.desktop.viewer import Viewer


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    viewer = open_viewer(tmp_path)
    yield viewer
    viewer.window.close()


def test_four_seeds_go_on_side_by_side_and_one_is_picked(viewer: Viewer) -> None:
    (state,) = advance(viewer)
    expected = viewer.session.env.simulator
    tap("b")
    press("up")
    for _ in range(3):
        viewer.advance()
    actions = torch.tensor([[1, 0, 0]])
    for _ in range(3):
        _, state = expected.step(state, actions)
    panes = viewer._panes
    assert panes is not None and len(panes.frames) == 4
    assert len({frame.tobytes() for frame in panes.frames}) == 4
    assert np.abs(panes.frames[0].astype(int) - state.frames[0].numpy()).max() <= 6, (
        "the first is not the own"
    )
    assert viewer.session.info["frame_index"] == 1
    half = viewer.window.screenshot()[40 : HEIGHT * 2, WIDTH * 2 : WIDTH * 4 : 2][::2]
    assert np.array_equal(half, panes.frames[1, 20:]), "the second pane is not where it belongs"
    tap("tab")
    tap("space")
    viewer.advance()
    picked = panes.frames[1].copy()
    tap("return")
    viewer.advance()
    assert viewer._panes is None
    assert np.array_equal(viewer.session.observation, picked)
    assert viewer.session.info == {"frame_index": 4, "start": "start-00"}
    assert len(viewer.session.recent_frames(9)) == 5, "a player that takes over would not see the branch"


def test_players_go_on_side_by_side_and_a_click_picks_who_plays(viewer: Viewer) -> None:
    advance(viewer)
    tap("b")
    viewer.advance()
    tap("b")
    viewer.advance()
    panes = viewer._panes
    assert panes is not None and panes.labels == ["human", "random"]
    place = (WIDTH * SCALE * 3 // 4, 10)
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, pos=place, button=1))
    viewer.advance()
    assert viewer.players.name == "random"
    assert viewer.session.info["frame_index"] == 3
    tap("b")
    viewer.advance()
    tap("m")
    viewer.advance()
    assert viewer._panes is None, "another command leaves the panes"
    assert viewer.session.info["frame_index"] == 4

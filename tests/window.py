"""A window to play a tiny world in, and events of its keyboard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pygame
import torch

from policies import KeyboardPolicy, RandomPolicy
from tests.fakes import TINY_ACTIONS, tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.play.desktop.viewer import Viewer
from worldsim.play.game import Game
from worldsim.play.session import PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.state import WorldState
from worldsim.ui.bindings import bind
from worldsim.world import World

SCALE = 4


def post(kind: int, name: str, mod: int = 0) -> None:
    pygame.event.post(pygame.event.Event(kind, key=pygame.key.key_code(name), mod=mod))


def press(*names: str) -> None:
    for name in names:
        post(pygame.KEYDOWN, name)


def release(*names: str) -> None:
    for name in names:
        post(pygame.KEYUP, name)


def tap(name: str) -> None:
    press(name)
    release(name)


def play_config(folder: Path, fps: float = 0, threads: int = 1, **changes: bool) -> PlayConfig:
    """Everything that is saved goes into a folder; frames come as fast as possible, threads stay."""
    slots, recordings, screenshots = (str(folder / name) for name in ("slots", "video", "shots"))
    best, clips = str(folder / "best"), str(folder / "clips")
    folders = PlayConfig(slots=slots, recordings=recordings, screenshots=screenshots, best=best, clips=clips)
    return replace(folders, fps=fps, threads=threads, **changes)


def open_viewer(folder: Path, world: World | None = None, **programs: object) -> Viewer:
    session = PlaySession(ARL2WorldEnv(world or tiny_world()), rewind_bytes=2**26)
    keyboard = KeyboardPolicy(TINY_ACTIONS.num_values, [axis.keys for axis in TINY_ACTIONS.axes])
    players = {"random": RandomPolicy(TINY_ACTIONS.num_values), **programs}
    game = Game(session, keyboard, players, bind(TINY_ACTIONS), play_config(folder))  # type: ignore[arg-type]
    viewer = Viewer(game, scale=SCALE)
    viewer.game.restart(0)
    return viewer


def advance(viewer: Viewer, count: int = 1) -> list[WorldState]:
    states = []
    for _ in range(count):
        viewer.advance()
        states.append(viewer.session.env.get_state())
    return states


def same(one: WorldState, other: WorldState) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())

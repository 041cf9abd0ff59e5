"""The walker of MiniGrid goes through doors, comes back, and takes things."""

from __future__ import annotations

from collections import Counter

import gymnasium as gym
import pytest

from policies.scripted.mini_grid import PICK_UP, TOGGLE, wander

pytest.importorskip("minigrid")
ROOM = 6
"""Cells from a wall of the playground to the next."""


def play(seed: int, steps: int = 400) -> tuple[list[int], list[tuple[int, int]], list[str]]:
    env = gym.make("MiniGrid-Playground-v0", max_steps=steps + 1)
    env.reset(seed=seed)
    act = wander(env, seed)
    actions, cells, carried = [], [], []
    for _ in range(steps):
        actions.append(act(None))
        env.step(actions[-1])
        x, y = env.unwrapped.agent_pos  # type: ignore[attr-defined]
        cells.append((int(x), int(y)))
        held = env.unwrapped.carrying  # type: ignore[attr-defined]
        carried.append(held.type if held else "")
    env.close()
    return actions, cells, carried


def test_it_gets_about_comes_back_and_takes_things() -> None:
    actions, cells, carried = play(3)
    rooms = Counter((x // ROOM, y // ROOM) for x, y in cells)
    assert len(rooms) >= 5
    entered = [cell for cell, before in zip(cells[1:], cells, strict=False) if cell != before]
    assert max(Counter(entered).values()) >= 4
    assert len(set(carried)) >= 2 and PICK_UP in actions and TOGGLE in actions


def test_the_same_seed_does_the_same() -> None:
    assert play(1, 60) == play(1, 60) != play(2, 60)

"""Keys held together, for the window that Gymnasium opens."""

from __future__ import annotations

import numpy as np
import pygame
import pytest

from tests.fakes import TINY_ACTIONS, tiny_world
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.ui.keys import key_combinations


def test_keys_of_different_axes_are_held_together() -> None:
    pressed = key_combinations(TINY_ACTIONS)
    assert pressed[pygame.K_w,].tolist() == pressed[pygame.K_UP,].tolist() == [1, 0, 0]
    assert pressed[tuple(sorted([pygame.K_w, pygame.K_d, pygame.K_LEFT]))].tolist() == [1, 2, 1]
    assert len(pressed) == 5 * 3 * 3 - 1
    assert tuple(sorted([pygame.K_a, pygame.K_d])) not in pressed, "two buttons of one axis"


def test_gymnasium_finds_the_keys_of_an_environment() -> None:
    env = ARL2WorldEnv(tiny_world())
    assert all(action in env.action_space for action in env.get_keys_to_action().values())
    assert type(env.metadata["render_fps"]) is int, "gymnasium.utils.play takes no other"
    numbered = ARL2WorldEnv(tiny_world(), discrete_actions=True)
    assert numbered.get_keys_to_action()[pygame.K_w,] == TINY_ACTIONS.to_number(np.array([1, 0, 0]))


def test_a_key_that_does_not_exist_is_named() -> None:
    layout = ActionLayout((ActionAxis(name="turn", buttons=("left",), keys=(("lefft",),)),))
    with pytest.raises(WorldError, match="there is no key 'lefft'"):
        key_combinations(layout)

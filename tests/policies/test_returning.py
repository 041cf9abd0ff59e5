"""The player that walks back: what undoes what, and where it brings one in the real game."""

from __future__ import annotations

import numpy as np
import pytest

import policies
from policies.random import RandomPolicy
from policies.returning import ReturningPolicy
from worldsim.data.doom import DoomGame, import_vizdoom
from worldsim.errors import WorldError

PICTURE = np.zeros((120, 160, 3), dtype=np.uint8)


def played(player: policies.Policy, seed: int, frames: int) -> np.ndarray:
    player.reset(seed)
    return np.stack([player.act(PICTURE) for _ in range(frames)])


def test_the_way_back_undoes_the_way_out_in_reverse() -> None:
    player = ReturningPolicy((3, 3), RandomPolicy((3, 3), (1, 3)), out_frames=(5, 5))
    actions = played(player, 1, 30)
    out, back = actions[:5], actions[6:11]
    assert not actions[5].any()
    assert (back[::-1] == np.array([0, 2, 1])[out]).all()
    assert out.any()
    # Five frames of the other player alone, then the next excursion.
    assert (actions[22:27][::-1] == np.array([0, 2, 1])[actions[16:21]]).all()


def test_lengths_are_drawn_and_the_same_seed_plays_the_same() -> None:
    player = policies.make("returning", num_values=(3, 3), player="random", out_frames=(2, 9))
    assert (played(player, 4, 200) == played(player, 4, 200)).all()
    assert (played(player, 4, 200) != played(player, 5, 200)).any()


def test_where_there_is_no_scripted_player_a_random_one_leads_away() -> None:
    assert played(policies.make("returning", num_values=(3, 3, 3, 3)), 0, 5).shape == (5, 4)


def test_buttons_that_cannot_be_undone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two opposite buttons.*\[2, 3\]"):
        policies.make("returning", num_values=(2, 3))


@pytest.mark.parametrize("frames", [(0, 4), (5, 4)])
def test_frames_out_of_order_are_refused(frames: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="out_frames"):
        ReturningPolicy((3,), RandomPolicy((3,)), out_frames=frames)


def test_in_the_real_game_it_comes_back_to_where_it_was() -> None:
    """Turning is undone to the degree; a walk need not be, where a wall is in one way and not the other."""
    try:
        import_vizdoom()
    except WorldError as error:
        pytest.skip(str(error))
    player = ReturningPolicy((3, 3, 3), Turning(), out_frames=(20, 20))
    with DoomGame("doom-rooms") as game:
        seen = game.reset(3)
        first = seen
        player.reset(0)
        for frame in range(41):
            seen = game.step(player.act(seen.frame))
            if frame == 19:
                assert abs(seen.pose[2] - first.pose[2]) > 30
    assert (seen.pose[2] - first.pose[2] + 180) % 360 - 180 == pytest.approx(0, abs=1.0)
    assert np.abs(seen.frame.astype(int) - first.frame).mean() < 3


class Turning:
    """Turns left."""

    def reset(self, seed: int) -> None:
        pass

    def act(self, observation: np.ndarray) -> np.ndarray:
        return np.array([0, 0, 1])

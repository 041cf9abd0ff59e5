"""The player that walks back: what undoes what, and where it brings one in the real game."""

from __future__ import annotations

import numpy as np
import pytest

import policies
from policies.blind import RandomPolicy
from policies.scripted.returning import OPPOSITE, REST_FRAMES, ReturningPolicy
from worldsim.games.registry import GAMES, open_game

PICTURE = np.zeros((120, 160, 3), dtype=np.uint8)


def played(player: policies.Policy, seed: int, frames: int) -> np.ndarray:
    player.reset(seed)
    return np.stack([player.act(PICTURE) for _ in range(frames)])


def test_the_way_back_undoes_the_way_out_in_reverse() -> None:
    player = ReturningPolicy((3, 3), RandomPolicy((3, 3), (1, 3)), out_frames=(5, 5), look_share=0.0)
    actions = played(player, 1, 3 * REST_FRAMES + 15 + REST_FRAMES + 5)
    first, rest = REST_FRAMES, REST_FRAMES
    out = actions[first : first + 5]
    back = actions[first + 5 + rest : first + 10 + rest]
    assert out.any()
    assert (back[::-1] == OPPOSITE[out]).all()
    assert not actions[:first].any() and not actions[first + 5 : first + 5 + rest].any()
    assert not actions[first + 10 + rest : first + 10 + 2 * rest].any()


def test_keys_are_let_go_between_two_actions() -> None:
    player = ReturningPolicy((3, 3), RandomPolicy((3, 3), (1, 3)), out_frames=(40, 40), look_share=0.0)
    out = played(player, 2, REST_FRAMES + 40)[REST_FRAMES:]
    changed = (out[1:] != out[:-1]).any(axis=1)
    assert changed.sum() > 4
    assert not (changed & out[1:].any(axis=1) & out[:-1].any(axis=1)).any()


def test_lengths_are_drawn_and_the_same_seed_plays_the_same() -> None:
    player = policies.make("returning", num_values=(3, 3), player="random", out_frames=(2, 9))
    assert (played(player, 4, 200) == played(player, 4, 200)).all()
    assert (played(player, 4, 200) != played(player, 5, 200)).any()


def test_where_there_is_no_scripted_player_a_random_one_leads_away() -> None:
    assert played(policies.make("returning", num_values=(3, 3, 3, 3)), 0, 5).shape == (5, 4)


def test_buttons_that_cannot_be_undone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two opposite buttons.*\[2, 3\]"):
        policies.make("returning", num_values=(2, 3))


@pytest.mark.parametrize(("game", "axis"), [("doom-level", "act"), ("doom-health", "move")])
def test_games_with_a_button_that_nothing_undoes_are_refused(game: str, axis: str) -> None:
    with pytest.raises(ValueError, match=f"in '{game}' those of {axis} do not undo each other"):
        policies.make("returning", num_values=GAMES[game].actions.num_values, game=GAMES[game])


@pytest.mark.parametrize("game", ["doom-rooms", "doom-take-cover", "grid-recall"])
def test_games_whose_buttons_undo_each_other_are_walked_back_in(game: str) -> None:
    num_values = GAMES[game].actions.num_values
    assert played(policies.make("returning", num_values=num_values, game=GAMES[game]), 0, 5).shape[1] == len(
        num_values
    )


@pytest.mark.parametrize("frames", [(0, 4), (5, 4)])
def test_frames_out_of_order_are_refused(frames: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="out_frames"):
        ReturningPolicy((3,), RandomPolicy((3,)), out_frames=frames)


def test_after_somebody_else_has_played_it_begins_anew() -> None:
    player = ReturningPolicy((3, 3), RandomPolicy((3, 3), (1, 3)), out_frames=(5, 5))
    played(player, 1, REST_FRAMES + 7)
    player.watch(PICTURE)
    actions = np.stack([player.act(PICTURE) for _ in range(REST_FRAMES + 5)])
    assert not actions[:REST_FRAMES].any()
    assert actions[REST_FRAMES:].any()


def test_on_some_excursions_it_only_looks_around() -> None:
    def uses_first_axis(look_share: float) -> bool:
        walker = RandomPolicy((3, 3), (1, 3))
        player = ReturningPolicy((3, 3), walker, out_frames=(20, 20), look_share=look_share)
        return bool(played(player, 0, REST_FRAMES + 20)[:, 0].any())

    assert uses_first_axis(0.0)
    assert not uses_first_axis(1.0)
    with pytest.raises(ValueError, match="look_share"):
        uses_first_axis(1.5)


def test_in_the_real_game_it_sees_again_what_it_saw() -> None:
    pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')
    walker = RandomPolicy((3, 3, 3), (1, 20))
    player = ReturningPolicy((3, 3, 3), walker, out_frames=(60, 60), look_share=1.0)
    with open_game("doom-rooms") as game:
        first = game.reset(3)
        player.reset(0)
        seen = [game.step(player.act(PICTURE)) for _ in range(120 + 3 * REST_FRAMES)]
    turned = np.array([(one.pose[2] - first.pose[2] + 180) % 360 - 180 for one in seen])
    assert np.abs(turned).max() > 40
    assert turned[-1] == pytest.approx(0, abs=0.1)
    assert (seen[-1].frame == first.frame).mean() > 0.99

"""The scripted players of the games that can be lost, and who plays which."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

import policies
from policies.scripted.dodge import BALL_WIDTH, HIT, find_fireballs, find_place, run
from policies.scripted.forage import find_medikits
from worldsim.games.registry import GAMES, open_game

GREY, BROWN, FIRE, WHITE = (75, 75, 75), (111, 87, 67), (255, 255, 115), (200, 200, 200)
STEPS = count()


def grey_floor() -> np.ndarray:
    return np.full((120, 160, 3), GREY, dtype=np.uint8)


def with_fireball(middle: int, width: int) -> np.ndarray:
    picture = grey_floor()
    picture[60 : 60 + width, middle - width // 2 : middle + (width + 1) // 2] = FIRE
    return picture


def green_floor(medikit: int | None = None, width: int = 8) -> np.ndarray:
    """Paint a floor that no step leaves as it was."""
    rng = np.random.default_rng(next(STEPS))
    picture = np.zeros((120, 160, 3), dtype=np.uint8)
    picture[60:112, :, 1:] = rng.integers(20, 90, (1, 160, 2))
    if medikit is not None:
        picture[70:76, medikit - width // 2 : medikit + width // 2] = WHITE
    return picture


@pytest.mark.parametrize("name", ["doom-take-cover", "doom-health"])
def test_players_keep_the_protocol(name: str) -> None:
    num_values = GAMES[name].actions.num_values
    player = policies.make("scripted", num_values=num_values, game=GAMES[name])
    pictures = np.random.default_rng(0).integers(0, 256, (200, 120, 160, 3), dtype=np.uint8)
    played = []
    for _ in range(2):
        player.reset(3)
        played.append([player.act(picture) for picture in (*pictures, pictures[0] * 0)])
    assert all(action.dtype == np.int64 and action.shape == (len(num_values),) for action in played[0])
    assert all((action >= 0).all() and (action < num_values).all() for action in played[0])
    assert (np.array(played[0]) == played[1]).all(), "the same seed gave other actions"


def test_fireballs_are_found_also_while_a_hit_reddens_everything() -> None:
    picture = with_fireball(48, 16)
    picture[60:64, 100:104] = FIRE
    tinged = (picture * 0.6 + np.array([100, 0, 0])).astype(np.uint8)
    for seen in (picture, tinged):
        assert find_fireballs(seen) == pytest.approx(np.array([[-0.2, 0.1], [0.1375, 0.025]]))
    assert find_fireballs(grey_floor()).shape == (0, 2)


def test_place_is_read_off_the_walls() -> None:
    picture = grey_floor()
    picture[47:73, :] = BROWN
    assert find_place(picture) == pytest.approx(0, abs=5)
    picture[30:90, -1] = BROWN
    assert find_place(picture) == pytest.approx(218, abs=5), "the nearer wall is on the right"
    assert find_place(grey_floor()) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("speed", [-6.0, 0.0, 6.0])
def test_dodge_gets_out_of_the_way_of_a_fireball(speed: float, seed: int) -> None:
    """It is thrown from 400 units away to where it would hit whoever stands still."""
    player = policies.DodgePolicy((3,))
    player.reset(seed)
    place, running = 0.0, 0.0
    for frame in range(20):
        distance, across = 400.0 - 20 * frame, speed * (frame - 20)
        width = max(round(80 * BALL_WIDTH / distance), 2)
        middle = round(80 + 80 * (across - place) / distance)
        in_view = middle - width > 0 and middle + width < 160
        (action,) = player.act(with_fireball(middle, width) if in_view else grey_floor())
        place, running = run(place, running, (0, -1, 1)[action])
    assert abs(place) > HIT


@pytest.mark.parametrize(
    ("middle", "action"), [(20, [0, 1]), (60, [1, 1]), (80, [1, 0]), (100, [1, 2]), (140, [0, 2])]
)
def test_forage_walks_to_a_medikit(middle: int, action: list[int]) -> None:
    assert policies.ForagePolicy((2, 3)).act(green_floor(middle)).tolist() == action


def test_forage_prefers_the_nearest_medikit() -> None:
    picture = green_floor(120, width=16)
    picture[70:72, 30:33] = WHITE
    assert len(find_medikits(picture)) == 2
    assert policies.ForagePolicy((2, 3)).act(picture).tolist() == [0, 2]


def test_forage_turns_away_where_the_picture_stands_still() -> None:
    player = policies.ForagePolicy((2, 3))
    wall = green_floor(80)
    actions = np.array([player.act(wall) for _ in range(40)])
    turned = np.flatnonzero((actions[:, 0] == 0) & (actions[:, 1] != 0))
    assert 0 < turned[0] < 10
    moving = policies.ForagePolicy((2, 3))
    assert all(moving.act(green_floor(80)).tolist() == [1, 0] for _ in range(40))


@pytest.mark.parametrize(
    ("num_values", "game", "player"),
    [
        ((3, 3, 3), "", policies.ScriptedPolicy),
        ((3, 3, 3), "my-rooms", policies.ScriptedPolicy),
        ((3,), "doom-take-cover", policies.DodgePolicy),
        ((3,), "doom-rooms", policies.DodgePolicy),
        ((2, 3), "doom-health", policies.ForagePolicy),
        ((3, 3, 3), "doom-rooms", policies.SCRIPTED["wander"]),
        ((3, 3, 3, 3), "doom-level", policies.SCRIPTED["patrol"]),
    ],
)
def test_scripted_is_the_player_that_fits_the_buttons(
    num_values: tuple[int, ...], game: str, player: type
) -> None:
    assert type(policies.make("scripted", num_values=num_values, game=GAMES.get(game))) is player


def test_several_scripted_players_of_a_game_share_its_episodes() -> None:
    game = replace(GAMES["doom-rooms"], players={"explore": 3.0, "another": 1.0})
    fighting = policies.SCRIPTED | {"another": policies.TourPolicy}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "SCRIPTED", fighting)
        mixed = policies.make("scripted", num_values=(3, 3, 3), game=game)
    assert isinstance(mixed, policies.MixedPolicy)
    chosen = Counter()
    for seed in range(200):
        mixed.reset(seed)
        chosen[type(mixed.player)] += 1
    assert chosen[policies.ScriptedPolicy] == pytest.approx(150, abs=25)


def test_skirmish_explores_fires_a_third_of_the_time_and_opens_what_stops_it() -> None:
    player, explorer = policies.SkirmishPolicy((3, 3, 3, 3)), policies.ScriptedPolicy((3, 3, 3))
    player.reset(5)
    explorer.reset(5)
    moving = [player.act(green_floor()) for _ in range(3000)]
    assert all((action[:3] == explorer.act(green_floor())).all() for action in moving)
    shares = np.bincount([action[3] for action in moving], minlength=3) / len(moving)
    assert shares[1] == pytest.approx(1 / 3, abs=0.04) and shares[2] == 0
    wall = green_floor()
    stopped = [player.act(wall)[3] for _ in range(200)]
    assert 5 < stopped.count(2) < 70


@pytest.mark.parametrize("player", [policies.DodgePolicy, policies.ForagePolicy])
def test_players_refuse_other_axes(player: type) -> None:
    with pytest.raises(ValueError, match=r"got axes of \[3, 3, 3\] values"):
        player((3, 3, 3))


def test_mixed_lets_the_seed_choose_who_plays() -> None:
    shares = {"random": 1.0, "scripted": 3.0}
    mixed = policies.make("mixed", num_values=(3,), game=GAMES["doom-take-cover"], shares=shares)
    assert isinstance(mixed, policies.MixedPolicy)
    chosen = []
    for _ in range(2):
        for seed in range(400):
            mixed.reset(seed)
            chosen.append(type(mixed.player))
    assert chosen[:400] == chosen[400:], "the same seed gave another player"
    counts = Counter(chosen[:400])
    assert counts.keys() == {policies.RandomPolicy, policies.DodgePolicy}
    assert counts[policies.DodgePolicy] == pytest.approx(300, abs=35)


def test_mixed_hands_each_player_its_options() -> None:
    options = {"random": {"hold_frames": (1, 1)}}
    mixed = policies.make("mixed", num_values=(3,), shares={"random": 1}, options=options)
    mixed.reset(0)
    actions = [int(mixed.act(grey_floor())[0]) for _ in range(60)]
    assert np.count_nonzero(np.diff(actions)) > 25, "it held its actions for longer than a frame"


@pytest.mark.parametrize("shares", [{}, {"random": 0}, {"random": -1, "scripted": 2}, {"random": np.inf}])
def test_mixed_refuses_shares_that_choose_nobody(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares must be 0 or more, and not all of them 0"):
        policies.make("mixed", num_values=(3,), shares=shares)


@pytest.mark.parametrize("name", ["doom-take-cover", "doom-health"])
def test_scripted_survives_longer_than_random_in_the_real_game(name: str) -> None:
    """Measured over 100 episodes it is three times and twice as long; here over 8."""
    num_values = GAMES[name].actions.num_values
    frames = dict.fromkeys(("random", "scripted"), 0)
    with open_game(name) as game:
        for policy_name in frames:
            player = policies.make(policy_name, num_values=num_values, game=GAMES[name])
            for seed in range(8):
                player.reset(seed)
                seen = game.reset(seed)
                while not (seen.terminated or seen.truncated):
                    seen = game.step(player.act(seen.frame))
                    frames[policy_name] += 1
    assert frames["scripted"] > 1.5 * frames["random"]

"""A level of Freedoom as a place to play: episodes begin all over its map, with or without a shotgun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.games.doom import START_TIC, Begin, Place, iwad_path, start_episode
from worldsim.games.rooms.wad import read_things, read_wad

# Beside the seed itself, so that where a game begins is independent of what a player draws from it.
STREAM = 5
WARPED_SHARE, SHOTGUN_SHARE = 0.8, 0.5
# Of nothing, each of them drawn: with every picture the weapon swings back by a 16th from where it was when
# the episode before ended, which the engine keeps.
REST_TICS = 18
# Editor numbers: starts of deathmatches, teleport destinations, and what can be picked up.
PLACES = frozenset((8, 11, 14, 17, 82, 83, *range(2001, 2027), *range(2045, 2050)))
MONSTERS = frozenset((7, 9, 16, 58, *range(64, 72), 84, *range(3001, 3007)))
CLEARANCE = 48  # along either axis: who is put where a monster stands is stuck in it
# `warp` and `give` are cheats. Without a HUD "A secret is revealed!" would stay in the picture for good.
ARGUMENTS = "+sv_cheats 1 +cl_showsecretmessage 0"


@dataclass(frozen=True, slots=True)
class Level(Place):
    """A map of Freedoom's own, with its monsters, doors and pick-ups.

    So that recordings cover it without a player who gets far, 80 % of the episodes begin where an item of the
    map lies or one in a deathmatch starts, all in a random direction and half of them with a shotgun besides.

    Attributes:
        map_name: Its name in `freedoom2.wad`.
        skill: 1 to 5, by which there are more monsters.
        shut: Places x, y of things that nobody can walk away from; no episode begins there.
    """

    map_name: str
    skill: int
    shut: tuple[tuple[int, int], ...] = ()
    hidden_buttons = ("TURN_LEFT_RIGHT_DELTA",)
    licence = "Freedoom art and level (BSD-3-Clause)"

    @property
    def game(self) -> str:  # type: ignore[override] - a property where the base has an attribute
        """What is played, as datasets name it."""
        return f"Freedoom 2 {self.map_name}, skill {self.skill}"

    def find_places(self) -> list[tuple[int, int]]:
        """Return where episodes may begin, x, y of each; those of all skills and kinds of games."""
        things = read_things(read_wad(iwad_path()), self.map_name)
        monsters = [thing for thing in things if thing.kind in MONSTERS]
        free = {
            (thing.x, thing.y)
            for thing in things
            if thing.kind in PLACES
            and all(max(abs(thing.x - one.x), abs(thing.y - one.y)) >= CLEARANCE for one in monsters)
        }
        return sorted(free - set(self.shut))

    def prepare(self, engine: Any, folder: Path) -> Begin:
        """Choose the map, and read where one can stand in it."""
        engine.set_doom_map(self.map_name)
        engine.set_doom_skill(self.skill)
        engine.set_episode_start_time(START_TIC)
        engine.add_game_args(ARGUMENTS)
        places = self.find_places()

        def begin(seed: int) -> None:
            rng = np.random.default_rng((seed, STREAM))
            is_warped, has_shotgun = rng.random(2) < (WARPED_SHARE, SHOTGUN_SHARE)
            x, y = places[rng.integers(len(places))]
            turn = float(rng.integers(360))
            for warp in (
                (f"warp {x} {y}", None) if is_warped else (None,)
            ):  # killed at once: where the map begins
                start_episode(engine, seed)
                for command in (warp, "give shotgun" if has_shotgun else None):
                    if command:
                        engine.send_game_command(command)
                nothing = [0.0] * (engine.get_available_buttons_size() - 1)
                engine.make_action([*nothing, turn], 1)
                for _ in range(REST_TICS):
                    engine.make_action([*nothing, 0.0], 1)
                if not engine.is_episode_finished():
                    return

        return begin

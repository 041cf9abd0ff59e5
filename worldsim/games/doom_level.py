"""A level of Freedoom as a place to play: episodes begin all over its map, armed and hurt in many ways."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.games.doom import START_TIC, Begin, Place, Watch, import_vizdoom, iwad_path, start_episode
from worldsim.games.doom_doors import Leaf, read_doors, read_walls, write_watch
from worldsim.games.doom_labels import LABELS, Witness
from worldsim.games.rooms.wad import read_things, read_wad

# Beside the seed itself, so that where a game begins is independent of what a player draws from it.
STREAM = 5
# Where the map begins, where a thing of it lies, before a door, in sight of a monster; where it is `calm`, at
# a thing or a door, no monster takes notice.
STARTS = {"map": 0.1, "thing": 0.55, "door": 0.15, "monster": 0.2, "calm": 0.0, "calm-door": 0.0}
CALM = ("calm", "calm-door")
MONSTER_DISTANCES = (80.0, 420.0)
MAX_WALK_TICS = 40  # forward from a thing, wherever that leads: 300 map units at most
DOOR_DISTANCES = (40.0, 110.0)
ASKEW_DEGREES = 25.0  # from looking straight at a door
# Weapons, the pistol already in the player's hands: each with its share of the episodes, its rounds, and
# bounds of their number.
WEAPONS: dict[str, tuple[float, str, tuple[int, int]]] = {
    "pistol": (0.35, "clip", (0, 60)),
    "shotgun": (0.3, "shell", (2, 40)),
    "chaingun": (0.25, "clip", (10, 150)),
    "plasmarifle": (0.06, "cell", (10, 80)),
    "rocketlauncher": (0.04, "rocketammo", (1, 12)),
}
PISTOL_ROUNDS = 50  # that a game begins with
HURT_SHARE, MAX_HURT = 0.5, 85
# Of nothing, each of them drawn: with every picture the weapon swings back by a 16th from where it was when
# the episode before ended, which the engine keeps; a new weapon is also up by then.
REST_TICS = 36
# Editor numbers: starts of deathmatches, teleport destinations, and what can be picked up.
PLACES = frozenset((8, 11, 14, 17, 82, 83, *range(2001, 2027), *range(2045, 2050)))
MONSTERS = frozenset((7, 9, 16, 58, *range(64, 72), 84, *range(3001, 3007)))
CLEARANCE = 48  # along either axis: who is put where a monster stands is stuck in it
# `warp`, `give` and `take` are cheats. Without a HUD "A secret is revealed!" would stay in the picture.
ARGUMENTS = "+sv_cheats 1 +cl_showsecretmessage 0"


@dataclass(frozen=True, slots=True)
class Level(Place):
    """A map of Freedoom's own, with its monsters, doors and pick-ups.

    So that recordings cover it without a player who gets far, 55 % of the episodes begin within a few steps
    of where an item of the map lies or one in a deathmatch starts, in a random direction, 20 % in sight of
    where a monster waits, and 15 % before a door. The player has one of five weapons and a random number of
    rounds, and is hurt in half of them.

    Attributes:
        map_name: Its name in `freedoom2.wad`.
        skill: 1 to 5, by which there are more monsters.
        shut: Places x, y of things that nobody can walk away from; no episode begins there.
    """

    map_name: str
    skill: int
    shut: tuple[tuple[int, int], ...] = ()
    hidden_buttons = ("TURN_LEFT_RIGHT_DELTA",)
    labels = LABELS
    starts = tuple(STARTS)
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
        """Choose the map, read where one can stand in it, and let the engine tell of its doors."""
        engine.set_doom_map(self.map_name)
        engine.set_doom_skill(self.skill)
        engine.set_episode_start_time(START_TIC)
        engine.add_game_args(ARGUMENTS)
        lumps = read_wad(iwad_path())
        doors = read_doors(lumps, self.map_name)
        write_watch(folder / "doors.wad", doors)
        engine.set_doom_scenario_path(str(folder / "doors.wad"))
        places = Places(
            things=self.find_places(),
            leaves=[leaf for door in doors for leaf in door.leaves],
            monsters=[
                (thing.x, thing.y)
                for thing in read_things(lumps, self.map_name, self.skill)
                if thing.kind in MONSTERS
            ],
            walls=read_walls(lumps, self.map_name),
        )

        def begin(seed: int, kind: str) -> None:
            start = places.draw(np.random.default_rng((seed, STREAM)), kind)
            for warp in (start.warp, None):  # killed at once: where the map begins
                start_episode(engine, seed)
                enter(engine, start, warp)
                if not engine.is_episode_finished():
                    return

        return begin

    def watch(self, engine: Any, supersampling: int) -> Watch:
        """Return what reads the labels of each frame."""
        doors = read_doors(read_wad(iwad_path()), self.map_name)
        return Witness(engine, import_vizdoom(), doors, supersampling)


@dataclass(frozen=True, slots=True)
class Start:
    """How an episode begins.

    Attributes:
        warp: x, y where the player is put, or None for where the map begins.
        heading: In degrees, in which the player then looks.
        walk_tics: Walks forward so long.
        turn: Degrees to the right of it, in which the player looks in the end.
        gifts: Commands that arm, unarm and hurt.
    """

    warp: tuple[int, int] | None
    heading: float
    walk_tics: int = 0
    turn: float = 0.0
    gifts: tuple[str, ...] = ()


class Places:
    """Where episodes may begin.

    Args:
        things: Where one can stand, x, y of each.
        leaves: Faces of doors.
        monsters: Where monsters wait, x, y of each.
        walls: `[N, 4]` x, y of the two ends of each wall through which nobody sees.
    """

    def __init__(
        self,
        *,
        things: list[tuple[int, int]],
        leaves: list[Leaf],
        monsters: list[tuple[int, int]],
        walls: np.ndarray,
    ) -> None:
        self._things, self._leaves = things, leaves
        # Of each monster that can be seen from somewhere, where one stands and sees it.
        sights = [[thing for thing in things if self._sees(thing, monster, walls)] for monster in monsters]
        self._monsters = [(one, seen) for one, seen in zip(monsters, sights, strict=True) if seen]

    def draw(self, rng: np.random.Generator, kind: str) -> Start:
        """Draw how an episode begins, at a kind of place or, if `kind` is empty, at any."""
        shares = list(STARTS.values())
        kind = kind or tuple(STARTS)[rng.choice(len(shares), p=shares)]
        place = self._things[rng.integers(len(self._things))]
        heading, turn = float(rng.integers(360)), float(rng.integers(360))
        walk_tics = int(rng.integers(MAX_WALK_TICS))
        gifts = tuple(draw_gifts(rng))
        if kind in CALM:
            gifts += ("notarget",)
        if kind in ("door", "calm-door") and self._leaves:
            return replace(self._before_door(rng), gifts=gifts)
        if kind == "monster" and self._monsters:
            monster, seen_from = self._monsters[rng.integers(len(self._monsters))]
            place = seen_from[rng.integers(len(seen_from))]
            heading = math.degrees(math.atan2(monster[1] - place[1], monster[0] - place[0]))
            return Start(place, heading + float(rng.uniform(-ASKEW_DEGREES, ASKEW_DEGREES)), gifts=gifts)
        if kind == "map":
            return Start(None, heading, gifts=gifts)
        return Start(place, heading, walk_tics, turn, gifts)

    def _before_door(self, rng: np.random.Generator) -> Start:
        leaf = self._leaves[rng.integers(len(self._leaves))]
        distance, askew = rng.uniform(*DOOR_DISTANCES), rng.uniform(-ASKEW_DEGREES, ASKEW_DEGREES)
        out = math.radians(leaf.angle)
        place = (round(leaf.x + distance * math.cos(out)), round(leaf.y + distance * math.sin(out)))
        return Start(place, leaf.angle + 180.0 + float(askew))

    @staticmethod
    def _sees(place: tuple[int, int], monster: tuple[int, int], walls: np.ndarray) -> bool:
        near, far = MONSTER_DISTANCES
        return near <= math.dist(place, monster) <= far and not crosses(place, monster, walls).any()


def crosses(first: tuple[int, int], second: tuple[int, int], walls: np.ndarray) -> np.ndarray:
    """Return which walls `[N, 4]` the way between two points crosses, `[N]` bool."""
    begin, end = walls[:, :2].astype(float), walls[:, 2:].astype(float)
    one, other = np.array(first, dtype=float), np.array(second, dtype=float)

    def side(a: np.ndarray, b: np.ndarray, point: np.ndarray) -> np.ndarray:
        way, to = b - a, point - a
        return np.sign(way[..., 0] * to[..., 1] - way[..., 1] * to[..., 0])

    apart = side(begin, end, one) != side(begin, end, other)
    return apart & (side(one, other, begin) != side(one, other, end))


def draw_gifts(rng: np.random.Generator) -> Iterator[str]:
    """Yield the commands that arm, unarm and hurt the player."""
    weapon = tuple(WEAPONS)[rng.choice(len(WEAPONS), p=[share for share, *_ in WEAPONS.values()])]
    _, rounds, limits = WEAPONS[weapon]
    count = int(rng.integers(*limits, endpoint=True))
    is_hurt, hurt = rng.random() < HURT_SHARE, int(rng.integers(1, MAX_HURT, endpoint=True))
    yield f"take clip {PISTOL_ROUNDS}"
    yield f"give {weapon}"
    if count:
        yield f"give {rounds} {count}"
    if is_hurt:
        yield f"take health {hurt}"


def enter(engine: Any, start: Start, warp: tuple[int, int] | None) -> None:
    """Bring the player of a game that has begun to where and how an episode begins."""
    angle = import_vizdoom().GameVariable.ANGLE
    if warp is not None:
        engine.send_game_command(f"warp {warp[0]} {warp[1]}")
    for gift in start.gifts:
        engine.send_game_command(gift)
    buttons = [button.name for button in engine.get_available_buttons()]
    nothing = [0.0] * len(buttons)
    turning, walking = list(nothing), list(nothing)
    # The hidden button turns to the right by so many degrees.
    turning[-1] = (engine.get_game_variable(angle) - start.heading) % 360.0
    engine.make_action(turning, 1)
    if warp is not None and start.walk_tics:
        walking[buttons.index("MOVE_FORWARD")] = 1.0
        engine.make_action(walking, start.walk_tics)
    turning[-1] = start.turn
    engine.make_action(turning, 1)
    for _ in range(REST_TICS):
        engine.make_action(nothing, 1)

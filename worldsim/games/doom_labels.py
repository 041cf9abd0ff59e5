"""Labels of a level of Doom: what the engine knows of each frame, for players and for measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from worldsim.games.doom_doors import FIXED, Door

COUNTED = ("health", "rounds", "weapon", "kills", "hits", "hurt", "pick_ups")
SEEN = (
    "monsters",
    "monster_distance",
    "monster_left",
    "monster_top",
    "monster_width",
    "monster_height",
    "door_distance",
    "door_bearing",
    "door_open",
)
LABELS = (*COUNTED, *SEEN)
"""Names of the labels, in their order.

`health`; `rounds` left in the weapon; `weapon`, its number from 1 (fists) on; since the start of the episode
`kills`, `hits` of monsters, points of damage taken (`hurt`) and `pick_ups`. Living `monsters` in view, and of
the one in the middle of the picture, or else the nearest, the distance in map units and the box in pixels.
Distance of the nearest door, in degrees how far to the left of the view it lies, and how far it is open, 0 to
1. What there is none of is 0.
"""
VARIABLES = ("HEALTH", "SELECTED_WEAPON_AMMO", "SELECTED_WEAPON", "KILLCOUNT", "HITCOUNT", "DAMAGE_TAKEN")
# What grows when something is picked up.
STORES = ("HEALTH", "ARMOR", "ITEMCOUNT", "AMMO2", "AMMO3", "AMMO5", "AMMO6")
PIXEL_COLUMNS = 160
MONSTER, ME = "Monster", "DoomPlayer"


class Witness:
    """Reads the labels of a running game.

    Args:
        engine: ViZDoom's game.
        vizdoom: The package.
        doors: Of the map; the engine tells of their ceilings in `USER1` and so on.
        samples: That the engine draws for a pixel of a frame, across and down.
    """

    def __init__(self, engine: Any, vizdoom: ModuleType, doors: Sequence[Door], samples: int = 1) -> None:
        self._engine, self._doors, self._samples = engine, doors, samples
        variable = vizdoom.GameVariable
        self._variables = [getattr(variable, name) for name in VARIABLES]
        self._stores = [getattr(variable, name) for name in STORES]
        self._ceilings = [getattr(variable, f"USER{number + 1}") for number in range(len(doors))]
        self.reset()

    def reset(self) -> None:
        """Begin an episode, in whose first frame nothing has been counted yet."""
        self._first: list[float] | None = None
        self._held = [self._engine.get_game_variable(each) for each in self._stores]
        self._pick_ups = 0
        self._seen = (0.0,) * len(SEEN)

    def watch(self, state: Any, pose: tuple[float, float, float]) -> tuple[float, ...]:
        """Return the labels of a frame, in the order of `LABELS`.

        Args:
            state: The engine's; None after the end, when there is no other view than the one before.
            pose: x, y and angle in degrees of the player.
        """
        counted = [float(self._engine.get_game_variable(each)) for each in self._variables]
        held = [self._engine.get_game_variable(each) for each in self._stores]
        self._pick_ups += any(now > before for now, before in zip(held, self._held, strict=True))
        self._held = held
        if self._first is None:
            self._first = [0.0, 0.0, 0.0, *counted[3:]]
        if state is not None:
            self._seen = (*find_monster(state.labels, self._samples), *self._find_door(pose))
        since = [now - before for now, before in zip(counted, self._first, strict=True)]
        return (max(since[0], 0.0), *since[1:], float(self._pick_ups), *self._seen)

    def _find_door(self, pose: tuple[float, float, float]) -> tuple[float, float, float]:
        if not self._doors:
            return 0.0, 0.0, 0.0
        x, y, angle = pose
        number = min(
            range(len(self._doors)), key=lambda n: math.hypot(self._doors[n].x - x, self._doors[n].y - y)
        )
        door = self._doors[number]
        ceiling = self._engine.get_game_variable(self._ceilings[number]) / FIXED
        bearing = math.degrees(math.atan2(door.y - y, door.x - x)) - angle
        return (
            math.hypot(door.x - x, door.y - y),
            (bearing + 180.0) % 360.0 - 180.0,
            door.openness(ceiling),
        )


def find_monster(labels: Sequence[Any], samples: int = 1) -> tuple[float, ...]:
    """Return the number of monsters in view; of the one aimed at, distance, left, top, width and height.

    Args:
        labels: The engine's, of all things in view.
        samples: That the engine draws for a pixel of a frame, across and down.
    """
    me = next((each for each in labels if each.object_name == ME), None)
    monsters = [each for each in labels if each.object_category == MONSTER]
    if me is None or not monsters:
        return (float(len(monsters)), *(0.0,) * 5)

    def distance(monster: Any) -> float:
        return math.hypot(
            monster.object_position_x - me.object_position_x, monster.object_position_y - me.object_position_y
        )

    middle = samples * PIXEL_COLUMNS / 2
    chosen = min(monsters, key=lambda one: (not one.x <= middle < one.x + one.width, distance(one)))
    box = (chosen.x, chosen.y, chosen.width, chosen.height)
    return (float(len(monsters)), distance(chosen), *(number / samples for number in box))

"""Events of a level of Doom: shots, kills and doors, the player's health, and walls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from worldsim.games.doom import iwad_path
from worldsim.games.doom_doors import read_walls
from worldsim.games.events import Columns, Count, Event, Measures, Meter, Sign
from worldsim.games.rooms.view import HEIGHT, WIDTH
from worldsim.games.rooms.wad import read_wad
from worldsim.games.status import BAR_HEIGHT, read_health, read_kills, read_rounds

NUM_ROWS = HEIGHT - BAR_HEIGHT
ATTACK = 1  # value of the axis `act`
FLASHING = (2, 4)  # pistol to chaingun: fists have no flash, rockets leave after more than three frames
DARK_FRAMES = 6  # after a shot, from which on its flash is over
STILL = 1.0  # map units a frame: who moves less stands
RAYS = (-40.0, -20.0, 0.0, 20.0, 40.0)  # degrees from where the player looks; the view is 90 wide
WALL_DEPTH, ROOM_DEPTH = 64.0, 220.0  # of the median ray: below, a wall fills the view, above, a room is seen
SQUARE = 0.25  # a monster is hit squarely where the middle of the picture is in the middle half of its box
AIM_DISTANCE = 600.0
DOOR_NEAR, DOOR_FACED = 75.0, 25.0


def steps(columns: Columns) -> np.ndarray:
    """Return how far the player moves to the next frame, `[T]`, in map units; 0 in the last one."""
    return np.append(np.hypot(np.diff(columns["x"]), np.diff(columns["y"])), 0.0)


def fires(columns: Columns) -> np.ndarray:
    """A round has left the weapon since the frame before, which was the same one."""
    fallen, same = np.diff(columns["rounds"]) < 0, np.diff(columns["weapon"]) == 0
    return np.concatenate([[False], fallen & same])


def flashes(columns: Columns) -> np.ndarray:
    """Frames of a muzzle flash: a round has just left the weapon."""
    return fires(columns) & can_flash(columns)


def is_quiet(columns: Columns) -> np.ndarray:
    """Nothing was fired for longer than a flash lasts, though a monster is in view or the trigger pulled."""
    recent = np.cumsum(fires(columns))
    ago = np.maximum(np.arange(len(recent)) - DARK_FRAMES, 0)
    is_dark = (recent == recent[ago]) & (np.arange(len(recent)) > DARK_FRAMES)
    return is_dark & can_flash(columns) & ((columns["monsters"] > 0) | (columns["act"] == ATTACK))


def can_flash(columns: Columns) -> np.ndarray:
    """A weapon whose flash comes at once."""
    return (columns["weapon"] >= FLASHING[0]) & (columns["weapon"] <= FLASHING[1])


def can_fire(columns: Columns) -> np.ndarray:
    """There are rounds in a weapon whose flash comes at once."""
    return can_flash(columns) & (columns["rounds"] > 1)


def is_aimed(columns: Columns) -> np.ndarray:
    """A living monster is squarely in the middle of the picture, the trigger pulled."""
    left, width = columns["monster_left"], columns["monster_width"]
    share = (WIDTH / 2 - left) / np.maximum(width, 1)
    is_square = (share >= SQUARE) & (share <= 1 - SQUARE)
    near = columns["monster_distance"] < AIM_DISTANCE
    return (columns["monsters"] > 0) & is_square & near & can_flash(columns)


def read_spent(frames: np.ndarray) -> np.ndarray:
    """Return a number that grows with each round that leaves the weapon, as frames show those left."""
    return -read_rounds(frames)


def kills(columns: Columns) -> np.ndarray:
    """A monster has died since the frame before."""
    return np.concatenate([[False], np.diff(columns["kills"]) > 0])


def is_before_door(columns: Columns) -> np.ndarray:
    """The player stands before a door and looks at it."""
    near = (columns["door_distance"] > 0) & (columns["door_distance"] < DOOR_NEAR)
    return near & (np.abs(columns["door_bearing"]) < DOOR_FACED) & (steps(columns) < STILL)


def is_before_shut_door(columns: Columns) -> np.ndarray:
    """The door before the player is shut."""
    return is_before_door(columns) & (columns["door_open"] == 0)


def is_before_open_door(columns: Columns) -> np.ndarray:
    """The door before the player is open."""
    return is_before_door(columns) & (columns["door_open"] == 1)


@dataclass(frozen=True, slots=True)
class Depth:
    """How far it is to the walls of a map, shut doors among them, between two bounds.

    Attributes:
        map_name: Of the map.
        minimum, maximum: Of the median of some rays across the view, in map units.
    """

    map_name: str
    minimum: float = 0.0
    maximum: float = math.inf

    def __call__(self, columns: Columns) -> np.ndarray:
        """Return of each frame whether it is, `[T]` bool.

        Raises:
            WorldError: If ViZDoom, which has the map, is not installed.
        """
        depth = np.median(find_depths(columns, read_solid(self.map_name)), axis=1)
        return (depth >= self.minimum) & (depth <= self.maximum)


@lru_cache
def read_solid(map_name: str) -> np.ndarray:
    """Return the walls and shut doors of a map, `[N, 4]`."""
    return read_walls(read_wad(iwad_path()), map_name, with_shut=True)


def find_depths(columns: Columns, walls: np.ndarray) -> np.ndarray:
    """Return how far each ray goes until it meets a wall, `[T, R]`, inf where it meets none."""
    begin, way = walls[:, :2].astype(np.float64), np.diff(walls.reshape(-1, 2, 2), axis=1)[:, 0].astype(float)
    depths = []
    for ray in RAYS:
        angle = np.deg2rad(columns["angle"] + ray)
        along = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None]  # [T, 1, 2]
        to = begin - np.stack([columns["x"], columns["y"]], axis=1)[:, None]  # [T, N, 2]
        # place + depth * along = begin + share * way
        turn = along[..., 0] * way[:, 1] - along[..., 1] * way[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (to[..., 0] * way[:, 1] - to[..., 1] * way[:, 0]) / turn
            share = (to[..., 0] * along[..., 1] - to[..., 1] * along[..., 0]) / turn
        meets = (depth > 0) & (share >= 0) & (share <= 1)
        depths.append(np.where(meets, depth, math.inf).min(axis=1))
    return np.stack(depths, axis=1)


WHOLE_VIEW = ((0, NUM_ROWS), (0, WIDTH))
FLASH = Sign(
    name="muzzle flash",
    rows=(48, NUM_ROWS),
    columns=(48, 112),
    is_shown=flashes,
    is_hidden=is_quiet,
    is_sudden=True,
)
OPEN_DOOR = Sign(
    name="open door",
    rows=WHOLE_VIEW[0],
    columns=WHOLE_VIEW[1],
    is_shown=is_before_open_door,
    is_hidden=is_before_shut_door,
)
OPEN_VIEW = Sign(
    name="room, not wall",
    rows=WHOLE_VIEW[0],
    columns=WHOLE_VIEW[1],
    is_shown=Depth("MAP01", minimum=ROOM_DEPTH),
    is_hidden=Depth("MAP01", maximum=WALL_DEPTH),
)
SHOT = Event(
    name="fires when asked",
    axis="act",
    button="attack",
    quiet=12,
    given=can_fire,
    happens=fires,
    within=3,
    shows=Count(name="rounds spent", read=read_spent),
)
MEASURES = Measures(
    events=(
        SHOT,
        replace(SHOT, name="a muzzle flash is seen", shows=FLASH),
        Event(
            name="a monster hit squarely falls",
            axis="act",
            button="attack",
            quiet=0,
            given=is_aimed,
            happens=kills,
            within=20,
            shows=Count(name="kills", read=read_kills),
            is_certain=False,
            needs_press=False,
        ),
        Event(
            name="a door opens",
            axis="act",
            button="use",
            quiet=1,
            given=is_before_shut_door,
            happens=is_before_open_door,
            within=28,
            shows=OPEN_DOOR,
            least_frames=4,
        ),
    ),
    meter=Meter(label="health", read=read_health, least_change=5.0, empty=1.0),
    open_view=OPEN_VIEW,
    num_rows=NUM_ROWS,
)

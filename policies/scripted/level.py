"""Players of a level of Doom: one fights, one opens doors, one runs into walls, one turns round, and so on.

While episodes are recorded they are told labels, monsters in view and the nearest door among them, and do
what their name says; from the picture alone, in a dream, those that need labels explore as `SkirmishPolicy`.
Distances are in map units of Doom, angles in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np

from policies import streams
from policies.base import FloorPlan, Pose, ScriptedPlayer
from policies.scripted.explore import ATTACK, USE, SkirmishPolicy

Frames = tuple[int, int]

NOTHING = np.zeros(4, dtype=np.int64)
FORWARD, BACKWARD, LEFT, RIGHT = 1, 2, 1, 2
MOVE, STRAFE, TURN, ACT = range(4)
WIDTH = 160  # of the picture, in pixels; its view is 90 degrees wide
SLOW_TURN = 3.5  # degrees a frame while a turning key is held for up to three, then twice as many
HALF_TURN, FULL_TURN = 180.0, 360.0
FRAMES_OF_TURN = 53  # of a full turn whose key is held all the time
PACES = ((1, 0), (1, 0), (1, 0), (3, 1))  # frames in which a turning key is held, and let go, in turn

# The fighter.
CLOSE, FAR = 110.0, 320.0  # steps back, goes nearer
SIDESTEP: Frames = (6, 20)
LOST_FRAMES = 4  # without a monster in view, after which it goes on
# The one that opens doors.
DOOR_NEAR = 320.0  # walks up to a door so near
REACH = 60.0  # and stands so near to its middle in the end: `use` reaches 64 from the eye
TOO_NEAR = 32.0  # is in the way of the door, which then does not shut
GLIDE = 4.5  # frames' worth of its speed it slides on when it stops walking
APPROACH_FRAMES = 50
AIM, ASKEW = 5.0, 35.0  # errors of heading above which it turns, and above which it stands meanwhile
USE_SHARE, KNOCK_SHARE = 0.8, 0.5  # presses `use`; else, pushes against the door
WAITING_FRAMES: Frames = (14, 30)
MOVING_FRAMES = 30  # after which a door has opened, or shut
CLOSING_FRAMES = 100  # after which an open door has shut again, if it does
THROUGH_SHARE = 0.4  # goes through an open door
SHUT_SHARE = 0.85  # shuts it by `use`; else waits until it shuts by itself, 80 frames
TRIES: Frames = (3, 9)
LEAVE: Frames = (16, 60)
AFTER_ALL: Frames = (60, 240)
CALM_SHARE = 0.6  # of the episodes, in which no monster takes notice: half of the others end by death
# The one that runs into walls.
PUSH: Frames = (30, 110)
MAX_WALK, STOPPED_FRAMES = 80, 3
BACK_SHARE = 0.8
BACK: Frames = (3, 18)
AWAY: Frames = (8, 44)
ON: Frames = (4, 24)
# The one that turns round.
LOOKS = (90.0, HALF_TURN, *(FULL_TURN,) * 6)
REST: Frames = (2, 12)
LED: Frames = (4, 24)
# The one that idles.
IDLE: Frames = (20, 160)
SHOTS: Frames = (2, 20)
IDLE_SHOT_SHARE = 0.3


class LevelPlayer(ScriptedPlayer):
    """Keep to a plan whose every action is chosen when the labels of its frame are known.

    Classes that derive say in `_play` what they do, and draw from `_rng` of their own stream.

    Args:
        num_values: Number of values of each axis; must be `NUM_VALUES`.

    Raises:
        ValueError: If the axes are others.
    """

    NUM_VALUES = (3, 3, 3, 3)
    NEEDS = "the player of a level needs four axes (move, strafe, turn, act) of three values each"
    STREAM: ClassVar[int]
    NAME: ClassVar[str]
    start = "calm"

    def reset(self, seed: int) -> None:
        """Start a new episode, about which nothing is told yet."""
        self._rng = np.random.default_rng((seed, self.STREAM))
        self._leader = SkirmishPolicy(self.NUM_VALUES)
        self._leader.reset(seed)
        self._told: Mapping[str, float] = {}
        self._pose: Pose | None = None
        self._actions = self._play()

    def enter(self, plan: FloorPlan) -> None:
        """Begin in a place with this map, which is of no use here."""

    def locate(self, pose: Pose) -> None:
        """Stand at x, y and an angle in degrees."""
        self._pose = pose

    def inform(self, labels: Mapping[str, float]) -> None:
        """Know the labels of the frame at which is acted next."""
        self._told = labels

    @property
    def activity(self) -> str:
        """Who it is."""
        return self.NAME

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[4]` int64, for `observation`, `[height, width, 3]` uint8."""
        self._picture, self._is_led = observation, False
        action = next(self._actions)
        if not self._is_led:
            self._leader.watch(observation)
        return action.copy()

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts: make another plan from here."""
        self._leader.watch(observation)
        self._actions = self._play()

    def _play(self) -> Iterator[np.ndarray]:
        """Yield actions without end."""
        raise NotImplementedError

    def _follow(self, *, fires: bool) -> np.ndarray:
        """Return what the explorer presses, who also opens what stops it."""
        self._is_led = True
        action = self._leader.act(self._picture)
        return press(action, act=0) if action[ACT] == ATTACK and not fires else action

    def _explore(self, limits: Frames, *, fires: bool = False) -> Iterator[np.ndarray]:
        for _ in range(self._draw(limits)):
            yield self._follow(fires=fires)

    def _hold(self, limits: Frames, **pressed: int) -> Iterator[np.ndarray]:
        yield from [press(NOTHING, **pressed)] * self._draw(limits)

    def _turn_by(self, way: int, angle: float) -> Iterator[np.ndarray]:
        """Turn by an angle at one of several speeds; by its duration where no pose is told."""
        held, free = PACES[self._rng.integers(len(PACES))]
        turned, heading, frames = 0.0, self._pose, 0
        while turned < angle - SLOW_TURN:
            yield press(NOTHING, turn=way)
            frames += 1
            if heading is None or self._pose is None:
                turned = angle * frames / max(1, round(FRAMES_OF_TURN * angle / FULL_TURN))
            else:
                turned += abs((self._pose[2] - heading[2] + HALF_TURN) % FULL_TURN - HALF_TURN)
                heading = self._pose
            if frames % held == 0:
                for _ in range(free):
                    yield NOTHING

    def _face(self, bearing: float) -> int:
        return LEFT if bearing > 0 else RIGHT

    def _draw(self, limits: Frames) -> int:
        return int(self._rng.integers(*limits, endpoint=True))


class FightPolicy(LevelPlayer):
    """Turn to the monster in view, sidestep, and fire when it is in the middle; else explore."""

    STREAM = streams.FIGHT
    NAME = "fight"
    start = "monster"

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            if self._told.get("monsters"):
                yield from self._fight()
            else:
                yield self._follow(fires=not self._told)

    def _fight(self) -> Iterator[np.ndarray]:
        lost = step = 0
        way = 0
        while lost < LOST_FRAMES:
            if not step:
                step, way = self._draw(SIDESTEP), int(self._rng.choice((0, 0, LEFT, RIGHT)))
            step -= 1
            if not self._told.get("monsters"):
                lost += 1
                yield NOTHING
                continue
            lost = 0
            width, distance = self._told["monster_width"], self._told["monster_distance"]
            offset = self._told["monster_left"] + width / 2 - WIDTH / 2  # to the right
            move = FORWARD if distance > FAR else BACKWARD if distance < CLOSE else 0
            half_turn = WIDTH / 2 * math.tan(math.radians(SLOW_TURN / 2))
            is_aimed = abs(offset) <= max(width / 2, half_turn)
            turn = 0 if abs(offset) <= max(width / 4, half_turn) else self._face(-offset)
            yield press(NOTHING, move=move, strafe=way, turn=turn, act=ATTACK if is_aimed else 0)


class ChargePolicy(LevelPlayer):
    """Walk up to monsters and do not fire, until it dies; else explore."""

    STREAM = streams.CHARGE
    NAME = "charge"
    start = "monster"

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            if not self._told.get("monsters"):
                yield self._follow(fires=False)
                continue
            offset = self._told["monster_left"] + self._told["monster_width"] / 2 - WIDTH / 2
            turn = self._face(-offset) if abs(offset) > AIM else 0
            yield press(NOTHING, move=FORWARD if abs(offset) < WIDTH / 3 else 0, turn=turn)


class DoorPolicy(LevelPlayer):
    """Walk up to a door, open it, go through, shut it, or stand before it without; now and then explore."""

    STREAM = streams.DOORS
    NAME = "open-doors"

    def reset(self, seed: int) -> None:
        """Start a new episode, before a door."""
        super().reset(seed)
        self.start = "calm-door" if self._rng.random() < CALM_SHARE else "door"

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            for _ in range(self._draw(TRIES)):
                if not 0 < self._told.get("door_distance", 0.0) < DOOR_NEAR:
                    break
                yield from self._approach()
                if self._told["door_distance"] > 1.5 * REACH:
                    break  # something stands in the way
                if not self._told["door_open"]:
                    yield from self._try_door()
                    continue
                yield from self._shut()
                if self._told["door_open"]:
                    yield from self._explore(AFTER_ALL)  # it is one that opens once
                    break
            yield from self._explore(LEAVE, fires=not self._told)

    def _approach(self) -> Iterator[np.ndarray]:
        """Come to rest where `use` reaches the door and nothing keeps it from shutting."""
        last = self._told["door_distance"]
        for _ in range(APPROACH_FRAMES):
            distance, bearing = self._told["door_distance"], self._told["door_bearing"]
            speed, last = last - distance, distance
            if TOO_NEAR < distance < REACH and abs(speed) < 1.0 and abs(bearing) < 2 * AIM:
                return
            end, move = distance - GLIDE * speed, 0
            if abs(bearing) < ASKEW:
                move = FORWARD if end > REACH else BACKWARD if end < TOO_NEAR else 0
            yield press(NOTHING, move=move, turn=self._face(bearing) if abs(bearing) > AIM else 0)

    def _try_door(self) -> Iterator[np.ndarray]:
        if self._rng.random() < USE_SHARE:
            yield from self._open()
            return
        move = FORWARD if self._rng.random() < KNOCK_SHARE else 0
        yield from self._hold(WAITING_FRAMES, move=move)
        yield from self._hold(BACK, move=BACKWARD if move else 0)

    def _open(self) -> Iterator[np.ndarray]:
        """Open the door and watch, or go through and turn round."""
        yield from self._hold(REST)
        yield from self._hold((1, 3), act=USE)
        yield from self._until(lambda told: told["door_open"] >= 1.0, MOVING_FRAMES)
        yield from self._hold(REST)
        if self._rng.random() < THROUGH_SHARE:
            yield from self._hold((12, 26), move=FORWARD)
            yield from self._turn_by(int(self._rng.choice((LEFT, RIGHT))), HALF_TURN)

    def _shut(self) -> Iterator[np.ndarray]:
        """Shut the door, or wait until it shuts by itself."""
        frames = CLOSING_FRAMES
        if self._rng.random() < SHUT_SHARE:
            yield from self._hold((1, 3), act=USE)
            frames = MOVING_FRAMES
        yield from self._until(lambda told: told["door_open"] <= 0.0, frames)

    def _until(self, is_so: Callable[[Mapping[str, float]], bool], most: int) -> Iterator[np.ndarray]:
        """Stand still until something is so."""
        for _ in range(most):
            if is_so(self._told):
                return
            yield NOTHING


class PushPolicy(LevelPlayer):
    """Walk until something stops it, push against that for long, then leave it: back, a turn, and on."""

    STREAM = streams.PUSH
    NAME = "push"

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            yield from self._explore(LED)
            yield from self._walk_into()
            sideways = int(self._rng.choice((0, 0, LEFT, RIGHT)))
            yield from self._hold(PUSH, move=FORWARD, strafe=sideways)
            if self._rng.random() < BACK_SHARE:
                yield from self._hold(BACK, move=BACKWARD)
            yield from self._hold(AWAY, turn=int(self._rng.choice((LEFT, RIGHT))))
            yield from self._hold(ON, move=FORWARD)

    def _walk_into(self) -> Iterator[np.ndarray]:
        """Walk until the pose no longer changes; without one, explore until the picture does not."""
        blocked = 0
        for _ in range(MAX_WALK):
            before = self._pose
            if before is None:
                yield self._follow(fires=False)
                if self._leader.was_stuck:
                    return
                continue
            yield press(NOTHING, move=FORWARD)
            blocked = blocked + 1 if math.dist(before[:2], (self._pose or before)[:2]) < 1.0 else 0
            if blocked > STOPPED_FRAMES:
                return


class TurnPolicy(LevelPlayer):
    """Turn all around on the spot, or away and back; in between explore."""

    STREAM = streams.TURN_ROUND
    NAME = "turn-round"

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            yield from self._hold(REST)
            heading, angle = self._pose, float(self._rng.choice(LOOKS))
            way = int(self._rng.choice((LEFT, RIGHT)))
            yield from self._turn_by(way, angle)
            if angle < FULL_TURN:
                yield from self._hold(REST)
                yield from self._turn_by(3 - way, angle)
            if heading is not None:
                yield from self._turn_to(heading[2])
            yield from self._hold(REST)
            yield from self._explore(LED)

    def _turn_to(self, heading: float) -> Iterator[np.ndarray]:
        """Turn to within 2 degrees of a heading, at a pace that does not overshoot."""
        for _ in range(FRAMES_OF_TURN):
            assert self._pose is not None
            error = (heading - self._pose[2] + HALF_TURN) % FULL_TURN - HALF_TURN
            if abs(error) <= SLOW_TURN / 2:
                return
            yield press(NOTHING, turn=self._face(error))
            yield NOTHING


class IdlePolicy(LevelPlayer):
    """Stand for long, at times fire on the spot, and seldom walk on."""

    STREAM = streams.IDLE
    NAME = "idle"
    start = ""

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            yield from self._hold(IDLE)
            if self._rng.random() < IDLE_SHOT_SHARE:
                yield from self._hold(SHOTS, act=ATTACK)
            else:
                yield from self._explore(LED)


def press(action: np.ndarray, **pressed: int) -> np.ndarray:
    """Return an action `[4]` in which some axes have other values, by name: move, strafe, turn, act."""
    changed = action.copy()
    for name, value in pressed.items():
        changed[("move", "strafe", "turn", "act").index(name)] = value
    return changed

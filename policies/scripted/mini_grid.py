"""A walker for environments of MiniGrid that knows the map, for `policy=own`.

It walks to places chosen at random, every other time to one where it has been before, through doors that it
opens; it turns all the way round; it goes to things, takes them, opens them, and puts them down elsewhere. So
a world sees what it has seen before again, after a while and from elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE = range(6)
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # of looking along 0 to 3, a quarter turn to the right each
RETURN_SHARE = 0.5  # of the walks
TURN_SHARE, TOUCH_SHARE, WHIM_SHARE = 0.15, 0.2, 0.1  # of what it does, beside walking

PICK_UP_SHARE = 0.8  # of what it does with a thing; boxes can be opened, too

Cell = tuple[int, int]
Ways = dict[Cell, "Cell | None"]


def wander(env: Any, seed: int) -> Callable[[Any], int]:
    """Return who walks in an episode: a function from observations, which it needs not, to actions.

    Args:
        env: An environment of MiniGrid, after its reset.
        seed: Of where it goes and what it does.
    """
    moves = Walker(env.unwrapped, np.random.default_rng(seed)).moves()
    return lambda _: next(moves)


class Walker:
    """The walker of one episode.

    Args:
        game: The environment itself, under its wrappers, after its reset.
        rng: What it draws from.
    """

    def __init__(self, game: Any, rng: np.random.Generator) -> None:
        self._game, self._rng = game, rng
        self._visited: list[Cell] = [self._cell]

    def moves(self) -> Iterator[int]:
        """Yield its actions, without end; each is done before the next is asked for."""
        while True:
            chance = self._rng.random()
            if chance < TURN_SHARE:
                yield from [int(self._rng.choice([LEFT, RIGHT]))] * 4
            elif chance < TURN_SHARE + TOUCH_SHARE:
                yield from self._touch()
            elif chance < TURN_SHARE + TOUCH_SHARE + WHIM_SHARE:
                yield int(self._rng.choice([LEFT, RIGHT, FORWARD]))
            else:
                yield from self._walk()

    @property
    def _cell(self) -> Cell:
        x, y = self._game.agent_pos
        return int(x), int(y)

    def _touch(self) -> Iterator[int]:
        """Put down what it carries; else go to a thing, and take or open it."""
        if self._game.carrying:
            yield DROP if self._game.grid.get(*self._game.front_pos) is None else LEFT
            return
        ways = self._ways()
        beside = [(cell, thing) for cell in ways for thing in around(cell) if self._is_thing(thing)]
        if not beside:
            return
        cell, thing = beside[int(self._rng.integers(len(beside)))]
        yield from self._follow(ways, cell)
        if self._cell == cell:
            yield from self._face(thing)
            yield PICK_UP if self._rng.random() < PICK_UP_SHARE else TOGGLE

    def _walk(self) -> Iterator[int]:
        """Go to a place that can be reached."""
        ways = self._ways()
        known = [cell for cell in self._visited if cell in ways]
        among = known if self._rng.random() < RETURN_SHARE else list(ways)
        yield from self._follow(ways, among[int(self._rng.integers(len(among)))])

    def _follow(self, ways: Ways, goal: Cell) -> Iterator[int]:
        """Go along a way, until something is in it."""
        path: list[Cell] = []
        cell: Cell | None = goal
        while cell is not None:
            path.append(cell)
            cell = ways[cell]
        for following in path[-2::-1]:
            yield from self._step(following)
            if self._cell != following:
                return
            self._visited.append(following)

    def _step(self, cell: Cell) -> Iterator[int]:
        """Go to a neighbouring cell."""
        yield from self._face(cell)
        ahead = self._game.grid.get(*cell)
        if ahead is not None and not ahead.can_overlap():
            yield TOGGLE  # a door
        yield FORWARD

    def _face(self, cell: Cell) -> Iterator[int]:
        """Turn to a neighbouring cell."""
        turns = (around(self._cell).index(cell) - self._game.agent_dir) % 4
        yield from [LEFT] if turns == 3 else [RIGHT] * turns

    def _ways(self) -> Ways:
        """Return all cells that can be reached, each with the one before it on the way there."""
        ways: Ways = {self._cell: None}
        ahead = deque(ways)
        while ahead:
            here = ahead.popleft()
            for cell in around(here):
                if cell not in ways and self._lets_through(self._game.grid.get(*cell)):
                    ways[cell] = here
                    ahead.append(cell)
        return ways

    def _lets_through(self, thing: Any) -> bool:
        """Return whether a cell can be entered: nothing that ends the game, no door that is locked."""
        if thing is None or thing.type == "floor":
            return True
        return thing.type == "door" and not thing.is_locked

    def _is_thing(self, cell: Cell) -> bool:
        found = self._game.grid.get(*cell)
        return found is not None and found.can_pickup()


def around(cell: Cell) -> list[Cell]:
    """Return the neighbours of a cell, in the directions of `STEPS`."""
    return [(cell[0] + right, cell[1] + down) for right, down in STEPS]

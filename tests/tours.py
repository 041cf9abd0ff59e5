"""Ways away and back that a player announced: where each begins, turns round and ends."""

# T frames of an episode

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

BACK = " back"


@dataclass(frozen=True, slots=True)
class Tour:
    """A way that leads back to the pose where it began; all are frames of an episode.

    Attributes:
        kind: What the player calls it: turn-around, leave-and-return or loop.
        begin: The first frame at which it acts.
        back: The first frame at which it undoes what it did; `end` if it goes on ahead until it is back.
        end: The frame that its last action leads to.
    """

    kind: str
    begin: int
    back: int
    end: int


def find_tours(players: Sequence[str]) -> list[Tour]:
    """Return the tours of an episode that are complete, in order.

    Args:
        players: For each of the T frames who acted there, as recorded: the kind of the tour, followed by
            ` back` where it is undone, or empty. Two tours have frames between them that belong to neither.
    """
    tours: list[Tour] = []
    frame = 0
    for kind, names in groupby(players, key=lambda name: name.removesuffix(BACK)):
        names = list(names)
        end = frame + len(names)
        if kind and end < len(players):
            back = next((i for i, name in enumerate(names) if name.endswith(BACK)), len(names))
            tours.append(Tour(kind, frame, frame + back, end))
        frame = end
    return tours

"""Players: a person and programs, of which any may take over in the middle of an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from worldsim.play.session import Player


class Players:
    """Some players, one of whom plays.

    Args:
        players: By name, in the order in which they take turns.
        seed: For those who draw; each beginning and each takeover gets the next.

    Attributes:
        name: Name of who plays at the moment.
    """

    def __init__(self, players: Mapping[str, Player], first: str, seed: int = 0) -> None:
        if first not in players:
            raise ValueError(f"there is no player {first!r}; there are {', '.join(players)}")
        self._players = dict(players)
        self.name = first
        self._seed = seed

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all of them, in order."""
        return tuple(self._players)

    def begin(self, frames: Sequence[np.ndarray] = (), name: str | None = None) -> None:
        """Reset who plays: with an episode, or after a jump to the middle of one.

        Args:
            frames: `[H, W, 3]` uint8, those shown until now, which somebody else played.
            name: Of another one who begins beside the one who plays.
        """
        player = self._players[name or self.name]
        player.reset(self._seed)
        self._seed += 1
        for frame in frames[:-1]:  # the last one is what it acts on
            player.watch(frame)

    def act(self, observation: np.ndarray, name: str | None = None) -> np.ndarray:
        """Return an action of who plays, or of another, `[axes]` int64, for `[H, W, 3]` uint8."""
        return self._players[name or self.name].act(observation)

    def switch(self, frames: Sequence[np.ndarray]) -> None:
        """Let the next one take over, who sees the frames it did not play, as `begin` says."""
        names = self.names
        self.name = names[(names.index(self.name) + 1) % len(names)]
        self.begin(frames)

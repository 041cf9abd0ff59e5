"""A mixture of players, of whom one plays each episode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from policies import streams
from policies.base import FloorPlan, Insider, Navigator, Policy, Pose


class MixedPolicy:
    """Let one of several players play an episode; its seed decides which.

    Args:
        players: The players by name.
        shares: For each name, how often that player plays, relative to the others.

    Raises:
        ValueError: If the shares are not of these players, or none is positive.
    """

    def __init__(self, players: Mapping[str, Policy], shares: Mapping[str, float]) -> None:
        values = list(shares.values())
        if players.keys() != shares.keys():
            raise ValueError(f"shares of {sorted(shares)} do not fit the players {sorted(players)}")
        if any(not 0 <= share < math.inf for share in values) or not sum(values):
            raise ValueError(f"shares must be 0 or more, and not all of them 0, got {dict(shares)}")
        self._players = [players[name] for name in shares]
        self._shares = np.array(values) / sum(values)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Choose who plays this episode."""
        choice = np.random.default_rng((seed, streams.MIXED)).choice(len(self._players), p=self._shares)
        self.player = self._players[int(choice)]
        self.player.reset(seed)

    def join(self, game: Any) -> None:
        """Give the game to those who play from inside of it."""
        for player in self._players:
            if isinstance(player, Insider):
                player.join(game)

    def enter(self, plan: FloorPlan) -> None:
        """Tell the chosen player its map, if it wants to know."""
        if isinstance(self.player, Navigator):
            self.player.enter(plan)

    def locate(self, pose: Pose) -> None:
        """Tell the chosen player where it is, if it wants to know."""
        if isinstance(self.player, Navigator):
            self.player.locate(pose)

    @property
    def start(self) -> str:
        """Where the episode should begin for the chosen player."""
        return self.player.start if isinstance(self.player, Insider) else ""

    def inform(self, labels: Mapping[str, float]) -> None:
        """Tell the chosen player what is known of the frame, if it wants to know."""
        if isinstance(self.player, Insider):
            self.player.inform(labels)

    @property
    def activity(self) -> str:
        """What the chosen player calls what it does; empty if it has no name for it."""
        return self.player.activity if isinstance(self.player, Navigator) else ""

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the chosen player's next action, `[axes]` int64."""
        return self.player.act(observation)

    def watch(self, observation: np.ndarray) -> None:
        """Let the chosen player see a frame at which somebody else acts."""
        self.player.watch(observation)

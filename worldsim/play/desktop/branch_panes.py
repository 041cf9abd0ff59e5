"""The present moment in panes: under several seeds, or played by several players, until one is picked."""

from __future__ import annotations

from enum import Enum

import numpy as np
import pygame

from worldsim.play.branches import Branches
from worldsim.play.players import Players
from worldsim.play.session import NUM_WATCHED, PlaySession
from worldsim.ui.window import Window

NUM_PANES = 4


class Kind(Enum):
    """In what the branches differ."""

    SEEDS = "seeds"
    PLAYERS = "players"


class BranchPanes(Branches):
    """Play the present moment on in 2 x 2 panes. The session stays where it is until one is picked.

    Args:
        players: Who plays: under several seeds the one whose turn it is, who sees the pane that is chosen.
        kind: In what they differ.
    """

    def __init__(self, session: PlaySession, players: Players, kind: Kind) -> None:
        self.kind, self.chosen = kind, 0
        self._session, self._players = session, players
        names = players.names[:NUM_PANES] if kind is Kind.PLAYERS else (players.name,) * NUM_PANES
        self._names = names
        self._before = session.recent_frames(NUM_WATCHED)
        super().__init__(session.env.simulator, session.env.get_state(), len(names), NUM_WATCHED)
        if kind is Kind.PLAYERS:
            for name in names:
                players.begin(self._before, name)

    @property
    def labels(self) -> list[str]:
        """What is written into each pane."""
        if self.kind is Kind.PLAYERS:
            return list(self._names)
        return [f"seed {number + 1}" for number in range(len(self._names))]

    def choose_next(self) -> None:
        """Choose the next pane."""
        self.chosen = (self.chosen + 1) % len(self._names)

    def handle(self, event: pygame.event.Event, window: Window) -> bool:
        """Choose the pane under the mouse; returns whether it was clicked on."""
        if event.type not in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN):
            return False
        pane = window.pane_at(event.pos)
        if pane is None or pane >= len(self._names):
            return False
        self.chosen = pane
        return event.type == pygame.MOUSEBUTTONDOWN

    def act(self) -> np.ndarray:
        """Return the next frames `[panes, H, W, 3]` uint8; show them, then call `finish`."""
        frames = self.frames
        if self.kind is Kind.PLAYERS:
            pairs = zip(self._names, frames, strict=True)
            actions = np.stack([self._players.act(frame, name) for name, frame in pairs])
        else:
            actions = np.repeat(self._players.act(frames[self.chosen])[None], len(frames), axis=0)
        return self.begin(actions)

    def pick_chosen(self) -> None:
        """Play on from the chosen pane, with who played it.

        Raises:
            WorldError: If the recording so far cannot be finished; play goes on from the pane all the same.
        """
        state, frames = self.pick(self.chosen)
        self._players.name = self._names[self.chosen]
        before = [*self._before, *frames][-NUM_WATCHED:]
        self._session.go_to(state, self._session.start, self._session.score or 0.0, before=before)

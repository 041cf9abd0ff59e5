"""The real game as a dreamer: played again from the seeds of its recordings, then under other actions."""

# B batch, K frames, A action axes, H W frame size

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import ClipBatch, Recordings
from worldsim.games.entry import GameEntry


class GameDreams:
    """A perfect world: the game itself, from where the clips of its recordings end.

    A context manager, that ends the game.

    Args:
        entry: What was recorded.
        recordings: The episodes.

    Raises:
        WorldError: If an episode does not say which game it was, it was drawn in another way then, or it
            cannot be opened.
    """

    def __init__(self, entry: GameEntry, recordings: Recordings) -> None:
        self._tables, self._folder = recordings.tables(), recordings.folder
        if any(table.game_seed is None for table in self._tables):
            raise WorldError(f"{recordings.folder} does not record which games were played")
        if f"{entry.game}, " not in recordings.info.source:
            raise WorldError(
                f"{recordings.folder} was recorded of another game than {entry.game} "
                f"({recordings.info.source})"
            )
        self._game = entry.open()

    def __enter__(self) -> GameDreams:
        return self

    def __exit__(self, *_: Any) -> None:
        self._game.close()

    def dream(self, batch: ClipBatch, actions: Tensor) -> Tensor:
        """Return the frames that follow; after an end the last one stays."""
        shown = []
        for clip, row in zip(batch.clips, actions.numpy(), strict=True):
            table = self._tables[clip.episode]
            assert table.game_seed is not None, "was looked for"
            seen = self._game.reset(table.game_seed, table.game_start)
            last = clip.begin + batch.frames.shape[1] - 1
            for action in table.actions[:last]:
                seen = self._game.step(action)
            frames = []
            for action in row:
                if not (seen.terminated or seen.truncated):
                    seen = self._game.step(action)
                frames.append(seen.frame)
            shown.append(np.stack(frames))
        return torch.from_numpy(np.stack(shown))

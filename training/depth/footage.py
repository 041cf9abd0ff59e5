"""Footage with depth: frames of games of Doom, and how far it is in them."""

# T frames, S strips across a picture

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

import policies
from policies.scripted.depth import FARTHEST, NEAREST, NUM_STRIPS
from worldsim.errors import WorldError
from worldsim.games.doom import DoomEntry, DoomGame
from worldsim.games.registry import find_game

UNITS = 7.1  # map units of a step of the engine's depth, by the floor at known rows
EYE_LEVEL = slice(54, 62)  # rows
EPISODE_FRAMES, SPACING = 240, 4
BLUR, GAIN, OFFSET, NOISE = (0.3, 1.6), (0.6, 1.4), 20.0, 6.0  # dreams are softer than the game


class DepthGame(DoomGame):
    """A game of Doom that tells the depth of what it draws."""

    def depths(self) -> np.ndarray:
        """Return how far it is in each strip at eye level, `[S]`, in map units."""
        drawn = self._game.get_state().depth_buffer[EYE_LEVEL].astype(np.float32)
        strips = np.median(drawn, axis=0).reshape(NUM_STRIPS, -1)
        return np.clip(UNITS * np.median(strips, axis=1), NEAREST, FARTHEST)

    def _configure(self, vizdoom: ModuleType) -> None:
        super()._configure(vizdoom)
        self._game.set_depth_buffer_enabled(True)


def record(games: Sequence[str], num_frames: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return frames `[H, W, 3]` of each game as explorers see them, and their depths `[T, S]`.

    Raises:
        WorldError: If there is no such game, or it is none of Doom.
    """
    frames, depths = [], []
    entries = [find_game(name) for name in games]  # a wrong name is found before the first is played
    for entry in entries:
        if not isinstance(entry, DoomEntry):
            raise WorldError(f"{entry.name} tells no depth: name games of Doom")
    for entry in entries:
        assert isinstance(entry, DoomEntry)
        game = DepthGame(entry)
        with game, tqdm(total=num_frames, desc=entry.name, unit="frame") as bar:
            for frame, depth in explore(game, seed):
                frames.append(frame)
                depths.append(depth)
                bar.update()
                if bar.n == num_frames:
                    break
    return frames, np.stack(depths)


def explore(game: DepthGame, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames and depths of a game without end, a player that runs into walls, too."""
    num_values = game.entry.actions.num_values
    player = policies.SCRIPTED[next(iter(policies.find_scripted(num_values)))](num_values)
    while True:
        seen = game.reset(seed)
        player.reset(seed)
        seed += 1
        for number in range(EPISODE_FRAMES):
            seen = game.step(player.act(seen.frame))
            if seen.terminated or seen.truncated:
                break
            if number % SPACING == 0:
                yield seen.frame, game.depths()


def degrade(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a frame as a dream may draw it: softer, brighter or darker, with noise."""
    width = rng.uniform(*BLUR)
    weights = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * width**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    planes = torch.from_numpy(frame).float().movedim(-1, 0)[:, None]
    soft = functional.conv2d(functional.pad(planes, (3,) * 4, mode="replicate"), kernel[None, None])
    shown = soft[:, 0].movedim(0, -1).numpy() * rng.uniform(*GAIN) + rng.uniform(-OFFSET, OFFSET)
    shown += rng.normal(scale=rng.uniform(0, NOISE), size=shown.shape)
    return np.clip(shown, 0, 255).astype(np.uint8)

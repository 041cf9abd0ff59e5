"""A depth estimator: from one picture, how far it is to what stands at eye level in each part of its width.

A small network over vertical strips, trained on the depth that the engine of Doom knows
(`python -m training.depth`). It sees how wall, floor and ceiling meet, not which textures they have.
"""

# N strips across the picture, R blocks down a strip, F features of a strip and its neighbours

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

WEIGHTS = Path(__file__).with_name("depth.safetensors")
NUM_STRIPS, NUM_ROWS = 20, 15
NEAREST, FARTHEST = 16.0, 512.0
"""Bounds of what it tells, in map units of Doom, where the player is 32 wide."""
STEEP = 4.0  # differences of neighbouring pixels are small beside the colours


class DepthEstimator:
    """Estimates depths from pictures.

    Args:
        tensors: Mean and deviation of the features, `[F]`; weights `[in, out]` and biases of three layers.
    """

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self._mean, self._deviation = tensors["mean"], tensors["deviation"]
        self._layers = [(tensors[f"weight{n}"], tensors[f"bias{n}"]) for n in range(3)]

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return the depth of each strip of `frame` `[H, W, 3]` uint8, `[N]` in map units, left to right."""
        seen = (strip_features(frame) - self._mean) / self._deviation
        for number, (weight, bias) in enumerate(self._layers):
            seen = seen @ weight + bias
            if number + 1 < len(self._layers):
                seen = np.maximum(seen, 0.0)
        return np.exp(np.clip(seen[:, 0], np.log(NEAREST), np.log(FARTHEST)))


@cache
def depth_estimator() -> DepthEstimator:
    """Return the one that ships."""
    return DepthEstimator({name: tensor.astype(np.float32) for name, tensor in load_file(WEIGHTS).items()})


def strip_features(frame: np.ndarray) -> np.ndarray:
    """Return what is seen of each strip of `frame` `[H, W, 3]` uint8 and its two neighbours, `[N, F]`.

    Colours of blocks, and how much brightness changes across and down in them; rows and columns that do not
    fill a block are left out.
    """
    height, width = (frame.shape[0] // NUM_ROWS) * NUM_ROWS, (frame.shape[1] // NUM_STRIPS) * NUM_STRIPS
    picture = frame[:height, :width].astype(np.float32) / 255
    bright = picture.mean(axis=-1)
    across = np.abs(np.diff(bright, axis=1, append=bright[:, -1:]))
    down = np.abs(np.diff(bright, axis=0, append=bright[-1:]))
    planes = np.concatenate([picture, STEEP * across[..., None], STEEP * down[..., None]], axis=-1)
    blocks = planes.reshape(NUM_ROWS, height // NUM_ROWS, NUM_STRIPS, width // NUM_STRIPS, -1)
    strips = blocks.mean(axis=(1, 3)).transpose(1, 0, 2).reshape(NUM_STRIPS, -1)
    padded = np.pad(strips, ((1, 1), (0, 0)), mode="edge")
    return np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)

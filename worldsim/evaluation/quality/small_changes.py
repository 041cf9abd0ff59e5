"""Small things that move: where a frame changed much more than the rest of it did. Pure functions.

PSNR hardly sees whether a missile in flight is drawn: it covers a hundredth of the picture. Here only such
places count. If the whole picture changes alike (a turn, a flash), nothing stands out. A thing that moves
changes the picture twice, where it came to and where it was: if it merely vanishes, about half of the change
is there.
"""

# N pairs of frames, F frames of a sequence, H W frame size, R C rows and columns of cells

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worldsim.evaluation.metrics import as_images

CELL = 8
"""Side of a cell in pixels."""
MAX_SHARE = 0.01
"""Of the cells of a frame: so many at most stand out."""
OUTSTANDING = 8.0
"""How many times the median of its frame a cell's squared change must be."""
STILL = (8 / 255) ** 2
"""Mean squared change of pixels in [0, 1] up to which nothing moves: what video compression leaves."""


def squared_difference(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean squared difference of two frames in each cell, `[N, R, C]` fp32, of pixels in [0, 1].

    Cells at the right and the lower edge may be smaller.
    """
    squared = (as_images(after) - as_images(before)).square().mean(dim=1)
    return functional.avg_pool2d(squared[:, None], CELL, ceil_mode=True)[:, 0]


def standing_out(change: Tensor) -> Tensor:
    """Return which cells of `[N, R, C]` squared changes stand out from their frame, `[N, R, C]` bool.

    They are among the `MAX_SHARE` of the frame with the largest change (one cell at least), and their
    change is above `STILL` and above `OUTSTANDING` times the frame's median. Often there are none.
    """
    flat = change.flatten(1)
    largest = flat.topk(max(1, round(MAX_SHARE * flat.shape[1])), dim=1).indices
    is_largest = torch.zeros_like(flat, dtype=torch.bool).scatter(1, largest, True)
    bound = (OUTSTANDING * flat.median(dim=1, keepdim=True).values).clamp(min=STILL)
    return (is_largest & (flat > bound)).view(change.shape)


def outstanding_energy(before: Tensor, after: Tensor) -> Tensor:
    """Return the squared change to the next frame, `[N]`, summed over the cells that stand out."""
    change = squared_difference(before, after)
    return (change * standing_out(change)).sum(dim=(1, 2))


def outstanding_error(before: Tensor, after: Tensor, predicted: Tensor) -> Tensor:
    """Return the squared error of predicted frames in the cells that stand out, summed over each, `[N]`.

    Copying the frame before has the error `outstanding_energy(before, after)`. The real change from `before`
    to `after` says which cells stand out; `predicted` is in the place of `after`.
    """
    chosen = standing_out(squared_difference(before, after))
    return (squared_difference(after, predicted) * chosen).sum(dim=(1, 2))


def energies(last: Tensor, frames: Tensor) -> Tensor:
    """Return the `outstanding_energy` `[N, F]` of frames `[N, F, H, W, 3]` after `last` `[N, 1, H, W, 3]`."""
    sequence = torch.cat([last, frames], dim=1).unbind(1)
    pairs = zip(sequence[:-1], sequence[1:], strict=True)
    return torch.stack([outstanding_energy(before, after) for before, after in pairs], dim=1)


def errors(before: Tensor, real: Tensor, predicted: Tensor) -> Tensor:
    """Return the `outstanding_error` of predictions of `real` frames, all `[N, F, H, W, 3]`, `[N, F]`."""
    triples = zip(before.unbind(1), real.unbind(1), predicted.unbind(1), strict=True)
    return torch.stack([outstanding_error(*frames) for frames in triples], dim=1)

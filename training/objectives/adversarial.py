"""Loss of pairs of a real and a made thing, of a critic and of the network that it judges."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def pair_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Return how far one of two scores is from being above the other: `softplus(worse - better)`, the mean.

    RpGAN (arXiv 2501.05441, eq. 2). The critic's loss has the real one's score for the better, that of the
    network it judges its own.

    Args:
        better: Scores or logits of any shape.
        worse: Of the same shape, those of the other of each pair.
    """
    return functional.softplus(worse - better).mean()

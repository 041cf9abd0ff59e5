"""Heads for the reward and the end of an episode, on the commit pass."""

# G any leading sizes, N tokens per frame, D model width, H pooling heads

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from worldsim.model.linear import Linear, at_least_fp32

HIDDEN = 128
"""Width of a head's hidden layer."""
PRIOR_END = 0.01
"""Probability of an end that a fresh head gives: it need not first learn that ends are rare."""


class OutcomeHeads(nn.Module):
    """Pool a committed frame's tokens, and predict reward and end from what was pooled (docs/decisions/0017).

    Args:
        dim: Model width.
        num_heads: How many weighted means of the tokens are taken, each of its own features.

    Attributes:
        is_detached: Whether gradients stop before the tokens: the network under the heads then learns nothing
            from them.
    """

    is_detached: bool = False

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.score = Linear(dim, num_heads)
        self.value = Linear(dim, dim)
        self.reward = nn.Sequential(Linear(dim, HIDDEN), nn.SiLU(), Linear(HIDDEN, 1))
        self.end = nn.Sequential(Linear(dim, HIDDEN), nn.SiLU(), Linear(HIDDEN, 1))
        nn.init.zeros_(self.score.weight)  # the plain mean at first
        nn.init.zeros_(self.score.bias)
        for head, prior in ((self.reward, 0.0), (self.end, math.log(PRIOR_END / (1 - PRIOR_END)))):
            last = head[-1]
            assert isinstance(last, Linear)
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, prior)

    def pack(self, num_rows: int) -> None:
        """Reorder weights for inference where this machine can; `num_rows` is the tokens of a frame."""
        for layer in (self.score, self.value):
            layer.pack(num_rows)
        for layer in (*self.reward, *self.end):
            if isinstance(layer, Linear):
                layer.pack(1)

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the summary `[G, D]`, at least fp32, of a frame's tokens `[G, N, D]`.

        A mean over all tokens would drown the one that shows a fireball: each token is first judged by
        itself, then each of H heads weighs the tokens in its own way.
        """
        tokens = tokens.detach() if self.is_detached else tokens
        entered = functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        weights = at_least_fp32(self.score(entered)).softmax(-2)  # [G, N, H]
        values = at_least_fp32(self.value(entered, gelu=True)).unflatten(-1, (weights.shape[-1], -1))
        return (weights.unsqueeze(-1) * values).sum(-3).flatten(-2)  # [G, N, H, D / H] to [G, D]

    def forward(self, summary: Tensor) -> tuple[Tensor, Tensor]:
        """Judge summaries `[G, D]`.

        Returns:
            The expected reward in the units of training, 0 for the mean and 1 for a standard deviation more,
            and the logit of an end before calibration; `[G]` each, at least fp32.
        """
        x = functional.layer_norm(summary, summary.shape[-1:], eps=1e-6)
        return at_least_fp32(self.reward(x)).squeeze(-1), at_least_fp32(self.end(x)).squeeze(-1)

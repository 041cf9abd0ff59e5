"""Motion as two frames show it: the flow of the picture's parts, and the step that explains most of it.

Latents hold brightness finely enough to be read out by a linear map, so that parts of the picture are found
again in the next frame to a fraction of a pixel. How far a part flies for a step of the player depends on
how far away it is, which a small network tells from the strip of the picture it lies in, and on what it is: a
weapon, a monster or a plain wall tells nothing. The step that explains most of the parts is what is seen.
"""

# G pairs of frames, C h w latent size, R x K parts of a picture, Y X shifts

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

POINTS = 4
"""Brightness is read at so many points down and across a cell of latents."""
REACH = (4, 10)
"""Points, down and to the right, that a part is looked for."""
PART = (1, 2)
"""Rows and columns of latents of a part of the picture."""
STRIP_WIDTH = 48
STEADY = 2e-4
"""Of squared differences of brightness, whose range is 0 to 1: less is noise."""
FREEDOM = 2.0
"""Degrees of freedom of Student's t, which errors of flow follow: some parts fly as they like."""
LEAST = 1e-2
"""Information about a displacement that is had without looking, in its units."""
ROUNDS = 4
ALIKE = 0.999
"""By which correlations are read: the rounding of fp16 leaves information positive definite then."""
NUM_TOLD = 9


class Flow(nn.Module):
    """Where the parts of a picture are found again in the next.

    Args:
        channels: Of latents.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(POINTS**2, channels, 3, 3))
        self.register_buffer("bias", torch.zeros(POINTS**2))

    weight: Tensor
    bias: Tensor

    def brightness(self, latents: Tensor) -> Tensor:
        """Return brightness `[G, POINTS h, POINTS w]` fp32, about 0 to 1, of latents `[G, C, h, w]`."""
        read = functional.conv2d(latents.float(), self.weight, self.bias, padding=1)
        return functional.pixel_shuffle(read, POINTS)[:, 0]

    def forward(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Return flow and how well it is known.

        Args:
            before: `[G, C, h, w]`, latents.
            after: Same shape, one frame later.

        Returns:
            Flow `[G, 2, R, K]` in points, to the right and down; the logarithm of how much worse the places
            beside it fit `[G, 2, R, K]`, minus infinity where it lies at the border of what is searched.
        """
        costs = matching_costs(self.brightness(before), self.brightness(after))
        return best_shifts(costs)


def matching_costs(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean squared difference of each part from the next picture, `[G, Y, X, R, K]`.

    As (a - b)^2 = a^2 + b^2 - 2 a b, whose products are a convolution: a tenth of the time of differences.

    Args:
        before: `[G, H, W]`, brightness.
        after: Same shape.
    """
    (down, right), (height, width) = REACH, (POINTS * PART[0], POINTS * PART[1])
    covered = before[..., : before.shape[2] // width * width]
    parts = covered.unfold(1, height, height).unfold(2, width, width)  # [G, R, K, points of a part]
    padded = functional.pad(after.unsqueeze(1), (right, right, down, down), mode="replicate")
    room = (height + 2 * down, width + 2 * right)
    searched = padded.squeeze(1).unfold(1, room[0], height).unfold(2, room[1], width)
    columns = parts.shape[2]
    searched = searched[:, :, :columns].flatten(0, 2)
    products = functional.conv2d(
        searched.unsqueeze(0), parts.flatten(0, 2).unsqueeze(1), groups=len(searched)
    )
    squares = functional.avg_pool2d(padded.square(), (height, width), stride=1).squeeze(1)
    squares = squares.unfold(1, 2 * down + 1, height).unfold(2, 2 * right + 1, width)[:, :, :columns]
    own = parts.square().mean((3, 4), keepdim=True)
    costs = own + squares - 2 / (height * width) * products.view(squares.shape)
    return costs.clamp_min(0).permute(0, 3, 4, 1, 2)


def best_shifts(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least costly shift of each part, between shifts by a parabola; see `Flow.forward`."""
    _, down, right = costs.shape[:3]
    flat = costs.flatten(1, 2)
    least, place = flat.min(1)
    y, x = place // right, place % right

    def at(y: Tensor, x: Tensor) -> Tensor:
        return flat.gather(1, (y.clamp(0, down - 1) * right + x.clamp(0, right - 1)).unsqueeze(1)).squeeze(1)

    flows, known = [], []
    for shift, last, (low, high) in (
        (x, right - 1, (at(y, x - 1), at(y, x + 1))),
        (y, down - 1, (at(y - 1, x), at(y + 1, x))),
    ):
        steepness = (low + high - 2 * least).clamp_min(0)
        between = (0.5 * (low - high) / (steepness + STEADY)).clamp(-0.5, 0.5)
        flows.append(shift - last // 2 + between)
        is_inside = (shift > 0) & (shift < last)
        known.append((steepness + STEADY).log().masked_fill(~is_inside, -torch.inf))
    return torch.stack(flows, dim=1), torch.stack(known, dim=1)


class Sight(nn.Module):
    """Estimate a displacement from two frames alone, and how well each of its parts is known.

    Displacements are counted in units (`odometry.UNITS`).

    Args:
        latent_shape: Channels, height and width of latents.
    """

    def __init__(self, latent_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = latent_shape
        rows, columns = height // PART[0], width // PART[1]
        self.flow = Flow(channels)
        self.answers = nn.Parameter(torch.zeros(2, 3, rows, columns))
        """Flow of each part for a unit of forward, left and turn, at its usual distance."""
        self.bends = nn.Parameter(torch.zeros(2, rows, columns))
        """Flow of each part for the square of a turn: a picture is plane, a turn is not."""
        self.strips = nn.Sequential(
            nn.Conv1d(channels * height, STRIP_WIDTH, 2 + PART[1], stride=PART[1], padding=1),
            nn.SiLU(),
            nn.Conv1d(STRIP_WIDTH, 3 * rows, 1),
        )
        self.usual = nn.Parameter(torch.zeros(3, rows, columns))
        self.trust = nn.Parameter(torch.zeros(2, 2))

    @staticmethod
    def min_weights(latent_shape: tuple[int, int, int]) -> int:
        """Return the number of weights of what reads latents of this shape."""
        channels, height, _ = latent_shape
        return channels * (9 * POINTS**2 + height * STRIP_WIDTH * (2 + PART[1]))

    def responses(self, before: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return the flow of each part for a unit of each displacement, and the error of flows.

        Args:
            before: `[G, C, h, w]`, latents.
            known: `[G, 2, R, K]`, of `Flow`.

        Returns:
            `[G, 2, 3, R, K]` points a unit; the logarithm of the scale of errors in points `[G, 2, R, K]`.
        """
        told = self.strips(before.float().flatten(1, 2)).unflatten(1, (3, -1)) + self.usual
        nearness = told[:, :1].clamp(-4, 4).exp()  # over the usual; a turn moves all distances alike
        answers = torch.cat(
            [
                self.answers[:, :2] * nearness.unsqueeze(1),
                self.answers[:, 2:].expand(len(before), -1, -1, -1, -1),
            ],
            dim=2,
        )
        certain = torch.einsum("gcrk,dc->gdrk", known.clamp_min(-9) + 6, self.trust)
        return answers, (told[:, 1:] - certain).clamp(-5, 5)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return what two frames say, `[G, NUM_TOLD]` fp32; `pack_told` says how.

        Args:
            before: `[G, C, h, w]`, latents.
            after: Same shape, one frame later.
        """
        flow, known = self.flow(before, after)
        answers, scale = self.responses(before, known)
        return pack_told(*explain(flow, answers, self.bends, scale, known.isfinite()))


def explain(
    flow: Tensor, answers: Tensor, bends: Tensor, scale: Tensor, is_found: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the displacement that explains flows best, and what is known of it.

    Iteratively reweighted least squares of errors after Student's t.

    Args:
        flow: `[G, 2, R, K]`.
        answers: `[G, 2, 3, R, K]`.
        bends: `[2, R, K]`.
        scale: `[G, 2, R, K]`, logarithm of the scale of errors.
        is_found: `[G, 2, R, K]` bool, which flows count.

    Returns:
        Displacement `[G, 3]` in units, and information about it `[G, 3, 3]`.
    """
    observed, design = flow.flatten(1), answers.transpose(1, 2).flatten(2)  # [G, N], [G, 3, N]
    sure = ((-2 * scale).exp() * is_found).flatten(1)
    least = LEAST * torch.eye(3, device=flow.device)
    moved, weights = flow.new_zeros(len(flow), 3), sure
    information = least.expand(len(flow), 3, 3)
    for number in range(ROUNDS):
        straight = observed - bends.flatten() * moved[:, 2:].square()
        if number:
            errors = straight - torch.einsum("gin,gi->gn", design, moved)
            weights = sure * (FREEDOM + 1) / (FREEDOM + errors.square() * sure)
        weighted = design * weights.unsqueeze(1)
        information = weighted @ design.transpose(1, 2)
        moved = solve_three(information + least, (weighted @ straight.unsqueeze(2)).squeeze(2))
    return moved, information


def solve_three(matrix: Tensor, right: Tensor) -> Tensor:
    """Return x `[..., 3]` of matrix x = right, of symmetric positive matrices `[..., 3, 3]`.

    By cross products: CUDA graphs cannot hold a solver that looks at its result.
    """
    first, second, third = matrix.unbind(-2)
    adjugate = torch.stack(
        [
            torch.linalg.cross(second, third),
            torch.linalg.cross(third, first),
            torch.linalg.cross(first, second),
        ],
        dim=-1,
    )
    determinant = (first * adjugate[..., 0]).sum(-1, keepdim=True)
    return torch.einsum("...ij,...j->...i", adjugate, right) / determinant.clamp_min(1e-12)


def pack_told(moved: Tensor, information: Tensor) -> Tensor:
    """Return `[..., NUM_TOLD]`: a displacement, the logarithm of what is known of each part, correlations.

    They are small numbers, so that fp16 keeps them.
    """
    known = information.diagonal(dim1=-2, dim2=-1) + LEAST
    root = known.rsqrt()
    shared = [information[..., i, j] * root[..., i] * root[..., j] for i, j in ((0, 1), (0, 2), (1, 2))]
    return torch.cat([moved.clamp(-8, 8), known.log(), torch.stack(shared, dim=-1)], dim=-1)


def unpack_told(told: Tensor) -> tuple[Tensor, Tensor]:
    """Return the displacement `[..., 3]` in units and the information `[..., 3, 3]` that were packed."""
    moved, known, shared = told.float().split(3, dim=-1)
    root = (known / 2).exp()
    ones = torch.ones_like(shared[..., 0])
    first, second, third = (ALIKE * shared).unbind(-1)
    rows = [
        torch.stack([ones, first, second], dim=-1),
        torch.stack([first, ones, third], dim=-1),
        torch.stack([second, third, ones], dim=-1),
    ]
    return moved, torch.stack(rows, dim=-2) * root.unsqueeze(-1) * root.unsqueeze(-2)


def mirrored_told(told: Tensor) -> Tensor:
    """Return what is told of frames seen in a mirror, of `[..., NUM_TOLD]`."""
    return told * told.new_tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0])

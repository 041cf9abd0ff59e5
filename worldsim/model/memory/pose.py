"""Keys that are a place and a direction: the player's pose turns the memory's keys.

A token looks along a ray from where the player stands. Its key turns with the ray's azimuth, the player's
position on the map and the token's row, so that what was seen in a direction from a place lies under the same
key whenever it is looked for from there. All turns but those of rows are whole multiples of kept angles: a
full turn of the head closes exactly, and the position is kept on a torus, as exact after frame 1,000,000 as
after frame 10.
"""

# B batch, F frames, N tokens per frame, H heads, D head width

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldsim.model.config import NUM_POSE_COORDINATES

CIRCUMFERENCE = 8192
"""Map units after which a position comes round to where it began."""
MAX_HEADING = 16
"""Greatest multiple of the heading: 20 could just tell the tokens of 40 columns in a full turn apart."""
COARSE_HEADING = 4
WAVELENGTHS = (64, 2048)
"""Shortest and longest, in map units, of what turns with the position."""
COARSE_WAVELENGTH = 512
"""Shortest of the first head, whose keys know that poses are near each other."""


def pose_multiples(layer: int, num_heads: int, head_width: int, keyed_places: bool = True) -> Tensor:
    """Return by which multiples of a token's coordinates the pairs of each head of a layer turn.

    Multiples of the heading, directions and wavelengths on the map (as many in each octave), and turns per
    row are drawn from one additive sequence of low discrepancy for all heads of all layers, so that each has
    others (M. Roberts, The unreasonable effectiveness of quasirandom sequences, 2018).

    Args:
        layer: Number of the layer.
        num_heads: Heads of a layer, H.
        head_width: Features of a head.
        keyed_places: Whether they turn with x and y at all; the multiples of heading and row are the same.

    Returns:
        `[H, head_width / 2, 4]` fp32: for the heading, x and y whole numbers, for the row an angle.
    """
    pairs = head_width // 2
    heads = torch.arange(num_heads, dtype=torch.float64)[:, None]
    number = (layer * num_heads + heads) * pairs + torch.arange(1, pairs + 1, dtype=torch.float64)
    ratio = 1.1673039782614187  # g^5 = g + 1: the golden ratio of four dimensions
    steps = ratio ** -torch.arange(1, NUM_POSE_COORDINATES + 1, dtype=torch.float64)
    spread = (0.5 + number[..., None] * steps) % 1  # [H, pairs, 4]
    is_coarse = (heads == 0) & (num_heads > 1)
    heading = torch.where(is_coarse, COARSE_HEADING, MAX_HEADING) + 0.5
    shortest = torch.where(is_coarse, COARSE_WAVELENGTH, WAVELENGTHS[0]).double()
    length = CIRCUMFERENCE / (shortest * (WAVELENGTHS[1] / shortest) ** spread[..., 1])
    direction = 2 * math.pi * spread[..., 2]
    per_row = torch.where(is_coarse, math.pi / 2, math.pi) * (2 * spread[..., 3] - 1)
    length = length * keyed_places
    whole = [heading * (2 * spread[..., 0] - 1), length * direction.cos(), length * direction.sin()]
    return torch.stack([*(each.round() for each in whole), per_row], dim=-1).float()


def pose_places(rows: int, columns: int, head_width: int, field_of_view: float) -> Tensor:
    """Return the coordinates of each token in a frame seen from pose 0, `[rows * columns, head_width / 2]`.

    Args:
        rows: Of tokens.
        columns: Of tokens.
        head_width: Features of a head.
        field_of_view: Horizontal, of a plane picture, in degrees.

    Returns:
        The azimuth of the token's centre in radians, counter-clockwise and so less to the right; 0 for x and
        y; the row's number; zeros.
    """
    focal = columns / 2 / math.tan(math.radians(field_of_view) / 2)  # in tokens
    azimuth = -torch.atan((torch.arange(columns, dtype=torch.float64) + 0.5 - columns / 2) / focal)
    places = torch.zeros(rows, columns, head_width // 2, dtype=torch.float64)
    places[..., 0] = azimuth
    places[..., 3] = torch.arange(rows, dtype=torch.float64)[:, None]
    return places.flatten(0, 1).float()


def pose_phases(poses: Tensor, head_width: int) -> Tensor:
    """Return the angles that are kept of poses, `[..., head_width / 2]` at least fp32 in [-pi, pi).

    Args:
        poses: `[..., 3]`: x and y in map units; heading in degrees, 0 along x and 90 along y.
        head_width: Features of a head.

    Returns:
        Heading, x and y as angles, then zeros.
    """
    wide = poses.double()
    turns = torch.stack([wide[..., 2] / 360, *(wide[..., :2] / CIRCUMFERENCE).unbind(-1)], dim=-1)
    angles = 2 * math.pi * (turns - (turns + 0.5).floor())
    angles = angles.to(torch.promote_types(poses.dtype, torch.float32))
    return torch.nn.functional.pad(angles, (0, head_width // 2 - angles.shape[-1]))


def kept_poses(angles: Tensor) -> Tensor:
    """Return the poses `[..., 3]` fp64 whose angles `[..., head_width / 2]` are kept (`pose_phases`).

    x and y are in [-4096, 4096) map units, the heading in [-180, 180) degrees.
    """
    heading, x, y = (angles[..., :3].double() / (2 * math.pi)).unbind(-1)
    return torch.stack([CIRCUMFERENCE * x, CIRCUMFERENCE * y, 360 * heading], dim=-1)


def pose_coordinates(angles: Tensor) -> tuple[Tensor, ...]:
    """Return the coordinates `[..., 1, 1]` each that keys turn with: azimuth, x, y and row, of kept angles.

    Args:
        angles: `[..., head_width / 2]`, of `pose_places` plus `pose_phases`.
    """
    return angles[..., None, :NUM_POSE_COORDINATES].split(1, dim=-1)


def moved_poses(poses: Tensor, origin: Tensor, turn: Tensor) -> Tensor:
    """Return poses as seen from a place, on a map that is turned about it.

    Args:
        poses: `[..., 3]`, as in `pose_phases`.
        origin: `[..., 3]`, whose x and y become 0.
        turn: `[...]` in degrees, counter-clockwise.
    """
    x, y = (poses - origin)[..., :2].unbind(-1)
    cos, sin = turn.deg2rad().cos(), turn.deg2rad().sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y, poses[..., 2] + turn], dim=-1)


def relative_poses(poses: Tensor) -> Tensor:
    """Return poses `[..., F, 3]` on a map on which the first of them is at x, y and heading 0."""
    first = poses[..., :1, :]
    return moved_poses(poses, first, -first[..., 2])


def pose_distances(poses: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far poses `[..., 3]` are apart, in map units and in degrees up to 180, `[...]` each."""
    apart = poses - others
    turn = torch.remainder(apart[..., 2] + 180, 360) - 180
    return apart[..., :2].norm(dim=-1), turn.abs()

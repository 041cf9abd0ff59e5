"""Path integration: the phase of the memory's keys follows where the player is, not what time it is.

A token's position in the memory branch is its place in the frame plus the path so far, p_f = p_{f-1} + u_f.
The path is kept as the angles that it turns each feature pair by, wrapped to 2 pi, so that it neither grows
nor loses precision: frame 1,000,000 turns keys exactly as frame 10 does. u_f is what an action is expected
to do, or with odometry what the committed frames show.
"""

# B batch, F frames, C latent channels, D head width, P coordinates of the path

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn

from worldsim.model.config import FINEST, NUM_FREE_COORDINATES, DenoiserConfig, MemoryKeys, MemoryPhase
from worldsim.model.linear import at_least_fp32
from worldsim.model.memory.state import MemoryState
from worldsim.model.rotary import frequencies, split_width

CIRCUMFERENCE = 1024
"""Tokens after which a path on PLANE keys comes round to where it began."""
UNIT = 2 * math.pi / CIRCUMFERENCE
"""Angle of one token along a coordinate of a path on PLANE keys. All turns are whole multiples of it, so that
it can be kept wrapped."""
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def plane_multiples(layer: int, num_heads: int, head_width: int, finest: float = FINEST) -> Tensor:
    """Return by which multiples of the path's angles the pairs of each head of a layer turn.

    Frequencies are spread evenly over a disc, as the seeds of a sunflower are, in each head and layer turned.

    Args:
        layer: Number of the layer.
        num_heads: Heads of a layer, H.
        head_width: Features of a head.
        finest: Greatest angle per token that pairs turn by. Those of the first head turn by half of it at
            most: fine keys tell neighbours apart, coarse ones know that they are near each other, from which
            displacements are learned.

    Returns:
        `[H, head_width / 2, 3]` fp32 whole numbers, for rows, columns, and the pair's free coordinate (0
        for pairs that have none).
    """
    pairs = head_width // 2
    number = torch.arange(pairs, dtype=torch.float64)
    heads = torch.arange(num_heads, dtype=torch.float64)
    radius = torch.where((heads == 0) & (num_heads > 1), finest / 2, finest)
    length = radius[:, None] * ((number + 0.5) / pairs).sqrt()  # [H, pairs]
    angle = GOLDEN_ANGLE * number + (layer * num_heads + heads[:, None])
    time = split_width(head_width)[0] // 2
    free = torch.zeros(num_heads, pairs, dtype=torch.float64)
    free[:, :time] = frequencies(2 * time)
    return (torch.stack([length * angle.cos(), length * angle.sin(), free], dim=-1) / UNIT).round().float()


def split_path(angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split angles `[..., head_width / 2]` kept for PLANE keys by what turns with them.

    Returns:
        The row's and the column's, `[..., 1, 1]`, and for each feature pair that of its free coordinate,
        `[..., 1, head_width / 2]`.
    """
    row, column, free, _ = angles.unsqueeze(-2).split(
        [1, 1, NUM_FREE_COORDINATES, angles.shape[-1] - 2 - NUM_FREE_COORDINATES], dim=-1
    )
    repeats = -(-angles.shape[-1] // NUM_FREE_COORDINATES)
    return row, column, torch.cat([free] * repeats, dim=-1)[..., : angles.shape[-1]]


def plane_places(rows: int, columns: int, head_width: int) -> Tensor:
    """Return the angles of each token's place on PLANE keys, `[rows * columns, head_width / 2]`."""
    places = torch.zeros(rows * columns, head_width // 2)
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places[:, :2] = UNIT * torch.stack(grid, dim=-1).flatten(0, 1)
    return places


def wrap(angles: Tensor) -> Tensor:
    """Return `angles` in [-pi, pi)."""
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


def coordinate_frequencies(head_width: int) -> Tensor:
    """Return how fast each coordinate of the path turns each pair, `[P, head_width / 2]`.

    The first two coordinates are a shift of the picture in tokens, down and to the right; they turn the
    pairs that hold a token's row and column. The free ones share the pairs that time turns in a video model.
    """
    time, height, width = split_width(head_width)
    table = torch.zeros(2 + NUM_FREE_COORDINATES, head_width // 2, dtype=torch.float64)
    table[0, time // 2 : (time + height) // 2] = frequencies(height)
    table[1, (time + height) // 2 :] = frequencies(width)
    owner = torch.arange(time // 2) % NUM_FREE_COORDINATES
    table[2 + owner, torch.arange(time // 2)] = frequencies(time)
    return table


def plane_table(head_width: int) -> Tensor:
    """Return how each coordinate of the path turns the kept angles on PLANE keys, `[P, head_width / 2]`.

    The first P angles are the coordinates themselves, in units of a token; the others stay zero.
    """
    return UNIT * torch.eye(2 + NUM_FREE_COORDINATES, head_width // 2, dtype=torch.float64)


def axes_phase(phase: Tensor, keys: MemoryKeys) -> Tensor:
    """Return by what a path turns the pairs of rows and columns, as `place_angles` does for a place.

    Args:
        phase: `[..., head_width / 2]`, the path's angles as they are kept.
        keys: What they are kept for. From PLANE keys frequencies become whole multiples of a unit, so that
            the wrapped path is exact: the slowest pairs no longer turn.

    Returns:
        `[..., head_width / 2]`, 0 for the pairs of time.
    """
    table = coordinate_frequencies(2 * phase.shape[-1])[:2]
    if keys is MemoryKeys.PLANE:
        rows, columns = (table / UNIT).round().to(phase)
        return phase[..., :1] * rows + phase[..., 1:2] * columns
    return phase * (table.sum(0) > 0).to(phase)


class ConstantMotion(nn.Module):
    """The same turn every frame: none at all, or one unit of time (the paper's clock)."""

    turn: Tensor

    def __init__(self, head_width: int, *, per_frame: float, keys: MemoryKeys = MemoryKeys.AXES) -> None:
        super().__init__()
        turn = torch.zeros(head_width // 2, dtype=torch.float64)
        time = split_width(head_width)[0]
        if keys is MemoryKeys.PLANE:
            turn[2 : 2 + NUM_FREE_COORDINATES] = per_frame * UNIT
        else:
            turn[: time // 2] = per_frame * frequencies(time)
        self.register_buffer("turn", wrap(turn).float(), persistent=False)

    def forward(self, latents: Tensor, action: Tensor, nothing: Tensor) -> Tensor:
        """Return the turn of one frame, `[..., head_width / 2]` fp32."""
        return self.turn.expand(*latents.shape[:-3], -1)


class Odometer(nn.Module):
    """Estimate a displacement from the two frames that it lies between, as visual odometry does.

    It is a function of both frames less the same of the exchanged ones: a picture that stands still is no
    displacement, and the way back is the way there with the other sign, whatever has been learned.
    """

    def __init__(self, latent_shape: tuple[int, int, int], hidden: int = 48) -> None:
        super().__init__()
        channels, height, width = latent_shape
        self.look = nn.Conv2d(2 * channels, hidden, 3, stride=2, padding=1)
        self.compare = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1)
        rows, columns = (math.ceil(math.ceil(size / 2) / 2) for size in (height, width))
        self.out = nn.Linear(hidden * rows * columns, 2 + NUM_FREE_COORDINATES, bias=False)
        nn.init.normal_(self.out.weight, std=0.002)  # at rest, yet within reach

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return `[..., P]` in tokens, of frames `[..., C, h, w]`."""
        leading = before.shape[:-3]
        there, back = torch.cat([before, after], dim=-3), torch.cat([after, before], dim=-3)
        pairs = torch.stack([there, back]).flatten(0, -4).to(self.look.weight.dtype)
        seen = nn.functional.silu(self.compare(nn.functional.silu(self.look(pairs))))
        forth, again = self.out(seen.flatten(1)).unflatten(0, (2, *leading)).unbind(0)
        return forth - again


class PathMotion(nn.Module):
    """Predict the player's displacement from the action and the committed frame before it.

    With PLANE keys it is what the action adds to pressing nothing: who presses nothing is where he was. Else
    all frames drift alike at first, like a clock, before any of the actions has come to mean something.

    With `odometry`, what the path goes on from is not the prediction, but what the committed frame shows.
    """

    table: Tensor

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        dim: int,
        head_width: int,
        hidden: int = 192,
        keys: MemoryKeys = MemoryKeys.AXES,
        odometry: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = latent_shape
        self.pool = nn.AvgPool2d(4)
        self.view = nn.Linear(channels * (height // 4) * (width // 4), hidden)
        self.intent = nn.Linear(dim, hidden, bias=False)
        self.out = nn.Linear(hidden, 2 + NUM_FREE_COORDINATES)
        # Starts at rest, yet within reach: a unit is one token, a turn of the head moves the picture by
        # about one.
        nn.init.zeros_(self.out.bias)
        nn.init.normal_(self.out.weight, std=0.02)
        table = plane_table(head_width) if keys is MemoryKeys.PLANE else coordinate_frequencies(head_width)
        self.register_buffer("table", table.float(), persistent=False)
        self.is_relative = keys is MemoryKeys.PLANE
        self.odometer = Odometer(latent_shape) if odometry else None

    def displacement(self, latents: Tensor, action: Tensor, nothing: Tensor) -> Tensor:
        """Return u_f, `[..., P]` in tokens (rows, columns, free), of the last latents and the action.

        Args:
            latents: `[..., C, h, w]`, the committed frame before this one.
            action: `[..., dim]`, the embedding of the action that leads to this frame.
            nothing: `[dim]`, the embedding of pressing nothing.
        """
        pooled = (
            self.pool(latents.to(self.view.weight.dtype).flatten(0, -4))
            .flatten(1)
            .unflatten(0, latents.shape[:-3])
        )
        view = self.view(pooled)
        if not self.is_relative:
            return self.out(nn.functional.silu(view + self.intent(action)))
        still = view + self.intent(nothing)
        moved = nn.functional.silu(still + self.intent(action - nothing)) - nn.functional.silu(still)
        return nn.functional.linear(moved, self.out.weight)

    def forward(self, latents: Tensor, action: Tensor, nothing: Tensor) -> Tensor:
        """Return the turn of one frame, `[..., head_width / 2]` fp32; see `displacement`."""
        return self._turn(self.displacement(latents, action, nothing))

    def measured(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the turn `[..., head_width / 2]` fp32 that two frames `[..., C, h, w]` show.

        Only with `odometry`.
        """
        assert self.odometer is not None
        return self._turn(self.odometer(before, after))

    def _turn(self, displacement: Tensor) -> Tensor:
        return at_least_fp32(displacement) @ self.table


def build_motion(config: DenoiserConfig) -> ConstantMotion | PathMotion:
    """Return the module that says how far a frame turns the memory's keys."""
    phase, keys = MemoryPhase(config.memory_phase), MemoryKeys(config.memory_keys)
    if phase is MemoryPhase.PATH:
        channels, height, width = config.latent_shape
        shape = (channels, height, width)
        return PathMotion(shape, config.dim, config.head_width, keys=keys, odometry=config.path_odometry)
    return ConstantMotion(config.head_width, per_frame=1.0 if phase is MemoryPhase.TIME else 0.0, keys=keys)


def has_odometry(motion: ConstantMotion | PathMotion) -> TypeGuard[PathMotion]:
    """Return whether the path goes on from what committed frames show."""
    return isinstance(motion, PathMotion) and motion.odometer is not None


def arrived_phase(
    motion: ConstantMotion | PathMotion, expected: Tensor, latents: Tensor, memory: MemoryState
) -> Tensor:
    """Return the path after one frame, `[B, D / 2]`, at least fp32.

    Args:
        motion: Of the model.
        expected: `[B, D / 2]`, the path at which the frame was looked for.
        latents: `[B, C, h, w]`, the frame as it is committed.
        memory: Before it. Where it is empty, the frame is the path's origin.
    """
    if not has_odometry(motion):
        return expected
    shown = at_least_fp32(motion.measured(memory.latents, latents))
    return wrap(memory.phase + torch.where((memory.num_committed > 0)[:, None], shown, 0.0))


def sequence_phases(
    motion: ConstantMotion | PathMotion, expected: Tensor, before: Tensor, clean: Tensor, memory: MemoryState
) -> tuple[Tensor, Tensor]:
    """Return the path that each frame of a sequence is looked for at, and after each, `[B, F, D / 2]`.

    Both at least fp32, not wrapped. With odometry the path up to a frame is what the frames before it show,
    and only the last displacement is an expectation; without, all of them are.

    Args:
        motion: Of the model.
        expected: `[B, F, D / 2]`, the turns that actions are expected to make.
        before: `[B, F, C, h, w]`, the clean frame before each.
        clean: `[B, F, C, h, w]`, the clean frames.
        memory: Before the first frame. Where it is empty, that frame is the path's origin.
    """
    expected = _from_origin(expected, memory)
    if not has_odometry(motion):
        phases = memory.phase[:, None] + expected.cumsum(1)
        return phases, phases
    shown = _from_origin(motion.measured(before, clean), memory)
    arrived = memory.phase[:, None] + shown.cumsum(1)
    return departures(arrived, memory) + expected, arrived


def departures(arrived: Tensor, memory: MemoryState) -> Tensor:
    """Return the path before each frame of a sequence, of the path after each; `[B, F, D / 2]`.

    A frame that begins the path leaves where it arrives.
    """
    begun = (memory.num_committed > 0)[:, None, None]
    first = torch.where(begun, memory.phase[:, None], arrived[:, :1])
    return torch.cat([first, arrived[:, :-1]], dim=1)


def expected_phases(turn: Tensor, memory: MemoryState, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the path at which the next frame is looked for, and before it, `[B, D / 2]` in [-pi, pi) each.

    Both at least fp32.

    Args:
        turn: `[B, D / 2]`, what the motion expects.
        memory: Before the frame. Where it is empty, the frame is the path's origin.
        given: `[B, D / 2]`, where the frame is, if it is known; the motion is not asked then.
    """
    begun = (memory.num_committed > 0)[:, None]
    if given is not None:
        return given, torch.where(begun, memory.phase, given)
    return wrap(memory.phase + torch.where(begun, at_least_fp32(turn), 0.0)), memory.phase


def _from_origin(turns: Tensor, memory: MemoryState) -> Tensor:
    """Return turns `[B, F, D / 2]`, at least fp32, without that of a frame that begins the path."""
    turns = at_least_fp32(turns)
    first = torch.where((memory.num_committed > 0)[:, None, None], turns[:, :1], 0.0)
    return torch.cat([first, turns[:, 1:]], dim=1)

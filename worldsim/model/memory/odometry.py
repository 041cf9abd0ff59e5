"""Odometry that is taught: how far the player moves in a frame, from actions and frames, and where that ends.

A displacement is (forward, left, turn) of one frame: map units along and across the heading half-way through
the frame's turn, and degrees counter-clockwise. A pose is (x, y, heading), as recordings hold it. The game's
hidden state (how long a key has been held, how fast the player still slides) is the state of a GRU.
"""

# B batch, F frames, C h w latent size, A action axes, H hidden numbers

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting
from worldsim.storage.files import shown, write_json
from worldsim.storage.tensors import (
    check_file,
    filling,
    load_weights,
    read_shape,
    save_weights,
    sha256_of,
    swap_folder,
)

WEIGHTS_FILE, SHAPE_FILE, SHAPE = "odometry.safetensors", "odometry.json", "odometry"
UNITS = (16.0, 16.0, 5.0)
"""What the network counts a displacement in: about what a frame of walking and of turning are in Doom."""
TORUS = 8192.0
"""Map units after which a kept position comes round: more than a Doom map is wide, and exact in fp32."""
PERIODS = (TORUS, TORUS, 360.0)
REACH = (1, 2)
SHIFTS = tuple((y, x) for y in (-1, 0, 1) for x in (-2, -1, 0, 1, 2))
"""Cells of half the latents' size, down and to the right, that a picture may have moved by: a turn of 7 degrees
is less than one, and sliding along a wall close by is two."""
LARGEST = 8192
"""Of any size of a network."""


def displacements_between(poses: Tensor) -> Tensor:
    """Return the displacement from each pose to the next.

    Args:
        poses: `[..., F + 1, 3]`, x and y in map units (wrapped by `wrap_poses` or not), heading in degrees.
            A frame must move less than half of what they come round after.

    Returns:
        `[..., F, 3]` fp64, forward and left in map units, turn in degrees.
    """
    poses = poses.double()
    x, y, turn = wrap_poses(poses[..., 1:, :] - poses[..., :-1, :]).unbind(-1)
    middle = torch.deg2rad(poses[..., :-1, 2] + turn / 2)
    forward, left = x * middle.cos() + y * middle.sin(), y * middle.cos() - x * middle.sin()
    return torch.stack([forward, left, turn], dim=-1)


def integrate(displacements: Tensor, origin: Tensor) -> Tensor:
    """Return the pose after each displacement: the inverse of `displacements_between`.

    It is computed in fp64: after 10,000 frames fp32 would be off by hundredths of a unit and of a degree.

    Args:
        displacements: `[..., F, 3]`.
        origin: `[..., 3]`, the pose before the first.

    Returns:
        `[..., F, 3]` fp64, not wrapped.
    """
    origin, (forward, left, turn) = origin.double(), displacements.double().unbind(-1)
    heading = origin[..., None, 2] + turn.cumsum(-1)
    middle = torch.deg2rad(heading - turn / 2)
    x = forward * middle.cos() - left * middle.sin()
    y = forward * middle.sin() + left * middle.cos()
    place = origin[..., None, :2] + torch.stack([x, y], dim=-1).cumsum(-2)
    return torch.cat([place, heading.unsqueeze(-1)], dim=-1)


def wrap_poses(poses: Tensor) -> Tensor:
    """Return poses `[..., 3]` with x and y in [-4096, 4096) on a torus and the heading in [-180, 180)."""
    periods = torch.tensor(PERIODS, dtype=poses.dtype, device=poses.device)
    return torch.remainder(poses + periods / 2, periods) - periods / 2


@dataclass(kw_only=True, slots=True)
class OdometryConfig:
    """Shape of an odometry network."""

    latent_shape: list[int] = setting([16, 16, 20], "Channels, height and width of a frame's latents.")
    num_values: list[int] = setting([3, 3, 3], "Number of values of each action axis.", minimum=1)
    encoder: str = setting("", "Digest of the encoder whose latents it reads.")
    hidden: int = setting(64, "Numbers that its recurrent unit keeps.", minimum=1, maximum=LARGEST)
    channels: int = setting(32, "Channels of its convolutions.", minimum=1, maximum=LARGEST)

    def __post_init__(self) -> None:
        check_settings(self)
        sizes = [*self.latent_shape, *self.num_values]
        is_shape = len(self.latent_shape) == 3 and len(self.num_values) > 0
        if not is_shape or not all(type(size) is int and 1 <= size <= LARGEST for size in sizes):
            raise WorldError(
                f"odometry needs channels, height and width of latents and the values of each action axis, "
                f"got {shown(self.latent_shape)} and {shown(self.num_values)}"
            )

    @property
    def min_weights(self) -> int:
        """Number of weights of its convolutions, and of what reads their last maps."""
        channels, height, width = self.latent_shape
        maps = 9 * (channels + 3 * self.channels) * self.channels
        return maps + 2 * self.channels * _quarter(height) * _quarter(width) * self.hidden


def correlate(before: Tensor, after: Tensor) -> Tensor:
    """Return how alike each cell of some maps is to the cells around it of others, as FlowNetC does.

    A shift of a picture is a matter of products: sums of both frames hardly show it (docs/decisions/0049).

    Args:
        before: `[G, M, h, w]`.
        after: Same shape.

    Returns:
        `[G, 15, h, w]` fp32, the cosine of a cell's features before and, in the order of `SHIFTS`, those of a
        cell beside it after; 0 beyond the edge.
    """
    rows, columns = before.shape[-2:]
    down, right = REACH
    first = functional.normalize(before.float(), dim=1).flatten(2)  # [G, M, h * w]
    second = functional.pad(functional.normalize(after.float(), dim=1), (right, right, down, down))
    alike = first.mT @ second.flatten(2)  # [G, h * w, cells of the padded maps]
    # All pairs in one product, of which few are read: a product for each shift takes a CPU longer.
    width = columns + 2 * right
    place = torch.arange(rows * columns, device=before.device)
    corner = place // columns * width + place % columns
    shifts = torch.tensor([(down + y) * width + right + x for y, x in SHIFTS], device=before.device)
    index = (corner[:, None] + shifts).expand(len(alike), -1, -1)
    return alike.gather(2, index).mT.unflatten(2, (rows, columns))


def _read_maps(channels: int, maps: int, size: tuple[int, int], features: int) -> nn.Sequential:
    """Return what reads features from maps at half size, keeping where things are."""
    return nn.Sequential(
        nn.Conv2d(channels, maps, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(maps * _quarter(size[0]) * _quarter(size[1]), features),
    )


class Odometry(nn.Module):
    """Estimate the displacement of each frame, before it is drawn and after.

    Three parts add up. The dynamics are a GRU's that knows nothing but actions and how far the player moved
    so far: how long a key has been held, how much of the last step is kept. The frame before tells whether
    there is room for it; with that the displacement is expected. Both frames then correct it, since a wall
    may have stopped the player.

    All behind the convolutions is computed in fp32 whatever autocast says: displacements add up, and the
    rounding of bf16 would be degrees after a hundred frames of turning.
    """

    units: Tensor

    def __init__(self, config: OdometryConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.latent_shape
        features, maps, num_buttons = config.hidden, config.channels, sum(config.num_values)
        self.look = nn.Conv2d(channels, maps, 3, stride=2, padding=1)
        self.scene = _read_maps(maps, maps, (height, width), features)
        self.change = _read_maps(2 * maps + len(SHIFTS), maps, (height, width), features)
        known = config.hidden + len(UNITS) + num_buttons
        self.gru = nn.GRUCell(num_buttons + len(UNITS), config.hidden)
        self.move = Head(known)
        self.foresee = Head(known + len(UNITS) + features)
        self.correct = Head(known + len(UNITS) + 2 * features)
        self.register_buffer("units", torch.tensor(UNITS), persistent=False)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the state `[B, H]` fp32 of a player of whom nothing is known."""
        return self.units.new_zeros(batch_size, self.config.hidden + len(UNITS))

    def expected(self, state: Tensor, actions: Tensor, before: Tensor) -> Tensor:
        """Return the displacement that an action is expected to make, before its frame is drawn.

        Args:
            state: `[B, H]` fp32, from `initial_state` or `shown`.
            actions: `[B, A]` integers, the action that leads to the next frame.
            before: `[B, C, h, w]`, latents of the frame committed last.

        Returns:
            `[B, 3]` fp32, forward and left in map units, turn in degrees.
        """
        scene = self.scene(self._maps(before)).float()
        with torch.autocast(state.device.type, enabled=False):
            return self.units * self._expected(torch.cat([state, self._buttons(actions)], dim=-1), scene)

    def shown(self, state: Tensor, actions: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Return the displacement that a frame shows, and the state after it.

        Args:
            state: `[B, H]` fp32, before this frame.
            actions: `[B, A]` integers, the action that led to it.
            before: `[B, C, h, w]`, latents of the frame before.
            after: `[B, C, h, w]`, of the frame.

        Returns:
            Displacement `[B, 3]` fp32 as from `expected`, and the state `[B, H]` fp32.
        """
        _, shown, state = self(state, actions.unsqueeze(1), torch.stack([before, after], dim=1))
        return shown.squeeze(1), state

    def forward(self, state: Tensor, actions: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `expected` and `shown` say of each frame of sequences, and the state at their end.

        Args:
            state: `[B, H]` fp32, before the sequences.
            actions: `[B, F, A]` integers, the actions that led to the frames after the first.
            frames: `[B, F + 1, C, h, w]`, latents; the first was seen before.

        Returns:
            Displacements `[B, F, 3]` fp32 as expected and as shown, and the state `[B, H]` fp32.
        """
        buttons = self._buttons(actions)
        batch, count = actions.shape[:2]
        maps = self._maps(frames.flatten(0, 1)).unflatten(0, (batch, count + 1))
        before, after = maps[:, :-1].flatten(0, 1), maps[:, 1:].flatten(0, 1)
        compared = (maps.shape[2] + 1) // 2  # half of the features tell cells apart
        alike = correlate(before[:, :compared], after[:, :compared])
        both = torch.cat([before, after, alike], dim=1)
        scenes = self.scene(before).float().unflatten(0, (batch, count))
        changes = self.change(both).float().unflatten(0, (batch, count))
        found = []
        with torch.autocast(frames.device.type, enabled=False):
            for pressed, scene, change in zip(
                buttons.unbind(1), scenes.unbind(1), changes.unbind(1), strict=True
            ):
                known = torch.cat([state, pressed], dim=-1)
                expected = self._expected(known, scene)
                shown = expected + self.correct(torch.cat([known, expected, scene, change], dim=-1))
                state = self._moved(state, pressed, shown)
                found.append(torch.stack([expected, shown]))
            expected, shown = (self.units * torch.stack(found, dim=2)).unbind(0)
            return expected, shown, state

    def dynamics(self, state: Tensor, actions: Tensor, displacements: Tensor) -> Tensor:
        """Return what actions do where nothing is in the way, of players whose movement so far is known.

        Args:
            state: `[B, H]` fp32, before the sequences.
            actions: `[B, F, A]` integers.
            displacements: `[B, F, 3]`, what came of each; read for the frames after it.

        Returns:
            `[B, F, 3]` fp32, displacements.
        """
        buttons, moved, found = self._buttons(actions), displacements.float() / self.units, []
        with torch.autocast(state.device.type, enabled=False):
            for pressed, step in zip(buttons.unbind(1), moved.unbind(1), strict=True):
                found.append(self.move(torch.cat([state, pressed], dim=-1)))
                state = self._moved(state, pressed, step)
        return self.units * torch.stack(found, dim=1)

    def _expected(self, known: Tensor, scene: Tensor) -> Tensor:
        """Return displacements `[B, 3]` in units, of state and buttons and of the frame before."""
        free = self.move(known)
        return free + self.foresee(torch.cat([known, free, scene], dim=-1))

    def _moved(self, state: Tensor, pressed: Tensor, step: Tensor) -> Tensor:
        """Return the state after a displacement in units."""
        hidden = self.gru(torch.cat([pressed, step], dim=-1), state[:, : -len(UNITS)])
        return torch.cat([hidden, step], dim=-1)

    def _buttons(self, actions: Tensor) -> Tensor:
        """Return which value each axis has, `[..., sum of values]` fp32 of 0 and 1."""
        columns = zip(actions.unbind(-1), self.config.num_values, strict=True)
        return torch.cat([functional.one_hot(column, count) for column, count in columns], dim=-1).float()

    def _maps(self, latents: Tensor) -> Tensor:
        """Return maps at half size of latents `[G, C, h, w]`."""
        return functional.silu(self.look(latents.float()))


class Head(nn.Module):
    """Three numbers from features, by a linear map and a layer between; they begin near 0."""

    def __init__(self, features: int, width: int = 128) -> None:
        super().__init__()
        self.straight = nn.Linear(features, len(UNITS), bias=False)
        self.bent = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, len(UNITS)))
        for layer in (self.straight, self.bent[-1]):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Return `[..., 3]` of features `[..., features]`."""
        return self.straight(features) + self.bent(features)


def _quarter(side: int) -> int:
    """Return the side of a map after two convolutions with a stride of two."""
    return math.ceil(side / 4)


def save_odometry(odometry: Odometry, folder: Path) -> None:
    """Write an odometry network as a folder, completely or not at all; one that is there is replaced."""
    with filling(folder) as part:
        save_weights(odometry, part / WEIGHTS_FILE, torch.float32)
        files = {WEIGHTS_FILE: sha256_of(part / WEIGHTS_FILE)}
        write_json(part / SHAPE_FILE, {SHAPE: asdict(odometry.config), "files": files})
        swap_folder(part, folder)


def load_odometry(folder: Path) -> Odometry:
    """Read an odometry network that `save_odometry` wrote.

    Raises:
        WorldError: If the folder holds none, or it is damaged.
    """
    if not (folder / SHAPE_FILE).is_file():
        raise WorldError(f"{folder} holds no odometry: it has no {SHAPE_FILE}")
    config, checksums = read_shape(folder / SHAPE_FILE, SHAPE, OdometryConfig, "odometry")
    path = check_file(folder, WEIGHTS_FILE, checksums.get(WEIGHTS_FILE))
    return load_weights(lambda: Odometry(config), path, config.min_weights, SHAPE_FILE)

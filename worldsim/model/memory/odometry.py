"""Odometry that is taught: how far the player moves in a frame, from actions and frames, and where that ends.

A displacement is (forward, left, turn) of one frame: map units along and across the heading half-way through
the frame's turn, and degrees counter-clockwise. A pose is (x, y, heading), as recordings hold it. The game's
hidden state (how long a key has been held, how fast the player still slides) is the state of a GRU.
"""

# B batch, F frames, C h w latent size, A action axes, H hidden numbers

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.errors import WorldError
from worldsim.model.memory.ground import Ground
from worldsim.model.memory.motion_energies import FLOOR, NUM_ENERGIES, motion_energies
from worldsim.model.memory.sight import NUM_TOLD, Sight, mirrored_told, solve_three, unpack_told
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
EXPECTED_INFORMATION = (40.0, 40.0, 10_000.0)
"""About each part of a displacement, in units, before the frame is seen; where it begins to be learned."""
TRUST = 0.1
"""By which information that is seen counts where it begins to be learned: parts of a picture err together."""
WIDTH = 128
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
    pairs = zip(poses.unbind(-1), PERIODS, strict=True)  # no tensor of these: CUDA graphs make none
    return torch.stack(
        [torch.remainder(each + period / 2, period) - period / 2 for each, period in pairs], -1
    )


@dataclass(kw_only=True, slots=True)
class OdometryConfig:
    """Shape of an odometry network."""

    latent_shape: list[int] = setting([16, 16, 20], "Channels, height and width of a frame's latents.")
    num_values: list[int] = setting([3, 3, 3], "Number of values of each action axis.", minimum=1)
    encoder: str = setting("", "Digest of the encoder whose latents it reads.")
    hidden: int = setting(64, "Numbers that its recurrent unit keeps.", minimum=1, maximum=LARGEST)
    features: int = setting(64, "Numbers that it reads from two frames.", minimum=1, maximum=LARGEST)
    sight: bool = setting(
        False, "Whether it reads the flow of the picture's parts; false reads energies of whole cells."
    )

    ground: int = setting(
        0,
        "Cells along a side of a learned map of the ground, which tells where walls stop the player: for a "
        "world of one level (level_map), whose poses are the level's own. 0 is none.",
        minimum=0,
        maximum=1024,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        sizes = [*self.latent_shape, *self.num_values]
        is_shape = len(self.latent_shape) == 3 and len(self.num_values) > 0
        if not is_shape or not all(type(size) is int and 1 <= size <= LARGEST for size in sizes):
            raise WorldError(
                f"odometry needs channels, height and width of latents and the values of each action axis, "
                f"got {shown(self.latent_shape)} and {shown(self.num_values)}"
            )
        if self.sight and self.latent_shape[2] < 2:
            raise WorldError(f"odometry with sight needs latents at least 2 wide, got {self.latent_shape[2]}")

    @property
    def min_weights(self) -> int:
        """Number of weights of its recurrent unit, and of what reads frames."""
        channels, height, width = self.latent_shape
        sight = Sight.min_weights((channels, height, width)) if self.sight else 0
        return 3 * self.hidden**2 + WIDTH * (self.num_compared + self.features) + sight

    @property
    def num_compared(self) -> int:
        """Numbers that a comparison of two frames makes."""
        return NUM_TOLD if self.sight else NUM_ENERGIES


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off; it is anyway on devices that know none."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


class Odometry(nn.Module):
    """Estimate the displacement of each frame, before it is drawn and after.

    Before: dynamics, a GRU's that knows nothing but actions and how far the player moved so far, say what an
    action does: how long a key has been held, how much of the last step is kept. After: two frames correct
    it, since a wall may have stopped the player, by how their parts moved. With `sight` they say a
    displacement themselves and how well it is known: the two are weighed against each other, as in a Kalman
    filter whose doubt of the expectation is learned, and a head corrects what is left.

    All is computed in fp32 whatever autocast says: displacements add up, and the rounding of bf16 would be
    degrees after a hundred frames of turning.
    """

    units: Tensor
    energy_mean: Tensor
    energy_std: Tensor

    def __init__(self, config: OdometryConfig) -> None:
        super().__init__()
        self.config = config
        num_buttons, step, compared = sum(config.num_values), len(UNITS), config.num_compared
        self.ground = Ground(config.ground) if config.ground else None
        known = config.hidden + step + num_buttons + (self.ground.features if self.ground else 0)
        self.gru = nn.GRUCell(num_buttons + step, config.hidden)
        self.move = Head(known)
        self.correct = Head(known + step + config.features + (2 * step if config.sight else 0))
        self.look = nn.Sequential(nn.Linear(compared, WIDTH), nn.SiLU(), nn.Linear(WIDTH, config.features))
        self.register_buffer("units", torch.tensor(UNITS), persistent=False)
        self.register_buffer("energy_mean", torch.zeros(compared))
        self.register_buffer("energy_std", torch.ones(compared))
        self.sight: Sight | None = None
        if config.sight:
            channels, height, width = config.latent_shape
            self.sight = Sight((channels, height, width))
            self.sureness = nn.Linear(known, step)  # logarithm of information before a frame is seen
            nn.init.normal_(self.sureness.weight, std=0.01)
            self.trust = nn.Parameter(torch.full((step,), math.log(TRUST) / 2))
            with torch.no_grad():
                self.sureness.bias.copy_(torch.tensor(EXPECTED_INFORMATION).log())

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Return what is read of two frames: `[G, 3, 5, 4, 5]`, motion energies; with sight `[G, NUM_TOLD]`.

        Args:
            before: `[G, C, h, w]`, latents.
            after: Same shape, one frame later.
        """
        if self.sight is None:
            return motion_energies(before, after)
        with without_autocast(before.device):
            return self.sight(before.float(), after.float())

    @torch.no_grad()
    def calibrate(self, compared: Tensor) -> None:
        """Take mean and deviation of what is compared, from `compare`, as those of all video to come."""
        flat = compared.flatten(1).float()
        self.energy_mean.copy_(flat.mean(0))
        self.energy_std.copy_(flat.std(0) + FLOOR)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the state `[B, H]` fp32 of a player of whom nothing is known."""
        return self.units.new_zeros(batch_size, self.config.hidden + len(UNITS))

    def expected(self, state: Tensor, actions: Tensor, pose: Tensor | None = None) -> Tensor:
        """Return the displacement that an action is expected to make, before its frame is drawn.

        Args:
            state: `[B, H]` fp32, from `initial_state` or `shown`.
            actions: `[B, A]` integers, the action that leads to the next frame.
            pose: `[B, 3]`, where the player stands before it, if there is a map of the ground.

        Returns:
            `[B, 3]` fp32, forward and left in map units, turn in degrees.
        """
        with without_autocast(state.device):
            return self.units * self.move(self._known(state, self._buttons(actions), pose, self._laid_out()))

    def shown(
        self, state: Tensor, actions: Tensor, before: Tensor, after: Tensor, pose: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the displacement that a frame shows, and the state after it.

        Args:
            state: `[B, H]` fp32, before this frame.
            actions: `[B, A]` integers, the action that led to it.
            before: `[B, C, h, w]`, latents of the frame before.
            after: `[B, C, h, w]`, of the frame.
            pose: As in `expected`.

        Returns:
            Displacement `[B, 3]` fp32 as from `expected`, and the state `[B, H]` fp32.
        """
        _, shown, state = self(state, actions.unsqueeze(1), torch.stack([before, after], dim=1), pose)
        return shown.squeeze(1), state

    def told(self, state: Tensor, actions: Tensor, displacement: Tensor) -> Tensor:
        """Return the state `[B, H]` fp32 after a frame whose displacement `[B, 3]` is known."""
        with without_autocast(state.device):
            return self._moved(state, self._buttons(actions), displacement.float() / self.units)

    def forward(
        self, state: Tensor, actions: Tensor, frames: Tensor, pose: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `expected` and `shown` say of each frame of sequences, and the state at their end.

        Args:
            state: `[B, H]` fp32, before the sequences.
            actions: `[B, F, A]` integers, the actions that led to the frames after the first.
            frames: `[B, F + 1, C, h, w]`, latents; the first was seen before.
            pose: `[B, 3]`, where that one was seen from, if there is a map of the ground.

        Returns:
            Displacements `[B, F, 3]` fp32 as expected and as shown, and the state `[B, H]` fp32.
        """
        compared = self.compare(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        return self.follow(state, actions, compared.unflatten(0, actions.shape[:2]), pose)

    def follow(
        self, state: Tensor, actions: Tensor, compared: Tensor, pose: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as `forward`, of `[B, F, ...]`, the frames as `compare` reads them."""
        found, ground = [], self._laid_out()
        with without_autocast(state.device):
            buttons = self._buttons(actions)
            seen = self.look((compared.flatten(2).float() - self.energy_mean) / self.energy_std)
            rows = (each.unbind(1) for each in (buttons, seen, compared))
            for pressed, change, pair in zip(*rows, strict=True):
                known = self._known(state, pressed, pose, ground)
                expected = self.move(known)
                shown = expected + self._correction(known, expected, change, pair)
                state, pose = self._moved(state, pressed, shown), self._advanced(pose, shown)
                found.append(torch.stack([expected, shown]))
            expected, shown = (self.units * torch.stack(found, dim=2)).unbind(0)
            return expected, shown, state

    def dynamics(
        self, state: Tensor, actions: Tensor, displacements: Tensor | None, pose: Tensor | None = None
    ) -> Tensor:
        """Return what is expected of players whose movement so far is known.

        Args:
            state: `[B, H]` fp32, before the sequences.
            actions: `[B, F, A]` integers.
            displacements: `[B, F, 3]`, what came of each; read for the frames after it. None takes what is
                expected for what came of it.
            pose: `[B, 3]`, before the sequences, if there is a map of the ground.

        Returns:
            `[B, F, 3]` fp32, displacements.
        """
        buttons, found, ground = self._buttons(actions), [], self._laid_out()
        moved = None if displacements is None else displacements.float() / self.units
        with without_autocast(state.device):
            for frame, pressed in enumerate(buttons.unbind(1)):
                found.append(self.move(self._known(state, pressed, pose, ground)))
                step = found[-1] if moved is None else moved[:, frame]
                state, pose = self._moved(state, pressed, step), self._advanced(pose, step)
        return self.units * torch.stack(found, dim=1)

    def _laid_out(self) -> Tensor | None:
        return None if self.ground is None else self.ground.laid_out()

    def _known(self, state: Tensor, pressed: Tensor, pose: Tensor | None, ground: Tensor | None) -> Tensor:
        """Return what is known before a frame is seen, `[B, ...]`."""
        if self.ground is None:
            return torch.cat([state, pressed], dim=-1)
        assert pose is not None, "with a map of the ground, where the player stands is told"
        return torch.cat([state, pressed, self.ground(pose, ground)], dim=-1)

    def _advanced(self, pose: Tensor | None, step: Tensor) -> Tensor | None:
        """Return the pose after a displacement in units, where there is a map of the ground."""
        if self.ground is None or pose is None:
            return None
        return integrate((self.units * step).unsqueeze(-2), pose)[..., 0, :]

    def _correction(self, known: Tensor, expected: Tensor, change: Tensor, pair: Tensor) -> Tensor:
        """Return what a frame shows beyond what was expected, `[B, 3]` in units."""
        if self.sight is None:
            return self.correct(torch.cat([known, expected, change], dim=-1))
        seen, information = unpack_told(pair)
        trust = self.trust.exp()
        information = information * trust * trust.unsqueeze(-1)
        before = torch.diag_embed(self.sureness(known).clamp(-4, 14).exp())
        news = seen - seen_from_before(expected)
        weighed = solve_three(information + before, torch.einsum("bij,bj->bi", information, news))
        return weighed + self.correct(torch.cat([known, expected, change, weighed, news], dim=-1))

    def _moved(self, state: Tensor, pressed: Tensor, step: Tensor) -> Tensor:
        """Return the state after a displacement in units."""
        hidden = self.gru(torch.cat([pressed, step], dim=-1), state[:, : -len(UNITS)])
        return torch.cat([hidden, step], dim=-1)

    def _buttons(self, actions: Tensor) -> Tensor:
        """Return which value each axis has, `[..., sum of values]` fp32 of 0 and 1."""
        columns = zip(actions.unbind(-1), self.config.num_values, strict=True)
        return torch.cat([functional.one_hot(column, count) for column, count in columns], dim=-1).float()


def seen_from_before(steps: Tensor) -> Tensor:
    """Return displacements `[..., 3]` in units, along and across the heading before their turn.

    Args:
        steps: `[..., 3]` in units, along and across the heading half-way.
    """
    forward, left, turn = steps.unbind(-1)
    half = torch.deg2rad(turn * UNITS[2] / 2)
    cos, sin = half.cos(), half.sin()
    return torch.stack([forward * cos - left * sin, forward * sin + left * cos, turn], dim=-1)


def mirrored(compared: Tensor) -> Tensor:
    """Return what `Odometry.compare` would read of the same frames in a mirror, as it does."""
    is_told = compared.shape[-1] == NUM_TOLD
    return mirrored_told(compared) if is_told else compared.flip(-1, -3)


class Head(nn.Module):
    """Three numbers from features, by a linear map and a layer between; they begin near 0."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.straight = nn.Linear(features, len(UNITS), bias=False)
        last = nn.Linear(WIDTH, len(UNITS))
        self.bent = nn.Sequential(nn.Linear(features, WIDTH), nn.SiLU(), last)
        for layer in (self.straight, last):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Return `[..., 3]` of features `[..., features]`."""
        return self.straight(features) + self.bent(features)


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
    return load_weights(lambda: Odometry(config), path, config.min_weights, SHAPE_FILE).eval()

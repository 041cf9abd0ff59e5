"""The loss of odometry, as a module that Fabric can wrap."""

# B clips, U clips of which nothing is seen, F frames, A action axes

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.actions import ActionLayout
from worldsim.model.memory.odometry import Odometry, mirrored

BETA = 0.1
"""Errors below so many units count by their square, larger ones by their size: most frames are exactly
predictable, and one that hits a wall is not to outweigh them."""


HIDDEN_SHARE = 0.1
"""Of the energies of a clip."""


class Clips(NamedTuple):
    """What is done in clips, what comes of it, and what is seen.

    Attributes:
        actions: `[B, F, A]`.
        displacements: `[B, F, 3]`, the true ones.
        compared: `[B, F, ...]`, what odometry reads of the frames; None where nothing is seen.
        begins: `[B, 3]`, the poses before them; for a map of the ground.
    """

    actions: Tensor
    displacements: Tensor
    compared: Tensor | None = None
    begins: Tensor | None = None


def concatenate(parts: Sequence[Clips]) -> Clips:
    """Return clips one after the other; all are seen, or none is."""
    seen = [part.compared for part in parts if part.compared is not None]
    begins = [part.begins for part in parts if part.begins is not None]
    return Clips(
        torch.cat([part.actions for part in parts]),
        torch.cat([part.displacements for part in parts]),
        torch.cat(seen) if seen else None,
        torch.cat(begins) if begins else None,
    )


def mirror(clips: Clips, layout: ActionLayout, is_mirrored: Tensor) -> Clips:
    """Return clips some of which are seen in a mirror: left is right there. Where they begin is as it was.

    Args:
        clips: Any.
        layout: Its buttons that are called left and right change places.
        is_mirrored: `[B]` bool.
    """
    chosen = is_mirrored[:, None, None]
    columns = []
    for axis, column in zip(layout.axes, clips.actions.unbind(-1), strict=True):
        values = torch.arange(1 + len(axis.buttons), device=column.device)
        if {"left", "right"} <= set(axis.buttons):
            left, right = 1 + axis.buttons.index("left"), 1 + axis.buttons.index("right")
            values[left], values[right] = right, left
        columns.append(values[column])
    signs = torch.tensor([1.0, -1.0, -1.0], device=chosen.device)
    compared = clips.compared
    if compared is not None:
        shape = (-1, *[1] * (compared.ndim - 1))
        compared = torch.where(is_mirrored.view(shape), mirrored(compared), compared)
    return Clips(
        torch.where(chosen, torch.stack(columns, dim=-1), clips.actions),
        torch.where(chosen, signs * clips.displacements, clips.displacements),
        compared,
        clips.begins,
    )


def summed(errors: Tensor, count: int) -> Tensor:
    """Return errors `[B, F, 3]` added up over each `count` frames, as large as one would be by chance."""
    sums = functional.pad(errors.cumsum(1), (0, 0, 1, 0))
    return (sums[:, count:] - sums[:, :-count]) / count**0.5


class OdometryLearner(nn.Module):
    """Errors of the displacements that are expected and shown, of sums of what is shown, and of the dynamics.

    The dynamics learn from the true movement so far, which no picture is needed for: so clips of theirs cost
    next to nothing, and there are many. With a map of the ground they also go on alone, from the first pose
    and actions, so that a path that is a little off finds its way along walls.

    Args:
        odometry: Learns in place.
        summed_frames: Over how many frames errors are added up.
    """

    def __init__(self, odometry: Odometry, summed_frames: int) -> None:
        super().__init__()
        self.odometry = odometry
        self.summed_frames = summed_frames

    def forward(self, seen: Clips, unseen: Clips, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of clips that are seen, and of others for the dynamics alone.

        Args:
            seen: With what is read of frames; of energies a tenth is hidden.
            unseen: Others.
            generator: Says which are hidden; on the device.
        """
        assert seen.compared is not None
        start = self.odometry.initial_state(len(seen.actions))
        hidden = self._hide(seen.compared, generator)
        expected, shown, _ = self.odometry.follow(start, seen.actions, hidden, seen.begins)
        start = self.odometry.initial_state(len(unseen.actions))
        free = self.odometry.dynamics(start, unseen.actions, unseen.displacements, unseen.begins)
        pairs = {"dynamics": (free, unseen), "expected": (expected, seen), "shown": (shown, seen)}
        if self.odometry.ground is not None:
            pairs["alone"] = self.odometry.dynamics(start, unseen.actions, None, unseen.begins), unseen
        errors = {
            name: (found - clips.displacements.float()) / self.odometry.units
            for name, (found, clips) in pairs.items()
        }
        added = {"shown": "summed"} | ({"alone": "summed_alone"} if "alone" in errors else {})
        errors |= {name: summed(errors[each], self.summed_frames) for each, name in added.items()}
        losses = {
            name: functional.smooth_l1_loss(error, torch.zeros_like(error), beta=BETA)
            for name, error in errors.items()
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _hide(self, compared: Tensor, generator: torch.Generator) -> Tensor:
        """Return energies some of which are what they are on average, so that none is relied upon alone."""
        if self.odometry.config.sight:
            return compared
        is_hidden = torch.rand(compared.shape, generator=generator, device=compared.device) < HIDDEN_SHARE
        usual = self.odometry.energy_mean.unflatten(0, compared.shape[2:])
        return torch.where(is_hidden, usual, compared.float())

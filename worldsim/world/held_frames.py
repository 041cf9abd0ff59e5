"""Frames of an action that is held: drawn together with the first of them, shown one by one."""

# B batch, C h w latent size, F latent frames of a block

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim.state import WorldState


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What the passes over a block share.

    Attributes:
        actions: `[B, A]` int64, what is pressed during it; None in a network without buttons.
        pictures: `[B, P, H, W, 3]` uint8, its frames.
        features: What the decoder keeps behind it.
        window_is_full: Whether it sees as many frames as ever, in all rows.
    """

    actions: Tensor | None
    pictures: Tensor
    features: tuple[Tensor, ...]
    window_is_full: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """A frame that was drawn but not yet remembered.

    Attributes:
        frames: `[B, H, W, 3]` uint8, on the simulator's `frames_device`.
        latents: `[B, C, h, w]`, of a video world `[B, C, F, h, w]` of the block, on the world's device.
        context: What the passes over this frame share, of the world's own kind; `commit` needs it again.
    """

    frames: Tensor
    latents: Tensor
    context: Any


@dataclass(frozen=True, slots=True)
class PartlyDrawn:
    """Context of frames of which some, or all, were drawn before.

    Attributes:
        rows: Dreams whose action was read, in order.
        drawn: Of these; None where there are none.
        following: `[B]` int64, numbers of the frames after these.
    """

    rows: list[int]
    drawn: Prediction | None
    following: Tensor


def held_actions(actions: Tensor) -> Tensor:
    """Return what was pressed longest, `[..., A]`, of actions `[..., T, A]`; of several the first, by axis.

    Recorded play may change its actions while a world holds one.
    """
    counts = (actions.unsqueeze(-2) == actions.unsqueeze(-3)).sum(-2)  # [..., T, A]
    return actions.gather(-2, counts.argmax(-2, keepdim=True)).squeeze(-2)


def rows_due(state: WorldState, repeat: int) -> list[int] | None:
    """Return the dreams whose next frame reads an action, which is held for `repeat` frames; None for all."""
    if repeat == 1 or bool((is_due := state.frame_index % repeat == 0).all()):
        return None
    return is_due.nonzero().flatten().tolist()


def partly_drawn(
    state: WorldState,
    repeat: int,
    rows: list[int],
    drawn: Prediction | None,
    frames_device: torch.device,
) -> Prediction:
    """Return the next frames: of some rows those `drawn`, of the others those of the block that is shown."""
    pictures, latents = state.memory.pictures, state.memory.latents
    assert pictures is not None, "the world draws several frames at once"
    place = (state.frame_index % repeat).to(pictures.device)
    frames = pictures[torch.arange(len(place), device=pictures.device), place].to(frames_device)
    if drawn is not None:
        index = torch.tensor(rows, dtype=torch.int64)
        frames = frames.index_copy(0, index.to(frames.device), drawn.frames)
        latents = latents.index_copy(0, index.to(latents.device), drawn.latents)
    return Prediction(frames, latents, PartlyDrawn(rows, drawn, state.frame_index + 1))

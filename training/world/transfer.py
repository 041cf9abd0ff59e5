"""Weights of one network for another: of other keys, buttons, latents or size of a memory."""

# C latent channels, D model width

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.model.config import PATCH, MemoryKeys
from worldsim.model.denoiser import Denoiser

MEMORY_PARTS = ("phi_q.", "phi_k.", "phi_v.", "a_proj.", "b_proj.", "gate_proj.", "A_log", "dt_bias")
"""Of a hybrid layer, what its state is written and read by."""
DRAWING_PARTS = ("head.head.weight", "head.head.bias")
"""What draws latents, its first size P P C."""

ACTIONS, PATH, ODOMETER = "action_embedding", "motion.", "motion.odometer."


@torch.no_grad()
def take_over(denoiser: Denoiser, before: Denoiser, axes: Mapping[int, int] | None = None) -> None:
    """Give a fresh network the weights of another of the same width and layers, as far as they mean the same.

    The states' own weights stay fresh where keys are of another kind, and those of the path where latents are
    of another size, since it reads them as a whole; its odometry also where they have other channels. Latents
    of more channels are else read and drawn by fresh weights beside the old ones. Buttons and outcome heads
    that the other one has not are as fresh.

    Args:
        denoiser: Changed in place.
        before: Left as it is.
        axes: The number that an action axis has in `before`, of those that it knows (`same_axes`); None says
            that both have the same buttons.

    Raises:
        WorldError: If they have another width or other layers.
    """
    old, new = before.config, denoiser.config
    for name in ("dim", "ffn_dim", "num_heads", "num_layers", "window_layers", "full_layers"):
        if (has := getattr(old, name)) != (wanted := getattr(new, name)):
            raise WorldError(
                f"weights of a network of {name} {has} do not fit one of {name} {wanted}: "
                f"give model.{name}={has}"
            )
    fresh, known = denoiser.state_dict(), before.state_dict()
    if axes is not None:
        buttons = {f"{ACTIONS}.{i}.weight": known[f"{ACTIONS}.{same}.weight"] for i, same in axes.items()}
        known = {name: each for name, each in known.items() if not name.startswith(ACTIONS)} | buttons
    kept = {name: known[name] for name in fresh if name in known}
    if (old.memory_keys, old.keyed_places) != (new.memory_keys, new.keyed_places):
        kept = {name: each for name, each in kept.items() if not any(part in name for part in MEMORY_PARTS)}
    if old.latent_shape != new.latent_shape:
        unfit = ODOMETER if old.latent_shape[1:] == new.latent_shape[1:] else PATH
        kept = {name: each for name, each in kept.items() if not name.startswith(unfit)}
    if old.memory_keys == MemoryKeys.AXES and new.memory_keys != MemoryKeys.AXES:
        # A key begins as a place, as in a fresh network.
        biases = {name for name in kept if name.endswith((".self_attn.q.bias", ".self_attn.k.bias"))}
        kept |= {name: kept[name] + fresh[name] for name in biases}
    kept = {name: _widened(name, each, fresh[name]) for name, each in kept.items()}
    denoiser.load_state_dict(fresh | kept)


def _widened(name: str, known: Tensor, fresh: Tensor) -> Tensor:
    """Return weights of the channels that are known, and fresh ones of the others."""
    if known.shape == fresh.shape:
        return known
    wide = fresh.clone()
    new, old = wide, known
    if name in DRAWING_PARTS:
        new, old = (each.unflatten(0, (PATCH * PATCH, -1)) for each in (wide, known))
    channels = min(old.shape[1], new.shape[1])  # what reads latents is [D, C, ...]
    new[:, :channels] = old[:, :channels]
    return wide


def same_axes(actions: ActionLayout, known: ActionLayout) -> dict[int, int]:
    """Return the number of each axis that another layout has by the same name and with the same buttons."""
    theirs = {(axis.name, axis.buttons, axis.centres): index for index, axis in enumerate(known.axes)}
    named = {
        index: theirs.get((axis.name, axis.buttons, axis.centres)) for index, axis in enumerate(actions.axes)
    }
    return {index: same for index, same in named.items() if same is not None}

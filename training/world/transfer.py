"""Weights of one network for another: of other keys, buttons, latents or size of a memory."""

# C latent channels, D model width

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from worldsim.actions import ActionLayout
from worldsim.codec import FrameCodec
from worldsim.errors import WorldError
from worldsim.model.config import PATCH, MemoryKeys
from worldsim.model.denoiser import Denoiser
from worldsim.world.world import World

MEMORY_PARTS = ("phi_q.", "phi_k.", "phi_v.", "a_proj.", "b_proj.", "gate_proj.", "A_log", "dt_bias")
"""Of a hybrid layer, what its state is written and read by."""
DRAWING_PARTS = ("head.head.weight", "head.head.bias")
"""What draws latents, its first size P P C."""

LEAST_ALIKE, NUM_COMPARED = 0.5, 4
"""Correlation of a channel from which on it tells the same; start moments that are looked at."""
ACTIONS, PATH, ODOMETER = "action_embedding", "motion.", "motion.odometer."
LEVEL_MAP = "level_map."


@torch.no_grad()
def take_over(denoiser: Denoiser, before: Denoiser, axes: Mapping[int, int] | None = None) -> None:
    """Give a fresh network the weights of another of the same width and layers, as far as they mean the same.

    The states' own weights and the path stay fresh where keys are of another kind (on axes a full turn of the
    head is learned as a quarter of its tokens), the path also where latents are of another size, since it
    reads them as a whole; its odometry also where they have other channels. Latents
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
    if old.memory_keys != new.memory_keys:  # what a path took a move for turned other keys
        kept = {name: each for name, each in kept.items() if not name.startswith(PATH)}
    if (old.level_map, old.grid) != (new.level_map, new.grid):
        kept = {name: each for name, each in kept.items() if not name.startswith(LEVEL_MAP)}
    if old.latent_shape != new.latent_shape:
        unfit = ODOMETER if old.latent_shape[1:] == new.latent_shape[1:] else PATH
        kept = {name: each for name, each in kept.items() if not name.startswith(unfit)}
    if old.memory_keys == MemoryKeys.AXES and new.memory_keys != MemoryKeys.AXES:
        # A key begins as a place, as in a fresh network.
        biases = {name for name in kept if name.endswith((".self_attn.q.bias", ".self_attn.k.bias"))}
        kept |= {name: kept[name] + fresh[name] for name in biases}
    kept = {name: _widened(name, each, fresh[name]) for name, each in kept.items()}
    denoiser.load_state_dict(fresh | kept)


@torch.no_grad()
def check_latents(codec: FrameCodec, before: World, name: str) -> None:
    """Raise `WorldError` if a codec's latents are not those that a world's network has learned.

    They are those of its own codec, and of one that went on from it, also with more channels. What is
    compared is what both make of the world's start moments, channel by channel: that of one that goes on is
    correlated by 0.84 and more, of others by less than 0.2 in the median.

    Args:
        codec: Whose latents are to be learned.
        before: The world; without start moments nothing is compared.
        name: What the codec is called.
    """
    if not before.starts:
        return
    size = codec.config.height, codec.config.width
    some = [start.frames[:: max(1, len(start.frames) // 4)] for start in before.starts[:NUM_COMPARED]]
    images = torch.cat(some).movedim(-1, 1).float()  # [frames, 3, H, W]
    images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    frames = images.round().clamp(0, 255).byte().movedim(1, -1)
    own = FrameCodec(replace(before.codec.config, height=size[0], width=size[1])).eval()
    own.load_state_dict(before.codec.state_dict())
    known, found = own.encode(frames), codec.encode(frames)
    shared = [min(sizes) for sizes in zip(known.shape[1:], found.shape[1:], strict=True)]
    channels = [
        each[:, : shared[0], : shared[1], : shared[2]].movedim(1, 0).flatten(1) for each in (known, found)
    ]
    each = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*channels, strict=True)]
    alike = float(torch.stack(each).nan_to_num().median())
    if alike < LEAST_ALIKE:
        raise WorldError(
            f"the network of init={before.config.name} has learned other latents than those of codec={name} "
            f"(they correlate by {alike:.2f} in its start moments): give its own codec, or one that "
            "training.codec init= went on from it"
        )


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

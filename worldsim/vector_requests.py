"""What a caller may ask of a vector environment, checked before anything changes."""

# N environments, A action axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError

Seeds = int | Sequence[int | None] | None
OPTIONS = ("reset_mask", "start")


def read_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Return Gymnasium's autoreset mode of that name.

    Raises:
        WorldError: If there is none.
    """
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(known.value for known in AutoresetMode)
        raise WorldError(f"autoreset_mode must be one of {known}, got {mode!r}") from None


def read_seeds(seed: Seeds, num_envs: int) -> list[int | None]:
    """Return each environment's seed, `[N]`: s, s + 1, ... of one seed s.

    Raises:
        ValueError: If they are a list of another length.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(num_envs)]
    seeds = [None if one is None else int(one) for one in seed]
    if len(seeds) != num_envs:
        raise ValueError(f"seeds must be one for each of {num_envs} environments, got {len(seeds)}")
    return seeds


def read_mask(options: Mapping[str, Any] | None, num_envs: int) -> np.ndarray:
    """Return which environments to reset, `[N]` bool: all without the option `reset_mask`.

    Raises:
        TypeError: If it is no array of bool.
        ValueError: If it is not `[N]`, or False everywhere.
    """
    if options is None or "reset_mask" not in options:
        return np.ones(num_envs, dtype=np.bool_)
    mask = options["reset_mask"]
    if isinstance(mask, torch.Tensor):
        mask = mask.cpu().numpy()
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"options['reset_mask'] must be an array of bool, got {kind}")
    if mask.shape != (num_envs,):
        raise ValueError(f"options['reset_mask'] must have the shape ({num_envs},), got {mask.shape}")
    if not mask.any():
        raise ValueError("options['reset_mask'] is False everywhere: there is nothing to reset")
    return mask.copy()


def read_starts(options: Mapping[str, Any] | None, num_envs: int) -> list[Any]:
    """Return the start moment that is asked for in each environment, `[N]`.

    Raises:
        WorldError: If an option is unknown, or starts are listed but not N.
    """
    options = options or {}
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        known = " and ".join(map(repr, OPTIONS))
        raise WorldError(f"reset knows the options {known}, not {', '.join(map(repr, unknown))}")
    start = options.get("start")
    if not isinstance(start, list | tuple | np.ndarray):
        return [start] * num_envs
    if len(start) != num_envs:
        raise WorldError(f"starts must be one for each of {num_envs} environments, got {len(start)}")
    return list(start)


def read_actions(actions: Any, num_envs: int, layout: ActionLayout) -> torch.Tensor:
    """Return actions as `[N, A]` int64.

    Raises:
        InvalidAction: If they have another shape, are not of whole numbers or leave the range of an axis.
    """
    array = actions.cpu().numpy() if isinstance(actions, torch.Tensor) else np.asarray(actions)
    if array.shape != (num_envs, len(layout.axes)) or array.dtype.kind not in "iu":
        names = ", ".join(axis.name for axis in layout.axes)
        raise InvalidAction(
            f"actions must be whole numbers [{num_envs}, {len(layout.axes)}], one each for {names}, "
            f"got {array.dtype} {list(array.shape)}"
        )
    outside = np.argwhere((array < 0) | (array >= np.array(layout.num_values)))
    if len(outside):
        row, axis = outside[0]
        raise InvalidAction(
            f"action axis {layout.axes[axis].name!r} takes 0 to {layout.num_values[axis] - 1}, "
            f"got {int(array[row, axis])} in environment {row}"
        )
    return torch.from_numpy(array.astype(np.int64))

"""Argument validation for environments, above all for the vector environment."""

# N environments, A action axes

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode

from worldsim.actions import ActionLayout, as_whole_numbers
from worldsim.errors import WorldError
from worldsim.storage.files import plain

Seeds = int | Sequence[int | None] | None
OPTIONS = ("reset_mask", "start")
OUTPUTS = ("numpy", "torch")
MAX_ENVS = 2**16
"""Each takes megabytes: what is more was hardly meant."""


def check_settings(num_envs: int, max_episode_steps: int | None, output: str) -> None:
    """Refuse settings that no vector environment has.

    Raises:
        WorldError: If there is one.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise WorldError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
    if num_envs > MAX_ENVS:
        raise WorldError(f"num_envs must be at most {MAX_ENVS}, got {num_envs}")
    is_whole = isinstance(max_episode_steps, int) and not isinstance(max_episode_steps, bool)
    if max_episode_steps is not None and not (is_whole and max_episode_steps >= 1):
        raise WorldError(f"max_episode_steps must be at least 1, a whole number, got {max_episode_steps!r}")
    if output not in OUTPUTS:
        raise WorldError(f"output must be {' or '.join(OUTPUTS)}, got {output!r}")


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
    seed = plain(seed)
    if not isinstance(seed, list | tuple | np.ndarray):
        first = read_seed(seed)
        return [None if first is None else first + row for row in range(num_envs)]
    seeds = [read_seed(one) for one in seed]
    if len(seeds) != num_envs:
        raise ValueError(f"seeds must be one for each of {num_envs} environments, got {len(seeds)}")
    return seeds


def read_seed(seed: Any) -> int | None:
    """Return the seed of one environment, None without one.

    Raises:
        WorldError: If it is no whole number; one below 0 Gymnasium refuses.
    """
    number = plain(seed)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise WorldError(f"a seed must be a whole number of at least 0, got {reprlib.repr(seed)}")
    return number


def read_options(options: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """Return the options of a reset.

    Raises:
        WorldError: If they are no dictionary, or one is unknown.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise WorldError(f"the options of a reset must be a dictionary, got {reprlib.repr(options)}")
    unknown = [repr(name) for name in options if name not in known]
    if unknown:
        names = " and ".join(map(repr, known))
        raise WorldError(
            f"reset knows the option{'s' if len(known) > 1 else ''} {names}, not {', '.join(sorted(unknown))}"
        )
    return options


def read_mask(mask: Any, num_envs: int) -> np.ndarray:
    """Return which environments to reset, `[N]` bool, of the option `reset_mask`: all without it.

    Raises:
        TypeError: If it is no array of bool.
        ValueError: If it is not `[N]`, or False everywhere.
    """
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    if hasattr(mask, "detach"):  # a tensor, of any device
        mask = mask.detach().cpu().numpy()
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"options['reset_mask'] must be an array of bool, got {kind}")
    if mask.shape != (num_envs,):
        raise ValueError(f"options['reset_mask'] must have the shape ({num_envs},), got {mask.shape}")
    if not mask.any():
        raise ValueError("options['reset_mask'] is False everywhere: there is nothing to reset")
    return mask.copy()


def read_starts(start: Any, num_envs: int) -> list[Any]:
    """Return the start moment that the option `start` asks for in each environment, `[N]`.

    Raises:
        WorldError: If starts are listed but not N.
    """
    start = plain(start)
    if not isinstance(start, list | tuple | np.ndarray):
        return [start] * num_envs
    if len(start) != num_envs:
        raise WorldError(f"starts must be one for each of {num_envs} environments, got {len(start)}")
    return list(start)


def read_actions(
    actions: Any, num_envs: int, layout: ActionLayout, *, is_discrete: bool = False
) -> np.ndarray:
    """Return actions as `[N, A]` int64.

    Args:
        actions: `[N, A]`, or `[N]` where each is one number of `ActionLayout.from_number`.

    Raises:
        InvalidAction: If they have another shape, are not of whole numbers or leave the range of an axis.
    """
    array = as_whole_numbers(actions)
    shape = (num_envs,) if is_discrete else (num_envs, len(layout.axes))
    if array is None or array.shape != shape:
        names = ", ".join(axis.name for axis in layout.axes)
        each = "" if is_discrete else f", one each for {names}"
        raise InvalidAction(f"actions must be whole numbers {list(shape)}{each}, got {_described(actions)}")
    if is_discrete:
        rows = np.flatnonzero((array < 0) | (array >= layout.num_actions))
        if len(rows):
            row, most = rows[0], layout.num_actions - 1
            raise InvalidAction(f"an action is 0 to {most}, got {int(array[row])} in environment {row}")
        numbers = array.astype(np.int64)
        return np.stack(np.unravel_index(numbers, layout.num_values), axis=1)
    outside = np.argwhere((array < 0) | (array >= np.array(layout.num_values)))
    if len(outside):
        row, axis = outside[0]
        raise InvalidAction(
            f"action axis {layout.axes[axis].name!r} takes 0 to {layout.num_values[axis] - 1}, "
            f"got {int(array[row, axis])} in environment {row}"
        )
    return array.astype(np.int64)


def _described(values: Any) -> str:
    """Return the type and the shape of what is no array of actions, or the start of it."""
    if hasattr(values, "dtype") and hasattr(values, "shape"):  # an array, or a tensor
        return f"{values.dtype} {list(values.shape)}"
    return reprlib.repr(values)

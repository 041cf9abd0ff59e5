"""Gymnasium spaces as datasets describe them in JSON: where pictures are, and what actions become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from worldsim.data.formats.columns import array_columns
from worldsim.data.formats.source import Channel, Kind
from worldsim.errors import WorldError
from worldsim.storage.files import shown

Space = Mapping[str, Any]
MIN_SIDE = 8
"""In pixels, of what is taken for a picture."""


def leaves(space: Space, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Space]]:
    """Yield the spaces without inner ones, by the names and numbers that lead to them."""
    inner = space.get("subspaces")
    if isinstance(inner, Mapping):
        for name, each in inner.items():
            yield from leaves(each, (*path, str(name)))
    elif isinstance(inner, list):
        for index, each in enumerate(inner):
            yield from leaves(each, (*path, str(index)))
    else:
        yield path, space


def pictures_of(space: Space) -> dict[str, tuple[str, ...]]:
    """Return the way to each inner space of pictures, by its dotted name, `observations` without one."""
    return {".".join(path) or "observations": path for path, each in leaves(space) if is_picture(each)}


def is_picture(space: Space) -> bool:
    """Return whether a space is of bytes in two dimensions, or three of which one holds the channels."""
    shape = space.get("shape", ())
    return (
        space.get("type") == "Box"
        and space.get("dtype") == "uint8"
        and len(shape) in (2, 3)
        and sorted(shape)[-2] >= MIN_SIDE
    )


def channels_of(space: Space, where: str) -> tuple[Channel, ...]:
    """Return what the actions of a space are, a channel for each number of an action.

    Raises:
        WorldError: If it has a part that has no numbers, a text or a graph.
    """
    return tuple(
        channel
        for path, each in leaves(space)
        for channel in _channels(".".join(path) or "action", each, where)
    )


def _channels(name: str, space: Space, where: str) -> Iterator[Channel]:
    kind = space.get("type")
    if kind == "Discrete":
        yield _choice(name, int(space["n"]), int(space.get("start", 0)))
    elif kind == "MultiDiscrete":
        counts = np.asarray(space["nvec"]).reshape(-1)
        starts = np.asarray(space.get("start", np.zeros_like(counts))).reshape(-1)
        for each, count, start in zip(_names(name, len(counts)), counts, starts, strict=True):
            yield _choice(each, int(count), int(start))
    elif kind == "MultiBinary":
        for each in _names(name, int(np.prod(space["n"]))):
            yield Channel(name=each, kind=Kind.BUTTON)
    elif kind == "Box":
        low, high = (np.asarray(space[end], dtype=np.float64).reshape(-1) for end in ("low", "high"))
        for each, *limits in zip(_names(name, len(low)), low.tolist(), high.tolist(), strict=True):
            is_bounded = bool(np.isfinite(limits).all()) and max(map(abs, limits)) < 1e30
            yield Channel(name=each, kind=Kind.ANALOG, limits=(limits[0], limits[1]) if is_bounded else None)
    else:
        raise WorldError(f"{where} has actions that cannot be made buttons: {name} is {shown(str(kind))}")


def _choice(name: str, count: int, start: int) -> Channel:
    options = tuple(str(value) for value in range(start, start + count))
    return Channel(name=name, kind=Kind.CHOICE, options=options)


def _names(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}.{index}" for index in range(count)]


def columns_of(
    space: Space, values: Mapping[tuple[str, ...], np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """Return actions as the columns of `channels_of`; a choice counts from 0, wherever its space starts.

    Args:
        values: `[T, ...]` by the way to each inner space.
    """
    columns: dict[str, np.ndarray] = {}
    for path, each in leaves(space):
        array = values[path]
        if each.get("type") in ("Discrete", "MultiDiscrete"):
            array = array - np.asarray(each.get("start", 0))
        found = array_columns(".".join(path) or "action", array)
        expected = [channel.name for channel in _channels(".".join(path) or "action", each, where)]
        if list(found) != expected:
            raise WorldError(f"{where} has actions of {len(found)} numbers, its space has {len(expected)}")
        columns |= found
    return columns

"""Checkpoints with ARL2's released hybrid layers: recognized by their names, the MLPs' adapters folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.storage.files import shown
from worldsim.wan.published import ADAPTER_RANK, ADAPTER_SCALE
from worldsim.wan.sources import Tensors

_HYBRID = re.compile(r"blocks\.(\d+)\.self_attn\.A_log")
_WRAPPED = re.compile(r"(blocks\.\d+\.ffn\.[02])\.linear\.(weight|bias)")
_DOWN, _UP = "lora_A", "lora_B"

Shapes = Mapping[str, tuple[int, ...]]


def hybrid_layers_of(names: Iterable[str]) -> list[int]:
    """Return which layers are hybrid, in order, by the plain names of a checkpoint."""
    return sorted({int(found[1]) for name in names if (found := _HYBRID.fullmatch(name))})


def adapter_rank(shapes: Shapes, layers: list[int], path: Path) -> int:
    """Return the rank of the adapters of hybrid layers' memories, by our names; 0 where there are none.

    Raises:
        WorldError: If it is another one than the release's, whose scale is not known.
    """
    for layer in layers:
        name = f"blocks.{layer}.self_attn.lora_q_A"
        if name in shapes:
            _check_rank(name, shapes[name], path)
            return ADAPTER_RANK
    return 0


class FoldedTensors:
    """Tensors of such a checkpoint by our names; each is read, and folded, when it is asked for.

    An MLP's product is that of `linear` plus that of its adapter, for all tokens: one product.

    Args:
        named: Plain name of each tensor with that in the file.

    Raises:
        WorldError: If an adapter is not whole or does not fit.
    """

    def __init__(self, tensors: Tensors, named: Mapping[str, str], path: Path) -> None:
        self._tensors = tensors
        self._given = dict(named)
        self._adapters: dict[str, tuple[str, str]] = {}
        for name in named:
            if (found := _WRAPPED.fullmatch(name)) is None:
                continue
            ours = f"{found[1]}.{found[2]}"
            if ours in named:
                raise WorldError(f"{path} has both {ours} and {name}")
            self._given[ours] = self._given.pop(name)
            if found[2] == "weight":
                pair = [f"{found[1]}.{end}" for end in (_DOWN, _UP)]
                if missing := [each for each in pair if each not in named]:
                    raise WorldError(f"{path} lacks {missing[0]}, the other half of an adapter of {ours}")
                self._adapters[ours] = (self._given.pop(pair[0]), self._given.pop(pair[1]))
                self._check(ours, pair, path)
        self.shapes: Shapes = {ours: tensors.shapes[given] for ours, given in self._given.items()}

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU."""
        tensor = self._tensors.read(self._given[name])
        if name not in self._adapters or not tensor.is_floating_point():
            return tensor
        wide = torch.promote_types(tensor.dtype, torch.float32)
        down, up = (self._tensors.read(given).to(wide) for given in self._adapters[name])
        return tensor.to(wide) + ADAPTER_SCALE * (down @ up).T

    def _check(self, ours: str, pair: list[str], path: Path) -> None:
        shapes = self._tensors.shapes
        weight = shapes[self._given[ours]]
        down, up = (shapes[given] for given in self._adapters[ours])
        _check_rank(pair[0], down, path)
        for name, found, expected in (
            (pair[0], down, (weight[-1], ADAPTER_RANK)),
            (pair[1], up, (ADAPTER_RANK, weight[0])),
        ):
            if found != expected:
                raise WorldError(
                    f"{path}: {shown(name, 80)} has the shape {list(found)}, not {list(expected)}"
                )


def _check_rank(name: str, shape: tuple[int, ...], path: Path) -> None:
    if len(shape) != 2 or shape[1] != ADAPTER_RANK:
        raise WorldError(
            f"{path}: the adapter {shown(name, 80)} has the shape {list(shape)}; those of ARL2's release "
            f"have the rank {ADAPTER_RANK}, and what another is multiplied by is not known"
        )

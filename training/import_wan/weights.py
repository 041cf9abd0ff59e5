"""Weights of a transformer, read from a checkpoint and written as safetensors, a part at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from worldsim.storage.tensors import write_tensors
from worldsim.wan.checkpoint import read_finite, recognized
from worldsim.wan.config import WanConfig
from worldsim.wan.sources import INDEX_SUFFIX, SUFFIX, Tensors
from worldsim.wan.transformer import WanTransformer

NUM_SHARDS = 16
"""Files that a transformer is written in: beside what is mapped of a checkpoint, one is in memory."""
STEM = "model"


@dataclass(frozen=True)
class Checkpoint:
    """A transformer that was found to be one, and whose tensors are read when they are written.

    Attributes:
        named: Name in the file of each tensor of ours.
    """

    path: Path
    config: WanConfig
    tensors: Tensors
    named: Mapping[str, str]

    @property
    def num_parameters(self) -> int:
        """Number of weights of the transformer, its buttons left out."""
        return sum(torch.Size(self.tensors.shapes[given]).numel() for given in self.named.values())

    def write(self, folder: Path, num_values: list[int], dtype: torch.dtype) -> WanConfig:
        """Write the transformer into a folder, with buttons that have no effect yet; returns its shape.

        Args:
            folder: New; its files are the shards and their index.
            num_values: Values of each action axis.
            dtype: Of what is written.

        Raises:
            WorldError: If a tensor cannot be read, or holds what is no finite number.
        """
        config = replace(self.config, num_values=num_values)
        with torch.device("meta"):
            shapes = {name: each.shape for name, each in WanTransformer(config).state_dict().items()}
        shards = list(_split(shapes))
        folder.mkdir()
        for number, names in enumerate(shards, start=1):
            tensors = {name: self._tensor(name, shapes[name], dtype) for name in names}
            write_tensors(tensors, folder / _shard(number, len(shards)))
            del tensors  # before the next ones are read
        places = {name: _shard(n, len(shards)) for n, names in enumerate(shards, start=1) for name in names}
        size = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / f"{STEM}{INDEX_SUFFIX}").write_text(json.dumps(index, indent=2) + "\n")
        return config

    def _tensor(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if name not in self.named:
            return torch.zeros(shape, dtype=dtype)
        return read_finite(self.tensors, self.named[name], name, dtype, self.path)


def open_checkpoint(path: Path, group: str | None) -> Checkpoint:
    """Find out what a checkpoint is, without reading its weights; arguments are those of `load_transformer`.

    Raises:
        WorldError: As `load_transformer`, but for what is wrong with the numbers.
    """
    tensors, named, config = recognized(path, group)
    return Checkpoint(path, config, tensors, named)


def _split(shapes: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    """Yield the names of each shard's tensors, about as many numbers each."""
    limit = sum(shape.numel() for shape in shapes.values()) / NUM_SHARDS
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        if names and held + shape.numel() > limit:
            yield names
            names, held = [], 0
        names.append(name)
        held += shape.numel()
    yield names


def _shard(number: int, total: int) -> str:
    return f"{STEM}-{number:05d}-of-{total:05d}{SUFFIX}"

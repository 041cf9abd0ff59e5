"""Files that hold a checkpoint's tensors: safetensors, whole or in shards, and pickles of tensors alone."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.storage.files import is_inner_path, printable, shown
from worldsim.storage.tensors import PICKLES, READ_ERRORS, read_object
from worldsim.wan.keys import GROUPS

SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
UNFINISHED = {".part", ".incomplete", ".crdownload", ".download", ".aria2", ".tmp"}
"""What browsers and download programs call a file that is not whole yet."""
HAS_CODE = re.compile(r"GLOBAL|operand 14[79]\b|Can only (create|build)")
"""In what torch says of a pickle with more than tensors; 147 and 149 stand in newer pickles alone."""
POINTER = b"version https://git-lfs"


class Tensors(Protocol):
    """Tensors of a checkpoint by the names in its file; each is read when it is asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU."""
        ...


@dataclass(frozen=True)
class SafetensorsFiles:
    """One file, or several that an index names."""

    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path]
    """File of each tensor."""

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU, and let go of the file.

        A file that stays open keeps in memory all that was read of it; peak memory would be twice the model.

        Raises:
            WorldError: If it cannot be read.
        """
        path = self.files[name]
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name).clone()
        except READ_ERRORS as error:
            raise WorldError(f"{path}: {shown(name)} cannot be read: {_told(error)}") from error


class PickledTensors:
    """A pickle of tensors, mapped into memory.

    What is read of a mapped file stays in memory as long as the mapping: it is mapped anew after each
    sixteenth of it, so that no more than that is there beside what is made of it.
    """

    def __init__(self, file: Path, group: str | None) -> None:
        self._file, self._group = file, group
        self._tensors = _group_of(_unpickle(file), file, group)
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(t.shape) for n, t in self._tensors.items()}
        self._is_mapped, self._num_read = zipfile.is_zipfile(file), 0

    def read(self, name: str) -> Tensor:
        """Read one tensor onto the CPU."""
        if self._is_mapped and self._num_read * 16 > self._file.stat().st_size:
            self._num_read, self._tensors = 0, {}  # unmapped, before it is mapped again
            self._tensors = _group_of(_unpickle(self._file), self._file, self._group)
        tensor = self._tensors[name].detach().clone()
        self._num_read += tensor.nbytes
        return tensor


def open_tensors(path: Path, group: str | None = None) -> Tensors:
    """Open a checkpoint's file, or the one in a folder.

    Args:
        path: A `.safetensors` file, the `.safetensors.index.json` of its shards, a `.pt` file and its like,
            or a folder that holds one of them, itself or in `transformer`.
        group: Entry of a training's checkpoint to read; by default the first of `GROUPS` that is there.

    Raises:
        WorldError: If there is none, it is damaged or not whole, or it holds anything but tensors.
    """
    file = _file_in(path) if path.is_dir() else path
    if not file.is_file():
        raise WorldError(f"{path} does not exist; a checkpoint is a file or a folder that holds one")
    if file.suffix in UNFINISHED:
        raise WorldError(f"{file} is a download that has not ended: its name ends in {file.suffix}")
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise WorldError(f"{file} is only a pointer of Git LFS: run `git lfs pull` to fetch its contents")
    if file.name.endswith(INDEX_SUFFIX):
        return _open_shards(file)
    if file.suffix == SUFFIX:
        shapes = _shapes_of(file)
        return SafetensorsFiles(shapes, dict.fromkeys(shapes, file))
    if file.suffix in PICKLES:
        return PickledTensors(file, group)
    endings = ", ".join((SUFFIX, *sorted(PICKLES)))
    raise WorldError(f"{file} is no checkpoint: its name ends in none of {endings}")


def _file_in(folder: Path) -> Path:
    """Return the checkpoint in a folder: an index before a single file, safetensors before pickles."""
    places = [folder, folder / "transformer"]
    for pattern in (f"*{INDEX_SUFFIX}", f"*{SUFFIX}", *(f"*{suffix}" for suffix in sorted(PICKLES))):
        for place in places:
            found = sorted(place.glob(pattern)) if place.is_dir() else []
            if len(found) > 1:
                names = ", ".join(shown(path.name) for path in found[:3])
                raise WorldError(
                    f"{place} holds {len(found)} checkpoints ({names} ...): name the one to read"
                )
            if found:
                return found[0]
    raise WorldError(f"{folder} holds no checkpoint: neither a {SUFFIX} nor a .pt file")


def _shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()  # it is no mapping
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except READ_ERRORS as error:
        raise WorldError(f"{file} is damaged or only part of a download: {_told(error)}") from error


def _open_shards(index: Path) -> SafetensorsFiles:
    listed = read_object(index).get("weight_map")
    texts = isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())
    if not texts or not listed or not all(is_inner_path(name) for name in listed.values()):
        raise WorldError(
            f"{index} lists no shards: its weight_map must name a file beside it for each tensor"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(listed.values())):
        shard = index.parent / name
        if not shard.is_file():
            raise WorldError(
                f"{index} names {shown(name)}, which is not beside it: the download is not whole"
            )
        held = _shapes_of(shard)
        shapes |= {key: held[key] for key, file in listed.items() if file == name and key in held}
    if missing := sorted(listed.keys() - shapes.keys()):
        raise WorldError(
            f"{index} names {len(missing)} tensors that its shards lack, {shown(missing[0])} first"
        )
    return SafetensorsFiles(shapes, {key: index.parent / name for key, name in listed.items()})


def _unpickle(file: Path) -> Any:
    """Return what a pickle holds, if these are tensors, numbers and texts: nothing in it is run."""
    try:
        is_zip = zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if not HAS_CODE.search(str(error)):
            raise WorldError(f"{file} is damaged or only part of a download: {_told(error)}") from error
        raise WorldError(
            f"{file} holds objects or code beside tensors, which are never loaded: save its state_dict alone"
        ) from error
    except (*READ_ERRORS, EOFError, TypeError, IndexError) as error:
        raise WorldError(f"{file} is damaged or only part of a download: {_told(error)}") from error


def _group_of(loaded: Any, file: Path, group: str | None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's entry, or of the whole, if it has no such entry."""
    if not isinstance(loaded, dict) or not loaded:
        raise WorldError(f"{file} holds no dictionary of tensors but {shown(type(loaded).__name__)}")
    if group is not None and not isinstance(loaded.get(group), dict):
        raise WorldError(f"{file} has no entry {shown(group)}; it has {_listed(loaded)}")
    chosen = group or next((name for name in GROUPS if isinstance(loaded.get(name), dict)), None)
    tensors = loaded if chosen is None else loaded[chosen]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()):
        where = f"the entry {chosen} of {file}" if chosen else str(file)
        raise WorldError(f"{where} holds {_listed(tensors)}: not tensors alone, and no entry that does")
    return tensors


def _listed(names: Mapping[Any, Any]) -> str:
    first = ", ".join(shown(str(name)) for name in list(names)[:4])
    return f"{first} ..." if len(names) > 4 else first


def _told(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    return shown(printable(text), 160)

"""Compiled code that travels with a run: what Inductor and Triton made, in one file for each device."""

from __future__ import annotations

import json
import platform
import time
import zipfile
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from worldsim.storage.files import writing

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CACHES = "caches"
KEY, CONTENTS, GRAPHS, KERNELS = "key.json", "contents.json", "graphs/", "kernels/"
"""In the file: what it fits, the names of all that was compiled, and both kinds of it."""
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, OSError)


def cache_file(folder: Path, fabric: Fabric) -> Path:
    """Return the file of this process's device: compiled code names the device by its number."""
    return folder / f"device-{fabric.local_rank}.zip"


def machine_key(device: torch.device) -> dict[str, str]:
    """Return what has to be the same for compiled code to be of use."""
    kernels = _own_kernels()
    on_gpu = device.type == "cuda"
    # Code for a CPU is compiled for a number of threads.
    chip = (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()} threads"
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": kernels.VERSION if kernels else "none",
        "device": torch.cuda.get_device_name(device) if on_gpu else chip,
    }


def load_caches(fabric: Fabric, folder: Path) -> bool:
    """Read what an earlier run compiled, before anything is compiled here, and note what will be.

    A file that is missing, damaged, or of other versions or another device costs one line on the screen and
    the time that compiling takes.

    Args:
        fabric: Its device is compiled for.
        folder: `OUT/caches` of that run, which need not exist. What is in it is run.

    Returns:
        Whether it was read.
    """
    kernels = _own_kernels()
    if kernels is not None:
        kernels.track()
    path, began = cache_file(folder, fabric), time.monotonic()
    try:
        files = _read(path, machine_key(fabric.device))
        for name in sorted(name for name in files if name.startswith(GRAPHS)):
            if torch.compiler.load_cache_artifacts(files[name]) is None:
                raise ValueError(f"{name} cannot be read")
        if kernels is not None:
            kernels.restore(_below(KERNELS, files))
        count = len(json.loads(files[CONTENTS]))
    except DAMAGES as error:
        print(f"compiled code is not taken from {path}: {error}")
        return False
    seconds = time.monotonic() - began
    print(f"{count} compiled pieces taken from {path} in {seconds:.1f} s")
    return True


def save_caches(fabric: Fabric, folder: Path) -> bool:
    """Write what this process compiled, or found compiled, if the file does not hold it yet.

    Returns:
        Whether there was something new.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    kernels, artifacts = _own_kernels(), torch.compiler.save_cache_artifacts()
    own = {KERNELS + name: data for name, data in kernels.used_files().items()} if kernels else {}
    graphs = (
        {f"{kind} {key}" for kind, keys in artifacts[1].artifacts.items() for key in keys}
        if artifacts
        else set()
    )
    path, key = cache_file(folder, fabric), machine_key(fabric.device)
    try:
        files = _read(path, key)
        known = set(json.loads(files[CONTENTS]))
    except DAMAGES:
        files, known = {KEY: json.dumps(key).encode()}, set()
    contents = known | graphs | own.keys()
    if contents == known:
        return False
    if artifacts and not graphs <= known:
        # PyTorch reads only the newest of each kind from what was saved twice: what was saved first is kept.
        files[f"{GRAPHS}{len(_below(GRAPHS, files)):03d}"] = artifacts[0]
    files |= own | {CONTENTS: json.dumps(sorted(contents)).encode()}
    folder.mkdir(parents=True, exist_ok=True)
    with writing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return True


def _read(path: Path, key: Mapping[str, str]) -> dict[str, bytes]:
    """Return what is in a file, if it fits this machine; otherwise one of `DAMAGES`."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    found = json.loads(files[KEY])
    if not isinstance(found, dict):
        raise ValueError(f"its {KEY} is damaged")
    differing = [name for name in key if found.get(name) != key[name]]
    if differing:
        changes = "; ".join(f"{name} {found.get(name)}, here {key[name]}" for name in differing)
        raise ValueError(f"it is of another machine ({changes})")
    return files


def _below(prefix: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}


def _own_kernels() -> ModuleType | None:
    """Return what knows the project's own kernels; None where Triton is not installed."""
    if find_spec("triton") is None:
        return None
    from kernels.gpu import compiled

    return compiled

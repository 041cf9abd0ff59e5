"""Compiled kernels of this process as files, for another machine with the same device.

`torch.compiler.save_cache_artifacts` holds what Inductor generates; kernels that are launched by hand are in
Triton's own cache alone, a folder for each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton import __version__, knobs

VERSION = __version__
GROUP = "__grp__"
"""In front of the name of the file that lists a kernel's others, by their whole paths."""


class UsedKernels:
    """A listener of Triton's compiler that keeps where the kernels of a package are.

    Attributes:
        package: Whose kernels: Inductor's travel another way.
        folders: By name, which is the hash of all that decides a kernel.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.folders: dict[str, Path] = {}

    def __call__(self, *, src: Any, metadata_group: Mapping[str, str], **_: Any) -> None:
        """Note a kernel that was compiled, or found in the cache."""
        module = getattr(getattr(src, "fn", None), "module", "")
        if module.partition(".")[0] == self.package and metadata_group:
            folder = Path(next(iter(metadata_group.values()))).parent
            self.folders[folder.name] = folder


def track() -> None:
    """Note from now on which kernels of this project are compiled or found in Triton's cache."""
    # Inductor sets it to a folder of its own when it compiles, after some kernels were looked for elsewhere.
    os.environ.setdefault("TRITON_CACHE_DIR", knobs.cache.dir)
    if not isinstance(knobs.compilation.listener, UsedKernels):
        knobs.compilation.listener = UsedKernels(__name__.partition(".")[0])


def used_files() -> dict[str, bytes]:
    """Return the files of the kernels noted so far, by `FOLDER/NAME` in Triton's cache."""
    listener = knobs.compilation.listener
    folders = listener.folders if isinstance(listener, UsedKernels) else {}
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name, folder in sorted(folders.items())
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "lock"
    }


def restore(files: Mapping[str, bytes]) -> None:
    """Put what `used_files` returned into this machine's cache; kernels that are there stay.

    Raises:
        ValueError: If a list of files is damaged.
    """
    for name in sorted({Path(place).parent.name for place in files}):
        folder = Path(knobs.cache.dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        of_kernel = {
            Path(place).name: data for place, data in files.items() if Path(place).parent.name == name
        }
        # The list comes last: Triton looks for it first.
        for file, data in sorted(of_kernel.items(), key=lambda each: each[0].startswith(GROUP)):
            if (folder / file).exists():
                continue
            if file.startswith(GROUP):
                paths = json.loads(data)["child_paths"]
                data = json.dumps({"child_paths": {each: str(folder / each) for each in paths}}).encode()
            part = folder / f"{file}.{os.getpid()}.part"
            part.write_bytes(data)
            part.replace(folder / file)

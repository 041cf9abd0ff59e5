"""Compilation of Triton kernels for cards that this machine lacks, and the assembler's word on it."""

from __future__ import annotations

import re
import subprocess
import threading
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from kernels.gpu.launch import LaunchConfig

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that a program may have, by capability."""
_LOGS: dict[str, str] = {}
"""What the assembler told of a kernel while it was compiled, by the kernel's hash."""


def compile_for(
    kernel: Any, launch: LaunchConfig, capability: int, constants: dict[str, Any], types: dict[str, str]
) -> Any:
    """Compile a kernel whose pointers are to fp32 unless `types` says otherwise, all well aligned."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature: dict[str, str] = {}
    attributes = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name == "scale":
            signature[name] = "fp32"
        else:
            signature[name] = f"*{types.get(name, 'fp32')}" if name.endswith("_pointer") else "i32"
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    if threading.current_thread() is not threading.main_thread():  # all threads share one standard output
        return triton.compile(source, target=target, options=launch.options())
    with triton.knobs.nvidia.scope(), redirect_stdout(StringIO()) as told:
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=target, options=launch.options())
    if told.getvalue():  # not if it came from the cache
        _LOGS[compiled.hash] = told.getvalue()
    return compiled


def bytes_spilled(compiled: Any, capability: int, folder: Path) -> int:
    """Return how much of the kernel did not fit into registers, as the assembler told or is asked."""
    told = _LOGS.get(compiled.hash) or _assemble(compiled, capability, folder)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    assert spilled is not None, told
    return sum(map(int, spilled.groups()))


def _assemble(compiled: Any, capability: int, folder: Path) -> str:
    listing = folder / "kernel.ptx"
    listing.write_text(compiled.asm["ptx"], encoding="utf-8")
    assembler = get_ptxas(capability).path  # which of several an architecture takes differs between releases
    architecture = f"sm_{capability}" + ("a" if capability == 90 else "")
    command = [assembler, "-v", "--gpu-name", architecture, str(listing), "-o", str(folder / "kernel")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr

"""Every Triton kernel compiles for the cards it is meant for, on a machine that has none.

On sm_90, which we train on, nothing may spill. sm_80 has no wgmma, whose operands wait in shared memory: the
same cuts take more registers there and some spill; they still have to compile and fit.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kernels import triton_frame_maps, triton_gradients, triton_scan  # noqa: E402
from kernels.triton_launch import DEFAULT, Cut  # noqa: E402

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
SIZES = {
    "num_frames": 32,
    "num_tokens": 80,
    "num_heads": 6,
    "key_width": 64,
    "value_width": 64,
    "padded": 128,
    "block": DEFAULT.block,
    "levels": 4,
    "precision": DEFAULT.precision,
}
KERNELS = {
    "invert": triton_frame_maps.invert_blocks,
    "build": triton_frame_maps.frame_map_forward,
    "scan": triton_scan.scan_forward,
    "scan_gradient": triton_scan.scan_backward,
    "solve": triton_gradients.frame_map_solve,
    "values": triton_gradients.value_gradient,
    "keys": triton_gradients.key_gradient,
}
CUTS: dict[str, Cut] = {name: getattr(DEFAULT, name.removesuffix("_gradient")) for name in KERNELS}


def compile_kernel(kernel: Any, cut: Cut, capability: int, width: int = 64, value_type: str = "fp32") -> Any:
    size = min(cut.size, width)
    sizes = SIZES | {"rows": size, "columns": size, "stages": cut.stages}
    sizes |= {"key_width": width, "value_width": width}
    constants = {name: value for name, value in sizes.items() if name in kernel.arg_names}
    signature: dict[str, str] = {}
    attributes = {}
    for index, name in enumerate(kernel.arg_names):
        pointer = f"*{value_type}" if name in ("v_pointer", "dv_pointer") else "*fp32"
        signature[name] = pointer if name.endswith("_pointer") else "i32"
        attributes[(index,)] = [["tt.divisibility", 16]]
        if name in constants:
            signature[name] = "constexpr"
            del attributes[(index,)]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=cut.options())


@pytest.mark.slow
@pytest.mark.parametrize("capability", sorted(SHARED_MEMORY))
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_compiles_and_fits(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_kernel(KERNELS[name], CUTS[name], capability)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    listing = tmp_path / "kernel.ptx"
    listing.write_text(compiled.asm["ptx"], encoding="utf-8")
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    architecture = f"sm_{capability}" + ("a" if capability == 90 else "")
    command = [
        str(ptxas),
        "-v",
        "--gpu-name",
        architecture,
        str(listing),
        "-o",
        str(tmp_path / "kernel.cubin"),
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    if capability == 80:
        return
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    assert spilled is not None, told
    assert spilled.groups() == ("0", "0"), told


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_compiles_for_narrow_heads_and_half_precision_values(
    name: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_kernel(KERNELS[name], CUTS[name], 90, width, "bf16")
    assert compiled.metadata.shared <= SHARED_MEMORY[90]

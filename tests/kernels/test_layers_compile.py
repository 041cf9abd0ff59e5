"""Compilation of a layer's Triton kernels for the cards they are meant for, on a machine that has none.

On sm_90 nothing may spill that is launched in training; sm_80 has fewer registers to give to what is held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")

from kernels.gpu import heads, norm, recall, turned_norm
from kernels.gpu.attention import frame, window, window_gradients
from kernels.gpu.attention.window_launch import sizes_of
from kernels.gpu.launch import LaunchConfig
from kernels.gpu.settings import DEFAULT, HALF, WIDE, LayerConfig
from tests.kernels.candidates import layer_configs
from tests.kernels.compilation import SHARED_MEMORY, bytes_spilled, compile_for

pytestmark = pytest.mark.usefixtures("compiled_once")

KERNELS = {
    "norm": norm.modulate_forward,
    "norm_gradient": norm.modulate_gradient,
    "turned": turned_norm.turned_norm_forward,
    "turned_gradient": turned_norm.turned_norm_gradient,
    "heads": heads.map_heads_forward,
    "heads_gradient": heads.map_heads_gradient,
    "recall": recall.recall_forward,
    "recall_gradient": recall.recall_gradient,
    "attend": frame.attend_forward,
    "attend_gradient": frame.attend_gradient,
    "window": window.attend_window_forward,
    "window_gradient": window_gradients.attend_window_query_gradient,
    "window_key_gradient": window_gradients.attend_window_key_gradient,
}
TOKENS = ("q_pointer", "dq_pointer", "local_pointer", "branch_pointer", "d_branch_pointer")
"""What comes in the values' type wherever a kernel takes it; more do in some kernels."""
OWN = {
    "norm": ("out_pointer",),
    "norm_gradient": ("d_out_pointer",),
    "turned": ("x_pointer", "normed_pointer", "turned_pointer"),
    "turned_gradient": ("x_pointer", "dx_pointer", "d_normed_pointer", "d_turned_pointer"),
    "heads": ("x_pointer",),
    "heads_gradient": ("x_pointer", "dx_pointer"),
    "recall": ("out_pointer", "gate_pointer"),
    "recall_gradient": ("d_out_pointer", "gate_pointer", "d_gate_pointer", "d_angle_pointer"),
    "attend": ("k_pointer", "v_pointer", "out_pointer"),
    "attend_gradient": ("k_pointer", "v_pointer", "d_out_pointer", "dk_pointer", "dv_pointer"),
    "window": ("k_pointer", "v_pointer", "cached_k_pointer", "cached_v_pointer", "out_pointer"),
    "window_gradient": (
        *("k_pointer", "v_pointer", "cached_k_pointer", "cached_v_pointer"),
        *("out_pointer", "d_out_pointer"),
    ),
    "window_key_gradient": ("k_pointer", "v_pointer", "d_out_pointer", "dk_pointer", "dv_pointer"),
}


def launches_of(config: LayerConfig) -> dict[str, LaunchConfig]:
    norms = {"norm": config.norm, "norm_gradient": config.norm_gradient}
    norms |= {"turned": config.turned, "turned_gradient": config.turned_gradient}
    heads = {"heads": config.heads, "heads_gradient": config.heads_gradient}
    attention = {"attend": config.attend, "attend_gradient": config.attend_gradient}
    recalls = {"recall": config.recall, "recall_gradient": config.recall_gradient}
    windows = {"window": config.window, "window_gradient": config.window_gradient}
    windows["window_key_gradient"] = config.window_key_gradient
    return norms | heads | recalls | attention | windows


def compile_layer(
    name: str, config: LayerConfig, capability: int, value_type: str, width: int = 64, **changed: Any
) -> Any:
    launch = launches_of(config)[name]
    constants = {
        "num_tokens": 160 if name.startswith("recall") else 80,
        "num_places": 80,
        "first": 64,
        "rest": 16,
        "num_heads": 6,
        "width": 384 if name.startswith(("norm", "turned")) else width,
        "padded": 512,
        "head_pairs": 32,
        "keeps": True,
        "rows": launch.block_size,
        "block": launch.block_size,
        "stages": launch.num_stages,
        "span": 4,
        "eps": 1e-6,
        "turns": True,
        "adds": True,
        "carries": True,
        "precision": config.precision,
    }
    if name.startswith("window"):
        tokens = torch.empty(1, 1, 2, changed.pop("tokens", 80), 6, width, device="meta")
        constants |= {"slots": 8, "sinks": False} | sizes_of(tokens, 6, launch)
    types = dict.fromkeys((*TOKENS, *OWN[name]), value_type)
    types |= {"visible_pointer": "u8", "is_empty_pointer": "u8"}
    return compile_for(KERNELS[name], launch, capability, constants | changed, types)


@pytest.mark.slow
@pytest.mark.parametrize("capability", sorted(SHARED_MEMORY))
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_compiles_and_fits(name: str, capability: int, tmp_path: Path) -> None:
    compiled = compile_layer(name, HALF, capability, "bf16")
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    if capability == 90:
        assert bytes_spilled(compiled, capability, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_compiles_in_fp32(name: str, tmp_path: Path) -> None:
    compiled = compile_layer(name, DEFAULT, 90, "fp32")
    assert compiled.metadata.shared <= SHARED_MEMORY[90]
    # Three products for one need more than there is; nobody trains so on a card.
    if name not in ("recall_gradient", "attend_gradient") and not name.startswith("window"):
        assert bytes_spilled(compiled, 90, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("name", ["heads", "heads_gradient", "recall", "recall_gradient"])
def test_kernel_compiles_for_other_heads(name: str, width: int, tmp_path: Path) -> None:
    compiled = compile_layer(name, WIDE if width > 64 else HALF, 90, "bf16", width)
    assert compiled.metadata.shared <= SHARED_MEMORY[90]
    assert bytes_spilled(compiled, 90, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "width"), [(20, 32), (160, 64), (80, 128)])
@pytest.mark.parametrize("name", ["window", "window_gradient", "window_key_gradient"])
def test_a_window_compiles_for_other_frames(name: str, tokens: int, width: int, tmp_path: Path) -> None:
    compiled = compile_layer(name, WIDE if width > 64 else HALF, 90, "bf16", width, tokens=tokens)
    assert compiled.metadata.shared <= SHARED_MEMORY[90]
    assert bytes_spilled(compiled, 90, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("norm", {"adds": False}),
        ("norm_gradient", {"adds": False, "carries": False}),
        ("norm_gradient", {"adds": False}),
        ("turned", {"keeps": False}),
        ("turned_gradient", {"keeps": False}),
        ("heads", {"turns": False}),
        ("heads_gradient", {"turns": False}),
        ("window_key_gradient", {"sinks": True}),
    ],
    ids=[
        "norm alone",
        "its gradient",
        "its gradient beside another",
        "turned alone",
        "that gradient",
        "maps alone",
        "their gradient",
        "the gradient of a sink",
    ],
)
def test_what_can_be_left_out_compiles(name: str, changed: dict[str, Any], tmp_path: Path) -> None:
    compiled = compile_layer(name, HALF, 90, "bf16", **changed)
    assert bytes_spilled(compiled, 90, tmp_path) == 0


@pytest.mark.slow
def test_every_candidate_compiles() -> None:
    seen = set()
    for config in layer_configs():
        for name in KERNELS:
            launch = launches_of(config)[name]
            if (name, launch) not in seen and launch != launches_of(HALF)[name]:
                seen.add((name, launch))
                compiled = compile_layer(name, config, 90, "bf16")
                assert compiled.metadata.shared <= SHARED_MEMORY[90], (name, launch)
    assert len(seen) == len(layer_configs()) - 1

"""Launch settings of the kernels of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.gpu.launch import LaunchConfig


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """Launch settings of the kernels of a layer; all give the same numbers up to rounding.

    Attributes:
        precision: How operands are multiplied: "tf32x3" (about fp32), "tf32", "ieee" or, rounded, "bf16".
        norm: `modulate_forward`; its block size is the tokens of a program.
        norm_gradient: `modulate_gradient`; its block size is the tokens of a step.
        turned: `turned_norm_forward`; the tokens of a program.
        turned_gradient: `turned_norm_gradient`; the tokens of a step.
        heads: `map_heads_forward`; the tokens of a step.
        heads_gradient: `map_heads_gradient`; the tokens of a step.
        recall: `recall_forward`; the tokens of a step.
        recall_gradient: `recall_gradient`; the tokens of a step.
        attend: `attend_forward` of `kernels.gpu.attention.frame`; the queries of a step.
        attend_gradient: `attend_gradient` there; the queries of a step.
        window: `attend_window_forward` of `kernels.gpu.attention`; the queries of a program.
        window_gradient: `attend_window_query_gradient` there; the queries of a program.
        window_key_gradient: `attend_window_key_gradient` there; the queries of a step.
        programs: Minimum of programs that a gradient of maps is cut into, if there are so many heads of all
            frames. More fill a card better, fewer leave less to add up.
        forward_programs: The same for `map_heads_forward`, where fewer load a map less often.
    """

    precision: str = "tf32x3"
    norm: LaunchConfig = LaunchConfig(8, 4)
    norm_gradient: LaunchConfig = LaunchConfig(2, 1, 2)
    turned: LaunchConfig = LaunchConfig(2, 4)
    turned_gradient: LaunchConfig = LaunchConfig(1, 1, 3)
    heads: LaunchConfig = LaunchConfig(32, 4)
    heads_gradient: LaunchConfig = LaunchConfig(16, 4)
    recall: LaunchConfig = LaunchConfig(32, 4)
    recall_gradient: LaunchConfig = LaunchConfig(16, 4)
    attend: LaunchConfig = LaunchConfig(128, 8)
    attend_gradient: LaunchConfig = LaunchConfig(128, 8, 1, 128)
    window: LaunchConfig = LaunchConfig(64, 4)
    window_gradient: LaunchConfig = LaunchConfig(64, 4)
    window_key_gradient: LaunchConfig = LaunchConfig(64, 8)
    programs: int = 792
    forward_programs: int = 2376


DEFAULT = LayerConfig()
FP16 = LayerConfig("tf32")
"""For operands that come in fp16, which TF32 holds exactly."""
HALF = LayerConfig(
    "bf16",
    heads=LaunchConfig(64, 4, 3),
    heads_gradient=LaunchConfig(64, 4, 2),
    recall=LaunchConfig(64, 4, 2),
    recall_gradient=LaunchConfig(64, 4, 2),
    turned_gradient=LaunchConfig(4, 4),
    window=LaunchConfig(64, 4, 2),
    window_gradient=LaunchConfig(64, 4, 2),
    window_key_gradient=LaunchConfig(64, 8, 2),
)
"""For operands that come in bf16. Maps, states and what they multiply are rounded to it, in writing too,
where autocast is off; lengths, angles, sums and what a key has along its own gradient stay in fp32."""

WIDE = replace(
    HALF,
    heads=LaunchConfig(64, 4, 2),
    heads_gradient=LaunchConfig(32, 8, 2),
    recall_gradient=LaunchConfig(16, 8),
    window_gradient=LaunchConfig(64, 8, 2),
    window_key_gradient=LaunchConfig(64, 8),
)
"""For heads of 128 in bf16, compiled but not yet measured: what `HALF` has would spill."""


def default_for(x: Tensor) -> LayerConfig:
    """Return the default settings for tokens of this kind."""
    return {torch.float32: DEFAULT, torch.float16: FP16}.get(x.dtype, HALF)


def heads_default_for(x: Tensor) -> LayerConfig:
    """Return the default settings for tokens `[..., H, D]`."""
    config = default_for(x)
    return WIDE if config is HALF and x.shape[-1] > 64 else config

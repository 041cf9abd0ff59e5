"""Computation of an update on a GPU: kernels, precision and memory as configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._functorch import config as functorch

from kernels.layer_checks import widths_of
from kernels.selection import IN_TRAINING, using
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig
from worldsim.settings import check_settings, setting

FORMS = {"auto": IN_TRAINING, "reference": "torch", "fused": "triton"}
"""Forms of a layer's operators by what `StepConfig.kernels` calls them."""


MAX_COMPILED = 64
"""Forms of a block that are compiled; what comes after them runs without compiling, and PyTorch hardly says
so. There is one for each kind of block, with and without gradients, and for other settings in one process."""


@dataclass(kw_only=True, slots=True)
class StepConfig:
    """How an update is computed: its speed and memory, and its result up to rounding."""

    kernels: str = setting(
        "auto",
        "Norms, rotations, gates and attention on a GPU: reference leaves them to PyTorch, fused takes a "
        "kernel for each (for attention within frames up to 128 tokens, over windows heads of 32 and 64), "
        "auto what was measured to be faster (docs/experiments/training.md).",
        choices=tuple(FORMS),
    )
    scan_precision: str = setting(
        "tf32",
        "How a GPU multiplies in the scan over frames: tf32x3 about as exactly as fp32, tf32 with 11 bits "
        "and a third of the products (losses: docs/experiments/training.md).",
        choices=("tf32x3", "tf32"),
    )
    kept_share: float = setting(
        1.0,
        "Share of what compiled blocks would keep for their gradient that they may keep; what is missing is "
        "computed again. 0.7 takes two fifths of the memory, 9 % more time (docs/experiments/training.md).",
        minimum=0,
        maximum=1,
    )
    graphs: bool | None = setting(
        None,
        "Record a pass, forward and backward, as one CUDA graph and replay it for all others: the processor "
        "no longer launches its kernels one by one. The numbers are the same (docs/decisions/0041). null is "
        "true where blocks are compiled for a GPU and nothing stands in the way.",
    )

    def __post_init__(self) -> None:
        check_settings(self, "step.")


def check_step(
    config: StepConfig,
    device: torch.device,
    model: DenoiserConfig,
    *,
    is_compiled: bool,
    is_sharded: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Raise a `WorldError` for settings that this device or this model cannot be trained with.

    Args:
        config: Settings.
        device: Of the training.
        model: What is trained.
        is_compiled: Whether its blocks are compiled.
        is_sharded: Whether its weights are spread over devices.
        dtype: Of its products.
    """
    if config.kernels == "fused" and device.type != "cuda":
        raise WorldError(f"step.kernels=fused runs on CUDA, but the training is on {device.type}")
    widths = widths_of(dtype)
    if config.kernels == "fused" and model.layer_counts["hybrid"] and model.head_width not in widths:
        known = ", ".join(map(str, widths))
        raise WorldError(
            f"step.kernels=fused takes heads of {known} features, but model.dim {model.dim} and "
            f"model.num_heads {model.num_heads} make them {model.head_width} wide"
        )
    if config.kept_share < 1 and not is_compiled:
        raise WorldError(f"step.kept_share={config.kept_share} needs fabric.compile=true")
    hindrance = _hindrance(device, model, is_sharded=is_sharded)
    if config.graphs and hindrance is not None:
        raise WorldError(f"step.graphs=true {hindrance}")


def replays_passes(
    config: StepConfig, device: torch.device, model: DenoiserConfig, *, is_compiled: bool, is_sharded: bool
) -> bool:
    """Return whether passes are recorded as CUDA graphs and replayed; for the arguments see `check_step`."""
    if config.graphs is not None:
        return config.graphs
    return is_compiled and _hindrance(device, model, is_sharded=is_sharded) is None


def _hindrance(device: torch.device, model: DenoiserConfig, *, is_sharded: bool) -> str | None:
    """Return what a recorded pass asks for and does not find here, if anything."""
    if device.type != "cuda":
        return f"runs on CUDA, but the training is on {device.type}"
    if is_sharded:
        return "needs whole weights on each device, but fabric.strategy=fsdp spreads them: choose ddp"
    if model.full_layers:
        return (
            f"replays passes without tables that are made anew in each, but the layers {model.full_layers} "
            "see all past frames and need some"
        )
    return None


@contextmanager
def computing(config: StepConfig) -> Iterator[None]:
    """Compute updates as the settings say until the end of the block.

    `kept_share` holds for what is compiled meanwhile, the others also for what was compiled before: it is
    compiled again where they change it.
    """
    from torch._dynamo import config as dynamo  # slow to import

    chosen = using(layers=FORMS[config.kernels], scan_precision=config.scan_precision)
    budget = functorch.patch(activation_memory_budget=config.kept_share)
    with chosen, budget, dynamo.patch(recompile_limit=MAX_COMPILED):
        yield

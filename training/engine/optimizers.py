"""Optimizers: Muon for the matrices of the blocks, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.engine.muon import BatchedMuon
from worldsim.settings import check_settings, setting


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Learning rates at full height."""

    muon: float = setting(
        2e-3,
        "Of the blocks' weight matrices (Muon, scaled to AdamW's updates as in arXiv 2502.16982).",
        minimum=0,
    )
    adamw: float = setting(1e-3, "Of everything else.", minimum=0)
    weight_decay: float = setting(0.01, "Decoupled, on matrices only.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self, "optimizer.")


def make_partial_optimizers(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig
) -> list[torch.optim.Optimizer]:
    """Return AdamW for a few parameters of a model; with `config.muon` above 0, Muon for their matrices."""
    matrices = [parameter for parameter in parameters if parameter.dim() == 2 and config.muon > 0]
    others = [parameter for parameter in parameters if parameter.dim() != 2 or config.muon == 0]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        rate, decay = config.muon, config.weight_decay
        optimizers.append(BatchedMuon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=config.adamw, betas=(0.9, 0.95), weight_decay=0.0))
    return optimizers


def make_optimizers(denoiser: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the projections and MLPs of all blocks, AdamW for the rest."""
    matrices, others = [], []
    for name, parameter in denoiser.named_parameters():
        is_projection = any(f".{part}.weight" in name for part in ("q", "k", "v", "o", "ffn.0", "ffn.2"))
        (matrices if "blocks." in name and is_projection else others).append(parameter)
    return [
        BatchedMuon(
            matrices, lr=config.muon, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=config.adamw, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def check_optimizer(optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]) -> None:
    """Raise `ValueError` if the state that an optimizer was given is not of its parameters.

    PyTorch looks at the numbers of parameters only, and the next update would fail.

    Args:
        optimizer: After its state was loaded.
        before: Its groups as they were.
    """
    for group, known in zip(optimizer.param_groups, before, strict=True):
        for name, value in known.items():
            if name != "params" and type(group.get(name)) is not type(value):
                raise ValueError(f"the optimizer's {name} is {group.get(name)!r}")
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor) or (value.dim() and value.shape != parameter.shape):
                    raise ValueError(f"the optimizer's {name} has another shape than what it belongs to")

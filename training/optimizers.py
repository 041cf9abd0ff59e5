"""Which weights learn how: matrices of the blocks by Muon, everything else by AdamW."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from training.muon import BatchedMuon


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Learning rates at full height.

    Attributes:
        muon: Of the blocks' weight matrices (Muon, scaled to AdamW's updates as in arXiv 2502.16982).
        adamw: Of everything else.
        weight_decay: Decoupled, on matrices only.
    """

    muon: float = 2e-3
    adamw: float = 1e-3
    weight_decay: float = 0.01


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

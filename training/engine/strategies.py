"""Strategies of Fabric for several devices: DDP, and weights spread over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.parallel import ParallelStrategy
from lightning_fabric.strategies.strategy import Strategy, _BackwardSyncControl
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from worldsim.errors import WorldError
from worldsim.model.block import Block
from worldsim.wan.layers import WanBlock

DOORS = ("forward_sequence", "attend_sequence")
"""Of a video transformer's layer, what training calls beside `forward`; each gathers its weights."""


class ShardedStrategy(DDPStrategy):
    """DDP's processes, with the weights of each block gathered when it runs and freed after it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._backward_sync_control = _ShardedSync()

    def setup_environment(self) -> None:
        """Start the processes, with an autocast that rounds weights anew in each product.

        A rounded copy that autocast keeps would outlive the gathered weights, and if the pass that predicts
        its own context made it, its gradient would arrive when the block has handed in its gradients: they
        would be of the update before.
        """
        super().setup_environment()
        torch.set_autocast_cache_enabled(False)

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[torch.optim.Optimizer], scheduler: Any = None
    ) -> Any:
        """Shard a module in place, and give its optimizers the shards in the place of the weights.

        Raises:
            WorldError: If it has no blocks, as a codec: such a network is small.
        """
        blocks = [part for part in module.modules() if isinstance(part, Block | WanBlock)]
        if not blocks:
            raise WorldError("fabric.strategy=fsdp spreads a network's blocks, and this has none: choose ddp")
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for part in (*blocks, module):
            fully_shard(part, mesh=mesh)
            for door in DOORS if isinstance(part, WanBlock) else ():
                register_fsdp_forward_method(part, door)
        shards = dict(module.named_parameters())
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [shards[names[id(parameter)]] for parameter in group["params"]]
        return module, optimizers, scheduler


class _ShardedSync(_BackwardSyncControl):
    """Gradients that add up on each device without being exchanged."""

    @contextmanager
    def no_backward_sync(self, module: nn.Module, enabled: bool) -> Iterator[None]:
        assert isinstance(module, FSDPModule)
        module.set_requires_gradient_sync(not enabled)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)


STRATEGIES: dict[str, type[DDPStrategy]] = {"ddp": DDPStrategy, "fsdp": ShardedStrategy}


def choose_strategy(name: str, *, is_alone: bool, timeout: timedelta) -> Strategy | str:
    """Return how several devices share the work; `auto` is DDP where there may be several."""
    name = "ddp" if name == "auto" and not is_alone else name
    return STRATEGIES[name](timeout=timeout) if name in STRATEGIES else name


def check_started(fabric: Fabric, num_devices: str, num_nodes: int) -> None:
    """Raise `ValueError` if torchrun or srun started other processes than the settings say.

    Each would otherwise train by itself, and all would write to one folder.
    """
    is_torchrun = torch.distributed.is_torchelastic_launched()
    started = int(os.environ.get("WORLD_SIZE" if is_torchrun else "SLURM_STEP_NUM_TASKS", "1"))
    strategy = fabric.strategy
    devices = strategy.parallel_devices if isinstance(strategy, ParallelStrategy) else None
    expected = len(devices or [fabric.device]) * num_nodes
    if started not in (1, expected):
        raise ValueError(
            f"{started} processes were started, but fabric.devices={num_devices} on fabric.num_nodes="
            f"{num_nodes} machine(s) makes {expected}; fabric.devices is the number on each machine"
        )

"""Weights spread over devices: PyTorch's `fully_shard`, and whole tensors where a file or a world needs them.

Parameters, gradients, optimizer states and the moving average are `DTensor`s, split along their first axis.
Autocast rounds what enters a product, as on one device: weights and tables stay fp32, and so losses are
those of DDP. (FSDP's own mixed precision would round the tables of angles to bf16.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.utils._pytree import tree_map


def whole(value: Any) -> Any:
    """Return a tensor that is spread over devices as one on this; all devices must ask. Others are as is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(holder: Any) -> dict[str, Any]:
    """Return the state of a module or an optimizer, what is spread over devices whole and on the CPU."""
    return tree_map(lambda x: whole(x).cpu() if isinstance(x, DTensor) else x, holder.state_dict())


def whole_module(module: nn.Module) -> nn.Module:
    """Return a module whose parameters are whole: itself, or a copy if they are spread over devices."""
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        return module
    gathered = copy.deepcopy(module)
    _replace_parameters(gathered, {name: whole(p.detach()) for name, p in module.named_parameters()})
    return gathered


def shard_like(average: nn.Module, module: nn.Module) -> None:
    """Spread the parameters of a copy of a module as those of the module are."""
    shards = {name: p.detach().clone() for name, p in module.named_parameters() if isinstance(p, DTensor)}
    _replace_parameters(average, shards)


def _replace_parameters(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        trains = module.get_parameter(name).requires_grad
        setattr(module.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=trains))


def own_part(tensor: Tensor) -> Tensor:
    """Return what this device holds of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_stack(stack: Tensor, like: Tensor) -> Tensor:
    """Return a stack of tensors whole, `[L, *like.shape]`, of the parts of it that the devices hold.

    Args:
        stack: `[L, ...]`, L parts of tensors that are spread as `like` is.
        like: One of them; a tensor that is not spread gives `stack` itself.
    """
    if not isinstance(like, DTensor):
        return stack
    shape = torch.Size((len(stack), *like.shape))
    stride = torch.empty(shape, device="meta").stride()
    spread = DTensor.from_local(
        stack, like.device_mesh, _stacked(like), run_check=False, shape=shape, stride=stride
    )
    return spread.full_tensor()


def split_stack(stack: Tensor, like: Tensor) -> Tensor:
    """Return this device's part of a whole stack; the inverse of `gather_stack`."""
    if not isinstance(like, DTensor):
        return stack
    known = DTensor.from_local(stack, like.device_mesh, [Replicate()], run_check=False)
    return known.redistribute(placements=_stacked(like)).to_local()


def _stacked(like: DTensor) -> list[Placement]:
    return [Shard(each.dim + 1) if isinstance(each, Shard) else each for each in like.placements]


def load_module(module: nn.Module, state: dict[str, Any]) -> None:
    """Load the state of a module that may be spread over devices from whole tensors."""
    own = module.state_dict()
    module.load_state_dict({name: _spread(tensor, own.get(name)) for name, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer whose parameters may be spread over devices from whole tensors."""
    parameters: Sequence[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {
        number: {name: _spread(value, parameters[number]) for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})


def _spread(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    mesh = like.device_mesh
    # No source: each device has read the whole tensor, and keeps its part.
    return distribute_tensor(value.to(like.device), mesh, like.placements, src_data_rank=None)

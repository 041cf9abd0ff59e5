"""A whole pass, forward and backward, as one CUDA graph: the processor launches it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    nn,
)

from training.engine.carry import Carry
from training.engine.graphs.inputs import StaticInputs
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.cuda_graphs import Recorded, record_cuda_graph

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Record = Callable[[Callable[[], Any], torch.device, Any, Sequence[torch.Generator]], Recorded]
"""Runs a function on a device, and returns what replays it with the generators as they are then."""


class PassGraph:
    """Computes the passes of all updates by replaying the first one.

    The noise is drawn, the loss computed and its gradient taken within the graph. Numbers are those of a pass
    that is launched kernel by kernel: before each replay the graph's generator is seeded as the batch's is,
    and a seeded generator draws the same within a graph and outside. The gradients of a pass lie where the
    graph has put them; those of several passes are added up, and devices exchange them once, at the end. A
    parameter that the loss does not reach has no gradient, as without a graph.

    Args:
        fabric: The devices. DDP's own exchange is not used: it could not be recorded.
        module: The objective, not wrapped; its parameters must stay where they are.
        num_passes: Passes of an update on this device.
        record: Makes the graph.

    Attributes:
        pool_bytes: What the graph holds on a GPU to compute in.
    """

    def __init__(
        self, fabric: Fabric, module: nn.Module, num_passes: int, record: Record = record_cuda_graph
    ) -> None:
        self._fabric, self._module, self._num_passes, self._make = fabric, module, num_passes, record
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._inputs: StaticInputs | None = None
        self._replay: Callable[[], None] = lambda: None
        self._names: tuple[list[str], list[str]] = [], []  # of the losses, and of what is handed on
        self._losses, self._carried = torch.empty(0), ()
        self._gradients: list[Tensor] = []
        self._sums: list[Tensor] = []
        self.pool_bytes = 0

    def run(
        self, batch: Sequence[Any], carry: Carry | None, *, is_first: bool
    ) -> tuple[dict[str, Tensor], Carry | None]:
        """Compute a pass, and add its gradients to those of the update's passes before it.

        Args:
            batch: The module's arguments: tensors, and one new generator.
            carry: What the pass goes on from, if anything.
            is_first: Whether it is the first of an update.

        Returns:
            The losses, and what the pass hands on; no later pass overwrites them.

        Raises:
            WorldError: If the batch has another shape than the first that was given.
        """
        if self._inputs is None:
            self._record(batch, carry)
        assert self._inputs is not None
        self._inputs.take(batch, carry)
        self._replay()
        if self._num_passes > 1:
            add = _foreach_copy_ if is_first else _foreach_add_
            add(self._sums, self._gradients)
        names, kept_names = self._names
        losses = dict(zip(names, self._losses.clone().unbind(), strict=True))
        if carry is None:
            return losses, None
        kept = {name: each.clone() for name, each in zip(kept_names, self._carried, strict=True)}
        return losses, Carry(MemoryState.from_tensors(kept))

    def finish(self) -> None:
        """Give the parameters the gradients of an update's passes, averaged over the devices."""
        gradients = self._sums if self._num_passes > 1 else self._gradients
        if self._fabric.world_size > 1:
            average_over_devices(gradients, self._fabric.world_size)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _record(self, batch: Sequence[Any], carry: Carry | None) -> None:
        device = self._fabric.device
        inputs = StaticInputs(batch, carry, device)
        on_gpu = device.type == "cuda"
        pool = torch.cuda.graph_pool_handle() if on_gpu else None
        torch.clear_autocast_cache()  # a weight that was rounded before would stay as it was then
        found, self._replay = self._make(partial(self._compute, inputs), device, pool, [inputs.generator])
        self._losses, gradients, self._carried = found
        self._gradients = list(gradients)
        self._parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        if self._num_passes > 1:
            self._sums = [torch.zeros_like(gradient) for gradient in self._gradients]
        if on_gpu:
            self.pool_bytes = bytes_of(pool)
        self._inputs = inputs  # last: a recording that fails leaves nothing to replay

    def _compute(self, inputs: StaticInputs) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run a pass on the static inputs.

        Returns:
            The losses, in the order of their names; the gradients; the tensors of what the pass hands on.
        """
        precision = self._fabric.strategy.precision
        for parameter in self._parameters:
            parameter.grad = None  # it is then a tensor of the graph, written anew by each replay
        given = {} if inputs.carry is None else {"carry": inputs.carry}
        # Autocast is entered and left within: the rounded weights that it keeps meanwhile are the graph's.
        with precision.forward_context():
            found = self._module(*precision.convert_input(inputs.batch), **given)
        losses, carry = found if given else (found, None)
        self._fabric.backward(losses["loss"] / self._num_passes)
        kept = {} if carry is None else carry.memory.tensors()
        self._names = list(losses), list(kept)
        gradients = tuple(each.grad for each in self._parameters if each.grad is not None)
        values = torch.stack([value.detach().float() for value in losses.values()])
        return values, gradients, tuple(kept.values())


def average_over_devices(tensors: Sequence[Tensor], num_devices: int) -> None:
    """Put the mean over all devices in the place of tensors of one dtype, with one message for all of them.

    As DDP does, what is sent is divided before it is added up.
    """
    together = torch.cat([tensor.flatten() for tensor in tensors]).div_(num_devices)
    torch.distributed.all_reduce(together)
    parts = together.split([tensor.numel() for tensor in tensors])
    means = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    _foreach_copy_(list(tensors), means)


def bytes_of(pool: Any) -> int:
    """Return what a memory pool of graphs holds on all GPUs of this process."""
    segments = torch.cuda.memory_snapshot()
    return sum(each["total_size"] for each in segments if tuple(each["segment_pool_id"]) == tuple(pool))

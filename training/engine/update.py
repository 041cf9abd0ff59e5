"""One update: what learns, its passes, and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import record_function

from training.engine.carry import Carry, gather_carries, restore_carries
from training.engine.fabric import Passes
from training.engine.graphs.passes import PassGraph
from training.engine.optimizers import check_optimizer
from training.engine.run_folder import progress_of
from training.engine.sharding import (
    load_module,
    load_optimizer,
    shard_like,
    whole,
    whole_module,
    whole_state,
)
from worldsim.errors import WorldError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_average(module: nn.Module, decay: float, device: torch.device) -> AveragedModel:
    """Return the moving average of a module's weights on a device; young averages follow faster."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        count = int(average.n_averaged)
        decay_now = min(decay, (1 + count) / (10 + count))
        get_ema_multi_avg_fn(decay_now)(list(averaged), list(current), count)

    average = AveragedModel(module, multi_avg_fn=update).to(device)
    average.n_averaged = (
        average.n_averaged.cpu()
    )  # asking an accelerator for it would wait for the whole step
    return average


@dataclass(slots=True)
class Training:
    """What a checkpoint holds.

    Attributes:
        module: Returns a dict of losses, `loss` among them, for the batch of a pass; wrapped by Fabric.
        average: Moving average of its weights.
        optimizers: Optimizers, wrapped by Fabric; their groups keep their own learning rate as `base_lr`.
        passes: Which make an update, and which of them are this device's.
        carries: What each of this device's passes hands to the same pass of the next step; None if nothing.
            The module is otherwise given one as `carry`, and returns the next one behind the losses.
        graph: Replays the passes; None launches them kernel by kernel.
        begins: With which update each optimizer begins to change its parameters; empty is the first for all.
        step: Updates done.
        seconds: Time spent on them.
    """

    module: Any
    average: AveragedModel
    optimizers: Sequence[Any]
    passes: Passes = field(default_factory=Passes)
    carries: list[Carry] | None = None
    graph: PassGraph | None = None
    begins: Sequence[int] = ()
    step: int = 0
    seconds: float = 0.0

    def averaged(self) -> nn.Module:
        """Return the module with averaged weights, whole on this device; all devices must ask for it."""
        return whole_module(self.average.module)

    def state(self, fabric: Fabric) -> dict[str, Any]:
        """Return what `restore` takes, whatever the devices are; all devices must ask for it."""
        state: dict[str, Any] = {"module": whole_state(self.module.module)}
        state |= {"average": whole_state(self.average), "step": self.step, "seconds": self.seconds}
        if self.carries is not None:
            state["carry"] = gather_carries(self.carries, fabric)
        return state | {f"optimizer_{i}": whole_state(each) for i, each in enumerate(self.optimizers)}

    def restore(self, state: Mapping[str, Any], fabric: Fabric) -> None:
        """Go on from what `state` returned, here or on another number of devices.

        Raises:
            Exception: Of whatever kind, if it is not the state of such a training.
        """
        self.step, self.seconds = progress_of(state)
        load_module(self.module.module, state["module"])
        load_module(self.average, state["average"])
        for index, optimizer in enumerate(self.optimizers):
            before = [dict(group) for group in optimizer.param_groups]
            load_optimizer(optimizer.optimizer, state[f"optimizer_{index}"])
            check_optimizer(optimizer, before)
        if self.carries is not None:
            carries = restore_carries(state["carry"], self.passes, fabric.device)
            if shapes_of(carries[0].memory.tensors()) != shapes_of(self.carries[0].memory.tensors()):
                raise ValueError("the memory that is handed on has other shapes")
            self.carries = carries


def prepare(
    fabric: Fabric,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    ema_decay: float,
    passes: Passes | None = None,
) -> Training:
    """Hand a module and its optimizers to Fabric; without `passes` an update is one on each device."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    average = make_average(module, ema_decay, fabric.device)
    wrapped, *rest = fabric.setup(module, *optimizers)
    shard_like(average.module, module)
    devices = Passes(fabric.world_size, fabric.global_rank, fabric.world_size)
    return Training(wrapped, average, rest, passes or devices)


def update(
    fabric: Fabric,
    training: Training,
    batches: Sequence[Sequence[Any]],
    learning_rate_factor: float = 1.0,
    clip_norm: float = 1.0,
) -> dict[str, Tensor]:
    """Do one update, and return its losses averaged over all passes.

    Args:
        fabric: The devices.
        training: What learns.
        batches: Arguments of the module, for each pass of this device.
        learning_rate_factor: What learning rates are multiplied by.
        clip_norm: Largest norm of the gradients of each optimizer's parameters.

    Raises:
        WorldError: If the loss or a gradient is not finite; the weights are then as they were.
    """
    for optimizer in training.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor
        optimizer.zero_grad()
    losses, carries = run_passes(fabric, training, batches)
    for index, optimizer in enumerate(training.optimizers):
        with record_function("Optimizer.clip"):  # PyTorch names a step of an optimizer likewise
            norm = fabric.clip_gradients(
                training.module, optimizer, max_norm=clip_norm, error_if_nonfinite=False
            )
        if norm is not None:
            losses[f"gradient_norm_{index}"] = whole(norm)
    losses = check_finite(fabric, losses, training.step)
    begins = training.begins or [0] * len(training.optimizers)
    for optimizer, begin in zip(training.optimizers, begins, strict=True):
        if training.step >= begin:
            optimizer.step()
    with record_function("Optimizer.average"):
        training.average.update_parameters(training.module.module)
    training.carries = carries
    training.step += 1
    return losses


def run_passes(
    fabric: Fabric, training: Training, batches: Sequence[Sequence[Any]]
) -> tuple[dict[str, Tensor], list[Carry] | None]:
    """Add up the gradients of this device's passes; devices exchange them after the last one.

    Returns:
        The mean of each loss, and what each pass hands on.
    """
    found: list[dict[str, Tensor]] = []
    carries: list[Carry] = []
    for number, batch in enumerate(batches):
        before = None if training.carries is None else training.carries[number]
        if training.graph is not None:
            losses, carry = training.graph.run(batch, before, is_first=number == 0)
        else:
            goes_on = fabric.world_size > 1 and number + 1 < len(batches)
            with fabric.no_backward_sync(training.module) if goes_on else nullcontext():
                losses, carry = run_pass(fabric, training.module, batch, before, len(batches))
        found.append(losses)
        carries += [] if carry is None else [carry]
    if training.graph is not None:
        training.graph.finish()
    if len(found) == 1:
        return found[0], carries or None
    means = {name: torch.stack([losses[name] for losses in found]).mean(dim=0) for name in found[0]}
    return means, carries or None


def run_pass(
    fabric: Fabric, module: Any, batch: Sequence[Any], carry: Carry | None, num_passes: int
) -> tuple[dict[str, Tensor], Carry | None]:
    """Add the gradients of one of several passes to those of the parameters.

    Returns:
        The losses, without gradients, and what the pass hands on.
    """
    losses, after = (module(*batch), None) if carry is None else module(*batch, carry=carry)
    fabric.backward(losses["loss"] / num_passes)
    return {name: value.detach() for name, value in losses.items()}, after


def check_finite(fabric: Fabric, values: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """Return the means of a step's numbers over all devices.

    Raises:
        WorldError: On every device if one is not finite on one of them.
    """
    # Every device must decide alike, or the others would wait for the one that stopped. One tensor: a device
    # is asked once.
    own = torch.stack([value.float() for value in values.values()])
    together = torch.as_tensor(fabric.all_gather(own)).reshape(-1, len(values))  # [devices, numbers]
    if torch.isfinite(together).all():
        return dict(zip(values, together.mean(dim=0), strict=True))
    for name, column in zip(values, together.unbind(1), strict=True):
        if not torch.isfinite(column).all():
            found = column[~torch.isfinite(column)][0].item()
            raise WorldError(f"the {name.replace('_', ' ')} is {found} at step {step}; no update was made")
    raise AssertionError


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and number format of tensors."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

"""The one training loop: codec, pretraining and finetuning all run through `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from training.engine.caches import CACHES, save_caches
from training.engine.carry import Carry
from training.engine.export import ExportConfig, check_can_export, export_training, import_training
from training.engine.optimizers import check_optimizer
from training.engine.run_folder import TOLD_FILE, RunFolder, progress_of
from worldsim.errors import WorldError
from worldsim.runtime.interrupt import Stopped, StopRequest, defer_interrupt
from worldsim.settings import check_settings, setting

CLOCK_STEPS = 10
"""Updates after which several devices agree on the time; each agreement makes them wait for each other."""


@dataclass(kw_only=True, slots=True)
class LoopConfig:
    """How long and how carefully to train."""

    num_steps: int = setting(1000, "Updates in all.", minimum=1)
    warmup_steps: int = setting(100, "Updates over which the learning rate rises from 0.", minimum=0)
    decay_fraction: float = setting(
        0.3, "Last part of the run, over which the learning rate falls to 0.", minimum=0, maximum=1
    )
    clip_norm: float = setting(1.0, "Largest norm of the gradient.", above=0)
    ema_decay: float = setting(
        0.999, "Weight of the old in the moving average of the weights, once it is warm.", minimum=0, below=1
    )
    log_every: int = setting(20, "Updates between two entries in the event file.", minimum=1)
    checkpoint_seconds: float = setting(180.0, "Seconds between two checkpoints.", minimum=0)
    train_seconds: float = setting(
        0.0,
        "Length by the clock instead of by num_steps, for a machine lent by the minute; the learning rate "
        "follows the clock, so such a run does not repeat bit for bit. 0 is off.",
        minimum=0,
    )
    seed: int = setting(0, "Decides every random number of the run.", minimum=0)
    export: ExportConfig = setting(ExportConfig, "What the training leaves to go on elsewhere.")

    def __post_init__(self) -> None:
        check_settings(self, "loop.")


def learning_rate_factor(step: int, seconds: float, config: LoopConfig) -> float:
    """Return what to multiply learning rates by at an update: warm-up, then constant, then linear to 0."""
    warm = (step + 1) / max(1, config.warmup_steps)
    left = 1 - (seconds / config.train_seconds if config.train_seconds else step / config.num_steps)
    return max(0.0, min(warm, left / max(config.decay_fraction, 1e-9), 1.0))


def seed_of(*numbers: int) -> int:
    """Mix some numbers (seed, step, rank) into one seed for a generator."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


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
        module: Returns a dict of losses, `loss` among them, for a batch; wrapped by Fabric.
        average: Moving average of its weights.
        optimizers: Optimizers, wrapped by Fabric; their groups keep their own learning rate as `base_lr`.
        carry: What a step hands to the next; None if nothing. The module is otherwise given it as `carry`,
            and returns the next one behind the losses.
        step: Updates done.
        seconds: Time spent on them.
    """

    module: Any
    average: AveragedModel
    optimizers: Sequence[Any]
    carry: Carry | None = None
    step: int = 0
    seconds: float = 0.0

    def is_done(self, config: LoopConfig) -> bool:
        """Whether the run has reached its length."""
        return self.seconds >= config.train_seconds if config.train_seconds else self.step >= config.num_steps

    def run_module(self, batch: Sequence[Any]) -> tuple[dict[str, Tensor], Carry | None]:
        """Return the losses of a batch, and what it hands to the next."""
        if self.carry is None:
            return dict(self.module(*batch)), None
        losses, carry = self.module(*batch, carry=self.carry)
        return dict(losses), carry

    def state(self, fabric: Fabric) -> dict[str, Any]:
        """Return what Fabric saves and restores; all devices must ask for it."""
        state: dict[str, Any] = {"module": self.module, "average": self.average}
        state |= {"step": self.step, "seconds": self.seconds}
        if self.carry is not None:
            state["carry"] = self.carry.gather(fabric)
        return state | {f"optimizer_{index}": optimizer for index, optimizer in enumerate(self.optimizers)}


def prepare(
    fabric: Fabric, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema_decay: float
) -> Training:
    """Hand a module and its optimizers to Fabric."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    average = make_average(module, ema_decay, fabric.device)
    wrapped, *rest = fabric.setup(module, *optimizers)
    return Training(wrapped, average, rest)


def update(fabric: Fabric, training: Training, batch: Sequence[Any], config: LoopConfig) -> dict[str, Tensor]:
    """Do one update and return its losses.

    Raises:
        WorldError: If the loss or a gradient is not finite; the weights are then as they were.
    """
    factor = learning_rate_factor(training.step, training.seconds, config)
    for optimizer in training.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.zero_grad()
    losses, carry = training.run_module(batch)
    fabric.backward(losses["loss"])
    for index, optimizer in enumerate(training.optimizers):
        norm = fabric.clip_gradients(
            training.module, optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
        )
        if norm is not None:
            losses[f"gradient_norm_{index}"] = norm
    check_finite(fabric, losses, training.step)
    for optimizer in training.optimizers:
        optimizer.step()
    training.average.update_parameters(training.module.module)
    training.carry = carry
    training.step += 1
    return losses


def check_finite(fabric: Fabric, values: dict[str, Tensor], step: int) -> None:
    """Raise `WorldError` on every device if a number of a step is not finite on one of them."""
    # Every device must decide alike, or the others would wait for the one that stopped. One tensor: a device
    # is asked once.
    own = torch.stack([value.detach().float() for value in values.values()])
    together = torch.as_tensor(fabric.all_gather(own)).reshape(-1, len(values))  # [devices, numbers]
    if torch.isfinite(together).all():
        return
    for name, column in zip(values, together.unbind(1), strict=True):
        if not torch.isfinite(column).all():
            found = column[~torch.isfinite(column)][0].item()
            raise WorldError(f"the {name.replace('_', ' ')} is {found} at step {step}; no update was made")


def fit(
    fabric: Fabric,
    training: Training,
    batch_at: Callable[[int], Sequence[Any]],
    config: LoopConfig,
    run: RunFolder,
    *,
    frames_per_batch: int,
    on_checkpoint: Callable[[Training], dict[str, float]],
) -> None:
    """Train until `config.num_steps`, resuming from the run's newest checkpoint.

    Args:
        fabric: Device, precision and strategy.
        training: From `prepare`.
        batch_at: Arguments of the module at a step, without `training.carry`; must depend on nothing but the
            step, so that a resumed run repeats the losses of one that was never killed.
        config: Length and care.
        run: Where checkpoints go.
        frames_per_batch: For the throughput in the progress bar.
        on_checkpoint: Called after each checkpoint; returns numbers to log.
    """
    check_can_export(fabric, config.export)
    if run.latest() is None and config.export.resume_from:
        import_training(training, Path(config.export.resume_from))
        fabric.print(f"going on from {config.export.resume_from} at step {training.step}")
    resume(fabric, training, run)
    if run.latest() is not None and training.is_done(config):
        fabric.print(f"{run.path} is finished: {training.step} steps")
        if not run.has_mark(TOLD_FILE):  # it was killed between its last checkpoint and the end
            _tell(fabric, training, run, on_checkpoint)
        return
    last_save, clock = time.monotonic(), training.seconds
    # On several devices each would be stopped at another update, and they would wait for each other forever.
    stopping = StopRequest() if fabric.world_size > 1 else nullcontext(None)
    with (
        stopping as stop,
        tqdm(
            total=None if config.train_seconds else config.num_steps,
            initial=training.step,
            unit="step",
            smoothing=0.1,
            disable=fabric.global_rank != 0,
        ) as bar,
    ):
        try:
            while not training.is_done(config):
                begun = time.monotonic()
                with defer_interrupt():  # Ctrl-C between two optimizers would leave half an update
                    losses = update(fabric, training, batch_at(training.step), config)
                    clock += time.monotonic() - begun
                bar.update()
                if training.step % config.log_every == 0:
                    _log(fabric, training, losses, bar, frames_per_batch)
                if fabric.world_size > 1 and training.step % CLOCK_STEPS:
                    continue
                # One clock decides for all devices: they write a checkpoint together, and learning rates that
                # differ would lead them apart.
                due = time.monotonic() - last_save > config.checkpoint_seconds
                stopped_by = stop.number if stop is not None and stop.requested else 0
                due, training.seconds, stopped_by = fabric.broadcast((due, clock, stopped_by))
                if stopped_by:
                    raise Stopped(stopped_by)
                if due:
                    _checkpoint(fabric, training, config, run, on_checkpoint)
                    last_save = time.monotonic()
        except KeyboardInterrupt:
            with (
                defer_interrupt()
            ):  # an impatient second one waits: what was learned is on its way to the disk
                run.save(fabric, training.state(fabric), training.step)
                export_training(fabric, training, run.path, config.export)
            raise
    _checkpoint(fabric, training, config, run, on_checkpoint)


def resume(fabric: Fabric, training: Training, run: RunFolder) -> None:
    """Load the run's newest checkpoint, if there is one."""
    path = run.latest()
    if path is None:
        return
    run.load(path, lambda: _restore(fabric, training, path))
    fabric.print(f"resuming {run.path} at step {training.step}")


def _restore(fabric: Fabric, training: Training, path: Path) -> None:
    state = training.state(fabric)
    groups = [[dict(group) for group in optimizer.param_groups] for optimizer in training.optimizers]
    fabric.load(path, state, weights_only=True)
    training.step, training.seconds = progress_of(state)
    for optimizer, before in zip(training.optimizers, groups, strict=True):
        check_optimizer(optimizer, before)
    if training.carry is not None:
        carry, own = Carry.restore(state["carry"], fabric), training.carry.memory.tensors()
        if shapes_of(carry.memory.tensors()) != shapes_of(own):
            raise ValueError("the memory that is handed on has other shapes")
        training.carry = carry


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and number format of tensors."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _log(
    fabric: Fabric, training: Training, losses: dict[str, Tensor], bar: tqdm, frames_per_batch: int
) -> None:
    values = {name: float(value.detach()) for name, value in losses.items()}
    rate = bar.format_dict["rate"] or 0.0
    frames_per_second = rate * frames_per_batch * fabric.world_size
    bar.set_postfix_str(f"loss {values['loss']:.4f}, {frames_per_second:,.0f} frames/s", refresh=False)
    learning_rate = training.optimizers[0].param_groups[0]["lr"]
    fabric.log_dict(
        values | {"frames_per_second": frames_per_second, "learning_rate": learning_rate}, training.step
    )


def _checkpoint(
    fabric: Fabric,
    training: Training,
    config: LoopConfig,
    run: RunFolder,
    on_checkpoint: Callable[[Training], dict[str, float]],
) -> None:
    run.save(fabric, training.state(fabric), training.step)
    save_caches(fabric, run.path / CACHES)
    export_training(fabric, training, run.path, config.export)
    _tell(fabric, training, run, on_checkpoint)


def _tell(
    fabric: Fabric, training: Training, run: RunFolder, on_checkpoint: Callable[[Training], dict[str, float]]
) -> None:
    numbers = on_checkpoint(training)
    if numbers:
        fabric.log_dict(numbers, training.step)
        shown = {name: value for name, value in numbers.items() if "/" not in name}  # the rest is for plots
        fabric.print(
            f"step {training.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        )
    if fabric.global_rank == 0:
        run.mark(TOLD_FILE)

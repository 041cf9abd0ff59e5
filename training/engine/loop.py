"""The one training loop: codec, pretraining and finetuning all run through `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training import STARTED
from training.engine.caches import CACHES, save_caches
from training.engine.export import ExportConfig, check_can_export, export_training, import_training
from training.engine.fabric import naming_lost_processes
from training.engine.run_folder import TOLD_FILE, RunFolder
from training.engine.update import Training, update
from worldsim.runtime.interrupt import Stopped, StopRequest, defer_interrupt
from worldsim.settings import check_settings, setting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AfterUpdate = Callable[[Training, Mapping[str, Tensor]], bool]
CLOCK_STEPS = 10
"""Updates after which several devices agree on the time; each agreement makes them wait for each other."""


@dataclass(kw_only=True, slots=True)
class LoopConfig:
    """How long and how carefully to train."""

    num_steps: int = setting(1000, "Updates in all.", minimum=1)
    global_batch_size: int = setting(
        0,
        "Rows of an update on all devices: batch_size then says how many go through the network in one pass, "
        "and the gradients of all passes are averaged. What a pass computes does not depend on the device: "
        "the update is the same on one and on eight. 0 is one pass on each device.",
        minimum=0,
    )
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
    counts_start: bool = setting(
        False,
        "Let train_seconds count from the start of the command, as a machine lent by the minute does: with "
        "loading, encoding and compiling, which take at most half of what is left of them, and with "
        "checkpoints, the last one among them.",
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
    """Mix some numbers (seed, step, pass) into one seed for a generator."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def is_done(training: Training, config: LoopConfig) -> bool:
    """Whether a run has reached its length."""
    if config.train_seconds:
        return training.seconds >= config.train_seconds
    return training.step >= config.num_steps


class Clock:
    """The seconds that a run's length counts: those of its updates, or with `counts_start` all of them.

    Args:
        config: Length.
        seconds: Counted before, by an earlier process of the run.

    Attributes:
        since: From when on time is not counted yet: the command's start, or the end of a run before this one,
            of a conversion's first stage say.
    """

    since: ClassVar[float] = STARTED

    def __init__(self, config: LoopConfig, seconds: float) -> None:
        self._config, self._reserve, self._counted = config, 0.0, time.monotonic()
        self._counts_all = config.counts_start and config.train_seconds > 0
        start = min(self._counted - Clock.since, max(0.0, config.train_seconds - seconds) / 2)
        self.seconds = seconds + (start if self._counts_all else 0.0)

    def count(self, begun: float) -> None:
        """Count an update that was begun at a time of `time.monotonic`."""
        now = time.monotonic()
        self.seconds += now - (self._counted if self._counts_all else begun)
        self._counted = now

    def expect(self, checkpoint_seconds: float) -> None:
        """End so much earlier, for the last checkpoint."""
        self._reserve = checkpoint_seconds if self._counts_all else 0.0

    @property
    def config(self) -> LoopConfig:
        """The length of what is left for updates."""
        left = max(self._config.train_seconds - self._reserve, min(self._config.train_seconds, 1e-3))
        return replace(self._config, train_seconds=left) if self._reserve else self._config

    def close(self, training: Training) -> None:
        """Tell a training that is done how long it took, with the checkpoint that is about to come."""
        if self._counts_all and is_done(training, self.config):
            training.seconds = max(training.seconds, self._config.train_seconds)


def fit(
    fabric: Fabric,
    training: Training,
    batch_at: Callable[[int, int], Sequence[Any]],
    config: LoopConfig,
    run: RunFolder,
    *,
    frames_per_batch: int,
    on_checkpoint: Callable[[Training], dict[str, float]],
    after_update: AfterUpdate | None = None,
) -> None:
    """Train until `config.num_steps`, resuming from the run's newest checkpoint.

    Args:
        fabric: Device, precision and strategy.
        training: From `prepare`.
        batch_at: Arguments of the module at a step in a pass, without its carry; must depend on nothing but
            these two, so that a resumed run repeats the losses of one that was never killed.
        config: Length and care.
        run: Where checkpoints go.
        frames_per_batch: Frames of a pass, for the throughput in the progress bar.
        on_checkpoint: Called after each checkpoint; returns numbers to log.
        after_update: Called before the first update, without losses, and after each; returns whether to end
            here. All devices must decide alike.

    Raises:
        WorldError: If a loss is not finite, the checkpoint is damaged, or another process of the run is lost.
    """
    with naming_lost_processes(fabric, f"the same command goes on from the newest checkpoint of {run.path}"):
        _fit(fabric, training, batch_at, config, run, frames_per_batch, on_checkpoint, after_update)


def _fit(
    fabric: Fabric,
    training: Training,
    batch_at: Callable[[int, int], Sequence[Any]],
    config: LoopConfig,
    run: RunFolder,
    frames_per_batch: int,
    on_checkpoint: Callable[[Training], dict[str, float]],
    after_update: AfterUpdate | None,
) -> None:
    check_can_export(fabric, config.export)
    if run.latest() is None and config.export.resume_from:
        import_training(training, Path(config.export.resume_from))
        fabric.print(f"going on from {config.export.resume_from} at step {training.step}")
    resume(fabric, training, run)
    if run.latest() is not None and is_done(training, config):
        fabric.print(f"{run.path} is finished: {training.step} steps")
        if not run.has_mark(TOLD_FILE):  # it was killed between its last checkpoint and the end
            _tell(fabric, training, run, on_checkpoint)
        return
    is_over = after_update is not None and after_update(training, {})
    last_save, clock = time.monotonic(), Clock(config, training.seconds)
    training.seconds = fabric.broadcast(clock.seconds)
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
            while not is_over and not is_done(training, clock.config):
                begun = time.monotonic()
                with defer_interrupt():  # Ctrl-C between two optimizers would leave half an update
                    batches = [batch_at(training.step, number) for number in training.passes.own]
                    factor = learning_rate_factor(training.step, training.seconds, clock.config)
                    losses = update(fabric, training, batches, factor, config.clip_norm)
                    clock.count(begun)
                bar.update()
                is_over = after_update is not None and after_update(training, losses)
                if training.step % config.log_every == 0:
                    _log(fabric, training, losses, bar, frames_per_batch)
                if fabric.world_size > 1 and training.step % CLOCK_STEPS:
                    continue
                # One clock decides for all devices: they write a checkpoint together, and learning rates that
                # differ would lead them apart.
                due = time.monotonic() - last_save > config.checkpoint_seconds
                stopped_by = stop.number if stop is not None and stop.requested else 0
                due, training.seconds, stopped_by = fabric.broadcast((due, clock.seconds, stopped_by))
                if stopped_by:
                    raise Stopped(stopped_by)
                if due:
                    begun = time.monotonic()
                    _checkpoint(fabric, training, config, run, on_checkpoint)
                    last_save = time.monotonic()
                    clock.expect(fabric.broadcast(last_save - begun))
        except KeyboardInterrupt:
            with (
                defer_interrupt()
            ):  # an impatient second one waits: what was learned is on its way to the disk
                run.save(fabric, training.state(fabric), training.step)
                export_training(fabric, training, run.path, config.export)
            raise
    clock.close(training)
    _checkpoint(fabric, training, config, run, on_checkpoint)
    Clock.since = time.monotonic()


def resume(fabric: Fabric, training: Training, run: RunFolder) -> None:
    """Load the run's newest checkpoint, if there is one."""
    path = run.shared_latest(fabric)
    if path is None:
        return
    run.load(path, lambda: training.restore(fabric.load(path, weights_only=True), fabric))
    fabric.print(f"resuming {run.path} at step {training.step}")


def _log(
    fabric: Fabric, training: Training, losses: dict[str, Tensor], bar: tqdm, frames_per_batch: int
) -> None:
    values = {name: float(value) for name, value in losses.items()}
    rate = bar.format_dict["rate"] or 0.0
    frames_per_second = rate * frames_per_batch * training.passes.total
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
    if fabric.device.type == "cuda":  # of this device, what has just been measured included
        numbers |= {"peak_memory_gib": torch.cuda.max_memory_allocated(fabric.device) / 2**30}
    if numbers:
        fabric.log_dict(numbers, training.step)
        shown = {name: value for name, value in numbers.items() if "/" not in name}  # the rest is for plots
        fabric.print(
            f"step {training.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        )
    if fabric.global_rank == 0:
        run.mark(TOLD_FILE)

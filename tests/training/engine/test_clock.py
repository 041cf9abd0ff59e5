"""A run by the clock, as a machine lent by the minute counts it: start, updates and checkpoints together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.engine.test_loop import Toy, ToyConfig, batch_at
from training.engine import loop
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.loop import LoopConfig, fit
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare


class Time:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop.Clock, "since", clock.now)
    return clock


def run_timed(
    folder: Path, clock: Time, *, start: float, update: float, stop_at: int = -1, **length: float | bool
) -> tuple[Training, list[float]]:
    """Train with a start, updates and checkpoints of 3 s that take so many seconds; return learning rates."""
    rates: list[float] = []

    def batch(step: int, number: int) -> tuple[Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        clock.now += update
        rates.append(float(training.optimizers[0].param_groups[0]["lr"]))  # of the update before
        return batch_at(step, number)

    def on_checkpoint(_: Training) -> dict[str, float]:
        clock.now += 3.0
        return {}

    config = LoopConfig(warmup_steps=1, decay_fraction=0.4, **length)  # pyright: ignore[reportArgumentType]
    run = RunFolder(folder, ToyConfig(loop=config))
    fabric = make_fabric(FabricConfig(accelerator="cpu"), folder)
    run.check_inputs(fabric, train="one")
    toy = Toy()
    training = prepare(fabric, toy, [torch.optim.AdamW(toy.parameters(), lr=1.0)], 0.99)
    clock.now += start
    fit(fabric, training, batch, config, run, frames_per_batch=8, on_checkpoint=on_checkpoint)
    return training, [*rates[1:], float(training.optimizers[0].param_groups[0]["lr"])]


def test_start_and_checkpoints_are_part_of_the_length(tmp_path: Path, clock: Time) -> None:
    length = {"train_seconds": 60.0, "counts_start": True, "checkpoint_seconds": 20.0}
    training, rates = run_timed(tmp_path, clock, start=20.0, update=0.5, **length)
    assert 58.0 <= clock.now - 1000.0 <= 60.5, "the last checkpoint is over when the time is"
    assert training.seconds >= 60.0 and training.step < 80
    assert rates[0] == 1.0 and 0 <= rates[-1] < 0.05, "the learning rate fell to nothing"
    before = training.step
    again, _ = run_timed(tmp_path, clock, start=20.0, update=0.5, **length)
    assert again.step == before, "it is finished"


def test_without_it_updates_alone_are(tmp_path: Path, clock: Time) -> None:
    training, rates = run_timed(
        tmp_path, clock, start=20.0, update=0.5, train_seconds=30.0, checkpoint_seconds=10.0
    )
    assert training.step == 60 and clock.now - 1000.0 > 50.0
    assert rates[-1] < 0.05


def test_a_start_that_takes_all_the_time_leaves_half_of_it(tmp_path: Path, clock: Time) -> None:
    training, rates = run_timed(
        tmp_path, clock, start=500.0, update=0.5, train_seconds=40.0, counts_start=True
    )
    assert training.step == 40 and rates[-1] < 0.1


def test_a_run_that_was_stopped_goes_on_by_the_same_clock(
    tmp_path: Path, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = {"train_seconds": 60.0, "counts_start": True, "checkpoint_seconds": 1e9}
    with pytest.raises(KeyboardInterrupt):
        run_timed(tmp_path, clock, start=10.0, update=0.5, stop_at=40, **length)
    spent = clock.now - 1000.0
    monkeypatch.setattr(loop.Clock, "since", clock.now)
    begun = clock.now
    training, rates = run_timed(tmp_path, clock, start=10.0, update=0.5, **length)
    assert spent + clock.now - begun == pytest.approx(63.0, abs=1.0), "no checkpoint told how long one takes"
    assert training.step == 80 and rates[-1] < 0.05


def test_a_second_run_of_a_command_does_not_pay_for_the_first(tmp_path: Path, clock: Time) -> None:
    """A conversion's stages, each with a length of its own."""
    length = {"train_seconds": 60.0, "counts_start": True, "checkpoint_seconds": 20.0}
    run_timed(tmp_path / "first", clock, start=20.0, update=0.5, **length)
    begun = clock.now
    run_timed(tmp_path / "second", clock, start=5.0, update=0.5, **length)
    assert 58.0 <= clock.now - begun <= 60.5

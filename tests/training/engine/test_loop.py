"""The loop learns, resumes exactly, and stops before a bad update. A tiny module stands in for the model."""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.public_runs import events_of
from training.engine.events import EventLogger
from training.engine.fabric import FabricConfig, choose_precision, make_fabric
from training.engine.loop import LoopConfig, fit, learning_rate_factor, seed_of
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare
from worldsim.errors import WorldError
from worldsim.runtime.interrupt import Stopped


@dataclass(kw_only=True, slots=True)
class ToyConfig:
    """What a run of the toy is made of."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    width: int = 4


class Toy(nn.Module):
    """Learns to return its input; records the losses it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        loss = (self.linear(x) - x).square().mean()
        self.losses.append(loss.item())
        return {"loss": loss}


def batch_at(step: int, _: int = 0) -> tuple[Tensor]:
    return (torch.randn(8, 4, generator=torch.Generator().manual_seed(seed_of(0, step))),)


def toy_config(num_steps: int) -> ToyConfig:
    return ToyConfig(loop=LoopConfig(num_steps=num_steps, warmup_steps=2, decay_fraction=0.0, log_every=5))


def run_toy(
    folder: Path,
    num_steps: int,
    *,
    batch: Callable[[int, int], tuple[Tensor]] = batch_at,
    optimizer: type[torch.optim.AdamW] = torch.optim.AdamW,
    on_checkpoint: Callable[[Training], dict[str, float]] = lambda _: {"one": 1.0},
) -> tuple[Toy, Training]:
    torch.manual_seed(0)
    config = toy_config(num_steps)
    run = RunFolder(folder, config)
    fabric = make_fabric(FabricConfig(accelerator="cpu"), folder)
    run.check_inputs(fabric, train="one")
    toy = Toy()
    training = prepare(fabric, toy, [optimizer(toy.parameters(), lr=1e-2)], 0.99)
    fit(fabric, training, batch, config.loop, run, frames_per_batch=8, on_checkpoint=on_checkpoint)
    return toy, training


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    toy, _ = run_toy(tmp_path, 200)
    assert sum(toy.losses[-10:]) < 0.2 * sum(toy.losses[:10])


def test_a_resumed_run_repeats_the_losses_bit_for_bit(tmp_path: Path) -> None:
    whole, finished = run_toy(tmp_path / "whole", 30)
    run_toy(tmp_path / "killed", 12)
    rest, resumed = run_toy(tmp_path / "killed", 30)
    assert rest.losses == whole.losses[12:]
    for name, tensor in finished.average.state_dict().items():
        assert torch.equal(tensor, resumed.average.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    def poisoned(step: int, _: int) -> tuple[Tensor]:
        return (torch.full((8, 4), float("nan")),) if step == 3 else batch_at(step)

    torch.manual_seed(0)
    fabric = make_fabric(FabricConfig(accelerator="cpu"), tmp_path)
    toy = Toy()
    training = prepare(fabric, toy, [torch.optim.AdamW(toy.parameters(), lr=1e-2)], 0.99)
    config = LoopConfig(num_steps=10, warmup_steps=1)
    run = RunFolder(tmp_path, ToyConfig(loop=config))
    with pytest.raises(WorldError, match="the loss is nan at step 3; no update was made"):
        fit(fabric, training, poisoned, config, run, frames_per_batch=8, on_checkpoint=lambda _: {})
    assert training.step == 3
    assert all(torch.isfinite(parameter).all() for parameter in toy.parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    class Steep(Toy):
        """Gives a finite loss whose gradient is infinite once its input is zero."""

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": super().forward(x)["loss"] + (self.linear.weight.sum() * x.sum()).abs().sqrt()}

    def zeros(_: int) -> tuple[Tensor]:
        return (torch.zeros(8, 4),)

    torch.manual_seed(0)
    fabric = make_fabric(FabricConfig(accelerator="cpu", precision="32-true"), tmp_path)
    toy = Steep()
    training = prepare(fabric, toy, [torch.optim.AdamW(toy.parameters(), lr=1e-2)], 0.99)
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    config = LoopConfig(num_steps=3, warmup_steps=1)
    run = RunFolder(tmp_path, ToyConfig(loop=config))
    with pytest.raises(WorldError, match="the gradient norm 0 is nan at step 0; no update was made"):
        fit(
            fabric,
            training,
            lambda *_: (torch.zeros(8, 4),),
            config,
            run,
            frames_per_batch=8,
            on_checkpoint=dict,
        )
    assert run.latest() is None
    for name, tensor in toy.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_ctrl_c_inside_an_update_waits_for_its_end(tmp_path: Path) -> None:
    whole, _ = run_toy(tmp_path / "whole", 12)

    class Interrupting(torch.optim.AdamW):
        """Presses Ctrl-C in the middle of the fifth update."""

        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            if self.calls == 5:
                signal.raise_signal(signal.SIGINT)
            return super().step(closure)

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "run", 12, optimizer=Interrupting)
    rest, _ = run_toy(tmp_path / "run", 12)
    assert rest.losses == whole.losses[5:]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run_toy(tmp_path, 4)
    before = (tmp_path / "checkpoints" / "step-00000004").stat().st_mtime_ns
    again, training = run_toy(tmp_path, 4)
    assert again.losses == []
    assert training.step == 4
    assert (tmp_path / "checkpoints" / "step-00000004").stat().st_mtime_ns == before


def test_what_a_finished_run_was_killed_in_is_made_up_for(tmp_path: Path) -> None:
    told: list[int] = []

    def tell(training: Training) -> dict[str, float]:
        told.append(training.step)
        if len(told) == 1:
            raise SystemExit
        return {}

    with pytest.raises(SystemExit):
        run_toy(tmp_path, 4, on_checkpoint=tell)
    for _ in range(2):
        run_toy(tmp_path, 4, on_checkpoint=tell)
    assert told == [4, 4]


def test_a_start_that_failed_does_not_claim_the_folder(tmp_path: Path) -> None:
    RunFolder(tmp_path, ToyConfig(width=4))
    run_toy(tmp_path, 2)  # other settings, and nothing to lose yet


def test_other_inputs_are_refused_on_resume(tmp_path: Path) -> None:
    run_toy(tmp_path, 2)
    fabric = make_fabric(FabricConfig(accelerator="cpu"), tmp_path)
    config = toy_config(2)
    RunFolder(tmp_path, config).check_inputs(fabric, train="one")
    with pytest.raises(WorldError, match=r"inputs\.train was one and is two"):
        RunFolder(tmp_path, config).check_inputs(fabric, train="two")


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: object, path: Path, *__: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", "/somewhere/else")

    monkeypatch.setattr("lightning_fabric.Fabric.save", full_disk)
    with pytest.raises(OSError, match="step-00000003"):
        run_toy(tmp_path, 3)
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_toy(tmp_path, 3)
    known = (tmp_path / "checkpoints" / "step-00000003").read_bytes()

    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(
        "training.engine.run_folder.sync_tree", full_disk
    )  # some systems find out when they sync
    with pytest.raises(OSError, match="step-00000005"):
        run_toy(tmp_path, 5)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert (tmp_path / "checkpoints" / "step-00000003").read_bytes() == known


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    run_toy(tmp_path, 2)
    (tmp_path / "checkpoints" / "step-00000003.part").write_bytes(b"half")
    (tmp_path / "checkpoints" / "step-00000004.part").mkdir()
    (tmp_path / "checkpoints" / "step-00000002 (copy)").write_bytes(b"not one of ours")
    run_toy(tmp_path, 2)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000002", "step-00000002 (copy)"]


def altered(path: Path, **changes: Any) -> None:
    """Write a checkpoint anew with other entries."""
    torch.save(torch.load(path, weights_only=True) | changes, path)


def cut_momenta(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    for of_parameter in state["optimizer_0"]["state"].values():
        of_parameter["exp_avg"] = of_parameter["exp_avg"][:1]
    torch.save(state, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle of code": lambda path: path.write_bytes(pickle.dumps(print, 2)),
    "no dictionary": lambda path: torch.save([1], path),
    "a step of text": lambda path: altered(path, step="3"),
    "a step below 0": lambda path: altered(path, step=-1),
    "a time that is NaN": lambda path: altered(path, seconds=float("nan")),
    "weights of another shape": lambda path: altered(path, module={"linear.weight": torch.zeros(2, 2)}),
    "no average": lambda path: altered(path, average={}),
    "an optimizer of nothing": lambda path: altered(path, optimizer_0={"state": {}, "param_groups": []}),
    "momenta of another shape": cut_momenta,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(tmp_path: Path, damage: str) -> None:
    run_toy(tmp_path, 3)
    path = tmp_path / "checkpoints" / "step-00000003"
    DAMAGES[damage](path)
    with pytest.raises(
        WorldError, match=rf"the checkpoint {path} is damaged .*: remove it to begin"
    ) as found:
        run_toy(tmp_path, 4)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["[]", "{", "", '{"width": NaN}'])
def test_damaged_settings_of_a_run_are_one_sentence_that_names_them(tmp_path: Path, text: str) -> None:
    run_toy(tmp_path, 2)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(WorldError, match=str(tmp_path / "run.json")):
        run_toy(tmp_path, 3)


def test_a_checkpoint_without_its_settings_is_refused(tmp_path: Path) -> None:
    run_toy(tmp_path, 2)
    (tmp_path / "run.json").unlink()
    with pytest.raises(WorldError, match=r"there is no .*run\.json"):
        run_toy(tmp_path, 3)


def test_the_mark_of_an_export_ends_with_its_checkpoint(tmp_path: Path) -> None:
    run_toy(tmp_path, 2)
    run = RunFolder(tmp_path, toy_config(2))
    run.mark_exported()
    assert run.is_exported(tmp_path)
    (tmp_path / "checkpoints" / "step-00000002").unlink()
    run_toy(tmp_path, 2)
    assert not run.is_exported(tmp_path), "the world is of the run before"


def test_losses_are_on_the_disk_before_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    save = RunFolder.save

    def saved(self: RunFolder, *arguments: Any) -> None:
        save(self, *arguments)
        sizes.append(sum(path.stat().st_size for path in tmp_path.glob("events/*tfevents*")))

    monkeypatch.setattr(RunFolder, "save", saved)
    run_toy(tmp_path, 10)
    written = b"".join(path.read_bytes() for path in tmp_path.glob("events/*tfevents*"))
    assert b"frames_per_second" in written[: sizes[0]]


def test_two_runs_in_one_second_write_two_event_files(tmp_path: Path) -> None:
    for rate in (1.0, 2.0):
        EventLogger(tmp_path).log_metrics({"rate": rate}, 3)
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted(events_of(path)["rate"] == [3, 1.0] for path in tmp_path.iterdir()) == [False, True]


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    def interrupted(step: int, _: int) -> tuple[Tensor]:
        if step == 7:
            raise KeyboardInterrupt
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "run", 20, batch=interrupted)
    rest, training = run_toy(tmp_path / "run", 20)
    assert len(rest.losses) == 13
    assert training.step == 20


def test_on_several_devices_a_run_ends_with_the_signal_that_stopped_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(step: int, _: int) -> tuple[Tensor]:
        if step == 7:
            signal.raise_signal(signal.SIGTERM)
        return batch_at(step)

    monkeypatch.setattr("lightning_fabric.Fabric.world_size", 2)
    with pytest.raises(Stopped) as stopped:
        run_toy(tmp_path / "run", 30, batch=terminated)
    assert stopped.value.number == signal.SIGTERM
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_folder_with_another_runs_settings_is_refused(tmp_path: Path) -> None:
    run_toy(tmp_path, 2)
    with pytest.raises(WorldError, match="width was 4 and is 5"):
        RunFolder(
            tmp_path, ToyConfig(loop=LoopConfig(warmup_steps=2, decay_fraction=0.0, log_every=5), width=5)
        )
    assert json.loads((tmp_path / "run.json").read_text())["width"] == 4


def test_only_one_checkpoint_is_kept_and_none_is_half_written(tmp_path: Path) -> None:
    run_toy(tmp_path, 5)
    run_toy(tmp_path, 9)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000009"]


def test_learning_rate_warms_up_holds_and_decays_to_zero() -> None:
    config = LoopConfig(num_steps=100, warmup_steps=10, decay_fraction=0.5)
    assert learning_rate_factor(0, 0.0, config) == pytest.approx(0.1)
    assert learning_rate_factor(30, 0.0, config) == 1.0
    assert learning_rate_factor(75, 0.0, config) == pytest.approx(0.5)
    assert learning_rate_factor(100, 0.0, config) == 0.0


def test_learning_rate_can_follow_the_clock() -> None:
    config = LoopConfig(num_steps=100, warmup_steps=10, decay_fraction=0.5, train_seconds=60.0)
    assert learning_rate_factor(5000, 30.0, config) == 1.0
    assert learning_rate_factor(5000, 45.0, config) == pytest.approx(0.5)


def test_fabric_settings_that_cannot_be_met_are_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="fabric settings"):
        make_fabric(FabricConfig(accelerator="cpu", strategy="no-such-strategy"), tmp_path)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_a_precision_that_would_stop_or_spoil_a_run_is_refused(precision: str) -> None:
    with pytest.raises(WorldError, match=f"must be one of auto, 32-true, bf16-mixed, got '{precision}'"):
        FabricConfig(precision=precision)


@pytest.mark.parametrize(
    ("instructions", "expected"), [({"avx512_bf16": True}, "bf16-mixed"), ({}, "32-true")]
)
def test_auto_computes_in_bf16_where_the_processor_does(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert choose_precision(FabricConfig(accelerator="cpu")) == expected
    assert choose_precision(FabricConfig(accelerator="cpu", precision="bf16-mixed")) == "bf16-mixed"

"""Sharpening on disk, at toy size: exports one-step worlds, resumes exactly, ends by its rules, refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.devices import needs_fork, run_on_devices
from tests.fakes import save_tiny_world, tiny_world, write_tiny_dataset
from tests.training.engine.test_graphs import record_on_cpu
from training.data.latents import DataConfig
from training.engine.export import ExportConfig
from training.engine.fabric import FabricConfig
from training.engine.graphs.passes import PassGraph
from training.engine.loop import LoopConfig
from training.engine.run_folder import TOLD_FILE
from training.sharpen import main
from training.sharpen.measurement import History
from training.sharpen.settings import CriticConfig, RolloutConfig, RulesConfig, SharpenConfig
from training.sharpen.train import HISTORY_FILE, check_shared
from worldsim.errors import WorldError
from worldsim.simulator import Simulator
from worldsim.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    folder = write_tiny_dataset(tmp_path / "data")
    return DataConfig(train=[str(folder)], heldout=[str(folder)], num_workers=1)


def config_of(tmp_path: Path, data: DataConfig, num_steps: int = 6, **changed: Any) -> SharpenConfig:
    base = tmp_path / "base"
    if not base.exists():
        save_tiny_world(base)
    settings: dict[str, Any] = {
        "out": str(tmp_path / "run"),
        "init": str(base),
        "data": data,
        "rollout": RolloutConfig(
            prefix_frames=4, frames=[2, 3], begins=[0, 4], batch_sizes=[4, 2], single_every=3
        ),
        "critic": CriticConfig(warmup_updates=2, balanced_updates=2),
        "rules": RulesConfig(
            every=2, num_rollouts=2, horizons=[1, 3], max_energy=1e6, max_motion=1e6, min_motion=0.0
        ),
        "loop": LoopConfig(
            num_steps=num_steps,
            warmup_steps=2,
            decay_fraction=0.0,
            ema_decay=0.9,
            log_every=1,
            checkpoint_seconds=1e9,
        ),
        "fabric": FabricConfig(accelerator="cpu", precision="32-true"),
    }
    return SharpenConfig(**(settings | changed))


def weights(folder: Path) -> dict[str, Tensor]:
    return World.from_pretrained(folder / "world").denoiser.state_dict()


def entries(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / HISTORY_FILE).read_text())


@pytest.mark.parametrize("objective", ["critic", "energy"])
def test_a_sharpened_world_draws_in_one_step_and_has_learned(
    tmp_path: Path, data: DataConfig, objective: str
) -> None:
    main.run(config_of(tmp_path, data, objective=objective))
    before, after = (
        World.from_pretrained(tmp_path / "base"),
        World.from_pretrained(tmp_path / "run" / "world"),
    )
    assert after.config.sampler.num_steps == 1
    assert "6 updates" in after.config.provenance["training"][-1]
    assert after.identity != before.identity
    assert len(after.starts) == len(before.starts)
    simulator = Simulator(after)
    frames, _ = simulator.step(simulator.start(after.starts[:1], [0]), torch.tensor([[1, 0, 2]]))
    assert frames.shape == (1, after.config.height, after.config.width, 3)
    found = entries(tmp_path / "run")
    assert [entry["step"] for entry in found] == [0, 2, 4, 6]
    assert {"energy_1", "energy_3", "fid", "motion", "psnr_1_db", "psnr_drop_db"} <= found[0].keys()
    assert ("logit_gap" in found[-1]) == (objective == "critic")


def test_a_resumed_sharpening_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, data: DataConfig
) -> None:
    main.run(config_of(tmp_path, data, 6, out=str(tmp_path / "whole")))
    for num_steps in (3, 6):
        main.run(config_of(tmp_path, data, num_steps, out=str(tmp_path / "killed")))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_the_world_rests_while_the_critic_warms_up(tmp_path: Path, data: DataConfig) -> None:
    main.run(config_of(tmp_path, data, 2))
    before, after = (
        World.from_pretrained(tmp_path / "base"),
        World.from_pretrained(tmp_path / "run" / "world"),
    )
    assert after.identity == before.identity


def test_recorded_passes_teach_what_passes_launched_one_by_one_teach(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a recorder that behaves as a CUDA graph does."""
    from training.sharpen import train

    main.run(config_of(tmp_path, data, out=str(tmp_path / "launched")))
    made: list[PassGraph] = []

    def make(*arguments: Any) -> PassGraph:
        made.append(PassGraph(*arguments, record=record_on_cpu))
        return made[-1]

    monkeypatch.setattr(train, "PassGraph", make)
    monkeypatch.setattr(train, "check_step", lambda *_, **__: None)
    config = config_of(tmp_path, data, out=str(tmp_path / "recorded"))
    config.step.graphs = True
    main.run(config)
    assert len(made) == 4  # two and one frames of four clips, three and one of two
    launched, recorded = weights(tmp_path / "launched"), weights(tmp_path / "recorded")
    for name, tensor in launched.items():
        torch.testing.assert_close(tensor, recorded[name], msg=name)


def test_a_broken_rule_ends_the_run_at_the_last_good_weights(
    tmp_path: Path, data: DataConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.sharpen import train

    energies = iter([0.4, 0.9, 1.3])
    numbers = {"energy_3": 0.5, "motion": 1.0, "psnr_1_db": 20.0}
    monkeypatch.setattr(train, "measure", lambda *_: numbers | {"energy_1": next(energies)})
    rules = RulesConfig(every=2, patience=1, num_rollouts=2, horizons=[1, 3], max_gap=1e9)
    config = config_of(tmp_path, data, 100, rules=rules, objective="energy", learning_rate=1e-2)
    main.run(config)
    found = entries(tmp_path / "run")
    assert [entry["step"] for entry in found] == [0, 2, 4]
    assert "2 updates" in World.from_pretrained(tmp_path / "run" / "world").config.provenance["training"][-1]
    sentence = (
        "stopped: the gradient energy of roll-outs at frame 1 over the real one is 1.3, above 1.15; "
        f"{tmp_path / 'run' / 'world'} holds the last weights before"
    )
    assert sentence in capsys.readouterr().out
    main.run(config)  # the same command says it again, and learns nothing more
    assert sentence in capsys.readouterr().out
    assert len(entries(tmp_path / "run")) == 3


def test_a_rule_that_is_broken_once_does_not_end_a_run_and_is_not_exported(
    tmp_path: Path, data: DataConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.sharpen import train

    energies = iter([0.9, 1.3, 1.0, 1.3, 1.2, 0.9])
    numbers = {"energy_3": 0.5, "motion": 1.0, "psnr_1_db": 20.0}
    monkeypatch.setattr(train, "measure", lambda *_: numbers | {"energy_1": next(energies)})
    rules = RulesConfig(every=1, num_rollouts=2, horizons=[1, 3], max_gap=1e9)
    main.run(config_of(tmp_path, data, 100, rules=rules, objective="energy"))
    assert [entry["energy_1"] for entry in entries(tmp_path / "run")] == [0.9, 1.3, 1.0, 1.3, 1.2]
    assert "2 updates" in World.from_pretrained(tmp_path / "run" / "world").config.provenance["training"][-1]
    assert "is 1.2, above 1.15" in capsys.readouterr().out


def test_a_rule_that_is_broken_at_a_checkpoint_ends_the_run(
    tmp_path: Path, data: DataConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the update after it, whatever a measurement would say then."""
    from training.sharpen import train

    energies = iter([0.9, 1.3, 0.9, 0.9])
    numbers = {"energy_3": 0.5, "motion": 1.0, "psnr_1_db": 20.0}
    monkeypatch.setattr(train, "measure", lambda *_: numbers | {"energy_1": next(energies)})
    config = config_of(tmp_path, data, 4, objective="energy")
    config.rules = RulesConfig(every=100, patience=1, num_rollouts=2, horizons=[1, 3])
    config.loop.checkpoint_seconds = 0.0
    for _ in range(2):
        main.run(config)
        assert "is 1.3, above 1.15" in capsys.readouterr().out
        assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 1]
    assert "0 updates" in World.from_pretrained(tmp_path / "run" / "world").config.provenance["training"][-1]


@pytest.mark.parametrize("where", ["_export", "save"])
def test_a_run_interrupted_in_its_last_measurement_writes_the_world_of_it(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from training.sharpen.train import Sharpening

    config = config_of(tmp_path, data, 4, objective="energy")
    owner, calls = (Sharpening if where == "_export" else History), iter([False, False, True])
    work = getattr(owner, where)

    def interrupted(*arguments: Any) -> None:
        if next(calls):
            raise KeyboardInterrupt
        work(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, where, interrupted)
        main.run(config)
    main.run(config)
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 2, 4]
    assert "4 updates" in World.from_pretrained(tmp_path / "run" / "world").config.provenance["training"][-1]


def test_a_finished_run_that_was_killed_before_it_said_so_goes_on_by_its_rules(
    tmp_path: Path, data: DataConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.sharpen import train

    motions = iter([1.0, 1.1, 0.2])
    numbers = {"energy_1": 0.5, "energy_3": 0.5, "psnr_1_db": 20.0}
    monkeypatch.setattr(train, "measure", lambda *_: numbers | {"motion": next(motions)})
    rules = RulesConfig(every=2, num_rollouts=2, horizons=[1, 3])
    config = config_of(tmp_path, data, 4, rules=rules, objective="energy")
    main.run(config)
    measured = entries(tmp_path / "run")
    (tmp_path / "run" / TOLD_FILE).unlink()
    capsys.readouterr()
    main.run(config)  # measures nothing: there are no numbers left
    assert entries(tmp_path / "run") == measured and len(measured) == 3
    assert "stopped: the motion of roll-outs over the real one is 0.2" in capsys.readouterr().out
    assert "2 updates" in World.from_pretrained(tmp_path / "run" / "world").config.provenance["training"][-1]


@pytest.mark.parametrize("graphs", [None, False])
def test_passes_are_recorded_where_they_can_be(tmp_path: Path, data: DataConfig, graphs: bool | None) -> None:
    """What `step.graphs` says of all trainings of a world holds for this one."""
    from training.sharpen.train import is_recorded

    config = config_of(tmp_path, data)
    config.step.graphs, config.fabric.compile = graphs, True
    world = World.from_pretrained(tmp_path / "base")
    gpu, cpu = (SimpleNamespace(device=torch.device(kind)) for kind in ("cuda", "cpu"))
    assert is_recorded(config, world, gpu) == (graphs is None)  # pyright: ignore[reportArgumentType]
    assert not is_recorded(config, world, cpu)  # pyright: ignore[reportArgumentType]


def test_a_rule_holds_from_the_first_measurement_that_keeps_it(tmp_path: Path) -> None:
    history = History(tmp_path / HISTORY_FILE, RulesConfig(min_motion=0.8))
    for step, motion in enumerate([0.5, 0.6, 0.9]):
        history.add(step, {"motion": motion, "psnr_1_db": 20.0})
        assert history.broken() == ""
    history.add(3, {"motion": 0.7, "psnr_1_db": 20.0})
    assert history.broken() == "the motion of roll-outs over the real one is 0.7, below 0.8"
    history.add(4, {"motion": 0.9, "psnr_1_db": 16.5})
    assert history.broken() == "the loss of PSNR in dB of the first frame since the beginning is 3.5, above 3"


def test_an_export_is_the_world_in_few_files_and_is_written_elsewhere(
    tmp_path: Path, data: DataConfig
) -> None:
    config = config_of(tmp_path, data)
    config.loop.export.bits = 16
    main.run(config)
    export = tmp_path / "run" / "export"
    elsewhere = config_of(tmp_path, data, 1, out=str(tmp_path / "elsewhere"))
    elsewhere.loop.export = ExportConfig(resume_from=str(export))
    main.run(elsewhere)
    here, there = weights(tmp_path / "run"), weights(tmp_path / "elsewhere")
    for name, tensor in here.items():
        torch.testing.assert_close(tensor, there[name], rtol=1e-2, atol=1e-3, msg=name)
    more = config_of(tmp_path, data, 50, out=str(tmp_path / "more"))
    more.loop.export = ExportConfig(resume_from=str(export))
    with pytest.raises(WorldError, match="go on with init="):
        main.run(more)


def test_a_world_whose_memory_grows_is_refused(tmp_path: Path, data: DataConfig) -> None:
    teacher = tmp_path / "teacher"
    tiny_world(is_teacher=True).save_pretrained(teacher)
    with pytest.raises(WorldError, match="see all past frames"):
        main.run(config_of(tmp_path, data, init=str(teacher)))


def test_clips_longer_than_the_episodes_are_refused(tmp_path: Path, data: DataConfig) -> None:
    rollout = RolloutConfig(prefix_frames=4, frames=[20], begins=[0], batch_sizes=[2])
    with pytest.raises(WorldError, match="rollout: sequences of 24 frames fit into no episode"):
        main.run(config_of(tmp_path, data, rollout=rollout))


def test_fewer_clips_than_devices_are_refused() -> None:
    with pytest.raises(WorldError, match="1 clips can't be shared evenly by 2 devices"):
        check_shared(RolloutConfig(frames=[8], begins=[0], batch_sizes=[1]), 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frames": [8]}, "say the same stages"),
        ({"begins": [0, 0]}, "must rise from 0"),
        ({"begins": [1, 2]}, "must rise from 0"),
        ({"frames": [0, 1]}, "at least 1"),
    ],
)
def test_stages_that_make_no_sense_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WorldError, match=sentence):
        RolloutConfig(**settings)


def test_stages_follow_each_other_and_some_updates_draw_one_frame() -> None:
    rollout = RolloutConfig(frames=[8, 16], begins=[0, 20], batch_sizes=[64, 32])
    assert [rollout.stage_at(step) for step in (0, 8, 9, 19, 20, 29)] == [
        *((8, 64), (8, 64), (1, 64), (1, 64), (16, 32), (1, 32))
    ]


@needs_fork
def test_two_devices_share_the_clips_of_an_update(tmp_path: Path, data: DataConfig) -> None:
    """Single frames among them, whose pass reads no state that it would have written."""
    config = config_of(tmp_path, data)
    config.fabric = FabricConfig(accelerator="cpu", precision="32-true", devices="2", strategy="ddp")
    assert run_on_devices(lambda: main.run(config)) == [0, 0]
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 2, 4, 6]
    base = World.from_pretrained(tmp_path / "base")
    assert World.from_pretrained(tmp_path / "run" / "world").identity != base.identity

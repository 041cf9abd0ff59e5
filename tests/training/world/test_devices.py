"""Trainings on several devices: the same updates as on one, resumed on another number, ended by a loss."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from kernels import layers
from tests.devices import free_port, needs_fork, run_on_devices, start_on_devices, wait_for
from tests.fakes import tiny_codec_config, tiny_denoiser_config, write_outcome_dataset
from tests.public_runs import events_of
from training.codec import TrainCodecConfig, train_codec
from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig, make_fabric, share_passes
from training.engine.loop import LoopConfig
from training.engine.run_folder import RunFolder
from training.objectives.noise import ObjectiveConfig
from training.pretrain import main as pretrain
from training.world.settings import PretrainConfig
from training.world.validation import ValidationConfig
from worldsim.codec import FrameCodec, save_codec
from worldsim.errors import WorldError
from worldsim.world import World

pytestmark = needs_fork
ROOT = Path(__file__).resolve().parents[3]
ONE = FabricConfig(accelerator="cpu", precision="32-true")
DDP = replace(ONE, devices="2", strategy="ddp")
FSDP = replace(ONE, devices="2", strategy="fsdp")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of gameplay video with outcomes and a codec."""
    folder = tmp_path_factory.mktemp("devices")
    write_outcome_dataset(folder / "data", episodes=4, frames=16)
    torch.manual_seed(0)
    save_codec(FrameCodec(tiny_codec_config()), folder / "codec")
    return folder


def config_of(root: Path, out: str, fabric: FabricConfig, num_steps: int = 4) -> PretrainConfig:
    """Return a training in which all that is drawn or carried has a part: updates of two passes."""
    return PretrainConfig(
        name="toy",
        out=str(root / out),
        data=DataConfig(train=[str(root / "data")], heldout=[str(root / "data")], num_workers=1),
        codec=str(root / "codec"),
        model=tiny_denoiser_config(outcome_heads=True),
        objective=ObjectiveConfig(own_context_share=0.5),
        loop=LoopConfig(
            num_steps=num_steps,
            global_batch_size=4,
            warmup_steps=2,
            decay_fraction=0.0,
            log_every=1,
            checkpoint_seconds=1e9,
        ),
        fabric=fabric,
        validation=ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2]),
        batch_size=2,
        sequence_length=4,
        segments=2,
        num_starts=1,
        start_frames=4,
    )


def train(config: PretrainConfig) -> None:
    """Run a training in processes of its own, as many as it has devices."""
    assert run_on_devices(lambda: pretrain.run(config), int(config.fabric.devices)) == [0] * int(
        config.fabric.devices
    )


def losses_of(folder: Path) -> dict[str, list[float]]:
    """Return what was logged of each update; nothing of the clock, nothing of roll-outs."""
    logged: dict[str, dict[float, float]] = {}
    for path in sorted(folder.rglob("*tfevents*")):
        for name, values in events_of(path).items():
            if name.startswith(("loss", "gradient")):
                logged.setdefault(name, {}).update(zip(values[::2], values[1::2], strict=True))
    return {name: list(values.values()) for name, values in logged.items()}


def weights(folder: Path) -> dict[str, Tensor]:
    return World.from_pretrained(folder / "world").denoiser.state_dict()


def assert_same_training(found: Path, expected: Path, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    losses, wanted = losses_of(found), losses_of(expected)
    assert losses.keys() == wanted.keys() >= {"loss", "loss_end", "loss_reward", "gradient_norm_0"}
    for name, values in wanted.items():
        assert losses[name] == pytest.approx(values, rel=rtol, abs=atol), name
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], tensor, rtol=1e-2, atol=2e-4, msg=name)


@pytest.fixture(scope="module")
def alone(root: Path) -> Path:
    """Return the folder of a training on one device, which adds up the gradients of two passes."""
    train(config_of(root, "alone", ONE))
    return root / "alone"


def test_two_devices_make_the_updates_of_one(root: Path, alone: Path) -> None:
    train(config_of(root, "ddp", DDP))
    assert_same_training(root / "ddp", alone)
    (told,) = World.from_pretrained(root / "ddp" / "world").config.provenance["training"]
    assert told.startswith("4 updates on 64 frames"), told


@pytest.mark.parametrize("is_fused", [False, True], ids=["sums of layers", "sums left to norms"])
def test_sharded_weights_make_the_updates_of_whole_ones_in_mixed_precision(
    root: Path, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_fused:  # a gate is then a block's, and its gradient comes from the next: both are sharded apart
        monkeypatch.setattr(layers, "is_fused", lambda operator, _: operator in layers.NORMS[:2])
    whole, sharded = (f"{name}, fused={is_fused}" for name in ("whole", "sharded"))
    for name, fabric in ((whole, DDP), (sharded, FSDP)):
        train(config_of(root, name, replace(fabric, precision="bf16-mixed"), num_steps=3))
    assert_same_training(root / sharded, root / whole)


def test_a_training_goes_on_on_other_devices(root: Path, alone: Path) -> None:
    for num_steps, fabric in enumerate((DDP, ONE, FSDP, ONE), start=1):
        train(config_of(root, "moved", fabric, num_steps))
    assert_same_training(root / "moved", alone)


def codec_config(root: Path, out: str, fabric: FabricConfig) -> TrainCodecConfig:
    return TrainCodecConfig(
        out=str(root / out),
        data=DataConfig(train=[str(root / "data")], heldout=[str(root / "data")], num_workers=1),
        codec=tiny_codec_config(),
        loop=LoopConfig(num_steps=3, global_batch_size=8, warmup_steps=1, log_every=1),
        fabric=fabric,
        batch_size=4,
    )


def test_a_codec_trains_on_two_devices_as_on_one(root: Path) -> None:
    for name, fabric in (("codec-alone", ONE), ("codec-ddp", DDP)):
        config = codec_config(root, name, fabric)
        assert set(run_on_devices(lambda config=config: train_codec(config), int(fabric.devices))) == {0}
    alone, together = (losses_of(root / name)["loss"] for name in ("codec-alone", "codec-ddp"))
    assert together == pytest.approx(alone, rel=1e-4)


def test_a_codec_is_not_sharded(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = codec_config(root, "codec-fsdp", FSDP)
    assert run_on_devices(lambda: train_codec(config)) == [1, 1]
    assert (
        "error: fabric.strategy=fsdp spreads a network's blocks, and this has none" in capfd.readouterr().err
    )


def test_a_lost_process_ends_the_run_in_one_sentence_and_the_run_goes_on(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = config_of(root, "lost", DDP, num_steps=100_000)
    config.loop.checkpoint_seconds = 0.0
    processes = start_on_devices(lambda: pretrain.run(config))
    deadline = time.monotonic() + 60
    while not list((root / "lost" / "checkpoints").glob("step-*[0-9]")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGKILL)
    assert wait_for(processes, 30) == [1, -signal.SIGKILL]
    (told,) = re.findall(r"^error: .*$", capfd.readouterr().err, flags=re.MULTILINE)
    assert "process 0 of 2 waited for another that is lost: the same command goes on from the newest" in told
    (checkpoint,) = (root / "lost" / "checkpoints").glob("step-*[0-9]")
    done = int(checkpoint.name.removeprefix("step-"))
    train(config_of(root, "lost", ONE, num_steps=done + 1))
    assert len(losses_of(root / "lost")["loss"]) >= done + 1


def test_a_run_goes_on_where_it_was_moved_to(root: Path, alone: Path) -> None:
    there = root / "there"
    for name in ("data", "codec", "alone"):
        shutil.copytree(root / name, there / name)
    train(config_of(there, "alone", ONE, num_steps=5))
    assert [path.name for path in (there / "alone" / "checkpoints").iterdir()] == ["step-00000005"]
    assert {name: values[:4] for name, values in losses_of(there / "alone").items()} == losses_of(alone)


def test_a_run_does_not_go_on_with_other_passes(root: Path, alone: Path) -> None:
    config = config_of(root, "alone", ONE, num_steps=5)
    config.loop.global_batch_size = 0
    with pytest.raises(WorldError, match="updates are 2 passes of batch_size, and these settings make 1:"):
        pretrain.run(config)


@pytest.mark.parametrize(("global_batch_size", "devices"), [(7, 1), (6, 2), (2, 2), (3, 4)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(global_batch_size: int, devices: int) -> None:
    fabric = Mock(spec=Fabric, world_size=devices, global_rank=0)
    expected = rf"={global_batch_size} can't be shared evenly by {devices} .* a multiple of {2 * devices}$"
    with pytest.raises(WorldError, match=expected):
        share_passes(fabric, 2, global_batch_size)


def test_a_checkpoint_that_one_machine_does_not_see_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, config_of(tmp_path, "run", ONE))
    fabric = Mock(spec=Fabric, device=torch.device("cpu"))
    fabric.broadcast = lambda _: tmp_path / "checkpoints" / "step-00000004"  # as the first one saw it
    fabric.all_gather = lambda sees: torch.stack([torch.ones(()), sees])
    with pytest.raises(WorldError, match="step-00000004 is not there on every machine: out= must be"):
        run.shared_latest(fabric)


def test_processes_that_the_settings_do_not_know_of_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match=r"2 processes were started, but fabric\.devices=1 on .* makes 1;"):
        make_fabric(ONE, tmp_path)


@pytest.mark.slow
def test_torchrun_on_two_machines_trains_together(root: Path, alone: Path) -> None:
    settings = [
        *("codec=codec", "data.train=[data]", "data.heldout=[data]", "out=torchrun", "name=toy"),
        *("fabric.accelerator=cpu", "fabric.num_nodes=2", "fabric.precision=32-true", "data.num_workers=1"),
        *("model.dim=32", "model.ffn_dim=48", "model.num_heads=2", "model.num_layers=3", "model.window=2"),
        *("model.window_layers=[1]", "model.outcome_heads=true", "objective.own_context_share=0.5"),
        *("loop.num_steps=4", "loop.global_batch_size=4", "loop.warmup_steps=2", "loop.decay_fraction=0"),
        *("loop.log_every=1", "batch_size=2", "sequence_length=4", "segments=2", "num_starts=1"),
        *("start_frames=4", "validation.num_rollouts=2", "validation.context_frames=2"),
        "validation.horizons=[1,2]",
    ]
    port = free_port()
    machines = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"),
                *("--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *("-m", "training.pretrain", *settings),
            ],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [machine.wait(timeout=240) for machine in machines] == [0, 0]
    assert_same_training(root / "torchrun", alone)

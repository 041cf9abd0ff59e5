"""Trainings on several devices: the same updates as on one, resumed on another number, ended by a loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.devices import needs_fork, run_on_devices
from tests.fakes import tiny_codec_config, tiny_denoiser_config, write_outcome_dataset
from tests.public_runs import events_of
from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.objectives.flow_matching import ObjectiveConfig
from training.pretrain import main as pretrain
from training.world.train import PretrainConfig
from training.world.validation import ValidationConfig
from worldsim.codec import FrameCodec, save_codec
from worldsim.world import World

pytestmark = needs_fork
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


def test_sharded_weights_make_the_updates_of_whole_ones(root: Path, alone: Path) -> None:
    train(config_of(root, "fsdp", FSDP))
    assert_same_training(root / "fsdp", alone)


def test_a_training_goes_on_on_other_devices(root: Path, alone: Path) -> None:
    for num_steps, fabric in enumerate((DDP, ONE, FSDP, ONE), start=1):
        train(config_of(root, "moved", fabric, num_steps))
    assert_same_training(root / "moved", alone)

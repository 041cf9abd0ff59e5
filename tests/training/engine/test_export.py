"""A training that goes on elsewhere from a few small files, and what is said of files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from training.engine.export import EXPORT, LIST_FILE, ExportConfig, check_can_export, export_training
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.loop import LoopConfig, fit, seed_of
from training.engine.muon import BatchedMuon
from training.engine.optimizers import OptimizerConfig, make_optimizers
from training.engine.run_folder import RunFolder
from training.engine.strategies import ShardedStrategy
from training.engine.update import Training, prepare
from training.objectives.flow_matching import SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.storage.quantization import BLOCK, dequantize, quantize

ROOT = Path(__file__).resolve().parents[3]
WIDTH = 96


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """What a run is made of."""

    loop: LoopConfig = field(default_factory=LoopConfig)


class Copier(nn.Module):
    """Learns to return its input through matrices of more numbers than are stored as they are."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, WIDTH), nn.Linear(WIDTH, width)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        loss = (self.second(self.first(x)) - x).square().mean()
        self.losses.append(loss.item())
        return {"loss": loss}


def run_copier(
    folder: Path, num_steps: int, *, width: int = WIDTH, stopped_at: int = -1, **export: int | float | str
) -> Training:
    torch.manual_seed(0)
    exported = ExportConfig(**export)  # pyright: ignore[reportArgumentType]
    config = RunConfig(
        loop=LoopConfig(num_steps=num_steps, warmup_steps=2, decay_fraction=0.0, export=exported)
    )
    run = RunFolder(folder, config)
    fabric = make_fabric(FabricConfig(accelerator="cpu", precision="32-true"), folder)
    run.check_inputs(fabric, fabric.world_size, train="one")
    model = Copier(width)
    optimizers = [
        BatchedMuon([model.first.weight], lr=1e-2),
        torch.optim.AdamW([model.second.weight, model.first.bias, model.second.bias], lr=1e-3),
    ]
    training = prepare(fabric, model, optimizers, 0.99)

    def batch_at(step: int, number: int) -> tuple[Tensor]:
        if step == stopped_at:
            raise KeyboardInterrupt
        return (torch.randn(16, width, generator=torch.Generator().manual_seed(seed_of(0, step))),)

    fit(fabric, training, batch_at, config.loop, run, frames_per_batch=16, on_checkpoint=lambda _: {})
    return training


def losses_of(training: Training) -> list[float]:
    return training.module.module.losses


@pytest.mark.parametrize(("bits", "error"), [(8, 1 / 127), (16, 1 / 32767)])
@pytest.mark.parametrize("up", [False, True])
def test_a_block_is_rounded_by_its_largest_number(bits: int, error: float, up: bool) -> None:
    x = torch.randn(3 * BLOCK + 5, generator=torch.Generator().manual_seed(0))
    x[BLOCK : 2 * BLOCK] = 0
    x[-5:] *= 1e-12
    values, scales = quantize(x, bits, up=up)
    assert values.dtype == (torch.int8 if bits == 8 else torch.int16)
    found = dequantize(values, scales)
    for block, rounded in zip(x.split(BLOCK), found.split(BLOCK), strict=True):
        assert (block - rounded).abs().max() <= (1.001 if up else 0.501) * error * block.abs().max()
        if up:
            assert (rounded.abs() >= 0.999999 * block.abs()).all()
    with pytest.raises(ValueError, match="389 numbers have 3 scales"):
        dequantize(values, scales[:3])


@pytest.mark.parametrize("bits", [8, 16])
def test_a_run_goes_on_elsewhere_as_if_it_had_not_stopped(tmp_path: Path, bits: int) -> None:
    whole = losses_of(run_copier(tmp_path / "whole", 60))
    before = run_copier(tmp_path / "before", 30, bits=bits)
    after = run_copier(tmp_path / "after", 60, resume_from=str(tmp_path / "before" / EXPORT))
    assert after.step == 60
    assert len(losses_of(after)) == 30
    rel = {8: 0.01, 16: 1e-3}[bits]
    assert losses_of(after) == pytest.approx(whole[30:], rel=rel), "neither weights nor momenta began anew"
    assert before.step == 30


def test_the_average_keeps_more_digits_than_the_weights(tmp_path: Path) -> None:
    before = run_copier(tmp_path / "before", 30, bits=8)
    going_on = str(tmp_path / "before" / EXPORT)
    after = run_copier(tmp_path / "after", 31, resume_from=going_on)
    assert after.step == 31
    fresh = run_copier(tmp_path / "same", 30, resume_from=going_on)  # its length is reached: no update
    assert fresh.step == 30
    errors = []
    for of_old, of_new in ((before.module.module, fresh.module.module), (before.average, fresh.average)):
        old, new = of_old.state_dict(), of_new.state_dict()
        name = next(name for name in old if name.endswith("first.weight"))
        errors.append(float((old[name] - new[name]).abs().max()))
        bias = next(name for name in old if name.endswith("first.bias"))
        assert torch.equal(old[bias], new[bias]), "what is small is stored as it is"
    assert errors[1] < 0.2 * errors[0]
    assert int(fresh.average.n_averaged) == int(before.average.n_averaged) == 30


def test_a_run_that_is_stopped_leaves_an_export_as_well(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_copier(tmp_path / "before", 30, stopped_at=7, bits=8)
    after = run_copier(tmp_path / "after", 9, resume_from=str(tmp_path / "before" / EXPORT))
    assert len(losses_of(after)) == 2


def test_a_runs_own_checkpoint_comes_before_an_export(tmp_path: Path) -> None:
    run_copier(tmp_path / "before", 4, bits=8)
    going_on = str(tmp_path / "before" / EXPORT)
    run_copier(tmp_path / "after", 8, resume_from=going_on)
    again = run_copier(tmp_path / "after", 10, resume_from=going_on)
    assert len(losses_of(again)) == 2


def test_pieces_are_as_small_as_they_are_to_be(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = run_copier(tmp_path, 2, width=6000, bits=16, megabytes=1.5)
    assert wide.step == 2
    pieces = sorted((tmp_path / EXPORT).glob("*.safetensors"))
    assert len(pieces) > 3
    assert max(piece.stat().st_size for piece in pieces) <= 1.5e6
    after = run_copier(tmp_path / "after", 2, width=6000, resume_from=str(tmp_path / EXPORT))
    for name, tensor in wide.module.module.state_dict().items():
        assert torch.allclose(tensor, after.module.module.state_dict()[name], atol=1e-5), name


def test_a_full_disk_keeps_the_export_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_copier(tmp_path, 2, bits=8)
    known = {path.name: path.read_bytes() for path in (tmp_path / EXPORT).iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.engine.export.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        run_copier(tmp_path, 3, bits=8)
    assert {path.name: path.read_bytes() for path in (tmp_path / EXPORT).iterdir()} == known
    assert sorted(path.name for path in tmp_path.glob("export*")) == [EXPORT]


def relist(folder: Path, **changes: object) -> None:
    path = folder / LIST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_byte(folder: Path) -> None:
    path = folder / "piece-00.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda folder: (folder / LIST_FILE).unlink(), r"it has no export\.json"),
    "no JSON": (lambda folder: (folder / LIST_FILE).write_text("{"), r"export\.json is not JSON"),
    "a piece missing": (lambda folder: (folder / "piece-00.safetensors").unlink(), "no piece-00.safetensors"),
    "a piece altered": (flip_a_byte, r"piece-00\.safetensors is damaged"),
    "a piece not listed": (lambda folder: relist(folder, files={}), "another model: it has no "),
    "a step of text": (lambda folder: relist(folder, step="3"), "its step is '3'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_is_one_sentence(tmp_path: Path, damage: str) -> None:
    run_copier(tmp_path / "before", 2, bits=8)
    harm, sentence = DAMAGES[damage]
    harm(tmp_path / "before" / EXPORT)
    with pytest.raises(WorldError, match=sentence) as found:
        run_copier(tmp_path / "after", 4, resume_from=str(tmp_path / "before" / EXPORT))
    assert str(tmp_path / "before" / EXPORT) in str(found.value)
    assert "\n" not in str(found.value)
    assert not list((tmp_path / "after" / "checkpoints").iterdir())


def test_an_export_of_another_model_is_one_sentence(tmp_path: Path) -> None:
    run_copier(tmp_path / "before", 2, bits=8)
    going_on = str(tmp_path / "before" / EXPORT)
    with pytest.raises(
        WorldError, match=r"another model: first.weight holds 9,216 numbers, 7,680 are needed"
    ):
        run_copier(tmp_path / "after", 4, width=80, resume_from=going_on)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="nowhere is no export of a training"):
        run_copier(tmp_path / "after", 4, resume_from=str(tmp_path / "nowhere"))


def test_weights_that_are_spread_over_devices_are_refused_before_training() -> None:
    fabric = SimpleNamespace(strategy=ShardedStrategy())
    with pytest.raises(WorldError, match="needs whole weights on each device: use strategy auto or ddp"):
        check_can_export(fabric, ExportConfig(bits=8))  # pyright: ignore[reportArgumentType]
    with pytest.raises(WorldError, match="needs whole weights"):
        check_can_export(fabric, ExportConfig(resume_from="there"))  # pyright: ignore[reportArgumentType]
    check_can_export(fabric, ExportConfig())  # pyright: ignore[reportArgumentType]


def test_bits_are_those_that_there_are() -> None:
    with pytest.raises(WorldError, match="loop.export.bits must be 0, 8 or 16, got 4"):
        ExportConfig(bits=4)


def with_momenta(denoiser: Denoiser, folder: Path) -> Training:
    """Return a training whose optimizers hold what they hold after an update."""
    fabric = make_fabric(FabricConfig(accelerator="cpu", precision="32-true"), folder)
    module = SequenceFlowMatching(denoiser, ObjectiveConfig())
    training = prepare(fabric, module, make_optimizers(denoiser, OptimizerConfig()), 0.99)
    for optimizer in training.optimizers:
        is_muon = isinstance(optimizer.optimizer, torch.optim.Muon)
        for group in optimizer.optimizer.param_groups:
            for parameter in group["params"]:
                names = ("momentum_buffer",) if is_muon else ("exp_avg", "exp_avg_sq")
                state = {name: torch.rand_like(parameter) for name in names}
                optimizer.optimizer.state[parameter] = state | (
                    {} if is_muon else {"step": torch.tensor(1.0)}
                )
    return training


@pytest.mark.slow
def test_the_base_model_fits_into_four_files_of_15_megabytes(tmp_path: Path) -> None:
    described = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / "base.yaml")) or {}
    assert isinstance(described, dict)
    config = DenoiserConfig(**described | {"latent_shape": [16, 16, 20], "num_values": [3, 3, 2]})
    training = with_momenta(Denoiser(config), tmp_path)
    fabric = make_fabric(FabricConfig(accelerator="cpu", precision="32-true"), tmp_path)
    export_training(fabric, training, tmp_path, ExportConfig(bits=8))
    sizes = [path.stat().st_size for path in (tmp_path / EXPORT).iterdir()]
    assert len(sizes) == 5, "four pieces and their list"
    assert max(sizes) <= 15_000_000
    assert 55_000_000 < sum(sizes) < 60_000_000

"""Matrices updated together end where PyTorch's own Muon takes them one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.devices import needs_fork, run_on_devices
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.muon import BatchedMuon, orthogonalise

SHAPES = [(12, 12), (12, 12), (24, 12), (12, 24), (12, 12)]


def make_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "plain"])
def test_batched_muon_equals_torch_muon(adjust: str, nesterov: bool) -> None:
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust, "nesterov": nesterov}
    batched, one_by_one = make_parameters(), make_parameters()
    take_steps(BatchedMuon(batched, **settings), batched, 5)
    take_steps(torch.optim.Muon(one_by_one, **settings), one_by_one, 5)
    for first, second in zip(batched, one_by_one, strict=True):
        # Both orthogonalise in bf16: 2^-8 of an update, which is at most 0.1 a number, five times.
        torch.testing.assert_close(first, second, rtol=0, atol=5 * 0.1 * 2**-8)
    assert (batched[0] - make_parameters()[0]).abs().max() > 0.01


@needs_fork
def test_muon_of_sharded_matrices_equals_that_of_whole_ones(tmp_path: Path) -> None:
    """Also where a device holds fewer rows than another, or none."""
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    config = FabricConfig(accelerator="cpu", devices="2", strategy="fsdp", precision="32-true")

    def compare() -> None:
        make_fabric(config, tmp_path)
        mesh = init_device_mesh("cpu", (2,))
        generator = torch.Generator().manual_seed(0)
        whole = [
            nn.Parameter(torch.randn(shape, generator=generator))
            for shape in ((5, 3), (5, 3), (1, 4), (4, 6))
        ]
        sharded = [nn.Parameter(distribute_tensor(each.detach().clone(), mesh, [Shard(0)])) for each in whole]
        optimizers = BatchedMuon(whole, **settings), BatchedMuon(sharded, **settings)
        for _ in range(3):
            for parameter, shard in zip(whole, sharded, strict=True):
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                shard.grad = distribute_tensor(parameter.grad.clone(), mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step()
        for parameter, shard in zip(whole, sharded, strict=True):
            assert isinstance(shard, DTensor)
            assert torch.equal(shard.full_tensor(), parameter)

    assert run_on_devices(compare) == [0, 0]


def test_a_matrix_without_gradient_stays_as_it_is() -> None:
    parameters = make_parameters()
    optimizer = BatchedMuon(parameters, lr=0.1)
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert torch.equal(parameters[1], make_parameters()[1])
    assert not torch.equal(parameters[0], make_parameters()[0])


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(
        orthogonalise(matrices, (3.4445, -4.7750, 2.0315), num_steps=5, eps=1e-7).float()
    )
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_its_state_is_that_of_torch_muon() -> None:
    parameters = make_parameters()
    optimizer = BatchedMuon(parameters, lr=0.02)
    take_steps(optimizer, parameters, 2)
    other = torch.optim.Muon(make_parameters(), lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.02
    assert len(other.state) == len(SHAPES)

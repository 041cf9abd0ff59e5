"""Recorded passes: the updates of those launched kernel by kernel, and nothing that a graph cannot hold."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kernels.selection import using
from tests.devices import HostLooks, needs_fork, run_on_devices
from tests.fakes import tiny_denoiser_config
from training.data.latents import DataConfig, OutcomeTargets
from training.engine.carry import Carry
from training.engine.fabric import FabricConfig, make_fabric, share_passes
from training.engine.graphs.passes import PassGraph
from training.engine.loop import LoopConfig
from training.engine.step import StepConfig, check_step, computing
from training.engine.update import Training, update
from training.objectives.flow_matching import SegmentFlowMatching, SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig
from training.objectives.outcome import OutcomeLoss, OutcomeLossConfig
from training.suites.training_cost import random_video
from training.world.batches import make_passes
from training.world.settings import TrainWorldConfig
from training.world.train import begin_training
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.model.denoiser import Denoiser
from worldsim.outcome import OutcomeConfig
from worldsim.runtime.cuda_graphs import Recorded, tensors_of

ROOT = Path(__file__).resolve().parents[3]
ROWS, FRAMES, META = 4, 4, torch.device("meta")
MODEL = tiny_denoiser_config(outcome_heads=True)
OWN = ObjectiveConfig(own_context_share=0.5, own_context_depth=2, change_weight=1.0)
RECALL = ObjectiveConfig(recall_share=0.5, suffix_share=0.25, change_weight=1.0)
CPU = FabricConfig(accelerator="cpu", precision="32-true")
GPU = FabricConfig(accelerator="cuda", precision="bf16-mixed", compile=True)


def record_on_cpu(
    function: Callable[[], Any], device: torch.device, pool: object, generators: Sequence[torch.Generator]
) -> Recorded:
    """Behave as a CUDA graph does: run again on the same tensors, into the same tensors."""
    function()  # as before a graph is recorded, which may change nothing
    returned = function()

    def replay() -> None:
        for kept in tensors_of(returned):  # who had to copy it out has done so
            kept.fill_(torch.nan if kept.is_floating_point() else 0)
        for kept, new in zip(tensors_of(returned), tensors_of(function()), strict=True):
            kept.copy_(new)

    return returned, replay


def settings(fabric: FabricConfig, **changed: Any) -> TrainWorldConfig:
    """Return a training in which all that is drawn or carried has a part."""
    given: dict[str, Any] = {
        "objective": OWN,
        "fabric": fabric,
        "segments": 2,
        "loop": LoopConfig(global_batch_size=2 * ROWS),
        **changed,
    }
    data = DataConfig(train=[], heldout=[])
    return TrainWorldConfig(out="", data=data, batch_size=ROWS, sequence_length=FRAMES, **given)


Begun = tuple[Fabric, Training, Callable[[int, int], Sequence[Any]]]


def begin(config: TrainWorldConfig, model: DenoiserConfig, folder: Path) -> Begun:
    """Return a training at its start, and what draws its batches."""
    fabric = make_fabric(config.fabric, folder)
    passes = share_passes(fabric, config.batch_size, config.loop.global_batch_size)
    length = 2 * config.segments * FRAMES
    parts = [random_video(model, length, fabric.device, seed) for seed in passes.own]
    torch.manual_seed(0)
    meaning = OutcomeConfig() if model.outcome_heads else None
    training = begin_training(config, spread(Denoiser(model)), meaning, parts, passes, fabric)
    return fabric, training, make_passes(parts, config, passes, with_outcomes=model.outcome_heads)


@torch.no_grad()
def spread(denoiser: Denoiser) -> Denoiser:
    """Let weights matter that are zero at first."""
    for parameter in denoiser.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
    return denoiser


def updates(begun: Begun, count: int = 3) -> list[dict[str, float]]:
    """Make updates and return their losses and the norms of their gradients."""
    fabric, training, batch_at = begun
    found = []
    for _ in range(count):
        batches = [batch_at(training.step, number) for number in training.passes.own]
        losses = update(fabric, training, batches)
        found.append({name: float(value) for name, value in losses.items()})
    return found


def record_with(training: Training, fabric: Fabric) -> None:
    """Let a training on a CPU replay its passes."""
    own = len(training.passes.own)
    training.graph = PassGraph(fabric, training.module.module, own, record_on_cpu)


CASES = {
    "segments with outcomes, two passes": ({}, True),
    "one pass": ({"loop": LoopConfig()}, True),
    "sequences": ({"segments": 1}, False),
    "plain": ({"segments": 1, "objective": ObjectiveConfig(), "loop": LoopConfig()}, False),
}


@pytest.mark.parametrize(
    ("case", "precision"), [*((case, "32-true") for case in CASES), ("one pass", "bf16-mixed")]
)
def test_replayed_passes_make_the_same_updates(case: str, precision: str, tmp_path: Path) -> None:
    changed, has_heads = CASES[case]
    config = settings(replace(CPU, precision=precision), **changed)
    model = tiny_denoiser_config(outcome_heads=has_heads)
    begun = begin(config, model, tmp_path)
    expected = updates(begun)
    fabric, training, batch_at = begin(config, model, tmp_path)
    record_with(training, fabric)
    assert updates((fabric, training, batch_at)) == expected
    assert_same_state(training, begun[1])
    # What the loss does not reach stays without a gradient, and so without weight decay.
    assert [p.grad is None for p in training.module.parameters()] == [
        p.grad is None for p in begun[1].module.parameters()
    ]


def assert_same_state(found: Training, expected: Training) -> None:
    pairs = [(found.module.module, expected.module.module), (found.average, expected.average)]
    for module, other in pairs:
        for name, tensor in other.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor), name
    carries = zip(found.carries or [], expected.carries or [], strict=True)
    for carry, wanted in carries:
        for name, tensor in wanted.memory.tensors().items():
            assert torch.equal(carry.memory.tensors()[name], tensor), name


def test_a_training_goes_on_from_a_checkpoint_with_or_without_graphs(tmp_path: Path) -> None:
    config, model = settings(CPU), MODEL
    first = begin(config, model, tmp_path)
    updates(first, 1)
    state = copy.deepcopy(first[1].state(first[0]))
    expected = updates(first, 2)
    for replays in (False, True):
        fabric, training, batch_at = begin(config, model, tmp_path)
        if replays:
            record_with(training, fabric)
            updates((fabric, training, batch_at), 2)  # recorded before the weights are replaced
        places = [parameter.data_ptr() for parameter in training.module.parameters()]
        training.restore(copy.deepcopy(state), fabric)
        assert [parameter.data_ptr() for parameter in training.module.parameters()] == places
        assert updates((fabric, training, batch_at), 2) == expected


def test_a_batch_of_another_shape_is_named(tmp_path: Path) -> None:
    config = settings(CPU, segments=1, loop=LoopConfig())
    fabric, training, batch_at = begin(config, tiny_denoiser_config(), tmp_path)
    record_with(training, fabric)
    latents, actions, generator = batch_at(0, 0)
    update(fabric, training, [(latents, actions, generator)])
    with pytest.raises(WorldError, match=r"step.graphs=true .* \(\(4, 3, 4, 4, 6\), torch.float16\), not"):
        update(fabric, training, [(latents[:, 1:], actions[:, 1:], generator)])
    with pytest.raises(WorldError, match="holds 1 tensors, not 2"):
        update(fabric, training, [(latents, generator)])


def compare_with_ddp(fabric: FabricConfig, folder: Path) -> None:
    """Raise `WorldError` if replayed passes and DDP make other updates; each device's process calls it."""
    config = settings(fabric, loop=LoopConfig(global_batch_size=4 * ROWS))
    begun = begin(config, MODEL, folder)
    expected = updates(begun)
    replayed = begin(replace(config, step=StepConfig(graphs=begun[0].device.type == "cuda")), MODEL, folder)
    if replayed[1].graph is None:
        record_with(replayed[1], replayed[0])
    found = updates(replayed)
    for losses, wanted in zip(found, expected, strict=True):
        if losses != pytest.approx(wanted, rel=1e-5):
            raise WorldError(f"losses are {found}, with DDP {expected}")
    for mine, other in zip(replayed[1].module.parameters(), begun[1].module.parameters(), strict=True):
        if not torch.allclose(mine, other, rtol=1e-3, atol=1e-5):
            raise WorldError("the weights differ from those of DDP")


@needs_fork
def test_two_devices_exchange_the_means_that_ddp_does(tmp_path: Path) -> None:
    fabric = replace(CPU, devices="2", strategy="ddp")
    assert run_on_devices(lambda: compare_with_ddp(fabric, tmp_path), 2) == [0, 0]


@pytest.mark.parametrize(
    ("device", "changed", "is_sharded", "message"),
    [
        ("cpu", {}, False, "step.graphs=true runs on CUDA, but the training is on cpu"),
        ("cuda", {}, True, "step.graphs=true needs whole weights .* fabric.strategy=fsdp .*: choose ddp"),
        ("cuda", {"full_layers": [1]}, False, r"step.graphs=true .* the layers \[1\] see all past frames"),
    ],
)
def test_what_cannot_be_recorded_is_said(
    device: str, changed: dict[str, Any], is_sharded: bool, message: str
) -> None:
    model = replace(tiny_denoiser_config(), window_layers=[], **changed)
    with pytest.raises(WorldError, match=message):
        check_step(
            StepConfig(graphs=True), torch.device(device), model, is_compiled=False, is_sharded=is_sharded
        )


def on_device(values: Any) -> Any:
    return tree_map(lambda x: x.to(META) if isinstance(x, Tensor) else x, values)


def targets() -> OutcomeTargets:
    flags = torch.zeros(ROWS, FRAMES, dtype=torch.bool)
    return OutcomeTargets(torch.zeros(ROWS, FRAMES), flags, ~flags)


@contextmanager
def pass_on_meta(
    model: DenoiserConfig, objective: ObjectiveConfig, segments: int
) -> Iterator[Callable[[], None]]:
    """Give a pass, forward and backward, on tensors without numbers."""
    denoiser = Denoiser(model)
    heads = OutcomeLoss(denoiser.outcome, OutcomeConfig(), OutcomeLossConfig()) if denoiser.outcome else None
    module: nn.Module = (SequenceFlowMatching if segments == 1 else SegmentFlowMatching)(
        denoiser.to(META), objective, heads
    )
    latents = torch.empty(ROWS, FRAMES, *model.latent_shape, dtype=torch.float16, device=META)
    actions = torch.empty(ROWS, FRAMES, len(model.num_values), dtype=torch.int64, device=META)
    batch: list[Any] = [latents, actions, None]
    given = {}
    if segments > 1:
        batch.append(torch.empty(ROWS, dtype=torch.bool, device=META))
        given["carry"] = Carry(denoiser.initial_memory(ROWS))
    batch.append(None if heads is None else on_device(targets()))
    if model.memory_keys == MemoryKeys.POSE:
        batch.append(torch.empty(ROWS, FRAMES, 3, device=META))

    def run() -> None:
        losses = module(*batch, **given)
        (losses if segments == 1 else losses[0])["loss"].backward()

    with HostLooks() as looks:
        yield run
    assert looks.mixed == []


MODELS = {
    "window layers and a path": {},
    "plane keys": {"memory_keys": "plane"},
    "odometry": {"memory_keys": "plane", "path_odometry": True},
    "pose keys, recycled": {"memory_keys": "pose", "memory_phase": "none", "recycled": True},
    "the paper's clock": {"memory_phase": "time"},
    "no previous frame": {"previous_frame": False},
    "recycled": {"memory_keys": "plane", "path_odometry": True, "recycled": True},
}


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave autocast out, which the device `meta` does not know."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_a_pass_asks_the_device_for_nothing_and_sends_nothing(model: str, segments: int, form: str) -> None:
    shape = replace(tiny_denoiser_config(outcome_heads=True), dim=64, **MODELS[model])
    recalls = shape.memory_keys == MemoryKeys.POSE and segments == 1
    for objective in (ObjectiveConfig(), OWN, *([RECALL] if recalls else [])):
        with using(form=form, layers=form), pass_on_meta(shape, objective, segments) as run:
            run()


@pytest.mark.parametrize(
    "asks",
    [lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: x.sum().item(), lambda x: x.nonzero()],
)
def test_what_depends_on_numbers_is_found(asks: Callable[[Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        asks(torch.empty(2, device=META))


@pytest.mark.parametrize(
    "sends",
    [
        lambda x: x + torch.tensor([1.0, 2.0]).to(META),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: torch.tensor(1.0).to(META),
    ],
)
def test_what_comes_from_the_host_is_found(sends: Callable[[Tensor], object]) -> None:
    with HostLooks() as looks:
        sends(torch.empty(2, device=META))
    assert looks.mixed


CARD = DenoiserConfig(
    latent_shape=[4, 8, 8],
    num_values=[3],
    dim=128,
    ffn_dim=256,
    num_heads=2,
    num_layers=3,
    window_layers=[1],
    window=2,
    outcome_heads=True,
)


def on_card(config: TrainWorldConfig, model: DenoiserConfig, folder: Path, *, graphs: bool) -> Begun:
    return begin(replace(config, step=replace(config.step, graphs=graphs)), model, folder)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_on_a_card_replayed_passes_make_the_same_updates(
    case: str, is_compiled: bool, kernels: str, tmp_path: Path
) -> None:
    changed, has_heads = CASES[case]
    config = settings(replace(GPU, compile=is_compiled), step=StepConfig(kernels=kernels), **changed)
    model = replace(CARD, outcome_heads=has_heads)
    with computing(config.step):
        begun = on_card(config, model, tmp_path, graphs=False)
        expected = updates(begun)
        replayed = on_card(config, model, tmp_path, graphs=True)
        assert replayed[1].graph is not None
        found = updates(replayed)
        assert replayed[1].graph.pool_bytes > 0
        assert updates(replayed) != found  # other steps draw other noise
    # The first update's losses are of equal weights and equal noise, or they would not agree so well.
    for name, value in expected[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-4 if "norm" in name else 1e-5, abs=1e-6), name
    for losses, wanted in zip(found[1:], expected[1:], strict=True):
        assert losses == pytest.approx(wanted, rel=2e-2, abs=2e-3)


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_card_the_same_pass_is_replayed_to_the_bit(tmp_path: Path) -> None:
    config = settings(replace(GPU, compile=False, precision="32-true"))
    with computing(config.step):
        fabric, training, batch_at = on_card(config, CARD, tmp_path, graphs=True)
        assert training.graph is not None
        assert training.carries is not None
        found = []
        for step in (0, 1, 0):  # the pass between must leave nothing behind
            losses, _ = training.graph.run(batch_at(step, 0), training.carries[0], is_first=True)
            eager, _ = training.module(*batch_at(step, 0), carry=training.carries[0])
            found.append({name: float(value) for name, value in losses.items()})
            assert found[-1] == pytest.approx({name: float(value) for name, value in eager.items()}, rel=1e-5)
    assert found[0] == found[2] != found[1]
    with pytest.raises(WorldError, match="step.graphs=true replays passes of one shape"):
        latents, *others = batch_at(0, 0)
        training.graph.run((latents[:, 1:], *others), training.carries[0], is_first=True)


SCRIPT = """
from pathlib import Path
from tests.training.engine.test_graphs import CPU, compare_with_ddp, replace
compare_with_ddp(replace(CPU, accelerator="cuda", devices="2", strategy="ddp"), Path("."))
"""


@pytest.mark.gpu
@pytest.mark.slow
def test_two_cards_make_the_updates_of_ddp(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    script = tmp_path / "compare.py"  # in new processes: CUDA does not survive a fork
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert subprocess.run([*launch, str(script)], cwd=tmp_path, timeout=300).returncode == 0

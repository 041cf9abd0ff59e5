"""Benchmark of training: what it counts, times and tells, at toy size on a CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from omegaconf.errors import ConfigKeyError
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

import kernels
from tests.fakes import tiny_denoiser_config
from training.benchmark import REPORT_FILE, BenchmarkConfig, with_settings
from training.benchmark import main as benchmark
from training.engine.fabric import FabricConfig
from training.objectives.noise import ObjectiveConfig
from training.suites.training_cost import (
    Form,
    attend_flops,
    attend_gradient_flops,
    count_flops,
    kept_bytes,
    peak_of,
    read_flops,
    read_gradient_flops,
    scan_flops,
    scan_gradient_flops,
    time_in_turn,
)
from training.suites.training_profile import (
    KINDS,
    OPTIMIZER,
    PRODUCTS,
    WAITING,
    kind_of,
    profile_update,
    summarize,
)
from worldsim.errors import WorldError

ROOT = Path(__file__).resolve().parents[2]
B, F, N, H, K, V = 2, 3, 96, 2, 32, 32


def scan_inputs() -> tuple[Tensor, ...]:
    k = nn.functional.normalize(torch.randn(B, F, N, H, K), dim=-1)
    g, beta = -torch.rand(B, F, N, H), torch.rand(B, F, N, H)
    inputs = (k, torch.randn(B, F, N, H, V), g, beta, torch.randn(B, H, K, V))
    return tuple(each.requires_grad_(True) for each in inputs)


def test_the_formula_of_the_scan_counts_what_its_form_in_pytorch_multiplies() -> None:
    inputs = scan_inputs()
    outputs: list[tuple[Tensor, Tensor]] = []
    forward = count_flops(lambda: outputs.append(kernels.scan_frames(*inputs, form="torch")))
    backward = count_flops(lambda: sum(each.sum() for each in outputs[0]).backward())
    shapes = inputs[0].shape, inputs[1].shape
    # Blocks of 16 tokens are inverted beside the formula: up to a tenth more products.
    assert 0.9 * forward < scan_flops(*shapes) < 1.02 * forward
    assert 0.9 * backward < scan_gradient_flops(*shapes) < 1.02 * backward


def test_the_formula_of_a_reading_counts_what_its_form_in_pytorch_multiplies() -> None:
    q, local = (torch.randn(B, N, H, K, requires_grad=True) for _ in range(2))
    state, gate = torch.randn(B, H, K, V, requires_grad=True), torch.rand(B, N, H, requires_grad=True)
    outputs: list[Tensor] = []
    assert count_flops(
        lambda: outputs.append(kernels.read(q, state, gate, local, form="torch"))
    ) == read_flops(q.shape, state.shape)
    assert count_flops(outputs[0].sum().backward) == read_gradient_flops(q.shape, state.shape)


def test_products_and_attention_are_counted() -> None:
    x, linear = torch.randn(7, 5), nn.Linear(5, 3)
    assert count_flops(lambda: linear(x)) == 2 * 7 * 5 * 3
    q = torch.randn(2, 3, 11, 8, requires_grad=True)
    outputs: list[Tensor] = []
    product = 2 * 2 * 3 * 11 * 11 * 8
    attend = nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: outputs.append(attend(q, q, q))) == 2 * product
    assert count_flops(outputs[0].sum().backward) == 5 * product  # one of them computes the weights again
    tokens_first = q.transpose(1, 2).shape
    assert attend_flops(tokens_first) == 2 * product
    assert attend_gradient_flops(tokens_first) == 5 * product


@pytest.mark.parametrize(
    ("name", "within", "kind"),
    [
        ("nvjet_tst_128x64_64x8_4x1_v_bz_TNN", [], "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", [], "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", [], "attention"),
        ("frame_map_solve", [], "scan"),
        ("key_gradient", ["arl2::scan_frames_gradient"], "scan"),
        ("recall_gradient", ["arl2::recall_gradient"], "fused layers"),
        ("attend_gradient", ["arl2::attend_gradient"], "attention"),
        ("attend_forward", [], "attention"),
        ("turned_norm_forward", [], "fused layers"),  # in a CUDA graph
        ("scan_forward", [], "scan"),
        ("triton_red_fused__to_copy_add_div_expand_mul_stack_sum_32", [], "elementwise and reductions"),
        ("triton_poi_fused_add_mul_3", ["Torch-Compiled Region: 0/0"], "elementwise and reductions"),
        ("triton_red_fused_native_layer_norm_backward_1", [], "elementwise and reductions"),
        ("void at::native::multi_tensor_apply_kernel", ["Optimizer.step#AdamW.step"], "optimizer"),
        ("sm90_xmma_gemm_bf16", ["aten::baddbmm", "Optimizer.step#BatchedMuon.step"], "optimizer"),
        ("Memcpy DtoD (Device -> Device)", [], "copies"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", [], "exchange"),
        ("aten::addmm", ["aten::linear"], "products"),
        ("aten::mul", [], "elementwise and reductions"),
    ],
)
def test_kernels_have_kinds(name: str, within: list[str], kind: str) -> None:
    assert kind_of(name, within) == kind


def test_kinds_add_up_to_the_time_of_an_update() -> None:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters())

    def run() -> float:
        model(torch.ones(512, 256)).square().mean().backward()
        optimizer.step()
        return 0.0

    run()
    found = profile_update(run, torch.device("cpu"))
    milliseconds = found["milliseconds"]
    assert tuple(milliseconds) == KINDS
    assert sum(milliseconds.values()) == pytest.approx(found["profiled_ms"], rel=1e-6)
    assert min(milliseconds[kind] for kind in (PRODUCTS, OPTIMIZER, WAITING)) > 0
    assert found["kernels"] > 20


def test_kernels_on_several_streams_are_busy_once_and_belong_to_what_launched_them() -> None:
    def event(name: str, start: float, end: float, device: DeviceType, **more: Any) -> FunctionEvent:
        return FunctionEvent(0, name, 0, start, end, device_type=device, **more)

    step = event("Optimizer.step#AdamW.step", 0, 50, DeviceType.CPU)
    launch = event("aten::mul", 10, 20, DeviceType.CPU)
    launch.set_cpu_parent(step)
    launch.append_kernel("vectorized_elementwise_kernel", 0, 2000)
    kernels_of_card = [
        event("vectorized_elementwise_kernel", 500, 1000, DeviceType.CUDA),  # in a CUDA graph
        event("sm90_xmma_gemm", 1000, 3000, DeviceType.CUDA),
        event("vectorized_elementwise_kernel", 2000, 4000, DeviceType.CUDA),
        event("Optimizer.step#AdamW.step", 0, 9000, DeviceType.CUDA, is_user_annotation=True),
        event("triton_poi_fused_add_0", 6000, 7000, DeviceType.CUDA),
    ]
    found = summarize([step, launch, *kernels_of_card], on_gpu=True)
    milliseconds = {kind: ms for kind, ms in found["milliseconds"].items() if ms}
    assert milliseconds == {
        "products": 2.0,
        "optimizer": 2.0,
        "elementwise and reductions": 1.5,
        "waiting": pytest.approx(9.0 - 4.5),
    }
    assert found["kernels"] == 4


def test_forms_are_timed_in_turn() -> None:
    order: list[str] = []
    fabric = SimpleNamespace(device=torch.device("cpu"))
    forms: dict[str, Any] = {
        name: SimpleNamespace(
            fabric=fabric, milliseconds=[], update=Mock(side_effect=lambda name=name: order.append(name))
        )
        for name in ("this", "against")
    }
    time_in_turn(forms, 3)
    assert order == ["this", "against"] * 3
    assert [len(form.milliseconds) for form in forms.values()] == [3, 3]


def test_what_is_kept_for_the_gradient_is_counted_once_and_without_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4, bias=False)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.linear(x) + self.linear(x)).sum()}

    x = torch.randn(16, 8)
    training = SimpleNamespace(module=Twice(), carries=None, step=0, passes=SimpleNamespace(own=[0]))
    fabric = SimpleNamespace(device=torch.device("cpu"))
    form = Form(fabric, training, lambda *_: (x,), 16, 0.0, 1.0)  # pyright: ignore[reportArgumentType]
    assert kept_bytes(form) == x.nbytes


def test_the_peak_of_a_card_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    for name, peak in (("NVIDIA H200", 989.0), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA T4", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_of(card, "bf16-mixed") == peak
    assert peak_of(card, "32-true") is None
    assert peak_of(torch.device("cpu"), "bf16-mixed") is None


def tiny_config(out: Path, **changes: Any) -> BenchmarkConfig:
    config = BenchmarkConfig(
        out=str(out),
        model=tiny_denoiser_config(outcome_heads=True),
        objective=ObjectiveConfig(own_context_share=0.5),
        fabric=FabricConfig(accelerator="cpu", precision="32-true"),
        batch_size=2,
        sequence_length=4,
        segments=2,
        num_updates=3,
        num_warmup=1,
        measure_start=False,
        peak_tflops=0.5,
    )
    return replace(config, **changes)


def test_a_training_is_measured_against_another_form_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.run(tiny_config(tmp_path, against=["batch_size=4", "objective.own_context_share=0"]))
    report = json.loads((tmp_path / REPORT_FILE).read_text())
    this, against = report["forms"]["this"], report["forms"]["against"]
    assert (this["frames"], against["frames"]) == (8, 16)
    # Own context: of two rows one goes through the network once more, forward.
    assert 0.5 < this["tflop"] / against["tflop"] < 0.75
    assert this["update_ms"]["count"] == 3
    assert this["frames_per_second"] == pytest.approx(8e3 / this["update_ms"]["p50"])
    assert this["share_of_peak"] == pytest.approx(this["tflops_per_second"] / 0.5)
    assert this["kept_mb_per_frame"] > 0
    assert report["ratio"]["count"] == 3
    assert report["settings"]["against"]["batch_size"] == 4
    told = capsys.readouterr().out
    for line in (
        r"frames/s +[\d,]+ +[\d,]+",
        r"  optimizer, ms +[\d.]+ +[\d.]+",
        r"this over against, frames/s: \d",
    ):
        assert re.search(line, told), line


def test_updates_of_several_passes_count_all_frames(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_updates=1, segments=1)
    config.loop.global_batch_size = 6
    benchmark.run(config)
    assert json.loads((tmp_path / REPORT_FILE).read_text())["forms"]["this"]["frames"] == 24


def test_settings_of_the_other_form_are_checked(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(WorldError, match="against: 'compile' is not of the form name=value"):
        with_settings(config, ["compile"])
    with pytest.raises(ConfigKeyError, match="no_such"):
        with_settings(config, ["fabric.no_such=1"])
    with pytest.raises(WorldError, match="batch_size must be at least 1, got 0"):
        with_settings(config, ["batch_size=0"])


@pytest.mark.slow
def test_the_start_is_measured_in_processes_of_its_own(tmp_path: Path) -> None:
    settings = ["model=tiny", "batch_size=2", "sequence_length=4", "num_updates=1", "num_warmup=1", "out=out"]
    run = subprocess.run(
        [sys.executable, "-m", "training.benchmark", *settings, "fabric.accelerator=cpu"],
        cwd=tmp_path,
        env={"PYTHONPATH": os.environ["PYTHONPATH"], "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    start = json.loads((tmp_path / "out" / REPORT_FILE).read_text())["start"]
    assert min(start["cold_seconds"], start["warm_seconds"]) > 1
    assert "first update after" in run.stdout

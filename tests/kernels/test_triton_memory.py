"""`commit` and `read` in Triton equal the reference: in the interpreter, and on a GPU if there is one."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels.benchmark.inputs import REGIMES, make_frame, make_reading

TOLERANCE = 1e-5  # fp32, keys of cosine 0.99 included
TOLERANCE_FP16 = 1e-2  # operands of 11 bit, keys of cosine 0.99 and beta 1.999
TOLERANCE_ON_GPU = 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("tokens", [1, 20, 33])
def test_commit_and_its_gradients_equal_the_recurrence(
    interpreted_memory: dict[str, dict[str, float]], tokens: int, regime: str
) -> None:
    errors = interpreted_memory[f"commit, {tokens} tokens, {regime}"]
    assert len(errors) == 6
    assert all(error < TOLERANCE for error in errors.values()), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "commit_candidates_fp16",
        "read_candidates_fp16",
        "half_precision_fp16",
        "beyond_fp16",
        "over_frames_fp16",
    ],
)
def test_fp16_operands_stay_near(interpreted_memory: dict[str, dict[str, float]], case: str) -> None:
    errors = interpreted_memory[case]
    assert errors
    assert all(error < TOLERANCE_FP16 for error in errors.values()), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "read, 3 axes",
        "read, 5 axes",
        "read, many tokens",
        "commit_candidates",
        "many_tokens",
        "read_candidates",
        "half_precision",
        "opcheck",
        "compiled",
    ],
)
def test_the_operators_hold(interpreted_memory: dict[str, dict[str, float]], case: str) -> None:
    errors = interpreted_memory[case]
    assert errors
    assert all(error < TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_wide_values_are_launched_as_wide_keys_are(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")
    from kernels.gpu.memory import default_for

    narrow, wide = (torch.empty(1, 80, 6, width, dtype=dtype) for width in (64, 128))
    assert default_for(narrow, wide) == default_for(wide, wide)
    assert default_for(narrow, wide) != default_for(narrow, narrow)


def test_asking_for_triton_on_a_cpu_says_what_to_do() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")
    with pytest.raises(ValueError, match="k is on cpu.*form='torch'"):
        kernels.commit(*make_frame("random", (1, 4, 1, 16), "cpu"), form="triton")
    with pytest.raises(ValueError, match="q is on cpu.*form='torch'"):
        kernels.read(*make_reading((1, 4, 1, 16), "cpu"), form="triton")


def test_more_heads_than_a_launch_takes_are_refused() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")
    from kernels.gpu import memory as triton_memory

    k, g = torch.empty(8192, 200, 8, 16, device="meta"), torch.empty(8192, 200, 8, device="meta")
    state = torch.empty(8192, 8, 16, 16, device="meta")
    with pytest.raises(ValueError, match="k has 65536 heads of all sequences.*65535.*in parts"):
        triton_memory.commit(k, k, g, g, state)


@pytest.mark.gpu
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(3, 80, 6, 64), (1, 1560, 2, 128)])
def test_the_gpu_commits_as_fp64_does(regime: str, shape: tuple[int, int, int, int]) -> None:
    inputs = make_frame(regime, shape, "cuda")
    got = kernels.commit(*inputs, form="triton").double()
    expected = kernels.commit(*(tensor.double() for tensor in inputs), form="torch")
    assert got.isfinite().all()
    assert (got - expected).norm() <= TOLERANCE_ON_GPU * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["whole", "chunks"])
@pytest.mark.parametrize("regime", REGIMES)
def test_the_gpu_commits_bf16_as_fp64_does_with_every_candidate(regime: str, kind: str) -> None:
    from kernels.gpu import memory as triton_memory
    from tests.kernels.candidates import commit_configs

    shape = (3, 80, 6, 64) if kind == "whole" else (1, 1560, 2, 128)
    k, v, *rest = make_frame(regime, shape, "cuda")
    inputs = (k.bfloat16(), v.bfloat16(), *rest)
    expected = kernels.commit(*(tensor.double() for tensor in inputs), form="torch")
    for config in commit_configs()[kind]:
        got = triton_memory.commit(*inputs, config).double()
        tolerance = TOLERANCE_FP16 if config.precision == "fp16" else TOLERANCE_ON_GPU
        assert got.isfinite().all(), config
        assert (got - expected).norm() <= tolerance * expected.norm(), config


@pytest.mark.gpu
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_the_gpu_reads_as_fp64_does(width: int) -> None:
    inputs = make_reading((2, 3, 80, 6, width), "cuda")
    results = []
    for form, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        out = kernels.read(*leaves, form=form)
        gradients = torch.autograd.grad(out.square().sum(), leaves)
        results.append([tensor.detach().double() for tensor in (out, *gradients)])
    for value, expected in zip(*results, strict=True):
        assert (value - expected).norm() <= TOLERANCE_ON_GPU * expected.norm()

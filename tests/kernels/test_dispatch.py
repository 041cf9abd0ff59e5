"""The dispatcher takes what it is told, and says what is wrong with what it gets."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kernels
from kernels import dispatch, operators, reference
from kernels.benchmark.inputs import make_frame, make_inputs, make_reading
from kernels.dispatch import choose_form
from kernels.selection import using
from kernels.torch_scan import scan_frames as scan_frames_torch

ROOT = Path(__file__).resolve().parents[2]


def test_a_cpu_runs_the_torch_form_bit_for_bit() -> None:
    inputs, _ = make_inputs("random", (2, 3, 20, 2, 16), "cpu")
    for got, expected in zip(kernels.scan_frames(*inputs), scan_frames_torch(*inputs), strict=True):
        assert torch.equal(got, expected)


def test_the_reference_can_be_asked_for() -> None:
    inputs, _ = make_inputs("random", (1, 2, 5, 2, 16), "cpu")
    got, expected = kernels.scan_frames(*inputs, form="reference"), reference.scan_frames(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_cuda_chooses_triton_unless_it_computes_in_fp64() -> None:
    with torch.device("meta"):
        assert choose_form("scan_frames", torch.empty(1)) == "torch"
    with torch._subclasses.FakeTensorMode():
        assert choose_form("scan_frames", torch.empty(1, device="cuda")) == "triton"
        assert choose_form("commit", torch.empty(1, device="cuda")) == "triton"
        assert choose_form("read", torch.empty(1, device="cuda")) == "triton"
        assert choose_form("scan_frames", torch.empty(1, device="cuda", dtype=torch.float64)) == "torch"


def test_a_compiled_graph_keeps_reading_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch._subclasses.FakeTensorMode():
        assert choose_form("commit", torch.empty(1, device="cuda")) == "triton"
        assert choose_form("read", torch.empty(1, device="cuda")) == "torch"


@pytest.mark.parametrize("precision", ["tf32x3", "tf32", "ieee"])
def test_the_selected_precision_reaches_the_scan_and_its_gradient(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    told: list[str] = []

    def forward(*given: Any) -> tuple[torch.Tensor, ...]:
        *inputs, config = given
        told.append(config)
        before, final = reference.scan_frames(*inputs)
        return before, final, torch.zeros(*before.shape[:-1], before.shape[-2])

    def backward(*given: Any) -> tuple[torch.Tensor, ...]:
        told.append(given[-1])
        return *(torch.zeros_like(term) for term in given[:4]), torch.zeros_like(given[7])

    fake = SimpleNamespace(
        INTERPRETED=True, default_for=lambda k, v, chosen: chosen, forward=forward, backward=backward
    )
    monkeypatch.setattr(operators, "launcher", lambda: fake)
    leaves = [tensor.requires_grad_() for tensor in make_inputs("random", (1, 2, 4, 1, 16), "cpu")[0]]
    with using(scan_precision=precision):
        before, final = kernels.scan_frames(*leaves, form="triton")
    torch.autograd.grad(before.sum() + final.sum(), leaves)
    assert told == [precision, precision]


def test_the_environment_chooses() -> None:
    command = "import torch, kernels.dispatch as d; print(d.choose_form('scan_frames', torch.empty(1)))"
    environment = os.environ | {"ARL2_KERNELS": "reference"}
    run = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "reference"


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ValueError, match="'cuda', expected one of auto"):
        choose_form("scan_frames", torch.empty(1), "cuda")


@pytest.mark.parametrize("wrong", ["v", "g", "beta", "state"])
@pytest.mark.parametrize("form", ["reference", "torch", "triton"])
def test_a_shape_that_does_not_fit_is_named(wrong: str, form: str) -> None:
    names = ("k", "v", "g", "beta", "state")
    inputs = dict(zip(names, make_inputs("random", (1, 2, 5, 2, 16), "cpu")[0], strict=True))
    inputs[wrong] = inputs[wrong][:, :1]
    with pytest.raises(ValueError, match=f"^{wrong} has shape"):
        kernels.scan_frames(**inputs, form=form)


def bad_inputs() -> list[tuple[str, str, dict[str, torch.Tensor], str]]:
    """Return operator, what is wrong, arguments, and the expected message."""
    names = ("k", "v", "g", "beta", "state")
    frame = dict(zip(names, make_frame("random", (1, 4, 2, 16), "cpu"), strict=True))
    reading = dict(zip(("q", "state", "gate", "local"), make_reading((1, 4, 2, 16), "cpu"), strict=True))
    cases = []
    for operator, arguments in (("commit", frame), ("read", reading)):
        first = next(iter(arguments))
        for name in list(arguments)[1:]:
            longer = torch.cat([arguments[name]] * 2, dim=1)
            cases.append((operator, "shape", arguments | {name: longer}, f"^{name} has shape"))
            elsewhere = arguments[name].to("meta")
            cases.append((operator, "device", arguments | {name: elsewhere}, f"^{name} is on meta"))
        turned = arguments["state"].mT.contiguous().mT
        cases.append(
            (operator, "stride", arguments | {"state": turned}, r"^state has stride 16 .*contiguous")
        )
        turned = arguments[first].mT.contiguous().mT
        cases.append((operator, "stride", arguments | {first: turned}, rf"^{first} has stride 2 "))
        cases.append((operator, "axes", arguments | {first: arguments[first][0, 0]}, f"^{first} has shape"))
        whole = arguments[first].long()
        cases.append((operator, "dtype", arguments | {first: whole}, f"^{first} is torch.int64"))
        nothing = {name: tensor[:0] for name, tensor in arguments.items()}
        cases.append((operator, "empty", nothing, f"^{first} has shape .*at least 1 of each"))
    for name in ("g", "beta", "state"):
        cases.append(("commit", "dtype", frame | {name: frame[name].half()}, f"^{name} is torch.float16"))
    hole = frame["k"].clone()
    hole[0, 1] = torch.nan
    cases.append(("commit", "NaN", frame | {"k": hole}, "^k holds NaN"))
    return cases


@pytest.mark.parametrize("form", ["reference", "torch", "triton"])
def test_bad_input_is_named_by_every_form_alike(form: str) -> None:
    for operator, _, arguments, message in bad_inputs():
        with pytest.raises(ValueError, match=message):
            getattr(kernels, operator)(**arguments, form=form)


@pytest.mark.parametrize("operator", ["commit", "read"])
def test_what_is_no_tensor_is_named(operator: str) -> None:
    shape = (1, 4, 2, 16)
    arguments = make_frame("random", shape, "cpu") if operator == "commit" else make_reading(shape, "cpu")
    for index, name in enumerate(inspect.signature(getattr(kernels, operator)).parameters):
        if name != "form":
            wrong = [*arguments[:index], arguments[index].numpy(), *arguments[index + 1 :]]
            with pytest.raises(TypeError, match=f"^{name} is a ndarray, expected a tensor"):
                getattr(kernels, operator)(*wrong)


@pytest.mark.parametrize("form", ["reference", "torch"])
@pytest.mark.parametrize("wide", ["k", "v", "g", "beta"])
def test_the_state_says_in_which_dtype_is_written(form: str, wide: str) -> None:
    names = ("k", "v", "g", "beta", "state")
    frame = dict(zip(names, make_frame("random", (1, 4, 2, 16), "cpu"), strict=True))
    mixed = frame | {wide: frame[wide].double()}
    expected = kernels.commit(**frame, form=form)
    assert torch.equal(kernels.commit(**mixed, form=form), expected)
    frames = {name: tensor.unsqueeze(1) for name, tensor in mixed.items()} | {"state": frame["state"]}
    final = kernels.scan_frames(**frames, form=form)[1]
    assert final.dtype == torch.float32
    torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-6)


def test_queries_in_half_precision_are_read_with_by_every_form_as_exactly() -> None:
    q, state, gate, local = make_reading((1, 20, 2, 16), "cpu")
    inputs = (q.bfloat16(), state, gate, local.bfloat16())
    expected = kernels.read(*(tensor.double() for tensor in inputs), form="reference")
    for form in ("reference", "torch"):
        got = kernels.read(*inputs, form=form)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_nan_in_the_keys_of_a_scan_is_named() -> None:
    inputs, _ = make_inputs("random", (1, 2, 5, 2, 16), "cpu")
    inputs[0][0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="^k holds NaN"):
        kernels.scan_frames(*inputs)


def test_the_choice_is_told_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    dispatch.announce.cache_clear()
    with caplog.at_level("INFO", logger="kernels"):
        for _ in range(2):
            kernels.commit(*make_frame("random", (1, 4, 2, 16), "cpu"))
    assert [record.getMessage() for record in caplog.records] == ["commit: the torch form (on cpu)"]


def test_keys_and_values_in_half_precision_are_written_into_a_state_in_fp32() -> None:
    k, v, g, beta, state = make_frame("random", (1, 20, 2, 16), "cpu")
    written = kernels.commit(k.bfloat16(), v.bfloat16(), g, beta, state)
    assert written.dtype == torch.float32
    assert torch.equal(written, kernels.commit(k.bfloat16().float(), v.bfloat16().float(), g, beta, state))

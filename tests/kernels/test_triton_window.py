"""Attention over a window in Triton equals the reference: in the interpreter, and on a GPU if there is one.

On a GPU it also gives the same bytes twice, and inside a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels import layers
from kernels.benchmark.inputs import make_window
from kernels.benchmark.layers import over_window, with_gradients
from kernels.layer_checks import holds_window
from kernels.selection import using
from worldsim.model.attention.base import Rotary
from worldsim.model.attention.window import WindowAttention, WindowBefore
from worldsim.model.rotary import place_angles, turns

TOLERANCE = 1e-5  # fp32
TOLERANCE_FP16 = 1e-3  # operands and results rounded to 11 bits
TOLERANCE_BF16 = 2**-7  # the same to 8 bits, the turned queries too
TOLERANCE_ON_GPU = 1e-3  # fp32 operands, products in three of TF32
TOLERANCE_OF_BF16 = 1e-2  # operands and results of 8 bits

Errors = dict[str, dict[str, float]]


@pytest.mark.slow
def test_outputs_and_gradients_equal_the_reference(interpreted_window: Errors) -> None:
    found = {name: errors for name, errors in interpreted_window.items() if name.startswith("shape")}
    assert len(found) == 8
    for name, errors in found.items():
        assert set(errors) == {"out", "dq", "dk", "dv"}
        assert all(error < TOLERANCE for error in errors.values()), (name, errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["other_visibility", "large_scores", "other_layouts", "candidates", "opcheck", "compiled"]
)
def test_the_operator_holds(interpreted_window: Errors, case: str) -> None:
    errors = interpreted_window[case]
    assert errors
    assert all(error < TOLERANCE for error in errors.values()), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "least", "most"),
    [("half_precision", TOLERANCE, TOLERANCE_FP16), ("in_bf16", TOLERANCE_FP16, TOLERANCE_BF16)],
)
def test_16_bits_cost_their_rounding(
    interpreted_window: Errors, case: str, least: float, most: float
) -> None:
    errors = interpreted_window[case]
    assert len(errors) == 4
    assert all(least < error < most for error in errors.values()), errors


@pytest.mark.parametrize("committed", [0, 3])
def test_the_reference_is_what_a_layer_computes(committed: int) -> None:
    """The layer gathers for itself, with numbers that must not change; both are written alike."""
    torch.manual_seed(0)
    layer = WindowAttention(64, 2, 2).double()
    layer.age = layer.age.double()
    x = torch.randn(2, 5, 2, 6, 64, dtype=torch.float64)
    _, (cached_k, cached_v, visible, is_empty, _) = make_window((2, 5, 2, 6, 2, 32), 2, "cpu", committed)
    before = WindowBefore(cached_k.double(), cached_v.double(), visible, is_empty)
    rotary = Rotary(turns(place_angles(2, 3, 32)), torch.empty(0))
    expected, after = layer.forward_sequence(x, before, rotary)
    with using(layers="reference"):
        assert not layers.is_fused("attend_window", x)
    calls = []

    def is_fused(operator: str, x: Tensor) -> bool:
        calls.append(operator)
        return operator == "attend_window"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "is_fused", is_fused)
        found, found_after = layer.forward_sequence(x, before, rotary)
    assert "attend_window" in calls
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found_after.k, after.k) and torch.equal(found_after.v, after.v)


def given() -> dict[str, Tensor]:
    (q, k, v), (cached_k, cached_v, visible, is_empty, turn) = make_window((2, 3, 2, 4, 1, 32), 2, "cpu")
    cached = {"cached_k": cached_k, "cached_v": cached_v, "visible": visible, "is_empty": is_empty}
    return {"q": q, "k": k, "v": v, **cached, "turn": turn}


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "q": (lambda q: q[0], r"^q has shape \(3, 2, 4, 1, 32\), expected \[batch, frames, streams, "),
    "k": (
        lambda k: k[:, :2],
        r"^k has shape \(2, 2, 2, 4, 1, 32\), expected \(2, 3, 2, 4, 1, 32\)",
    ),
    "v": (Tensor.long, "^v is torch.int64, expected a floating type"),
    "cached_k": (lambda k: k[:, 1:], r"^cached_k has shape \(2, 2, 4, 1, 32\), expected \(2, 3, 4, 1, 32\)"),
    "cached_v": (lambda v: v.to("meta"), "^cached_v is on meta"),
    "visible": (Tensor.float, r"^visible has shape .*torch.float32 on cpu, expected \(2, 3, 3\), torch.bool"),
    "is_empty": (lambda flags: flags[:1], r"^is_empty has shape \(1,\)"),
    "turn": (lambda turn: turn[:1], r"^turn has shape \(1, 16, 2\), expected \[window \+ 1, 16, 2\]"),
}


@pytest.mark.parametrize("form", ["reference", "triton"])
@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_by_every_form_alike(name: str, form: str) -> None:
    change, message = WRONG[name]
    arguments = given()
    with pytest.raises(ValueError, match=message):
        layers.attend_window(**arguments | {name: change(arguments[name])}, form=form)


def test_what_triton_does_not_take_is_named() -> None:
    arguments = given()
    with pytest.raises(ValueError, match="^cached_v is torch.float16, but the Triton form"):
        layers.attend_window(**arguments | {"cached_v": arguments["cached_v"].half()}, form="triton")
    (q, k, v), rest = make_window((1, 2, 1, 2, 1, 48), 1, "cpu")
    with pytest.raises(ValueError, match="^q has width 48, but the Triton form takes"):
        layers.attend_window(q, k, v, *rest, form="triton")
    (q, k, v), rest = make_window((1, 2, 1, 2, 1, 128), 1, "cpu")
    with pytest.raises(ValueError, match=r"^q has width 128, .* attend_window takes \(32, 64\)"):
        layers.attend_window(q.bfloat16(), k.bfloat16(), v.bfloat16(), *rest, form="triton")


def test_wide_heads_are_left_to_pytorch() -> None:
    with torch._subclasses.FakeTensorMode(), using(layers="training"):
        for width, form in ((32, "triton"), (64, "triton"), (128, "torch")):
            q = torch.empty(1, 2, 2, 80, 6, width, device="cuda", dtype=torch.bfloat16)
            assert layers.choose_form("attend_window", q) == form


def test_frames_of_any_size_and_heads_of_some_widths_run_in_triton_in_training() -> None:
    with torch._subclasses.FakeTensorMode(), using(layers="triton"):
        q = torch.empty(1, 2, 2, 160, 6, 64, device="cuda", dtype=torch.bfloat16)
        assert layers.choose_form("attend_window", q) == "triton"
        assert holds_window(q)
        assert not holds_window(torch.empty(1, 2, 2, 80, 6, 128, device="cuda", dtype=torch.bfloat16))
    with torch._subclasses.FakeTensorMode(), using(layers="training"):
        assert layers.choose_form("attend_window", q) == "triton"
        assert layers.choose_form("attend_window", torch.empty(1, 2, 2, 80, 6, 48, device="cuda")) == "torch"
        assert layers.choose_form("attend_window", torch.empty(2, 128, device="cuda")) == "torch"


ON_GPU = {
    "base": ((2, 12, 2, 80, 6, 64), 6, 9),
    "few tokens": ((2, 9, 2, 20, 2, 32), 3, 2),
    "a power of two": ((2, 9, 2, 64, 2, 64), 6, 0),
    "many tokens": ((2, 9, 2, 160, 2, 64), 6, 9),
    "an odd number": ((2, 5, 2, 101, 2, 32), 2, 3),
    "one stream": ((2, 9, 1, 49, 2, 64), 4, 2),
    "parts of 32 and 16": ((2, 9, 1, 36, 5, 64), 6, 0),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_the_gpu_agrees_with_fp64(name: str, kind: str) -> None:
    shape, window, committed = ON_GPU[name]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind]
    tokens, before = make_window(shape, window, "cuda", committed)
    tokens = tuple(each.to(dtype) for each in tokens)
    weights = (torch.randn_like(tokens[0]),)
    rounded = (*(each.to(dtype) for each in before[:2]), *before[2:])
    run = partial(over_window, rounded)
    expected = with_gradients(
        partial(run, form="reference"), tuple(each.double() for each in tokens), (weights[0].double(),)
    )
    found = with_gradients(partial(run, form="triton"), tokens, weights)
    again = with_gradients(partial(run, form="triton"), tokens, weights)
    tolerance = TOLERANCE_ON_GPU if dtype == torch.float32 else TOLERANCE_OF_BF16
    for part, value, same, right in zip(("out", "dq", "dk", "dv"), found, again, expected, strict=True):
        assert value.isfinite().all(), part
        assert (value - right).norm() <= tolerance * right.norm(), part
        assert torch.equal(value, same), f"{part} is another in a second run"


@pytest.mark.gpu
def test_the_gpu_replays_it_in_a_graph() -> None:
    tokens, before = make_window((2, 9, 2, 80, 6, 64), 6, "cuda", 9)
    tokens = tuple(each.bfloat16() for each in tokens)
    weights = (torch.randn_like(tokens[0]),)
    run = partial(with_gradients, partial(over_window, before, form="triton"), tokens, weights)
    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for each in found:
        each.zero_()
    graph.replay()
    for value, right in zip(found, expected, strict=True):
        assert torch.equal(value, right)


@pytest.mark.gpu
def test_the_gpu_agrees_with_itself_in_every_candidate() -> None:
    from kernels.benchmark.layers import window_runs
    from kernels.gpu.settings import HALF
    from tests.kernels.candidates import layer_configs

    runs = window_runs((24, 2, 80, 6, 64), "cuda", torch.bfloat16)
    for name in ("window", "window_gradient"):
        expected = runs[name](HALF)
        for config in layer_configs():
            for value, right in zip(runs[name](config), expected, strict=True):
                assert (value - right).norm() <= TOLERANCE_OF_BF16 * right.norm(), config

"""A layer's operators in Triton equal the reference: in the interpreter, and on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import layers
from kernels.benchmark.inputs import make_attention, make_modulation, make_recall, make_window
from kernels.selection import using

TOLERANCE = 1e-5  # fp32
TOLERANCE_FP16 = 1e-3  # results rounded to 11 bits
TOLERANCE_BF16 = 2**-8  # operands and results rounded to 8 bits, half of the last at most each
TOLERANCE_ON_GPU = 1e-3  # fp32 operands, products in three of TF32
TOLERANCE_OF_BF16 = 1e-2  # operands and results of 8 bits


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "modulate",
        "add_modulate",
        "fork_modulate",
        "turned_norm",
        "map_heads",
        "turn_heads",
        "recall",
        "attend",
    ],
)
def test_outputs_and_gradients_equal_the_reference(
    interpreted_layers: dict[str, dict[str, float]], case: str
) -> None:
    found = {name: errors for name, errors in interpreted_layers.items() if name.split(",")[0] == case}
    assert found
    for name, errors in found.items():
        assert len(errors) >= 3
        assert all(error < TOLERANCE for error in errors.values()), (name, errors)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no_length", "other_layouts", "candidates", "opcheck", "compiled"])
def test_the_operators_hold(interpreted_layers: dict[str, dict[str, float]], case: str) -> None:
    errors = interpreted_layers[case]
    assert errors
    assert all(error < TOLERANCE for error in errors.values()), errors


@pytest.mark.slow
def test_16_bits_cost_their_rounding(interpreted_layers: dict[str, dict[str, float]]) -> None:
    errors = interpreted_layers["half_precision"]
    assert any(error > TOLERANCE for error in errors.values())
    assert all(error < TOLERANCE_FP16 for error in errors.values()), errors


@pytest.mark.slow
def test_products_in_bf16_cost_their_rounding(interpreted_layers: dict[str, dict[str, float]]) -> None:
    errors = interpreted_layers["in_bf16"]
    assert all(TOLERANCE_FP16 < error < TOLERANCE_BF16 for error in errors.values()), errors


@pytest.mark.slow
def test_a_network_is_the_same(interpreted_layers: dict[str, dict[str, float]]) -> None:
    for kind in ("axes", "plane", "plane, compiled", "pose, compiled"):
        errors = interpreted_layers[f"network with keys of {kind}"]
        assert len(errors) > 60
        assert all(error < TOLERANCE for error in errors.values()), errors


OPERATORS = [
    name
    for name, made in vars(layers).items()
    if getattr(made, "__module__", "") == layers.__name__
    and "form" in made.__annotations__
    and name not in ("choose_form", "_choose", "fork_modulate")
]


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_form_on_cuda(operator: str) -> None:
    """What `auto` means there is asked of each: one that is missing would end every training on a card."""
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 64, device="cuda")
        assert layers.choose_form(operator, x) == "torch"
        with using(layers="training"):
            assert layers.choose_form(operator, x) == "triton"
            assert layers.choose_form(operator, torch.empty(2, 64)) == "torch"
        with using(layers="training", form="reference"):
            assert layers.choose_form(operator, x) == "reference"


def run(operator: str, form: str | None) -> Tensor:
    x, branch, gate, shift, scale = make_modulation((2, 3, 32), "cpu")
    q, weight, angles, *rest = make_recall((2, 1, 3, 2, 32), "cpu")
    turn = torch.stack([angles.cos(), angles.sin()], dim=-1)
    arguments = {
        "modulate": (x, shift, scale),
        "add_modulate": (x, branch, gate, shift, scale),
        "map_heads": (q, weight, turn),
        "recall": (q, weight, turn, *rest),
        "turned_norm": (x, scale[0, 0], turn[0, :, 0]),
        "fork_modulate": (x, shift, scale),
        "attend": make_attention((2, 3, 2, 32), "cpu"),
        "attend_window": sum(make_window((1, 2, 1, 3, 2, 32), 1, "cpu"), ()),
    }[operator]
    return getattr(layers, operator)(*arguments, form=form)


@pytest.mark.parametrize("operator", [*OPERATORS, "fork_modulate"])
def test_asking_for_triton_on_a_cpu_says_what_to_do(operator: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")
    with pytest.raises(ValueError, match="is on cpu.*form='torch'"):
        run(operator, "triton")


@pytest.mark.parametrize("operator", [*OPERATORS, "fork_modulate"])
def test_an_unknown_form_is_named(operator: str) -> None:
    with pytest.raises(ValueError, match="'cuda', expected one of auto"):
        run(operator, "cuda")


def wrong_arguments() -> list[tuple[Callable[..., object], dict[str, object], str]]:
    x, branch, gate, shift, scale = make_modulation((2, 3, 32), "cpu")
    q, weight, angles, state, opening, local = make_recall((2, 2, 3, 2, 32), "cpu")
    turn = torch.stack([angles.cos(), angles.sin()], dim=-1)
    norm = {"x": x, "branch": branch, "gate": gate, "shift": shift, "scale": scale}
    reading = {"q": q, "weight": weight, "turn": turn, "state": state, "gate": opening, "local": local}
    cases: list[tuple[Callable[..., object], dict[str, object], str]] = []
    for operator, arguments in ((layers.add_modulate, norm), (layers.recall, reading)):
        for name, tensor in list(arguments.items())[1:]:
            cases.append((operator, arguments | {name: tensor[:1]}, f"^{name} has shape"))
            cases.append((operator, arguments | {name: tensor.to("meta")}, f"^{name} is on meta"))
            cases.append((operator, arguments | {name: tensor.long()}, f"^{name} is torch.int64"))
        first = next(iter(arguments))
        nothing = {name: tensor[:0] for name, tensor in arguments.items()}
        cases.append((operator, nothing, f"^{first} has shape"))
    keys = {"x": q, "weight": weight, "turn": turn}
    cases.append((layers.map_heads, keys, "^turn has shape .*expected turns of 6 tokens"))
    cases.append((layers.recall, reading | {"turn": turn[:, :2, :, :-1]}, "^turn has shape"))
    cases.append((layers.recall, reading | {"turn": turn[:, :0]}, "^turn has shape"))
    rows = {"x": x, "weight": scale[0, 0], "turn": turn[0, :, 0]}
    cases.append((layers.turned_norm, rows | {"weight": shift}, "^weight has shape"))
    cases.append((layers.turned_norm, rows | {"turn": turn[0, :, 0, :5]}, "^turn has shape"))
    cases.append((layers.turned_norm, rows | {"turn": turn[0, :2, 0]}, "^turn has shape"))
    cases.append((layers.turned_norm, rows | {"x": x[:, 0, 0]}, "^x has shape"))
    return cases


@pytest.mark.parametrize("form", ["reference", "triton"])
def test_what_does_not_fit_is_named_by_every_form_alike(form: str) -> None:
    for operator, arguments, message in wrong_arguments():
        with pytest.raises(ValueError, match=message):
            operator(**arguments, form=form)


def test_what_is_no_tensor_is_named() -> None:
    x, _, _, shift, scale = make_modulation((2, 3, 32), "cpu")
    with pytest.raises(TypeError, match="^shift is a ndarray, expected a tensor"):
        layers.modulate(x, shift.numpy(), scale)  # pyright: ignore[reportArgumentType]


def test_what_triton_does_not_take_is_named() -> None:
    q, weight, angles, *rest = make_recall((1, 1, 3, 1, 24), "cpu")
    turn = torch.stack([angles.cos(), angles.sin()], dim=-1)
    with pytest.raises(ValueError, match="q has width 24"):
        layers.recall(q, weight, turn, *rest, form="triton")
    x, _, _, shift, scale = make_modulation((1, 2, 32), "cpu")
    with pytest.raises(ValueError, match="x is torch.float64"):
        layers.modulate(x.double(), shift, scale, form="triton")
    wide = torch.zeros(1, 2, 8192)
    with pytest.raises(ValueError, match="x has width 8192"):
        layers.modulate(wide, wide[:, :1], wide[:, :1], form="triton")


def test_the_selection_chooses_and_is_given_back() -> None:
    x = torch.zeros(1, 2, 32)
    assert not layers.is_fused("modulate", x)
    with using(layers="triton"):
        assert layers.is_fused("modulate", x)
        with using(layers="reference"):
            assert layers.choose_form("modulate", x) == "reference"
        assert layers.is_fused("modulate", x)
    with using(form="triton"):
        assert layers.is_fused("recall", x)
        with using(layers="torch"):
            assert not layers.is_fused("recall", x)
    assert layers.choose_form("modulate", x) == "torch"


def test_a_selection_that_does_not_exist_is_named() -> None:
    with (
        pytest.raises(ValueError, match="scan_precision is 'fp8', expected one of tf32x3"),
        using(scan_precision="fp8"),
    ):
        pass
    with pytest.raises(ValueError, match="layers is 'fused', expected one of auto"), using(layers="fused"):
        pass


def test_heads_that_triton_does_not_take_run_in_torch_on_cuda() -> None:
    with torch._subclasses.FakeTensorMode(), using(layers="training"):
        assert layers.choose_form("recall", torch.empty(2, 64, device="cuda")) == "triton"
        wide = torch.empty(2, 128, device="cuda")
        assert layers.choose_form("recall", wide) == "torch"
        assert layers.choose_form("recall", wide.bfloat16()) == "triton"
        assert layers.choose_form("recall", torch.empty(2, 48, device="cuda")) == "torch"
        assert layers.choose_form("modulate", torch.empty(2, 384, device="cuda")) == "triton"
        assert (
            layers.choose_form("modulate", torch.empty(2, 384, device="cuda", dtype=torch.float64)) == "torch"
        )


def test_frames_that_triton_does_not_hold_run_in_torch_on_cuda() -> None:
    with torch._subclasses.FakeTensorMode(), using(layers="training"):
        frame = torch.empty(2, 80, 6, 64, device="cuda", dtype=torch.bfloat16)
        assert layers.choose_form("attend", frame) == "triton"
        assert layers.choose_form("attend", frame.repeat(1, 2, 1, 1)) == "torch"
        assert layers.choose_form("attend", torch.empty(2, 80, 6, 128, device="cuda")) == "torch"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.ones(3, 32)}, r"^q has shape \(3, 32\), expected \[\.\.\., tokens, heads, width\]"),
        (
            {"k": torch.ones(2, 4, 1, 32)},
            r"^k has shape \(2, 4, 1, 32\), expected \(2, 3, 1, 32\) with this q",
        ),
        ({"v": torch.ones(2, 3, 1, 32, dtype=torch.int32)}, "^v is torch.int32, expected a floating type"),
        (
            {"v": torch.ones(2, 3, 1, 32).half()},
            "^v is torch.float16, but the Triton form takes float32: use",
        ),
        (
            dict.fromkeys("qkv", torch.ones(2, 3, 1, 48)),
            r"^q has width 48, but the Triton form takes \(32, 64\) in torch.float32: use",
        ),
        (
            dict.fromkeys("qkv", torch.ones(2, 129, 1, 32)),
            "^q has 129 tokens of 128 bytes, but the Triton form",
        ),
        (dict.fromkeys("qkv", torch.ones(2, 3, 1, 32).double()), "^q is torch.float64, but the Triton form"),
    ],
    ids=["axes", "shape", "kind", "types", "width", "tokens", "fp64"],
)
def test_attention_refuses_by_name(changed: dict[str, Tensor], message: str) -> None:
    given = dict.fromkeys("qkv", torch.ones(2, 3, 1, 32)) | changed
    with pytest.raises(ValueError, match=message):
        layers.attend(**given, form="triton")


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_attention_is_softmax_over_a_frame(lead: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(*lead, 5, 2, 4, dtype=torch.float64) for _ in range(3))
    found = layers.attend(q, k, v)
    weights = (q.transpose(-3, -2) @ k.transpose(-3, -2).mT).softmax(-1)
    torch.testing.assert_close(found, (weights @ v.transpose(-3, -2)).transpose(-3, -2))


FRAMES = [
    *((24, 80, 6, 64), (24, 36, 5, 64)),
    *((3, 128, 2, 64), (3, 96, 2, 64), (3, 49, 4, 32), (3, 20, 2, 128), (3, 128, 2, 128)),
]
"""Frames of attention, P N H D: of one part and of two, filled and not, and of all widths."""

Case = tuple[Callable[..., object], tuple[Tensor, ...]]


def gpu_cases(dtype: torch.dtype) -> dict[str, Case]:
    """Return every operator with the inputs of a layer in training, tokens in `dtype`."""
    x, branch, *rows = make_modulation((64, 80, 384), "cuda")
    q, weight, angles, state, gate, local = make_recall((12, 2, 80, 6, 64), "cuda")
    narrow = make_recall((3, 1, 49, 4, 32), "cuda", per_head=True)
    # In fp32 heads so wide are left to PyTorch.
    wide = make_recall((2, 1, 33, 2, 64 if dtype == torch.float32 else 128), "cuda")

    def turned(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(q: Tensor, weight: Tensor, angles: Tensor, *rest: Tensor, form: str) -> Tensor:
            turn = torch.stack([angles.cos(), angles.sin()], dim=-1)
            return operator(q, weight, turn, *rest, form=form)

        return call

    def rounded(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        q, weight, angles, state, gate, local = given
        return q.to(dtype), weight, angles, state, gate.to(dtype), local.to(dtype)

    place = torch.stack([angles[0, :, 0].cos(), angles[0, :, 0].sin()], dim=-1)

    def turned_norm(x: Tensor, weight: Tensor, form: str) -> tuple[Tensor, Tensor]:
        return layers.turned_norm(x, weight, place.to(weight.dtype), form=form)

    recall, keys = turned(layers.recall), turned(layers.map_heads)
    sizes = FRAMES[:2] if dtype == torch.float32 else FRAMES  # which compiles for long
    frames = {size: tuple(each.to(dtype) for each in make_attention(size, "cuda")) for size in sizes}
    attention: dict[str, Case] = {f"attend, {size}": (layers.attend, frame) for size, frame in frames.items()}
    return attention | {
        "modulate": (layers.modulate, (x, *rows[1:])),
        "add_modulate": (layers.add_modulate, (x, branch.to(dtype), *rows)),
        "turned_norm": (turned_norm, (branch.to(dtype), rows[0][0, 0])),
        "map_heads": (layers.map_heads, (q.to(dtype), weight)),
        "keys": (keys, (q[:, :80].to(dtype), weight, angles)),
        "recall": (recall, rounded((q, weight, angles, state, gate, local))),
        "recall, each head its angles": (recall, rounded(narrow)),
        "recall, wide": (recall, rounded(wide)),
    }


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "is_compiled"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
    ids=["fp32", "bf16", "bf16, compiled"],
)
def test_the_gpu_agrees_with_fp64(dtype: torch.dtype, is_compiled: bool) -> None:
    tolerance = TOLERANCE_ON_GPU if dtype == torch.float32 else TOLERANCE_OF_BF16
    for name, (operator, inputs) in gpu_cases(dtype).items():
        torch.compiler.reset()  # or the compiler gives up after a few operators
        fused = torch.compile(operator, fullgraph=True, dynamic=False) if is_compiled else operator
        results = []
        for run_form, form, given in (
            (fused, "triton", inputs),
            (operator, "reference", tuple(tensor.double() for tensor in inputs)),
        ):
            leaves = [tensor.detach().requires_grad_() for tensor in given]
            out = run_form(*leaves, form=form)
            outs = out if isinstance(out, tuple) else (out,)
            generator = torch.Generator("cuda").manual_seed(1)
            weights = [torch.randn(each.shape, generator=generator, device="cuda") for each in outs]
            weights = [weight.to(each.dtype) for weight, each in zip(weights, outs, strict=True)]
            results.append(
                [t.detach().double() for t in (*outs, *torch.autograd.grad(outs, leaves, weights))]
            )
        for index, (value, expected) in enumerate(zip(*results, strict=True)):
            assert value.isfinite().all(), (name, index)
            assert (value - expected).norm() <= tolerance * expected.norm(), (name, index)


@pytest.mark.gpu
def test_the_gpu_agrees_with_itself_in_every_candidate() -> None:
    from kernels.gpu import layers as triton_layers
    from kernels.gpu import settings
    from kernels.gpu.attention import frame as triton_attend
    from tests.kernels.candidates import layer_configs

    x, branch, gate, shift, scale = make_modulation((16, 80, 384), "cuda")
    given = make_recall((8, 2, 80, 6, 64), "cuda")
    q, weight, angles, state, opening, local = given
    frame = tuple(each.bfloat16() for each in make_attention((16, 80, 6, 64), "cuda"))
    turn = torch.stack([angles.cos(), angles.sin()], dim=-1)

    def outputs(config: settings.LayerConfig) -> tuple[Tensor, ...]:
        norms = triton_layers.modulate(x, branch, gate, shift, scale, x.dtype, config)
        back = triton_layers.modulate_backward(norms[0], branch, gate, scale, branch, x, config)
        place, row = turn[0, :, 0], scale[0, 0]
        rows = triton_layers.turned_norm(x, row, place, True, config)
        rows_back = triton_layers.turned_norm_backward(x, row, place, x, branch, config)
        keys = triton_layers.map_heads(q[:, :80], weight, turn, config)
        keys_back = triton_layers.map_heads_backward(q[:, :80], weight, turn, local[:, :80], config)
        read = triton_layers.recall(q, weight, turn, state, opening, local, config)
        read_back = triton_layers.recall_backward(q, weight, turn, state, opening, local, config)
        near = triton_attend.attend(*frame, config)
        near_back = triton_attend.attend_backward(*frame, frame[2], config)
        return *norms, *back, *rows, *rows_back, keys, *keys_back, read, *read_back, near, *near_back

    first = outputs(settings.DEFAULT)
    for config in layer_configs():
        for value, expected in zip(outputs(config), first, strict=True):
            assert value.isfinite().all(), config
            assert (value - expected).norm() <= TOLERANCE_OF_BF16 * expected.norm(), config

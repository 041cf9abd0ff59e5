"""Runs attention over a window in Triton's interpreter, prints errors for `test_triton_window.py` to read.

A process of its own: TRITON_INTERPRET is read when the kernels are defined, and would hold for every test.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from kernels import layer_operators, layers
from kernels.benchmark.inputs import make_window
from kernels.gpu import settings
from kernels.gpu.attention import window_launch
from tests.kernels.bounds import keep_to_tensors
from tests.kernels.candidates import difference, layer_configs
from tests.kernels.interpreted_layers import compare
from tests.kernels.interpreter import count_to_loaded_numbers, patch_once, round_bf16, sum_in_double

Given = tuple[Tensor, ...]
Shape = tuple[int, int, int, int, int, int]

SHAPES: dict[str, tuple[Shape, int, int]] = {
    "one token": ((1, 3, 1, 1, 1, 32), 1, 0),
    "fewer frames than the window": ((2, 2, 2, 5, 2, 32), 4, 3),
    "the sink falls out of the window": ((2, 6, 2, 20, 2, 32), 2, 5),
    "parts of 64 and 16": ((1, 3, 2, 80, 1, 64), 1, 0),
    "parts of 32 and 16": ((2, 3, 1, 36, 1, 64), 6, 3),
    "chunks of unequal size": ((1, 3, 1, 101, 1, 32), 1, 0),
    "two chunks of two parts": ((2, 3, 2, 160, 1, 32), 1, 1),
    "three streams": ((1, 4, 3, 30, 1, 32), 3, 0),
}
"""Shape, window and frames before; of two sequences the first is empty."""


def of_form(given: Given) -> Callable[[str], Callable[..., Tensor]]:
    def make(form: str) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            *cached, visible, is_empty, turn = given
            cached = [each.to(k.dtype) for each in cached]
            wide = torch.promote_types(q.dtype, torch.float32)
            return layers.attend_window(q, k, v, *cached, visible, is_empty, turn.to(wide), form=form)

        return run

    return make


def errors(tokens: tuple[Tensor, Tensor, Tensor], given: Given) -> dict[str, float]:
    found = compare(of_form(given), tokens)
    return dict(zip(("out", "dq", "dk", "dv"), found.values(), strict=True))


def shapes() -> dict[str, dict[str, float]]:
    return {
        f"shape, {name}": errors(*make_window(shape, window, "cpu", committed))
        for name, (shape, window, committed) in SHAPES.items()
    }


def other_visibility() -> dict[str, float]:
    """Frames of the window that are hidden in its middle, and a sink that is seen from the first frame on."""
    tokens, (*cached, visible, is_empty, turn) = make_window((2, 4, 2, 5, 1, 32), 3, "cpu", 2)
    flags = torch.rand(visible.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    flags[:, 0] = torch.tensor([False, True, False, True])
    flags[:, 1] = False
    return errors(tokens, (*cached, flags, is_empty, turn))


def large_scores() -> dict[str, float]:
    (q, k, v), given = make_window((2, 4, 2, 20, 1, 32), 2, "cpu", 3)
    return errors((5 * q, k, v), given)


def other_layouts() -> dict[str, float]:
    """Tokens whose heads lie before them in memory, and queries beside keys."""
    (q, k, v), given = make_window((2, 3, 2, 5, 2, 32), 2, "cpu", 3)
    q, k = torch.stack([q, k], dim=-2).unbind(-2)
    return errors((q, k, v.mT.contiguous().mT), given)


def half_precision() -> dict[str, float]:
    (q, k, v), given = make_window((2, 4, 2, 20, 2, 32), 2, "cpu", 3)
    return errors((q.half(), k.half(), v.half()), given)


def in_bf16() -> dict[str, float]:
    (q, k, v), given = make_window((2, 4, 2, 40, 2, 32), 2, "cpu", 3)
    return errors((q.bfloat16(), k.bfloat16(), v.bfloat16()), given)


def candidates() -> dict[str, float]:
    """All blocks that a card is to choose from; warps, stages and registers are one to the interpreter."""
    tokens, given = make_window((1, 3, 2, 80, 1, 32), 1, "cpu")
    first = window_launch.attend_window(*tokens, *given, config=settings.DEFAULT)
    kernels: dict[str, Callable[[settings.LayerConfig], Given]] = {
        "window": lambda c: window_launch.attend_window(*tokens, *given, config=c),
        "window_gradient": lambda c: window_launch.attend_window_backward(
            *tokens, *given, *first, tokens[0], config=c
        ),
    }
    kernels["window_key_gradient"] = kernels["window_gradient"]
    expected = {name: run(settings.DEFAULT) for name, run in kernels.items()}
    results = {}
    for config in layer_configs():
        for name, run in kernels.items():
            label = f"{name}: blocks of {asdict(config)[name]['block_size']}"
            if label not in results:
                results[label] = difference(run(replace(config, precision="tf32x3")), expected[name])
    return results


def opcheck() -> dict[str, float]:
    """PyTorch's own test of an operator: schema, fake tensors, autograd, dynamic shapes."""
    tokens, given = make_window((2, 3, 2, 5, 1, 32), 2, "cpu", 3)
    leaves = tuple(each.requires_grad_() for each in tokens)
    torch.library.opcheck(layer_operators.attend_window_triton, (*leaves, *given))
    tokens = tuple(each.detach() for each in leaves)
    out = layer_operators.attend_window_triton(*tokens, *given)
    torch.library.opcheck(layer_operators.attend_window_gradient, (*tokens, *given, *out, tokens[0]))
    return {"passed": 0.0}


def compiled() -> dict[str, float]:
    """One graph, forward and backward."""
    tokens, given = make_window((2, 3, 2, 5, 1, 32), 2, "cpu", 3)

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return layers.attend_window(q, k, 2 * v, *given, form="triton").square().sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tokens]
        out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out, leaves)))
    return {"compiled": difference(results[1], results[0])}


def main() -> None:
    keep_to_tensors()
    patch_once()
    sum_in_double()
    torch.use_deterministic_algorithms(True)  # fills what nothing was written to with NaN
    assert torch.empty(3).isnan().all() and torch.ones(1).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(3)).isnan().all()
    round_bf16()
    count_to_loaded_numbers()
    report = shapes()
    checks = (other_visibility, large_scores, other_layouts, half_precision, in_bf16)
    for check in (*checks, candidates, opcheck, compiled):
        report[check.__name__] = check()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()

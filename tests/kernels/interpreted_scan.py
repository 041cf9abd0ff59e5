"""Runs the Triton form in Triton's interpreter and prints its errors; `test_triton_scan.py` reads them.

A process of its own: TRITON_INTERPRET is read when the kernels are defined, and would hold for every test.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
from torch import Tensor
from triton import language as tl

import kernels
from kernels import reference
from kernels.benchmark.inputs import REGIMES, make_inputs
from kernels.gpu import launch as triton_launch
from kernels.operators import scan_frames_gradient, scan_frames_triton
from tests.kernels.bounds import keep_to_tensors
from tests.kernels.candidates import CANDIDATES, difference, steps
from tests.kernels.interpreter import patch_once, sum_in_double

SHAPES = {"20 tokens": (20, 16), "33 tokens": (33, 32), "48 tokens": (48, 16)}
LEAD = {regime: (2, 2) if regime == "random" else (1, 1) for regime in REGIMES}
"""Batch and heads: each has a program of its own, and the interpreter takes equally long for each.

That all read and write where they should, the first regime shows.
"""


def gradients(
    inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], form: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = kernels.scan_frames(*leaves, form=form)
    return tuple(t.detach() for t in outputs), torch.autograd.grad(outputs, leaves, weights)


def errors(inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> dict[str, float]:
    wide = tuple(tensor.double() for tensor in inputs)
    expected = gradients(wide, tuple(tensor.double() for tensor in weights), "reference")
    got = gradients(inputs, weights, "triton")
    names = ("before", "final", "dk", "dv", "dg", "dbeta", "dstate")
    pairs = zip(names, (*got[0], *got[1]), (*expected[0], *expected[1]), strict=True)
    return {name: difference((value.double(),), (right,)) for name, value, right in pairs}


def widths_differ() -> dict[str, float]:
    """Values wider than keys, laid out as `torch.einsum` leaves them: heads first in memory."""
    (k, v, g, beta, state), weights = make_inputs("random", (1, 2, 20, 2, 32), "cpu")
    v = v.movedim(3, 0).contiguous().movedim(0, 3)
    k = torch.nn.functional.normalize(k[..., :16], dim=-1)
    return errors((k, v, g, beta, state[:, :, :16]), (weights[0][..., :16, :], weights[1][..., :16, :]))


def only_final_is_used() -> dict[str, float]:
    """The states before the frames without a gradient."""
    inputs, weights = make_inputs("random", (1, 2, 20, 2, 16), "cpu")
    leaves = [tensor.requires_grad_() for tensor in inputs]
    got = torch.autograd.grad(kernels.scan_frames(*leaves, form="triton")[1], leaves, weights[1])
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(reference.scan_frames(*wide)[1], wide, weights[1].double())
    return {"gradients": difference(tuple(t.double() for t in got), expected)}


def candidates() -> dict[str, float]:
    """Every block size of the candidates, against the default one."""
    default = triton_launch.DEFAULT
    inputs, weights = make_inputs("similar_keys", (1, 1, 33, 1, 32), "cpu")
    run = steps(inputs, weights)
    results = {}
    for name, choices in CANDIDATES.items():
        for size in {each.block_size for each in choices}:
            config = replace(default, **{name: replace(choices[0], block_size=size)})
            results[f"{name} {size}"] = difference(run[name](config), run[name](default))
    return results


def opcheck() -> dict[str, float]:
    """PyTorch's own test of an operator: schema, fake tensors, autograd, dynamic shapes."""
    inputs, weights = make_inputs("random", (1, 2, 20, 1, 16), "cpu")
    leaves = tuple(tensor.requires_grad_() for tensor in inputs)
    torch.library.opcheck(scan_frames_triton, leaves)
    before, _, transitions = scan_frames_triton(*(tensor.detach() for tensor in inputs))
    saved = tuple(tensor.detach() for tensor in inputs[:4])
    torch.library.opcheck(scan_frames_gradient, (*saved, before, transitions, *weights))
    return {"passed": 0.0}


def compiled() -> dict[str, float]:
    """One graph around the operator, forward and backward."""

    def block(*inputs: Tensor) -> tuple[Tensor, ...]:
        before, final = kernels.scan_frames(2 * inputs[0], *inputs[1:], form="triton")
        return before + 1.0, final

    inputs, weights = make_inputs("random", (1, 2, 20, 1, 16), "cpu")
    results = []
    for function in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (0.5 * inputs[0], *inputs[1:])]
        outputs = function(*leaves)
        results.append((*outputs, *torch.autograd.grad(outputs, leaves, weights)))
    return {"compiled": difference(results[1], results[0])}


@triton.jit
def copy(x_pointer, out_pointer, first, read: tl.constexpr, written: tl.constexpr, block: tl.constexpr):
    at = first + tl.arange(0, block)
    x = tl.load(x_pointer + at, mask=at < read, other=0.0)
    tl.store(out_pointer + at, x, mask=at < written)


def told_of(x: Tensor, out: Tensor, first: int, read: int, written: int) -> str:
    """Return what is said of a kernel that copies numbers; nothing if it keeps to its tensors."""
    try:
        triton_launch.launch(copy, (1,), x, out, first, read=read, written=written, block=8)
    except Exception as error:
        return str(error)
    return ""


def outside() -> dict[str, str]:
    """What is said of lanes outside of a kernel's tensors, which are parts of larger ones."""
    x, out = torch.zeros(2, 30)[:, 10:15].unbind(0)
    given = {"inside": (0, 5, 5), "after": (0, 6, 5), "before": (-1, 5, 5), "stored": (0, 5, 6)}
    return {name: told_of(x, out, *numbers) for name, numbers in given.items()}


def main() -> None:
    keep_to_tensors()
    patch_once()
    sum_in_double()
    report = {
        f"{label}, {regime}": errors(*make_inputs(regime, (batch, 2, tokens, heads, width), "cpu"))
        for label, (tokens, width) in SHAPES.items()
        for regime, (batch, heads) in LEAD.items()
    }
    for check in (widths_differ, only_final_is_used, candidates, opcheck, compiled):
        report[check.__name__] = check()
    sys.stdout.write(json.dumps(report | {"outside": outside()}))


if __name__ == "__main__":
    main()

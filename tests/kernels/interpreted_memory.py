"""Runs `commit` and `read` in Triton's interpreter, prints their errors; `test_triton_memory.py` reads them.

A process of its own: TRITON_INTERPRET is read when the kernels are defined, and would hold for every test.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from itertools import product

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

import kernels
from kernels import triton_memory
from kernels.benchmark_inputs import REGIMES, make_frame, make_reading
from kernels.benchmark_memory import commit_configs, read_configs
from kernels.benchmark_sweep import difference
from kernels.operators_memory import commit_triton, read_gradient, read_triton


def compare(operator: str, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the errors of outputs and gradients against the reference in fp64; both 0 counts as equal."""
    results = []
    for form, dtype in (("triton", None), ("reference", torch.float64)):
        leaves = [(t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in inputs]
        out = getattr(kernels, operator)(*leaves, form=form)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        results.append([t.detach().double() for t in (out, *torch.autograd.grad(out, leaves, weight))])
    names = ("out", *(f"d{index}" for index in range(len(inputs))))
    pairs = zip(names, *results, strict=True)
    return {name: difference((got,), (right,)) for name, got, right in pairs}


def commits() -> dict[str, dict[str, float]]:
    return {
        f"commit, {tokens} tokens, {regime}": compare(
            "commit", make_frame(regime, (2, tokens, 2, width), "cpu")
        )
        for (tokens, width), regime in product(((1, 16), (20, 16), (33, 32)), REGIMES)
    }


def commit_cuts(with_fp16: bool = False) -> dict[str, float]:
    """Every cut that the benchmark may choose, whole and in segments."""
    inputs = make_frame("similar_keys", (1, 60, 2, 32), "cpu")
    expected = kernels.commit(*(tensor.double() for tensor in inputs), form="reference")
    results = {}
    for kind, configs in commit_configs().items():
        for config in configs:
            if (config.precision == "fp16") != with_fp16:
                continue
            few = replace(config, segment_tokens=20 if kind == "segments" else 60)
            error = difference((triton_memory.commit(*inputs, few).double(),), (expected,))
            results[f"{few}"] = error
    return results


def commit_cuts_fp16() -> dict[str, float]:
    """The same with operands rounded to fp16, on keys of cosine 0.99: what that costs."""
    return commit_cuts(with_fp16=True)


def read_cuts() -> dict[str, float]:
    inputs = make_reading((1, 2, 40, 2, 16), "cpu")
    expected = kernels.read(*(tensor.double() for tensor in inputs), form="reference")
    return {
        str(config): difference((triton_memory.read(*inputs, config).double(),), (expected,))
        for config in read_configs()
        if config.precision != "fp16"
    }


def half_precision() -> dict[str, float]:
    """Keys, values, queries and local attention in fp16, against the same numbers in fp64."""
    k, v, *rest = make_frame("random", (1, 20, 2, 16), "cpu")
    write = (k.half(), v.half(), *rest)
    expected = kernels.commit(*(tensor.double() for tensor in write), form="reference")
    q, state, gate, local = make_reading((1, 2, 20, 2, 16), "cpu")
    reading = (q.half(), state, gate, local.half())
    expected_read = kernels.read(*(tensor.double() for tensor in reading), form="reference")
    return {
        "commit": difference((kernels.commit(*write, form="triton").double(),), (expected,)),
        "read": difference((kernels.read(*reading, form="triton").double(),), (expected_read,)),
    }


def opcheck() -> dict[str, float]:
    """PyTorch's own test of an operator: schema, fake tensors, autograd, dynamic shapes."""
    frame = tuple(tensor.requires_grad_() for tensor in make_frame("random", (1, 20, 1, 16), "cpu"))
    torch.library.opcheck(commit_triton, frame)
    reading = make_reading((1, 2, 20, 1, 16), "cpu")
    torch.library.opcheck(read_triton, tuple(tensor.requires_grad_() for tensor in reading))
    q, state, gate, local = (tensor.detach() for tensor in reading)
    torch.library.opcheck(read_gradient, (q, state, gate, local))
    return {"passed": 0.0}


def compiled() -> dict[str, float]:
    """One graph around both operators, forward and backward."""
    k, v, g, beta, state = make_frame("random", (1, 20, 1, 16), "cpu")
    q, _, gate, local = make_reading((1, 20, 1, 16), "cpu")

    def step(*inputs: Tensor) -> Tensor:
        after = kernels.commit(*inputs[:5], form="triton")
        return kernels.read(2 * inputs[5], after, *inputs[6:], form="triton") + 1.0

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [t.detach().clone().requires_grad_() for t in (k, v, g, beta, state, q, gate, local)]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    return {"compiled": difference(results[1], results[0])}


def main() -> None:
    report = commits() | {"read, 3 axes": compare("read", make_reading((20, 2, 16), "cpu"))}
    report["read, 5 axes"] = compare("read", make_reading((2, 3, 33, 2, 32), "cpu"))
    for check in (commit_cuts, commit_cuts_fp16, read_cuts, half_precision, opcheck, compiled):
        report[check.__name__] = check()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()

"""Runs `commit` and `read` in Triton's interpreter, prints their errors; `test_triton_memory.py` reads them.

A process of its own: TRITON_INTERPRET is read when the kernels are defined, and would hold for every test.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

import kernels
from kernels.benchmark.inputs import REGIMES, make_frame, make_inputs, make_reading
from kernels.gpu import memory as triton_memory
from kernels.gpu.memory import HALF, MemoryConfig
from kernels.operators import commit_triton, read_gradient, read_triton
from tests.kernels.bounds import keep_to_tensors
from tests.kernels.candidates import commit_configs, difference, read_configs
from tests.kernels.interpreter import patch_once, sum_in_double

LEAD = {regime: (2, 2) if regime == "random" else (1, 1) for regime in REGIMES}
"""Batch and heads: each has a program of its own, and the interpreter takes equally long for each.

That all read and write where they should, the first regime shows.
"""
SEGMENTED = replace(HALF, max_whole=0, chunks=replace(HALF.chunks, chunk_size=32, segment=2))


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
    results = {}
    for (tokens, width), regime in product(((1, 16), (20, 16), (33, 32)), REGIMES):
        batch, heads = LEAD[regime]
        inputs = make_frame(regime, (batch, tokens, heads, width), "cpu")
        results[f"commit, {tokens} tokens, {regime}"] = compare("commit", inputs)
    return results


def small(config: MemoryConfig) -> MemoryConfig:
    """The same with several segments for few chunks."""
    return replace(config, chunks=replace(config.chunks, segment=min(config.chunks.segment, 2)))


def commit_candidates(with_fp16: bool = False) -> dict[str, float]:
    """Every candidate, of few tokens at once and of many in chunks."""
    # On these numbers the exact ones come near to their tolerance; those of fp16 do not, and are many more.
    inputs = make_frame("similar_keys", (1, 150, 1 if with_fp16 else 2, 32), "cpu")
    expected = kernels.commit(*(tensor.double() for tensor in inputs), form="reference")
    results = {}
    for config in dict.fromkeys(small(c) for configs in commit_configs().values() for c in configs):
        if (config.precision == "fp16") == with_fp16:
            results[f"{config}"] = difference((triton_memory.commit(*inputs, config).double(),), (expected,))
    return results


def commit_candidates_fp16() -> dict[str, float]:
    """The same with operands rounded to fp16, on keys of cosine 0.99: what that costs."""
    return commit_candidates(with_fp16=True)


def many_tokens() -> dict[str, float]:
    """Chunks, applied and in segments, on every kind of input; the last chunk and segment are not full."""
    results = {}
    for regime, (batch, heads) in LEAD.items():
        inputs = make_frame(regime, (batch, 100, heads, 16), "cpu")
        expected = kernels.commit(*(tensor.double() for tensor in inputs), form="reference")
        for segment, copies in ((0, True), (2, True), (2, False)):
            chunks = replace(triton_memory.DEFAULT.chunks, segment=segment, copies=copies)
            config = replace(triton_memory.DEFAULT, max_whole=0, chunks=chunks)
            got = triton_memory.commit(*inputs, config).double()
            results[f"{regime} {segment} {copies}"] = difference((got,), (expected,))
    return results


def beyond_fp16() -> dict[str, float]:
    """Values, states and queries that fp16 cannot hold, or only with lost digits, with operands of fp16."""
    k, v, g, beta, state = make_frame("random", (1, 100, 1, 16), "cpu")
    results = {}
    for size, config in product((1e-20, 1e6, 1e25), (HALF, replace(HALF, max_whole=0), SEGMENTED)):
        inputs = (k, size * v, g, beta, size * state)
        expected = kernels.commit(*(tensor.double() for tensor in inputs), form="reference")
        got = triton_memory.commit(*inputs, config).double()
        results[f"{size} {config}"] = difference((got,), (expected,))
    q, state, gate, local = make_reading((2, 20, 2, 16), "cpu")
    for queries, states in ((1.0, 1e6), (1e-8, 1.0), (1e6, 1.0), (1e25, 1e-20)):
        inputs = (queries * q, states * state, gate / (queries * states), local)
        expected = kernels.read(*(tensor.double() for tensor in inputs), form="reference")
        got = triton_memory.read(*inputs, HALF).double()
        results[f"read, queries {queries}, states {states}"] = difference((got,), (expected,))
    return results


def over_frames_fp16() -> dict[str, float]:
    """The state after 21 frames of values in fp16, going on from its own."""
    results = {}
    for regime in REGIMES:
        (k, v, g, beta, state), _ = make_inputs(regime, (1, 21, 20, 1, 16), "cpu")
        k, v, exact = k.half(), v.half(), state.double()
        for frame in range(21):
            terms = [tensor[:, frame].contiguous() for tensor in (k, v, g, beta)]
            exact = kernels.commit(*(tensor.double() for tensor in terms), exact, form="reference")
            state = kernels.commit(*terms, state, form="triton")
        results[regime] = difference((state.double(),), (exact,))
    return results


def read_candidates(with_fp16: bool = False) -> dict[str, float]:
    """Every candidate of reading, forward and gradient."""
    inputs = make_reading((1, 2, 40, 2, 16), "cpu")
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    expected = kernels.read(*leaves, form="reference")
    d_out = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected, leaves[:3], d_out.double())
    results = {}
    for config in read_configs():
        if (config.precision == "fp16") == with_fp16:
            out = triton_memory.read(*inputs, config)
            got = (out, *triton_memory.read_backward(*inputs[:3], d_out, config))
            results[str(config)] = difference(
                tuple(tensor.double() for tensor in got), (expected.detach(), *gradients)
            )
    return results


def read_candidates_fp16() -> dict[str, float]:
    """The same with operands rounded to fp16."""
    return read_candidates(with_fp16=True)


def half_errors(commit: Callable[..., Tensor], read: Callable[..., Tensor]) -> dict[str, float]:
    """Keys, values, queries and local attention in fp16, against the same numbers in fp64."""
    k, v, *rest = make_frame("random", (1, 20, 2, 16), "cpu")
    write = (k.half(), v.half(), *rest)
    expected = kernels.commit(*(tensor.double() for tensor in write), form="reference")
    q, state, gate, local = make_reading((1, 2, 20, 2, 16), "cpu")
    reading = (q.half(), state, gate, local.half())
    expected_read = kernels.read(*(tensor.double() for tensor in reading), form="reference")
    return {
        "commit": difference((commit(*write).double(),), (expected,)),
        "read": difference((read(*reading).double(),), (expected_read,)),
    }


def half_precision() -> dict[str, float]:
    """Inputs in fp16, operands as exact as those of fp32."""
    return half_errors(
        partial(triton_memory.commit, config=triton_memory.DEFAULT),
        partial(triton_memory.read, config=triton_memory.DEFAULT),
    )


def half_precision_fp16() -> dict[str, float]:
    """The same as it runs unless somebody says otherwise: operands in fp16 too."""
    return half_errors(partial(kernels.commit, form="triton"), partial(kernels.read, form="triton"))


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
    keep_to_tensors()
    patch_once()
    sum_in_double()
    report = commits() | {"read, 3 axes": compare("read", make_reading((20, 2, 16), "cpu"))}
    report["read, 5 axes"] = compare("read", make_reading((2, 3, 33, 2, 32), "cpu"))
    report["read, many tokens"] = compare("read", make_reading((1, 150, 1, 16), "cpu"))
    exactly = (commit_candidates, many_tokens, read_candidates, half_precision, opcheck, compiled)
    rounded = (
        commit_candidates_fp16,
        read_candidates_fp16,
        half_precision_fp16,
        beyond_fp16,
        over_frames_fp16,
    )
    for check in (*exactly, *rounded):
        report[check.__name__] = check()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()

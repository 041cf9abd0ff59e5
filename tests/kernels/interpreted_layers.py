"""Runs a layer's operators in Triton's interpreter, prints their errors; `test_triton_layers.py` reads them.

A process of its own: TRITON_INTERPRET is read when the kernels are defined, and would hold for every test.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from kernels import layer_operators, layers
from kernels.benchmark.inputs import make_attention, make_modulation, make_recall
from kernels.gpu import layers as triton_layers
from kernels.gpu import settings
from kernels.gpu.attention import frame as triton_attend
from kernels.selection import using
from tests.kernels.bounds import keep_to_tensors
from tests.kernels.candidates import difference, layer_configs
from tests.kernels.interpreter import count_to_loaded_numbers, patch_once, round_bf16, sum_in_double
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.model.denoiser import Denoiser

Operator = Callable[..., Tensor | tuple[Tensor, ...]]


def turns(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def modulate(form: str) -> Operator:
    return lambda x, shift, scale: layers.modulate(x, shift, scale, form=form)


def add_modulate(form: str) -> Operator:
    return lambda *terms: layers.add_modulate(*terms, form=form)


def fork_modulate(form: str) -> Operator:
    def both(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x, normed = layers.fork_modulate(1.0 * x, shift, scale, form=form)
        return 2.0 * x, normed

    return both


def turned_norm(place: Tensor, keeps: bool) -> Callable[[str], Operator]:
    def of_form(form: str) -> Operator:
        def run(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            both = layers.turned_norm(x, weight, place.to(weight.dtype), keeps=keeps, form=form)
            return both if keeps else both[1:]

        return run

    return of_form


def map_heads(form: str) -> Operator:
    return lambda x, weight: layers.map_heads(x, weight, form=form)


def turn_heads(form: str) -> Operator:
    return lambda x, weight, angles: layers.map_heads(x, weight, turns(angles), form=form)


def recall(form: str) -> Operator:
    return lambda q, weight, angles, *rest: layers.recall(q, weight, turns(angles), *rest, form=form)


def attend(form: str) -> Operator:
    return lambda q, k, v: layers.attend(q, k, v, form=form)


def outputs_and_gradients(run: Operator, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Return what an operator gives and the gradients of all that it takes, in fp64."""
    out = run(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in outs]
    gradients = torch.autograd.grad(outs, leaves, weights)
    assert all(g.shape == leaf.shape for g, leaf in zip(gradients, leaves, strict=True))
    return tuple(each.detach().double() for each in (*outs, *gradients))


def compare(operator: Callable[[str], Operator], inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the errors of outputs and gradients against the reference in fp64 on the same numbers."""
    fused = outputs_and_gradients(operator("triton"), [t.detach().requires_grad_() for t in inputs])
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = outputs_and_gradients(operator("reference"), exact)
    return {
        f"{index}": difference((got,), (right,))
        for index, (got, right) in enumerate(zip(fused, expected, strict=True))
    }


def norms() -> dict[str, dict[str, float]]:
    """One token and several, fewer features than a block has lanes and as many."""
    results = {}
    for tokens, width in ((1, 64), (5, 24), (9, 96)):
        x, branch, *rows = make_modulation((3, tokens, width), "cpu")
        results[f"modulate, {tokens} x {width}"] = compare(modulate, (x, *rows[1:]))
        results[f"add_modulate, {tokens} x {width}"] = compare(add_modulate, (x, branch, *rows))
        results[f"fork_modulate, {tokens} x {width}"] = compare(fork_modulate, (x, *rows[1:]))
        place = turns(torch.randn(tokens, width // 8, generator=torch.Generator().manual_seed(2)))  # 4 heads
        for keeps in (True, False):
            name = f"turned_norm, {tokens} x {width}, {'with' if keeps else 'without'} the norm itself"
            results[name] = compare(turned_norm(place, keeps), (x, rows[0][0, 0]))
    return results


def heads() -> dict[str, dict[str, float]]:
    """Whole and broken blocks of tokens, one stream and two, angles of all heads or of each."""
    results = {}
    for (tokens, width), per_head in product(((1, 32), (20, 32), (33, 64)), (False, True)):
        given = make_recall((2, 2, tokens, 2, width), "cpu", per_head=per_head)
        q, weight, angles, *_ = given
        alone = q[:, :tokens]
        name = f"{tokens} tokens, angles of {'each head' if per_head else 'all heads'}"
        results[f"recall, {name}"] = compare(recall, given)
        results[f"turn_heads, {name}"] = compare(turn_heads, (alone, weight, angles))
    results["map_heads"] = compare(map_heads, (alone, weight))
    return results


def frames() -> dict[str, dict[str, float]]:
    """Frames of one part and of two, with keys and queries that fill them and that do not."""
    sizes = ((1, 32), (20, 64), (36, 64), (40, 32), (49, 32), (60, 32), (80, 64), (96, 32), (128, 32))
    results = {f"attend, {n} x {w}": compare(attend, make_attention((1, n, 2, w), "cpu")) for n, w in sizes}
    q, k, v = make_attention((2, 20, 1, 32), "cpu")
    return results | {"attend, large scores": compare(attend, (10 * q, k, v))}


def no_length() -> dict[str, float]:
    """Keys and queries of length 0, as a token of zeros has them."""
    q, weight, angles, *rest = make_recall((1, 1, 4, 1, 32), "cpu")
    q = q.clone()
    q[:, 1] = 0.0
    errors = compare(recall, (q, weight, angles, *rest))
    return errors | {f"key {name}": e for name, e in compare(turn_heads, (q, weight, angles)).items()}


def other_layouts() -> dict[str, float]:
    """Streams cut out of several, transposed maps, and sequences of frames before a frame's tokens."""
    x, branch, gate, shift, scale = make_modulation((4, 6, 32), "cpu")
    x = x.unflatten(0, (2, 2))[:, 1]
    rows = tuple(row.unflatten(0, (2, 2))[:, 1] for row in (gate, shift, scale))
    results = {f"norm {n}": e for n, e in compare(add_modulate, (x, branch[:2], *rows)).items()}
    q, weight, angles, state, gate, local = make_recall((4, 1, 5, 2, 32), "cpu")
    sequence = [t.unflatten(0, (2, 2)) for t in (q, angles, state, gate, local)]
    given = (sequence[0], weight.mT, *sequence[1:])
    results |= {f"recall {n}": e for n, e in compare(recall, given).items()}
    q, k, v = make_attention((4, 5, 2, 32), "cpu")
    q, k, v = q.unflatten(0, (2, 2)), k.unflatten(0, (2, 2)), v.unflatten(0, (2, 2)).mT.contiguous().mT
    return results | {f"attend {n}": e for n, e in compare(attend, (q, k, v)).items()}


def half_precision() -> dict[str, float]:
    """16 bits in and out beside what stays in fp32: rounding the results is the whole error."""
    x, branch, *rows = make_modulation((2, 5, 32), "cpu")
    q, weight, angles, state, gate, local = make_recall((1, 2, 5, 2, 32), "cpu")
    results = compare(add_modulate, (x, branch.half(), *rows))
    given = (q.half(), weight, angles, state, gate.half(), local.half())
    results |= {f"recall {n}": e for n, e in compare(recall, given).items()}
    frame = tuple(each.half() for each in make_attention((1, 20, 2, 32), "cpu"))
    results |= {f"attend {n}": e for n, e in compare(attend, frame).items()}
    norm = layers.modulate(x, *rows[1:], dtype=torch.float16, form="triton")
    assert norm.dtype == torch.float16
    expected = layers.modulate(x.double(), *(row.double() for row in rows[1:]), form="reference")
    return results | {"to half": difference((norm.double(),), (expected,))}


def in_bf16() -> dict[str, float]:
    """Tokens in bf16, and so the operands of every product; a step has tokens of several frames."""
    q, weight, angles, state, gate, local = make_recall((3, 2, 20, 2, 32), "cpu")
    tokens, near, gates = q.bfloat16(), local.bfloat16(), gate.bfloat16()
    given = (tokens, weight, angles, state, gates, near)
    results = {f"recall {n}": e for n, e in compare(recall, given).items()}
    results |= {f"keys {n}": e for n, e in compare(turn_heads, (tokens[:, :20], weight, angles)).items()}
    results |= {f"values {n}": e for n, e in compare(map_heads, (tokens[:, :20], weight)).items()}
    frame = tuple(each.bfloat16() for each in make_attention((2, 40, 2, 32), "cpu"))
    return results | {f"attend {n}": e for n, e in compare(attend, frame).items()}


def candidates() -> dict[str, float]:
    """All blocks that a card is to choose from, on several frames for each program.

    The interpreter knows no warps, stages and registers: settings that differ in those alone are one to it.
    """
    x, branch, gate, shift, scale = make_modulation((2, 6, 32), "cpu")
    q, weight, angles, state, opening, local = make_recall((4, 2, 20, 1, 32), "cpu")
    turn, results = turns(angles), {}
    frame = make_attention((1, 80, 1, 32), "cpu")
    total, row, place = x + gate * branch, scale[0, 0], turns(angles[0, :6, 0, :4])

    kernels: dict[str, Callable[[settings.LayerConfig], Tensor | tuple[Tensor, ...]]] = {
        "norm": lambda c: triton_layers.modulate(x, branch, gate, shift, scale, x.dtype, c),
        "norm_gradient": lambda c: triton_layers.modulate_backward(total, branch, gate, scale, branch, x, c),
        "turned": lambda c: triton_layers.turned_norm(x, row, place, True, c),
        "turned_gradient": lambda c: triton_layers.turned_norm_backward(x, row, place, x, branch, c),
        "heads": lambda c: triton_layers.map_heads(q[:, :20], weight, turn, c),
        "heads_gradient": lambda c: triton_layers.map_heads_backward(
            q[:, :20], weight, turn, local[:, :20], c
        ),
        "recall": lambda c: triton_layers.recall(q, weight, turn, state, opening, local, c),
        "recall_gradient": lambda c: triton_layers.recall_backward(q, weight, turn, state, opening, local, c),
        "attend": lambda c: triton_attend.attend(*frame, c),
        "attend_gradient": lambda c: triton_attend.attend_backward(*frame, frame[0], c),
    }
    first = {name: run(settings.DEFAULT) for name, run in kernels.items()}
    exact = {"precision": settings.DEFAULT.precision, "programs": 2, "forward_programs": 2}
    for config in layer_configs():
        for name, run in kernels.items():
            label = f"{name}: blocks of {asdict(config)[name]['block_size']}"
            if label not in results:
                given = run(replace(config, **exact))
                both = (each if isinstance(each, tuple) else (each,) for each in (given, first[name]))
                results[label] = difference(*both)
    return results


def opcheck() -> dict[str, float]:
    """PyTorch's own test of an operator: schema, fake tensors, autograd, dynamic shapes."""
    x, branch, *rows = (t.detach().requires_grad_() for t in make_modulation((2, 3, 32), "cpu"))
    torch.library.opcheck(layer_operators.modulate_triton, (x, *rows[1:], torch.float32))
    torch.library.opcheck(layer_operators.add_modulate_triton, (x, branch, *rows, torch.float32))
    place = turns(torch.randn(3, 8))
    torch.library.opcheck(layer_operators.turned_norm_triton, (x, rows[0][0, 0], place, True))
    q, weight, angles, *rest = make_recall((1, 1, 5, 1, 32), "cpu")
    turn = turns(angles)
    # Not its gradient: that of cosines and sines is along the circle, which a test of their own cannot know.
    torch.library.opcheck(layer_operators.map_heads_triton, (q.requires_grad_(), weight, turn))
    torch.library.opcheck(layer_operators.recall_triton, (q, weight, turn, *rest))
    gradient = (q.detach(), weight, turn, *rest)
    torch.library.opcheck(layer_operators.recall_gradient, gradient)
    torch.library.opcheck(layer_operators.map_heads_gradient, (q.detach(), weight, turn, rest[-1]))
    frame = make_attention((2, 5, 1, 32), "cpu")
    torch.library.opcheck(layer_operators.attend_triton, tuple(each.requires_grad_() for each in frame))
    torch.library.opcheck(
        layer_operators.attend_gradient, (*(each.detach() for each in frame), frame[0].detach())
    )
    return {"passed": 0.0}


def compiled() -> dict[str, float]:
    """One graph around all operators, forward and backward."""
    x, branch, *rows = make_modulation((2, 5, 32), "cpu")
    q, weight, angles, *rest = make_recall((2, 1, 5, 1, 32), "cpu")

    def step(*inputs: Tensor) -> Tensor:
        x, branch, gate, shift, scale, q, weight, angles, *rest = inputs
        total, normed = layers.add_modulate(x, branch, gate, shift, scale, form="triton")
        total, again = layers.fork_modulate(total, shift, scale, form="triton")
        normed = normed + again + layers.modulate(2 * total, shift, scale, form="triton")
        place = turns(angles[0, :, 0, :8])
        normed = normed + layers.turned_norm(normed, scale[0, 0], place, keeps=False, form="triton")[1]
        keys = layers.map_heads(q, weight, turns(angles), form="triton")
        read = layers.recall(q + keys, weight, turns(angles), *rest, form="triton")
        near = layers.attend(q, keys, read, form="triton")
        return total.sum() + normed.square().sum() + read.square().sum() + near.square().sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        given = (x, branch, *rows, q, weight, angles, *rest)
        leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
        out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out, leaves)))
    return {"compiled": difference(results[1], results[0])}


def network_results(keys: MemoryKeys, form: str, compiled: bool, recycled: bool) -> list[Tensor]:
    """Return the loss of a whole network with outcome heads, and the gradients of its weights."""
    shape = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 3, "window_layers": [1], "window": 2}
    settings = {"num_values": [3], "memory_keys": keys, "outcome_heads": True, "recycled": recycled} | shape
    settings["memory_phase"] = "none" if keys is MemoryKeys.POSE else "path"
    torch.manual_seed(0)
    network = Denoiser(DenoiserConfig(latent_shape=[4, 4, 4], **settings))
    for weight in network.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    for block in network.layers() if compiled else ():
        block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    clean, noisy = torch.randn(2, 2, 3, 4, 4, 4)
    levels, actions = torch.rand(2, 3, 2), torch.randint(3, (2, 3, 1))
    noise = torch.randn(2, 3, 4, 4, 4) if recycled else None
    given, asked = (levels, actions, network.initial_memory(2)), {}
    if keys is MemoryKeys.POSE:
        alone = torch.tensor([[False, False, True], [False, False, False]])
        asked = {"poses": 100 * torch.randn(2, 3, 3), "alone": alone}
    with using(layers=form):
        passes = [network.run_sequences(clean, noisy, *given, noise=noise, **asked)]
        if recycled:  # first passes alone, too
            passes.append(network.run_sequences(clean, None, *given, noise=noise, **asked))
        said = [(each.velocity, each.first_velocity, each.summary) for each in passes]
        loss = torch.stack([(x - 1).square().mean() for x in sum(said, ()) if x is not None]).sum()
    # A softmax does not see a shift of its scores: what is found as its gradient is rounding alone.
    weights = [weight for name, weight in network.named_parameters() if name != "outcome.score.bias"]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return [loss.detach(), *(each for each in gradients if each is not None)]


def networks() -> dict[str, dict[str, float]]:
    """A network whose sums between layers are made by norms, against PyTorch's own operators."""
    results = {}
    plain, plane = (MemoryKeys.AXES, False, False), MemoryKeys.PLANE
    for keys, compiled, recycled in (
        plain,
        (plane, False, False),
        (plane, True, False),
        (plane, False, True),
        (MemoryKeys.POSE, True, False),
    ):
        fused = network_results(keys, "triton", compiled, recycled)
        expected = network_results(keys, "torch", False, recycled)
        results[f"network with keys of {keys}{', compiled' * compiled}{', recycled' * recycled}"] = {
            f"{index}": difference((got,), (right,))
            for index, (got, right) in enumerate(zip(fused, expected, strict=True))
        }
    return results


def main() -> None:
    keep_to_tensors()
    patch_once()
    sum_in_double()
    torch.use_deterministic_algorithms(True)  # fills what nothing was written to with NaN
    assert torch.empty(3).isnan().all() and torch.ones(1).new_empty(3).isnan().all()
    round_bf16()
    count_to_loaded_numbers()
    report = norms() | heads() | frames() | networks()
    for check in (no_length, other_layouts, half_precision, in_bf16, candidates, opcheck, compiled):
        report[check.__name__] = check()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()

"""Benchmark of a layer's operators: errors against fp64, and times beside what the compiler makes of them."""

# P frames, S streams, N tokens of a stream's frame, H heads, D head width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import layers
from kernels.benchmark.inputs import make_attention, make_modulation, make_recall, make_window
from kernels.benchmark.report import (
    Report,
    Result,
    attempt,
    copy_bandwidth,
    cpu_milliseconds,
    milliseconds,
    relative_errors,
    say,
    show_times,
)

Shape = tuple[int, int, int, int, int]
Tensors = tuple[Tensor, ...]
Operator = Callable[..., Tensor | Tensors]

ON_CUDA: list[Shape] = [(1024, 2, 80, 6, 64), (1024, 2, 80, 8, 64)]
"""Layers of the base model and of one of 512 features at 16 sequences of 64 frames, P S N H D."""
ON_CPU: list[Shape] = [(4, 2, 20, 2, 32)]
FRAMES, WINDOW = 64, 6
"""Frames of a sequence at most, and those of the window."""

SETTINGS = {
    "norm": [(1, 1), (2, 1), (4, 1), (4, 4)],
    "norm_gradient": [(1, 1, 2), (1, 1, 3), (1, 1, 3, 128), (1, 1, 4), (4, 4), (4, 4, 3)],
    "turned": [(1, 1), (2, 1), (4, 1), (4, 4)],
    "turned_gradient": [(1, 1, 2), (1, 1, 3), (1, 1, 4), (2, 1, 2), (2, 1, 3), (4, 4, 3)],
    "heads": [(32, 4), (32, 4, 2), (64, 4), (64, 4, 2), (128, 8, 2)],
    "heads_gradient": [(32, 4, 2), (32, 4, 3), (64, 4), (64, 4, 2, 168), (64, 4, 3), (128, 8, 2)],
    "recall": [(32, 4), (32, 4, 2), (64, 4), (64, 4, 3), (128, 8, 2)],
    "recall_gradient": [
        *((16, 4), (16, 4, 2), (16, 4, 2, 168), (32, 4), (32, 4, 2), (32, 4, 2, 168)),
        *((64, 4), (64, 4, 2, 168), (64, 4, 3)),
    ],
    "attend": [(16, 1), (64, 4), (64, 4, 2)],
    "attend_gradient": [(16, 2), (32, 4)],  # (64, 4) addressed what it may not, on an H200
    "window": [(64, 4), (64, 4, 3), (128, 8), (128, 8, 2)],
    "window_gradient": [(64, 4), (64, 4, 3), (64, 8, 2), (128, 8), (128, 8, 2)],
    "window_key_gradient": [(128, 8), (128, 8, 2), (64, 8), (64, 8, 2, 128), (64, 4), (64, 4, 2)],
}
"""Launch settings beside the chosen ones, by kernel: block size, warps, stages, registers."""

PROGRAMS = {
    "heads": {"forward_programs": (792, 1584, 7680)},
    "heads_gradient": {"programs": (396, 1584)},
    "recall_gradient": {"programs": (264, 396, 1584, 6144)},
}
"""Numbers of programs beside the chosen ones, by kernel and field of the settings."""


def turned(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an operator that takes angles in the place of cosines and sines."""

    def call(x: Tensor, weight: Tensor, angles: Tensor, *rest: Tensor, form: str | None = None) -> Tensor:
        turn = torch.stack([angles.cos(), angles.sin()], dim=-1)
        return operator(x, weight, turn, *rest, form=form)

    return call


def place_turned(place: Tensor, x: Tensor, weight: Tensor, form: str | None = None) -> Tensors:
    """Call `kernels.layers.turned_norm`, whose turns have no gradient."""
    return layers.turned_norm(x, weight, place.to(weight.dtype), form=form)


def sequences_of(shape: Shape) -> tuple[int, int, int, int, int, int]:
    """Return the frames as sequences of `FRAMES` at most, B F S N H D."""
    frames, streams, tokens, heads, width = shape
    length = min(frames, FRAMES)
    return frames // length, length, streams, tokens, heads, width


def over_window(given: Tensors, q: Tensor, k: Tensor, v: Tensor, form: str | None = None) -> Tensor:
    """Call `kernels.layers.attend_window`, whose cached frames have no gradient."""
    cached_k, cached_v, visible, is_empty, turn = given
    cached_k, cached_v = cached_k.to(q.dtype), cached_v.to(q.dtype)
    turn = turn.to(torch.promote_types(q.dtype, turn.dtype))
    return layers.attend_window(q, k, v, cached_k, cached_v, visible, is_empty, turn, form=form)


def cases(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, tuple[Operator, Tensors]]:
    """Return every operator, those that cost most first, with its inputs in training.

    All tokens but the residual stream are in `dtype`.
    """
    frames, streams, tokens, heads, width = shape
    x, branch, *rows = make_modulation((frames * streams, tokens, heads * width), device)
    q, weight, angles, state, gate, local = make_recall(shape, device)
    q, gate, local, branch = (tensor.to(dtype) for tensor in (q, gate, local, branch))
    clean = q[:, :tokens]
    place = torch.stack([angles[0, :, 0].cos(), angles[0, :, 0].sin()], dim=-1)
    frame = make_attention((frames * streams, tokens, heads, width), device)
    window, given = make_window(sequences_of(shape), WINDOW, device)
    return {
        "window": (partial(over_window, given), tuple(each.to(dtype) for each in window)),
        "attend": (layers.attend, tuple(each.to(dtype) for each in frame)),
        "recall": (turned(layers.recall), (q, weight, angles, state, gate, local)),
        "keys": (turned(layers.map_heads), (clean, weight, angles)),
        "add_modulate": (partial(layers.add_modulate, dtype=dtype), (x, branch, *rows)),
        "turned_norm": (partial(place_turned, place), (branch, 1 + 0.1 * rows[0][0, 0])),
        "modulate": (partial(layers.modulate, dtype=dtype), (x, *rows[1:])),
        "values": (layers.map_heads, (clean, weight)),
    }


def outputs_of(operator: Operator, inputs: Tensors) -> Tensors:
    """Return the outputs as a tuple."""
    out = operator(*inputs)
    return out if isinstance(out, tuple) else (out,)


def with_gradients(operator: Operator, inputs: Tensors, weights: Tensors | None = None) -> Tensors:
    """Return outputs, and gradients of all inputs for `weights`, those of the outputs; None draws them."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outs = outputs_of(operator, tuple(leaves))
    gradients = torch.autograd.grad(outs, leaves, draw_like(outs) if weights is None else weights)
    return *(out.detach() for out in outs), *gradients


def draw_like(outs: Tensors) -> Tensors:
    """Draw tensors like some others."""
    generator = torch.Generator(outs[0].device).manual_seed(1)
    drawn = (torch.randn(out.shape, generator=generator, device=out.device) for out in outs)
    return tuple(tensor.to(out.dtype) for tensor, out in zip(drawn, outs, strict=True))


def layer_errors(report: Report) -> Result:
    """Compare outputs and gradients of each form, compiled on a card, with the reference in fp64."""
    on_cuda = report.device == "cuda"
    dtype = torch.bfloat16 if on_cuda else torch.float32
    shape = (32, *ON_CUDA[0][1:]) if on_cuda else ON_CPU[0]
    results: Result = {}
    for name, (operator, inputs) in cases(shape, report.device, dtype).items():
        exact = partial(operator, form="reference")
        if "modulate" in name:
            exact = partial(exact, dtype=torch.float64)
        expected = with_gradients(exact, tuple(tensor.double() for tensor in inputs))
        for form in ("triton", "torch") if on_cuda else ("torch",):
            label = f"{shape}, {name}, {form}"
            run = compiled(operator, form) if on_cuda else partial(operator, form=form)
            results[label] = attempt(label, partial(compare, label, run, inputs, expected))
    return results


def compare(label: str, operator: Operator, inputs: Tensors, expected: Tensors) -> Result:
    """Return the relative errors of outputs and gradients, by their number."""
    values = with_gradients(operator, inputs)
    return relative_errors(label, [f"{index}" for index in range(len(values))], values, expected)


def compiled(operator: Operator, form: str) -> Operator:
    """Return what training runs: the form inside of a compiled graph, under autocast."""
    torch.compiler.reset()  # all are compiled through one function of PyTorch's, which takes only a few
    whole = torch.compile(partial(operator, form=form), dynamic=False, fullgraph=True)

    def run(*inputs: Tensor) -> Tensor | Tensors:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return whole(*inputs)

    return run


def layer_times(report: Report, only: str = "") -> Result:
    """Time forward and gradient of both forms in compiled graphs, beside the floor that traffic sets.

    Args:
        report: That knows how much time is left.
        only: The operator that is timed; empty for all.
    """
    bandwidth = copy_bandwidth()
    results: Result = {"copy_gb_s": bandwidth}
    for shape in ON_CUDA:
        for name, (operator, inputs) in cases(shape, "cuda", torch.bfloat16).items():
            if only not in ("", name):
                continue
            taken = sum(tensor.nbytes for tensor in inputs)
            if report.seconds_left() < 20:  # compiling takes most of the time
                return results
            outs = outputs_of(partial(operator, form="triton"), inputs)
            given, weights = sum(tensor.nbytes for tensor in outs), draw_like(outs)
            floors = {"forward": taken + given, "with gradient": 3 * taken + 2 * given}
            for form in ("triton", "torch"):
                run = compiled(operator, form)
                leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
                runs: dict[str, Callable[[], object]] = {
                    "forward": partial(outputs_of, run, leaves),  # as in training, from one compilation
                    "with gradient": partial(with_gradients, run, inputs, weights),
                }
                for kind, timed in runs.items():
                    label = f"{name} {shape}, {form}, {kind}"
                    floor_ms = floors[kind] / bandwidth / 1e6
                    results[label] = attempt(label, partial(time_one, label, timed, floor_ms))
    return results


def time_one(label: str, run: Callable[[], object], floor_ms: float) -> Result:
    """Return the times of one operator and the memory that it takes at its height."""
    run()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    peak = (torch.cuda.max_memory_allocated() - held) / 2**30
    return show_times(label, milliseconds(run), floor_ms) | {"peak_memory_gib": peak}


def settings_of(config: Any) -> dict[str, Any]:
    """Return `config` with one kernel's launch changed at a time, by kernel and numbers."""
    from kernels.gpu.launch import LaunchConfig

    changed = {"as chosen": config}
    for name, choices in SETTINGS.items():
        changed |= {
            f"{name} {numbers}": replace(config, **{name: LaunchConfig(*numbers)}) for numbers in choices
        }
    return changed


def kernel_runs(shape: Shape, device: str) -> dict[str, Callable[[Any], object]]:
    """Return each kernel as a function of the launch settings, with operands as in training."""
    from kernels.gpu import layers as gpu
    from kernels.gpu.attention import frame as attention

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    given = cases(shape, device, dtype)
    (x, branch, gate, shift, scale), row = given["add_modulate"][1], given["turned_norm"][1][1]
    q, weight, angles, state, opening, local = given["recall"][1]
    turn, clean = torch.stack([angles.cos(), angles.sin()], dim=-1), q[:, : shape[2]]
    queries, keys, values = given["attend"][1]
    d_keys, place, both = local[:, : shape[2]].float(), turn[0, :, 0], (branch, branch)
    return {
        **window_runs(shape, device, dtype),
        "turned": lambda config: gpu.turned_norm(branch, row, place, True, config),
        "turned_gradient": lambda config: gpu.turned_norm_backward(branch, row, place, *both, config),
        "norm": lambda config: gpu.modulate(x, branch, gate, shift, scale, dtype, config),
        "norm_gradient": lambda config: gpu.modulate_backward(x, branch, gate, scale, x, branch, config),
        "heads": lambda config: gpu.map_heads(clean, weight, turn, config),
        "heads_gradient": lambda config: gpu.map_heads_backward(clean, weight, turn, d_keys, config),
        "recall": lambda config: gpu.recall(q, weight, turn, state, opening, local, config),
        "recall_gradient": lambda config: gpu.recall_backward(q, weight, turn, state, opening, local, config),
        "attend": lambda config: attention.attend(queries, keys, values, config),
        "attend_gradient": lambda config: attention.attend_backward(queries, keys, values, queries, config),
    }


def window_runs(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, Callable[[Any], Tensors]]:
    """Return the same of the kernels of a window; the gradient's two run together."""
    from kernels.gpu.attention import window_launch as gpu

    (q, k, v), (cached_k, cached_v, *flags, turn) = make_window(sequences_of(shape), WINDOW, device)
    q, k, v, cached_k, cached_v = (each.to(dtype) for each in (q, k, v, cached_k, cached_v))
    visible, is_empty = flags
    given = (q, k, v, cached_k, cached_v, visible, is_empty, turn)
    out, log_sum = gpu.attend_window(*given)

    def gradient(config: Any) -> Tensors:
        return gpu.attend_window_backward(*given, out, log_sum, q, config)

    return {
        "window": lambda config: gpu.attend_window(*given, config),
        "window_gradient": gradient,
        "window_key_gradient": gradient,
    }


def time_setting(title: str, run: Callable[[], object]) -> Result:
    """Return the times of one kernel."""
    return show_times(title, milliseconds(run))


@torch.no_grad()
def layer_settings(report: Report, only: str = "") -> Result:
    """Time every kernel whose name begins with `only` with every one of its launch settings."""
    from kernels.gpu.settings import HALF

    results: Result = {}
    runs = {name: run for name, run in kernel_runs(ON_CUDA[0], "cuda").items() if name.startswith(only)}
    settings = settings_of(HALF)
    for kernel, run in runs.items():
        own = {label: config for label, config in settings.items() if label.split()[0] in ("as", kernel)}
        own |= {
            f"{field} {count}": replace(HALF, **{field: count})
            for field, counts in PROGRAMS.get(kernel, {}).items()
            for count in counts
        }
        for label, config in own.items():
            title = f"{kernel}, {label}"

            results[title] = attempt(title, partial(time_setting, title, partial(run, config)))
    return results


def window_times(report: Report) -> Result:
    """Time attention over a window beside PyTorch's, then its kernels with all their launch settings."""
    return layer_times(report, "window") | layer_settings(report, "window")


def cpu_layers(report: Report) -> Result:
    """Time the reference with its gradient on a CPU, where it is what runs."""
    results: Result = {}
    for name, (operator, inputs) in cases(ON_CPU[0], "cpu", torch.float32).items():
        times = cpu_milliseconds({name: partial(with_gradients, partial(operator, form="torch"), inputs)}, 5)
        results[name] = show_times(f"{name} {ON_CPU[0]}, with gradient", times[name])
    say(f"{len(results)} operators")
    return results

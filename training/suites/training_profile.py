"""Milliseconds of an update by kind of work, from PyTorch's profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

OPTIMIZER, SCAN, ATTENTION, PRODUCTS, COPIES = "optimizer", "scan", "attention", "products", "copies"
EXCHANGE, OTHERS, WAITING = "exchange", "elementwise and reductions", "waiting"
LAYERS = "fused layers"
WITHIN = {
    OPTIMIZER: r"Optimizer\.",
    ATTENTION: r"aten::_?scaled_dot_product|flex_attention|ScaledDotProduct|arl2::attend",
    LAYERS: r"arl2::(modulate|add_modulate|turned_norm|map_heads|recall)",
    SCAN: r"arl2::|_ScanFrames|linalg_solve",
}
"""Kinds by what an operator is called, or one that it runs within."""
NAMED = {
    # What Inductor fused bears the names of all that is in it, `_to_copy` and `stack` among them.
    OTHERS: r"^triton_(poi|red|per)_",
    EXCHANGE: r"nccl|gloo|c10d::|all_reduce|all_gather|reduce_scatter",
    COPIES: r"memcpy|memset|copy|CatArray|aten::(to|clone|contiguous|cat|stack|fill_|zero_|zeros)$",
    # A graph's kernels were launched by no operator that would tell.
    LAYERS: r"(modulate|turned_norm|map_heads|recall)",
    SCAN: r"(scan|commit|frame_map|value_gradient|key_gradient|(prepare|apply)_chunks|_segments)",
    ATTENTION: r"flash|fmha|sdpa|softmax|attention|attend",
    PRODUCTS: r"gemm|cutlass|cublas|nvjet|xmma|triton_(tem|mm|bmm)|aten::(mkldnn|mm$|bmm|addmm|baddbmm|conv)",
}
"""Kinds by what a kernel, or an operator of a CPU, is called."""
KINDS = (PRODUCTS, ATTENTION, SCAN, LAYERS, OTHERS, OPTIMIZER, COPIES, EXCHANGE, WAITING)


LONGEST = 60
"""Kernels that a report lists by name."""


def kind_of(name: str, within: Iterable[str]) -> str:
    """Return the kind of a kernel by its name and those of the operators it was launched in."""
    around = [name, *within]
    for kind, pattern in WITHIN.items():
        if any(re.search(pattern, each) for each in around):
            return kind
    return next((kind for kind, pattern in NAMED.items() if re.search(pattern, name, re.I)), OTHERS)


def profile_update(run: Callable[[], float], device: torch.device) -> dict[str, Any]:
    """Profile an update and return kernels and milliseconds by kind, as a JSON object.

    On an accelerator these are its kernels; `waiting` is the time in which none runs. On a CPU they are its
    operators, and `waiting` is what is not spent in any, Python above all.

    Args:
        run: Makes an update, and returns the milliseconds that it took.
        device: Where.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
    return summarize(list(profiler.events() or ()), on_gpu=on_gpu)


def summarize(events: Sequence[FunctionEvent], *, on_gpu: bool) -> dict[str, Any]:
    """Return what `profile_update` does, of the profiler's events."""
    pieces = list(_kernels(events) if on_gpu else _operators(events))
    milliseconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    longest: defaultdict[str, float] = defaultdict(float)
    for name, kind, taken in pieces:
        milliseconds[kind] += taken
        longest[name] += taken
    lasted = _span(events)
    milliseconds[WAITING] = max(0.0, lasted - _busy(events, on_gpu=on_gpu, pieces=pieces))
    names = sorted(longest, key=longest.__getitem__, reverse=True)[:LONGEST]
    return {
        "profiled_ms": lasted,  # the profiler itself takes some of it
        "kernels": len(pieces),
        "milliseconds": milliseconds,
        "longest_ms": {name[:120]: longest[name] for name in names},
    }


def _parents(event: FunctionEvent) -> Iterator[str]:
    around: FunctionEvent | None = event
    while around is not None:
        yield around.name
        around = around.cpu_parent


def _kernels(events: Sequence[FunctionEvent]) -> Iterator[tuple[str, str, float]]:
    """Yield name, kind and milliseconds of each kernel that ran on an accelerator."""
    # By duration too: a CUDA graph may run kernels of the same name, and no operator launched those.
    launched: defaultdict[tuple[str, float], list[list[str]]] = defaultdict(list)
    for event in events:
        if event.device_type == DeviceType.CPU:
            for kernel in event.kernels:
                launched[kernel.name, kernel.duration].append(list(_parents(event)))
    for event in events:
        if event.device_type != DeviceType.CPU and not event.is_user_annotation:
            taken = event.time_range.elapsed_us()
            around = launched[event.name, taken]
            within = around.pop(0) if around else []
            yield event.name, kind_of(event.name, within), taken / 1e3


def _operators(events: Sequence[FunctionEvent]) -> Iterator[tuple[str, str, float]]:
    """Yield name, kind and milliseconds of each operator of a CPU, without those that it runs itself."""
    for event in events:
        taken = event.self_cpu_time_total / 1e3
        if event.name.startswith(("aten::", "arl2::", "c10d::", "gloo")) and taken > 0:
            yield event.name, kind_of(event.name, _parents(event)), taken


def _span(events: Sequence[FunctionEvent]) -> float:
    """Return the milliseconds from the first event to the end of the last."""
    if not events:
        return 0.0
    first = min(event.time_range.start for event in events)
    return (max(event.time_range.end for event in events) - first) / 1e3


def _busy(events: Sequence[FunctionEvent], *, on_gpu: bool, pieces: list[tuple[str, str, float]]) -> float:
    """Return the milliseconds in which something runs; kernels on several streams count once."""
    if not on_gpu:
        return sum(taken for _, _, taken in pieces)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
    )
    busy = until = 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e3

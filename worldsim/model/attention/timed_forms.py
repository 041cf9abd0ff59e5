"""Softmax attention of a block to a full window, in the form that the device is fastest in.

A block of 1,560 tokens and 12 heads makes 156 pieces of work, little more than a card's 132 processors: most
of them wait for the second round of a few. Cut into parts, the keys fill the rounds; what parts give is added
by the weight of their sums. Which form is the fastest is timed once for each shape.
"""

# B batch, N tokens of the block, T tokens of the window, H heads, D head width, P parts

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldsim.runtime.fused import fused

TILE = 128
"""Queries that one program of a card attends for."""
MAX_PARTS = 8
PART_COST = 0.01
"""Share of the time that a part more takes, by which fewer parts are chosen where many gain little."""
CALLS = 5

Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of queries, keys and values, heads first: the attention `[B, H, N, D]` and the logarithms of its sums."""


def _flash(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values)[:2]


def _cudnn(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(queries, keys, values, None, True)[:2]


def _on_cpu(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values)[:2]


OPERATORS: Mapping[str, Attend] = {"flash": _flash, "cudnn": _cudnn, "cpu": _on_cpu}
"""That also return the logarithms of sums; "cpu" is a CPU's alone."""
WHOLE = "whole"
"""The form of PyTorch's own choice, with all keys at once."""


@dataclass(frozen=True, slots=True)
class WindowForm:
    """How a block attends: one of `OPERATORS`, or `WHOLE`, in so many parts of the keys."""

    operator: str = WHOLE
    parts: int = 1

    def __str__(self) -> str:
        return self.operator if self.parts == 1 else f"{self.operator}, {self.parts} parts"


timed: dict[Hashable, dict[WindowForm, float]] = {}
"""Milliseconds of the forms by shapes and device, the fastest first; of this process."""


def attend_window(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return what `layers.attend` does without a mask, in the fastest form: `[B, N, H * D]`.

    Args:
        queries: `[B, N, H, D]`.
        keys: `[B, T, H, D]`, as `values`.
    """
    return attend_in_form(queries, keys, values, choose_form(queries, keys, values))


def choose_form(queries: Tensor, keys: Tensor, values: Tensor) -> WindowForm:
    """Return the fastest form on these shapes: on a card as timed, before anything is recorded."""
    key = (queries.shape, keys.shape, queries.dtype, queries.device)
    if key not in timed:
        if queries.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return WindowForm()
        timed[key] = _time_forms(queries, keys, values)
    return next(iter(timed[key]))


def attend_in_form(queries: Tensor, keys: Tensor, values: Tensor, form: WindowForm) -> Tensor:
    """Return `[B, N, H * D]`; T must be a multiple of the form's parts."""
    if form.operator == WHOLE:
        q, k, v = (each.transpose(1, 2) for each in (queries, keys, values))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    cut = (each.unflatten(1, (form.parts, -1)).flatten(0, 1) for each in (keys, values))
    repeated = queries.repeat_interleave(form.parts, 0) if form.parts > 1 else queries
    q, k, v = (each.transpose(1, 2) for each in (repeated, *cut))
    out, sums = OPERATORS[form.operator](q, k, v)
    if form.parts == 1:
        return out.transpose(1, 2).flatten(2)
    return fused(joined)(out, sums.reshape(out.shape[:3]), form.parts)


def joined(out: Tensor, sums: Tensor, parts: int) -> Tensor:
    """Return attention to all keys, `[B, N, H * D]`, of that to each part.

    Args:
        out: `[B * P, H, N, D]`.
        sums: `[B * P, H, N]`, logarithms of the sums that were divided by, fp32.
        parts: P.
    """
    weights = sums.unflatten(0, (-1, parts)).softmax(dim=1).unsqueeze(-1)
    whole = (out.unflatten(0, (-1, parts)) * weights).sum(dim=1)  # in fp32
    return whole.to(out.dtype).transpose(1, 2).flatten(2)


def choose_parts(pieces: int, tokens: int, processors: int) -> int:
    """Return into how many parts to cut keys, so that rounds of programs are full.

    Args:
        pieces: Programs with all keys at once.
        tokens: Keys, which the parts have to divide.
        processors: Programs that run beside each other.
    """

    def worth(parts: int) -> float:
        rounds = math.ceil(pieces * parts / processors)
        return pieces * parts / (rounds * processors) - PART_COST * parts

    return max((each for each in range(1, MAX_PARTS + 1) if tokens % each == 0), key=worth)


def _time_forms(queries: Tensor, keys: Tensor, values: Tensor) -> dict[WindowForm, float]:
    batch, tokens, heads = queries.shape[:3]
    processors = torch.cuda.get_device_properties(queries.device).multi_processor_count
    parts = choose_parts(batch * heads * math.ceil(tokens / TILE), keys.shape[1], processors)
    forms = [WindowForm(), *(WindowForm(name, each) for name in ("flash", "cudnn") for each in {1, parts})]
    found = {form: _milliseconds(form, queries, keys, values) for form in forms}
    there = ((form, taken) for form, taken in found.items() if taken < math.inf)
    return dict(sorted(there, key=lambda item: item[1]))


def _milliseconds(form: WindowForm, queries: Tensor, keys: Tensor, values: Tensor) -> float:
    """Return the fastest of some calls, infinite for a form that these shapes or this device do not have."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    try:
        attend_in_form(queries, keys, values, form)
        for _ in range(CALLS):
            first.record()
            attend_in_form(queries, keys, values, form)
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return math.inf
    return min(times)


def report_forms() -> dict[str, Any]:
    """Return what was timed in this process, by shapes, as a JSON object: milliseconds a call by form."""
    return {
        f"{list(key[0])} over {list(key[1])}": {str(form): each for form, each in forms.items()}
        for key, forms in timed.items()
        if isinstance(key, tuple)
    }

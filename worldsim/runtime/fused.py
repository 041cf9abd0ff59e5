"""Layers of networks as `torch.compile` makes them, where it can: their numbers and their names stay."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from worldsim.runtime.cuda_graphs import fuse

_failures: dict[str, str] = {}
"""Why layers of a module are not compiled in this process: a compiler that failed is not asked again."""


class _Timing:
    """How many threads want cuDNN to time its kernels, a setting of the process."""

    lock = threading.Lock()
    num_inside = 0
    before = False


@contextmanager
def timed_convolutions(*, is_on: bool = True) -> Iterator[None]:
    """Let cuDNN choose kernels inside the block by timing them, once for each shape, not by rules of thumb.

    Another process may choose others, which add up in another order, as kernels of `torch.compile` do. Of
    other threads' convolutions, too, kernels are then timed.
    """
    if not is_on:
        yield
        return
    with _Timing.lock:
        _Timing.num_inside += 1
        if _Timing.num_inside == 1:
            _Timing.before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        with _Timing.lock:
            _Timing.num_inside -= 1
            if not _Timing.num_inside:
                torch.backends.cudnn.benchmark = _Timing.before


@cache
def fused(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors and modules as `torch.compile` makes it, for tensors of fixed shapes.

    Modules of the same structure share what is compiled: it is given their weights. Where nothing can be
    compiled the functions of its module are called as they are, with one warning.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit  # takes seconds

    # Between kernels PyTorch rounds to bf16: so do fused ones, and pictures stay the same.
    compiled = fuse(layer, options={"emulate_precision_casts": True})

    def call(*args: Any, **kwargs: Any) -> Any:
        if layer.__module__ not in _failures:
            try:
                return compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except FailOnRecompileLimitHit:
                pass  # these shapes came behind `MAX_VARIANTS` others, which stay compiled
            except Exception as error:  # of a compiler: of any kind. What is the layer's own comes again.
                _failures[layer.__module__] = reason = " ".join(str(error).split())[:160]
                warnings.warn(f"layers are not compiled, and slower: {reason}", stacklevel=2)
        return layer(*args, **kwargs)

    return call

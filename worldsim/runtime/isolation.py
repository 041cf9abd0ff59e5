"""Isolation of dreams from what a process has set of PyTorch."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from worldsim.runtime.forks import Fork

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS: Any = torch.backends  # whose attributes are made when it is loaded
DTYPE = torch.float32
# In which format each library multiplies fp32 numbers: PyTorch's own defaults.
PRECISIONS = (
    (BACKENDS.cuda.matmul, "ieee"),
    (BACKENDS.mkldnn.matmul, "ieee"),
    (BACKENDS.mkldnn.conv, "ieee"),
    (BACKENDS.cudnn.conv, "tf32"),
)
UNSET = "none"


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute as if nothing were set: whatever the process has chosen, the same bytes.

    Inside there is no autocast, no gradient, no inference mode, whose tensors nobody else could use, no
    default device but the CPU, no default dtype but fp32, and no shortened product of fp32 numbers.
    Afterwards everything is as it was. A forked process is left one thread of PyTorch: those that were
    started before the fork are gone, and it would wait for them for ever.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _thread.is_inside:
            return function(*args, **kwargs)
        if Fork.is_new:
            torch.set_num_threads(1)
            Fork.is_new = False
        with torch.inference_mode(False), torch.no_grad(), _shared, _without_modes():
            _thread.is_inside = True
            try:
                return function(*args, **kwargs)
            finally:
                _thread.is_inside = False

    return call


def ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor that can be used outside of inference mode, too: a copy of what was made within.

    That mode saves a tenth of a frame's time, in which PyTorch would keep the books of autograd.
    """
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


class _Thread(threading.local):
    """Whether this thread is isolated already."""

    is_inside = False


def _without_modes() -> AbstractContextManager[object]:
    """Return what switches the thread's autocast and default device off, if it has any."""
    is_autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    if not is_autocast and torch.empty(0).device.type == "cpu":
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.device("cpu"))
    for kind in ("cpu", "cuda"):
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


class _SharedSettings:
    """Settings of all threads: the first one inside changes them, the last one puts them back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._dtype = DTYPE
        self._precisions: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            self._num_inside += 1
            if self._num_inside > 1:
                return
            self._dtype = torch.get_default_dtype()
            if self._dtype != DTYPE:
                torch.set_default_dtype(DTYPE)
            self._precisions = [library.fp32_precision for library, _ in PRECISIONS]
            all_of_them = BACKENDS.fp32_precision  # what holds where a library has none of its own
            for (library, ours), theirs in zip(PRECISIONS, self._precisions, strict=True):
                if theirs != ours and not theirs == all_of_them == UNSET:
                    library.fp32_precision = ours

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside:
                return
            if self._dtype != DTYPE:
                torch.set_default_dtype(self._dtype)
            for (library, _ours), theirs in zip(PRECISIONS, self._precisions, strict=True):
                if library.fp32_precision != theirs:
                    library.fp32_precision = theirs


_thread = _Thread()
_shared = _SharedSettings()

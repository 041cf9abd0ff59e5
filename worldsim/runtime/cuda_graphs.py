"""CUDA-graph capture of tensor functions: many small kernels would wait for their launches.

A CUDA graph runs a recorded sequence of kernels on tensors that stay where they are. Here a call copies its
tensors there, replays the graph, and returns copies of what it left: from outside, values go in and come out.
What is too large for that stays where it is (`worldsim.runtime.resident`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.runtime.resident import Resident

COMPILE_MODES = ("auto", "none", "cudagraphs", "inductor")
WARM_UP_CALLS = 2
"""Before a graph is recorded: Triton and cuBLAS prepare kernels at their first call."""
MAX_VARIANTS = 64
"""Batch sizes and worlds that one process may compile the same function for."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Recorded = tuple[Any, Callable[[], None]]
"""What a recorded function returned, and what runs it again into the same tensors."""


@dataclass(frozen=True, slots=True)
class CompileChoice:
    """How a batch of dreams is stepped, and why so.

    Attributes:
        mode: `none`, `cudagraphs` or `inductor`.
    """

    mode: str
    reason: str

    def __str__(self) -> str:
        return f"compile {self.mode} ({self.reason})"


def choose_compile(mode: str, device: torch.device, *, grows: bool, is_video: bool = False) -> CompileChoice:
    """Choose what was asked for, or what fits.

    Args:
        mode: `auto`, `none`; `cudagraphs`: the kernels of `none`, launched as one graph; `inductor`: those
            that `torch.compile` makes, launched the same way; of a video world layer by layer, and those of
            its decoder are launched one by one.
        grows: Whether the world's memory grows from frame to frame.
        is_video: Whether a large decoder shows its frames.

    Raises:
        WorldError: If there is no such mode, or it cannot be had here.
    """
    if mode not in COMPILE_MODES:
        raise WorldError(f"compile must be one of {', '.join(COMPILE_MODES)}, got {mode!r}")
    if mode in ("cudagraphs", "inductor"):
        if device.type != "cuda":
            raise WorldError(f"compile={mode!r} needs a CUDA GPU, but the world is on {device}")
        if grows:
            raise WorldError(f"compile={mode!r} needs a memory of constant size, but this world's grows")
    if mode != "auto":
        return CompileChoice(mode, "as asked")
    if device.type != "cuda":
        return CompileChoice("none", f"on {device.type} launching costs little")
    if grows:
        return CompileChoice("none", "a memory that grows fits no graph")
    if is_video:
        return CompileChoice("inductor", "one graph for each part, of layers with fused kernels")
    return CompileChoice("cudagraphs", "the same kernels, launched at once")


def compiler_of(mode: str, device: torch.device) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return what makes functions of tensors cheap to launch in a mode of `CompileChoice`."""
    if mode == "none":
        return lambda function: function
    pool, homes = torch.cuda.graph_pool_handle(), {}

    def record(function: Callable[[], Any]) -> Recorded:
        return record_cuda_graph(function, device, pool)

    def build(function: Callable[P, R]) -> Callable[P, R]:
        fused = fuse(function) if mode == "inductor" else function
        return Replayed(fused, device, record, homes)

    return build


def fuse(
    function: Callable[P, R], backend: str = "inductor", options: dict[str, Any] | None = None
) -> Callable[P, R]:
    """Return the function as `torch.compile` makes it, whole, for tensors of fixed shapes."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # Variants are counted over all worlds of a process, and too many are an error.
        with torch._dynamo.config.patch(recompile_limit=MAX_VARIANTS):
            return compiled(*args, **kwargs)

    return call


class Replayed(Generic[P, R]):
    """A function of tensors that is recorded once for each shape of its inputs, then replayed.

    It may take and return tensors, tuples and dataclasses of them, and constants, which are part of what is
    recorded. It must not look at a tensor's numbers. What is returned belongs to the caller: no later call
    changes it. One argument may hold a `Resident`, which is not copied.

    Args:
        function: With positional arguments only.
        device: Where it computes; inputs may be elsewhere and are copied there.
        record: Runs a function and returns what replays it.
        homes: Rooms of residents, by signature: functions that are given the same dictionary share them.
    """

    def __init__(
        self,
        function: Callable[P, R],
        device: torch.device,
        record: Callable[[Callable[[], Any]], Recorded],
        homes: dict[Hashable, Any] | None = None,
    ) -> None:
        self._function, self._device, self._record = function, device, record
        self._homes = {} if homes is None else homes
        self._recorded: dict[Hashable, tuple[Any, Any, Callable[[], None]]] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function does."""
        assert not kwargs, "what is recorded is told apart by its positional arguments"
        residents = list(parts_of(args, Resident))
        assert len(residents) <= 1, "what a recording leaves would follow one of several"
        for resident in residents:
            resident.settle(self._homes)
        signature = _signature(args)
        if signature not in self._recorded:
            function, inputs = cast(Callable[..., R], self._function), map_parts(self._own, args)
            returned, replay = self._record(lambda: function(*inputs))
            self._recorded[signature] = inputs, returned, replay
        inputs, returned, replay = self._recorded[signature]
        for own, given in zip(tensors_of(inputs), tensors_of(args), strict=True):
            own.copy_(given, non_blocking=True)
        replay()
        return cast(R, map_parts(lambda part: _left(part, residents), returned))

    def _own(self, given: Tensor | Resident) -> Tensor | Resident:
        if isinstance(given, Resident):
            return given.shadow()
        # Contiguous whatever it is a view of: the kernels are then the same, whoever came first.
        return torch.empty(given.shape, dtype=given.dtype, device=self._device).copy_(given)


def _left(part: Tensor | Resident, residents: list[Resident]) -> Tensor | Resident:
    """Return what a replay left, as the caller's own."""
    return part.clone() if isinstance(part, Tensor) else residents[0].follow(part)


def record_cuda_graph(
    function: Callable[[], Any],
    device: torch.device,
    pool: Any,
    generators: Sequence[torch.Generator] = (),
) -> Recorded:
    """Record a function as a CUDA graph.

    Args:
        function: Reads and returns tensors that stay where they are.
        device: Where it computes.
        pool: Memory that graphs share which never run beside each other.
        generators: Of the device, which the function draws from. A replay draws what they would at that time.
    """
    with torch.cuda.device(device):
        ready, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(ready)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                function()
        ready.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # On a stream of this device. Other threads, which draw noise, are free to do what they do.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            returned = function()
    return returned, graph.replay


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with `change(tensor)` in the place of every tensor in its tuples and dataclasses."""
    return map_parts(lambda part: change(part) if isinstance(part, Tensor) else part, value)


def map_parts(change: Callable[[Any], Any], value: Any) -> Any:
    """Return a value with `change(part)` in the place of every tensor and resident in it."""
    if isinstance(value, Tensor | Resident):
        return change(value)
    if isinstance(value, tuple):
        items = [map_parts(change, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)  # a named one stays one
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: map_parts(change, part) for name, part in parts.items()})
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a value in the order of `map_tensors`."""
    return parts_of(value, Tensor)


def parts_of(value: Any, kind: type[T]) -> Iterator[T]:
    """Yield the tensors or the residents of a value in the order of `map_parts`."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from parts_of(item, kind)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from parts_of(getattr(value, field.name), kind)


def _signature(value: Any) -> Hashable:
    """Return what tells recordings apart: kinds, shapes and dtypes, and constants themselves."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Resident):
        return value.signature()
    if isinstance(value, tuple):
        return tuple(map(_signature, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(_signature(getattr(value, field.name)) for field in fields(value))
    return value

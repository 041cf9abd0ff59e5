"""A check on Triton's interpreter: every lane that loads or stores must stay inside of a given tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

Range = tuple[int, int]
"""Addresses of the first byte of a tensor and of the one after its last."""


class OutsideError(Exception):
    """A lane of a kernel is outside of all tensors that the kernel was given."""


def range_of(tensor: Tensor) -> Range:
    """Return where the elements of a view lie, whatever else its storage holds."""
    first = tensor.data_ptr()
    if tensor.numel() == 0:
        return first, first
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return first, first + (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def check_lanes(addresses: np.ndarray, size: int, given: dict[str, Range], doing: str) -> None:
    """Raise an `OutsideError` unless one of the given tensors holds all lanes of an access.

    Args:
        addresses: Of the active lanes.
        size: Bytes of an element.
        given: The tensors of the kernel, by argument.
        doing: "loads" or "stores", for the message.
    """
    if addresses.size == 0:
        return
    first, last = int(addresses.min()), int(addresses.max()) + size
    if not any(start <= first and last <= end for start, end in given.values()):
        near = min(given, key=lambda name: min(abs(first - given[name][0]), abs(last - given[name][1])))
        start, end = given[near]
        raise OutsideError(
            f"{doing} bytes {first - start} to {last - start} of {near}, which has {end - start}"
        )


def keep_to_tensors() -> None:
    """Let the interpreter refuse accesses outside of the tensors that the running kernel was given."""
    given: dict[str, Range] = {}
    take, load, store = (
        GridExecutor._init_args_hst,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )

    def take_all(self: GridExecutor, args_dev: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positional, keywords = take(self, args_dev, kwargs)
        pairs = (*zip(self.arg_names, positional, strict=False), *keywords.items())
        given.clear()
        given.update({name: range_of(arg) for name, arg in pairs if isinstance(arg, Tensor)})
        return positional, keywords

    def active(pointers: TensorHandle, mask: TensorHandle) -> np.ndarray:
        addresses, lanes = np.broadcast_arrays(pointers.data, mask.data)
        return addresses[lanes.astype(bool)]

    def checked_load(self: Any, pointers: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        check_lanes(active(pointers, mask), size, given, "loads")
        return load(self, pointers, mask, *rest)

    def checked_store(
        self: Any, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
    ) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        check_lanes(active(pointers, mask), size, given, "stores")
        store(self, pointers, value, mask, *rest)

    GridExecutor._init_args_hst = take_all
    for name, replaced in {"create_masked_load": checked_load, "create_masked_store": checked_store}.items():
        setattr(InterpreterBuilder, name, replaced)

"""Triton's interpreter made to sum, and to multiply and round in bf16, as a card does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from triton import language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle, _LangPatchScope


def widened(operand: TensorHandle) -> TensorHandle:
    """Return an operand in bf16, which is kept as integers, in fp32."""
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def sum_in_double() -> None:
    """Let the interpreter sum products in double and round once.

    NumPy's own sums depend on the processor: similar keys, which cancel, make five times as much of that.
    """

    def multiply(
        self: Any,
        a: TensorHandle,
        b: TensorHandle,
        d: TensorHandle,
        input_precision: Any,
        max_num_imprecise_acc: Any,
    ) -> TensorHandle:
        total = a.data.astype(np.float64) @ b.data.astype(np.float64) + d.data
        return TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    InterpreterBuilder.create_dot = multiply


def round_bf16() -> None:
    """Let the interpreter multiply bf16 as numbers, and round to it to the nearest, as a card does."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def multiply(self: Any, left: TensorHandle, right: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(self, widened(left), widened(right), *rest)

    def convert(self: Any, source: TensorHandle, target: Any) -> TensorHandle:
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16)
        return TensorHandle(rounded.numpy(), tl.bfloat16)

    for name, replaced in {"create_dot": multiply, "cast_impl": convert}.items():
        setattr(InterpreterBuilder, name, replaced)


def count_to_loaded_numbers() -> None:
    """Let a loop end at a number that was loaded: NumPy no longer takes an array of one number for it."""
    patch = interpreter._patch_lang_tensor

    def patch_all(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_all


def patch_once() -> None:
    """Let the interpreter patch the language once a kernel, and not at each call of a function inside of it.

    For functions of one module it is the same; half of the interpreter's time went there.
    """
    patch, run = interpreter._patch_lang, GridExecutor.__call__
    patched: set[int] = set()

    def run_patched(self: GridExecutor, *arguments: Any, **keywords: Any) -> None:
        patched.clear()
        run(self, *arguments, **keywords)

    def patch_new(function: Any) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return _LangPatchScope()
        patched.add(module)
        return patch(function)

    GridExecutor.__call__ = run_patched
    interpreter._patch_lang = patch_new

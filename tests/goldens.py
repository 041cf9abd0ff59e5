"""Stored values of `tests/test_public.py`: files in `tests/public`, and the comparison with them.

A value is compared exactly on a machine that computes as the one that stored it did, which a fingerprint of
its arithmetic says. On any other machine floating-point numbers may differ a little, and digests of what was
computed say nothing; all else is compared exactly on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FOLDER = Path(__file__).parent / "public"
INPUTS = FOLDER / "inputs"
MAX_BYTES = 100_000
"""Of one stored file."""
DIGEST = "sha256 "
"""Before a digest of computed numbers."""


@cache
def fingerprint() -> str:
    """Return a digest of the results of operations that the program is made of, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = _operations()
    finally:
        torch.set_num_threads(threads)
    digest = hashlib.sha256(f"{torch.__version__} {np.__version__} {av.__version__}".encode())
    for result in results:
        digest.update(result.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _operations() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    results = []
    for channels, size, tokens in ((4, 24, 24), (64, 30, 80)):  # the sizes of tiny worlds, and of real ones
        x, heads = draw(2, channels, size, size), draw(2, 5, tokens, 64)
        weight = draw(channels, channels, 3, 3).requires_grad_()
        convolved = functional.silu(functional.group_norm(functional.conv2d(x, weight, padding=1), 2))
        loss = functional.pixel_shuffle(convolved, 2).square().mean()
        loss.backward()
        assert weight.grad is not None
        attended = functional.scaled_dot_product_attention(heads, heads, heads)
        tokens_in = draw(tokens, 16 * channels)
        linear = functional.linear(tokens_in, draw(3 * channels, 16 * channels), draw(3 * channels))
        gates = linear.exp().cumsum(0).log1p() + functional.softplus(linear).sin() * linear.sigmoid().cos()
        normal = functional.layer_norm(linear, linear.shape[-1:]).softmax(-1)
        products = heads @ heads.mT, torch.einsum("bhnk,bhnv->bhkv", heads, heads), linear @ linear.mT
        results += [convolved, loss, weight.grad, attended, linear, gates, normal, *products, linear.mean()]
    a = draw(32, 32)
    results += [torch.linalg.solve_triangular(a.tril() + 8 * torch.eye(32), a, upper=False), a.norm()]
    results += [functional.interpolate(draw(1, 3, 40, 60), size=(16, 24), mode="area"), a.svd().S, a.var(0)]
    return results


def digest_of(*tensors: Tensor | np.ndarray) -> str:
    """Return a digest of the bytes of some arrays; compared on machines of the same arithmetic alone."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(np.asarray(tensor)).tobytes())
    return DIGEST + digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Golden:
    """Compares values with those that are stored, or stores them.

    Attributes:
        update: Whether to store them.
    """

    update: bool

    def check(
        self, name: str, values: Any, *, same: float = 0.0, relative: float = 0.0, absolute: float = 0.0
    ) -> None:
        """Compare values that JSON can hold with those of `tests/public/NAME.json`.

        Args:
            name: Of the file, without suffix.
            values: What was found.
            same: How far numbers may lie apart on a machine of the same arithmetic, as a share of them: above
                0 only for sums of float64 whose order is that of a library.
            relative: How far numbers may lie apart on a machine of another arithmetic, as a share of them.
            absolute: The same in their own unit; the larger of both counts.
        """
        path = FOLDER / f"{name}.json"
        values = json.loads(json.dumps(values))
        if self.update:
            text = compact({"machine": fingerprint(), "values": values})
            assert len(text) < MAX_BYTES, f"{path} would hold {len(text)} bytes"
            path.write_text(text)
            return
        assert path.is_file(), f"{path} is missing; see tests/test_public.py for how it is written"
        stored = json.loads(path.read_text())
        is_same = stored["machine"] == fingerprint()
        tolerance = (same, same) if is_same else (relative, absolute)
        differences = list(compare(values, stored["values"], tolerance, is_same))
        shown = "\n".join(differences[:20])
        assert not differences, f"{len(differences)} values are not those of {path.name}:\n{shown}"


def compact(values: Any, indent: str = "") -> str:
    """Return JSON with a line for each entry of the outer objects."""
    text = json.dumps(values, sort_keys=True)
    if not isinstance(values, dict) or len(text) < 100:
        return text + ("" if indent else "\n")
    inner = indent + " "
    lines = [f"{inner}{json.dumps(key)}: {compact(values[key], inner)}" for key in sorted(values)]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" + ("" if indent else "\n")


def compare(found: Any, stored: Any, tolerance: tuple[float, float], is_same: bool, path: str = "") -> Any:
    """Yield a line for each difference of two JSON values.

    Args:
        found: What there is.
        stored: What there should be.
        tolerance: How far numbers may lie apart, as a share and in their own unit.
        is_same: Whether the machine computes as that one did which stored the values: digests are compared.
        path: Where in the values these are.
    """
    relative, absolute = tolerance
    if type(found) is not type(stored):
        yield f"{path}: is {found!r} and was {stored!r}"
    elif isinstance(found, dict):
        for key in sorted(found.keys() | stored.keys()):
            if key not in found or key not in stored:
                yield f"{path}/{key}: {'is new' if key in found else 'is gone'}"
            else:
                yield from compare(found[key], stored[key], tolerance, is_same, f"{path}/{key}")
    elif isinstance(found, list):
        if len(found) != len(stored):
            yield f"{path}: has {len(found)} entries and had {len(stored)}"
        for index, (one, other) in enumerate(zip(found, stored, strict=False)):
            yield from compare(one, other, tolerance, is_same, f"{path}/{index}")
    elif isinstance(found, str) and found.startswith(DIGEST) and not is_same:
        if not stored.startswith(DIGEST):
            yield f"{path}: is {found!r} and was {stored!r}"
    elif isinstance(found, float) and math.isclose(found, stored, rel_tol=relative, abs_tol=absolute):
        return
    elif found != stored:
        yield f"{path}: is {found!r} and was {stored!r}"

"""Choice of the operators' forms and precision, for the process or for a stretch of code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

FORMS = ("auto", "reference", "torch", "triton")
PRECISIONS = ("tf32x3", "tf32", "ieee")
IN_TRAINING = "training"
"""For a layer's operators: what training on a GPU was measured to be faster with."""
VALUES = {"form": FORMS, "layers": (*FORMS, IN_TRAINING), "scan_precision": PRECISIONS}


@dataclass(frozen=True, slots=True)
class Selection:
    """What holds where an operator is called without a form.

    Attributes:
        form: Of `commit`, `read` and `scan_frames`, one of `FORMS`.
        layers: Of the operators of `kernels.layers`; "auto" says what `form` says, and so does "training" but
            for what "auto" means on CUDA.
        scan_precision: How the Triton form of `scan_frames` multiplies: "tf32x3" (about fp32), "tf32" (11
            bits, one product in the place of three) or "ieee".
    """

    form: str = "auto"
    layers: str = "auto"
    scan_precision: str = "tf32x3"


ACTIVE = Selection(form=os.environ.get("ARL2_KERNELS", "auto"))


@contextmanager
def using(**changed: str) -> Iterator[Selection]:
    """Choose forms or precision for all threads until the end of the block, as fields of `Selection`.

    What `torch.compile` made before is compiled again where the choice changes it.

    Raises:
        ValueError: If a value is none of those that are known.
    """
    global ACTIVE
    for name, value in changed.items():
        known = VALUES[name]
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    before = ACTIVE
    ACTIVE = replace(before, **changed)
    try:
        yield ACTIVE
    finally:
        ACTIVE = before

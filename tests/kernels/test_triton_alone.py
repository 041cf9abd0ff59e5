"""Each operator on a GPU with the sizes of clips that are watched, in a process of its own.

What reads outside of its tensors often reads what belongs to others, and nothing is said: here each tensor is
an allocation of its own, and an illegal access names its operator.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = (
    *("attend", "attend_window", "scan_frames", "recall", "map_heads"),
    *("modulate", "add_modulate", "turned_norm"),
)


@pytest.mark.gpu
@pytest.mark.parametrize("operator", OPERATORS)
def test_no_operator_leaves_its_tensors(operator: str) -> None:
    """36 tokens, keys in parts of 32 and 16: the frames of car-racing."""
    run_alone(operator, "36")


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["torch", "training"])
def test_no_network_leaves_its_tensors(form: str) -> None:
    """What ends in `torch` is none of our kernels."""
    run_alone("clips", form)


def run_alone(*arguments: str) -> None:
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [sys.executable, "-m", "tests.kernels.watching", *arguments]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-4000:]

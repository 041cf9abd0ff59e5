"""Fixtures of every test: no window, no network, fixed seeds, two threads, or one beside other workers."""

from __future__ import annotations

import os
from pathlib import Path

import training  # noqa: F401 - bounds the spinning of PyTorch's threads, which reads it when it is loaded

# Processes that tests start import this checkout, and beside it what this process was shown.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
)

# Before pygame and huggingface_hub are imported: they read their environment once.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import random
import resource
import select
import shutil
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import torch

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if IS_WORKER else 2)
if IS_WORKER:  # in processes that tests start, too: with more threads than cores they wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `tests/test_public.py` store its values anew."""
    parser.addoption("--update-public", action="store_true", help="store the values of tests/test_public.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the `gpu` tests where there is no GPU; `-rs` makes the summary name them."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Leave PyTorch as many threads as it had: with those of a command of two, all later tests would wait."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same global random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute in one thread: a small network would wait for a second thread longer than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def largest_file_50_kb() -> Iterator[None]:
    """Give a disk on which no file can grow further, which is how a full one looks to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def real_window_environment(x_server: tuple[dict[str, str], subprocess.Popen[bytes]]) -> dict[str, str]:
    """Give the environment of a subprocess that opens a real window, on a screen of its own (Xvfb).

    A subprocess, because SDL chooses its driver once and this process has chosen none.
    """
    return x_server[0]


@pytest.fixture
def x_server() -> Iterator[tuple[dict[str, str], subprocess.Popen[bytes]]]:
    """Give such an environment, and the process that is its screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("a real window needs Xvfb (Debian and Ubuntu: apt-get install xvfb)")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], 20)
        display = os.read(reading, 16).decode().strip() if ready else ""
        assert display, "Xvfb did not start within 20 seconds"
        environment = {key: value for key, value in os.environ.items() if key != "SDL_VIDEODRIVER"}
        yield environment | {"DISPLAY": f":{display}"}, server
    finally:
        os.close(reading)
        server.terminate()
        server.wait(timeout=10)

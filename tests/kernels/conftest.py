"""Triton's interpreter in processes of its own, which work beside the tests that need nothing of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parents[2]
Errors = dict[str, dict[str, float]]
FIXTURES = {
    f"interpreted_{name}": f"interpreted_{name}.py" for name in ("layers", "memory", "scan", "window")
}


class Interpretation:
    """A script that runs in the interpreter and prints what it found as JSON."""

    def __init__(self, script: Path, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._files: list[IO[str]] = [
            (folder / f"{script.stem}.{kind}").open("w+") for kind in ("out", "err")
        ]
        out, err = self._files
        self._process = subprocess.Popen(
            [sys.executable, str(script)], env=environment, stdout=out, stderr=err
        )

    def errors(self) -> Errors:
        """Wait for it; return the errors by case and by tensor."""
        code = self._process.wait()
        found, complaint = (file.seek(0) or file.read() for file in self._files)
        assert code == 0, complaint
        return json.loads(found)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for file in self._files:
            file.close()


class Interpretations(dict[str, Interpretation]):
    """Those that run, by the name of their fixture; one that does not is started."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Interpretation:
        self[name] = Interpretation(Path(__file__).with_name(FIXTURES[name]), self._folder)
        return self[name]


@pytest.fixture(scope="session", autouse=True)
def interpretations(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Interpretations]:
    """Start what the chosen tests will ask for before the first of this folder: they wait less for it.

    A worker of pytest-xdist does not know which tests it will get: there, each starts when it is asked for.
    """
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = tmp_path_factory.mktemp("interpreted")
    running = Interpretations(folder)
    if find_spec("triton") is not None and is_alone:
        for name in sorted(wanted & set(FIXTURES)):
            running[name]
    yield running
    for each in running.values():
        each.close()


def _errors(interpretations: Interpretations, name: str) -> Errors:
    pytest.importorskip("triton", reason="Triton is not installed: it is a Linux package")
    return interpretations[name].errors()


@pytest.fixture(scope="session")
def interpreted_layers(interpretations: Interpretations) -> Errors:
    """Return the errors of a layer's operators that the interpreter found, by case and by tensor."""
    return _errors(interpretations, "interpreted_layers")


@pytest.fixture(scope="session")
def interpreted_memory(interpretations: Interpretations) -> Errors:
    """Return the errors of `commit` and `read` that the interpreter found, by case and by tensor."""
    return _errors(interpretations, "interpreted_memory")


@pytest.fixture(scope="session")
def interpreted_scan(interpretations: Interpretations) -> Errors:
    """Return the errors of `scan_frames` that the interpreter found, by case and by tensor."""
    return _errors(interpretations, "interpreted_scan")


@pytest.fixture(scope="session")
def interpreted_window(interpretations: Interpretations) -> Errors:
    """Return the errors of attention over a window that the interpreter found, by case and by tensor."""
    return _errors(interpretations, "interpreted_window")


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what was compiled for all tests that ask for this, and for none but them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield

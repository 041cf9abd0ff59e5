"""Compiled code that travels: a second process compiles nothing, and what does not fit does no harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric

from training.engine.caches import CACHES, cache_file, load_caches, machine_key, save_caches
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.run_folder import FREE_SETTINGS

COMPILE_TWICE = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from training.engine.caches import CACHES, save_caches
from training.engine.fabric import FabricConfig, make_fabric

torch.set_num_threads(1)
out, caches = Path(sys.argv[1]), sys.argv[2]
fabric = make_fabric(FabricConfig(accelerator="cpu", compile=True, caches=caches), out)
saved = []
weight = torch.ones(4, 4)
for function in (lambda w: w @ w, lambda w: w @ w @ w):
    torch.compile(function, dynamic=False)(weight)
    saved.append(save_caches(fabric, out / CACHES))
saved.append(save_caches(fabric, out / CACHES))
found = {name: n for name, n in counters["inductor"].items() if name.startswith("fxgraph_cache")}
print(json.dumps({"saved": saved, "graphs": found, "joint": dict(counters["aot_autograd"])}))
"""


def compile_in_a_process(folder: Path, out: str, caches: str = "") -> dict[str, dict[str, int]]:
    own = {name: str(folder / out / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    command = [sys.executable, "-c", COMPILE_TWICE, str(folder / out), caches]
    ended = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_second_process_with_empty_caches_compiles_nothing(tmp_path: Path) -> None:
    first = compile_in_a_process(tmp_path, "first")
    assert first["saved"] == [True, True, False]
    assert "fxgraph_cache_hit" not in first["graphs"]
    second = compile_in_a_process(tmp_path, "second", str(tmp_path / "first" / CACHES))
    assert second["saved"] == [True, True, False], "what was found is kept for the run after this one"
    assert "fxgraph_cache_miss" not in second["graphs"]
    assert second["graphs"]["fxgraph_cache_hit"] == first["graphs"]["fxgraph_cache_miss"] == 2
    assert second["joint"]["autograd_cache_hit"] == 2


@pytest.fixture
def fabric(tmp_path: Path) -> Fabric:
    return make_fabric(FabricConfig(accelerator="cpu"), tmp_path)


@pytest.fixture
def saved(tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save something that looks compiled, and return the folder."""
    artifacts = defaultdict(list, inductor=["one"])
    told = (b"not what PyTorch writes", SimpleNamespace(artifacts=artifacts))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: told)
    assert save_caches(fabric, tmp_path / CACHES)
    return tmp_path / CACHES


def alter(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in files.items():
            archive.writestr(each, change(data) if each == name else data)


def of_another(part: str) -> Callable[[Path], None]:
    def change(data: bytes) -> bytes:
        return json.dumps(json.loads(data) | {part: "another"}).encode()

    return lambda path: alter(path, "key.json", change)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"graphs/000") + len(b"graphs/000") + 4
    data[place] ^= 255
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "not a zip file"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not a zip file"),
    "altered": (flip_a_byte, ""),
    "without a key": (lambda path: alter(path, "key.json", lambda _: b"[]"), ""),
    "not PyTorch's": (lambda _: None, "graphs/000 cannot be read"),
    "of another PyTorch": (of_another("torch"), "of another machine .torch another, here 2"),
    "of another Triton": (of_another("triton"), "of another machine .triton another, here"),
    "of another device": (of_another("device"), "of another machine .device another, here"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_does_not_fit_is_one_line_and_compiling_goes_on(
    saved: Path, fabric: Fabric, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    harm, reason = DAMAGES[damage]
    harm(cache_file(saved, fabric))
    capsys.readouterr()
    assert not load_caches(fabric, saved)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"compiled code is not taken from {cache_file(saved, fabric)}: ")
    assert re.search(reason, line)


def test_what_does_not_fit_is_replaced(saved: Path, fabric: Fabric) -> None:
    path = cache_file(saved, fabric)
    of_another("torch")(path)
    assert save_caches(fabric, saved)
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("key.json")) == machine_key(fabric.device)
        assert json.loads(archive.read("contents.json")) == ["inductor one"]
    assert not save_caches(fabric, saved), "nothing is new"


def test_code_for_another_number_of_threads_is_another_machines(
    saved: Path, fabric: Fabric, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert not load_caches(fabric, saved)
    finally:
        torch.set_num_threads(before)
    assert f"x {before} threads, here" in capsys.readouterr().out


def test_a_resumed_run_may_take_what_it_compiles_from_elsewhere() -> None:
    assert "fabric.caches" in FREE_SETTINGS

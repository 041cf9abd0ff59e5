"""The benchmark measures what it is asked for, writes it down, and says what it cannot do."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import kernels
from kernels.benchmark import __main__ as benchmark
from kernels.benchmark import gradients
from kernels.benchmark.inputs import REGIMES


@pytest.fixture(autouse=True)
def without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    benchmark.main()


def test_errors_are_written_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run(monkeypatch, "--only", "errors against", "--out", str(out))
    results = json.loads(out.read_text(encoding="utf-8"))
    assert set(results) == {"environment", "commit: errors against fp64"}
    errors = results["commit: errors against fp64"]
    assert len(errors) == 2 * len(REGIMES)
    assert all(0 < each["error"] < 1e-4 for each in errors.values()), errors


def test_what_no_time_is_left_for_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run(monkeypatch, "--seconds", "0", "--out", str(out))
    results = json.loads(out.read_text(encoding="utf-8"))
    assert results.pop("environment")["device"] == "cpu"
    assert len(results) == 7
    assert all(section == {"left_out": True} for section in results.values())


def test_a_section_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--only", "committing")
    complaint = capsys.readouterr().err
    assert "--only 'committing' is part of no section's name; there are 'commit and read'" in complaint


def test_results_that_cannot_be_written_are_refused_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "results.json"):
        with pytest.raises(SystemExit):
            run(monkeypatch, "--out", str(path))
        told = capsys.readouterr()
        assert "names no file in a folder that exists" in told.err
        assert told.out == ""


def test_gradients_are_compared_with_fp64_and_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gradients, "ON_CPU", [(1, 24, 2, 16)])
    out = tmp_path / "results.json"
    run(monkeypatch, "--only", "gradients", "--out", str(out))
    results = json.loads(out.read_text(encoding="utf-8"))["commit: gradients"]
    assert results.pop("commit with gradient (1, 24, 2, 16), torch")["median_ms"] > 0
    assert len(results) == 2 * len(REGIMES)
    for label, errors in results.items():
        allowed = 1e-3 if "float32" in label else 2e-2
        assert set(errors) == set(gradients.NAMES)
        assert all(0 <= error < allowed for error in errors.values()), label
        assert errors["dk"] > 0, label


def test_a_peer_that_refuses_to_run_is_left_out_of_the_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("known to be wrong on this card")

    forms = {"torch": partial(kernels.commit, form="torch"), "peer": refuse}
    compared = gradients.compare(forms, (1, 8, 1, 16), "random", torch.float32, "cpu")
    assert compared["peer"] == {"failed": "known to be wrong on this card"}
    assert compared["torch"]["dk"] < 1e-3
    assert "peer" in capsys.readouterr().out


def test_a_layers_operators_are_timed_and_compared_with_fp64(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    run(monkeypatch, "--only", "layers", "--out", str(out))
    results = json.loads(out.read_text(encoding="utf-8"))
    names = {"modulate", "add_modulate", "turned_norm", "keys", "values", "recall", "attend", "window"}
    assert set(results["layers: times"]) == names
    assert all(each["median_ms"] > 0 for each in results["layers: times"].values())
    assert {label.split(", ")[-2] for label in results["layers: errors"]} == names
    for label, errors in results["layers: errors"].items():
        assert len(errors) >= 3
        assert all(0 <= error < 1e-5 for error in errors.values()), label

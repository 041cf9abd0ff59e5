"""The page of a consistency report: what it shows, and that names are text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from worldsim.evaluation.report.page import page

ESTIMATE = {"mean": 1234.5, "low": 1.0, "high": 2.0, "count": 2}


def report(name: str = "a") -> dict[str, Any]:
    hardware = {"device": "cpu", "processor": "x", "cores": 2}
    run = {"date": "today", "commit": "c", "hardware": hardware, "dtype": "float32", "command": "python x"}
    described = {"identity": "i", "layers": {"full": 3, "hybrid": 0}, "parameters": 1e6, "denoising_steps": 2}
    row = {"name": "goal", "value": 1.0, "interval": None, "count": None, "unit": "dB", "must": 2.0}
    row |= {"aim": None, "higher_is_better": True, "verdict": "short"}
    gaps = {"3": {"zero": {"final": {"psnr_db": ESTIMATE}, "average": {"psnr_db": None}}}}
    return {
        "worlds": {name: described},
        "data": {"folder": "data", "source": "recorded"},
        "goals": {name: [row]},
        "interventions": {"worlds": {name: gaps}, "skipped": {"b": "no states"}},
        "runs": {"interventions": {name: run, "b": run | {"date": "later"}}},
    }


def test_parts_that_were_measured_are_shown_and_others_are_not() -> None:
    text = page(report(), Path("nowhere"))
    assert "<h2>Interventions</h2>" in text and "<h2>Goals</h2>" in text
    assert "<h2>Return recall</h2>" not in text and "<h2>Cost of a frame</h2>" not in text
    assert "<td>1,234.50 <small>1.00 to 2.00</small></td>" in text
    assert '<span class="short">short</span>' in text and "&gt;= 2" in text
    assert "3 full" in text and "0 hybrid" not in text
    assert "b: no states" in text
    assert text.count("<dt>interventions</dt>") == 2


def test_names_are_text() -> None:
    text = page(report("<script>"), Path("nowhere"))
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_number_that_is_missing_is_an_error() -> None:
    broken = report()
    del broken["worlds"]["a"]["identity"]
    with pytest.raises(UndefinedError, match="identity"):
        page(broken, Path("nowhere"))

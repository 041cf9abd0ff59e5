"""The list of commands that `python -m training` prints: all of them, and what each is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_is_listed_with_what_it_is_for() -> None:
    command = [sys.executable, "-m", "training"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = dict(line.split(maxsplit=1) for line in told.split("\n\n")[0].splitlines())
    commands = {path.stem for path in (ROOT / "training").glob("[!_]*.py")}
    commands |= {path.parent.name for path in (ROOT / "training").glob("*/__main__.py")}
    assert listed.keys() == commands
    assert listed["pretrain"] == "Pretraining of a world model"
    assert all(len(line) <= 110 for line in told.splitlines())

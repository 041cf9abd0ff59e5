"""Start-up time as a player prints it."""

from __future__ import annotations

import sys
from pathlib import Path

from training.suites.quality import time_startup


def test_start_up_is_read_from_what_the_player_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('start-up           2.5 s to the first frame')"]
    found = time_startup(command, tmp_path, num_runs=2)
    assert found.seconds == [2.5, 2.5]
    assert found.median == 2.5


def test_a_player_that_fails_is_reported_with_its_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('error: there is no world')"]
    assert time_startup(command, tmp_path).error == "error: there is no world"

"""A screen that goes away in the middle of play."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from worldsim.data.episodes import verify

ROOT = Path(__file__).resolve().parents[3]
RECORD_FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from tests.fakes import HEIGHT, WIDTH, tiny_world
from worldsim.play.recording import Recording
from worldsim.ui.display import saving_when_display_is_lost
from worldsim.ui.window import Window

frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
window = Window(WIDTH, HEIGHT, title="test")
recording = Recording(Path(sys.argv[1]), tiny_world().config)
with recording, saving_when_display_is_lost(lambda: (recording.close(), "all was saved")[1]):
    for number in range(100_000):
        window.show(frame)
        window.events()
        recording.add(frame, np.array([1, 0, 0]))
        if number == 3:
            print("recording", flush=True)
"""

CHOOSE_FOR_EVER = """
import numpy as np
from worldsim.play.desktop.picker import Picker, WorldChoice

class Chooser(Picker):
    def advance(self):
        super().advance()
        print("choosing", flush=True)

Chooser([WorldChoice("tiny", "", ("start-00",), np.zeros((1, 24, 32, 3), np.uint8))]).choose()
"""


def test_a_screen_that_goes_away_loses_no_recording(
    tmp_path: Path, x_server: tuple[dict[str, str], subprocess.Popen[bytes]]
) -> None:
    environment, server = x_server
    process = subprocess.Popen(
        [sys.executable, "-c", RECORD_FOR_EVER, str(tmp_path / "walk.mp4")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "recording\n"
    server.kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.endswith("error: the connection to the display was lost; all was saved\n")
    assert verify(tmp_path) > 3


def test_a_screen_that_goes_away_before_play_is_one_sentence(
    x_server: tuple[dict[str, str], subprocess.Popen[bytes]],
) -> None:
    environment, server = x_server
    process = subprocess.Popen(
        [sys.executable, "-c", CHOOSE_FOR_EVER],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "choosing\n"
    server.kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.endswith("error: the connection to the display was lost; nothing was played\n")

"""Every way to ask a program to end: which are heard, which wait, what is finished first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import HEIGHT, WIDTH, tiny_world
from worldsim.data.episodes import EpisodeWriter, verify
from worldsim.play.recording import Recording
from worldsim.runtime.interrupt import STOP_SIGNALS, StopRequest, defer_interrupt, raising_interrupt

every_request = pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give every test the handlers of a program in a terminal, however the tests were started."""
    previous = [signal.signal(signal.SIGINT, signal.default_int_handler)]
    previous += [signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS[1:]]
    yield
    for number, handler in zip(STOP_SIGNALS, previous, strict=True):
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # a handler in Python runs between two of its instructions


def test_ctrl_c_kill_and_a_closed_terminal_are_requests_to_stop() -> None:
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} == set(STOP_SIGNALS)


@every_request
def test_a_request_waits_for_the_frame_to_end(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before


def test_a_terminal_that_is_closed_says_so_twice_and_the_frame_still_ends() -> None:
    ended = False
    with pytest.raises(KeyboardInterrupt), StopRequest():
        send(signal.SIGHUP)
        send(signal.SIGTERM)
        send(signal.SIGHUP)
        ended = True
    assert ended


def test_a_closed_terminal_that_is_ignored_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with raising_interrupt(), StopRequest() as stop, defer_interrupt():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_in_the_background_of_a_script_ctrl_c_still_stops() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells without job control do
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest():
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


@every_request
def test_a_request_waits_until_a_block_is_done(number: signal.Signals) -> None:
    done = False
    with raising_interrupt(), pytest.raises(KeyboardInterrupt), defer_interrupt():
        send(number)
        done = True
    assert done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_without_a_handler_a_request_still_ends_the_process_after_the_block(number: signal.Signals) -> None:
    code = (
        "import os, sys; from worldsim.runtime.interrupt import defer_interrupt\n"
        f"with defer_interrupt(): os.kill(os.getpid(), {int(number)}); print('done', flush=True)\n"
        "print('later')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("done\n", -number)


def test_a_worker_ends_by_itself_where_its_parent_would_be_interrupted() -> None:
    with raising_interrupt():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@every_request
def test_a_request_while_a_recording_is_finished_leaves_it_whole(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = EpisodeWriter.close

    def interrupted(writer: EpisodeWriter) -> None:
        send(number)
        close(writer)
        send(number)

    monkeypatch.setattr(EpisodeWriter, "close", interrupted)
    recording = Recording(tmp_path / "walk.mp4", tiny_world().config)
    with raising_interrupt(), pytest.raises(KeyboardInterrupt), recording:
        for _ in range(3):
            recording.add(np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.array([1, 0, 0]))
    assert recording.paths == [tmp_path / "walk.mp4"]
    assert verify(tmp_path) == 3

"""Processes that never return: they end, with what they have started, whoever waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

import pytest

from worldsim.errors import WorldError
from worldsim.runtime.child import Child, describe_exit, end, ending_with_parent, leave_the_terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes lead no groups there")


def start_another_and_hang(connection: Connection) -> None:
    leave_the_terminal()
    connection.recv()
    with subprocess.Popen(["sleep", "1000"], pass_fds=(connection.fileno(),)):
        connection.send("started")
        time.sleep(1000)


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_hangs_ends_with_what_it_has_started(interrupted: bool) -> None:
    with Child(start_another_and_hang, (), "it") as child:
        assert child.ask(None, "at first", 1e9) == "started"
        if interrupted:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                end(child._process, 60.0)
        else:
            with pytest.raises(WorldError, match=r"it hangs in step: it has not returned for 0\.1 s"):
                child.ask(None, "in step", 0.1)
        assert not child._process.is_alive()
        assert describe_exit(child._process) == "its process was ended by SIGKILL"
        assert child._connection.poll(10.0), "whoever else holds the other end is gone"
        with pytest.raises((EOFError, ConnectionError)):
            child._connection.recv()


PARENT = """\
import subprocess, sys
from worldsim.runtime.child import ending_with_parent
subprocess.Popen([sys.executable, "-c", sys.argv[1]], preexec_fn=ending_with_parent()).wait()
"""
CHILD = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit()))
print("begun", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell a process that its parent ended"
)
def test_a_process_whose_parent_is_killed_is_told_to_end() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
        parent.kill()
        assert parent.stdout.readline() == "saved\n"
    assert ending_with_parent() is not None

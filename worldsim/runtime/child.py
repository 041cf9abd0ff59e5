"""Processes for code that may crash or never return: they are watched, and ended where it does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

from worldsim.errors import WorldError

PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that a process gets when its parent ends."""
LEAVE_SECONDS = 2.0
"""That a process is given to end by itself once nobody asks it any more."""
LONGEST_WAIT = 1e6
"""In seconds: the system counts milliseconds in 32 bits."""


class Child(AbstractContextManager["Child"]):
    """A process that answers requests, one at a time; a context manager, which ends it.

    Args:
        serve: A function of a module, called in the process with a connection and `arguments`. It answers
            what it receives, an exception for what it cannot do, until the connection is closed.
        arguments: Whatever can be pickled.
        name: Of what runs in there, for errors.
    """

    def __init__(self, serve: Callable[..., None], arguments: tuple[Any, ...], name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._name = name
        self._process = context.Process(target=serve, args=(theirs, *arguments))
        with interrupts_are_for_the_parent():
            self._process.start()
        theirs.close()  # only the process holds it now, so that its death is seen here

    def ask(self, request: Any, doing: str, seconds: float) -> Any:
        """Return the answer to a request; an exception is raised.

        Args:
            doing: What it is to do, for errors: `in step`.
            seconds: To wait for the answer.

        Raises:
            WorldError: If there is none in time, or the process ends instead; it cannot be asked again.
        """
        try:
            self._connection.send(request)
            if not self._connection.poll(min(seconds, LONGEST_WAIT)):
                end(self._process, 0.0)
                raise WorldError(
                    f"{self._name} hangs {doing}: it has not returned for {seconds:g} s (step_timeout=)"
                )
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise WorldError(f"{self._name} crashes {doing}: {describe_exit(self._process)}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        end(self._process, LEAVE_SECONDS)


def end(process: BaseProcess, seconds: float) -> None:
    """Wait until a process has ended; kill it, and what it has started, after so many seconds.

    So is one that Ctrl-C no longer lets wait for: Python would wait for it for ever before it ends itself.
    """
    try:
        process.join(max(seconds, 0.0))
    finally:
        if process.is_alive():
            _kill(process)
            process.join()


def _kill(process: BaseProcess) -> None:
    if sys.platform != "win32" and process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # it leads a group once it has left the terminal
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def describe_exit(process: BaseProcess) -> str:
    """Return in words how a process has ended that is about to."""
    process.join(LEAVE_SECONDS)
    status = process.exitcode
    if status is None:
        return "its process no longer answers"
    if status >= 0:
        return f"its process ended with status {status}"
    names = {each.value: each.name for each in signal.Signals}
    return f"its process was ended by {names.get(-status, f'signal {-status}')}"


def leave_the_terminal() -> None:
    """Leave Ctrl-C to the parent of this worker: the engine would end before the parent could say so."""
    if multiprocessing.parent_process() is None:
        return
    if sys.platform == "win32":  # where a process inherits no signals that are ignored
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif os.getsid(0) != os.getpid():
        os.setsid()


def ending_with_parent() -> Callable[[], None] | None:
    """Return what a new process calls first so that it is terminated when its parent is killed.

    None where the system cannot do that: such a process ends by itself.
    """
    if sys.platform != "linux":
        return None
    control = ctypes.CDLL(None).prctl  # found here: a forked process must not load anything
    return lambda: control(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def interrupts_are_for_the_parent() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a process inherits what is ignored."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

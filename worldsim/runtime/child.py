"""Processes for code that may crash or never return: they are watched, and ended where it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from worldsim.errors import WorldError

LEAVE_SECONDS = 2.0
"""That a process is given to end by itself once nobody asks it any more."""


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
            if not self._connection.poll(seconds):
                self._process.kill()
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


def end(process: BaseProcess, seconds: float) -> bool:
    """Wait until a process has ended, and kill it after so many seconds; returns whether it had to be."""
    process.join(max(seconds, 0.0))
    if not (is_late := process.is_alive()):
        return False
    process.kill()
    process.join()
    return is_late


def describe_exit(process: BaseProcess) -> str:
    """Return in words how a process has ended that is about to."""
    process.join(LEAVE_SECONDS)
    status = process.exitcode
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    return f"its process was ended by {signal.Signals(-status).name}"


def leave_the_terminal() -> None:
    """Leave Ctrl-C to the parent of this worker: the engine would end before the parent could say so."""
    is_worker = multiprocessing.parent_process() is not None
    if is_worker and sys.platform != "win32" and os.getsid(0) != os.getpid():
        os.setsid()


@contextmanager
def interrupts_are_for_the_parent() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a process inherits what is ignored."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

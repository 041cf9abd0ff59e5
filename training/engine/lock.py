"""Locks on folders that one process at a time writes into."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from worldsim.errors import WorldError

LOCK_FILE = ".lock"
# Lightning, torchrun and SLURM tell a process which of a run's it is, and of which machine, in one of these.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
NODE_RANKS = ("NODE_RANK", "GROUP_RANK")


def is_first_process() -> bool:
    """Whether this is the process of a run on several devices that locks, cleans up and writes."""
    return not any(_first_number(names) for names in (RANKS, NODE_RANKS))


def lock_folder(folder: Path, name: str = "folder", *, is_new: bool = False) -> FileLock | None:
    """Keep other processes from writing into a folder, for as long as the returned lock is kept.

    It is free again when nothing refers to the lock any more, or the process ends in whatever way. The same
    process may lock a folder more than once. Of the processes of one run the first locks for all.

    Args:
        folder: The folder; created if missing.
        name: What it is called in the error.
        is_new: Whether the folder is not to be there before it is whole; the lock is then beside it.

    Returns:
        The lock; None in a process that is not the first of its run.

    Raises:
        WorldError: If another process has it.
        OSError: If it cannot be written there.
    """
    if not is_first_process():
        return None
    path = folder.with_name(f".{folder.name}{LOCK_FILE}") if is_new else folder / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    lock = FileLock(path, timeout=0, is_singleton=True, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise WorldError(
            f"the {name} {folder} is in use by another process: wait until that has ended, or choose another "
            "folder"
        ) from None
    return lock


@contextmanager
def locked_folder(folder: Path, name: str = "folder", *, is_new: bool = False) -> Iterator[None]:
    """Keep other processes from writing into a folder inside the block; see `lock_folder`.

    The lock's file is gone again afterwards, and so is a folder that was made for it alone.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = lock_folder(folder, name, is_new=is_new)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):  # while it is held: who comes now makes another; Windows keeps it
                Path(lock.lock_file).unlink()
            lock.release()
        for each in made:
            with suppress(OSError):  # something is in it, or it was never there
                each.rmdir()


def wait_for_folder(folder: Path, seconds: float) -> None:
    """Wait until no other process writes into a folder, one that is about to end say; make nothing.

    Raises:
        WorldError: If it is in use for longer than so many seconds.
    """
    until, told = time.monotonic() + seconds, False
    while (folder / LOCK_FILE).exists():
        try:
            lock_folder(folder)
            return
        except WorldError:
            if time.monotonic() > until:
                raise
        if not told:
            print(f"waiting for {folder}, which another process is about to leave", flush=True)
            told = True
        time.sleep(0.2)


def _first_number(names: tuple[str, ...]) -> int:
    given = next((os.environ[name] for name in names if name in os.environ), "0")
    return int(given) if given.isdecimal() else 0

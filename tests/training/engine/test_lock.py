"""One process at a time writes into a folder; a lock ends with its process and leaves nothing of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from training.engine.lock import LOCK_FILE, lock_folder, locked_folder, wait_for_folder
from worldsim.errors import WorldError

HOLD = """\
import pathlib, sys, training.engine.lock
lock = training.engine.lock.lock_folder(pathlib.Path(sys.argv[1]))
print("held", flush=True)
input()
"""


def test_a_folder_of_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(WorldError, match=f"the folder {tmp_path} is in use by another process"):
            lock_folder(tmp_path)
        other.kill()
        other.wait(timeout=10)
    with locked_folder(tmp_path):
        assert (tmp_path / LOCK_FILE).is_file()


def test_one_process_may_lock_a_folder_twice_and_it_is_free_when_both_are_done(tmp_path: Path) -> None:
    first, second = lock_folder(tmp_path), lock_folder(tmp_path)
    assert first is not None and second is not None
    del first
    with pytest.raises(Timeout):
        FileLock(tmp_path / LOCK_FILE, timeout=0).acquire()
    del second
    with FileLock(tmp_path / LOCK_FILE, timeout=0) as lock:
        assert lock.is_locked


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"])
def test_only_the_first_process_of_a_run_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with FileLock(tmp_path / LOCK_FILE):
        assert lock_folder(tmp_path) is None
        monkeypatch.setenv(variable, "0")
        with pytest.raises(WorldError, match="in use"):
            lock_folder(tmp_path)


def test_a_folder_that_was_made_for_a_lock_alone_is_gone_afterwards(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with locked_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "report").touch()
    assert (tmp_path / "a" / "b" / "report").is_file()


def test_a_folder_that_is_not_there_yet_is_locked_beside_it(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "world", is_new=True):
        assert not (tmp_path / "world").exists()
        with pytest.raises(WorldError, match=f"{tmp_path / 'world'} is in use"):
            subprocess_lock(tmp_path / "world")
    assert not list(tmp_path.iterdir())


def subprocess_lock(folder: Path) -> None:
    """Lock a new folder in a process of its own, and raise what it says."""
    code = (
        "import sys, pathlib as p, training.engine.lock as l; l.lock_folder(p.Path(sys.argv[1]), is_new=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise WorldError(done.stderr.strip().splitlines()[-1])


def test_who_waits_for_a_folder_gets_it_when_the_other_process_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for_folder(tmp_path / "none", 0.0)
    assert not (tmp_path / "none").exists(), "nothing is made"
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(WorldError, match="is in use by another process"):
            wait_for_folder(tmp_path, 0.3)
        threading.Timer(0.5, other.kill).start()
        wait_for_folder(tmp_path, 30.0)
        other.wait(timeout=10)
    assert "another process is about to leave" in capsys.readouterr().out

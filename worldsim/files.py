"""Files from elsewhere, read within limits, and files of our own, written completely or not at all."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from worldsim.errors import WorldError

PART_SUFFIX = ".part"
MAX_JSON_BYTES = 64 * 2**20
"""A description is a few kB, and an hour of gameplay at 60 frames a second about 30 MB of lines."""
MAX_INTEGER = 2**63 - 1
LITTER = {"thumbs.db", "desktop.ini"}
"""What Windows leaves beside a user's files; macOS's and Linux's begin with a dot."""


def is_litter(path: Path) -> bool:
    """Return whether a file is an operating system's own: `._NAME`, `.DS_Store`, `Thumbs.db`."""
    return path.name.startswith(".") or path.name.lower() in LITTER


def without_litter(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that are content, sorted."""
    return sorted(path for path in paths if not is_litter(path))


def parse_json(text: str, where: Path | str) -> Any:
    """Return what a JSON text says; every number in it is finite, and every integer fits into 64 bits.

    Args:
        text: The text.
        where: Its file, or its file and line, for errors.

    Raises:
        WorldError: If it is not JSON (NaN and Infinity are not), nested too deep, or a number is too large.
    """
    try:
        return json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise WorldError(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise WorldError(f"{where} is nested too deep") from error
    except ValueError as error:
        raise WorldError(f"{where}: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file of at most `MAX_JSON_BYTES`.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If `parse_json` refuses it, it is not UTF-8, or it is too large.
    """
    return parse_json(read_text(path), path)


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """Read a UTF-8 file of at most `limit` bytes; a byte order mark is left out.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is not UTF-8 or too large.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise WorldError(f"{path} is larger than {limit / 2**20:.3g} MiB, which nothing of its kind is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WorldError(f"{path} is not UTF-8 text: {error}") from error


def check_integer(value: Any, name: str, minimum: int = 0, maximum: int = MAX_INTEGER) -> int:
    """Return a value that is an integer within limits, both included.

    Raises:
        WorldError: If it is anything else; a bool, a text or 2.0 is no integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise WorldError(f"{name} must be an integer from {minimum} to {maximum}, got {_shown(value)}")
    return value


def check_number(value: Any, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """Return a value that is a finite number within limits, both included.

    Raises:
        WorldError: If it is anything else; a bool or a text is no number.
    """
    limits = f" from {minimum:g} to {maximum:g}" if math.isfinite(minimum) or math.isfinite(maximum) else ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max or not minimum <= value <= maximum:
        raise WorldError(f"{name} must be a finite number{limits}, got {_shown(value)}")
    return float(value)


def check_bool(value: Any, name: str) -> bool:
    """Return a value that is true or false.

    Raises:
        WorldError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise WorldError(f"{name} must be true or false, got {_shown(value)}")
    return value


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write instead of `path`, and put it there once it is whole and on the disk.

    The temporary file bears this process's number, so that two processes may write the same file; what a
    killed one left behind is removed. After an error `path` is as it was.

    Raises:
        OSError: If it cannot be written; it names `path`.
    """
    remove_leftovers(path)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is None or Path(error.filename) != part:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, completely or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, completely or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a rename may outrun the contents."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # a system that does not open folders keeps their names itself
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for inner in path.rglob("*") if path.is_dir() else ():
        sync(inner)
    sync(path)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside a file that they were writing with `writing`."""
    prefix = path.name + "."
    for beside in path.parent.iterdir() if path.parent.is_dir() else ():
        number = beside.name.removeprefix(prefix).removesuffix(PART_SUFFIX)
        if beside.name == f"{prefix}{number}{PART_SUFFIX}" and number.isdecimal() and not _runs(int(number)):
            beside.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > MAX_INTEGER:
        raise ValueError(f"the number {_shown(digits)} is too large")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {_shown(digits)} is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: Any) -> str:
    """Return a value as it is shown in an error: whole where it is short."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a huge integer"
    return text if len(text) <= 40 else text[:37] + "..."

"""Files from elsewhere, read within limits, and files of our own, written completely or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from worldsim.errors import WorldError

PART_SUFFIX = ".part"
MAX_JSON_BYTES = 64 * 2**20
"""A description is a few kB, and an hour of gameplay at 60 frames a second about 30 MB of lines."""
MAX_LINES_BYTES, MAX_LINE_BYTES = 2**29, 2**20
"""Of a file of JSON lines, and of one of them: 512 MiB are a day of gameplay at 30 frames a second."""
MAX_INTEGER = 2**63 - 1
MAX_TEXT, MAX_NAME, MAX_NAME_BYTES = 10_000, 100, 200
"""Characters, and bytes: no file system takes a name of more than 255, and other names are made of it."""
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
"""What Windows, macOS, its archives and network drives leave beside a user's files without a dot in front."""
WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)

Record = TypeVar("Record")


def is_litter(path: Path) -> bool:
    """Return whether a file is an operating system's own: `._NAME`, `.DS_Store`, `Thumbs.db`."""
    return path.name.startswith(".") or path.name.lower() in LITTER


def without_litter(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that are content, sorted."""
    return sorted(path for path in paths if not is_litter(path))


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and in folders inside of it that are content, sorted; none without it."""

    def is_content(file: Path) -> bool:
        return file.is_file() and not any(is_litter(Path(part)) for part in file.relative_to(folder).parts)

    return sorted(file for file in folder.rglob("*") if is_content(file))


def parse_json(text: str, where: Path | str) -> Any:
    """Return what a JSON text says; every number in it is finite, and every integer fits into 64 bits.

    Args:
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
    except _NumberError as error:
        raise WorldError(f"{where}: {error}{_key_before(text, error.written)}") from error


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


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file of JSON lines, one at a time: such a file may be long.

    Only a line feed ends a line: a text in JSON may hold what else Unicode breaks lines at.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it, or a line, is too large.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_LINES_BYTES:
            raise WorldError(
                f"{path} is larger than {MAX_LINES_BYTES / 2**20:.3g} MiB: split what it describes"
            )
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise WorldError(f"{path} line {number} is longer than {MAX_LINE_BYTES:,} bytes")
            yield line


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each line of a file of JSON lines is, `PATH line N`, and what it says.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If `parse_json` refuses a line, it is not UTF-8, or `read_lines` refuses the file.
    """
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise WorldError(f"{where} is not UTF-8 text: {error}") from error
        yield where, parse_json(text, where)


def check_integer(value: Any, name: str, minimum: int = 0, maximum: int = MAX_INTEGER) -> int:
    """Return a value that is an integer within limits, both included.

    Raises:
        WorldError: If it is anything else; a bool, a text or 2.0 is no integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        limits = f"from {minimum} to {maximum}"
        if maximum == MAX_INTEGER:
            is_short = not isinstance(value, int) or abs(value) <= MAX_INTEGER
            limits = f"of at least {minimum}" if is_short and minimum > -MAX_INTEGER else "of at most 64 bits"
        raise WorldError(f"{name} must be an integer {limits}, got {shown(value)}")
    return value


def check_number(value: Any, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """Return a value that is a finite number within limits, both included.

    Raises:
        WorldError: If it is anything else; a bool or a text, say.
    """
    limits = f" from {minimum:g} to {maximum:g}" if math.isfinite(minimum) or math.isfinite(maximum) else ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max or not minimum <= value <= maximum:
        raise WorldError(f"{name} must be a finite number{limits}, got {shown(value)}")
    return float(value)


def check_bool(value: Any, name: str) -> bool:
    """Return a value that is true or false.

    Raises:
        WorldError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise WorldError(f"{name} must be true or false, got {shown(value)}")
    return value


def check_text(value: Any, name: str, maximum: int = MAX_TEXT) -> str:
    """Return a value that is a text of so many characters that all can be printed: a terminal obeys others.

    Raises:
        WorldError: If it is anything else.
    """
    if not isinstance(value, str) or len(value) > maximum or not value.isprintable():
        raise WorldError(f"{name} must be printable text of at most {maximum} characters, got {shown(value)}")
    return value


def is_inner_path(text: str) -> bool:
    """Return whether a text is the path of a file inside a folder, with `/` between its parts."""
    path = PurePosixPath(text)
    is_plain = text.isprintable() and "\\" not in text and ":" not in text and len(text) <= MAX_TEXT
    return is_plain and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def plain(value: Any) -> Any:
    """Return a single number of NumPy as Python's own; anything else as it is."""
    is_number = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if is_number else value


def user_path(given: str | Path) -> Path:
    """Return a path as a user gives it, with `~` replaced by their home.

    Raises:
        WorldError: If it cannot be one, or cannot be looked at.
    """
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorldError(f"{shown(str(given))} is no path that can be opened: {reason}") from error
    return path


def printable(text: str) -> str:
    """Return a text with what cannot be printed, or is an order to the terminal, spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def file_name(text: str) -> str:
    """Return a text as the name of a file or folder on every system; most names stay as they are."""
    name = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "-" for c in text)[:MAX_NAME]
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip(". ") or "-"
    return f"-{name}" if name.startswith(".") or WINDOWS_DEVICES.match(name) else name


def read_record(kind: type[Record], data: Any, name: str) -> Record:
    """Build a dataclass of numbers, texts and lists of them from a JSON object, each of the declared type.

    What may be None, `int | None` say, may be null.

    Args:
        kind: The dataclass; ranges are its own to check.

    Raises:
        WorldError: If a field is missing, unknown, or of another type: 2.5 or "3" is no integer.
    """
    if not isinstance(data, dict):
        raise WorldError(f"{name} is not of the expected form, an object, but {shown(data)}")
    types = get_type_hints(kind)
    declared = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    for key in sorted(data.keys() - declared.keys()):
        raise WorldError(f"{name} has no field {shown(key)}; it has {', '.join(declared)}")
    for key, field in declared.items():
        if key not in data and field.default is MISSING and field.default_factory is MISSING:
            raise WorldError(f"{name} has no field {key!r}")
    return kind(**{key: _of_type(types[key], value, f"{name}.{key}") for key, value in data.items()})


def _of_type(kind: Any, value: Any, name: str) -> Any:
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise WorldError(f"{name} is not of the expected form, a list, but {shown(value)}")
        return [_of_type(get_args(kind)[0], item, name) for item in value]
    if NoneType in get_args(kind):
        return None if value is None else _of_type(get_args(kind)[0], value, name)
    checks = {int: _any_integer, float: check_number, bool: check_bool, str: check_text}
    return checks[kind](value, name)


def _any_integer(value: Any, name: str) -> int:
    return check_integer(value, name, -MAX_INTEGER)


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


class _NumberError(ValueError):
    """A number that is none, or too large; `written` is how it stands in the text."""

    def __init__(self, message: str, written: str) -> None:
        super().__init__(message)
        self.written = written


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > MAX_INTEGER:
        raise _NumberError(f"the number {shown(digits)} is too large", digits)
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NumberError(f"the number {shown(digits)} is too large", digits)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _NumberError(f"{name} is not a number of JSON", name)


def _key_before(text: str, written: str) -> str:
    """Return in which field of an object a number stands, where that is easily found."""
    found = re.search(r'"([^"\\\[\]{}]{1,40})"\s*:\s*(?:\[[^"\[\]{}]*)?' + re.escape(written), text)
    return f", in the field {shown(found[1])}" if found else ""


def shown(value: Any, length: int = 40) -> str:
    """Return a value as it is shown in an error: whole where it is short, and nothing a terminal obeys."""
    try:
        text = printable(value) if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return "a huge value"
    return text if len(text) <= length else text[: length - 3] + "..."

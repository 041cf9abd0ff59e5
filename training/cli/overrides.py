"""Settings as they are typed: paths and other texts that Hydra would read as something else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from worldsim.errors import WorldError

SETTING = re.compile(r"(?P<name>(?:\+{1,2})?[\w./-]+)=(?P<value>.*)", re.DOTALL)
QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ITEM = re.compile(rf"\s*({QUOTED}|[^,]*?)\s*(?:,|$)")
MULTIRUN = {"-m", "--multirun"}
SCRIPT = Path(__file__).resolve().parents[2] / "play.py"
"""Beside the packages; installed without a checkout there is none."""


def read_overrides(arguments: Sequence[str], config_class: type) -> list[str]:
    """Quote what is typed for settings that are texts, wherever Hydra would not read it as it stands.

    `world=runs/epoch=3` and `out=runs/a,b` mean what they say, also in a list (`data.train=[...]`) or an
    object of texts; a `~/` before a text is the home folder. What is quoted already stays as it is, and so
    does what is no setting: a group's option, an option of Hydra's own.

    Args:
        arguments: Of the command line.
        config_class: Dataclass of the command's settings.

    Raises:
        WorldError: If an argument cannot be read; it shows what to type.
    """
    return [_read(each, config_class, keeps_sweeps=bool(MULTIRUN & set(arguments))) for each in arguments]


def _read(argument: str, config_class: type, *, keeps_sweeps: bool) -> str:
    found = SETTING.fullmatch(argument)
    if found is None:
        return argument
    name, value = found["name"], found["value"]
    kind = type_of(config_class, name.lstrip("+"))
    read = f"{name}={READERS.get(kind, lambda text: text)(value)}" if kind is not None else argument
    if keeps_sweeps and _parsed(argument) is not None:
        return argument
    if _parsed(read) is None:
        raise WorldError(
            f"{argument} cannot be read: settings read brackets, commas, =, quotes and accents in a way of "
            f"their own; a text that holds some is quoted: {shlex.quote(f'{name}={_example(value, kind)}')}"
        )
    return read


def type_of(config_class: type, name: str) -> Any:
    """Return the type of a setting, without `None`; None if there is no such setting."""
    kind: Any = config_class
    for part in name.split("."):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif is_dataclass(kind) and part in (hints := get_type_hints(kind)):
            kind = hints[part]
        else:
            return None
        if get_origin(kind) in (Union, UnionType):
            kind = next((each for each in get_args(kind) if each is not NoneType), None)
    return kind


def quoted(text: str) -> str:
    """Return a text as a quoted string of Hydra's."""
    mark = "'" if '"' in text else '"'  # shells take the other one better
    escaped = re.sub(rf"(\\*){mark}", lambda found: found[1] * 2 + "\\" + mark, text)
    trailing = escaped[len(escaped.rstrip("\\")) :]
    return f"{mark}{escaped}{trailing}{mark}"


def play_command(world: str | Path) -> str:
    """Return what is typed to play a world; `play.py` by its path, if it is not in the working directory."""
    script = Path("play.py")
    if not script.is_file() and SCRIPT.is_file():
        script = SCRIPT
    return shlex.join(["python", str(script), f"world={world}"])


def _example(value: str, kind: Any) -> str:
    """Return a value with its text in quotes; of an object, where nobody knows what was meant, any."""
    if get_origin(kind) is dict:
        return '{name:"text"}' if get_args(kind)[1] is str else '{name:["text"]}'
    is_list = kind == list[str] and value[:1] + value[-1:] == "[]"
    return f"[{quoted(value[1:-1])}]" if is_list else quoted(value)


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _read_text(text: str) -> str:
    """Return a value of a text setting so that Hydra reads this text."""
    parsed = _parsed(f"name={text}")
    value = None if parsed is None or parsed.is_sweep_override() else parsed._value
    if isinstance(value, QuotedString) or (parsed is not None and text in ("", "null")):
        return text
    if text.startswith("~/"):
        return quoted(str(Path(text).expanduser()))
    return text if isinstance(value, str) and text == text.strip() else quoted(text)


def _read_texts(text: str) -> str:
    """Return a list of texts so that Hydra reads them."""
    if text[:1] + text[-1:] != "[]":
        return text
    items = _items(text[1:-1], _read_text)
    return f"[{','.join(items)}]" if all(items) else text  # `[,]` is no list of nothing


def _read_named(text: str) -> str:
    """Return an object of texts so that Hydra reads them; one that Hydra reads itself may hold anything."""
    if text[:1] + text[-1:] != "{}" or _parsed(f"name={text}") is not None:
        return text

    def read(item: str) -> str:
        key, colon, value = item.partition(":")
        return f"{key}{colon}{_read_text(value.strip())}"

    return f"{{{','.join(_items(text[1:-1], read))}}}"


def _items(text: str, read: Callable[[str], str]) -> list[str]:
    return [read(item) for item in ITEM.findall(text)[: -1 if text else None] if text.strip()]


READERS: dict[Any, Callable[[str], str]] = {str: _read_text, list[str]: _read_texts, Any: _read_named}
"""How a setting of a type is read; those of other types are Hydra's."""

"""The `--help` of a command: its purpose, its settings with their defaults, and the options of its groups."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from training.cli.overrides import quoted

WIDTH, COLUMN = 110, 34
HIDDEN_GROUPS = ("runtime",)
"""Groups that say what Hydra does, not the command."""


def command_help(run: Callable[..., object], name: str, config_class: type, folder: Path) -> str:
    """Return the help of a command.

    Args:
        run: Its function; the docstring of its module says what it does.
        name: Its configuration file, without `.yaml`.
        config_class: Dataclass of its settings.
        folder: Where the configuration files are.
    """
    module = sys.modules[run.__module__]
    text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name)
    told = inspect.cleandoc(module.__doc__ or run.__doc__ or name)
    command = "python play.py" if name == "play" else f"python -m training.{name}"
    groups = "\n".join(_groups(text, folder))
    return "\n\n".join(
        part
        for part in (
            told,
            f"usage: {command} [name=value ...]",
            f"Settings:\n\n{_settings(config, config_class, comments_of(text))}",
            f"Chosen as a whole, group=option:\n\n{groups}" if groups else "",
            "--cfg job prints the settings as they are chosen. What has brackets, spaces, #, & or ; is put\n"
            "in quotes for the shell: 'name=value'.",
        )
        if part
    )


def comments_of(text: str) -> dict[str, str]:
    """Return what the comments of a YAML file say of the settings that follow them, by dotted name.

    A comment of several lines is one text; it belongs to the next line only.
    """
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    waiting: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            waiting.append(stripped.lstrip("# "))
            continue
        if (match := re.match(r"( *)([\w-]+):", line)) is not None:
            indent = len(match[1])
            path = [each for each in path if each[0] < indent] + [(indent, match[2])]
            if waiting:
                found[".".join(name for _, name in path)] = " ".join(waiting)
        waiting = []
    return found


def docs_of(config_class: type) -> dict[str, str]:
    """Return what the docstrings of a dataclass and of those that it extends say of its attributes."""
    found: dict[str, str] = {}
    for each in reversed(config_class.__mro__):
        _, _, listed = inspect.cleandoc(each.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", listed):
            if match := re.match(r"\s*([\w, ]+): (.*)", entry, re.DOTALL):
                found |= dict.fromkeys(re.split(r", ", match[1]), " ".join(match[2].split()))
    return found


def _settings(config: DictConfig, config_class: type, comments: Mapping[str, str]) -> str:
    lines = []
    for name, value, told in _leaves(config, config_class, comments, ""):
        head = f"  {name}={value}"
        shown = textwrap.wrap(told, WIDTH - COLUMN)
        if len(head) >= COLUMN or not shown:
            lines.append(head)
        else:
            lines.append(f"{head:{COLUMN}}{shown.pop(0)}")
        lines += [" " * COLUMN + line for line in shown]
    return "\n".join(lines)


def _leaves(
    config: DictConfig, config_class: type, comments: Mapping[str, str], path: str
) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and description of every setting, at any depth."""
    hints, docs = get_type_hints(config_class), docs_of(config_class)
    for field in fields(config_class):
        name, kind = f"{path}{field.name}", hints[field.name]
        told = comments.get(name) or docs.get(field.name, "")
        if OmegaConf.is_missing(config, field.name):
            yield name, "???", f"(to be given) {told}"
            continue
        value = config[field.name]
        if not is_dataclass(kind) and isinstance(value, DictConfig) and value:
            for number, key in enumerate(value):
                yield f"{name}.{key}", _shown(value[key]), "" if number else told
        elif is_dataclass(kind) and isinstance(value, DictConfig):
            yield from _leaves(value, kind if isinstance(kind, type) else type(kind), comments, f"{name}.")
        else:
            yield name, _shown(value), told


def _shown(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if isinstance(plain, dict):
        return f"{{{','.join(f'{key}:{_shown(inner)}' for key, inner in plain.items())}}}"
    if isinstance(plain, list):
        return f"[{','.join(map(_shown, plain))}]"
    if isinstance(plain, str):
        return plain if re.fullmatch(r"[\w./:-]+", plain) else quoted(plain)
    return "null" if plain is None else str(plain).lower()


def _groups(text: str, folder: Path) -> Iterator[str]:
    data: Any = OmegaConf.to_container(OmegaConf.create(text))
    for entry in data["defaults"]:
        if not isinstance(entry, dict):
            continue
        ((group, chosen),) = entry.items()
        if group in HIDDEN_GROUPS:
            continue
        for path in sorted((folder / group).glob("*.yaml")):
            first = comments_of_file(path)
            mark = " (chosen unless told otherwise)" if path.stem == chosen else ""
            yield from textwrap.wrap(
                f"{group}={path.stem}{mark}  {first}",
                WIDTH,
                initial_indent="  ",
                subsequent_indent=" " * 6,
            )


def comments_of_file(path: Path) -> str:
    """Return what the comment at the beginning of a YAML file says."""
    told = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            told.append(line.lstrip("# "))
    return " ".join(told)

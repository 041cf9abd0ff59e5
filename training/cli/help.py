"""Help of the commands: their settings with default, bounds and meaning, and the options of their groups.

`python -m training.cli.help` prints all of it as a page, docs/settings.md.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from training.cli.overrides import quoted
from worldsim.runtime.config import RuntimeConfig
from worldsim.settings import describe_bounds

WIDTH, COLUMN = 110, 34
RUNTIME = {field.name for field in fields(RuntimeConfig)}
HIDDEN_GROUPS = ("runtime",)
"""Groups that say what Hydra does, not the command."""
PAGE_TOP = """# Settings

Settings of all commands, typed as `name=value`. Each has its default, bounds and meaning in a dataclass;
the files in `conf/` hold what differs from it. `--help` prints those of one command, `--cfg job` prints them
as chosen. This page is made by `python -m training.cli.help > docs/settings.md`.

<!-- begin of what is made -->"""


def command_help(run: Callable[..., object], name: str, config_class: type, folder: Path) -> str:
    """Return the help of a command.

    Args:
        run: Its function; the docstring of its module says what it does.
        name: Its configuration file, without `.yaml`.
        config_class: Dataclass of its settings.
        folder: Where the configuration files are.
    """
    told = inspect.cleandoc(sys.modules[run.__module__].__doc__ or run.__doc__ or name)
    settings = [_columns(*leaf) for leaf in leaves(composed(name, folder), config_class)]
    options = [
        textwrap.fill(f"  {option}  {purpose}", WIDTH, subsequent_indent=" " * 6)
        for option, purpose in group_options(name, folder)
    ]
    parts = [told, f"usage: {usage(name)} [name=value ...]", "Settings:", "\n".join(settings)]
    parts += ["Chosen as a whole, group=option:", "\n".join(options)] if options else []
    parts += [
        "--cfg job prints the settings as they are chosen. What has brackets, spaces, #, & or ; is put\n"
        "in quotes for the shell: 'name=value'."
    ]
    return "\n\n".join(parts)


def settings_page(folder: Path) -> str:
    """Return a Markdown page of all settings; those that several commands share are described once."""
    shared: list[type] = []
    parts = [PAGE_TOP]
    for name in sorted(path.stem for path in folder.glob("*.yaml")):
        command = importlib.import_module("play" if name == "play" else f"training.{name}").main
        parts += [f"## {usage(name)}", _bullets(composed(name, folder), command.config_class, shared)]
        if options := [f"`{option}`: {purpose}" for option, purpose in group_options(name, folder)]:
            parts += ["Chosen as a whole, `group=option`:", "\n".join(map(_bullet, options))]
    for kind in shared:  # grows by those that these share
        parts += [f"## {kind.__name__}", textwrap.fill(inspect.cleandoc(kind.__doc__ or ""), WIDTH)]
        parts += [_bullets(OmegaConf.structured(kind), kind, shared)]
    return "\n\n".join([*parts, "<!-- end -->"])


def composed(name: str, folder: Path) -> DictConfig:
    """Return the settings of a command where none are given."""
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name)


def usage(name: str) -> str:
    """Return how a command is called."""
    return "python play.py" if name == "play" else f"python -m training.{name}"


def leaves(config: DictConfig, config_class: type, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield name, default and meaning of every setting, also of those inside of others."""
    hints = get_type_hints(config_class)
    for field in ordered_fields(config_class):
        name, kind, told = f"{path}{field.name}", hints[field.name], _told(field)
        if OmegaConf.is_missing(config, field.name):
            yield name, "???", f"(to be given) {told}"
            continue
        value = config[field.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from leaves(value, kind, f"{name}.")
        elif isinstance(value, DictConfig) and value:
            for number, key in enumerate(value):
                yield f"{name}.{key}", _shown(value[key]), "" if number else told
        else:
            yield name, _shown(value), told


def ordered_fields(config_class: type) -> list[Field[Any]]:
    """Return the fields of a class, last those that say how worlds are computed: what is done comes first."""
    return sorted(fields(config_class), key=lambda field: field.name in RUNTIME)


def group_options(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the options of a command's groups, `group=option`, and what their files say at the beginning."""
    config = OmegaConf.load(folder / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    for entry in config["defaults"]:
        if not isinstance(entry, DictConfig):
            continue
        ((group, chosen),) = entry.items()
        if group not in HIDDEN_GROUPS:
            for path in sorted((folder / str(group)).glob("*.yaml")):
                mark = " (chosen unless told otherwise)" if path.stem == chosen else ""
                yield f"{group}={path.stem}{mark}", _first_comment(path)


def _told(field: Field[Any]) -> str:
    meaning, bounds = field.metadata.get("meaning", ""), describe_bounds(field)
    choices = field.metadata.get("choices", ())
    is_told = not bounds or (choices and all(str(choice) in meaning for choice in choices))
    return meaning if is_told else f"{meaning} ({bounds})"


def _columns(name: str, value: str, told: str) -> str:
    head = f"  {name}={value}"
    shown = textwrap.wrap(told, WIDTH - COLUMN)
    first = f"{head:{COLUMN}}{shown.pop(0)}" if len(head) < COLUMN and shown else head
    return "\n".join([first, *(" " * COLUMN + line for line in shown)])


def _bullets(config: DictConfig, config_class: type, shared: list[type]) -> str:
    """Return a list of the settings of a class; classes inside of it are named, and put into `shared`."""
    found = list(leaves(config, config_class))
    hints, lines = get_type_hints(config_class), []
    for field in ordered_fields(config_class):
        kind, told = hints[field.name], _told(field)
        inner = [leaf for leaf in found if leaf[0].startswith(f"{field.name}.")]
        is_class = isinstance(kind, type) and is_dataclass(kind)
        if is_class:
            shared += [] if kind in shared else [kind]
            usual = set(leaves(OmegaConf.structured(kind), kind, f"{field.name}."))
            inner = [leaf for leaf in inner if leaf not in usual]
            told += f" See [{kind.__name__}](#{kind.__name__.lower()})" + ("; here:" if inner else ".")
        if inner or is_class:
            settings = ", ".join(f"`{name}={value}`" for name, value, _ in inner)
            lines.append(f"`{field.name}.*`: {told} {settings}")
        else:
            lines += [f"`{name}={value}`: {told}" for name, value, told in found if name == field.name]
    return "\n".join(map(_bullet, lines))


def _bullet(text: str) -> str:
    return textwrap.fill(
        f"- {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def _shown(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if isinstance(plain, dict):
        return f"{{{','.join(f'{key}:{_shown(inner)}' for key, inner in plain.items())}}}"
    if isinstance(plain, list):
        return f"[{','.join(map(_shown, plain))}]"
    if isinstance(plain, str):
        return plain if re.fullmatch(r"[\w./:-]+", plain) else quoted(plain)
    return "null" if plain is None else str(plain).lower()


def _first_comment(path: Path) -> str:
    """Return what the comment at the beginning of a YAML file says."""
    told = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            told.append(line.lstrip("# "))
    return " ".join(told)


if __name__ == "__main__":
    print(settings_page(Path(__file__).resolve().parents[2] / "conf"))

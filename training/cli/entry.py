"""Start of every command: Hydra at the door, typed settings behind it, one sentence on failure."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training.cli.overrides import read_overrides
from worldsim.errors import WorldError
from worldsim.runtime.interrupt import Stopped, raising_interrupt
from worldsim.storage.files import MAX_INTEGER, check_integer, check_number, printable

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "conf"
CONFIG_ERRORS = (HydraException, OmegaConfBaseException)
# What a person can put right. Anything else is a fault of the program and keeps its traceback.
USER_ERRORS = (ValueError, OSError, OmegaConfBaseException)
FULL_ERROR = "HYDRA_FULL_ERROR"
HELP = {"-h", "--help"}
STOPPED_BY = {"SIGTERM": "terminated", "SIGHUP": "the terminal is gone"}
"""What is said of a signal that ended a command; "interrupted" of all others."""

Config = TypeVar("Config")


class Command(Generic[Config]):
    """A function of a typed configuration, callable as a command: it reads `sys.argv`.

    Attributes:
        run: The function itself.
        config_name: The configuration file, without `.yaml`.
        config_class: The class of the configuration.
    """

    def __init__(self, run: Callable[[Config], None], config_name: str, config_class: type[Config]) -> None:
        self.run = run
        self.config_name = config_name
        self.config_class = config_class
        ConfigStore.instance().store(name=f"{config_name}_schema", node=config_class)

    def __call__(self) -> None:
        """Parse, convert, run; exit with 1 and one sentence if the user can put it right."""
        if HELP & set(sys.argv[1:]):
            from training.cli.help import command_help  # what only help needs

            told = command_help(self.run, self.config_name, self.config_class, CONFIG_FOLDER)
            _exit_on_error(lambda: print(told), USER_ERRORS)  # `--help | head` reads the beginning alone
            return

        def task(config: DictConfig) -> None:
            if not wants_traceback:  # other processes of a run inherit it, and are to say what this one says
                del os.environ[FULL_ERROR]
            try:
                # Leaving by SystemExit keeps Hydra from printing its own report of the same error.
                _exit_on_error(lambda: self.run(self.convert(config)), () if wants_traceback else USER_ERRORS)
            finally:
                os.environ[FULL_ERROR] = "1"

        command = hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=self.config_name)
        wants_traceback = os.environ.get(FULL_ERROR) == "1"
        given = sys.argv[1:]
        os.environ[FULL_ERROR] = "1"  # Hydra then raises its errors instead of printing them at length
        try:
            with raising_interrupt():
                _exit_on_error(self.read_arguments, () if wants_traceback else USER_ERRORS)
                # Hydra itself writes, too: what `--cfg job` prints, and its folders.
                _exit_on_error(command(task), () if wants_traceback else (*CONFIG_ERRORS, OSError))
        finally:
            sys.argv[1:] = given
            if not wants_traceback:
                del os.environ[FULL_ERROR]

    def read_arguments(self) -> None:
        """Let Hydra find in `sys.argv` what was meant; see `read_overrides`."""
        sys.argv[1:] = read_overrides(sys.argv[1:], self.config_class)

    def convert(self, config: DictConfig) -> Config:
        """Return the composed configuration as the dataclass it started from.

        Raises:
            WorldError: If a key was added (`+key=value`) that nobody reads, or a number is NaN, infinite or
                of more than 64 bits.
        """
        refuse_unknown_keys(config)
        check_numbers(OmegaConf.to_container(config, resolve=True))
        converted = OmegaConf.to_object(config)
        assert isinstance(converted, self.config_class), f"conf/{self.config_name}.yaml lacks its schema"
        return converted


def entry(name: str, config_class: type[Config]) -> Callable[[Callable[[Config], None]], Command[Config]]:
    """Make a command out of a function of a typed configuration.

    Registers `config_class` as the schema `NAME_schema`, which `conf/NAME.yaml` starts from. The command
    exits with 0; with 1 and one sentence on stderr for an error of the user's; with 130 after Ctrl-C, 143
    when it was terminated, 129 when its terminal is gone. With `HYDRA_FULL_ERROR=1` in the environment errors
    keep their tracebacks.

    Args:
        name: The configuration file, without `.yaml`.
        config_class: Dataclass of the configuration.
    """
    return lambda function: Command(function, name, config_class)


def refuse_unknown_keys(config: DictConfig, path: str = "") -> None:
    """Raise `WorldError` if a node holds a key that its dataclass does not have, at any depth."""
    node_class = OmegaConf.get_type(config)
    known = {field.name for field in fields(node_class)} if is_dataclass(node_class) else None
    for key in config:
        if known is not None and key not in known:
            raise WorldError(f"there is no setting '{path}{key}' (--cfg job lists every setting)")
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            refuse_unknown_keys(config[key], f"{path}{key}.")


def check_numbers(values: Any, path: str = "") -> None:
    """Raise `WorldError` if one of some settings, at any depth, is NaN, infinite, or has over 64 bits."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            check_numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, float):
        check_number(values, path)
    elif isinstance(values, int) and not isinstance(values, bool):
        check_integer(values, path, -MAX_INTEGER)


def describe_error(error: BaseException) -> str:
    """Return one line that says what is wrong."""
    if isinstance(error, CONFIG_ERRORS):
        reasons = [_first_line(error)]
        if unknown := re.fullmatch(r"Could not override '(.+)'(\. No match.*)?", reasons[0]):
            name, inner = unknown[1], re.search(r"Key '([^']+)' is not in struct", str(error.__cause__))
            name += f".{inner[1]}" if inner and not name.endswith(inner[1]) else ""
            return f"there is no setting '{name}' (--cfg job lists every setting)"
        if error.__cause__ is not None:
            reasons.append(_first_line(error.__cause__))
        return f"{': '.join(reasons)} (--cfg job lists every setting)"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename2 or error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def _exit_on_error(run: Callable[[], Any], errors: tuple[type[BaseException], ...]) -> None:
    try:
        run()
        sys.stdout.flush()  # at exit, Python would only complain that nobody reads it any more
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        _say(f"\n{STOPPED_BY.get(signal.Signals(number).name, 'interrupted')}")
        sys.exit(128 + number)
    except errors as error:
        _say(f"error: {printable(describe_error(error))}")
        sys.exit(1)


def _say(sentence: str) -> None:
    with suppress(OSError):  # the terminal may be what has gone
        print(sentence, file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".:")

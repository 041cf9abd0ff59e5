"""Every file in `conf/` composes, becomes its typed configuration, and refuses a key that nobody reads.

An entry point is a module of `training/`, or `play.py`, whose `main` was decorated with
`training.cli.entry.entry`: the decorator leaves `config_name` and `config_class` on it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from play import PlayConfig
from training.agents.settings import RLConfig
from training.cli.entry import _exit_on_error, entry
from training.cli.help import settings_page
from training.collect import CollectConfig
from training.data.latents import DataConfig
from worldsim.errors import WorldError

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


def entry_points() -> dict[str, type]:
    """Return the configuration class of every entry point, by the name of its configuration."""
    files = [path.stem for path in sorted((ROOT / "training").glob("*.py")) if path.stem != "__init__"]
    folders = [path.parent.name for path in sorted((ROOT / "training").glob("*/__main__.py"))]
    modules = [f"training.{name}" for name in (*files, *folders)]
    found = {}
    for module in [*modules, "play"]:
        main = getattr(importlib.import_module(module), "main", None)
        if hasattr(main, "config_name"):
            found[main.config_name] = main.config_class
    return found


@pytest.fixture(scope="module")
def entries() -> dict[str, type]:
    found = entry_points()
    assert found, "no entry point was found in training/ or play.py"
    return found


@contextmanager
def hydra_at_conf() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(name: str, *overrides: str) -> DictConfig:
    with hydra_at_conf():
        return compose(name, overrides=list(overrides))


def converted(name: str, *overrides: str) -> Any:
    """Compose and convert as an entry point does, giving what the user has to give (`???`)."""
    config = composed(name, *overrides)
    for key in sorted(OmegaConf.missing_keys(config)):
        OmegaConf.update(config, key, "given_by_the_user")
    return OmegaConf.to_object(config)


@cache
def missing_settings(name: str) -> list[str]:
    """Return what the user has to give to the configuration `name`."""
    return sorted(OmegaConf.missing_keys(composed(name)))


def group_options() -> Iterator[tuple[str, str]]:
    """Yield group and option of every YAML below `conf/`, for example `("experiment", "smoke")`."""
    for path in sorted(CONF.rglob("*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        if group != ".":
            yield group, path.stem


@cache
def chosen_groups(name: str) -> set[str]:
    """Return the groups that the configuration `name` lists in its defaults, at any depth."""
    with hydra_at_conf():
        choices = compose(name, return_hydra_config=True).hydra.runtime.choices
    return {str(group).partition("@")[0] for group in choices}


def test_every_top_level_file_is_the_configuration_of_an_entry_point(entries: dict[str, type]) -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(entries)


def test_every_entry_point_composes_and_converts(entries: dict[str, type]) -> None:
    for name, config_class in entries.items():
        assert is_dataclass(config_class), f"{config_class} of {name} is not a dataclass"
        assert isinstance(converted(name), config_class), f"conf/{name}.yaml does not start from its schema"


def test_every_option_composes_where_its_group_is_chosen(entries: dict[str, type]) -> None:
    problems = []
    for name in entries:
        groups = chosen_groups(name)
        for group, option in group_options():
            if group in groups:
                problems += failure(name, f"{group}={option}")
    assert not problems, "\n".join(problems)


def test_no_group_hides_a_setting_of_its_name(entries: dict[str, type]) -> None:
    """Hydra takes `frames=given` for an option if there is a group `frames`, also of another command."""
    groups = {group for group, _ in group_options()}
    hidden = [
        f"{name} {setting.name}"
        for name, config_class in entries.items()
        for setting in fields(config_class)
        if setting.name in groups - chosen_groups(name)
    ]
    assert not hidden, f"a group of the same name hides {', '.join(hidden)}"


def test_every_other_option_can_be_added_to_an_entry_point(entries: dict[str, type]) -> None:
    """An experiment belongs to no configuration's defaults: it is added, `+experiment=smoke`."""
    chosen = set().union(*(chosen_groups(name) for name in entries))
    problems = []
    for group, option in group_options():
        if group not in chosen:
            failures = [failure(name, f"+{group}={option}") for name in entries]
            if all(failures):
                problems.append(f"conf/{group}/{option}.yaml fits no entry point:")
                problems += [f"  {line}" for lines in failures for line in lines]
    assert not problems, "\n".join(problems)


def test_an_experiment_has_the_final_word_over_the_file_it_is_chosen_in() -> None:
    config = composed("pretrain", "experiment=smoke")
    assert (config.out, config.loop.num_steps, config.batch_size) == ("runs/smoke", 50, 2)
    assert composed("pretrain", "experiment=smoke", "batch_size=3").batch_size == 3


def failure(name: str, override: str) -> list[str]:
    """Return what is wrong with `override` for the entry point `name`, nothing if it converts."""
    try:
        converted(name, override)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        return [f"{name} {override}: {type(error).__name__}: {error}"]
    return []


def values_of(path: Path) -> dict[str, Any]:
    """Return what a file of `conf/` sets, flat, by the names of the settings."""
    text = path.read_text(encoding="utf-8")
    loaded = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(loaded, dict)
    loaded.pop("defaults", None)
    group = path.parent.relative_to(CONF).as_posix()
    is_global = group == "." or text.startswith("# @package _global_")
    return flat(loaded if is_global else {group: loaded})


def flat(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    prefix = f"{path}." if path else ""
    return {key: value for name in values for key, value in flat(values[name], f"{prefix}{name}").items()}


def defaults_of(config_class: type) -> dict[str, Any]:
    return flat(OmegaConf.to_container(OmegaConf.structured(config_class)))


def test_no_file_repeats_a_default_of_the_dataclass(entries: dict[str, type]) -> None:
    doubled = []
    for name, config_class in entries.items():
        defaults, own = defaults_of(config_class), values_of(CONF / f"{name}.yaml")
        files = [
            CONF / group / f"{option}.yaml"
            for group, option in group_options()
            if group in chosen_groups(name)
        ]
        for path in [CONF / f"{name}.yaml", *files]:
            others = {} if path.parent == CONF else own  # what an option sets back is no repetition
            doubled += [
                f"{path.relative_to(ROOT)}: {key}={value} is the default of {config_class.__name__}"
                for key, value in values_of(path).items()
                if key in defaults and defaults[key] == value and key not in others
            ]
    assert not doubled, "\n".join(sorted(set(doubled)))


def test_every_setting_has_a_meaning(entries: dict[str, type]) -> None:
    def missing(config_class: type, path: str) -> Iterator[str]:
        hints = get_type_hints(config_class)
        for field in fields(config_class):
            if not field.metadata.get("meaning"):
                yield f"{path}{field.name}"
            if is_dataclass(kind := hints[field.name]):
                yield from missing(kind, f"{path}{field.name}.")

    assert not [f"{name}: {each}" for name, kind in entries.items() for each in missing(kind, "")]


def test_the_page_of_settings_is_the_one_that_the_dataclasses_make() -> None:
    GlobalHydra.instance().clear()
    told = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert told == f"{settings_page(CONF)}\n", "python -m training.cli.help > docs/settings.md"


def test_no_two_classes_share_a_heading_on_the_page_of_settings() -> None:
    """Whoever follows a link to a class finds the first of its name."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    assert len(headings) > 40
    assert sorted(set(headings)) == sorted(headings)


@pytest.mark.parametrize("override", ["no_such_key=1", "+no_such_key=1"])
def test_unknown_key_ends_every_command_in_one_sentence(
    entries: dict[str, type],
    override: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the door that every command uses, with nothing behind it."""
    monkeypatch.chdir(tmp_path)
    for name, config_class in entries.items():
        given = [f"{key}=given_by_the_user" for key in missing_settings(name)]
        quiet = [f"hydra.run.dir={tmp_path}", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
        monkeypatch.setattr("sys.argv", [name, override, *given, *quiet])
        ran: list[Any] = []
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as stop:
            entry(name, config_class)(ran.append)()
        error = capsys.readouterr().err
        assert stop.value.code == 1, f"{name} {override} did not fail"
        assert not ran, f"{name} {override} ran"
        assert error.startswith("error: "), error
        assert "no_such_key" in error, error
        assert error.count("\n") == 1, error


def test_an_error_gives_no_orders_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise WorldError("a\x1b[2J\u202eb\udcff is wrong")

    with pytest.raises(SystemExit):
        _exit_on_error(fail, (WorldError,))
    assert capsys.readouterr().err == "error: a\\x1b[2J\\u202eb\\udcff is wrong\n"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (lambda: PlayConfig(threads=10**6), "threads"),
        (lambda: RLConfig(threads=10**6), "threads"),
        (lambda: RLConfig(num_workers=10**6), "num_workers"),
        (lambda: RLConfig(env="real", num_envs=10**6), "num_envs"),
        (lambda: RLConfig(num_envs=10**9), "num_envs"),
        (lambda: CollectConfig(num_workers=10**6), "num_workers"),
        (lambda: DataConfig(train=[], heldout=[], num_workers=10**6), "num_workers"),
    ],
)
def test_a_million_threads_or_processes_are_refused_with_the_settings(
    settings: Callable[[], object], name: str
) -> None:
    with pytest.raises(WorldError, match=f"{name} must be at most"):
        settings()

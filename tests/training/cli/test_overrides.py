"""Paths and other texts are read as they were typed; what cannot be read shows what to type."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from training.cli.overrides import SCRIPT, play_command, quoted, read_overrides, type_of
from training.world.train import next_command
from worldsim.errors import WorldError
from worldsim.model.config import MemoryKeys


@dataclass(kw_only=True, slots=True)
class Inner:
    train: list[str] = field(default_factory=list)
    count: int = 0


@dataclass(kw_only=True, slots=True)
class Outer:
    world: str | None = None
    out: str = "runs"
    worlds: Any = None
    data: Inner = field(default_factory=Inner)
    keys: dict[str, list[str]] = field(default_factory=dict)


def read(argument: str) -> Any:
    """Return the value that Hydra finds in an argument."""
    (given,) = read_overrides([argument], Outer)
    override = OverridesParser.create().parse_override(given)
    assert not override.is_sweep_override()
    return override.value()


TEXTS = [
    *("/home/j\N{LATIN SMALL LETTER U WITH DIAERESIS}rgen", "\N{CJK UNIFIED IDEOGRAPH-65E5}", "epoch=3", "="),
    *("a,b", "run(1)", "a b", "a b ", "[a]", "{a}", "C:\\worlds\\", "x:y", "a@b", "$HOME", "-", "a%b"),
    *("it's", 'say "it"', 'it\'s "it"', "a\\'b", "#1", "a;b", "a&b", "a!", "~user"),
    *("1e3", "007", "true", "nan", "2026"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_read_as_it_was_typed(text: str) -> None:
    assert read(f"world={text}") == text
    assert read(f"out={text}") == text


@pytest.mark.parametrize("text", [text for text in TEXTS if not set(text) & set(",'\" \\")])
def test_a_text_in_a_list_is_read_as_it_was_typed(text: str) -> None:
    assert read(f"data.train=[b,{text}, c]") == ["b", text, "c"]


@pytest.mark.parametrize("text", ["'", "''", "\\'", "\\\\'\"", "\\", "a\\\\"])
def test_what_is_quoted_is_read_back(text: str) -> None:
    assert OverridesParser.create().parse_override(f"a={quoted(text)}").value() == text


def test_what_is_quoted_already_is_left_alone() -> None:
    for argument in (
        "world='a,b'",
        'world="a=b"',
        "world=",
        "world=null",
        "world=a\\,b",
        "data.train=['a,b']",
    ):
        assert read_overrides([argument], Outer) == [argument]


def test_paths_in_lists_and_objects_are_read_as_they_were_typed() -> None:
    assert read("data.train=[runs/epoch=3, 'a,b' ,run(1)]") == ["runs/epoch=3", "a,b", "run(1)"]
    assert read("worlds={a:runs/epoch=3,from nothing:x}") == {"a": "runs/epoch=3", "from nothing": "x"}
    assert read("data.train=[]") == []


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read("world=~/worlds/one") == "/home/me/worlds/one"
    assert read("data.train=[~/data]") == ["/home/me/data"]


def test_what_is_no_text_is_hydras() -> None:
    others = ["data.count=3", "experiment=smoke", "--cfg", "job", "~data", "word", "data.count=1,2"]
    assert read_overrides(others, Outer) == others
    assert read_overrides(["-m", "out=a,b"], Outer) == ["-m", "out=a,b"]
    assert type_of(Outer, "data.nothing") is None and type_of(Outer, "out.x") is None


def test_what_cannot_be_read_shows_what_to_type() -> None:
    with pytest.raises(WorldError, match=r"""a text that holds some is quoted: '\+new="a=b"'$"""):
        read_overrides(["+new=a=b"], Outer)


@pytest.mark.parametrize(
    ("argument", "typed"),
    [
        ("keys.step=[,]", """'keys.step=[","]'"""),
        ("data.train=[a,,b]", """'data.train=["a,,b"]'"""),
        ("keys={step:[=]}", """'keys={name:["text"]}'"""),
    ],
)
def test_what_to_type_is_of_the_settings_type(argument: str, typed: str) -> None:
    with pytest.raises(WorldError) as error:
        read_overrides([argument], Outer)
    assert str(error.value).endswith(f"is quoted: {typed}")
    if "name" not in typed:
        assert isinstance(read(shlex.split(typed)[0]), list)


def test_keys_in_lists_are_read_as_they_were_typed() -> None:
    eacute = "\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert read(f"keys.step=[{eacute},=,;]") == [eacute, "=", ";"]


def test_a_world_is_played_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed can be typed where it was printed, whether that is the checkout or not."""
    monkeypatch.chdir(SCRIPT.parent)
    assert play_command("runs/a/world") == "python play.py world=runs/a/world"
    monkeypatch.chdir(tmp_path)
    name, script, world = shlex.split(play_command(Path("my runs/world")))
    assert (name, world) == ("python", "world=my runs/world")
    assert Path(script).is_file() and Path(script).name == "play.py"


@pytest.mark.parametrize("odometry", [None, "trained"])
def test_what_is_typed_next_names_the_world_as_one_argument(odometry: str | None) -> None:
    config = SimpleNamespace(denoiser=SimpleNamespace(memory_keys=MemoryKeys.POSE))
    world: Any = SimpleNamespace(config=config, odometry=odometry)
    typed = shlex.split(next_command(world, Path("my runs/world")))
    assert typed[-1] == "world=my runs/world" and ("training.odometry" in typed) == (odometry is None)

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from worldsim.errors import WorldError
from worldsim.storage import files


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deep"),
        ("NaN", "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ("1" + "0" * 400, "too large"),
        ("9" * 5000, "too large"),
        (str(2**63), "too large"),
        ("1e999", "too large"),
        ("{'a': 1}", "is not JSON"),
    ],
)
def test_json_that_python_would_take_and_nobody_else_is_refused_by_name(text, reason):
    with pytest.raises(WorldError, match=f"a.json.*{reason}"):
        files.parse_json(text, "a.json")


def test_json_of_ordinary_numbers_is_read_as_it_is():
    assert files.parse_json('{"a": [1, -2.5, true, null, 9223372036854775807]}', "a.json") == {
        "a": [1, -2.5, True, None, 2**63 - 1]
    }


def test_a_file_that_is_too_large_or_no_text_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(WorldError, match=r"a.json is not UTF-8"):
        files.read_json(path)
    path.write_text("[1, 2, 3]")
    with pytest.raises(WorldError, match=r"a.json is larger than"):
        files.read_text(path, limit=8)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert files.read_json(path) == {}


def test_files_below_a_folder_are_listed_without_those_of_operating_systems(tmp_path):
    for name in ("b", "in/a", ".git/c", "in/.DS_Store", "Thumbs.db", "in/._a", "@eaDir/b", "in/Icon\r"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert files.files_below(tmp_path) == [tmp_path / "b", tmp_path / "in/a"]
    assert files.files_below(tmp_path / "gone") == []


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"a\u2028\x85b"\r\n2\n', encoding="utf-8")
    assert list(files.read_json_lines(path)) == [(f"{path} line 1", "a\u2028\x85b"), (f"{path} line 2", 2)]


def test_what_is_wrong_in_json_lines_is_named_with_its_line(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    for line, reason in ((b"[", "is not JSON"), (b'"\xff"', "is not UTF-8"), (b"NaN", "NaN is not a number")):
        path.write_bytes(b"1\n" + line + b"\n")
        with pytest.raises(WorldError, match=f"a.jsonl line 2.*{reason}"):
            list(files.read_json_lines(path))
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    path.write_text("1\n" + "2" * 11)
    with pytest.raises(WorldError, match=r"a.jsonl line 2 is longer than 10 bytes"):
        list(files.read_lines(path))
    monkeypatch.setattr(files, "MAX_LINES_BYTES", 12)
    with pytest.raises(WorldError, match=r"a.jsonl is larger than"):
        list(files.read_lines(path))


@pytest.mark.parametrize("value", [True, "3", 3.0, -1, 11, None, 10**400])
def test_what_is_no_integer_within_limits_is_refused_by_name(value):
    with pytest.raises(WorldError, match="seed must be an integer from 0 to 10, got"):
        files.check_integer(value, "seed", maximum=10)


def test_limits_of_integers_are_said_as_people_say_them():
    with pytest.raises(WorldError, match="n must be an integer of at least 1, got 0"):
        files.check_integer(0, "n", 1)
    with pytest.raises(WorldError, match="n must be an integer of at most 64 bits, got 1000"):
        files.check_integer(10**30, "n", 1)


@pytest.mark.parametrize("value", [True, "3", float("nan"), float("inf"), 10**400, -1.0, None])
def test_what_is_no_finite_number_within_limits_is_refused_by_name(value):
    with pytest.raises(WorldError, match="rate must be a finite number from 0 to 9, got"):
        files.check_number(value, "rate", 0, 9)


def test_numbers_within_limits_are_returned():
    assert files.check_integer(10, "n", maximum=10) == 10
    assert files.check_number(3, "n") == 3.0
    assert files.check_bool(False, "n") is False
    with pytest.raises(WorldError, match="n must be true or false, got false"):
        files.check_bool("false", "n")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.writing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_written_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files, "sync", lambda path: calls.append((path.name, (tmp_path / "a").exists())))
    files.write_text(tmp_path / "a", "new")
    assert calls == [(f"a.{os.getpid()}.part", False), (tmp_path.name, True)]
    assert (tmp_path / "a").read_text() == "new"


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_kept(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead, alive = tmp_path / f"a.{done.pid}.part", tmp_path / f"a.{os.getppid()}.part"
    other = tmp_path / f"a.b.{done.pid}.part"
    for path in (dead, alive, other):
        path.write_text("half")
    files.write_text(tmp_path / "a", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", alive.name, other.name])


def test_an_error_of_the_disk_names_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(OSError, match="No such file") as raised:
        files.write_text(tmp_path / "none" / "a", "new")
    assert raised.value.filename == str(tmp_path / "none" / "a")


def test_files_of_operating_systems_are_no_content(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "._a.jsonl", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_text("")
    assert [p.name for p in files.without_litter(tmp_path.iterdir())] == ["a.jsonl", "b.jsonl"]


@dataclass(kw_only=True)
class Shape:
    width: int
    rates: list[float] = field(default_factory=list)
    name: str = ""
    is_round: bool = False


def test_a_record_is_read_with_the_types_it_declares():
    data = {"width": 3, "rates": [1, 2.5], "name": "a", "is_round": True}
    assert files.read_record(Shape, data, "shape") == Shape(
        width=3, rates=[1.0, 2.5], name="a", is_round=True
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "shape is not of the expected form, an object"),
        ({}, "shape has no field 'width'"),
        ({"width": 1, "depth": 2, "\x1b": 1}, r"shape has no field \\x1b; it has width, rates"),
        ({"width": 2.5}, "shape.width must be an integer"),
        ({"width": "3"}, "shape.width must be an integer"),
        ({"width": True}, "shape.width must be an integer"),
        ({"width": 1, "rates": 5}, "shape.rates is not of the expected form, a list"),
        ({"width": 1, "rates": ["5"]}, "shape.rates must be a finite number"),
        ({"width": 1, "name": "a\x1b[2J"}, r"shape.name must be printable text.*got a\\x1b\[2J"),
        ({"width": 1, "is_round": 1}, "shape.is_round must be true or false"),
    ],
)
def test_a_record_with_another_field_or_type_is_refused_by_name(data, message):
    with pytest.raises(WorldError, match=message):
        files.read_record(Shape, data, "shape")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("doom-rooms", "doom-rooms"),
        ("Die R\u00e4ume", "Die R\u00e4ume"),
        ("my/other", "my-other"),
        ("../../escaped", "-..-..-escaped"),
        ("..", "-"),
        ("", "-"),
        (".hidden", "-.hidden"),
        ("a\x00b\x1b[2Jc\n", "a-b-[2Jc-"),
        ("C:\\a", "C--a"),
        ("NUL", "-NUL"),
        ("com1.txt", "-com1.txt"),
        ("a. ", "a"),
        ("x" * 300, "x" * 100),
    ],
)
def test_any_text_becomes_the_name_of_a_file(tmp_path, text, name):
    assert files.file_name(text) == name
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["", "/a", "../a", "a/../../b", "a\\b", "C:a", "a\x00", "a\n", "x" * 20_000])
def test_a_path_that_leads_out_of_a_folder_is_told(text):
    assert not files.is_inner_path(text)
    assert files.is_inner_path("starts/start-01.mp4")


def test_a_huge_number_is_shown_with_its_field():
    with pytest.raises(WorldError, match="a.json: the number 1000.* is too large, in the field rate"):
        files.parse_json('{"b": 1, "rate": [2, 1' + "0" * 400 + "]}", "a.json")

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from worldsim import evaluation
from worldsim.data.video import read_video
from worldsim.errors import WorldError
from worldsim.evaluation.quality.rollouts import Example, FrameScores, summarize_rollouts
from worldsim.evaluation.report.pictures import write_curve, write_filmstrip, write_video
from worldsim.evaluation.report.report import Report, as_json, write_json
from worldsim.evaluation.report.targets import QUALITY_TARGETS, Target, check
from worldsim.evaluation.report.text import format_horizons, format_targets


def example(length: int = 5, height: int = 33, width: int = 47) -> Example:
    """Return plain pictures: red is real, green dreamt, blue through the codec."""
    frames = torch.zeros(3, length, height, width, 3, dtype=torch.uint8)
    for kind in range(3):
        frames[kind, ..., kind] = 200
    return Example("one", *frames)


def test_targets_are_those_that_were_agreed() -> None:
    """Lowering one here is lowering what was promised."""
    agreed = [(57, 30), (2, 1.3), (1.05, None), (0, None), (10, 5), (2, 6), (1, 5), (6, 1)]
    agreed += [(90, 99), (90, 99), (30, 10), (70, 95)]
    assert [(target.required, target.desired) for target in QUALITY_TARGETS] == agreed


@pytest.mark.parametrize(
    ("value", "higher", "verdict"),
    [
        (5.0, True, "aim"),
        (3.0, True, "pass"),
        (1.0, True, "short"),
        (1.0, False, "aim"),
        (2.5, False, "short"),
        (None, True, "not measured"),
        (float("nan"), False, "short"),
    ],
)
def test_verdicts(value: float | None, higher: bool, verdict: str) -> None:
    aim = 4.0 if higher else 1.0
    target = Target(name="x", path="cost", required=2.0, desired=aim, higher_is_better=higher)
    assert target.verdict(value) == verdict


def test_nothing_measured_is_said_so_for_every_target() -> None:
    rows = check({}, QUALITY_TARGETS)
    assert {row["verdict"] for row in rows} == {"not measured"}
    table = format_targets(rows)
    assert table.count("not measured") == len(QUALITY_TARGETS)


def test_the_table_says_where_a_world_falls_short() -> None:
    both = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 64}
    table = format_targets(check({"controllability": {"turn": {"both_right": both}}}, QUALITY_TARGETS))
    line = next(line for line in table.splitlines() if "turn" in line)
    assert "50 %" in line
    assert "40 to 60" in line
    assert line.endswith("short")


def test_a_path_with_names_leads_to_an_estimate() -> None:
    target = Target("{world} at {gap}", "recall/worlds/{world}/{gap}", "dB", 2.0, 3.0, is_difference=True)
    names = {"world": "a/b", "gap": "50"}
    estimate = {"mean": 2.5, "low": 2.0, "high": 3.0, "count": 4, "intervals_are_apart": True}
    (row,) = check({"recall": {"worlds": {"a/b": {"50": estimate}}}}, [target], **names)
    assert (row["name"], row["value"], row["interval"], row["count"]) == ("a/b at 50", 2.5, [2.0, 3.0], 4)
    assert row["verdict"] == "pass"
    estimate["intervals_are_apart"] = False
    (row,) = check({"recall": {"worlds": {"a/b": {"50": estimate}}}}, [target], **names)
    assert row["verdict"] == "short"


def test_a_report_is_written_after_each_part_and_resumed(tmp_path: Path) -> None:
    path, written = tmp_path / "report.json", []
    head = {"runs": {}, "data": "here", "worlds": {"a": {"identity": 1}}}
    report = Report.open(path, head, objects=("runs", "worlds"), renderers=[lambda r: written.append(1)])
    assert not path.exists()

    def store(part: str, found: int, seconds: float) -> None:
        report.data["runs"][part] = found
        assert seconds >= 0

    def stop() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.measure({"first": lambda: 1, "second": stop}, store)
    assert json.loads(path.read_text()) == head | {"runs": {"first": 1}}
    assert len(written) == 1
    more = {"runs": {}, "data": "here", "worlds": {"b": {"identity": 2}}}
    resumed = Report.open(path, more, {("data",): "here"}, objects=("runs", "worlds"))
    assert resumed.data == {"runs": {"first": 1}, "data": "here", "worlds": head["worlds"] | more["worlds"]}


def test_a_report_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    Report(path, {"runs": {}, "worlds": {"a.b": {"identity": 1, "source": ""}}}).write()
    before = path.read_bytes()
    keys = ("worlds", "a.b", "identity")
    with pytest.raises(WorldError, match=r"was measured with worlds\.a\.b\.identity=1, now 2; choose"):
        Report.open(path, {}, {keys: 2})
    with pytest.raises(WorldError, match=r"is a report of something else, without 'films'"):
        Report.open(path, {}, objects=("runs", "films"))
    assert path.read_bytes() == before
    unknown = {("worlds", "a.b", "source"): "x", ("worlds", "c", "identity"): 3, ("runs", "x", "y"): 4}
    assert Report.open(path, {}, {keys: 1, **unknown}).data["runs"] == {}
    with pytest.raises(WorldError, match=r"measured with worlds\.a\.b\.source=, now x; choose"):
        Report.open(path, {}, {keys: 1, **unknown}, is_complete=True)


MEASURES = ("cost", "memory", "quality")
"""Folders of `worldsim/evaluation` whose functions measure."""


def test_measures_return_typed_values() -> None:
    problems = []
    for path in (
        path for folder in MEASURES for path in (Path(evaluation.__path__[0]) / folder).glob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                if "Any" in ast.unparse(node.returns):
                    problems.append(f"{path}:{node.lineno} {node.name} returns {ast.unparse(node.returns)}")
            elif isinstance(node, ast.FunctionDef) and node.name.startswith(("measure", "summarize")):
                problems.append(f"{path}:{node.lineno} {node.name} says not what it returns")
    assert not problems, "\n".join(problems)


@dataclass(frozen=True, slots=True)
class Measured:
    share: float | None
    by_frame: dict[int, Measured]
    frames: tuple[int, ...] = ()
    late: float | None = None


def test_a_measurement_becomes_json_without_what_was_not_measured() -> None:
    inner = Measured(float("nan"), {}, (1, 2), 0.5)
    expected = {"share": None, "by_frame": {}, "frames": [1, 2], "late": 0.5}
    assert as_json(Measured(None, {8: inner})) == {"share": None, "by_frame": {"8": expected}, "frames": []}


def test_what_is_stored_replaces_entries_and_leaves_others(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.json", {"worlds": {"a": {"3": {"old": 1}}}})
    report.update({3: Measured(1.0, {})}, "worlds", "a")
    report.update({8: {}}, "worlds", "b")
    measured = {"share": 1.0, "by_frame": {}, "frames": []}
    assert report.data == {"worlds": {"a": {"3": measured}, "b": {"8": {}}}}


def test_json_has_no_nan_and_leaves_no_part(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", {"a": float("nan"), "b": [1, float("inf")], "c": {3: "x"}})
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": None, "b": [1, None], "c": {"3": "x"}}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_filmstrip_has_three_rows_of_the_right_frames(tmp_path: Path) -> None:
    write_filmstrip(tmp_path / "film.png", [example(), example()])
    picture = (matplotlib.image.imread(tmp_path / "film.png")[..., :3] * 255).round().astype(np.uint8)
    assert picture.shape == (2 * (3 * 33 + 2 * 2) + 8, 3 * 47 + 2 * 2, 3)  # frames 1, 2 and 4
    for row in range(3):
        assert picture[row * 35 + 16, 20, row] == 200
    assert picture[33, 0].tolist() == [255, 255, 255]


def test_video_shows_the_real_game_on_the_left(tmp_path: Path) -> None:
    write_video(tmp_path / "both.mp4", [example()], 10.0)
    frames = read_video(tmp_path / "both.mp4")
    assert frames.shape == (5, 34, 96, 3)
    assert frames[2, 16, 20].argmax() == 0
    assert frames[2, 16, -20].argmax() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["both.mp4"]


def test_curve_is_a_picture(tmp_path: Path) -> None:
    write_curve(tmp_path / "psnr.png", {"dream": [20.0, 19.0, 18.0], "copy_last": [19.0, 17.0, 15.0]})
    assert matplotlib.image.imread(tmp_path / "psnr.png").ndim == 3


def test_small_changes_are_shown_below_the_psnr() -> None:
    psnr = np.stack([np.full(8, 20.0), np.full(8, 20.0)])
    by_method = {"dream": psnr, "copy_last": psnr, "codec": psnr + 10}
    of_game = np.ones((2, 8)) * (np.arange(8) < 4)
    changes = {"real": of_game, "dream": of_game / 4, "codec": of_game * 0.9}
    found = summarize_rollouts(FrameScores(["a", "b"], by_method, by_method, [], changes))
    dream_alone = replace(found.horizons[8], small_changes_share={"dream": None})
    found = replace(found, horizons={1: found.horizons[1], 8: dream_alone})
    table = format_horizons(found).splitlines()
    assert table[-2].split()[-2:] == ["0.25", "-"]
    assert table[-1].split()[-2:] == ["0.90", "-"]
    assert "20.00 (20.00)" in table[2]

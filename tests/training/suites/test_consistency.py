"""The consistency suite as a command: from episodes and worlds to a report, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import tiny_world, write_tiny_dataset
from tests.grids import TILE, write_recall_set, write_walks
from training.evaluate import EvaluateConfig, main
from training.suites.consistency import MEASURES
from training.suites.settings import CONSISTENCY_PARTS, ConsistencyConfig
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.revisits import RevisitSettings

pytestmark = pytest.mark.usefixtures("one_thread")
GAP = 6
SMALL: dict[str, Any] = {"suite": "consistency", "device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for gap in (3, GAP):
        write_recall_set(folder, gap)
    write_recall_set(folder, GAP, is_paired=True)
    return folder


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("hybrid", "full"):
        world = tiny_world(is_teacher=name == "full")
        world.save_pretrained(folder / name, starts=[], dtype=torch.float32)
    return {name: str(folder / name) for name in ("hybrid", "full")}


def suite(**changes: Any) -> ConsistencyConfig:
    return ConsistencyConfig(**({"intervention_gaps": [GAP], "tile_pixels": TILE} | changes))


def config(worlds: dict[str, str], data: Path, out: Path, **changes: Any) -> EvaluateConfig:
    own = {name: changes.pop(name) for name in list(changes) if name in ConsistencyConfig.__slots__}
    return EvaluateConfig(
        worlds=worlds, data=str(data), out=str(out), consistency=suite(**own), **(SMALL | changes)
    )


PARTS = ["recall", "interventions", "pairs"]


def test_every_part_is_measured_by_one_function() -> None:
    assert tuple(MEASURES) == CONSISTENCY_PARTS


def test_worlds_are_measured_into_a_report_and_one_page(
    worlds: dict[str, str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.run(config(worlds, data, tmp_path, zeroed=["hybrid"], gaps=[GAP], parts=PARTS))
    report = json.loads((tmp_path / "report.json").read_text())
    zeroed = "hybrid, state zeroed"
    assert list(report["worlds"]) == ["hybrid", zeroed, "full"]
    assert list(report["recall"]["worlds"]["full"]) == [str(GAP)]
    found = report["recall"]["worlds"]["hybrid"][str(GAP)]
    assert set(found["final"]) == {"psnr_db", "ssim", "tile_accuracy"}
    assert len(found["episodes"]["average"]["psnr_db"]) == 4
    assert found["memory_bytes"] > 0
    assert set(found["absent_tiles"]) <= {"2-8", "9-16"}
    assert set(report["interventions"]["worlds"]) == {"hybrid"}
    assert set(report["interventions"]["skipped"]) == {zeroed, "full"}
    assert set(report["interventions"]["worlds"]["hybrid"][str(GAP)]) == {"kept", "zero", "freeze", "swap"}
    assert set(report["pairs"]["worlds"]["full"][str(GAP)]) >= {"history", "none"}
    over = report["comparisons"]["hybrid"]["over"][zeroed][str(GAP)]["final"]["psnr_db"]
    assert over["count"] == 4
    assert list(report["goals"]) == ["hybrid"]
    assert "state bytes at frame 100,000" in capsys.readouterr().out
    run = report["runs"]["recall"]["hybrid"]
    assert run["command"] and run["hardware"]["threads"] == 1
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") >= 5
    assert page.count("data:image/png;base64,") == 2 * 4
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "the page would load something"


def test_a_second_run_adds_a_world_to_the_report_and_keeps_the_first(
    worlds: dict[str, str], data: Path, tmp_path: Path
) -> None:
    names = {"parts": ["recall"], "gaps": [3], "full": "full", "window": "none"}
    main.run(config({"hybrid": worlds["hybrid"]}, data, tmp_path, **names))
    first = json.loads((tmp_path / "report.json").read_text())
    main.run(config({"full": worlds["full"]}, data, tmp_path, **names))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recall"]["worlds"]["hybrid"] == first["recall"]["worlds"]["hybrid"]
    assert set(report["recall"]["worlds"]) == {"hybrid", "full"}
    assert report["comparisons"]["hybrid"]["over"]["full"]["3"]["final"]["psnr_db"]["count"] == 4
    assert list(report["films"]["3"]["strips"]) == ["", "hybrid", "full"]
    with pytest.raises(WorldError, match=r"was measured with worlds\.full\.identity=tiny@"):
        main.run(config({"full": worlds["hybrid"]}, data, tmp_path, **names))
    with pytest.raises(
        WorldError,
        match=r"was measured with data\.settings\.context_frames=32, now 1; choose another out= folder",
    ):
        main.run(config({"full": worlds["full"]}, data, tmp_path, context_frames=1, **names))
    with pytest.raises(WorldError, match=r"was measured with data\.folder="):
        main.run(
            config({"full": worlds["full"]}, write_recall_set(tmp_path / "more", 3).parent, tmp_path, **names)
        )


def test_fidelity_and_continuation_of_two_worlds_are_in_the_report_and_on_the_page(
    worlds: dict[str, str], data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "fidelity_frames": 10,
        "parts": ["fidelity", "continuation"],
        "num_fidelity": 4,
    }
    main.run(config(worlds, data, tmp_path, **settings))
    report = json.loads((tmp_path / "report.json").read_text())
    fidelity = report["fidelity"]
    assert fidelity["episodes"]["gap"] == GAP  # the least whose episodes are long enough
    assert fidelity["episodes"]["frames_a_side"] == 2 * 10
    assert set(fidelity["worlds"]) == {"hybrid", "full"}
    dream = fidelity["worlds"]["hybrid"]["dream"]["1-10"]["fid"]
    assert dream["over_floor"]["low"] < dream["over_floor"]["mean"] < dream["value"]["mean"]
    assert fidelity["real"]["1-10"]["kid"]["over_floor"]["mean"] == 0
    assert report["continuation"]["worlds"]["full"][str(GAP)]["frames_an_episode"] == GAP
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Fidelity</h2>" in page and "hybrid: dream" in page
    assert fidelity["episodes"]["feature_network"] in page
    with pytest.raises(WorldError, match="fidelity was measured on other episodes or frames"):
        main.run(config(worlds, data, tmp_path, **(settings | {"fidelity_frames": 8})))


def test_what_is_done_to_memories_is_done_in_so_many_episodes_and_pairs(
    worlds: dict[str, str], data: Path, tmp_path: Path
) -> None:
    names: dict[str, Any] = {"parts": ["interventions", "pairs", "continuation"], "num_pairs": 1}
    main.run(config({"hybrid": worlds["hybrid"]}, data, tmp_path, **names, num_turns=2))
    report = json.loads((tmp_path / "report.json").read_text())
    found = {part: report[part]["worlds"]["hybrid"][str(GAP)] for part in names["parts"]}
    assert found["interventions"]["zero"]["final"]["psnr_db"]["count"] == 2
    assert found["pairs"]["num_pairs"] == 1
    assert found["continuation"]["dream"]["seen"]["count"] == 2
    again: dict[str, Any] = {"other": worlds["hybrid"]}
    with pytest.raises(WorldError, match=r"with runs\.interventions\.hybrid\..*\.num_turns=2, now 3"):
        main.run(config(again, data, tmp_path, **names, num_turns=3))
    with pytest.raises(WorldError, match=r"with runs\.pairs\.hybrid\..*\.num_pairs=1, now 0"):
        main.run(config(again, data, tmp_path, **(names | {"num_pairs": 0}), num_turns=2))
    recall = {"parts": ["recall"], "num_turns": 3, "max_gap": GAP}
    main.run(config(again, data, tmp_path, **recall))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recall"]["worlds"]["other"][str(GAP)]["final"]["psnr_db"]["count"] == 4


def test_gaps_beyond_the_greatest_are_left_out_and_named_ones_are_not(
    worlds: dict[str, str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"parts": ["recall"], "max_gap": 3}
    main.run(config({"hybrid": worlds["hybrid"]}, data, tmp_path / "a", **names))
    assert f"left out of recall, beyond consistency.max_gap=3: [{GAP}]" in capsys.readouterr().out
    main.run(config({"hybrid": worlds["hybrid"]}, data, tmp_path / "b", **names, gaps=[GAP]))
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert list(report["recall"]["worlds"]["hybrid"]) == [str(GAP)]
    with pytest.raises(WorldError, match="consistency.max_gap=1 leaves nothing of"):
        main.run(config({"hybrid": worlds["hybrid"]}, data, tmp_path / "c", **(names | {"max_gap": 1})))
    assert not (tmp_path / "c").exists()


def test_revisits_of_two_worlds_are_in_the_report_and_on_the_page(
    worlds: dict[str, str], data: Path, tmp_path: Path
) -> None:
    write_walks(tmp_path / "data" / "revisits", [30, 32])
    own = RevisitSettings(distance=0, leave_distance=5, num_others=2, context_frames=1)
    names: dict[str, Any] = {"parts": ["revisits"], "revisits": own, "intervention_gaps": []}
    main.run(config(worlds, tmp_path / "data", tmp_path / "out", **names))
    report = json.loads((tmp_path / "out" / "report.json").read_text())["revisits"]
    told = report["rungs"]["walk-away-30"]
    assert told["count"] == 2 and told["frames"]["most"] == 32 and told["chance"] == pytest.approx(1 / 3)
    hybrid, full = (report["worlds"][name]["walk-away-30"] for name in ("hybrid", "full"))
    assert set(hybrid["methods"]) == {"kept", "zero", "copy_last", "codec", "other_view"}
    assert set(full["methods"]) == {"kept", "copy_last", "codec", "other_view"}
    assert hybrid["methods"]["kept"]["parts"]["seen"]["count"] == 2, "tiles tell what was in view before"
    assert hybrid["kept_over_emptied_db"]["count"] == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Revisits</h2>" in page and "full: walk-away-30" in page
    names["rungs"] = ["full-turn"]
    with pytest.raises(WorldError, match="no pose of .* comes back as often as 2 times"):
        main.run(config(worlds, tmp_path / "data", tmp_path / "other", **names))
    with pytest.raises(WorldError, match="holds no folder revisits"):
        main.run(config(worlds, data, tmp_path / "other", **names))
    assert not (tmp_path / "other").exists()


def test_where_masks_are_not_known_continuation_says_so(
    worlds: dict[str, str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.run(config({"a": worlds["hybrid"]}, data, tmp_path, parts=["continuation"], tile_pixels=0))
    assert (
        "known of tiles (set consistency.tile_pixels) and of doom-fresh-rooms only" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "report.json").read_text())["continuation"]["worlds"] == {}


def test_of_ordinary_recordings_the_parts_that_need_no_way_back_are_measured(
    worlds: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write_tiny_dataset(tmp_path / "mine", episodes=1, frames=12)
    names: dict[str, Any] = {
        "num_long": 2,
        "long_frames": 4,
        "num_idle": 2,
        "idle_frames": 4,
        "cost_frames": 1,
    }
    names |= {"context_frames": 4, "tile_pixels": 0, "intervention_gaps": []}
    parts = ["recall", "pairs", "drift", "idle", "probe"]
    main.run(config({"a": worlds["hybrid"]}, mine, tmp_path / "out", parts=parts, **names))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["runs"]) == {"drift", "idle"}
    assert report["drift"]["worlds"]["a"]["num_frames"] == 4
    assert set(report["skipped"]) == {"recall", "pairs", "probe"}
    assert "not measured: recall, pairs, probe; " in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not measured: recall; " in page and "recall-NNN" in page
    with pytest.raises(FileNotFoundError, match="holds no folder recall-NNN"):
        main.run(config({"a": worlds["hybrid"]}, mine, tmp_path / "other", parts=["recall"], **names))
    with pytest.raises(WorldError, match="at least 2 are needed"):
        main.run(
            config(
                {"a": worlds["hybrid"]},
                mine,
                tmp_path / "b",
                parts=["idle"],
                **names | {"context_frames": 11},
            )
        )


def test_unpaired_episodes_are_left_out_by_name(worlds: dict[str, str], tmp_path: Path) -> None:
    data = write_recall_set(tmp_path / "data", 3).parent
    names: dict[str, Any] = {"parts": ["recall", "pairs"], "intervention_gaps": []}
    main.run(config({"a": worlds["hybrid"]}, data, tmp_path / "out", **names))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["runs"]) == {"recall"}
    assert "none are paired" in report["skipped"]["pairs"]
    with pytest.raises(WorldError, match="none are paired"):
        main.run(config({"a": worlds["hybrid"]}, data, tmp_path / "b", **names | {"parts": ["pairs"]}))


def test_a_mistyped_world_among_several_leaves_no_folder(
    worlds: dict[str, str], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorldError, match="there is no world 'nowhere'"):
        main.run(config(worlds | {"other": "nowhere"}, data, tmp_path / "out", parts=PARTS))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gaps": [16]}, "holds no folder recall-016 of episodes that come back"),
        ({"intervention_gaps": [50]}, "holds no folder recall-050"),
        ({"zeroed": ["other"]}, "zeroed names other, which worlds does not"),
        ({"zeroed": ["full"]}, "full has no hybrid layers"),
        ({"parts": ["fidelity"], "features": "none"}, "none holds no feature network"),
        ({"tile_pixels": 7}, "tiles of 7 pixels do not fill frames of 48 x 32"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_written(
    worlds: dict[str, str], data: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((WorldError, FileNotFoundError), match=sentence):
        main.run(config(worlds, data, tmp_path / "out", **({"parts": PARTS} | changes)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parts": ["rollout"]}, "parts must be some of recall"),
        ({"suite": "memory"}, "suite must be consistency, level or null"),
        ({"suite": None}, "worlds= belongs to suite=consistency"),
        ({"world": "doom-rooms"}, "give world= or worlds=, not both"),
        ({"worlds": {}}, "worlds must be {name: world"),
        ({"worlds": {"a": 3}}, "worlds must be {name: world"),
        ({"gaps": [0]}, "consistency.gaps must be numbers of at least 1"),
        ({"num_episodes": 1}, "num_episodes must be at least 2, or 0"),
        ({"num_turns": 1}, "num_turns must be at least 2, or 0"),
        ({"num_pairs": -1}, "num_pairs must be at least 0"),
        ({"rungs": ["turn"]}, "consistency.rungs are of look-away-90, .* got turn"),
        ({"distance": -1.0}, "returning poses: distance must be at least 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WorldError, match=sentence):
        config(changes.pop("worlds", {"a": "b"}), Path("data"), Path("out"), **changes)

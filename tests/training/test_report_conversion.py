"""One command from worlds to tables and plots, at toy size; what cannot be compared is refused first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import TINY_SHAPE, tiny_world, write_tiny_dataset, write_turning_dataset
from training.report_conversion import Comparison, ReportConversionConfig, main
from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.evaluation.cost import paper_shape
from worldsim.model.denoiser import Denoiser
from worldsim.world import World

SMALL: dict[str, Any] = {
    "context_frames": 4,
    "num_rollouts": 3,
    "horizon": 9,
    "memory_frames": 6,
    "return_absence": 3,
    "early_frame": 3,
    "late_frame": 8,
    "total_frames": 6,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a teacher, a hybrid world with its codec, one with another codec, one with other buttons."""
    folder = tmp_path_factory.mktemp("worlds")
    teacher, hybrid, other_codec, other_buttons = (tiny_world(is_teacher=index == 0) for index in range(4))
    for world in (hybrid, other_buttons):
        world.codec.load_state_dict(teacher.codec.state_dict())
    config = other_buttons.config
    config.actions = ActionLayout(config.actions.axes[:2])
    config.denoiser.num_values = [3, 3]
    other_buttons = World(config, Denoiser(config.denoiser), other_buttons.codec)
    found = {"teacher": teacher, "hybrid": hybrid, "codec": other_codec, "buttons": other_buttons}
    for name, world in found.items():
        world.save_pretrained(folder / name, starts=[], dtype=torch.float32)
    return {name: str(folder / name) for name in found}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_dataset(tmp_path_factory.mktemp("data"), episodes=3, frames=20))


def config(places: dict[str, str], data: str, out: Path, **changes: Any) -> ReportConversionConfig:
    settings = {"teacher": places["teacher"], "worlds": [f"100 %:{places['hybrid']}"], "zeroed": ["100 %"]}
    return ReportConversionConfig(data=data, out=str(out), **(SMALL | settings | changes))


def test_worlds_are_compared_from_end_to_end(places: dict[str, str], data: str, tmp_path: Path) -> None:
    main.run(config(places, data, tmp_path / "out", parts=["in_turn", "cost", "rollouts", "memory"]))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    plots = ("psnr", "step-time", "bytes", "memory")
    assert names == {"conversion.md", "conversion.json", *(f"conversion-{plot}.png" for plot in plots)}
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert list(report["worlds"]) == ["teacher", "100 %", "100 %, state zeroed"]
    teacher, hybrid, zeroed = report["worlds"].values()
    assert teacher["layers"] == {"hybrid": 0, "window": 0, "full": 3}
    assert teacher["quality"]["over_teacher_db"]["8"]["mean"] == 0.0
    assert hybrid["quality"]["over_teacher_db"]["8"]["mean"] != 0.0
    assert zeroed["quality"]["over_original_db"]["8"]["mean"] != 0.0
    assert "cost" not in zeroed
    one_frame = 2 * 3 * 6 * 32 * 4  # keys and values, layers, tokens, width, bytes
    assert teacher["cost"]["state_bytes"]["late"] - teacher["cost"]["state_bytes"]["early"] == 5 * one_frame
    assert hybrid["cost"]["state_bytes"]["late"] == hybrid["cost"]["state_bytes"]["early"]
    for world in (teacher, hybrid):
        grown = world["in_turn"]["state_bytes"]["late"] - world["in_turn"]["state_bytes"]["early"]
        assert grown == (5 * one_frame if world is teacher else 0)
        assert world["in_turn"]["step_ms"]["late"] > 0
    assert "Does a step become dearer?" in (tmp_path / "out" / "conversion.md").read_text()
    assert len(hybrid["cost"]["step_ms_curve"]) == 18
    assert list(teacher["memory"]["change_db"]) == ["1", "2", "4"]
    assert list(hybrid["memory"]["change_db"]) == ["0", "1", "2", "4"]
    assert hybrid["memory"]["change_db"]["0"]["mean"] != 0.0
    assert "memory" not in zeroed
    text = (tmp_path / "out" / "conversion.md").read_text()
    assert f"{data} records no poses, so which places come back is not known." in " ".join(text.split())
    assert "| 100 %, state zeroed | `tiny@" in text
    for reference in ("through the codec", "standing still", "a picture of nothing"):
        assert f"{reference} | " in text
    assert text.count("| 100 %, state zeroed |") == 4  # what it is, PSNR, against the teacher, against itself
    found = report["worlds"]["teacher"]["quality"]
    described = f"over 3 places in {found['num_episodes']} held-out episodes of {data}, after 4 real frames"
    assert described in " ".join(text.split())
    assert "not drawn alike" not in text
    assert "paper's shape" not in text


def test_steps_alone_need_no_episodes_as_long_as_roll_outs(
    places: dict[str, str], data: str, tmp_path: Path
) -> None:
    main.run(config(places, data, tmp_path, parts=["in_turn"], horizon=100, memory_frames=100))
    worlds = json.loads((tmp_path / "conversion.json").read_text())["worlds"]
    assert worlds["teacher"]["in_turn"]["step_ms"]["late"] > 0


def test_the_same_seed_gives_the_same_quality(places: dict[str, str], data: str, tmp_path: Path) -> None:
    """Also where nothing else is measured before it."""
    qualities = []
    for changes in ({}, {"parts": ["rollouts"]}):
        comparison = Comparison(config(places, data, tmp_path, **changes), tmp_path)
        comparison.measure()
        worlds = comparison.report.data["worlds"]
        qualities.append({name: world["quality"] for name, world in worlds.items()})
    assert qualities[0] == qualities[1]


def test_what_was_measured_before_a_stop_is_kept(
    places: dict[str, str], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparison, "_quality", stop)
    with pytest.raises(KeyboardInterrupt):
        main.run(config(places, data, tmp_path))
    text = (tmp_path / "conversion.md").read_text()
    assert "## What a step costs" in text
    assert "## How well it predicts" not in text
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json", ".png"}


def test_parts_of_several_runs_come_together(places: dict[str, str], data: str, tmp_path: Path) -> None:
    main.run(config(places, data, tmp_path, parts=["rollouts"]))
    first = json.loads((tmp_path / "conversion.json").read_text())
    more = [f"100 %:{places['hybrid']}", f"again:{places['hybrid']}"]
    main.run(config(places, data, tmp_path, parts=["cost"], worlds=more))
    both = json.loads((tmp_path / "conversion.json").read_text())
    assert set(both["runs"]) == {"rollouts", "cost"}
    assert both["runs"]["rollouts"] == first["runs"]["rollouts"]
    assert both["references"] == first["references"]
    for name in ("teacher", "100 %", "100 %, state zeroed"):
        assert both["worlds"][name]["quality"] == first["worlds"][name]["quality"]
    assert set(both["worlds"]["again"]) >= {"cost", "identity"}
    assert "quality" not in both["worlds"]["again"]
    text = (tmp_path / "conversion.md").read_text()
    assert "Roll-outs by `" in text and "Step times and bytes by `" in text
    assert "## How well it predicts" in text and "## What a step costs" in text


def test_what_was_measured_of_another_world_is_not_mixed_in(
    places: dict[str, str], data: str, tmp_path: Path
) -> None:
    main.run(config(places, data, tmp_path, parts=["cost"]))
    before = (tmp_path / "conversion.json").read_bytes()
    other = {"worlds": [f"100 %:{places['teacher']}"], "zeroed": []}
    with pytest.raises(
        WorldError, match=r"was measured with worlds\.100 %\.identity=tiny@.*; choose another out= folder"
    ):
        main.run(config(places, data, tmp_path, parts=["rollouts"], **other))
    assert (tmp_path / "conversion.json").read_bytes() == before
    (tmp_path / "conversion.json").write_text("{}")
    with pytest.raises(WorldError, match="is a report of something else, without 'runs'"):
        main.run(config(places, data, tmp_path, parts=["rollouts"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worlds": ["a:codec"], "zeroed": []}, "a has another codec than the teacher"),
        ({"worlds": ["a:buttons"], "zeroed": []}, "a has the buttons .* the teacher has"),
        ({"worlds": ["a:nowhere"], "zeroed": []}, "there is no world 'nowhere'"),
        ({"worlds": ["a:teacher"], "zeroed": ["a"]}, "a has no hybrid layers"),
        ({"horizon": 100}, "104 frames are needed, the longest has 20"),
        ({"worlds": [], "zeroed": []}, "belong together"),
        ({"teacher": None}, "nothing to compare"),
        (
            {"teacher": "hybrid"},
            r"hybrid is hybrid already \(layers 0, 2\): a teacher has softmax layers only",
        ),
        ({"parts": ["paper_shape"]}, "the part paper_shape needs a CUDA GPU, and the device is cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value[:20],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    places: dict[str, str], data: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if worlds := changes.get("worlds"):
        name, place = worlds[0].split(":")
        changes = changes | {"worlds": [f"{name}:{places.get(place, place)}"]}
    if changes.get("teacher") in places:
        changes = changes | {"teacher": places[changes["teacher"]]}
    with pytest.raises(WorldError, match=message):
        main.run(config(places, data, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worlds": ["no-name"], "zeroed": []}, "worlds takes NAME:WORLD, .* got 'no-name'"),
        ({"worlds": ["a:x", "a:y"], "zeroed": []}, "got 'a' again"),
        ({"worlds": ["teacher:x"], "zeroed": []}, "got 'teacher' again"),
        ({"zeroed": ["b"]}, "zeroed names b, which worlds does not"),
        ({"late_frame": 3}, "late_frame 3 must be after early_frame 3"),
        ({"num_rollouts": 0}, "num_rollouts must be at least 1, got 0"),
        (
            {"return_absence": 6},
            "the absence of returning places, 6 frames, must be less than the 6 frames watched",
        ),
        ({"parts": ["speed"]}, "parts are some of in_turn, cost, rollouts, memory, paper_shape; got speed"),
    ],
    ids=["no_name", "twice", "teacher", "unknown_zeroed", "late_frame", "num_rollouts", "absence", "parts"],
)
def test_settings_are_checked(
    places: dict[str, str], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(WorldError, match=message):
        config(places, "data", tmp_path, **changes)


def test_the_papers_shape_alone_at_a_tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_shape, "PAPER_SHAPE", TINY_SHAPE)
    settings = ReportConversionConfig(parts=["paper_shape"], paper_frames=41, paper_steps=2)
    Comparison(settings, tmp_path).measure()
    shape = json.loads((tmp_path / "conversion.json").read_text())["paper_shape"]
    assert shape["latent_frames"] == 11
    assert [part["frames_done"] for part in shape["models"].values()] == [11, 11, 11]
    assert shape["attention"]["past_frames"] == 11
    assert shape["attention"]["fastest"] in ("flash", "math")  # what a CPU has
    text = (tmp_path / "conversion.md").read_text()
    assert f"has on that device, {shape['attention']['fastest']}: " in text
    assert "in 2 denoising steps and a commit" in " ".join(text.split())
    assert "\n6 tokens a frame of latents" in text
    assert text.count("| 75 % hybrid, 25 % ") == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        "conversion.md",
        "conversion.json",
        "conversion-paper-shape.png",
    }


def test_places_that_come_back_are_part_of_the_comparison(places: dict[str, str], tmp_path: Path) -> None:
    turning = str(write_turning_dataset(tmp_path / "turning"))
    settings = {"parts": ["memory"], "num_rollouts": 2, "memory_frames": 14, "return_absence": 5}
    main.run(config(places, turning, tmp_path / "out", zeroed=[], **settings))
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["returns"]["num_places"] == 2
    assert report["returns"]["references"].keys() == {"seen", "codec", "last"}
    teacher, hybrid = (world["memory"]["returns"] for world in report["worlds"].values())
    assert "change_db" not in teacher
    assert hybrid["change_db"]["mean"] != 0.0
    text = (tmp_path / "out" / "conversion.md").read_text()
    assert "| the real frame seen there before | " in text
    assert f"places of 2 episodes of {turning} come back." in text
    main.run(config(places, turning, tmp_path / "out", zeroed=[], **settings | {"parts": ["cost"]}))
    again = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert again["returns"] == report["returns"]
    assert again["worlds"]["100 %"]["memory"] == report["worlds"]["100 %"]["memory"]

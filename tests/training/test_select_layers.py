"""Layers are ranked by what their replacement costs, and the ranking is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import training.select_layers
from tests.conversions import convert_config, save_tiny_teacher
from tests.fakes import save_tiny_world, write_tiny_dataset
from training.conversion.selection import LayerScore, Selection, choose_layers
from training.select_layers import SelectLayersConfig, describe
from training.select_layers import main as select_layers
from worldsim.errors import WorldError
from worldsim.world import World


def select_config(root: Path, out: str) -> SelectLayersConfig:
    like = convert_config(root, out)
    names = ("out", "teacher", "data", "stage1", "fabric", "validation")
    return SelectLayersConfig(**{name: getattr(like, name) for name in names})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a teacher, gameplay video, and a finished selection, `whole`."""
    folder = tmp_path_factory.mktemp("selection")
    save_tiny_teacher(folder / "teacher")
    write_tiny_dataset(folder / "data")
    select_layers.run(select_config(folder, "whole"))
    return folder


def score(layer: int, *changes: float, loss: float = 0.5) -> LayerScore:
    by_horizon = {str(horizon): change for horizon, change in enumerate(changes, start=1)}
    return LayerScore(layer=layer, psnr_change_db=by_horizon, loss_before=1.0, loss_after=loss)


def selection(*scores: LayerScore) -> Selection:
    return Selection(
        teacher="tiny", teacher_sha256="0" * 64, baseline_db={"1": 20.0, "2": 18.0}, scores=list(scores)
    )


def test_the_layer_that_hurts_least_comes_first_and_the_loss_decides_a_tie() -> None:
    scores = score(0, -1.0, -3.0), score(1, 0.1, -0.3, loss=0.9), score(2, -0.3, 0.1, loss=0.2)
    assert selection(*scores).ranking == [2, 1, 0]
    first, *rows = describe(selection(*scores)).splitlines()
    assert "after 1, 2 frames" in first
    assert [int(row.split()[0]) for row in rows] == [2, 1, 0]


def test_every_layer_of_a_teacher_is_scored_and_the_share_that_hurts_least_is_taken(root: Path) -> None:
    path = root / "whole" / "selection.json"
    found = Selection.load(path)
    assert sorted(found.ranking) == [0, 1, 2]
    assert found.baseline_db.keys() == {"1", "2"}
    for scored in found.scores:
        assert scored.psnr_change_db.keys() == {"1", "2"}
        assert scored.loss_before > 0
        assert scored.loss_after > 0
    changes = {scored.layer: scored.mean_change_db for scored in found.scores}
    assert [changes[layer] for layer in found.ranking] == sorted(changes.values(), reverse=True)
    teacher = World.from_pretrained(root / "teacher")
    assert choose_layers(teacher, [], str(path), 0.67) == sorted(found.ranking[:2])
    assert choose_layers(teacher, [], str(path), 0.1) == found.ranking[:1]
    assert choose_layers(teacher, [], str(path), 1.0) == [0, 1, 2]


def test_a_selection_killed_while_it_scores_does_not_score_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, scored = training.select_layers.roll_out, []

    def roll_out(world: World, *rest: Any) -> dict[str, float]:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(world)
        return real(world, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training.select_layers, "roll_out", roll_out)
        with pytest.raises(KeyboardInterrupt):
            select_layers.run(select_config(root, "killed"))
    assert not (root / "killed" / "selection.json").exists()
    left = []
    monkeypatch.setattr(training.select_layers, "roll_out", lambda *given: left.append(given) or real(*given))
    select_layers.run(select_config(root, "killed"))
    assert len(left) == 2
    whole, resumed = (Selection.load(root / name / "selection.json") for name in ("whole", "killed"))
    assert resumed == whole


@pytest.mark.parametrize("text", ['{"teacher": 1}', '{"0": {"1": "x"}}', '{"0": {"1": NaN}}', "{"])
def test_damaged_scores_are_one_sentence_that_names_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(WorldError, match=str(path)):
        training.select_layers.read_scores(path)


def test_a_hybrid_world_has_no_layers_to_select(root: Path) -> None:
    config = select_config(root, "refused")
    config.teacher = str(save_tiny_world(root / "hybrid"))
    with pytest.raises(WorldError, match="is hybrid already"):
        select_layers.run(config)
    assert not (root / "refused").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "is not a selection of layers of format 1"),
        ({"ranking": [0, 1, 2]}, r"the ranking \[0, 1, 2\] does not follow from the scores"),
        ({"scores": [{"layer": 0}]}, "is not a whole selection of layers"),
        ({"baseline": {}}, "is not a whole selection of layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_damaged_selection_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "selection.json"
    selection(score(0, -1.0), score(1, -0.5), score(2, -2.0)).save(path)
    assert Selection.load(path).ranking == [1, 0, 2]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WorldError, match=reason):
        Selection.load(path)

"""Refused conversions: one sentence, and nothing written or overwritten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import training.conversion.stage
import training.convert
from tests.conversions import convert_config, save_tiny_teacher
from tests.fakes import TINY_ACTIONS, save_tiny_world, tiny_world, write_tiny_dataset
from training.conversion.selection import LayerScore, Selection
from training.conversion.settings import ConvertConfig
from training.conversion.stage import StageConfig
from training.convert import main as convert_world
from training.convert import shape_of
from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.world.world import MODEL_FILE


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a teacher and gameplay video."""
    folder = tmp_path_factory.mktemp("conversion")
    save_tiny_teacher(folder / "teacher")
    write_tiny_dataset(folder / "data")
    return folder


def bad_selection(root: Path) -> str:
    scores = [
        LayerScore(layer=i, psnr_change_db={"1": -1.0}, loss_before=1.0, loss_after=0.5) for i in (0, 1)
    ]
    path = root / "other-selection.json"
    Selection(teacher="other", teacher_sha256="0" * 64, baseline_db={"1": 20.0}, scores=scores).save(path)
    return str(path)


def test_a_selection_made_for_another_teacher_is_refused(root: Path) -> None:
    config = convert_config(root, "refused", layers=[], selection=bad_selection(root))
    with pytest.raises(WorldError, match=r"made for another teacher: other with weights 0000.*, not tiny"):
        convert_world.run(config)
    assert not Path(config.out).exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": [0, 5]}, "layers names layers 5; the teacher has layers 0 to 2"),
        ({"layers": [0], "selection": "some.json"}, "both say which layers"),
        ({"layers": [], "selection": "none.json"}, r"there is no selection none\.json"),
        ({"stages": [2]}, "holds no finished stage 1"),
        ({"share": 0.0}, r"share must lie in \(0, 1\]"),
        ({"share": 0.5}, r"layers \[0, 2\] and share 0.5 both say how many"),
        ({"rest": "full"}, "window 2 says nothing with rest=full"),
        ({"layers": [0, 1, 2]}, "window 2 says nothing when every layer is hybrid"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"rest": "some"}, "rest must be one of window, full, got 'some'"),
        ({"stages": [3]}, "stages are 1, 2 or both"),
        ({"fabric": FabricConfig(strategy="fsdp")}, "gathers whole layers, .*: choose ddp"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_the_teacher_are_refused(
    root: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(WorldError, match=reason):
        convert_world.run(convert_config(root, "refused", **changes))
    assert not (root / "refused").exists()


def test_a_stage_of_several_passes_is_refused() -> None:
    with pytest.raises(WorldError, match=r"a stage's loop\.global_batch_size must be 0"):
        StageConfig(loop=LoopConfig(global_batch_size=16))


def test_a_world_that_is_hybrid_already_is_refused(root: Path) -> None:
    hybrid = save_tiny_world(root / "hybrid")
    with pytest.raises(WorldError, match=r"hybrid is hybrid already \(layers 0, 2\)"):
        convert_world.run(convert_config(root, "refused", teacher=str(hybrid)))
    assert not (root / "refused").exists()


def test_a_teacher_whose_weights_do_not_fit_its_shape_is_refused(root: Path) -> None:
    damaged = save_tiny_teacher(root / "damaged")
    description = json.loads((damaged / "config.json").read_text())
    description["denoiser"]["ffn_dim"] = 64
    (damaged / "config.json").write_text(json.dumps(description))
    with pytest.raises(WorldError, match="does not fit the shapes in config.json"):
        convert_world.run(convert_config(root, "refused", teacher=str(damaged)))
    assert not (root / "refused").exists()


def test_video_with_other_buttons_is_refused(root: Path) -> None:
    other = str(write_tiny_dataset(root / "other", actions=ActionLayout(TINY_ACTIONS.axes[:2])))
    data = DataConfig(train=[other], heldout=[other])
    with pytest.raises(WorldError, match="turn/left"):
        convert_world.run(convert_config(root, "refused", data=data))
    assert not (root / "refused").exists()


@pytest.mark.parametrize("setting", ["stage1.sequence_length", "stage2.sequence_length", "validation"])
def test_video_that_is_too_short_for_a_stage_is_refused_before_the_first(root: Path, setting: str) -> None:
    config = convert_config(root, "refused")
    if setting == "validation":
        config.validation = replace(config.validation, horizons=[1, 19])
    else:
        (config.stage1 if "1" in setting else config.stage2).sequence_length = 21
    message = f"^{setting}: sequences of 21 frames fit into no episode of data.heldout; the longest has 20"
    with pytest.raises(WorldError, match=message):
        convert_world.run(config)
    assert not (root / "refused").exists()


def test_no_world_that_is_there_is_overwritten(root: Path) -> None:
    own = save_tiny_teacher(root / "mine" / "world")
    before = (own / MODEL_FILE).stat().st_mtime_ns
    with pytest.raises(WorldError, match="is the teacher itself"):
        convert_world.run(convert_config(root, "mine", teacher=str(own)))
    with pytest.raises(WorldError, match=r"is a world that no conversion in .*mine made"):
        convert_world.run(convert_config(root, "mine"))
    assert (own / MODEL_FILE).stat().st_mtime_ns == before


def test_a_world_that_came_to_a_conversion_killed_in_stage_1_is_not_overwritten(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    config = convert_config(root, "visited", 1)
    with monkeypatch.context() as patch:
        patch.setattr(training.convert, "run_stage1", killed)
        with pytest.raises(KeyboardInterrupt):
            convert_world.run(config)
    (root / "visited" / "stage2").mkdir(parents=True, exist_ok=True)  # as SIGKILL leaves it
    other = save_tiny_world(root / "visited" / "world")
    before = (other / MODEL_FILE).stat().st_mtime_ns
    with pytest.raises(WorldError, match=r"is a world that no conversion in .*visited made; choose another"):
        convert_world.run(config)
    assert (other / MODEL_FILE).stat().st_mtime_ns == before


def test_without_a_window_the_teachers_own_is_taken() -> None:
    config = ConvertConfig(out="", teacher="", data=DataConfig(train=[], heldout=[]))
    full = tiny_world(is_teacher=True).config.denoiser
    assert shape_of(config, full, [0]).window == 6
    mixed = replace(full, window_layers=[1], full_layers=[0, 2], window=3)
    assert shape_of(config, mixed, [0]).window == 3

"""A training that is refused leaves nothing: no lock, no empty folder; one that is there stays as it was."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.fakes import save_tiny_world, tiny_world, write_tiny_dataset
from tests.public_runs import run_in

NO_DATA = ["data.train=[none]", "data.heldout=[none]"]
NO_BATCH = ["data.train=[data]", "data.heldout=[data]", "data.num_workers=1", "data.cache_latents=false"]
CPU = ["fabric.accelerator=cpu"]
REFUSED = {
    "codec-data": ["codec", *NO_DATA, *CPU],
    "codec-batch": ["codec", *NO_BATCH, *CPU, "codec.height=32", "codec.width=48", "batch_size=100000"],
    "codec-init": ["codec", *NO_DATA, *CPU, "init=none"],
    "codec-decoder": ["codec", *NO_DATA, *CPU, "init=world", "decoder.alone=true"],
    "pretrain-data": ["pretrain", *NO_DATA, *CPU, "codec=world"],
    "pretrain-sequence": ["pretrain", *NO_BATCH, *CPU, "codec=world", "model=tiny", "sequence_length=1000"],
    "pretrain-objective": [
        "pretrain",
        *NO_BATCH,
        *CPU,
        "codec=world",
        "model=tiny",
        "objective.recall_share=0.5",
    ],
    "finetune-data": ["finetune", *NO_DATA, *CPU, "init=world"],
    "finetune-heads": ["finetune", *NO_BATCH, *CPU, "init=world", "outcome_heads=true"],
    "matched": ["matched", *NO_DATA, *CPU, "codec=world"],
    "convert": ["convert", *NO_DATA, *CPU, "teacher=teacher", "layers=[0,2]"],
    "select_layers": ["select_layers", *NO_DATA, *CPU, "teacher=teacher"],
    "features": ["features", *CPU, "data=[none]", "heldout=[none]"],
    "odometry": ["odometry", *NO_DATA, "codec=world"],
    "odometry-poses": ["odometry", *NO_BATCH, "codec=world"],
    "sharpen": ["sharpen", *NO_DATA, *CPU, "init=world"],
    "rl": ["rl", "device=cpu", "world=world", "starts=none"],
    "rl-steps": ["rl", "device=cpu", "world=world", "starts=data", "context_frames=1000"],
    "outcome_heads": ["outcome_heads", *NO_DATA, "device=cpu", "world=world"],
    "calibrate": ["calibrate", "data.heldout=[none]", "device=cpu", "world=world"],
    "depth": ["depth", "scenario=none"],
    "collect": ["collect", "env=None-v0"],
    "check": ["check", "data=none"],
    "evaluate": ["evaluate", "world=world", "data=none", "device=cpu"],
    "learn": ["learn", "data=none"],
    "learn-init": ["learn", "init=world", "device=cpu"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world, a teacher and some video without rewards or poses."""
    folder = tmp_path_factory.mktemp("refused")
    save_tiny_world(folder / "world")
    tiny_world(is_teacher=True).save_pretrained(folder / "teacher")
    write_tiny_dataset(folder / "data")
    return folder


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", REFUSED)
def test_nothing_is_left_of_what_is_refused(
    place: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *settings = REFUSED[case]
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as failed:
        run_in(place, name, *settings, f"out=runs/{case}")
    told = capsys.readouterr().err
    assert failed.value.code == 1 and "error: " in told
    del failed
    gc.collect()  # at the latest when the process ends
    assert sorted(place.rglob("*")) == before, told


@pytest.mark.usefixtures("one_thread")
def test_a_folder_that_was_there_stays(place: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(SystemExit):
        run_in(place, "codec", *NO_DATA, *CPU, f"out={tmp_path / 'kept'}")
    gc.collect()
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]

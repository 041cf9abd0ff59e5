"""Files with bytes changed or missing anywhere are read, or refused in a sentence: never anything else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from tests.recordings import (
    contractor_line,
    gradients,
    record_minari,
    write_counter_strike,
    write_film,
    write_lines,
)
from training.ingest.command import IngestConfig, plan
from training.ingest.writing import Task, write_recording
from worldsim.data.formats.registry import open_source
from worldsim.data.formats.source import ReadOptions
from worldsim.errors import WorldError

LEROBOT = Path(__file__).parents[2] / "worldsim/data/formats/lerobot"
TOKENS = ("", "0", "-1", "true", "null", "NaN", "1e400", "9" * 30, "[", "{}", '"', ",", "\n")
NUM_DAMAGES = 12


def make(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    if kind in ("hdf5", "parquet"):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
        space = spaces.Dict({"go": spaces.Discrete(3), "stick": spaces.Box(-1, 1, (2,))})
        record_minari(space, data_format=kind, length=3)
        return folder / "test/game-v0"
    if kind == "lerobot":
        return Path(shutil.copytree(LEROBOT, folder / "drive"))
    if kind == "counter-strike":
        write_counter_strike(folder / "match_1.hdf5", 3)
        return folder
    if kind == "npz":
        np.savez_compressed(folder / "a.npz", frames=np.stack(gradients(3)), actions=np.arange(3))
        return folder
    write_film(folder / "a.mp4", gradients(4))
    if kind == "vpt":
        write_lines(folder / "a.jsonl", [contractor_line(index, dx=3.0) for index in range(4)])
    else:
        (folder / "a.csv").write_text("steer,jump,reward,time\n" + "0.3,1,2.5,0.5\n" * 4)
    return folder


def damage(file: Path, chance: random.Random) -> None:
    """Cut a file off, change some of its bytes, or put something else into its text."""
    data = bytearray(file.read_bytes())
    how = chance.choice(("cut", "few", "many", "text"))
    place = chance.randrange(len(data))
    if how == "cut":
        del data[place:]
    elif how == "text" and file.suffix in (".json", ".jsonl", ".csv"):
        data[place : place + chance.randrange(6)] = chance.choice(TOKENS).encode()
    else:
        for _ in range(2 if how == "few" else 40):
            data[chance.randrange(len(data))] = chance.randrange(256)
    file.write_bytes(data)


@pytest.mark.parametrize("kind", ["hdf5", "parquet", "lerobot", "counter-strike", "vpt", "csv", "npz"])
def test_damage_anywhere_is_harmless_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole, chance, told = make(kind, tmp_path / "whole", monkeypatch), random.Random(kind), 0
    for number in range(NUM_DAMAGES):
        path = Path(shutil.copytree(whole, tmp_path / f"damaged-{number}"))
        damage(chance.choice(sorted(file for file in path.rglob("*") if file.is_file())), chance)
        config = IngestConfig(path=str(path), out=str(tmp_path / "out"), frame_rate=10.0)
        try:
            name, source = open_source(path, ReadOptions())
            conversion = plan(config, source, name, tmp_path / "out")
            conversion.info.save(tmp_path / f"out-{number}")
            for recording in source.recordings:
                if (
                    error := write_recording(conversion, Task(recording, tmp_path / f"out-{number}"))
                ) is not None:
                    raise error
        except (WorldError, OSError) as error:
            assert str(error)
            told += 1
    assert told > 0, "nothing was damaged"

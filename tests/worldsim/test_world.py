"""A world folder is complete, unaltered and free of pickles, or it is refused in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests.fakes import save_tiny_world, tiny_world
from worldsim.errors import WorldError
from worldsim.simulator import Simulator
from worldsim.starts import read_starts, visible_detail
from worldsim.weights import CODEC_FILE, CONFIG_FILE, check_file
from worldsim.world import (
    MODEL_FILE,
    SHIPPED,
    STARTS_FOLDER,
    World,
    WorldConfig,
    find_codec,
    read_config,
    shipped_worlds,
    write_config,
)

LEAST_DETAIL = {"doom-rooms": 10_000, "doom-health": 8_000}
"""Bytes of a start moment's picture: a bare wall of these rooms takes up to 6,000."""


def test_a_saved_world_dreams_the_same(tmp_path: Path) -> None:
    original = tiny_world()
    loaded = World.from_pretrained(save_tiny_world(tmp_path / "world"))
    assert loaded.config == original.config
    assert loaded.identity == original.identity
    frames = []
    for world in (original, loaded):
        simulator = Simulator(world)
        state = simulator.start(original.starts[:1], [1])
        frames.append(simulator.predict(state, torch.tensor([[1, 0, 2]])).frames)
    assert torch.equal(frames[0], frames[1])


def test_starts_come_back_from_video(tmp_path: Path) -> None:
    loaded = World.from_pretrained(save_tiny_world(tmp_path / "world"))
    original = tiny_world()
    assert [start.name for start in loaded.starts] == [start.name for start in original.starts]
    assert loaded.starts[0].frames.shape == original.starts[0].frames.shape
    assert torch.equal(loaded.starts[0].actions[:-1], original.starts[0].actions[:-1])


def test_unknown_world_names_those_that_ship() -> None:
    with pytest.raises(WorldError, match="no world 'nowhere'"):
        World.from_pretrained("nowhere")


def test_where_no_world_is_asked_for_it_is_the_rooms() -> None:
    """The README's first command, its picture and its keys are of that one."""
    assert shipped_worlds()[0] == "doom-rooms"
    assert shipped_worlds()[1:] == sorted(set(shipped_worlds()) - {"doom-rooms"})


@pytest.mark.parametrize("name", shipped_worlds())
def test_a_shipped_world_says_what_there_is_to_do_and_begins_before_no_bare_wall(name: str) -> None:
    config, checksums = read_config(SHIPPED / name)
    assert config.about.endswith(".")
    for file in (SHIPPED / name / STARTS_FOLDER).iterdir():
        check_file(file, checksums.get(f"{STARTS_FOLDER}/{file.name}"))
    for start in read_starts(SHIPPED / name / STARTS_FOLDER):
        assert visible_detail(start.frames[-1].numpy()) > LEAST_DETAIL.get(name, 4_000), start.name


def test_a_world_without_a_word_about_it_is_loaded(tmp_path: Path) -> None:
    described = json.loads((save_tiny_world(tmp_path / "world") / CONFIG_FILE).read_text())
    assert described.pop("about") == ""
    assert WorldConfig.from_json(described).about == ""
    with pytest.raises(WorldError, match="a world's about must be text, got 3"):
        WorldConfig.from_json(described | {"about": 3})


@pytest.mark.parametrize("name", [MODEL_FILE, CODEC_FILE])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = save_tiny_world(tmp_path / "world")
    data = bytearray((folder / name).read_bytes())
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "truncated":
        (folder / name).write_bytes(data[: len(data) // 2])
    else:
        data[-1] ^= 1
        (folder / name).write_bytes(data)
    with pytest.raises(WorldError, match=name):
        World.from_pretrained(folder)


def test_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "world.pt"
    path.write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(WorldError, match=r"world\.pt is a pickle"):
        World.from_pretrained(path)


def test_pickle_in_a_world_folder_is_never_loaded(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    (folder / MODEL_FILE).unlink()
    (folder / "model.pt").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(WorldError, match=r"model\.pt, a pickle"):
        World.from_pretrained(folder)


def test_weights_that_do_not_fit_the_description_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    data = json.loads((folder / CONFIG_FILE).read_text())
    data["denoiser"]["num_layers"] = 2
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    with pytest.raises(WorldError, match="does not fit"):
        World.from_pretrained(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], "JSON object"),
        (("name",), None, "name"),
        (("frame_rate",), 0, "frame_rate"),
        (("frame_rate",), float("nan"), "frame_rate"),
        (("actions",), [], "action layout"),
        (("denoiser",), [], "form"),
        (("denoiser", "num_heads"), 0, "num_heads"),
        (("denoiser", "half_lives"), [4], "half_lives"),
        (("denoiser", "dim"), "wide", "dim"),
        (("codec", "widths"), 5, "form"),
        (("codec", "heads"), 5, "heads"),
        (("files",), ["a"], "files"),
        (("files",), {"model.safetensors": 1}, "files"),
    ],
)
def test_damaged_description_is_named(
    tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    folder = save_tiny_world(tmp_path / "world")
    data = json.loads((folder / CONFIG_FILE).read_text())
    node = {"": data}
    for key, inner in zip(("", *path), path, strict=False):
        node = node[key]
        assert inner in node or inner == "heads"
    node[path[-1] if path else ""] = value
    (folder / CONFIG_FILE).write_text(json.dumps(data if path else value))
    with pytest.raises(WorldError, match=rf"config\.json.*{message}"):
        World.from_pretrained(folder)


def test_missing_field_of_a_description_is_named(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    data = json.loads((folder / CONFIG_FILE).read_text())
    del data["sampler"]
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    with pytest.raises(WorldError, match=r"config\.json.*no field 'sampler'"):
        World.from_pretrained(folder)


@pytest.mark.parametrize(
    "names", [["start-01.mp4", "start-01.jsonl"], ["start-01.mp4"], ["dataset.json"], None]
)
def test_deleted_start_is_named(tmp_path: Path, names: list[str] | None) -> None:
    folder = save_tiny_world(tmp_path / "world")
    if names is None:
        shutil.rmtree(folder / STARTS_FOLDER)
    for name in names or ():
        (folder / STARTS_FOLDER / name).unlink()
    with pytest.raises(WorldError, match=rf"no ({'|'.join(names or ['dataset.json'])})"):
        _ = World.from_pretrained(folder).starts


@pytest.mark.parametrize("name", ["start-99.jsonl", "more/start-99.jsonl"])
def test_start_that_the_description_does_not_list_is_refused(tmp_path: Path, name: str) -> None:
    folder = save_tiny_world(tmp_path / "world")
    path = folder / STARTS_FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"action": null}\n')
    with pytest.raises(WorldError, match=r"no checksum for .*start-99\.jsonl"):
        _ = World.from_pretrained(folder).starts


def test_files_of_operating_systems_are_no_part_of_a_world(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    for name in (
        ".DS_Store",
        "starts/.DS_Store",
        "starts/._start-01.jsonl",
        "starts/Thumbs.db",
        "desktop.ini",
    ):
        (folder / name).write_bytes(b"\0\5\x16\7Mac OS X")
    world = World.from_pretrained(folder)
    assert len(world.starts) == 3
    write_config(folder, world.config)
    assert sorted(name for name in read_config(folder)[1] if "start-01" not in name) == [
        "codec.safetensors",
        "model.safetensors",
        *(f"starts/{name}" for name in ("dataset.json", "start-00.jsonl", "start-00.mp4")),
        *(f"starts/{name}" for name in ("start-02.jsonl", "start-02.mp4")),
    ]


@pytest.mark.usefixtures("largest_file_50_kb")
def test_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"File too large.*{MODEL_FILE}"):
        tiny_world().save_pretrained(tmp_path / "world", dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_world_that_fails_keeps_the_old_one(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = save_tiny_world(tmp_path / "world")
    request.getfixturevalue("largest_file_50_kb")
    with pytest.raises(OSError, match="File too large"):
        tiny_world().save_pretrained(folder, dtype=torch.float32)
    World.from_pretrained(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world"]


def test_start_moments_are_copied_not_encoded_again(tmp_path: Path) -> None:
    tiny_world().save_pretrained(tmp_path / "first")
    World.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first" / "starts").glob("*.mp4"))
    assert names
    for name in names:
        first, second = (tmp_path / world / "starts" / name for world in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_a_codec_is_found_by_folder_and_by_the_name_of_a_shipped_world(tmp_path: Path) -> None:
    by_name, by_folder = find_codec("doom-rooms"), find_codec(SHIPPED / "doom-rooms")
    assert by_name.config == by_folder.config
    assert torch.equal(by_name.latent_std, by_folder.latent_std)
    with pytest.raises(WorldError, match="nowhere holds no codec"):
        find_codec(tmp_path / "nowhere")

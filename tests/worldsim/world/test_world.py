"""A world folder is complete, unaltered and free of pickles, or it is refused in one sentence."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes import save_tiny_world, tiny_world
from worldsim.errors import WorldError
from worldsim.simulator import Simulator
from worldsim.starts import read_starts, visible_detail
from worldsim.storage.tensors import CODEC_FILE, CONFIG_FILE, check_file
from worldsim.world.world import (
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

MIN_DETAIL = {"doom-rooms": 10_000, "doom-health": 8_000, "car-racing": 1_200, "minigrid-playground": 800}
"""Bytes of a start moment's picture: a bare wall of these rooms takes up to 6,000, flat colours little."""


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


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/world", "a\x00b", "a\x1b[2J"])
def test_a_name_that_no_folder_can_have_is_refused_without_orders_to_the_terminal(name: str) -> None:
    with pytest.raises(WorldError, match="is no path|there is no world") as error:
        World.from_pretrained(name)
    assert str(error.value).isprintable()


def test_where_no_world_is_asked_for_it_is_the_rooms() -> None:
    """The README's first command, its picture and its keys are of that one."""
    assert shipped_worlds()[0] == "doom-rooms"
    assert shipped_worlds()[1:] == sorted(set(shipped_worlds()) - {"doom-rooms"})


@pytest.mark.parametrize("name", shipped_worlds())
def test_a_shipped_world_says_what_there_is_to_do_and_begins_before_no_bare_wall(name: str) -> None:
    config, checksums = read_config(SHIPPED / name)
    assert config.about.endswith(".")
    for file in (SHIPPED / name / STARTS_FOLDER).iterdir():
        inside = f"{STARTS_FOLDER}/{file.name}"
        check_file(SHIPPED / name, inside, checksums.get(inside))
    for start in read_starts(SHIPPED / name / STARTS_FOLDER):
        assert visible_detail(start.frames[-1].numpy()) > MIN_DETAIL.get(name, 4_000), start.name


@pytest.mark.parametrize("name", shipped_worlds())
def test_a_shipped_world_names_no_path_of_the_machine_that_made_it(name: str) -> None:
    for file in (SHIPPED / name).rglob("*.json"):
        assert not re.search(r"[\s\"=\[]/\w+/", file.read_text(encoding="utf-8")), file


def test_a_world_without_a_word_about_it_is_loaded(tmp_path: Path) -> None:
    described = json.loads((save_tiny_world(tmp_path / "world") / CONFIG_FILE).read_text())
    assert described.pop("about") == ""
    assert WorldConfig.from_json(described).about == ""
    with pytest.raises(WorldError, match="a world's about must be printable text .*, got 3"):
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
        (("files",), {"../../model.safetensors": ""}, r"lists '\.\./\.\./model"),
        (("files",), {"/etc/passwd": ""}, "lists '/etc/passwd'"),
        (("name",), "a\x1b[2J", r"name must be printable text.*got a\\x1b\[2J"),
        (("name",), "x" * 1000, "name must be printable text of at most 100"),
        (("licence",), ["MIT"], "licence"),
        (("frame_rate",), 10**400, "frame_rate"),
        (("frame_rate",), "10", "frame_rate"),
        (("frame_rate",), 1e9, "frame_rate"),
        (("max_episode_steps",), 0, "max_episode_steps must be"),
        (("max_episode_steps",), 10.0, "max_episode_steps must be"),
        (("sampler", "num_steps"), 2.5, "num_steps"),
        (("sampler", "num_steps"), 65, "denoising steps"),
        (("sampler", "noise_scale"), 1e30, "noise_scale"),
        (("sampler", "shift"), True, "shift"),
        (("denoiser", "half_lives"), [1, 10**400], "half_lives"),
        (("denoiser", "window_layers"), ["1"], "window_layers"),
        (("denoiser", "previous_frame"), "yes", "previous_frame"),
        (("denoiser", "num_values"), [2, 2, 2], "axes of"),
        (("denoiser", "latent_shape"), [4, 4, 8], "its codec makes"),
        (("actions", "axes"), "abc", "action layout"),
        (("provenance",), [], "provenance"),
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
        assert inner in node or inner in ("heads", "max_episode_steps")
    node[path[-1] if path else ""] = value
    (folder / CONFIG_FILE).write_text(json.dumps(data if path else value))
    with pytest.raises(WorldError, match=rf"config\.json.*{message}"):
        World.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("denoiser", {"num_layers": 10**9}),
        ("denoiser", {"num_layers": 1000}),
        ("denoiser", {"ffn_dim": 10**7}),
        ("denoiser", {"ffn_dim": 10**5}),
        ("denoiser", {"dim": 2**16}),
        ("denoiser", {"window": 10**6}),
        ("denoiser", {"window": 4096, "window_layers": [0, 1, 2], "dim": 2**15}),
        ("denoiser", {"latent_shape": [4, 2**20, 2**20]}),
        ("codec", {"encoder_blocks": [0, 0, 10**9]}),
        ("codec", {"encoder_blocks": [0, 0, 64]}),
        ("codec", {"widths": [4096, 4, 8]}),
        ("codec", {"size_multiple": 2**20}),
        ("codec", {"height": 2**20}),
    ],
)
def test_a_description_of_more_than_its_weights_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, change: dict[str, Any]
) -> None:
    def build(*_: object) -> None:
        raise AssertionError("nothing may be built")

    folder = save_tiny_world(tmp_path / "world")
    data = json.loads((folder / CONFIG_FILE).read_text())
    data[part] |= change
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    monkeypatch.setattr(f"worldsim.world.world.{'Denoiser' if part == 'denoiser' else 'FrameCodec'}", build)
    with pytest.raises(WorldError, match="world"):
        World.from_pretrained(folder)


def test_a_window_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    data = json.loads((folder / CONFIG_FILE).read_text())
    data["denoiser"] |= {"window": 4096, "window_layers": [0, 1, 2], "dim": 2**13}
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    with pytest.raises(WorldError, match=r"would remember .* GiB of each dream.*window of 4096 frames"):
        World.from_pretrained(folder)


def test_no_world_has_fewer_weights_than_its_description_needs_at_least() -> None:
    for world in (tiny_world(), World.from_pretrained("grid-recall")):
        for module in (world.denoiser, world.codec):
            least = module.config.min_weights
            assert least <= sum(tensor.numel() for tensor in module.state_dict().values()) < 4 * least


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("latent_mean", lambda tensor: tensor * float("nan"), "latent_mean holds NaN or inf"),
        ("latent_mean", lambda tensor: tensor.to(torch.float8_e4m3fn), "latent_mean holds float8_e4m3fn"),
        ("latent_mean", lambda tensor: tensor.to(torch.int32), "latent_mean holds int32"),
        ("latent_mean", lambda tensor: tensor.to(torch.complex64), "latent_mean holds complex64"),
        ("latent_mean", lambda tensor: tensor[:2].clone(), "does not fit"),
    ],
)
def test_weights_that_are_no_finite_numbers_of_their_shape_are_refused(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    folder = save_tiny_world(tmp_path / "world")
    tensors = load_file(folder / CODEC_FILE)
    save_file(tensors | {name: change(tensors[name])}, folder / CODEC_FILE)
    write_config(folder, read_config(folder)[0])
    with pytest.raises(WorldError, match=message):
        World.from_pretrained(folder)


def test_a_link_out_of_the_folder_of_a_world_is_refused_but_for_the_cache_of_the_hub(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (folder / MODEL_FILE).rename(blobs / "4567")
    (folder / MODEL_FILE).symlink_to(Path("../../blobs/4567"))
    World.from_pretrained(folder)
    (folder / MODEL_FILE).unlink()
    (blobs / "4567").rename(tmp_path / "elsewhere")
    (folder / MODEL_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorldError, match=r"model\.safetensors is a link to .*elsewhere"):
        World.from_pretrained(folder)


def test_start_moments_of_other_buttons_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    path = folder / STARTS_FOLDER / "dataset.json"
    data = json.loads(path.read_text())
    data["actions"] = {"axes": [{"name": "z", "buttons": ["q"], "keys": [["q"]]}]}
    path.write_text(json.dumps(data))
    write_config(folder, read_config(folder)[0])
    with pytest.raises(WorldError, match="starts have another size or other buttons"):
        _ = World.from_pretrained(folder).starts


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


def test_the_longest_game_is_kept_told_and_left_out_where_there_is_none(tmp_path: Path) -> None:
    for longest in (None, 1500):
        folder = tmp_path / f"{longest}"
        tiny_world(max_episode_steps=longest).save_pretrained(folder)
        assert World.from_pretrained(folder).config.max_episode_steps == longest
        assert ("max_episode_steps" in (folder / CONFIG_FILE).read_text()) == (longest is not None)
        card = (folder / "README.md").read_text()
        assert ("- Longest game: 1,500 frames (150 s), then time is up\n" in card) == (longest is not None)

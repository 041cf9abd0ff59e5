"""Checkpoints of all layouts load to the same tensors, and what cannot be loaded is named in a sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.wan_models import library_transformer, tiny_config, tiny_transformer, zero_weights
from worldsim.errors import WorldError
from worldsim.wan.checkpoint import PATIENT, load_transformer
from worldsim.wan.keys import from_diffusers, to_diffusers
from worldsim.wan.transformer import WanTransformer

ORIGINAL = {"dim": 24, "num_heads": 2, "eps": 1e-6, "text_len": 12, "model_type": "t2v"}
"""Of the configuration beside a checkpoint in the original layout."""

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_transformer().state_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL))
    return tmp_path


def loaded(path: Path, group: str | None = None) -> WanTransformer:
    return load_transformer(path, torch.float32, group=group)


def assert_same(model: WanTransformer, weights: Weights) -> None:
    found = model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert model.config == tiny_config()


def with_prefix(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def wrapped(weights: Weights) -> Weights:
    """Name tensors as an average taken inside sharded and checkpointed modules does."""
    return {
        "model._fsdp_wrapped_module."
        + name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."): tensor
        for name, tensor in weights.items()
    }


LAYOUTS: dict[str, Callable[[Weights], Weights]] = {
    "original": dict,
    "diffusers": lambda w: {to_diffusers(name): tensor for name, tensor in w.items()},
    "ComfyUI": lambda w: with_prefix(w, "model.diffusion_model."),
    "ComfyUI, with its autoencoder": lambda w: (
        with_prefix(w, "model.diffusion_model.") | {"first_stage_model.conv": torch.zeros(2)}
    ),
    "wrapped": wrapped,
    "flat groups": lambda w: (
        with_prefix(w, "generator_ema.model.")
        | {f"generator.model.{name}": tensor + 1 for name, tensor in w.items()}
        | {"critic.head": torch.zeros(2)}
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_loads_to_the_same_tensors(layout: str, folder: Path, weights: Weights) -> None:
    save_file(LAYOUTS[layout](weights), folder / "model.safetensors")
    assert_same(loaded(folder), weights)
    assert_same(loaded(folder / "model.safetensors"), weights)


def test_a_bar_shows_how_far_loading_is_to_who_waits(
    folder: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            shown.append(text)
            return len(text)

    save_file(weights, folder / "model.safetensors")
    monkeypatch.setattr(sys, "stderr", Terminal())
    loaded(folder / "model.safetensors")
    assert not "".join(shown).strip(), "it took less than two seconds"
    monkeypatch.setitem(PATIENT, "delay", 0)
    loaded(folder / "model.safetensors")
    assert f"loading model.safetensors:   0%|          | 0/{len(weights)}" in "".join(shown)


def test_names_of_diffusers_are_told_apart_and_back(weights: Weights) -> None:
    names = [to_diffusers(name) for name in weights]
    assert len(set(names)) == len(names)
    assert [from_diffusers(name) for name in names] == list(weights)
    assert to_diffusers("blocks.3.norm3.bias") == "blocks.3.norm2.bias"
    assert to_diffusers("head.modulation") == "scale_shift_table"
    assert to_diffusers("blocks.0.modulation") == "blocks.0.scale_shift_table"


def test_what_diffusers_saves_is_loaded(tmp_path: Path, weights: Weights) -> None:
    """As a pipeline's folder: the transformer in shards, in a folder of its own."""
    other = library_transformer(tiny_transformer())
    other.save_pretrained(tmp_path / "transformer", max_shard_size="40KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    model = loaded(tmp_path)
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert model.config == tiny_config(text_len=512), "diffusers keeps no length of texts"


@pytest.mark.parametrize(
    ("content", "group"),
    [
        (lambda w: {"generator": with_prefix(w, "model."), "critic": {"a": torch.zeros(1)}}, None),
        (lambda w: {"generator": {"model.a": torch.zeros(1)}, "generator_ema": wrapped(w)}, None),
        (lambda w: {"generator": with_prefix(w, "model."), "generator_ema": {}}, "generator"),
        (lambda w: {"model": w, "step": 3}, None),
        (lambda w: w, None),
    ],
)
@pytest.mark.parametrize("is_old", [False, True])
def test_checkpoints_of_trainings_are_loaded(
    content: Callable[[Weights], Any], group: str | None, is_old: bool, folder: Path, weights: Weights
) -> None:
    path = folder / "model.pt"
    torch.save(content(weights), path, _use_new_zipfile_serialization=not is_old)
    assert_same(loaded(path, group), weights)


def test_parameters_are_rounded_to_the_format_asked_for(folder: Path, weights: Weights) -> None:
    save_file(weights, folder / "model.safetensors")
    found = load_transformer(folder).state_dict()
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in weights.items())


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda w: {key: tensor for key, tensor in w.items() if key != name}


def plus(name: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda w: w | {name: torch.zeros(shape)}


REFUSED: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "unknown": (plus("blocks.0.extra.weight", 2), r"has 1 tensors of no use, blocks\.0\.extra\.weight first"),
    "missing": (without("blocks.1.ffn.2.bias"), r"lacks 1 tensors, blocks\.1\.ffn\.2\.bias first"),
    "missing, decisive": (without("patch_embedding.weight"), r"lacks patch_embedding\.weight"),
    "layer": (plus("blocks.9999.modulation", 1, 6, 24), "num_layers must be at most 1024"),
    "shape": (
        plus("head.modulation", 1, 3, 24),
        r"head\.modulation has the shape \[1, 3, 24\], not \[1, 2, 24\]",
    ),
    "axes": (plus("patch_embedding.weight", 24, 16), r"patch_embedding\.weight has the shape \[24, 16\]"),
    "14 B": (plus("patch_embedding.weight", 5120, 16, 1, 2, 2), "width 5120; only Wan 2.1 T2V 1.3B"),
    "image": (plus("patch_embedding.weight", 24, 36, 1, 2, 2), "takes 36 channels .* image-to-video"),
    "image, original": (plus("img_emb.proj.0.weight", 2), "is an image-to-video model"),
    "image, diffusers": (plus("blocks.0.attn2.add_k_proj.weight", 2), "is an image-to-video model"),
    "LoRA": (lambda _: {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2)}, "is a LoRA"),
    "LoRA, Kohya": (lambda _: {"lora_unet_blocks_0_ffn_0.lora_down.weight": torch.zeros(2)}, "is a LoRA"),
    "hybrid": (plus("blocks.0.self_attn.A_log", 2), r"lacks 7 tensors, blocks\.0\.self_attn\.a_proj"),
    "game": (plus("blocks.0.action_model.t_qkv.weight", 2), "is a Matrix-Game model"),
    "control": (plus("vace_blocks.0.before_proj.weight", 2), "is a VACE model"),
    "quantized": (plus("blocks.0.ffn.0.scale_weight", 1), "is quantized"),
    "another prefix": (
        lambda w: with_prefix(w, "net.dit."),
        r"no transformer of the Wan family.*\(it has net\.",
    ),
    "another model": (lambda _: {"conv1.weight": torch.zeros(2)}, "no transformer of the Wan family"),
    "empty": (lambda _: {}, "no transformer of the Wan family.*it is empty"),
    "integers": (
        lambda w: w | {"patch_embedding.bias": torch.zeros(24, dtype=torch.int8)},
        "holds int8 numbers",
    ),
    "NaN": (
        lambda w: w | {"patch_embedding.bias": torch.full((24,), torch.nan)},
        r"patch_embedding\.bias holds NaN",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name: str, folder: Path, weights: Weights) -> None:
    change, message = REFUSED[name]
    save_file(change(dict(weights)), folder / "model.safetensors")
    with pytest.raises(WorldError, match=message) as raised:
        loaded(folder)
    assert "\n" not in str(raised.value)


def test_a_described_number_of_another_kind_is_named(folder: Path, weights: Weights) -> None:
    save_file(weights, folder / "model.safetensors")
    for wrong, message in {"text_len": "must be an integer", "eps": "must be a finite number"}.items():
        (folder / "config.json").write_text(json.dumps(ORIGINAL | {wrong: [1.5]}))
        with pytest.raises(WorldError, match=f"{wrong} {message}"):
            loaded(folder)


def test_a_value_beyond_the_format_is_named(folder: Path, weights: Weights) -> None:
    save_file(weights | {"head.head.bias": torch.full((64,), 1e6)}, folder / "model.safetensors")
    with pytest.raises(WorldError, match=r"head\.head\.bias holds NaN, inf, or what float16 cannot hold"):
        load_transformer(folder, torch.float16)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_code_in_a_pickle_is_not_run(protocol: int | None, folder: Path, weights: Weights) -> None:
    made, path = folder / "made", folder / "model.pt"
    if protocol is None:
        torch.save({"generator": weights, "hook": Harmful(made)}, path)
    else:
        path.write_bytes(pickle.dumps({"hook": Harmful(made)}, protocol=protocol))
    with pytest.raises(WorldError, match="holds objects or code beside tensors, which are never loaded"):
        loaded(path)
    assert not made.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "old.pt"])
def test_half_a_download_is_named(name: str, share: float, folder: Path, weights: Weights) -> None:
    path = folder / name
    if path.suffix == ".pt":
        torch.save(weights, path, _use_new_zipfile_serialization=name != "old.pt")
    else:
        save_file(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(WorldError, match=f"{name} is damaged or only part of a download") as raised:
        loaded(path)
    assert "\n" not in str(raised.value)


def test_a_page_that_was_saved_instead_is_named(folder: Path) -> None:
    for name in ("model.pt", "model.safetensors"):
        (folder / name).write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
        with pytest.raises(WorldError, match=f"{name} is damaged or only part of a download"):
            loaded(folder / name)


def test_files_that_are_no_checkpoints_are_named(folder: Path, weights: Weights) -> None:
    with pytest.raises(WorldError, match="holds no checkpoint"):
        loaded(folder)
    with pytest.raises(WorldError, match="does not exist"):
        loaded(folder / "none.safetensors")
    for name, message in (
        ("a.gguf", "is no checkpoint"),
        ("a.safetensors.part", "a download that has not ended"),
    ):
        (folder / name).write_bytes(b"abc")
        with pytest.raises(WorldError, match=message):
            loaded(folder / name)
    (folder / "p.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(WorldError, match="only a pointer of Git LFS"):
        loaded(folder)
    save_file(weights, folder / "q.safetensors")
    with pytest.raises(WorldError, match="holds 2 checkpoints"):
        loaded(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"generator": {"a": "text"}}, "the entry generator of .* holds a: not tensors alone"),
        ({"optimizer": {"a": torch.zeros(1)}}, "holds optimizer: not tensors alone"),
        ([torch.zeros(1)], "holds no dictionary of tensors but list"),
    ],
)
def test_entries_that_are_no_tensors_are_named(content: Any, message: str, folder: Path) -> None:
    torch.save(content, folder / "model.pt")
    with pytest.raises(WorldError, match=message):
        loaded(folder)


def test_an_entry_that_is_not_there_is_named(folder: Path, weights: Weights) -> None:
    torch.save({"generator": weights}, folder / "model.pt")
    with pytest.raises(WorldError, match="has no entry generator_ema; it has generator"):
        loaded(folder, "generator_ema")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({}, "lists no shards"),
        ({"a": "../b.safetensors"}, "lists no shards"),
        ({"a": "b.safetensors"}, r"names b\.safetensors, which is not beside it"),
        ({"a": "c.safetensors"}, "names 1 tensors that its shards lack, a first"),
    ],
)
def test_an_index_whose_shards_are_not_whole_is_named(listed: dict, message: str, folder: Path) -> None:
    save_file({"z": torch.zeros(1)}, folder / "c.safetensors")
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(WorldError, match=message):
        loaded(folder)


MEASURE = """
import resource, sys, torch
from pathlib import Path
from worldsim.wan.checkpoint import load_transformer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_transformer(Path(sys.argv[1]), torch.float32)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of peak memory differ")
def test_peak_memory_is_little_more_than_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(zero_weights(dim=256, num_layers=12, ffn_dim=2048, text_dim=64), path)
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], check=True, capture_output=True, text=True
    )
    size = path.stat().st_size
    assert size > 70e6
    assert int(told.stdout) < 1.3 * size

"""A world stored in 8 bits is half as large and nearly the same; scales that do not fit are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes import tiny_world
from worldsim.errors import WorldError
from worldsim.storage.quantization import BLOCK, SCALES, quantize
from worldsim.storage.tensors import CODEC_FILE
from worldsim.world.rewrite import is_same_encoder
from worldsim.world.world import MODEL_FILE, World, read_config, write_config


def test_a_world_in_8_bits_is_half_as_large_and_nearly_the_same(tmp_path: Path) -> None:
    world = World.from_pretrained("grid-recall")
    folders = [tmp_path / name for name in ("whole", "half", "again")]
    world.save_pretrained(folders[0])
    world.save_pretrained(folders[1], bits=8)
    half = World.from_pretrained(folders[1])
    half.save_pretrained(folders[2], bits=8)
    sizes = [(folder / MODEL_FILE).stat().st_size for folder in folders]
    assert sizes[1] < 0.55 * sizes[0]
    assert (folders[1] / MODEL_FILE).read_bytes() == (folders[2] / MODEL_FILE).read_bytes()
    assert half.identity == World.from_pretrained(folders[1], dtype=torch.bfloat16).identity
    for name, weight in World.from_pretrained(folders[0]).denoiser.state_dict().items():
        found = half.denoiser.state_dict()[name]
        assert (found - weight).norm() <= 0.01 * weight.norm(), name
    whole = World.from_pretrained(folders[0])
    stored = load_file(folders[1] / CODEC_FILE)
    kernels = [name for name in stored if name.startswith("decoder.") and name.endswith(SCALES)]
    assert kernels and not any(name.endswith(SCALES) for name in stored if not name.startswith("decoder."))
    assert is_same_encoder(whole.codec, half.codec)
    for name in (kernel.removesuffix(SCALES) for kernel in kernels):
        was, found = (each.codec.state_dict()[name] for each in (whole, half))
        assert 0 < (found - was).norm() <= 0.015 * was.norm(), name
    with pytest.raises(WorldError, match="8 or 16 bits, not in 4"):
        world.save_pretrained(tmp_path / "quarter", bits=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scales: scales[:-1], "patch_embedding.weight: .* numbers have .* scales"),
        (lambda scales: scales * math.inf, "patch_embedding.weight holds NaN or inf"),
        (lambda scales: scales[None], "patch_embedding.weight#scales scales no numbers of 8 bits"),
    ],
)
def test_scales_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    world = tiny_world()
    world.save_pretrained(tmp_path / "world", bits=8)
    path = tmp_path / "world" / MODEL_FILE
    tensors, name = load_file(path), "patch_embedding.weight"
    weight = torch.ones(BLOCK, BLOCK)
    values, scales = quantize(weight, 8)
    save_file(tensors | {name: values, name + SCALES: change(scales).contiguous()}, path)
    write_config(tmp_path / "world", read_config(tmp_path / "world")[0])
    with pytest.raises(WorldError, match=message):
        World.from_pretrained(tmp_path / "world")

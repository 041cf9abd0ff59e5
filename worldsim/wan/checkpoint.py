"""Checkpoints of the Wan family: recognized, checked against the network, read tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from worldsim.errors import WorldError
from worldsim.storage.files import check_integer, check_number, shown
from worldsim.storage.tensors import CONFIG_FILE, FLOATS, read_object
from worldsim.wan.adapters import FoldedTensors, adapter_rank, hybrid_layers_of
from worldsim.wan.config import PATCH, WanConfig
from worldsim.wan.keys import from_diffusers, is_diffusers_layout, without_wrappers
from worldsim.wan.sources import Tensors, open_tensors
from worldsim.wan.transformer import WanTransformer

HEAD_WIDTH = 128
"""Of every published checkpoint; another one is read from the configuration beside the file."""
MAX_DIM = 1536
"""Width of the 1.3 B model, the largest that is supported."""

PATIENT: dict[str, Any] = {"delay": 2.0, "leave": False, "disable": None}
"""Of a bar that shows once somebody at a terminal has waited for two seconds, and goes when it is done."""

Shapes = Mapping[str, tuple[int, ...]]

CHANGES = r"lora[_.]|\.(lora|hada|lokr)|\.diff(_b)?$"
_UNSUPPORTED = {
    CHANGES: "is a LoRA or another change to a model: merge it into the model that it changes, and give that "
    "one",
    r"action_model\.": "is a Matrix-Game model, whose action layers are not supported",
    r"^vace_": "is a VACE model, which is controlled by videos; only text-to-video models are supported",
    r"img_emb\.|image_embedder\.|k_img|add_k_proj": "is an image-to-video model; "
    "only text-to-video models are supported",
    r"\.(scale_weight|weight_scale|input_scale|scale_input|absmax)$|^scaled_fp8": "is quantized; "
    "give the model in 16 or 32 bits",
}
"""Names that belong to models which are not supported, with what is said of them; the first found is."""


def load_transformer(
    path: Path, dtype: torch.dtype = torch.bfloat16, *, group: str | None = None
) -> WanTransformer:
    """Load a Wan 2.1 text-to-video transformer of at most 1.3 B parameters onto the CPU.

    The original layout, that of diffusers, and trainings' checkpoints around either are read: `open_tensors`
    says which files. Beside the model, one tensor at a time is in memory.

    Args:
        path: A file, or a folder that holds one.
        dtype: To hold the parameters in; the file's are rounded to it.
        group: Entry of a training's checkpoint: `generator_ema` by default, where it is there.

    Raises:
        WorldError: If it is damaged, another model, or a tensor is unknown, missing, of another shape, or
            holds what is no finite number.
    """
    tensors, named, config = recognized(path, group)
    return _filled(config, dtype, tensors, named, path)


def recognized(path: Path, group: str | None) -> tuple[Tensors, dict[str, str], WanConfig]:
    """Find out what a checkpoint is, without reading its weights; arguments are those of `load_transformer`.

    Returns:
        Its tensors, our name of each with that to read it by, and the network's shape.

    Raises:
        WorldError: As `load_transformer`, but for what is wrong with the numbers.
    """
    tensors = open_tensors(path, group)
    named = ours_by_name(tensors.shapes, path)
    if hybrid_layers_of(named):
        tensors = FoldedTensors(tensors, named, path)
        named = {name: name for name in tensors.shapes}
    shapes = {name: tensors.shapes[given] for name, given in named.items()}
    config = config_of(shapes, described_beside(path), path)
    check_shapes(shapes, config, path)
    return tensors, named, config


def read_transformer(config: WanConfig, path: Path, dtype: torch.dtype = torch.bfloat16) -> WanTransformer:
    """Load a transformer of a known shape, by our names, onto the CPU; see `load_transformer`.

    Raises:
        WorldError: If it is damaged, a tensor is unknown, missing, of another shape, or holds what is no
            finite number.
    """
    tensors = open_tensors(path)
    check_shapes(tensors.shapes, config, path)
    return _filled(config, dtype, tensors, {name: name for name in tensors.shapes}, path)


def _filled(
    config: WanConfig, dtype: torch.dtype, tensors: Tensors, named: Mapping[str, str], path: Path
) -> WanTransformer:
    with torch.device("meta"):
        model = WanTransformer(config)
    model = model.to(dtype).to_empty(device="cpu")
    parameters = list(model.named_parameters())
    with torch.no_grad():
        for name, parameter in tqdm(parameters, f"loading {path.name}", unit="tensor", **PATIENT):
            parameter.copy_(read_finite(tensors, named[name], name, dtype, path))
    return model.eval().requires_grad_(False)


def read_finite(tensors: Tensors, given: str, name: str, dtype: torch.dtype, path: Path) -> torch.Tensor:
    """Return a tensor rounded to `dtype`.

    Args:
        given: Its name in the file.
        name: Ours, for errors.

    Raises:
        WorldError: If it holds no floating-point numbers, or one that is not finite or does not fit.
    """
    tensor = tensors.read(given)
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise WorldError(f"{path}: {name} holds {kind} numbers, not 16 to 64 bit floating-point")
    rounded = tensor.to(dtype)
    total = rounded.sum(dtype=torch.float32)  # several times as fast as looking at each
    if not total.isfinite() and not rounded.isfinite().all():
        raise WorldError(f"{path}: {name} holds NaN, inf, or what {dtype_name(dtype)} cannot hold")
    return rounded


def ours_by_name(shapes: Shapes, path: Path) -> dict[str, str]:
    """Return our name of each tensor with its name in the file.

    Raises:
        WorldError: If these are the names of a model that is not supported, or of none of the Wan family.
    """
    plain = without_wrappers(shapes)
    for pattern, told in _UNSUPPORTED.items():
        if pattern == CHANGES and hybrid_layers_of(plain):
            continue  # the release's adapters, or tensors of no use
        if found := next((name for name in plain if re.search(pattern, name)), None):
            raise WorldError(f"{path} {told} (it has {shown(found, 80)})")
    is_library = is_diffusers_layout(plain)
    named = {from_diffusers(name): given for name, given in plain.items()} if is_library else plain
    if not any(re.fullmatch(r"blocks\.\d+\.self_attn\.q\.weight", name) for name in named):
        first = f"it has {shown(next(iter(plain)), 80)}" if plain else "it is empty"
        raise WorldError(f"{path} holds no transformer of the Wan family: no blocks.0.self_attn.q ({first})")
    return named


def config_of(shapes: Shapes, described: Mapping[str, Any], path: Path) -> WanConfig:
    """Return a network's configuration, from the shapes of its tensors by our names.

    Args:
        described: Of the configuration beside the file, whichever layout; empty where there is none.

    Raises:
        WorldError: If a tensor that decides is missing, or the model is too large or of another kind.
    """

    def size(name: str, axis: int, axes: int) -> int:
        if name not in shapes:
            raise WorldError(f"{path} lacks {name}")
        if len(shapes[name]) != axes:
            raise WorldError(f"{path}: {name} has the shape {list(shapes[name])}, not one of {axes} sizes")
        return shapes[name][axis]

    dim, in_dim = size("patch_embedding.weight", 0, 5), size("patch_embedding.weight", 1, 5)
    if dim > MAX_DIM:
        raise WorldError(
            f"{path} is a model of width {dim}; only Wan 2.1 T2V 1.3B and what has at most its width of "
            f"{MAX_DIM} is supported, no model of 5 B or 14 B parameters"
        )
    out_dim = size("head.head.weight", 0, 2) // PATCH**2
    if in_dim != out_dim:
        raise WorldError(
            f"{path} takes {in_dim} channels and gives {out_dim}, as image-to-video models do; only "
            "text-to-video models are supported"
        )
    layers = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
    heads = described.get("num_heads", described.get("num_attention_heads", max(dim // HEAD_WIDTH, 1)))
    config = WanConfig(
        dim=dim,
        ffn_dim=size("blocks.0.ffn.0.weight", 0, 2),
        num_heads=check_integer(heads, "num_heads", 1),
        num_layers=max(layers) + 1,
        in_dim=in_dim,
        out_dim=out_dim,
        text_dim=size("text_embedding.0.weight", 1, 2),
        freq_dim=size("time_embedding.0.weight", 1, 2),
    )
    if hybrid := hybrid_layers_of(shapes):
        rank = adapter_rank(shapes, hybrid, path)
        config = replace(config, hybrid_layers=hybrid, hybrid_form="published", memory_rank=rank)
    if "text_len" in described:
        config = replace(config, text_len=check_integer(described["text_len"], "text_len", 1))
    if "eps" in described:
        config = replace(config, eps=check_number(described["eps"], "eps"))
    return config


def described_beside(path: Path) -> Mapping[str, Any]:
    """Return what the configuration beside a checkpoint says; published ones are called `config.json`."""
    folder = path if path.is_dir() else path.parent
    inner = folder / "transformer" / CONFIG_FILE
    file = inner if path.is_dir() and inner.is_file() else folder / CONFIG_FILE
    return read_object(file) if file.is_file() else {}


def check_shapes(found: Shapes, config: WanConfig, path: Path) -> None:
    """Raise `WorldError` unless these are the shapes, by our names, of a transformer's tensors."""
    with torch.device("meta"):
        model = WanTransformer(config)
    expected = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    if unknown := sorted(found.keys() - expected.keys()):
        raise WorldError(f"{path} has {len(unknown)} tensors of no use, {shown(unknown[0], 80)} first")
    if missing := sorted(expected.keys() - found.keys()):
        raise WorldError(f"{path} lacks {len(missing)} tensors, {missing[0]} first")
    for name, shape in expected.items():
        if found[name] != shape:
            raise WorldError(f"{path}: {name} has the shape {list(found[name])}, not {list(shape)}")


def dtype_name(dtype: torch.dtype) -> str:
    """Return how a number format is called."""
    return str(dtype).removeprefix("torch.")

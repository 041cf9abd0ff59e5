"""Tiny transformers of the Wan family with random weights, ours and the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import import_wan
from worldsim.model.attention.base import Rotary
from worldsim.model.attention.hybrid import HybridAttention, Prepared
from worldsim.wan.config import CausalConfig, WanConfig
from worldsim.wan.keys import to_diffusers
from worldsim.wan.transformer import WanTransformer

REASON = 'needs diffusers: pip install -e ".[wan]"'


def tiny_config(**changes: Any) -> WanConfig:
    shape = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 2, "text_dim": 32, "text_len": 12}
    return WanConfig(**(shape | {"freq_dim": 32} | changes))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all parameters, those too that start as ones and zeros: a norm left out would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            width = parameter[0].numel() if parameter.ndim > 1 else 25
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + noise / width**0.5)
    return module.eval().requires_grad_(False)


def tiny_transformer(dtype: torch.dtype = torch.float32, **changes: Any) -> WanTransformer:
    model = randomized(WanTransformer(tiny_config(**changes)))
    assert isinstance(model, WanTransformer)
    return model.to(dtype)


def zero_weights(**changes: Any) -> dict[str, Tensor]:
    """Return zeros for a transformer's weights: quickly made, where their size alone counts."""
    with torch.device("meta"):
        model = WanTransformer(tiny_config(**changes))
    return {name: torch.zeros(each.shape) for name, each in model.state_dict().items()}


def library_transformer(model: WanTransformer) -> Any:
    """Return diffusers' transformer with the same weights."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    config = model.config
    other = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_width,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        rope_max_seq_len=64,
    )
    weights = {to_diffusers(name): tensor for name, tensor in model.state_dict().items()}
    other.load_state_dict(weights, strict=True)
    return other.eval().requires_grad_(False)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def tiny_autoencoder(**changes: Any) -> Any:
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    torch.manual_seed(0)
    shape = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return diffusers.AutoencoderKLWan(**(shape | changes)).eval().requires_grad_(False)


def save_tiny_checkpoint(folder: Path, model: WanTransformer | None = None) -> Path:
    """Save a training's checkpoint as it is published, with its autoencoder beside it; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"num_heads": 2, "text_len": 12}))
    weights = (model or tiny_transformer()).state_dict()
    torch.save({"generator": {f"model.{name}": each for name, each in weights.items()}}, folder / "model.pt")
    tiny_autoencoder().save_pretrained(folder / "vae")
    return folder / "model.pt"


def import_tiny_world(folder: Path, *, causal: CausalConfig, **settings: Any) -> Path:
    """Import a tiny checkpoint by the command, as a world of 32 x 48 in fp32; returns its folder."""
    given = {"height": 32, "width": 48, "dtype": "float32", "out": str(folder / "world")}
    path = settings.pop("checkpoint", None) or save_tiny_checkpoint(folder / "checkpoint")
    import_wan.main.run(
        import_wan.command.ImportWanConfig(checkpoint=str(path), causal=causal, **(given | settings))
    )
    return folder / "world"


def note_attention(
    layer: HybridAttention, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Return lists that fill: tokens and turns that a layer is given; states that it reads, and outputs."""
    entered, read = [], []
    prepare, join = layer.prepare, layer.join

    def note_input(x: Tensor, rotary: Rotary) -> Prepared:
        entered.append((x, rotary.place))
        return prepare(x, rotary)

    def note_output(q: Tensor, gate: Tensor, state: Tensor, local: Tensor, rotary: Rotary) -> Tensor:
        read.append((state, join(q, gate, state, local, rotary)))
        return read[-1][1]

    monkeypatch.setattr(layer, "prepare", note_input)
    monkeypatch.setattr(layer, "join", note_output)
    return entered, read

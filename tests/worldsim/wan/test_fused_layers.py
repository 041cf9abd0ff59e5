"""Layers that see a full window can be compiled, one of a kind for all, and draw what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.wan_models import tiny_transformer
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.runtime import fused as fused_module
from worldsim.runtime.cuda_graphs import fuse
from worldsim.wan.causal import FrameCache, commit_block, generate_block
from worldsim.wan.config import CausalConfig
from worldsim.wan.conversion import with_hybrid_layers
from worldsim.wan.transformer import WanTransformer

CAUSAL = CausalConfig(block=1, window=3, sink=1, steps=[1000, 500])
FULL = 2
"""Frames behind which the window is full."""
KINDS = 5
"""What is compiled: behind the attention of either kind, before it, and before a hybrid's without writes."""


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace layers whole, as a compiler would, and run the operators of the trace."""

    def traced_alone(layer: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
        return fuse(layer, "aot_eager")

    def clear() -> None:
        torch._dynamo.reset()
        fused_module.fused.cache_clear()
        fused_module._failures.clear()
        counters.clear()

    monkeypatch.setattr(fused_module, "fuse", traced_alone)
    clear()
    yield
    clear()


def model_of(dtype: torch.dtype) -> WanTransformer:
    torch.manual_seed(0)
    made = with_hybrid_layers(tiny_transformer(num_layers=4), [0, 2], tokens_per_frame=4)
    for layer in (0, 2):
        torch.nn.init.normal_(made.get_parameter(f"blocks.{layer}.self_attn.phi_v.weight"), std=0.2)
    return made.to(dtype)


def drawn(model: WanTransformer, blocks: int, *, is_fused: bool) -> tuple[Tensor, FrameCache]:
    """Return the latents of blocks, `[blocks, 2, 16, 1, 4, 4]`, and the cache behind them."""
    generator = torch.Generator().manual_seed(1)
    text = model.embed_text(torch.randn(2, 12, 32, generator=generator))
    cache, found = FrameCache(), []
    for number in range(blocks):
        noise = torch.randn(2, 2, 16, 1, 4, 4, generator=generator).to(model.dtype)
        cache = replace(cache, is_full=number >= FULL or None)
        with torch.no_grad():
            chosen = is_fused and number >= FULL
            given = (text, cache, CAUSAL, noise[1:])
            found.append(generate_block(model, noise[0], *given, is_fused=chosen))
            cache = commit_block(model, found[-1], text, cache, CAUSAL, is_fused=chosen)
    return torch.stack(found), cache


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_compiled_layers_draw_and_keep_what_others_do(dtype: torch.dtype, most: float) -> None:
    model = model_of(dtype)
    (expected, kept), (found, fused_kept) = (drawn(model, 5, is_fused=each) for each in (False, True))
    assert not fused_module._failures
    assert counters["stats"]["unique_graphs"] == KINDS, "layers of one structure share what is compiled"
    assert expected.float().std() > 0.1 and not torch.equal(expected[-1], expected[-2])
    assert (found.float() - expected.float()).norm() < most * expected.float().norm()
    assert kept.ring is not None and fused_kept.ring is not None
    pairs = zip(
        (kept.ring.keys, kept.ring.values, *kept.matrices),
        (fused_kept.ring.keys, fused_kept.ring.values, *fused_kept.matrices),
        strict=True,
    )
    for one, other in pairs:
        assert one.abs().max() > 1e-3
        assert (one.float() - other.float()).norm() < most * one.float().norm()


def test_what_nobody_keeps_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of drawing no writes, and of a commit neither a velocity nor what lies behind the last layer's keys."""
    model, calls = model_of(torch.float32), []

    def note(name: str) -> None:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_: calls.append(name))

    for name in ("head", "blocks.2.ffn", "blocks.3.ffn"):
        note(name)
    latents, cache = drawn(model, 3, is_fused=False)
    text = model.embed_text(torch.zeros(2, 1, 32))
    written: list[Tensor] = []
    attention = model.get_submodule("blocks.0.self_attn")
    assert isinstance(attention, HybridAttention)
    terms = attention.write_terms

    def note_terms(*given: Any) -> Any:
        made = terms(*given)
        written.extend(made[:1])
        return made

    monkeypatch.setattr(attention, "write_terms", note_terms)
    calls.clear()
    generate_block(model, latents[0], text, cache, CAUSAL, latents[:1])
    assert not written and calls == ["blocks.2.ffn", "blocks.3.ffn", "head"] * 2
    calls.clear()
    commit_block(model, latents[0], text, cache, CAUSAL)
    assert len(written) == 1 and calls == ["blocks.2.ffn"]

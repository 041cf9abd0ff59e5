"""Low-rank changes begin at nothing and fold into the weights exactly."""

from __future__ import annotations

import pytest
import torch

from tests.fakes import tiny_denoiser_config
from training.objectives.lora import LoraConfig, LowRank, add_lora, folded, lora_parameters
from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser

CONFIG = LoraConfig(rank=3, alpha=6.0)


def with_lora(*, changed: bool) -> Denoiser:
    """Return a tiny hybrid model in fp64 with low-rank changes, random ones if `changed`."""
    denoiser = Denoiser(tiny_denoiser_config()).double()
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    add_lora(denoiser, CONFIG)
    if changed:
        for parameter in lora_parameters(denoiser).values():
            parameter.data = torch.randn_like(parameter)
    return denoiser


def velocity(denoiser: Denoiser) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    clean, noisy = torch.randn(2, 1, 3, 4, 4, 6, generator=generator, dtype=torch.float64)
    levels = torch.rand(1, 3, 2, generator=generator, dtype=torch.float64)
    return denoiser(clean, noisy, levels, torch.zeros(1, 3, 3, dtype=torch.int64))


def test_folded_weights_say_the_same_in_fp64() -> None:
    denoiser = with_lora(changed=True)
    plain = folded(denoiser).double()
    assert torch.equal(velocity(plain), velocity(denoiser))
    weight, change = torch.randn(5, 4).double(), LowRank(torch.zeros(5, 4).double(), CONFIG)
    change.B.data = torch.randn_like(change.B)
    torch.testing.assert_close(change(weight), weight + 2.0 * change.B @ change.A, rtol=1e-14, atol=1e-14)


def test_a_folded_model_is_an_ordinary_one_and_the_trained_one_stays() -> None:
    denoiser = with_lora(changed=True)
    before = velocity(denoiser)
    plain = folded(denoiser)
    assert plain.state_dict().keys() == Denoiser(denoiser.config).state_dict().keys()
    assert not lora_parameters(plain)
    assert lora_parameters(denoiser)
    assert torch.equal(velocity(denoiser), before)


def test_at_the_start_nothing_is_changed() -> None:
    denoiser = with_lora(changed=False)
    before = velocity(denoiser)
    for parameter in lora_parameters(denoiser).values():
        parameter.data.zero_()
    assert torch.equal(before, velocity(denoiser))


def test_q_k_v_and_the_mlp_of_hybrid_layers_are_changed_and_nothing_else() -> None:
    denoiser = with_lora(changed=False)
    changed = {name.split(".parametrizations")[0] for name in lora_parameters(denoiser)}
    parts = ("self_attn.q", "self_attn.k", "self_attn.v", "ffn.0", "ffn.2")
    assert changed == {f"blocks.{layer}.{part}" for layer in (0, 2) for part in parts}
    assert {p.shape[0] for name, p in lora_parameters(denoiser).items() if name.endswith(".A")} == {3}


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(WorldError, match=r"lora\.rank must be at least 1, got 0"):
        LoraConfig(rank=0)

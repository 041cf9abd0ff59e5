"""Low-rank changes of weights (LoRA, arXiv 2106.09685), as parametrizations that fold into the weights."""

# O outputs, I inputs, R rank

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.block import Block
from worldsim.model.denoiser import Denoiser
from worldsim.settings import check_settings, setting
from worldsim.wan.layers import WanBlock


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """How much the taken-over weights may change."""

    rank: int = setting(16, "Of the change of a weight matrix.", minimum=1)
    alpha: float = setting(32.0, "The change is multiplied by alpha / rank.", above=0)

    def __post_init__(self) -> None:
        check_settings(self, "lora.")


class LowRank(nn.Module):
    """Adds `scale B A` to a weight `[O, I]`; B is zero at the start, so that nothing changes."""

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.A = nn.Parameter(weight.new_empty(config.rank, inputs))
        self.B = nn.Parameter(weight.new_zeros(outputs, config.rank))
        self.scale = config.alpha / config.rank
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        # As exact as the folding will be: mixed precision would round the product.
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.B, self.A, alpha=self.scale)


def adapted_layers(network: nn.Module) -> Iterator[nn.Linear]:
    """Yield the layers that LoRA changes: q, k, v and the MLP wherever the attention is hybrid."""
    for block in network.modules():
        if isinstance(block, Block | WanBlock) and isinstance(block.self_attn, HybridAttention):
            up, _, down = block.ffn
            for layer in (block.self_attn.q, block.self_attn.k, block.self_attn.v, up, down):
                assert isinstance(layer, nn.Linear)
                yield layer


def add_lora(network: nn.Module, config: LoraConfig) -> None:
    """Attach a low-rank change, zero at the start, to each of `adapted_layers`."""
    for layer in list(adapted_layers(network)):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, config))


def lora_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the low-rank changes by name."""
    return {
        f"{name}.{own}": parameter
        for name, module in network.named_modules()
        if isinstance(module, LowRank)
        for own, parameter in module.named_parameters()
    }


@torch.no_grad()
def folded_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network with the low-rank changes in them."""
    # Not `remove_parametrizations` on a copy: it would take them from the class that both share.
    state = {k: v.clone() for k, v in network.state_dict().items() if ".parametrizations." not in k}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight") and isinstance(module, nn.Linear):
            state[f"{name}.weight"] = module.weight.clone()
    return state


def folded(denoiser: Denoiser) -> Denoiser:
    """Return an ordinary model whose weights hold the low-rank changes; it says the same."""
    plain = Denoiser(denoiser.config).to(denoiser.patch_embedding.weight.device)
    plain.load_state_dict(folded_weights(denoiser), strict=True, assign=True)
    return plain

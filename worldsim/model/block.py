"""The transformer block of Wan 2.1: adaLN modulation from time, attention, GELU MLP; and its output layer."""

# G any leading sizes, N tokens per frame, D model width

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask

from kernels import layers
from worldsim.model.attention.base import Cached, Rotary
from worldsim.model.attention.full import FullAttention
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.attention.window import WindowAttention, WindowBefore
from worldsim.model.config import DenoiserConfig
from worldsim.model.linear import FeedForward, Linear, product_dtype
from worldsim.model.memory.keys import key_multiples

AnyAttention = HybridAttention | WindowAttention | FullAttention
LayerStateIn = Tensor | WindowBefore | BlockMask | None
"""What a layer is given beside the tokens of a segment; see `Block.forward`."""
LayerStateOut = Tensor | Cached | None
"""What a layer hands on to the next segment."""


def build_attention(config: DenoiserConfig, layer: int) -> AnyAttention:
    """Return the attention of a layer, by its number."""
    if layer in config.window_layers:
        return WindowAttention(config.dim, config.num_heads, config.window)
    if layer in config.full_layers:
        return FullAttention(config.dim, config.num_heads)
    half_lives = (config.half_lives[0], config.half_lives[1])
    write_biases = (config.write_biases[0], config.write_biases[1])
    tokens = config.tokens_per_frame
    multiples = key_multiples(config, layer)
    return HybridAttention(config.dim, config.num_heads, tokens, half_lives, write_biases, multiples)


@torch.no_grad()
def initialise_attention(attention: AnyAttention, config: DenoiserConfig) -> None:
    """Fill the projections of a layer's attention."""
    for linear in (attention.q, attention.k, attention.v, attention.o):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    is_by_place = isinstance(attention, HybridAttention) and attention.turns_by_head
    if is_by_place or (config.full_path and isinstance(attention, FullAttention)):
        # A key begins as a place, not as what is there, which who looks for it does not know.
        for linear in (attention.q, attention.k):
            nn.init.ones_(linear.bias)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return LayerNorm of tokens `[..., N, D]`, times `scale` plus `shift`, which are `[..., 1, D]`."""
    if layers.is_fused("modulate", x):
        return layers.modulate(x, shift, scale, product_dtype(x))
    width = x.shape[-1:]
    if scale.numel() == width.numel():  # one frame: they are the norm's own weight and bias, in one pass
        return functional.layer_norm(x, width, scale.flatten(), shift.flatten(), eps=1e-6)
    return torch.addcmul(shift, functional.layer_norm(x, width, eps=1e-6), scale)


def fork_modulated(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return `x` for the residual stream, `[..., N, D]`, and its `modulated_norm`."""
    if layers.is_fused("modulate", x):
        return layers.fork_modulate(x, shift, scale, product_dtype(x))
    return x, modulated_norm(x, shift, scale)


def add_modulated(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `x + gate * branch`, `[..., N, D]`, and its `modulated_norm`."""
    if layers.is_fused("add_modulate", x):
        return layers.add_modulate(x, branch, gate, shift, scale, product_dtype(x))
    x = torch.addcmul(x, branch.to(x.dtype), gate)
    return x, modulated_norm(x, shift, scale)


def modulate_all(blocks: Sequence[Block], conditioning: Tensor) -> list[tuple[Tensor, ...]]:
    """Return what `Block.modulate` gives for each of the blocks, of one frame: a few sums instead of many.

    Args:
        blocks: Any number; a network of one layer commits without running any.
        conditioning: `[B, 6, D]`, at least fp32.
    """
    if not blocks:
        return []
    own = torch.cat([block.modulation for block in blocks]).unsqueeze(2)  # [L, 6, 1, D]
    summed = own + conditioning.transpose(0, 1)  # [L, 6, B, D]
    scales = (1 + summed[:, 1::3]).flatten(0, 1).unsqueeze(-2).unbind()
    parts = summed.flatten(0, 1).unsqueeze(-2).unbind()
    return [
        (parts[6 * i], scales[2 * i], parts[6 * i + 2], parts[6 * i + 3], scales[2 * i + 1], parts[6 * i + 5])
        for i in range(len(blocks))
    ]


class Residual(NamedTuple):
    """The residual stream between two layers, whose last sum the norm that comes next can make on its way.

    Attributes:
        x: `[..., N, D]`, at least fp32.
        branch: `[..., N, D]`, what is still to be added; None is nothing.
        gate: `[..., 1, D]`, of the branch.
    """

    x: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None

    def total(self) -> Tensor:
        """Return the finished sum `x + gate * branch`, `[..., N, D]`."""
        if self.branch is None or self.gate is None:
            return self.x
        return torch.addcmul(self.x, self.branch.to(self.x.dtype), self.gate)

    def modulated(self, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the finished sum and its `modulated_norm`."""
        if self.branch is None or self.gate is None:
            return fork_modulated(self.x, shift, scale)
        return add_modulated(self.x, self.branch, self.gate, shift, scale)

    def of_stream(self, index: int) -> Residual:
        """Return one stream, `[B, F, N, D]`, of tokens `[B, F, S, N, D]`."""
        branch, gate = (None if part is None else part[:, :, index] for part in self[1:])
        return Residual(self.x[:, :, index], branch, gate)


RunBlock = Callable[[int, Residual, Tensor, LayerStateIn, Rotary], Residual]
"""Takes a layer's number and what `Block.forward` takes; returns the tokens after the layer."""


class Block(nn.Module):
    """One layer; `self_attn` is of one of the three kinds of attention."""

    def __init__(self, dim: int, ffn_dim: int, self_attn: AnyAttention) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.ffn = FeedForward(dim, ffn_dim)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def pack(self, num_rows: int) -> None:
        """Reorder weights for inference where this machine can; see `worldsim.model.linear`."""
        self.self_attn.pack(num_rows)
        self.ffn.pack(num_rows)

    def modulate(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        """Return shift, 1 + scale and gate of attention and MLP, each `[G, 1, D]`, of `[G, 6, D]` in fp32."""
        shift, scale, gate, *ffn = (self.modulation[0] + conditioning).unsqueeze(-2).unbind(-3)
        return shift, 1 + scale, gate, ffn[0], 1 + ffn[1], ffn[2]

    def finish(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Add the attention's output and the MLP's."""
        return self._leave(x, attended, modulation).total()

    def _leave(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Residual:
        """Add the attention's output; the MLP's is still to be added."""
        _, _, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        x, entered = add_modulated(x, attended, gate, ffn_shift, ffn_scale)
        return Residual(x, self.ffn(entered), ffn_gate)

    def forward(
        self, residual: Residual, conditioning: Tensor, initial_state: LayerStateIn, rotary: Rotary
    ) -> tuple[Residual, LayerStateOut]:
        """Run all frames of both streams at once (training).

        Args:
            residual: Of tokens `[B, F, S, N, D]`.
            conditioning: `[B, F, S, 6, D]`.
            initial_state: Of a hybrid layer its matrices before the first frame, `[B, H, K, V]`; of a window
                layer what it has cached; of a full layer its mask, if any.
            rotary: Angles of the frames.

        Returns:
            The tokens, as they came: where the next norm adds in one pass (`kernels.layers.add_modulate`) the
            MLP's output is still to be added. And of a hybrid layer the state after the last frame, of a
            window layer what it has cached then, of a full layer None.
        """
        return self.trace(residual, conditioning, initial_state, rotary)[:2]

    def trace(
        self, residual: Residual, conditioning: Tensor, initial_state: LayerStateIn, rotary: Rotary
    ) -> tuple[Residual, LayerStateOut, Tensor, Tensor]:
        """Do what `forward` does; returns also what the attention was given and gave, `[B, F, S, N, D]`."""
        modulation = self.modulate(conditioning)
        x, entered = residual.modulated(modulation[0], modulation[1])
        attended, final_state = self._attend(entered, initial_state, rotary)
        left = self._leave(x, attended, modulation)
        if not layers.is_fused("add_modulate", x):  # nothing is saved by adding later
            left = Residual(left.total())
        return left, final_state, entered, attended

    def _attend(
        self, entered: Tensor, initial_state: LayerStateIn, rotary: Rotary
    ) -> tuple[Tensor, LayerStateOut]:
        attention = self.self_attn
        if isinstance(attention, FullAttention):
            assert initial_state is None or isinstance(initial_state, BlockMask)
            return attention.forward_sequence(entered, initial_state, rotary), None
        if isinstance(attention, WindowAttention):
            assert isinstance(initial_state, WindowBefore)
            return attention.forward_sequence(entered, initial_state, rotary)
        assert isinstance(initial_state, Tensor)
        return attention.forward_sequence(entered, initial_state, rotary)


class Head(nn.Module):
    """Wan's output layer: modulated norm, then one linear map to the patch."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.head = Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, residual: Residual, time: Tensor) -> Tensor:
        """Map tokens `[G, N, D]` with time embedding `[G, D]` to `[G, N, out]`."""
        shift, scale = (self.modulation[0] + time.unsqueeze(-2)).unsqueeze(-2).unbind(-3)
        return self.head(residual.modulated(shift, 1 + scale)[1])

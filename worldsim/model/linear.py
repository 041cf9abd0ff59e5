"""Linear maps of the network; weights can be laid out once for the CPU's bf16 matrix units.

PyTorch reorders a weight on every call. At 80 rows that is 40 % of the call; with the weight reordered once,
and GELU computed on the way out, the results are the same bits (a test holds this).
"""

# N tokens per frame, C h w latent size, P side of a patch, D model width, G leading sizes

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.model.config import PATCH

OUTPUTS = 8
"""Of whose multiple the outputs of a product in 16 bits have to be, for a GPU to load 16 bytes at a time."""


WIDE = (torch.float32, torch.float64)


def at_least_fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32, or wider as it is: PyTorch computes nothing of the state in half precision."""
    return x if x.dtype in WIDE else x.float()  # asked often: a look is quicker than a call


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which linear layers take `x`: that of autocast, where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Packed:
    """Weights of one or more linear layers side by side, reordered for inference with bf16 on a CPU.

    Args:
        layers: Layers with the same input; their outputs are concatenated.
        num_rows: Rows of the inputs to expect; others work, less fast.
    """

    def __init__(self, layers: Sequence[nn.Linear], num_rows: int) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
        biases = [
            layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))
            for layer in layers
        ]
        self.bias = torch.cat([bias.detach() for bias in biases])
        self.sizes = [len(layer.weight) for layer in layers]

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Return `[..., sum of outputs]`, after a tanh-approximated GELU if `gelu`."""
        name, variant = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], variant)


def can_pack(weight: Tensor) -> bool:
    """Return whether this machine computes with reordered weights of this kind."""
    is_cpu_bf16 = weight.device.type == "cpu" and weight.dtype is torch.bfloat16
    return (
        is_cpu_bf16 and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Linear(nn.Linear):
    """A linear layer that takes any floating dtype and computes in its own; see `pack`."""

    packed: Packed | None = None

    def pack(self, num_rows: int) -> None:
        """Reorder the weight for inference where this machine can; call again after it has changed."""
        self.packed = Packed([self], num_rows) if can_pack(self.weight) else None

    def forward(self, input: Tensor, *, gelu: bool = False) -> Tensor:
        """Map `[..., in]` to `[..., out]`, through a tanh-approximated GELU if `gelu`."""
        x = input.to(self.weight.dtype)
        if self.packed is not None:
            return self.packed(x, gelu=gelu)
        out = functional.linear(x, self.weight, self.bias)
        return functional.gelu(out, approximate="tanh") if gelu else out


def map_together(layers: Sequence[Linear], x: Tensor) -> list[Tensor]:
    """Apply several narrow layers in one product: of few outputs each they take a GPU as long as wide ones.

    Args:
        layers: Layers with the same input, on the device and in the dtype of the first.
        x: `[..., in]`.

    Returns:
        What each layer gives, `[..., out]`: parts of one tensor.
    """
    sizes = [layer.out_features for layer in layers]
    padding = -sum(sizes) % OUTPUTS
    weight = functional.pad(torch.cat([layer.weight for layer in layers]), (0, 0, 0, padding))
    biases = [
        layer.weight.new_zeros(size) if layer.bias is None else layer.bias
        for layer, size in zip(layers, sizes, strict=True)
    ]
    out = functional.linear(x.to(weight.dtype), weight, functional.pad(torch.cat(biases), (0, padding)))
    return list(out[..., : sum(sizes)].split(sizes, dim=-1))


class FeedForward(nn.Sequential):
    """Wan's MLP: its layers keep their indices 0 and 2, the GELU between them is number 1."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(Linear(dim, hidden), nn.GELU(approximate="tanh"), Linear(hidden, dim))

    def pack(self, num_rows: int) -> None:
        """Reorder the weights for inference where this machine can."""
        for layer in self:
            if isinstance(layer, Linear):
                layer.pack(num_rows)

    def forward(self, input: Tensor) -> Tensor:
        """Map `[..., dim]` to the same shape."""
        up, _, down = self
        return down(up(input, gelu=True))


def embed_patches(latents: Tensor, embedding: nn.Conv3d) -> Tensor:
    """Return tokens `[G, N, D]`, at least fp32, of latents `[G, C, h, w]`, in the order of Wan 2.1."""
    patches = latents.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # [G, C, rows, P, columns, P]
    patches = patches.movedim((-4, -2), (-5, -4))  # [G, rows, columns, C, P, P]
    weight = embedding.weight.flatten(1)  # [D, C * P * P]
    tokens = functional.linear(patches.flatten(-3).to(weight.dtype), weight, embedding.bias)
    return at_least_fp32(tokens).flatten(-3, -2)


def join_patches(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Return latents `[G, C, h, w]` of tokens `[G, rows * columns, P * P * C]`."""
    x = tokens.unflatten(-1, (PATCH, PATCH, -1)).unflatten(-4, (rows, columns))  # [G, rows, columns, P, P, C]
    x = x.movedim(-1, -5).transpose(-3, -2)  # [G, C, rows, P, columns, P]
    return x.flatten(-2).flatten(-3, -2)

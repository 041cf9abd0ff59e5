"""Muon for many matrices of few shapes: those of one shape are orthogonalised together.

`torch.optim.Muon` updates one matrix after the other. A network of ten layers then launches some 1,500 small
kernels a step, and the GPU waits for them to be launched; together they are about a hundred.

A singular value belongs to a whole matrix. Of matrices that are spread over devices each device keeps its
rows of momentum and weights, gathers the directions in the precision in which they are orthogonalised, and
orthogonalises all of them: half the bytes of gathering the weights once, and what one device computes anyway.
"""

# L matrices of one shape, R C their rows and columns, R <= C while they are orthogonalised

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_lerp,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_lerp_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_mul_,  # pyright: ignore[reportPrivateImportUsage]
    nn,
)

from training.engine.sharding import gather_stack, own_part, split_stack
from worldsim.runtime.device import computes_bf16


def orthogonalise(
    matrices: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> Tensor:
    """Return `matrices` `[L, R, C]` with all singular values near 1 (arXiv 2502.16982, 1).

    In bf16, of which it needs no more; in fp32 on a device that would have to imitate bf16.

    Args:
        matrices: Any shape.
        coefficients: Of the odd polynomial of degree 5 that is iterated.
        num_steps: Iterations.
        eps: Least norm to divide by.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(product_precision(matrices.device))
    x = x.mT if is_tall else x  # the smaller of the two Gram matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.mT  # [L, R, R]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def product_precision(device: torch.device) -> torch.dtype:
    """Return in which number format matrices are orthogonalised on a device."""
    return torch.bfloat16 if computes_bf16(device) else torch.float32


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, its state and its settings, with one batch of products for each shape of matrix."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        like = parameters[0]
        weights: list[Tensor] = [own_part(parameter.detach()) for parameter in parameters]
        grads = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
        momenta = [own_part(self._momentum(parameter)) for parameter in parameters]
        _foreach_lerp_(momenta, grads, 1 - group["momentum"])
        directions = _foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
        rounded = torch.stack(list(directions)).to(product_precision(like.device))
        whole = gather_stack(rounded, like)
        updates = orthogonalise(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
        updates = split_stack(updates, like)
        _foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * adjustment(like.shape, group["adjust_lr_fn"])
        _foreach_add_(weights, list(updates.to(weights[0].dtype).unbind()), alpha=-rate)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def adjustment(shape: torch.Size, name: str | None) -> float:
    """Return what the learning rate of a matrix is multiplied by; `name` as in `torch.optim.Muon`."""
    rows, columns = shape
    if name == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))

"""The torch form keeps its precision where the caller computes in less."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels


def test_a_compiled_scan_under_autocast_has_the_gradient_of_the_eager_one() -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 3, 20, 2, 16, generator=generator) for _ in range(2))
    k = torch.nn.functional.normalize(k, dim=-1).requires_grad_()
    gate = torch.rand(1, 3, 20, 2, generator=generator)
    state = torch.zeros(1, 2, 16, 16)

    def run(k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            before, final = kernels.scan_frames(k, v, -0.1 * gate, gate, state, form="torch")
        return before.square().sum() + final.square().sum()

    gradients = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(k, v)
        gradients.append(torch.autograd.grad(loss, k)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)

"""The blocked form equals the token-by-token recurrence, forward and backward, whatever the gates do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import commit, read, reference, scan_frames
from kernels.frame_maps import frame_maps

REGIMES = ["random", "similar_keys", "no_decay", "hard_decay", "no_write"]


def make_inputs(regime: str, tokens: int, dtype: torch.dtype, frames: int = 1) -> tuple[Tensor, ...]:
    """Draw k, v, g, beta `[2, frames, tokens, 3, ...]` and a state `[2, 3, 16, 8]`."""
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, frames, tokens, 3)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    k, v, state = draw(*shape, 16), draw(*shape, 8), draw(2, 3, 16, 8)
    g = -torch.nn.functional.softplus(draw(*shape)) * 0.1
    beta = 2 * torch.sigmoid(draw(*shape))
    if regime == "similar_keys":  # cosine about 0.99 and beta near its limit of 2
        k = draw(2, frames, 1, 3, 16) + 0.1 * k
        beta = torch.full_like(beta, 1.999)
        g = torch.zeros_like(g)
    elif regime == "no_decay":
        g = torch.zeros_like(g)
    elif regime == "hard_decay":
        g = torch.full_like(g, -20.0)
    elif regime == "no_write":
        beta = torch.zeros_like(beta)
    k = torch.nn.functional.normalize(k, dim=-1)
    return tuple(t.to(dtype) for t in (k, v, g, beta, state))


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("tokens", [1, 7, 16, 80, 100])
def test_commit_equals_the_tokenwise_recurrence_in_fp64(regime: str, tokens: int) -> None:
    k, v, g, beta, state = make_inputs(regime, tokens, torch.float64)
    frame = (k[:, 0], v[:, 0], g[:, 0], beta[:, 0])
    expected = reference.commit(*frame, state)
    torch.testing.assert_close(commit(*frame, state), expected, rtol=1e-9, atol=1e-9)
    transition, write = frame_maps(*frame)
    torch.testing.assert_close(transition @ state + write, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("regime", REGIMES)
def test_commit_in_fp32_stays_near_fp64_even_for_similar_keys(regime: str) -> None:
    inputs = make_inputs(regime, 80, torch.float64)
    frame = tuple(t[:, 0] for t in inputs[:4])
    expected = reference.commit(*frame, inputs[4])
    got = commit(*(t.float() for t in frame), inputs[4].float())
    assert relative_error(got, expected) < 1e-4


def test_commit_then_read_equals_the_recurrence_read() -> None:
    k, v, g, beta, state = make_inputs("random", 80, torch.float64)
    q, gate, local = torch.randn_like(k[:, 0]), torch.rand_like(g[:, 0]), torch.randn_like(v[:, 0])
    frame = (k[:, 0], v[:, 0], g[:, 0], beta[:, 0])
    expected = reference.read(q, reference.commit(*frame, state), gate, local)
    torch.testing.assert_close(read(q, commit(*frame, state), gate, local), expected, rtol=1e-9, atol=1e-9)


def test_scan_over_frames_equals_one_commit_after_another() -> None:
    k, v, g, beta, state = make_inputs("random", 20, torch.float64, frames=5)
    before, final = scan_frames(k, v, g, beta, state)
    for frame in range(5):
        torch.testing.assert_close(before[:, frame], state, rtol=1e-9, atol=1e-9)
        state = reference.commit(k[:, frame], v[:, frame], g[:, frame], beta[:, frame], state)
    torch.testing.assert_close(final, state, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("regime", REGIMES)
def test_gradients_equal_those_of_the_recurrence(regime: str) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(regime, 33, torch.float64)]
    weight = torch.randn(2, 3, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frame = [t[:, 0] for t in inputs[:4]]
    expected = torch.autograd.grad((reference.commit(*frame, inputs[4]) * weight).sum(), inputs)
    frame = [t[:, 0] for t in inputs[:4]]
    got = torch.autograd.grad((commit(*frame, inputs[4]) * weight).sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)

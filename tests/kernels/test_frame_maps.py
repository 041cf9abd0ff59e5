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


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("tokens", [1, 16, 33])
def test_the_scan_and_its_gradients_equal_those_of_the_recurrence(regime: str, tokens: int) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(regime, tokens, torch.float64, frames=3)]
    generator = torch.Generator().manual_seed(0)
    results = []
    for form in ("torch", "reference"):
        outputs = scan_frames(*inputs, form=form)
        weights = [
            torch.randn(out.shape, dtype=out.dtype, generator=generator.manual_seed(0)) for out in outputs
        ]
        results.append((*outputs, *torch.autograd.grad(outputs, inputs, weights)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("regime", REGIMES)
def test_the_scan_in_fp32_stays_near_fp64(regime: str) -> None:
    """1e-3 is what the gradients of every input may differ by; similar keys come to 1e-5."""
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.requires_grad_() for t in make_inputs(regime, 80, dtype, frames=3)]
        before, final = scan_frames(*inputs)
        gradients = torch.autograd.grad((before.sin() + final.unsqueeze(1)).sum(), inputs)
        results.append([t.detach().double() for t in (before, final, *gradients)])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("regime", [r for r in REGIMES if r != "no_write"])
def test_the_state_stays_right_for_252_frames(regime: str) -> None:
    k, v, g, beta, state = make_inputs(regime, 20, torch.float64, frames=252)
    narrow = state.float()
    for frame in range(252):
        inputs = (k[:, frame], v[:, frame], g[:, frame], beta[:, frame])
        state = commit(*inputs, state)
        narrow = commit(*(t.float() for t in inputs), narrow)
        if frame + 1 in (1, 21, 252):
            assert relative_error(narrow, state) < 1e-4


def test_a_commit_of_many_tokens_is_that_of_its_spans() -> None:
    k, v, g, beta, state = make_inputs("random", 300, torch.float64)
    frame = (k[:, 0], v[:, 0], g[:, 0], beta[:, 0])
    torch.testing.assert_close(commit(*frame, state), reference.commit(*frame, state), rtol=1e-9, atol=1e-9)


def test_one_graph_around_the_torch_forms() -> None:
    k, v, g, beta, state = make_inputs("random", 20, torch.float64, frames=2)
    gate, local = torch.rand_like(g), torch.randn_like(v)

    def step(*inputs: Tensor) -> Tensor:
        states, final = scan_frames(*inputs[:5])
        out = read(inputs[0], states, *inputs[5:])
        return out + commit(*(t[:, 0] for t in inputs[:4]), final).sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [t.detach().clone().requires_grad_() for t in (k, v, g, beta, state, gate, local)]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)

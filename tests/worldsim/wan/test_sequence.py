"""Training passes over whole videos at once, to the same velocities as block after block in play."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import kernels
from tests.wan_models import randomized, tiny_config
from worldsim.errors import WorldError
from worldsim.wan.causal import FrameCache, block_velocity, commit_block
from worldsim.wan.config import CausalConfig
from worldsim.wan.conversion import with_hybrid_layers
from worldsim.wan.transformer import WanTransformer

FORMS = {
    "frames, all seen": CausalConfig(block=1, window=None),
    "frames, a window with a sink": CausalConfig(block=1, window=4, sink=2),
    "frames, a short window": CausalConfig(block=1, window=2),
    "chunks, a window": CausalConfig(block=2, window=5, sink=1),
    "chunks, no past": CausalConfig(block=2, window=2),
}
FRAMES = 6
HALF_LIVES = (1.0, 8.0)


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@cache
def model_of(layers: tuple[int, ...], phase: str = "time") -> WanTransformer:
    model = randomized(WanTransformer(tiny_config(num_layers=3, num_values=[3, 2]))).double()
    assert isinstance(model, WanTransformer)
    torch.manual_seed(0)
    given = {"tokens_per_frame": 4, "half_lives": HALF_LIVES, "memory_phase": phase}
    return with_hybrid_layers(model, layers, **given) if layers else model


def one_by_one(model: WanTransformer, video: tuple[Tensor, ...], causal: CausalConfig) -> Tensor:
    clean, noisy, times, text, actions = video
    context, cache, found = model.embed_text(text), FrameCache(), []
    for number in range(clean.shape[2] // causal.block):
        place = slice(number * causal.block, (number + 1) * causal.block)
        given = (context, cache, causal, actions[:, number])
        found.append(block_velocity(model, noisy[:, :, place], times[:, number], *given))
        cache = commit_block(model, clean[:, :, place], *given)
    return torch.cat(found, dim=2)


def video_of(causal: CausalConfig) -> tuple[Tensor, ...]:
    blocks = FRAMES // causal.block
    clean, noisy = (random(2, 16, FRAMES, 4, 4, seed=seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    times = 1000 * torch.rand(2, blocks, generator=generator, dtype=torch.float64)
    actions = torch.randint(2, (2, blocks, 2), generator=generator)
    return clean, noisy, times, random(2, 12, 32, seed=4), actions


@pytest.mark.parametrize("layers", [(), (0, 2)], ids=["softmax", "hybrid"])
@pytest.mark.parametrize("form", FORMS)
def test_a_whole_video_equals_block_after_block(form: str, layers: tuple[int, ...]) -> None:
    model, causal = model_of(layers, "none" if "sink" in form else "time"), FORMS[form]
    video = video_of(causal)
    clean, noisy, times, text, actions = video
    found = model.forward_sequence(clean, noisy, times, text, causal, actions)
    expected = one_by_one(model, video, causal)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_what_turns_the_states_keys_matters_from_the_second_frame_on() -> None:
    causal = FORMS["frames, a window with a sink"]
    clean, noisy, times, text, actions = video_of(causal)
    velocities = [
        model_of((0, 2), phase).forward_sequence(clean, noisy, times, text, causal, actions)
        for phase in ("time", "none")
    ]
    torch.testing.assert_close(velocities[0][:, :, 0], velocities[1][:, :, 0])
    assert (velocities[0] - velocities[1])[:, :, 2:].abs().max() > 1e-4


def test_shapes_that_do_not_fit_are_said() -> None:
    model, causal = model_of(()), FORMS["chunks, a window"]
    clean, noisy, times, text, actions = video_of(causal)
    for given in ((clean[:, :, :5], noisy[:, :, :5], times), (clean, noisy[:, :, :4], times)):
        with pytest.raises(WorldError, match="blocks of 2 latent frames need clean and noisy ones"):
            model.forward_sequence(*given, text, causal, actions)
    with pytest.raises(WorldError, match="blocks of 2 latent frames"):
        model.forward_sequence(clean, noisy, times[:, :2], text, causal, actions)


def test_a_frame_of_thousands_of_tokens_is_scanned_in_spans() -> None:
    """As token by token, forward and backward, where they make no whole number of spans."""
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 2, 531, 2, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    g, beta = (torch.rand(1, 2, 531, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    state = torch.randn(1, 2, 6, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 2, 2, 6, 6, generator=generator, dtype=torch.float64)
    results = []
    for form in ("reference", "torch"):
        given = [
            each.clone().requires_grad_()
            for each in (torch.nn.functional.normalize(k, dim=-1), v, -0.01 * g, beta, state)
        ]
        before, final = kernels.scan_frames(*given, form=form)
        gradients = torch.autograd.grad((before * weight).sum() + final.sum(), given)
        results.append([before, final, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)

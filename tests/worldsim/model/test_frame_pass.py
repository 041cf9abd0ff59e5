"""Work on all layers of a frame at once, beside the same layer by layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import kernels
from tests.fakes import draw, make_denoiser
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.attention.writes import StateUpdate, held_share
from worldsim.model.block import modulate_all
from worldsim.model.config import MemoryKeys, MemoryPhase
from worldsim.model.frame_pass import run_layers, write_matrices


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("recycled", [False, True], ids=["committed", "recycled"])
@pytest.mark.parametrize("keys", list(MemoryKeys))
def test_states_written_at_once_are_those_written_layer_by_layer(
    keys: MemoryKeys, recycled: bool, rows: int
) -> None:
    phase = MemoryPhase.NONE if keys is MemoryKeys.POSE else MemoryPhase.PATH
    denoiser = make_denoiser(phase, memory_keys=keys, recycled=recycled)
    config, layers = denoiser.config, denoiser.layers()
    memory = denoiser.initial_memory(rows)
    states = draw(*memory.matrices.shape)
    memory = replace(memory, matrices=states, phase=draw(*memory.phase.shape))
    with torch.no_grad():
        actions = torch.ones(rows, len(config.num_values), dtype=torch.int64)
        context = denoiser.observe(actions, memory)
        tokens = draw(rows, config.tokens_per_frame, config.dim)
        updates = run_layers(layers, tokens, draw(rows, 6, config.dim), context, memory)[1].updates
        written = write_matrices(layers, updates, None, context.rotary, states)
        hybrid = [block.self_attn for block in layers if isinstance(block.self_attn, HybridAttention)]
        kept = [update for update in updates if isinstance(update, StateUpdate)]
        assert len(hybrid) == len(kept) == len(written) == 2
        for attention, update, before, after in zip(hybrid, kept, states, written, strict=True):
            alone = kernels.commit(*attention.write_terms(update, context.rotary), before)
            torch.testing.assert_close(after, alone, rtol=0, atol=1e-12)
            assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize("rows", [1, 3])
def test_modulation_at_once_is_that_of_each_layer(rows: int) -> None:
    denoiser = make_denoiser(MemoryPhase.PATH)
    layers, conditioning = denoiser.layers(), draw(rows, 6, denoiser.config.dim)
    for block, together in zip(layers, modulate_all(layers, conditioning), strict=True):
        for alone, part in zip(block.modulate(conditioning), together, strict=True):
            assert torch.equal(alone, part)


def test_what_states_hold_already_is_not_written_over() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, memory_keys=MemoryKeys.POSE)
    layers, memory = denoiser.layers(), denoiser.initial_memory(2)
    states = draw(*memory.matrices.shape)
    memory = replace(memory, matrices=states, phase=draw(*memory.phase.shape))
    with torch.no_grad():
        actions = torch.ones(2, len(denoiser.config.num_values), dtype=torch.int64)
        context = denoiser.observe(actions, memory)
        tokens = draw(2, denoiser.config.tokens_per_frame, denoiser.config.dim)
        updates = run_layers(layers, tokens, draw(2, 6, denoiser.config.dim), context, memory)[1].updates

        def written(states: torch.Tensor, novelty: float) -> torch.Tensor:
            return write_matrices(layers, updates, None, context.rotary, states, novelty)

        nothing = torch.zeros_like(states)
        assert torch.equal(written(nothing, 1.0), written(nothing, 0.0)), "what is new is written as ever"
        kept = [update for update in updates if isinstance(update, StateUpdate)]
        hybrid = [block.self_attn for block in layers if isinstance(block.self_attn, HybridAttention)]
        full = written(100 * states, 1.0)
        for attention, update, before, after in zip(hybrid, kept, 100 * states, full, strict=True):
            decay = attention.write_terms(update, context.rotary)[2].sum(1).exp()  # [B, H]
            torch.testing.assert_close(after, decay[..., None, None] * before, rtol=1e-9, atol=0)


def test_the_share_that_a_state_holds_is_that_of_lengths() -> None:
    k, v = torch.eye(3)[None], torch.tensor([[[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]])
    state = torch.tensor([[[6.0, 8.0], [1.0, 0.0], [0.0, 0.0]]])
    assert held_share(k, v, state).tolist() == [[2.0, 0.5, 0.0]]

"""Training's parallel form equals play's frame by frame; denoising changes nothing; time never runs out."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import PATH_KEYS, draw, make_denoiser
from worldsim.errors import WorldError
from worldsim.model.attention.base import LONG, attend, attend_in_play
from worldsim.model.config import DenoiserConfig, MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.inspection import half_lives
from worldsim.model.linear import can_pack
from worldsim.model.memory.state import MemoryState

FRAMES = 9  # longer than the window of 3, so that the sink comes into play


def widened(memory: MemoryState) -> MemoryState:
    """Return the memory in fp64, so that the comparison is not about rounding."""
    return replace(memory, matrices=memory.matrices.double(), phase=memory.phase.double())


@pytest.mark.parametrize("phase", list(MemoryPhase))
@pytest.mark.parametrize(
    ("window_layers", "full_layers"),
    [([1], []), ([], []), ([], [0, 1, 2]), ([1], [2]), ([2], [0])],
    ids=["with_window", "all_hybrid", "all_full", "one_of_each_full_last", "one_of_each_full_first"],
)
@pytest.mark.parametrize("previous_frame", [True, False], ids=["sees_previous", "memory_alone"])
def test_parallel_form_equals_frame_by_frame(
    phase: MemoryPhase, window_layers: list[int], full_layers: list[int], previous_frame: bool
) -> None:
    check_parallel_form(make_denoiser(phase, window_layers, full_layers, previous_frame=previous_frame))


@pytest.mark.parametrize("phase", list(MemoryPhase))
def test_parallel_form_equals_frame_by_frame_with_keys_of_the_plane(phase: MemoryPhase) -> None:
    check_parallel_form(make_denoiser(phase, memory_keys=MemoryKeys.PLANE))


@pytest.mark.parametrize("keys", PATH_KEYS)
def test_parallel_form_equals_frame_by_frame_where_the_path_turns_full_layers_too(keys: MemoryKeys) -> None:
    check_parallel_form(make_denoiser(MemoryPhase.PATH, [], [0, 1, 2], memory_keys=keys, full_path=True))


@pytest.mark.parametrize("keys", PATH_KEYS)
@pytest.mark.parametrize("full_layers", [[], [2]], ids=["constant_memory", "one_full_layer"])
def test_parallel_form_equals_frame_by_frame_with_odometry(keys: MemoryKeys, full_layers: list[int]) -> None:
    make = partial(
        make_denoiser, MemoryPhase.PATH, [1], full_layers, memory_keys=keys, full_path=bool(full_layers)
    )
    denoiser, expecting = make(path_odometry=True), make(path_odometry=False)
    check_parallel_form(denoiser)
    missing, extra = expecting.load_state_dict(denoiser.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("motion.odometer.") for name in extra)
    frames = draw(FRAMES, 1, 4, 8, 8)
    shown, expected = (play(each, frames)[1].phase for each in (denoiser, expecting))
    assert (shown - expected).abs().max() > 1e-3  # it does say something else


def check_parallel_form(denoiser: Denoiser) -> None:
    clean, noisy = draw(2, FRAMES, 4, 8, 8), draw(2, FRAMES, 4, 8, 8, seed=2)
    levels = draw(2, FRAMES, 2, seed=3).sigmoid()
    actions = torch.randint(3, (2, FRAMES, 3), generator=torch.Generator().manual_seed(4))
    parallel = denoiser(clean, noisy, levels, actions)
    memory = widened(denoiser.initial_memory(2))
    for frame in range(FRAMES):
        context = denoiser.observe(actions[:, frame], memory)
        velocity = denoiser.denoise(noisy[:, frame], levels[:, frame, 1], context, memory)
        torch.testing.assert_close(velocity, parallel[:, frame], rtol=1e-4, atol=1e-4)
        memory = widened(denoiser.commit(clean[:, frame], levels[:, frame, 0], context, memory))


def in_bf16(denoiser: Denoiser) -> Denoiser:
    """Return a copy with bf16 weights; tables of angles keep their precision, as when a world is loaded."""
    rounded = deepcopy(denoiser)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    for name, table in denoiser.named_buffers():
        rounded.get_buffer(name).data = table.float()
    return rounded


def play(denoiser: Denoiser, latents: Tensor, *, wide: bool = False) -> tuple[Tensor, MemoryState]:
    """Denoise and commit frames `[F, 1, C, h, w]`; returns the last velocity and the memory after it."""
    memory = denoiser.initial_memory(1)
    actions, level = torch.ones(1, 3, dtype=torch.int64), torch.full((1,), 0.5)
    for frame in latents:
        memory = widened(memory) if wide else memory
        context = denoiser.observe(actions, memory)
        velocity = denoiser.denoise(frame, level, context, memory)
        memory = denoiser.commit(frame, torch.zeros(1), context, memory)
    return velocity, memory


@pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1, dtype=torch.bfloat16)), reason="needs a CPU that multiplies bf16 numbers"
)
@pytest.mark.parametrize("full_layers", [[], [2]], ids=["constant_memory", "one_full_layer"])
@pytest.mark.parametrize("frames", [2, FRAMES], ids=["window_filling", "window_full"])
def test_packed_step_is_as_close_to_the_exact_one_as_the_ordinary_bf16_step(
    frames: int, full_layers: list[int]
) -> None:
    exact = make_denoiser(MemoryPhase.PATH, full_layers=full_layers)
    for parameter in exact.parameters():
        parameter.data = parameter.data.bfloat16().double()  # so that only the arithmetic differs
    ordinary, latents = in_bf16(exact), draw(frames, 1, 4, 8, 8)
    packed = deepcopy(ordinary)
    packed.pack()
    expected = play(exact, latents, wide=True)
    errors = []
    for denoiser in (ordinary, packed):
        velocity, memory = play(denoiser, latents.float())
        errors.append(
            [
                ((ours - theirs).norm() / theirs.norm()).item()
                for ours, theirs in ((velocity, expected[0]), (memory.matrices, expected[1].matrices))
            ]
        )
    for ordinary_error, packed_error in zip(*errors, strict=True):
        # One rounding to bf16 is off by 2^-9 at most. Both forms round about as often, in other places.
        assert packed_error < 4 * 2**-9
        assert packed_error < 1.1 * ordinary_error


@pytest.mark.parametrize("keys", [9, LONG + 3], ids=["few_keys", "many_keys"])
@pytest.mark.parametrize("masked", [False, True], ids=["all_seen", "masked"])
def test_attention_of_play_is_the_attention_of_training(masked: bool, keys: int) -> None:
    q, k, v = draw(2, 5, 3, 8), draw(2, keys, 3, 8, seed=2), draw(2, keys, 3, 8, seed=3)
    mask = (torch.arange(keys) % 4 > 0).expand(2, 1, 1, keys) if masked else None
    heads_first = attend_in_play(*(t.transpose(1, 2) for t in (q, k, v)), mask)
    torch.testing.assert_close(heads_first.transpose(1, 2), attend(q, k, v, mask))


def test_memory_changes_what_is_seen() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, previous_frame=False)
    actions = torch.ones(1, 3, dtype=torch.int64)
    velocities = []
    for seed in (5, 6):
        memory = widened(denoiser.initial_memory(1))
        for latents in (draw(1, 4, 8, 8, seed=seed), draw(1, 4, 8, 8, seed=7)):
            context = denoiser.observe(actions, memory)
            memory = widened(denoiser.commit(latents, torch.zeros(1), context, memory))
        context = denoiser.observe(actions, memory)
        velocities.append(denoiser.denoise(draw(1, 4, 8, 8), torch.ones(1), context, memory))
    assert (velocities[0] - velocities[1]).abs().max() > 1e-3


with_and_without_full_layer = pytest.mark.parametrize(
    "full_layers", [[], [2]], ids=["constant_memory", "one_full_layer"]
)


@with_and_without_full_layer
def test_denoising_leaves_the_memory_bit_identical(full_layers: list[int]) -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, full_layers=full_layers).float()
    memory = denoiser.initial_memory(1)
    actions = torch.tensor([[1, 0, 2]])
    memory = denoiser.commit(
        draw(1, 4, 8, 8).float(), torch.zeros(1), denoiser.observe(actions, memory), memory
    )
    before = {name: tensor.clone() for name, tensor in memory.tensors().items()}
    denoiser.denoise(draw(1, 4, 8, 8).float(), torch.ones(1), denoiser.observe(actions, memory), memory)
    for name, tensor in memory.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_commit_leaves_the_old_state_as_it_was_and_keeps_every_shape() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH).float()
    memory = denoiser.initial_memory(1)
    before = {name: tensor.clone() for name, tensor in memory.tensors().items()}
    context = denoiser.observe(torch.tensor([[1, 0, 2]]), memory)
    after = denoiser.commit(draw(1, 4, 8, 8).float(), torch.zeros(1), context, memory)
    for name, tensor in memory.tensors().items():
        assert torch.equal(tensor, before[name]), name
        assert after.tensors()[name].shape == tensor.shape
    assert after.nbytes == memory.nbytes
    assert after.num_committed.item() == 1
    assert not torch.equal(after.matrices, memory.matrices)


@pytest.mark.parametrize("phase", list(MemoryPhase))
@pytest.mark.parametrize("keys", PATH_KEYS)
def test_frame_one_million_behaves_as_frame_ten(phase: MemoryPhase, keys: MemoryKeys) -> None:
    denoiser = make_denoiser(phase, memory_keys=keys).float()
    memory = denoiser.initial_memory(1)
    actions = torch.tensor([[1, 0, 2]])
    for seed in range(10):
        context = denoiser.observe(actions, memory)
        memory = denoiser.commit(draw(1, 4, 8, 8, seed=seed).float(), torch.zeros(1), context, memory)
    late = replace(memory, num_committed=torch.tensor([1_000_000]))
    outputs = []
    for state in (memory, late):
        context = denoiser.observe(actions, state)
        velocity = denoiser.denoise(draw(1, 4, 8, 8).float(), torch.ones(1), context, state)
        outputs.append((velocity, denoiser.commit(draw(1, 4, 8, 8).float(), torch.zeros(1), context, state)))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1].matrices, outputs[1][1].matrices)
    assert outputs[1][1].phase.abs().max() <= 3.1416


def commit_random(denoiser: Denoiser, memory: MemoryState, *seeds: int) -> MemoryState:
    """Commit one random frame for every seed."""
    rows = len(memory.num_committed)
    actions, clean = torch.ones(rows, 3, dtype=torch.int64), torch.zeros(rows)
    for seed in seeds:
        context = denoiser.observe(actions, memory)
        latents = draw(1, 4, 8, 8, seed=seed).expand(rows, -1, -1, -1).to(memory.latents)
        memory = denoiser.commit(latents, clean, context, memory)
    return memory


def test_the_memory_of_full_layers_grows_by_a_frame_and_leaves_older_states_as_they_were() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, [], [0, 1, 2]).float()
    memory = commit_random(denoiser, denoiser.initial_memory(1), 1, 2, 3)
    before = {name: tensor.clone() for name, tensor in memory.tensors().items()}
    after = commit_random(denoiser, memory, 4)
    branch = commit_random(denoiser, memory, 5)
    kept = {name: tensor.clone() for name, tensor in after.tensors().items()}
    commit_random(denoiser, branch, 6)
    for state, expected in ((memory, before), (after, kept)):
        for name, tensor in state.tensors().items():
            assert torch.equal(tensor, expected[name]), name
    one_frame = 2 * 3 * denoiser.config.tokens_per_frame * denoiser.config.dim * 4  # keys and values, fp32
    assert after.nbytes - memory.nbytes == one_frame
    assert branch.nbytes == after.nbytes
    assert not torch.equal(branch.tensors()["past_keys"], after.tensors()["past_keys"])


def test_a_pass_over_an_older_state_leaves_newer_ones_as_they_were() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, [], [0, 1, 2]).float()
    memory = commit_random(denoiser, denoiser.initial_memory(1), 1, 2, 3)
    context = denoiser.observe(torch.ones(1, 3, dtype=torch.int64), memory)
    noisy, level = draw(1, 4, 8, 8, seed=9).float(), torch.ones(1)
    first = denoiser.denoise(noisy, level, context, memory)
    newer = commit_random(denoiser, memory, 4)
    kept = {name: tensor.clone() for name, tensor in newer.tensors().items()}
    torch.testing.assert_close(denoiser.denoise(noisy, level, context, memory), first)
    for name, tensor in newer.tensors().items():
        assert torch.equal(tensor, kept[name]), name


def test_a_row_that_begins_later_does_not_see_the_frames_before_it() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, [], [0, 1, 2], previous_frame=False)
    both = commit_random(denoiser, denoiser.initial_memory(2), 1, 2, 3)
    both = commit_random(denoiser, replace(both, num_committed=torch.tensor([3, 0])), 4, 5)
    alone = commit_random(denoiser, denoiser.initial_memory(1), 4, 5)
    noisy = draw(1, 4, 8, 8, seed=9)
    velocities = [
        denoiser.denoise(
            noisy.expand(rows, -1, -1, -1),
            torch.ones(rows),
            denoiser.observe(torch.ones(rows, 3, dtype=torch.int64), memory),
            memory,
        )
        for rows, memory in ((2, both), (1, alone))
    ]
    torch.testing.assert_close(velocities[0][1], velocities[1][0], rtol=1e-5, atol=1e-5)
    assert (velocities[0][0] - velocities[0][1]).abs().max() > 1e-3


def test_the_memory_is_built_again_from_its_tensors() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, [0], [2]).float()
    memory = commit_random(denoiser, denoiser.initial_memory(1), 1, 2)
    assert memory.map(lambda _, tensor: tensor.to("cpu")).past is memory.past
    wider = memory.map(lambda _, tensor: tensor.double() if tensor.is_floating_point() else tensor)
    for name, tensor in MemoryState.from_tensors(wider.tensors()).tensors().items():
        assert torch.equal(tensor.to(memory.tensors()[name].dtype), memory.tensors()[name]), name
    assert "past_keys" not in make_denoiser(MemoryPhase.NONE).initial_memory(1).tensors()


def test_half_lives_are_spread_over_the_heads_at_the_start() -> None:
    config = DenoiserConfig(half_lives=[4.0, 4096.0])
    found = half_lives(Denoiser(config))
    assert found.shape == (8, 6)
    torch.testing.assert_close(found[0, [0, -1]], torch.tensor([4.0, 4096.0]).double(), rtol=1e-3, atol=0.0)


def test_actions_are_ignored_until_trained() -> None:
    denoiser = Denoiser(
        DenoiserConfig(
            latent_shape=[4, 8, 8], dim=32, ffn_dim=48, num_heads=2, num_layers=2, window_layers=[1]
        )
    )
    assert denoiser.embed_actions(torch.tensor([[2, 1, 0]])).abs().max() == 0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_heads": 0}, "num_heads"),
        ({"dim": -384}, "dim"),
        ({"ffn_dim": 0}, "ffn_dim"),
        ({"num_layers": 0, "window_layers": []}, "num_layers"),
        ({"dim": 384.0}, "dim"),
        ({"window": 0}, "window"),
        ({"latent_shape": [16, 0, 20]}, "latent_shape"),
        ({"latent_shape": [16, 16]}, "latent_shape"),
        ({"num_values": []}, "num_values"),
        ({"num_values": [3, 0]}, "num_values"),
        ({"window_layers": [3, 3]}, "window_layers"),
        ({"window_layers": [10]}, "window_layers"),
        ({"full_layers": [2, 2]}, "full_layers"),
        ({"full_path": True, "memory_phase": "time"}, "full_path needs memory_phase path, got time"),
        ({"full_layers": [-1]}, "full_layers"),
        ({"full_layers": [2, 3, 7]}, r"share \[3, 7\]"),
        ({"half_lives": [4.0]}, "half_lives"),
        ({"half_lives": [0.0, 4.0]}, "half_lives"),
        ({"half_lives": [8.0, 4.0]}, "half_lives"),
        ({"half_lives": [8.0, float("inf")]}, "half_lives"),
        ({"half_lives": ["a", "b"]}, "half_lives"),
        ({"path_odometry": True, "memory_phase": "none"}, "path_odometry needs memory_phase path, got none"),
        ({"finest_key": 3.2}, "finest_key is an angle above 0 and of at most pi, got 3.2"),
        ({"finest_key": True}, "finest_key is an angle above 0 and of at most pi, got True"),
        ({"finest_key": 1.0}, "finest_key 1.0 needs memory_keys plane, got axes"),
        ({"finest_key": 0.0}, "finest_key is an angle above 0 and of at most pi, got 0.0"),
        ({"memory_keys": "lines"}, "memory_keys must be one of axes, plane"),
        ({"memory_keys": "plane", "dim": 60}, "memory_keys plane needs heads"),
        ({"write_biases": [0.0]}, "write_biases"),
        ({"write_biases": [0.0, float("nan")]}, "write_biases"),
    ],
)
def test_shape_that_no_network_can_have_is_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(WorldError, match=name):
        DenoiserConfig(**change)

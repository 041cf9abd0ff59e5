"""Segments that hand their memory on equal one long sequence, and equal play frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from tests.fakes import PATH_KEYS, draw, make_denoiser
from worldsim.errors import WorldError
from worldsim.model.config import MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.state import MemoryState
from worldsim.model.rotary import turns
from worldsim.model.segments import merge_memory

FRAMES = 10
EXACT = {"rtol": 1e-7, "atol": 1e-7}
"""The tables of angles are rounded to fp32, and a path that is wrapped is rounded to them in other places."""

Batch = tuple[Tensor, ...]
"""Clean and noisy frames, levels, actions; for a recycled model also the noise of first passes."""


def batch_of(rows: int = 2, *, recycled: bool = False) -> Batch:
    """Return the batch of a model."""
    generator = torch.Generator().manual_seed(4)
    actions = torch.randint(3, (rows, FRAMES, 3), generator=generator)
    levels = draw(rows, FRAMES, 2, seed=3).sigmoid()
    noise = (draw(rows, FRAMES, 4, 8, 8, seed=5),) if recycled else ()
    return draw(rows, FRAMES, 4, 8, 8), draw(rows, FRAMES, 4, 8, 8, seed=2), levels, actions, *noise


def cut(batch: Batch, lengths: Sequence[int]) -> Iterator[Batch]:
    """Yield the segments of these lengths."""
    yield from zip(*(t.split(list(lengths), dim=1) for t in batch), strict=True)


def rows_of(batch: Batch, part: slice) -> Batch:
    """Return some rows of a batch."""
    return tuple(tensor[part] for tensor in batch)


def run(denoiser: Denoiser, batch: Batch, memory: MemoryState) -> tuple[Tensor, MemoryState]:
    """Return the velocities of all frames at once, first passes' beside them, and the memory after them."""
    clean, noisy, levels, actions, *noise = batch
    passed = denoiser.run_sequences(clean, noisy, levels, actions, memory, noise=next(iter(noise), None))
    drawn = [each for each in (passed.velocity, passed.first_velocity) if each is not None]
    return torch.cat(drawn, dim=2), merge_memory(memory, passed, clean)


def play(denoiser: Denoiser, batch: Batch, memory: MemoryState) -> tuple[Tensor, MemoryState]:
    """Return the same, one frame after the other."""
    clean, noisy, levels, actions, *noise = batch
    velocities = []
    for frame in range(clean.shape[1]):
        context = denoiser.observe(actions[:, frame], memory)
        first = []
        if denoiser.config.recycled:
            velocity, context = denoiser.first_pass(noise[0][:, frame], context, memory)
            first.append(velocity)
        last = denoiser.denoise(noisy[:, frame], levels[:, frame, 1], context, memory)
        velocities.append(torch.cat([last, *first], dim=1))
        memory = denoiser.commit(clean[:, frame], levels[:, frame, 0], context, memory)
    return torch.stack(velocities, dim=1), memory


def assert_same(ours: MemoryState, theirs: MemoryState) -> None:
    """Compare what is remembered; a path is an angle, and slots of the window that nobody sees may differ."""
    for name, tensor in ours.tensors().items():
        expected = theirs.tensors()[name]
        if name == "phase":
            tensor, expected = turns(tensor), turns(expected)
        torch.testing.assert_close(tensor, expected, msg=lambda text, name=name: f"{name}: {text}", **EXACT)


kinds = pytest.mark.parametrize(
    ("phase", "window_layers", "shape"),
    [
        (MemoryPhase.PATH, [1], {}),
        (MemoryPhase.PATH, [], {"previous_frame": False}),
        (MemoryPhase.TIME, [0, 2], {}),
        (MemoryPhase.NONE, [0, 1, 2], {"previous_frame": False}),
        (MemoryPhase.PATH, [1], {"recycled": True}),
        (MemoryPhase.TIME, [0, 2], {"recycled": True}),
        (MemoryPhase.NONE, [0, 1, 2], {"recycled": True}),
    ],
    ids=[
        "path",
        "path_all_hybrid",
        "time_hybrid_between_windows",
        "all_window",
        "recycled_path",
        "recycled_time_hybrid_between_windows",
        "recycled_all_window",
    ],
)


@kinds
@pytest.mark.parametrize("lengths", [(5, 5), (1, 2, 2, 5), (9, 1)], ids=str)
def test_segments_equal_one_sequence_and_play(
    phase: MemoryPhase, window_layers: list[int], shape: dict[str, bool], lengths: tuple[int, ...]
) -> None:
    denoiser = make_denoiser(phase, window_layers, **shape)
    batch, memory = batch_of(recycled=denoiser.config.recycled), denoiser.initial_memory(2)
    whole, after_whole = run(denoiser, batch, memory)
    given, noise = batch[:4], next(iter(batch[4:]), None)
    for velocity in (denoiser(*given, noise=noise), denoiser.forward_segment(*given, memory, noise)[0]):
        assert torch.equal(velocity, whole[:, :, :4])
    played, after_play = play(denoiser, batch, memory)
    velocities = []
    for segment in cut(batch, lengths):
        velocity, memory = run(denoiser, segment, memory)
        velocities.append(velocity)
    torch.testing.assert_close(torch.cat(velocities, dim=1), whole, **EXACT)
    torch.testing.assert_close(whole, played, **EXACT)
    assert_same(memory, after_whole)
    assert_same(memory, after_play)


@pytest.mark.parametrize("recycled", [False, True], ids=["ordinary", "recycled"])
@pytest.mark.parametrize("keys", PATH_KEYS)
def test_segments_equal_play_with_odometry(keys: MemoryKeys, recycled: bool) -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, memory_keys=keys, path_odometry=True, recycled=recycled)
    batch, memory = batch_of(recycled=recycled), denoiser.initial_memory(2)
    played, after_play = play(denoiser, batch, memory)
    velocities = []
    for segment in cut(batch, (1, 2, 2, 5)):
        velocity, memory = run(denoiser, segment, memory)
        velocities.append(velocity)
    torch.testing.assert_close(torch.cat(velocities, dim=1), played, **EXACT)
    assert_same(memory, after_play)


@kinds
def test_a_row_that_begins_anew_and_one_that_goes_on_equal_play(
    phase: MemoryPhase, window_layers: list[int], shape: dict[str, bool]
) -> None:
    denoiser = make_denoiser(phase, window_layers, **shape)
    first, second = cut(batch_of(recycled=denoiser.config.recycled), (5, 5))
    _, memory = run(denoiser, first, denoiser.initial_memory(2))
    mixed = memory.reset_rows(torch.tensor([False, True]))
    assert mixed.num_committed.tolist() == [5, 0]
    velocity, after = run(denoiser, second, mixed)
    alone = [
        play(denoiser, rows_of(second, slice(1)), memory.first_rows(1)),
        play(denoiser, rows_of(second, slice(1, None)), denoiser.initial_memory(1)),
    ]
    torch.testing.assert_close(velocity, torch.cat([velocities for velocities, _ in alone]), **EXACT)
    assert_same(after.first_rows(1), alone[0][1])
    assert after.num_committed.tolist() == [10, 5]
    torch.testing.assert_close(after.matrices[:, 1:], alone[1][1].matrices, **EXACT)


def test_beginning_anew_empties_only_the_rows_it_is_asked_to() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH)
    _, memory = denoiser.forward_segment(*batch_of(), denoiser.initial_memory(2))
    mixed, empty = memory.reset_rows(torch.tensor([True, False])), denoiser.initial_memory(2)
    for name, tensor in mixed.tensors().items():
        rows = tensor if name in ("phase", "latents", "num_committed") else tensor.movedim(1, 0)
        for row, expected in enumerate((empty, memory)):
            theirs = expected.tensors()[name]
            theirs = theirs if rows is tensor else theirs.movedim(1, 0)
            assert torch.equal(rows[row], theirs[row]), name


@kinds
def test_gradients_of_a_later_segment_are_those_of_play_after_a_memory_that_is_given(
    phase: MemoryPhase, window_layers: list[int], shape: dict[str, bool]
) -> None:
    denoiser = make_denoiser(phase, window_layers, **shape).requires_grad_(True)
    first, second = cut(batch_of(recycled=denoiser.config.recycled), (5, 5))
    _, memory = run(denoiser, first, denoiser.initial_memory(2))
    assert not any(tensor.requires_grad for tensor in memory.tensors().values())
    gradients = []
    for velocity, _ in (run(denoiser, second, memory), play(denoiser, second, memory)):
        denoiser.zero_grad()
        velocity.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in denoiser.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = gradients[1][name].abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(
            gradient / scale,
            gradients[1][name] / scale,
            msg=lambda text, name=name: f"{name}: {text}",
            **EXACT,
        )


def test_the_memory_that_is_given_decides_the_loss_of_the_segment_and_its_gradients() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, previous_frame=False).requires_grad_(True)
    first, second = cut(batch_of(), (5, 5))
    _, memory = denoiser.forward_segment(*first, denoiser.initial_memory(2))
    gradients = []
    for before in (memory, denoiser.initial_memory(2)):
        denoiser.zero_grad()
        denoiser.forward_segment(*second, before)[0].square().sum().backward()
        attention = denoiser.layers()[0].self_attn
        assert attention.q.weight.grad is not None
        gradients.append(attention.q.weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


def test_a_growing_memory_is_refused() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, [1], [2])
    with pytest.raises(WorldError, match=r"layers \[2\] see all past frames"):
        denoiser.forward_segment(*batch_of(), denoiser.initial_memory(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_later_segments_compile_nothing_anew(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    denoiser: nn.Module = make_denoiser(MemoryPhase.PATH).float().requires_grad_(True)
    assert isinstance(denoiser, Denoiser)
    counter = CompileCounter()
    for block in denoiser.layers():
        block.compile(backend=counter, dynamic=False)
    memory = denoiser.initial_memory(2)
    counts = []
    for clean, noisy, levels, actions in cut(batch_of(), (5, 5)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            _, memory = denoiser.forward_segment(
                clean.float(), noisy.float(), levels.float(), actions, memory
            )
        counts.append(counter.frame_count)
        memory = memory.reset_rows(torch.tensor([False, True]))
    assert counts[0] > 0
    assert counts[1] == counts[0]

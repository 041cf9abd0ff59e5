"""A window of frames in places that stay: a value, of which a commit writes the block's own places alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import Tensor

from worldsim.model.memory.frame_ring import FrameRing, RingShape

TOKENS, HEADS, WIDTH = 2, 1, 2
SHAPES = {
    "frames": RingShape(sink=0, kept=3, block=1),
    "chunks": RingShape(sink=0, kept=3, block=3),
    "chunks, a longer window": RingShape(sink=0, kept=4, block=2),
    "sink": RingShape(sink=2, kept=2, block=1),
    "sink longer than a block": RingShape(sink=3, kept=3, block=2),
    "nothing kept": RingShape(sink=0, kept=0, block=2),
}


def content(frames: Tensor, count: int) -> Tensor:
    """Return the numbers of the frames behind `frames` `[B]` as their keys, `[B, F, N, H, D]`."""
    number = 1 + frames[:, None].double() + torch.arange(count)
    return number[..., None, None, None].expand(-1, -1, TOKENS, HEADS, WIDTH)


def committed(ring: FrameRing, frames: Tensor, count: int) -> FrameRing:
    """Write a block as a pass does: its keys are the frames' numbers, its values their negatives."""
    ring.claim()
    rows, places = torch.arange(len(frames))[:, None], ring.shape.own_places(frames, count)
    for layer in range(len(ring.keys)):
        ring.keys[layer][rows, places] = content(frames, count) + 100 * layer
        ring.values[layer][rows, places] = -content(frames, count) - 100 * layer
    return ring.after()


def empty(shape: RingShape, batch: int = 2) -> FrameRing:
    return FrameRing.empty(shape, (2, batch, TOKENS, HEADS, WIDTH), torch.float64, "cpu")


def expected(shape: RingShape, frames: int) -> list[float]:
    """Return the numbers of the frames that are seen, the sink first, 0 where there is none."""
    sink = [number + 1 if number < frames else 0 for number in range(shape.sink)]
    latest = [n + 1 if n >= shape.sink else 0 for n in range(frames - shape.kept, frames)]
    return [float(number) for number in sink + latest]


def shown(ring: FrameRing, frames: Tensor) -> tuple[Tensor, Tensor]:
    return ring.in_order(frames)


@pytest.mark.parametrize("name", SHAPES)
def test_rows_of_different_ages_hold_what_they_see_in_order(name: str) -> None:
    """The first block of a row may be shorter, as that of a video is."""
    shape = SHAPES[name]
    frames = torch.tensor([0, shape.block * 3 - 1])
    ring = committed(empty(shape), frames, 1)
    frames = frames + 1
    for _ in range(9):
        keys, values = shown(ring, frames)
        for row, age in enumerate(frames.tolist()):
            first = max(1, 3 * shape.block)  # of the second row, which began there
            told = [n if row == 0 or n >= first else 0.0 for n in expected(shape, age)]
            for layer in range(2):
                told_here = torch.tensor([n + 100 * layer if n else 0.0 for n in told]).double()
                found = keys[layer, row, :, 0, 0, 0]
                assert torch.equal(found[told_here != 0], told_here[told_here != 0])
                assert torch.equal(values[layer, row, :, 1, 0, 1][told_here != 0], -told_here[told_here != 0])
        seen = shape.visible(frames)
        own = shape.own_places(frames, shape.block)
        assert bool(seen.gather(1, own).all()), "a block sees itself"
        held = [sum(n > 0 for n in expected(shape, age)) for age in frames.tolist()]
        assert seen.sum(1).tolist() == [count + shape.block for count in held]
        ring, frames = committed(ring, frames, shape.block), frames + shape.block


def test_a_commit_moves_nothing_and_writes_its_own_places() -> None:
    shape, frames = SHAPES["sink"], torch.tensor([5])
    ring = committed(empty(shape, 1), frames, 1)
    address, before = ring.keys.data_ptr(), ring.keys.clone()
    after = committed(ring, frames + 1, 1)
    assert after.keys.data_ptr() == address
    changed = (after.keys != before).flatten(3).any(-1)[0, 0]
    assert changed.nonzero().flatten().tolist() == shape.own_places(frames + 1, 1)[0].tolist()


def test_a_state_is_never_changed_while_it_is_held() -> None:
    """The one who stays is copied away, the one who goes on keeps the place."""
    shape, frames = SHAPES["chunks"], torch.tensor([6, 9])
    ring = committed(empty(shape), frames, 3)
    kept, at = ring, frames + 3
    before = [each.clone() for each in shown(kept, at)]
    address = ring.keys.data_ptr()
    one = committed(kept, at, 3)
    assert kept.keys.data_ptr() == one.keys.data_ptr() == address, "a state and the one after it share"
    two = committed(one, at + 3, 3)
    assert two.keys.data_ptr() == address and kept.keys.data_ptr() != address
    assert all(torch.equal(a, b) for a, b in zip(before, shown(kept, at), strict=True))
    other = committed(kept, at, 3)  # another future
    assert all(torch.equal(a, b) for a, b in zip(shown(one, at + 3), shown(other, at + 3), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, shown(kept, at), strict=True))
    assert expected(shape, 15) == shown(two, at + 6)[0][0, 0, :, 0, 0, 0].tolist()


def test_nothing_is_copied_where_nobody_holds_older_states() -> None:
    shape, frames = SHAPES["frames"], torch.tensor([4])
    ring = committed(empty(shape, 1), frames, 1)
    rooms = set()
    for step in range(1, 12):
        ring = committed(ring, frames + step, 1)
        rooms.add(ring._room.keys.data_ptr())
    assert len(rooms) == 1
    ring.claim()
    assert ring.keys.data_ptr() in rooms


def test_it_is_built_again_of_what_it_shows() -> None:
    for shape in SHAPES.values():
        frames = torch.tensor([4, 1])
        ring = committed(empty(shape), frames, shape.block)
        for _ in range(3):
            frames = frames + shape.block
            again = FrameRing.of(shape, *shown(ring, frames), frames)
            found = (shown(each, frames) for each in (ring, again))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
            ring, other = (committed(each, frames, shape.block) for each in (ring, again))
            found = (shown(each, frames + shape.block) for each in (ring, other))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def through_a_pipe(ring: FrameRing) -> FrameRing:
    """Return what another process is sent: PyTorch would hand on the memory itself."""
    return pickle.loads(ForkingPickler.dumps(ring))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda ring: pickle.loads(pickle.dumps(ring)), through_a_pipe]
)
def test_a_copy_shares_nothing(copied: Callable[[Any], Any]) -> None:
    shape, frames = SHAPES["frames"], torch.tensor([4, 2])
    ring = committed(empty(shape), frames, 1)
    other = copied(ring)
    before = [each.clone() for each in shown(other, frames + 1)]
    committed(committed(ring, frames + 1, 1), frames + 2, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, shown(other, frames + 1), strict=True))
    with torch.inference_mode():
        made_within = copied(other)
    committed(made_within, frames + 1, 1)  # which PyTorch forbids for tensors of that mode
    assert ring.with_tensors(ring.keys, ring.values).keys.data_ptr() != ring.keys.data_ptr()


def test_a_recordings_room_takes_in_what_it_is_given() -> None:
    """Whoever was there moves out, and keeps what it saw."""
    shape, frames, homes = SHAPES["frames"], torch.tensor([4]), {}
    first = committed(empty(shape, 1), frames, 1)
    first.settle(homes)
    address, shadow = first.keys.data_ptr(), first.shadow()
    other = committed(empty(shape, 1), frames + 20, 1)
    seen = [each.clone() for ring in (first, other) for each in shown(ring, frames + 1)]
    assert other.keys.data_ptr() != address
    other.settle(homes)
    assert other.keys.data_ptr() == address == shadow.keys.data_ptr() != first.keys.data_ptr()
    found = [each for ring in (first, other) for each in shown(ring, frames + 1)]
    assert all(torch.equal(a, b) for a, b in zip(seen, found, strict=True))
    follower = other.follow(shadow.after())
    assert follower.keys.data_ptr() == address
    follower.settle(homes)
    assert other.keys.data_ptr() != address, "a state before it would be written over"
    assert len(homes) == 1

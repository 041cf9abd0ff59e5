"""The growing cache is a value: what one state adds, no other state sees."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from worldsim.model.memory.past_frames import PastFrames

LAYERS, BATCH, TOKENS, HEADS, WIDTH = 2, 3, 4, 2, 6


def frame(number: int) -> Tensor:
    """Return keys of one frame, `[L, B, N, H, D]`, all of them its number; values are their negative."""
    return torch.full((LAYERS, BATCH, TOKENS, HEADS, WIDTH), float(number))


def empty() -> PastFrames:
    return PastFrames.of(*torch.zeros(2, LAYERS, BATCH, HEADS, 0, TOKENS, WIDTH))


def append(past: PastFrames, *numbers: int) -> PastFrames:
    for number in numbers:
        past = past.append(frame(number), -frame(number))
    return past


def seen(past: PastFrames) -> list[int]:
    """Return the numbers of the frames that a value sees, once keys and values agree on them."""
    assert past.keys.shape == (LAYERS, BATCH, HEADS, past.num_frames, TOKENS, WIDTH)
    assert torch.equal(past.keys, -past.values)
    assert torch.equal(past.keys, past.keys[:1, :1, :1, :, :1, :1].expand_as(past.keys))
    return past.keys[0, 0, 0, :, 0, 0].int().tolist()


def test_frames_are_kept_in_order() -> None:
    assert seen(append(empty(), *range(20))) == list(range(20))


def test_a_branch_and_the_line_it_leaves_do_not_see_each_other() -> None:
    past = append(empty(), 0, 1, 2)
    line = append(past, 3, 4)
    branch = append(past, 30, 40, 50)
    line = append(line, 5)
    again = append(past, 300)
    assert seen(past) == [0, 1, 2]
    assert seen(line) == [0, 1, 2, 3, 4, 5]
    assert seen(branch) == [0, 1, 2, 30, 40, 50]
    assert seen(again) == [0, 1, 2, 300]


def test_a_deep_copy_goes_on_by_itself() -> None:
    past = append(empty(), 0, 1)
    copied = deepcopy(past)
    assert seen(append(past, 2)) == [0, 1, 2]
    assert seen(append(copied, 20)) == [0, 1, 20]
    assert seen(copied) == [0, 1]


def test_growing_copies_seldom() -> None:
    past, places = empty(), []
    for number in range(1000):
        past = append(past, number)
        places.append(past.keys.data_ptr())
    moves = sum(new != old for old, new in zip(places, places[1:], strict=False))
    assert moves < 10


def own_of(past: PastFrames, number: int) -> list[int]:
    """Return the numbers of the frames that a layer sees in frame `number`."""
    keys, values = past.with_own(1, frame(number)[1], -frame(number)[1])
    assert keys.shape == (BATCH, HEADS, (past.num_frames + 1) * TOKENS, WIDTH)
    assert torch.equal(keys, -values)
    return keys[0, 0, ::TOKENS, 0].int().tolist()


@pytest.mark.parametrize("count", [0, 3, 6, 7, 8], ids="{}_frames".format)
def test_a_frame_sees_the_past_and_itself(count: int) -> None:
    past = append(empty(), *range(count))
    assert own_of(past, 70) == [*range(count), 70]
    assert own_of(past, 71) == [*range(count), 71]
    assert seen(past) == list(range(count))


def test_looking_at_a_frame_copies_nothing_while_the_room_behind_the_past_is_free() -> None:
    past = append(empty(), 0, 1, 2)
    keys, _ = past.with_own(0, frame(3)[0], frame(3)[0])
    assert keys.untyped_storage().data_ptr() == past.keys.untyped_storage().data_ptr()


def test_looking_from_an_older_state_leaves_the_newer_one_as_it_was() -> None:
    past = append(empty(), 0, 1, 2)
    newer = append(past, 3)
    assert own_of(past, 99) == [0, 1, 2, 99]
    assert seen(newer) == [0, 1, 2, 3]


def test_frames_of_inference_mode_can_be_continued_outside_of_it() -> None:
    with torch.inference_mode():
        past = append(empty(), 0, 1)
    assert own_of(past, 5) == [0, 1, 5]
    assert seen(append(past, 2)) == [0, 1, 2]


def test_gradients_flow_through_frames_that_are_added() -> None:
    new = frame(1).requires_grad_()
    past = append(empty(), 0).append(new, -new)
    past = append(past, 2)
    keys, _ = past.with_own(0, new[0], new[0])
    (keys.sum() + past.values.sum()).backward()
    expected = torch.full_like(new, -1.0)
    expected[0] = 1.0  # layer 0 is also looked at: once as a past frame, once as the own one
    assert new.grad is not None
    assert torch.equal(new.grad, expected)


def test_keys_and_values_of_different_shape_are_refused() -> None:
    keys = torch.zeros(LAYERS, BATCH, HEADS, 2, TOKENS, WIDTH)
    with pytest.raises(ValueError, match="past frames"):
        PastFrames.of(keys, keys[:, :, :, :1])

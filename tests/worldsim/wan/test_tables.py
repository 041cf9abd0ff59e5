"""Turns of tokens are those of one fp64 table to the last bit, and a pass fetches no table from the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.devices import HostLooks
from tests.wan_models import tiny_transformer
from worldsim.model.rotary import frequencies, place_angles, split_width, turns
from worldsim.wan import tables
from worldsim.wan.transformer import WanTransformer

ROWS, COLUMNS, WIDTH = 2, 3, 12
META = torch.device("meta")


def whole(frames: int, first: Tensor, *, has_time: bool = True) -> Tensor:
    """Return the turns of frames from the angles of all three places in one table, in fp64 on the CPU."""
    number = first.double()[:, None] + torch.arange(frames, dtype=torch.float64)
    angles = place_angles(ROWS, COLUMNS, WIDTH).expand(*number.shape, -1, -1).clone()
    time = split_width(WIDTH)[0]
    if has_time:
        angles[..., : time // 2] = (number[..., None] * frequencies(time))[..., None, :]
    return turns(angles.flatten(1, 2))


def found(model: WanTransformer, frames: int, first: int | Tensor) -> tuple[Tensor, Tensor]:
    return model._turns(torch.zeros(2, 16, frames, 2 * ROWS, 2 * COLUMNS), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("phase", ["time", "none"])
def test_turns_are_those_of_one_table_to_the_last_bit(dtype: torch.dtype, frames: int, phase: str) -> None:
    model = tiny_transformer(dtype, memory_phase=phase)
    wide = torch.promote_types(dtype, torch.float32)
    for first in (0, 7, 100_003):
        expected = whole(frames, torch.tensor([first])).to(wide)
        still = whole(frames, torch.tensor([first]), has_time=False).to(wide)
        place, memory = found(model, frames, first)
        assert place.dtype == wide and torch.equal(place, expected)
        assert torch.equal(memory, expected if phase == "time" else still)
    ages = torch.tensor([0, 1029])
    assert torch.equal(found(model, frames, ages)[0], whole(frames, ages).to(wide))


def test_a_table_is_made_once_for_each_shape() -> None:
    tables.place_turns.cache_clear()
    model = tiny_transformer()
    for first in range(4):
        found(model, 3, torch.tensor([first, 0]))
    assert tables.place_turns.cache_info().misses == 1
    with torch.inference_mode():
        tables.place_turns.cache_clear()
        found(model, 1, 0)
    assert not found(model, 1, 0)[0].is_inference(), "a table made in inference mode serves training as well"


def test_a_pass_fetches_nothing_from_the_host() -> None:
    """On a device without numbers, looking at one is an error, and so is a tensor of another device."""
    model = tiny_transformer().to(META)
    text = model.embed_text(torch.zeros(2, 12, 32, device=META))
    latents, times = torch.zeros(2, 16, 1, 4, 6, device=META), torch.zeros(2, device=META)
    first = torch.zeros(2, dtype=torch.int64, device=META)
    model.velocity(latents, times, text, first_frame=first)  # makes the tables
    with HostLooks() as looks:
        velocity = model.velocity(latents, times, text, first_frame=first)
    assert velocity.shape == latents.shape and looks.mixed == []

"""Weights of one network in another: what means the same is kept, all else begins anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.fakes import make_denoiser, tiny_codec_config, tiny_denoiser_config, tiny_world
from training.codec import with_channels
from training.world.transfer import MEMORY_PARTS, PATH, check_latents, same_axes, take_over
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.codec import FrameCodec
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser

WALK = ActionAxis(name="walk", buttons=("left", "right"), keys=(("a",), ("d",)))
TURN = ActionAxis(name="turn", buttons=("left", "right"), keys=(("q",), ("e",)))
LOOK = ActionAxis(name="walk", buttons=("left",), keys=(("a",),))
OTHER = ActionAxis(name="look", buttons=("left", "right"), keys=((), ()))
FIRE = ActionAxis(name="fire", buttons=("fire",), keys=(("space",),))


def small(**changes: object) -> DenoiserConfig:
    return replace(tiny_denoiser_config(recycled=True), **changes)  # pyright: ignore[reportArgumentType]


def learned(config: DenoiserConfig, seed: int = 0) -> Denoiser:
    """Return a network of weights that are not those of a fresh one."""
    torch.manual_seed(seed)
    network = Denoiser(config)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter)
    return network


def test_a_network_of_the_same_shape_gets_all_of_it() -> None:
    before, after = learned(small()), learned(small(), seed=1)
    take_over(after, before)
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name


def test_more_channels_of_latents_are_read_and_drawn_by_fresh_weights_beside_the_old_ones() -> None:
    before, after = learned(small()), learned(small(latent_shape=[6, 4, 6]), seed=1)
    untouched = {name: tensor.clone() for name, tensor in after.state_dict().items()}
    take_over(after, before)
    old, new = before.state_dict(), after.state_dict()
    for name in ("patch_embedding.weight", "previous_embedding.weight"):
        assert torch.equal(new[name][:, :4], old[name])
        assert torch.equal(new[name][:, 4:], untouched[name][:, 4:])
    drawn, known, fresh = (each["head.head.weight"].unflatten(0, (4, -1)) for each in (new, old, untouched))
    assert torch.equal(drawn[:, :4], known) and torch.equal(drawn[:, 4:], fresh[:, 4:])
    assert torch.equal(new["blocks.1.self_attn.v.weight"], old["blocks.1.self_attn.v.weight"])


def test_latents_of_channels_that_say_nothing_leave_the_drawn_ones_as_they_were() -> None:
    before, after = learned(small()).double(), learned(small(latent_shape=[6, 4, 6]), seed=1).double()
    take_over(after, before)
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 4, 6, generator=draws, dtype=torch.float64)
    wide = torch.cat([latents, torch.zeros_like(latents[:, :, :2])], dim=2)
    levels, actions = torch.rand(2, 3, 2, generator=draws).double(), torch.zeros(2, 3, 3, dtype=torch.int64)
    with torch.no_grad():
        narrow_velocity = before(latents, latents, levels, actions, noise=latents)
        wide_velocity = after(wide, wide, levels, actions, noise=wide)
    torch.testing.assert_close(wide_velocity[:, :, :4], narrow_velocity)


@pytest.mark.parametrize(
    ("latent_shape", "fresh"), [([4, 6, 8], ""), ([6, 4, 6], "odometer.")], ids=["size", "channels"]
)
def test_what_reads_a_whole_frame_begins_anew_where_frames_are_others(
    latent_shape: list[int], fresh: str
) -> None:
    before = learned(small(path_odometry=True))
    after = learned(small(path_odometry=True, latent_shape=latent_shape), seed=1)
    untouched = {name: each.clone() for name, each in after.motion.state_dict().items()}
    assert {"view.weight", "odometer.look.weight", "odometer.out.weight"} <= set(untouched)
    take_over(after, before)
    for name, tensor in after.motion.state_dict().items():
        assert torch.equal(tensor, untouched[name]) == name.startswith(fresh), name


def test_states_begin_anew_under_other_keys() -> None:
    before = learned(small())
    posed = small(memory_keys=MemoryKeys.POSE, memory_phase=MemoryPhase.NONE)
    directions = replace(posed, keyed_places=False)
    for old, shape in ((before, posed), (learned(posed), directions)):
        after = learned(shape, seed=1)
        untouched = {name: tensor.clone() for name, tensor in after.state_dict().items()}
        take_over(after, old)
        memory = [name for name in untouched if any(part in name for part in MEMORY_PARTS)]
        assert memory
        assert all(torch.equal(after.state_dict()[name], untouched[name]) for name in memory)
        same = "blocks.1.self_attn.v.weight"
        assert torch.equal(after.state_dict()[same], old.state_dict()[same])


def test_buttons_are_those_of_axes_that_both_have() -> None:
    before = learned(small(num_values=[3, 3, 3]))
    after = learned(small(num_values=[2, 3, 3]), seed=1)
    untouched = after.state_dict()["action_embedding.0.weight"].clone()
    axes = same_axes(ActionLayout((LOOK, TURN, OTHER)), ActionLayout((WALK, TURN, FIRE)))
    assert axes == {1: 1}
    kept = after.state_dict()["action_embedding.2.weight"].clone()
    take_over(after, before, axes)
    assert torch.equal(after.state_dict()["action_embedding.0.weight"], untouched)
    assert torch.equal(
        after.state_dict()["action_embedding.1.weight"], before.state_dict()["action_embedding.1.weight"]
    )
    assert torch.equal(after.state_dict()["action_embedding.2.weight"], kept)


def test_other_widths_and_layers_are_refused() -> None:
    with pytest.raises(
        WorldError, match="num_layers 3 do not fit one of num_layers 2: give model.num_layers=3"
    ):
        take_over(learned(small(num_layers=2)), learned(small()))
    with pytest.raises(WorldError, match=r"window_layers \[1\] do not fit one of window_layers \[2\]"):
        take_over(learned(small(window_layers=[2])), make_denoiser(MemoryPhase.PATH).float())


def test_a_path_begins_anew_under_other_keys_as_in_a_conversion() -> None:
    """Worlds on axes take a full turn of the head for a quarter of the tokens that pass by."""
    before = learned(small())
    after = learned(small(memory_keys=MemoryKeys.PLANE, dim=24, num_heads=2), seed=1)
    before = learned(small(dim=24, num_heads=2))
    untouched = {name: each.clone() for name, each in after.state_dict().items()}
    take_over(after, before)
    path = [name for name in untouched if name.startswith(PATH)]
    assert path and all(torch.equal(after.state_dict()[name], untouched[name]) for name in path)


def test_a_network_begins_on_the_latents_that_it_has_learned_alone() -> None:
    before = tiny_world()
    check_latents(before.codec, before, "its own")
    torch.manual_seed(1)
    grown = with_channels(before.codec, 6)
    for parameter in grown.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    check_latents(grown, before, "grown")
    wide = FrameCodec(replace(before.codec.config, width=64))
    wide.load_state_dict(before.codec.state_dict())
    check_latents(wide, before, "of other frames")
    torch.manual_seed(5)
    other = FrameCodec(tiny_codec_config())
    with pytest.raises(
        WorldError, match=r"init=tiny has learned other latents than those of codec=x \(they corr"
    ):
        check_latents(other, before, "x")
    before.starts = []
    check_latents(other, before, "x")

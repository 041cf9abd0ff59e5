"""Odometry in a corridor: a speed that must be remembered, and walls that only frames show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.odometry.learner import Clips, OdometryLearner, mirror
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.model.memory.motion_energies import motion_energies
from worldsim.model.memory.odometry import Odometry, OdometryConfig

THRUST, KEPT = 4.0, 0.75
SHORTEST, LONGEST = 5.0, 60.0


def corridor(num_clips: int, num_frames: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return actions, latents and displacements of players that walk to and fro between two walls.

    The picture is a pattern that moves by. It does not say where the corridor ends, of another length for
    each player: there it stands still, whatever is pressed. Whoever lets go slides on.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.randint(3, (num_clips, num_frames // 6 + 1), generator=generator)
    actions = held.repeat_interleave(6, dim=1)[:, :num_frames, None]
    place = 1000 * torch.rand(num_clips, generator=generator)
    room = SHORTEST + (LONGEST - SHORTEST) * torch.rand(2, num_clips, generator=generator)
    first, last = place - room[0], place + room[1]
    speed, places = torch.zeros(num_clips), [place]
    for pressed in actions[:, :, 0].unbind(1):
        speed = KEPT * speed + THRUST * ((pressed == 1).float() - (pressed == 2).float())
        place = torch.minimum(torch.maximum(place + speed, first), last)
        speed = torch.where((place == first) | (place == last), 0.0, speed)
        places.append(place)
    path = torch.stack(places, dim=1)
    waves = torch.tensor([0.05, 0.1, 0.15, 0.2])[:, None, None]
    latents = torch.cos(waves * (path[..., None, None, None] + 8 * torch.arange(16))).expand(
        -1, -1, -1, 4, -1
    )
    moved = torch.zeros(num_clips, num_frames, 3)
    moved[..., 0] = path.diff(dim=1)
    return actions, latents, moved


def batch_of(num_clips: int, num_frames: int, seed: int) -> tuple[Clips, Clips]:
    actions, latents, moved = corridor(num_clips, num_frames, seed)
    energies = motion_energies(latents[:, :-1].flatten(0, 1), latents[:, 1:].flatten(0, 1))
    clips = Clips(actions, moved, energies.unflatten(0, (num_clips, num_frames)))
    return clips, Clips(actions, moved)


def small_learner() -> OdometryLearner:
    torch.manual_seed(0)
    odometry = Odometry(OdometryConfig(latent_shape=[4, 4, 16], num_values=[3], hidden=16, features=16))
    return OdometryLearner(odometry, summed_frames=8)


@pytest.mark.usefixtures("one_thread")
def test_it_learns_speed_from_actions_and_walls_from_frames() -> None:
    learner = small_learner()
    optimizer = torch.optim.Adam(learner.parameters(), 5e-3)
    for step in range(80):
        losses = learner(*batch_of(32, 14, step), torch.Generator())
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    actions, latents, moved = corridor(64, 48, 10_000)
    with torch.no_grad():
        expected, shown, _ = learner.odometry(learner.odometry.initial_state(64), actions, latents)
    path = moved[..., 0]
    pressed = actions[..., 0]
    is_stopped = (path == 0) & (pressed == pressed.roll(1, 1)) & (pressed > 0)
    is_sliding = (pressed == 0) & (path.abs() > 0.5)
    # Nothing but a wall slows a player down so suddenly.
    is_hit = (path.abs() < 8) & (path.abs().roll(1, 1) > 10)
    assert min(int(each.sum()) for each in (is_stopped, is_sliding, is_hit)) > 50
    off, off_expected = (shown[..., 0] - path).abs(), (expected[..., 0] - path).abs()
    assert off[is_stopped].mean() < 0.5
    assert off[is_sliding].mean() < 0.8
    assert off[is_hit].mean() < 0.25 * off_expected[is_hit].mean()


def test_the_loss_is_that_of_its_parts() -> None:
    """A network that says nothing: errors are the displacements themselves, in units of 16, 16 and 5."""
    learner = small_learner()
    for parameter in learner.parameters():
        torch.nn.init.zeros_(parameter)
    seen, unseen = batch_of(2, 16, 0)
    moved = torch.tensor([16.0, -8.0, 1.0]).expand(2, 16, -1)
    found = learner(
        seen._replace(displacements=moved), unseen._replace(displacements=moved), torch.Generator()
    )
    losses = {name: loss.item() for name, loss in found.items()}
    of_frames = ((1.0 - 0.05) + (0.5 - 0.05) + (0.2 - 0.05)) / 3  # above beta, smooth L1 is |x| - beta / 2
    of_sums = sum(8**0.5 * size - 0.05 for size in (1.0, 0.5, 0.2)) / 3
    for name in ("dynamics", "expected", "shown"):
        assert losses[name] == pytest.approx(of_frames)
    assert losses["summed"] == pytest.approx(of_sums)
    assert losses["loss"] == pytest.approx(3 * of_frames + of_sums)


def test_in_a_mirror_left_is_right() -> None:
    """Also where left is not the first button of its axis; other axes and clips stay as they are."""
    layout = ActionLayout(
        (
            ActionAxis(name="move", buttons=("forward", "backward"), keys=(("w",), ("s",))),
            ActionAxis(name="turn", buttons=("around", "right", "left"), keys=(("a",), ("b",), ("c",))),
        )
    )
    actions = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 3]]).expand(2, -1, -1)
    clips = Clips(actions, torch.randn(2, 4, 3), torch.randn(2, 4, 3, 5, 4, 5))
    found = mirror(clips, layout, torch.tensor([True, False]))
    assert found.actions[0].tolist() == [[0, 0], [1, 1], [2, 3], [0, 2]]
    torch.testing.assert_close(found.displacements[0], clips.displacements[0] * torch.tensor([1.0, -1, -1]))
    assert clips.compared is not None and found.compared is not None
    assert torch.equal(found.compared[0, 2, 1, 0, 3, 0], clips.compared[0, 2, 1, 4, 3, 4])
    assert torch.equal(found.compared[0], clips.compared[0].flip(-1, -3))
    for one, other in zip(found, clips, strict=True):
        assert (one is None) is (other is None) and (one is None or torch.equal(one[1], other[1]))
    assert mirror(clips._replace(compared=None), layout, torch.tensor([True, True])).compared is None

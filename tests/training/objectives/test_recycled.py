"""Training of a recycled model: first passes have a loss, and an ordinary world becomes one by finetuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fakes import tiny_denoiser_config, tiny_world, write_tiny_dataset
from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.finetune import FinetuneConfig
from training.finetune import main as finetune
from training.objectives.flow_matching import SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig, add_noise
from training.world.validation import ValidationConfig
from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser
from worldsim.simulator import Simulator
from worldsim.world import World


def random_batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 6, 4, 4, 6), torch.randint(3, (3, 6, 3))


@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("change_weight", [0.0, 3.0])
def test_both_passes_have_a_loss_of_their_own(weight: float, change_weight: float) -> None:
    denoiser = tiny_world(recycled=True).denoiser.float()
    config = ObjectiveConfig(first_pass_weight=weight, change_weight=change_weight)
    module = SequenceFlowMatching(denoiser, config)
    latents, actions = random_batch()
    losses = module(latents, actions, torch.Generator().manual_seed(0))
    batch = module.add_noise(latents, actions, torch.Generator().manual_seed(0), None)
    assert batch.levels[..., 1].max() < 1  # pure noise is the first pass's
    given = (batch.clean, batch.noisy, batch.levels, actions, denoiser.initial_memory(3))
    passed = denoiser.run_sequences(*given, noise=batch.velocity + latents)
    assert passed.first_velocity is not None
    later, first = (
        module.frame_means((velocity - batch.velocity).square(), latents)[:, 1:].mean()
        for velocity in (passed.velocity, passed.first_velocity)
    )
    torch.testing.assert_close(losses["loss"], later + weight * first)
    torch.testing.assert_close(losses["loss_pure"], first)
    assert (later - first).abs() > 1e-3


def test_what_an_ordinary_model_learns_has_no_first_passes() -> None:
    denoiser, (latents, actions) = tiny_world().denoiser.float(), random_batch()
    losses = [
        SequenceFlowMatching(denoiser, ObjectiveConfig(first_pass_weight=weight))(
            latents, actions, torch.Generator().manual_seed(0)
        )["loss"]
        for weight in (0.5, 2.0)
    ]
    assert torch.equal(*losses)


def test_a_first_pass_is_given_the_noise_that_the_frame_is_mixed_with() -> None:
    latents, _ = random_batch()
    batch = add_noise(latents, ObjectiveConfig(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.velocity + latents, batch.noise)


def test_both_losses_fall() -> None:
    torch.manual_seed(0)
    module = SequenceFlowMatching(Denoiser(tiny_denoiser_config(recycled=True)), ObjectiveConfig())
    latents, actions = random_batch()
    latents = latents[:, :1].expand(-1, 6, -1, -1, -1)  # a picture that stands still
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    first: list[float] = []
    later: list[float] = []
    for step in range(60):
        losses = module(latents, actions, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        first.append(losses["loss_pure"].item())
        later.append(losses["loss"].item() - 0.5 * first[-1])
    for losses in (first, later):
        assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def finetune_config(tmp_path: Path, init: Path, **changes: bool) -> FinetuneConfig:
    folder = tmp_path / "data"
    if not folder.exists():
        write_tiny_dataset(folder)
    return FinetuneConfig(
        init=str(init),
        out=str(tmp_path / "fine"),
        data=DataConfig(train=[str(folder)], heldout=[str(folder)], num_workers=1),
        objective=ObjectiveConfig(own_context_share=0.5, own_context_depth=2),
        loop=LoopConfig(num_steps=2, warmup_steps=1, decay_fraction=0.0, checkpoint_seconds=1e9),
        fabric=FabricConfig(accelerator="cpu"),
        validation=ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2], num_steps=1),
        batch_size=2,
        sequence_length=4,
        num_starts=2,
        start_frames=4,
        **changes,
    )


@pytest.mark.parametrize("segments", [1, 3])
def test_an_ordinary_world_is_finetuned_into_a_recycled_one_and_goes_on_as_such(
    tmp_path: Path, segments: int
) -> None:
    tiny_world().save_pretrained(tmp_path / "old")
    config = finetune_config(tmp_path, tmp_path / "old", recycled=True)
    finetune.run(replace(config, segments=segments))
    old, new = World.from_pretrained(tmp_path / "old"), World.from_pretrained(tmp_path / "fine" / "world")
    assert new.config.denoiser == replace(old.config.denoiser, recycled=True)
    assert old.denoiser.state_dict().keys() == new.denoiser.state_dict().keys()
    assert old.identity != new.identity
    state = Simulator(new).start([new.starts[0]], [0])
    frames, after = Simulator(new).step(state, torch.ones(1, 3, dtype=torch.int64))
    assert frames.float().std() > 0
    assert after.memory.num_committed.tolist() == [5]
    again = replace(finetune_config(tmp_path, tmp_path / "fine" / "world"), out=str(tmp_path / "again"))
    finetune.run(again)
    assert World.from_pretrained(tmp_path / "again" / "world").config.denoiser.recycled


def test_a_world_that_does_not_see_the_frame_before_cannot_become_one(tmp_path: Path) -> None:
    world = tiny_world()
    shape = replace(world.config.denoiser, previous_frame=False)
    blind = World(replace(world.config, denoiser=shape), Denoiser(shape), world.codec)
    blind.save_pretrained(tmp_path / "blind", starts=world.starts)
    with pytest.raises(WorldError, match="recycled needs previous_frame"):
        finetune.run(finetune_config(tmp_path, tmp_path / "blind", recycled=True))
    assert not (tmp_path / "fine").exists()

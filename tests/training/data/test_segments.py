"""Long sequences in segments: drawn from the step alone, the memory handed on as in play, resumed exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tests.fakes import tiny_codec_config, tiny_denoiser_config, tiny_world, write_tiny_dataset
from training.data.latents import DataConfig, LatentVideo
from training.data.sampling import places_at
from training.engine.carry import Carry, gather_carries, restore_carries
from training.engine.fabric import FabricConfig, Passes, make_fabric
from training.engine.loop import LoopConfig
from training.engine.update import prepare, update
from training.objectives.flow_matching import SegmentFlowMatching, SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig, add_noise
from training.pretrain import main as pretrain
from training.world.batches import Batch, make_batches
from training.world.settings import PretrainConfig, TrainWorldConfig
from training.world.validation import ValidationConfig
from worldsim.codec import FrameCodec, save_codec
from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.state import MemoryState
from worldsim.sampler import SamplerConfig, draw
from worldsim.world import World

FRAMES, SEGMENTS, ROWS = 4, 3, 4


def counted_video(*lengths: int) -> LatentVideo:
    """Return video whose latents are the number of the frame, and its actions too."""
    number = torch.arange(sum(lengths))
    latents = number.half()[:, None, None, None].expand(-1, 4, 4, 6)
    return LatentVideo(latents, number[:, None].expand(-1, 3), list(lengths))


def training_config(**changes: int) -> TrainWorldConfig:
    settings = {"batch_size": ROWS, "sequence_length": FRAMES, "segments": SEGMENTS} | changes
    return TrainWorldConfig(out="", data=DataConfig(train=[], heldout=[]), **settings)


def numbers_and_new_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the number of each frame, `[B, F]`, once latents and actions agree, and which rows are new."""
    latents, actions, _, is_new = batch
    assert isinstance(latents, Tensor)
    assert isinstance(actions, Tensor)
    assert isinstance(is_new, Tensor)
    assert torch.equal(latents[:, :, 0, 0, 0].long(), actions[:, :, 0])
    return actions[:, :, 0], is_new


def test_the_rows_of_the_table_are_out_of_step() -> None:
    places = [list(zip(*places_at(step, 3, 3), strict=True)) for step in range(6)]
    rows = [[f"{block}{'abc'[segment]}" for block, segment in row] for row in zip(*places, strict=True)]
    assert rows == [
        ["0a", "0b", "0c", "1a", "1b", "1c"],
        ["0b", "0c", "1a", "1b", "1c", "2a"],
        ["0c", "1a", "1b", "1c", "2a", "2b"],
    ]


@pytest.mark.parametrize(("segments", "rows"), [(5, 8), (8, 3), (4, 4)])
def test_every_batch_holds_all_ages_as_evenly_as_it_can(segments: int, rows: int) -> None:
    for step in range(2 * segments):
        ages = np.bincount(places_at(step, segments, rows)[1], minlength=segments)
        assert ages.max() - ages.min() <= 1


def test_segments_of_a_row_follow_each_other_inside_one_episode() -> None:
    lengths = (20, 13, 40)
    batch_at = make_batches(counted_video(*lengths), training_config(), 0)
    episode = np.repeat(np.arange(3), lengths)
    last, starts = None, set()
    for step in range(30):
        numbers, is_new = numbers_and_new_rows(batch_at(step))
        assert (numbers.diff(dim=1) == 1).all()
        if last is not None:
            goes_on = numbers[:, 0] == last + 1
            assert torch.equal(goes_on | is_new, torch.ones(ROWS, dtype=torch.bool))
        for row in np.flatnonzero(is_new.numpy()):
            first = int(numbers[row, 0])
            assert episode[first] == episode[first + SEGMENTS * FRAMES - 1]
            starts.add(first)
        last = numbers[:, -1]
    assert len(starts) > 15  # drawn anew for each sequence


def test_a_step_is_drawn_from_its_number_alone() -> None:
    config = training_config()
    in_order, apart = (make_batches(counted_video(40, 30), config, 0) for _ in range(2))
    batches = [in_order(step) for step in range(8)]
    for step in (7, 2, 5):
        for ours, theirs in zip(apart(step), batches[step], strict=True):
            same = isinstance(ours, Tensor) and isinstance(theirs, Tensor) and torch.equal(ours, theirs)
            assert same or (isinstance(ours, torch.Generator) and isinstance(theirs, torch.Generator))
    other_device = make_batches(counted_video(40, 30), config, 1)
    assert not torch.equal(numbers_and_new_rows(other_device(3))[0], numbers_and_new_rows(batches[3])[0])


def test_an_episode_must_hold_all_segments() -> None:
    with pytest.raises(WorldError, match="no episode is as long as a sequence of 12 frames"):
        make_batches(counted_video(11, 8), training_config(), 0)


def test_the_number_of_segments_is_checked() -> None:
    with pytest.raises(WorldError, match="segments must be at least 1, got 0"):
        training_config(segments=0)


def random_batch(frames: int = FRAMES, rows: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(rows, frames, 4, 4, 6, generator=generator)
    return latents, torch.randint(3, (rows, frames, 3), generator=generator)


def tiny_denoiser(*, recycled: bool = False) -> Denoiser:
    return tiny_world(recycled=recycled).denoiser.float()


def run_segment(
    denoiser: Denoiser, config: ObjectiveConfig, memory: MemoryState, is_new: list[bool], seed: int = 1
) -> tuple[dict[str, Tensor], MemoryState]:
    """Run `SegmentFlowMatching` on a random segment."""
    module = SegmentFlowMatching(denoiser, config)
    generator = torch.Generator().manual_seed(seed)
    latents, actions = random_batch(rows=len(is_new))
    losses, carry = module(latents, actions, generator, torch.tensor(is_new), carry=Carry(memory))
    return losses, carry.memory


def test_a_segment_that_begins_anew_is_a_sequence() -> None:
    denoiser, config = tiny_denoiser(), ObjectiveConfig(own_context_share=0.5)
    _, used = run_segment(denoiser, config, denoiser.initial_memory(2), [True, True])
    losses, _ = run_segment(denoiser, config, used, [True, True])
    expected = SequenceFlowMatching(denoiser, config)(*random_batch(), torch.Generator().manual_seed(1))
    for name, loss in expected.items():
        assert torch.equal(losses[name], loss), name


def test_a_first_frame_counts_once_it_has_a_past() -> None:
    denoiser = tiny_denoiser()
    # No weight of the head, and so a velocity of 0: each frame's error is the square of its target.
    torch.nn.init.zeros_(denoiser.head.head.weight)
    torch.nn.init.zeros_(denoiser.head.head.bias)
    config = ObjectiveConfig()
    _, used = run_segment(denoiser, config, denoiser.initial_memory(2), [True, True])
    batch = add_noise(random_batch()[0], config, torch.Generator().manual_seed(1))
    error = batch.velocity.square().mean(dim=(2, 3, 4))
    losses, _ = run_segment(denoiser, config, used, [False, True])
    counted = torch.cat([error[0], error[1, 1:]])
    torch.testing.assert_close(losses["loss"], counted.mean())
    is_pure = torch.cat([batch.levels[0, :, 1], batch.levels[1, 1:, 1]]) == 1
    torch.testing.assert_close(losses["loss_pure"], counted[is_pure].mean())


def test_the_memory_of_noised_frames_is_carried() -> None:
    denoiser, config = tiny_denoiser(), ObjectiveConfig()
    _, memory = run_segment(denoiser, config, denoiser.initial_memory(2), [True, True])
    latents, actions = random_batch()
    batch = add_noise(latents, config, torch.Generator().manual_seed(1))
    expected = denoiser.initial_memory(2)
    for frame in range(FRAMES):
        context = denoiser.observe(actions[:, frame], expected)
        expected = denoiser.commit(batch.clean[:, frame], batch.levels[:, frame, 0], context, expected)
    torch.testing.assert_close(memory.matrices, expected.matrices, rtol=1e-4, atol=1e-4)
    assert torch.equal(memory.latents, batch.clean[:, -1])
    assert memory.num_committed.tolist() == [FRAMES, FRAMES]
    assert not memory.matrices.requires_grad


@pytest.mark.parametrize("recycled", [False, True], ids=["ordinary", "recycled"])
def test_own_context_as_deep_as_the_segment_carries_the_memory_of_a_free_rollout(recycled: bool) -> None:
    denoiser, rows = tiny_denoiser(recycled=recycled), FRAMES
    sampler = SamplerConfig(num_steps=1)
    config = ObjectiveConfig(own_context_share=1.0, own_context_depth=FRAMES)
    carried, played = denoiser.initial_memory(rows), denoiser.initial_memory(1)
    latents, actions = random_batch(rows=rows)
    frame = latents[-1:, 0]
    for segment in range(2):
        _, carried = run_segment(denoiser, config, carried, [segment == 0] * rows, seed=segment)
        generator = torch.Generator().manual_seed(segment)
        noise = add_noise(latents, config, generator).noise[-1:]
        noise = noise if recycled else torch.randn(latents.shape, generator=generator)[-1:]
        for index in range(FRAMES):
            context = denoiser.observe(actions[-1:, index], played)
            drawn, context = draw(denoiser, noise[:, index], context, played, sampler)
            frame = drawn if segment or index else frame
            played = denoiser.commit(frame, torch.zeros(1), context, played)
    torch.testing.assert_close(carried.latents[-1:], played.latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(carried.matrices[:, -1:], played.matrices, rtol=1e-3, atol=1e-3)
    assert (carried.latents[-1] - latents[-1, -1]).abs().max() > 0.1


@pytest.fixture
def long_data(tmp_path: Path) -> DataConfig:
    folder = write_tiny_dataset(tmp_path / "data", frames=24)
    return DataConfig(train=[str(folder)], heldout=[str(folder)], num_workers=1)


def segmented_config(tmp_path: Path, data: DataConfig, num_steps: int, out: str) -> PretrainConfig:
    codec = tmp_path / "codec"
    if not codec.exists():
        torch.manual_seed(0)
        save_codec(FrameCodec(tiny_codec_config()), codec)
    return PretrainConfig(
        out=str(tmp_path / out),
        data=data,
        codec=str(codec),
        model=tiny_denoiser_config(),
        objective=ObjectiveConfig(own_context_share=0.5),
        loop=LoopConfig(num_steps=num_steps, warmup_steps=2, decay_fraction=0.0, checkpoint_seconds=1e9),
        fabric=FabricConfig(accelerator="cpu"),
        validation=ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2]),
        batch_size=2,
        sequence_length=FRAMES,
        segments=SEGMENTS,
        num_starts=2,
        start_frames=4,
    )


def weights(folder: Path) -> dict[str, Tensor]:
    return World.from_pretrained(folder / "world").denoiser.state_dict()


def test_a_run_killed_inside_a_long_sequence_goes_on_bit_for_bit(
    tmp_path: Path, long_data: DataConfig
) -> None:
    pretrain.run(segmented_config(tmp_path, long_data, 7, "whole"))
    pretrain.run(segmented_config(tmp_path, long_data, 4, "killed"))
    (checkpoint,) = (tmp_path / "killed" / "checkpoints").iterdir()
    saved = torch.load(checkpoint, weights_only=True)["carry"]
    assert saved["num_committed"].tolist() == [[FRAMES, 2 * FRAMES]]
    pretrain.run(segmented_config(tmp_path, long_data, 7, "killed"))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    description = World.from_pretrained(tmp_path / "killed" / "world").config.provenance["training"][0]
    assert "in sequences of 12 (the memory handed on after every 4)" in description


def test_the_memory_that_was_saved_matters(tmp_path: Path, long_data: DataConfig) -> None:
    """Without it the test above would pass whatever the checkpoint held."""
    results = []
    for forget in (False, True):
        fabric = make_fabric(FabricConfig(accelerator="cpu", precision="32-true"), tmp_path)
        denoiser = copy.deepcopy(tiny_denoiser()).requires_grad_(True)
        module = SegmentFlowMatching(denoiser, ObjectiveConfig())
        training = prepare(fabric, module, [torch.optim.SGD(module.parameters(), lr=0.01)], 0.9)
        training.carries = [Carry(denoiser.initial_memory(2))]
        for step in range(2):
            batch = (*random_batch(), torch.Generator().manual_seed(step), torch.tensor([step == 0] * 2))
            update(fabric, training, [batch])
            if forget:
                training.carries = [Carry(denoiser.initial_memory(2))]
        results.append(denoiser.layers()[0].self_attn.q.weight.detach().clone())
    assert not torch.equal(*results)


def test_a_growing_memory_is_refused_before_any_work(tmp_path: Path, long_data: DataConfig) -> None:
    config = segmented_config(tmp_path, long_data, 1, "run")
    config.model = tiny_denoiser_config(is_teacher=True)
    with pytest.raises(WorldError, match=r"layers \[0, 1, 2\] see all past frames"):
        pretrain.run(config)
    assert not (tmp_path / "run" / "world").exists()


def gathered(memories: list[MemoryState], num_devices: int) -> dict[str, Tensor]:
    """Return what is saved of the memories of passes, `memories[p]` of pass p, that some devices share."""
    own = [[Carry(memory) for memory in memories[rank::num_devices]] for rank in range(num_devices)]
    stacked = [
        {
            name: torch.stack([each.memory.tensors()[name] for each in carries])
            for name in memories[0].tensors()
        }
        for carries in own
    ]
    fabric = Mock(spec=Fabric, world_size=num_devices)
    fabric.all_gather = lambda _: {name: torch.stack([each[name] for each in stacked]) for name in stacked[0]}
    return gather_carries(own[0], fabric)


@pytest.mark.parametrize(("saved_by", "read_by"), [(1, 2), (2, 1), (2, 4), (4, 2), (4, 4)])
def test_each_pass_finds_its_own_memory_on_any_number_of_devices(saved_by: int, read_by: int) -> None:
    denoiser = tiny_denoiser()
    memories = [
        run_segment(denoiser, ObjectiveConfig(), denoiser.initial_memory(2), [True, True], seed)[1]
        for seed in range(4)
    ]
    saved = gathered(memories, saved_by)
    for rank in range(read_by):
        passes = Passes(4, rank, read_by)
        found = restore_carries(saved, passes, torch.device("cpu"))
        for number, carry in zip(passes.own, found, strict=True):
            for name, tensor in memories[number].tensors().items():
                assert torch.equal(carry.memory.tensors()[name], tensor), name


def test_memory_of_another_number_of_passes_is_refused() -> None:
    denoiser = tiny_denoiser()
    saved = gathered([denoiser.initial_memory(2)] * 2, 2)
    with pytest.raises(ValueError, match="the memory of 2 passes, not 3"):
        restore_carries(saved, Passes(3, 0, 1), torch.device("cpu"))

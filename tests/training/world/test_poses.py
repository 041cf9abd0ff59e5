"""Training with recorded poses: what reaches the network, what is measured, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import (
    save_tiny_world,
    tiny_world,
    write_tiny_dataset,
    write_turning_dataset,
)
from training.data.latents import DataConfig, LatentVideo
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.finetune import FinetuneConfig, change_keys
from training.finetune import main as finetune
from training.objectives.noise import ObjectiveConfig
from training.sharpen.command import main as sharpen
from training.sharpen.rollouts import roll_out, watch_clips
from training.sharpen.settings import CriticConfig, RolloutConfig, RulesConfig, SharpenConfig
from training.world.batches import make_batches
from training.world.integrated_poses import load_fitting, with_integrated_poses
from training.world.recall import RecallConfig, RecallScores, measure_recall, measure_rollouts
from training.world.settings import TrainWorldConfig
from training.world.validation import ValidationConfig
from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.odometry import Odometry, OdometryConfig, integrate, save_odometry
from worldsim.model.memory.pose import pose_distances
from worldsim.sampler import SamplerConfig
from worldsim.world import World
from worldsim.world.rewrite import encoder_digest

pytestmark = pytest.mark.usefixtures("one_thread")


def walked_video(length: int = 60) -> LatentVideo:
    """Return video of a player who walks in a circle; frames are their number."""
    number = torch.arange(length)
    latents = number.half()[:, None, None, None].expand(-1, 4, 4, 6)
    angle = number * 10.0
    place = 300 * torch.stack([angle.deg2rad().cos(), angle.deg2rad().sin()], dim=-1) + 1000
    poses = torch.cat([place, angle[:, None] + 90], dim=-1)
    return LatentVideo(
        latents, number[:, None].expand(-1, 3), [length // 2, length - length // 2], poses=poses
    )


@pytest.mark.parametrize("segments", [1, 3])
def test_poses_of_a_batch_are_those_of_its_frames_on_a_map_turned_by_chance(segments: int) -> None:
    video = walked_video()
    assert video.poses is not None
    config = TrainWorldConfig(
        out="", data=DataConfig(train=[], heldout=[]), batch_size=6, sequence_length=5, segments=segments
    )
    batch_at = make_batches(video, config, 0, with_poses=True)
    turns = {}
    for step in range(9):
        latents, *_, targets, poses = batch_at(step)
        assert isinstance(latents, torch.Tensor) and isinstance(poses, torch.Tensor) and targets is None
        true = video.poses[latents[:, :, 0, 0, 0].long()]
        # Distances and turns between frames are the recorded ones; the map itself is not.
        for found, right in zip(
            pose_distances(poses[:, 1:], poses[:, :-1]),
            pose_distances(true[:, 1:], true[:, :-1]),
            strict=True,
        ):
            torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-2)
        ahead = poses[:, 1:, :2] - poses[:, :-1, :2]
        direction = torch.atan2(ahead[..., 1], ahead[..., 0]).rad2deg()
        assert (torch.remainder(direction - poses[:, :-1, 2] - 5 + 180, 360) - 180).abs().max() < 1
        turn = torch.remainder(poses[..., 2] - true[..., 2], 360)
        assert (turn - turn[:, :1]).abs().max() < 1e-2
        for row in range(6):
            turns.setdefault((row, (step + row * segments // 6) // segments), set()).add(
                round(float(turn[row, 0]))
            )
    assert all(len(found) == 1 for found in turns.values()), "one map for all segments of a sequence"
    assert len(set.union(*turns.values())) > 10


def test_a_sequence_of_its_own_begins_with_heading_0_and_video_without_poses_is_refused() -> None:
    video = walked_video()
    poses = video.split([1, 1])[1].pose_sequences(np.array([0, 7]), 4, on_map=False)
    assert poses[:, 0].abs().max() < 1e-3
    torch.testing.assert_close(poses[:, 1, 2], torch.tensor([10.0, 10.0]), rtol=0, atol=1e-3)
    with pytest.raises(WorldError, match="records no poses"):
        replace(video, poses=None).pose_sequences(np.array([0]), 4, on_map=False)


def run_config(tmp_path: Path, **changed: Any) -> FinetuneConfig:
    """Return a finetuning of a tiny world into one of keys of poses."""
    folder, world = tmp_path / "data", tmp_path / "world"
    if not folder.exists():
        write_turning_dataset(folder)
        save_tiny_world(world)
    given: dict[str, Any] = {
        "init": str(world),
        "out": str(tmp_path / "run"),
        "memory_keys": "pose",
        "data": DataConfig(train=[str(folder)], heldout=[str(folder)], num_workers=1),
        "objective": ObjectiveConfig(
            own_context_share=0.25, suffix_share=0.25, recall_share=0.25, misled_share=0.25
        ),
        "loop": LoopConfig(num_steps=2, warmup_steps=1, decay_fraction=0.0, checkpoint_seconds=1e9),
        "fabric": FabricConfig(accelerator="cpu"),
        "validation": ValidationConfig(
            num_rollouts=2, context_frames=2, horizons=[1], recall_clips=2, recall_frames=20, recall_queries=2
        ),
        "batch_size": 4,
        "sequence_length": 8,
        "num_starts": 2,
        "start_frames": 4,
    }
    return FinetuneConfig(**given | changed)


def test_a_world_becomes_one_of_keys_of_poses_and_is_asked_for_views(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune.run(run_config(tmp_path))
    told = capsys.readouterr().out
    assert "recall_watched_kept_db" in told and "recall_seen_gain_se" in told
    assert f"go on with: python -m training.odometry world={tmp_path / 'run' / 'world'}" in told
    shape = World.from_pretrained(str(tmp_path / "run" / "world")).config.denoiser
    assert (shape.memory_keys, shape.memory_phase) == ("pose", "none")


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_world_that_has_odometry_trains_on_and_keeps_it(
    accelerator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At checkpoints it follows roll-outs, on the device where these are drawn."""
    config = run_config(tmp_path, memory_keys=None, fabric=FabricConfig(accelerator=accelerator))
    whole = tiny_world(has_odometry=True)
    whole.save_pretrained(tmp_path / "followed", starts=whole.starts, dtype=torch.float32)
    finetune.run(replace(config, init=str(tmp_path / "followed")))
    assert "recall_watched_kept_db" in capsys.readouterr().out
    kept = World.from_pretrained(tmp_path / "run" / "world").odometry
    assert kept is not None and whole.odometry is not None
    for name, tensor in whole.odometry.state_dict().items():
        assert torch.equal(kept.state_dict()[name], tensor), name


def test_other_keys_keep_all_weights_but_those_that_write_and_read(tmp_path: Path) -> None:
    config, world = run_config(tmp_path), tiny_world()
    before = {name: tensor.clone() for name, tensor in world.denoiser.state_dict().items()}
    changed = change_keys(world, config)
    assert (world.config.sampler.write_novelty, changed.config.sampler.write_novelty) == (0.0, 1.0)
    after = changed.denoiser.state_dict()
    assert not [name for name in after if name.startswith("motion.")]
    assert torch.equal(after["blocks.0.self_attn.v.weight"], before["blocks.0.self_attn.v.weight"])
    assert torch.equal(after["blocks.1.self_attn.k.bias"], before["blocks.1.self_attn.k.bias"])  # a window
    assert torch.equal(after["blocks.0.self_attn.k.bias"], before["blocks.0.self_attn.k.bias"] + 1)
    eye = torch.eye(16).repeat(2, 1).unsqueeze(-1)
    assert torch.equal(after["blocks.0.self_attn.phi_k.weight"].float(), eye)
    assert changed.config.denoiser.half_lives == config.half_lives


def test_a_world_that_follows_poses_still_does_when_it_has_learned_more(tmp_path: Path) -> None:
    whole = tiny_world(has_odometry=True)
    whole.save_pretrained(tmp_path / "whole", dtype=torch.float32)
    finetune.run(run_config(tmp_path, init=str(tmp_path / "whole"), memory_keys=None))
    after = World.from_pretrained(tmp_path / "run" / "world")
    assert after.odometry is not None and whole.odometry is not None
    for name, tensor in whole.odometry.state_dict().items():
        assert torch.equal(after.odometry.state_dict()[name], tensor), name
    assert all(start.poses is not None for start in after.starts)
    assert change_keys(whole, run_config(tmp_path, memory_keys="plane")).odometry is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"memory_keys": None}, "recall_share 0.25 asks the states for frames.*got axes"),
        ({"segments": 2}, "recall_share, misled_share and suffix_share need segments=1"),
        ({"objective": ObjectiveConfig(status_rows=4)}, "status_rows 4 must leave some of the 4 rows"),
        ({"validation": ValidationConfig(recall_frames=128)}, "validation.recall_frames: sequences of 128"),
    ],
)
def test_what_cannot_be_learned_is_said_before_anything_is_decoded(
    changed: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(WorldError, match=told):
        finetune.run(run_config(tmp_path, **changed))
    assert not (tmp_path / "run" / "world").exists()


def test_recordings_without_poses_are_refused(tmp_path: Path) -> None:
    plain = str(write_tiny_dataset(tmp_path / "plain", frames=40))
    data = DataConfig(train=[plain], heldout=[plain])
    with pytest.raises(WorldError, match=r"episode-000.jsonl records no poses \('pose' on every line"):
        finetune.run(run_config(tmp_path, data=data))


def test_a_summary_tells_what_was_seen_from_what_was_not() -> None:
    watched = np.array([[True, True, False, False]] * 2)
    seen = np.array([[False, False, True, False], [False] * 4])
    kept = np.array([[20.0, 22.0, 18.0, 10.0], [24.0, 26.0, 12.0, 12.0]])
    by_state = {"kept": kept, "emptied": np.full((2, 4), 10.0), "swapped": np.full((2, 4), 11.0)}
    found = RecallScores(by_state, watched, seen).summary()
    assert found["recall_watched_kept_db"] == 23 and found["recall_watched_gain_db"] == 13
    assert found["recall_watched_gain_se"] == pytest.approx(2)  # of 11 and 15
    assert (found["recall_seen_clips"], found["recall_seen_gain_db"]) == (1, 8)
    assert found["recall_later_gain_db"] == pytest.approx((4 + 2) / 2)
    assert found["recall_later_swapped_db"] == 11


def test_views_are_asked_of_the_states_of_the_clip_itself(tmp_path: Path) -> None:
    world = change_keys(tiny_world(), run_config(tmp_path))
    latents = torch.randn(60, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    heading = torch.arange(60) * 15.0 % 360
    poses = torch.stack([torch.arange(60) // 24 * 5.0, torch.zeros(60), heading], dim=-1)
    video = LatentVideo(latents.half(), torch.ones(60, 3, dtype=torch.int64), [60], poses=poses)
    asked = RecallConfig(num_clips=2, length=44, num_queries=3, num_steps=1)
    scores = measure_recall(world, video, asked)
    assert scores.is_watched.sum(1).tolist() == [3] * 2
    assert (scores.is_seen == ~scores.is_watched).all()  # who has turned round has seen every heading
    assert (scores.by_state["copied"][scores.is_watched] > 40).all()
    for name in ("emptied", "swapped", "misled"):
        assert np.abs(scores.by_state["kept"] - scores.by_state[name]).max() > 1e-3, name
    dreams = measure_rollouts(world, video, replace(asked, length=30, prefix_share=0.8))
    assert dreams.by_state["kept"].shape == (2, 6) and not dreams.is_watched.any()
    assert np.array_equal(dreams.is_seen[:, :1], [[True]] * 2)
    assert np.abs(dreams.by_state["kept"] - dreams.by_state["emptied"]).max() > 1e-3


def test_a_world_with_keys_of_poses_is_sharpened_at_the_recorded_ones(tmp_path: Path) -> None:
    data = run_config(tmp_path).data
    world = change_keys(tiny_world(), run_config(tmp_path))
    world.save_pretrained(tmp_path / "keyed", starts=[])
    config = SharpenConfig(
        out=str(tmp_path / "sharp"),
        init=str(tmp_path / "keyed"),
        data=data,
        rollout=RolloutConfig(prefix_frames=4, frames=[3], begins=[0], batch_sizes=[2], single_every=0),
        critic=CriticConfig(warmup_updates=0, balanced_updates=1, energy_weight=1.0),
        rules=RulesConfig(every=9, num_rollouts=2, horizons=[1, 3], max_energy=1e6, max_motion=1e6),
        loop=LoopConfig(num_steps=2, warmup_steps=1, ema_decay=0.0, checkpoint_seconds=1e9),
        fabric=FabricConfig(accelerator="cpu", precision="32-true"),
    )
    sharpen.run(config)
    sharp = World.from_pretrained(tmp_path / "sharp" / "world")
    assert sharp.config.denoiser.memory_keys == "pose" and sharp.config.sampler.num_steps == 1
    before = world.denoiser.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in sharp.denoiser.state_dict().items())


def test_a_roll_out_at_other_poses_draws_other_frames() -> None:
    torch.manual_seed(0)
    shape = replace(tiny_world().config.denoiser, memory_keys="pose", memory_phase="none")
    denoiser = Denoiser(shape)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 7, *denoiser.latent_shape, generator=generator)
    actions = torch.zeros(2, 7, len(shape.num_values), dtype=torch.int64)
    poses = 100 * torch.randn(2, 7, 3, generator=generator)

    def drawn(poses: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            memory = watch_clips(denoiser, latents[:, :4], actions[:, :4], noise[:, :4], poses[:, :4])
            given = (denoiser, memory, actions[:, 4:], noise[:, 4:], noise[:, 4:], SamplerConfig(num_steps=1))
            return roll_out(*given, num_watched=4, poses=poses[:, 4:])

    there = drawn(poses)
    assert torch.equal(drawn(poses.clone()), there)
    moved = poses.clone()
    moved[:, 4:, 2] += 90
    assert (drawn(moved) - there).abs().max() > 1e-3


def test_a_share_of_the_clips_gets_the_poses_that_odometry_integrates(tmp_path: Path) -> None:
    video = walked_video()
    assert video.poses is not None
    torch.manual_seed(0)
    odometry = Odometry(OdometryConfig(latent_shape=[4, 4, 6], num_values=[60, 60, 60], hidden=4, features=4))
    integrated = with_integrated_poses(video, odometry)
    assert integrated.poses is not None
    for episode in range(2):  # each by itself, from its first pose on, as play would
        part, state = video.split([1, 1])[episode], odometry.initial_state(1)
        assert part.poses is not None
        pose = part.poses[:1].double()
        for frame in range(1, part.lengths[0]):
            seen = (part.latents[frame - 1 : frame].float(), part.latents[frame : frame + 1].float())
            with torch.no_grad():
                moved, state = odometry.shown(state, part.leading[frame : frame + 1], *seen)
            pose = integrate(moved[:, None], pose)[:, 0]
            own = integrated.split([1, 1])[episode].poses
            assert own is not None
            torch.testing.assert_close(own[frame : frame + 1], pose.float(), rtol=1e-3, atol=0.2)
    config = TrainWorldConfig(
        out="", data=DataConfig(train=[], heldout=[]), batch_size=8, sequence_length=5, integrated_share=0.5
    )
    both = make_batches(video, config, 0, with_poses=True, odometry=odometry)
    true = make_batches(video, config, 0, with_poses=True)
    is_same = []
    for step in range(8):
        found, right = both(step)[-1], true(step)[-1]
        assert isinstance(found, torch.Tensor) and isinstance(right, torch.Tensor)
        is_same += (found == right).flatten(1).all(1).tolist()
    assert 0.25 < np.mean(is_same) < 0.75
    save_odometry(odometry, tmp_path / "odometry")
    with pytest.raises(WorldError, match=r"actions of values \[3, 3, 3\], its odometry reads \[60, 60, 60\]"):
        load_fitting(tmp_path, tiny_world(has_odometry=True))


def test_a_run_with_odometry_resumes_to_the_same_weights_and_notices_another_network(tmp_path: Path) -> None:
    whole = tiny_world(has_odometry=True)
    assert whole.odometry is not None
    begun_from = World.from_pretrained(run_config(tmp_path).init)
    whole.odometry.config.encoder = encoder_digest(begun_from.codec)
    save_odometry(whole.odometry, tmp_path / "first")
    given = {"odometry": str(tmp_path / "first"), "integrated_share": 1.0}
    finetune.run(run_config(tmp_path, **given))
    at_once = World.from_pretrained(tmp_path / "run" / "world").denoiser.state_dict()
    loop = LoopConfig(num_steps=2, warmup_steps=1, decay_fraction=0.0, checkpoint_seconds=1e9)
    out = {"out": str(tmp_path / "parts")}
    finetune.run(run_config(tmp_path, **given, **out, loop=replace(loop, num_steps=1)))
    save_odometry(whole.odometry, tmp_path / "moved")
    finetune.run(run_config(tmp_path, **(given | {"odometry": str(tmp_path / "moved")}), **out, loop=loop))
    for name, tensor in World.from_pretrained(tmp_path / "parts" / "world").denoiser.state_dict().items():
        assert torch.equal(tensor, at_once[name]), name
    with torch.no_grad():
        whole.odometry.energy_mean.add_(1)
    save_odometry(whole.odometry, tmp_path / "moved")
    given |= {"odometry": str(tmp_path / "moved")}
    with pytest.raises(WorldError, match="odometry"):
        finetune.run(run_config(tmp_path, **given, **out, loop=replace(loop, num_steps=3)))

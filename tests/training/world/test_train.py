"""From gameplay video to a world on disk, at toy size: learns, resumes exactly, refuses what does not fit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import (
    HEIGHT,
    TINY_ACTIONS,
    WIDTH,
    save_tiny_world,
    tiny_codec_config,
    tiny_denoiser_config,
    tiny_world,
    write_tiny_dataset,
)
from training.codec import TrainCodecConfig, train_codec
from training.data.latents import DataConfig, choose_episodes
from training.decoder.settings import DecoderConfig
from training.engine import loop
from training.engine.fabric import FabricConfig, Passes
from training.engine.loop import LoopConfig
from training.engine.update import update
from training.finetune import FinetuneConfig
from training.finetune import main as finetune
from training.objectives.flow_matching import SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig, add_noise
from training.pretrain import main as pretrain
from training.world.clips import own_shares
from training.world.settings import PretrainConfig
from training.world.start_moments import take_starts
from training.world.train import build_world
from training.world.validation import ValidationConfig
from worldsim.actions import ActionLayout
from worldsim.codec import FrameCodec, load_codec, save_codec
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import EpisodeWriter
from worldsim.data.sequences import load_episodes
from worldsim.errors import WorldError
from worldsim.model.config import MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.runtime.interrupt import Stopped
from worldsim.sampler import SamplerConfig, draw
from worldsim.simulator import Simulator
from worldsim.starts import Start, visible_detail
from worldsim.world import World
from worldsim.world.rewrite import is_same_encoder


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    folder = write_tiny_dataset(tmp_path / "data")
    return DataConfig(train=[str(folder)], heldout=[str(folder)], num_workers=1)


def pretrain_config(tmp_path: Path, data: DataConfig, num_steps: int, out: str = "run") -> PretrainConfig:
    codec = tmp_path / "codec"
    if not codec.exists():
        torch.manual_seed(0)
        save_codec(FrameCodec(tiny_codec_config()), codec)
    return PretrainConfig(
        name="toy",
        out=str(tmp_path / out),
        data=data,
        codec=str(codec),
        model=tiny_denoiser_config(),
        objective=ObjectiveConfig(own_context_share=0.5),
        loop=LoopConfig(
            num_steps=num_steps, warmup_steps=2, decay_fraction=0.0, log_every=1, checkpoint_seconds=1e9
        ),
        fabric=FabricConfig(accelerator="cpu"),
        validation=ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2]),
        batch_size=2,
        sequence_length=6,
        num_starts=2,
        start_frames=4,
    )


def teacher_config(tmp_path: Path, data: DataConfig, num_steps: int, out: str = "run") -> PretrainConfig:
    config = pretrain_config(tmp_path, data, num_steps, out)
    config.model = tiny_denoiser_config(MemoryPhase.NONE, is_teacher=True)
    return config


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return World.from_pretrained(folder / "world").denoiser.state_dict()


@pytest.mark.parametrize("configure", [pretrain_config, teacher_config], ids=["hybrid", "teacher"])
def test_pretraining_writes_a_world_that_can_be_stepped(
    tmp_path: Path, data: DataConfig, configure: Callable[..., PretrainConfig]
) -> None:
    pretrain.run(configure(tmp_path, data, 3))
    world = World.from_pretrained(tmp_path / "run" / "world")
    assert world.config.name == "toy"
    assert len(world.starts) == 2
    simulator = Simulator(world)
    frames, _ = simulator.step(simulator.start(world.starts[:1], [0]), torch.tensor([[1, 0, 2]]))
    assert frames.shape == (1, world.config.height, world.config.width, 3)


def test_the_world_of_a_terminated_training_is_written_without_training(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(fabric: Any, training: Any, *rest: Any) -> dict[str, torch.Tensor]:
        if training.step == 4:
            raise Stopped(signal.SIGTERM)
        return update(fabric, training, *rest)

    config = pretrain_config(tmp_path, data, 1000)
    monkeypatch.setattr(loop, "update", stopped)
    with pytest.raises(Stopped):
        pretrain.run(config)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]
    assert not (tmp_path / "run/world").exists(), "there was no time"
    monkeypatch.setattr(loop, "update", None)  # nothing is trained
    pretrain.run(replace(config, loop=replace(config.loop, train_seconds=1e-3)))
    world = World.from_pretrained(tmp_path / "run/world")
    assert world.config.provenance["training"][0].startswith("4 updates on 48 frames"), "what it has seen"


def test_a_resumed_pretraining_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, data: DataConfig
) -> None:
    pretrain.run(pretrain_config(tmp_path, data, 6, "whole"))
    pretrain.run(pretrain_config(tmp_path, data, 3, "killed"))
    pretrain.run(pretrain_config(tmp_path, data, 6, "killed"))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_finetuning_starts_from_a_world_and_keeps_its_description(tmp_path: Path, data: DataConfig) -> None:
    base = save_tiny_world(tmp_path / "world")
    settings = pretrain_config(tmp_path, data, 2, "fine")
    names = ("out", "data", "objective", "loop", "fabric", "validation", "batch_size", "sequence_length")
    config = FinetuneConfig(
        init=str(base), num_starts=2, start_frames=4, **{name: getattr(settings, name) for name in names}
    )
    finetune.run(config)
    before, after = World.from_pretrained(base), World.from_pretrained(tmp_path / "fine" / "world")
    assert replace(after.config, provenance={}) == replace(before.config, provenance={})
    assert "2 updates" in after.config.provenance["training"][0]
    assert after.config.provenance["memory"].keys() == {f"half-lives of layer {layer}" for layer in (0, 2)}
    assert after.identity != before.identity


def test_a_teacher_can_be_finetuned(tmp_path: Path, data: DataConfig) -> None:
    pretrain.run(teacher_config(tmp_path, data, 1))
    settings = teacher_config(tmp_path, data, 2, "fine")
    names = ("out", "data", "objective", "loop", "fabric", "validation", "batch_size", "sequence_length")
    chosen = {name: getattr(settings, name) for name in names}
    init = tmp_path / "run" / "world"
    finetune.run(FinetuneConfig(init=str(init), num_starts=2, start_frames=4, **chosen))
    before, after = World.from_pretrained(init), World.from_pretrained(tmp_path / "fine" / "world")
    assert after.config.denoiser == before.config.denoiser == settings.model
    assert after.identity != before.identity


def test_finetuning_on_video_of_another_size_scales_it(tmp_path: Path, data: DataConfig) -> None:
    base = tiny_world()
    base.config.codec.height, base.config.codec.width = 32, 64
    config = replace(base.config, denoiser=replace(base.config.denoiser, latent_shape=[4, 4, 8]))
    torch.manual_seed(0)
    wide = World(config, Denoiser(config.denoiser), FrameCodec(config.codec))
    starts = [
        Start("one", torch.zeros(4, 32, 64, 3, dtype=torch.uint8), torch.zeros(4, 3, dtype=torch.int64))
    ]
    wide.save_pretrained(tmp_path / "wide", starts=starts)
    settings = pretrain_config(tmp_path, data, 1, "fine")
    names = ("out", "data", "objective", "loop", "fabric", "validation", "batch_size", "sequence_length")
    chosen = {name: getattr(settings, name) for name in names}
    finetune.run(
        FinetuneConfig(init=str(tmp_path / "wide"), name="other", num_starts=2, start_frames=4, **chosen)
    )
    world = World.from_pretrained(tmp_path / "fine" / "world")
    assert world.starts[0].frames.shape == (4, 32, 64, 3)
    assert world.config.name == "other"
    assert "finetuned on tiny" in world.config.provenance["data"][0]


def test_held_out_video_that_is_too_short_is_found_before_training(tmp_path: Path, data: DataConfig) -> None:
    config = pretrain_config(tmp_path, data, 1)
    config.validation.horizons = [100]
    with pytest.raises(WorldError, match="no episode is as long as a sequence of 102 frames"):
        pretrain.run(config)
    assert not (tmp_path / "run" / "world").exists()


def test_finetuning_on_other_buttons_is_refused(tmp_path: Path, data: DataConfig) -> None:
    other = write_tiny_dataset(tmp_path / "other", actions=ActionLayout(TINY_ACTIONS.axes[:2]))
    with pytest.raises(WorldError, match="turn/left"):
        choose_episodes([str(other)], 0, TINY_ACTIONS)


def test_the_codec_learns_and_is_exported(tmp_path: Path, data: DataConfig) -> None:
    def score(steps: int) -> float:
        return train_codec(
            TrainCodecConfig(
                out=str(tmp_path / f"codec-{steps}"),
                data=data,
                codec=tiny_codec_config(),
                loop=LoopConfig(num_steps=steps, warmup_steps=1, decay_fraction=0.0, ema_decay=0.0),
                fabric=FabricConfig(accelerator="cpu", precision="32-true"),
                batch_size=8,
                learning_rate=5e-3,
            )
        )

    assert score(60) > score(1) + 1.0
    codec = load_codec(tmp_path / "codec-60" / "codec")
    assert codec.latent_shape == (4, 4, 6)
    config = replace(pretrain_config(tmp_path, data, 1), codec=str(tmp_path / "codec-60" / "codec"))
    info = choose_episodes(data.train, 0)[0].info
    assert build_world(config, info).config.max_episode_steps is None
    world = build_world(config, replace(info, max_episode_steps=7))
    assert world.config.max_episode_steps == 7, "that of the game"
    world.save_pretrained(tmp_path / "world", starts=[])
    assert is_same_encoder(load_codec(tmp_path / "world"), codec), "odometry of its latents fits the world"


def test_a_codec_goes_on_from_another(tmp_path: Path, data: DataConfig) -> None:
    def score(name: str, steps: int, **changes: object) -> float:
        config = TrainCodecConfig(
            out=str(tmp_path / name),
            data=data,
            codec=tiny_codec_config(),
            loop=LoopConfig(num_steps=steps, warmup_steps=1, decay_fraction=0.0, ema_decay=0.0),
            fabric=FabricConfig(accelerator="cpu", precision="32-true"),
            batch_size=8,
            learning_rate=5e-3,
        )
        return train_codec(replace(config, **changes))

    first = score("first", 60)
    assert first > score("untrained", 1) + 1.0
    later = score("later", 1, init=str(tmp_path / "first" / "codec"), learning_rate=1e-6)
    assert later == pytest.approx(first, abs=0.2)
    grown = {"init": str(tmp_path / "first" / "codec"), "grow_channels": 6, "learning_rate": 1e-6}
    assert score("grown", 1, **grown) == pytest.approx(first, abs=0.5)
    codec, before = (load_codec(tmp_path / name / "codec") for name in ("grown", "first"))
    assert codec.latent_shape == (6, 4, 6)
    frames = torch.randint(256, (4, 32, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.testing.assert_close(codec.encode(frames)[:, :4], before.encode(frames), atol=0.1, rtol=0.1)
    with pytest.raises(WorldError, match="grow_channels must be more than the 4 that init has, got 4"):
        score("same", 1, init=str(tmp_path / "first" / "codec"), grow_channels=4)


def test_a_decoder_alone_gets_no_more_channels(data: DataConfig) -> None:
    with pytest.raises(WorldError, match=r"without decoder\.alone and decoder\.into, which keep its encoder"):
        alone = DecoderConfig(alone=True)
        TrainCodecConfig(out="", data=data, grow_channels=6, init="doom-rooms", decoder=alone)


def test_the_world_model_learns_to_predict(tmp_path: Path, data: DataConfig) -> None:
    config = pretrain_config(tmp_path, data, 1)
    denoiser = build_world(config, choose_episodes(data.train, 0)[0].info).denoiser.requires_grad_(True)
    module = SequenceFlowMatching(denoiser, ObjectiveConfig())
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 1, 4, 4, 6, generator=generator).expand(-1, 6, -1, -1, -1)
    actions = torch.zeros(2, 6, 3, dtype=torch.int64)
    losses = []
    for _ in range(120):
        loss = module(latents, actions, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_own_context_replaces_clean_frames_without_gradients_through_them() -> None:
    torch.manual_seed(0)
    module = SequenceFlowMatching(Denoiser(tiny_denoiser_config()), ObjectiveConfig(own_context_share=0.5))
    generator = torch.Generator().manual_seed(0)
    latents, actions = torch.randn(2, 5, 4, 4, 6), torch.zeros(2, 5, 3, dtype=torch.int64)
    batch = add_noise(latents, module.config, generator)
    own = module._predict_context(latents[:1], batch, actions[:1], generator)
    assert own.shape == (1, 5, 4, 4, 6)
    assert not own.requires_grad
    assert torch.equal(own[:, 0], latents[:1, 0])
    assert not torch.equal(own[:, 1:], latents[:1, 1:])


@pytest.mark.parametrize("kind", ["hybrid", "is_teacher", "recycled"])
def test_own_context_as_deep_as_the_clip_is_a_free_rollout(kind: str) -> None:
    frames, sampler = 5, SamplerConfig(num_steps=1)
    denoiser = tiny_world(is_teacher=kind == "is_teacher", recycled=kind == "recycled").denoiser.float()
    module = SequenceFlowMatching(denoiser, ObjectiveConfig(own_context_share=1.0, own_context_depth=frames))
    latents, actions = torch.randn(frames, frames, 4, 4, 6), torch.randint(3, (frames, frames, 3))
    batch = add_noise(latents, module.config, torch.Generator().manual_seed(0))
    own = module._predict_context(latents, batch, actions, torch.Generator().manual_seed(1))[-1:]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))[-1:]
    noise = batch.noise[-1:] if kind == "recycled" else noise
    memory, clean = denoiser.initial_memory(1), torch.zeros(1)
    for index in range(frames):
        context = denoiser.observe(actions[-1:, index], memory)
        frame, context = draw(denoiser, noise[:, index], context, memory, sampler)
        frame = frame if index else latents[-1:, 0]
        torch.testing.assert_close(own[:, index], frame, rtol=1e-3, atol=1e-3)
        memory = denoiser.commit(frame, clean, context, memory)
    assert (own[:, -1] - latents[-1:, -1]).abs().max() > 0.1


def test_noisy_frames_follow_the_flow() -> None:
    latents = torch.randn(4, 6, 4, 4, 6)
    batch = add_noise(latents, ObjectiveConfig(), torch.Generator().manual_seed(0))
    level = batch.levels[..., 1, None, None, None]
    torch.testing.assert_close(batch.noisy - level * batch.velocity, latents)
    assert (batch.levels[..., 0] <= 0.3).all()
    assert 0 < (batch.levels[..., 1] == 1).float().mean() < 1


def test_shifted_levels_lie_nearer_to_noise() -> None:
    latents = torch.randn(8, 16, 4, 4, 6)
    plain, shifted = (
        add_noise(latents, ObjectiveConfig(level_shift=shift), torch.Generator().manual_seed(0)).levels
        for shift in (1.0, 3.0)
    )
    plain, shifted = plain[..., 1], shifted[..., 1]
    drawn = plain < 1
    # t / (1 - t), noise over signal, is multiplied by the shift; pure noise stays pure.
    odds, expected = (shifted / (1 - shifted))[drawn], 3 * (plain / (1 - plain))[drawn]
    torch.testing.assert_close(odds, expected, rtol=1e-4, atol=0.0)
    assert (shifted[~drawn] == 1).all()


@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf")])
def test_a_level_shift_that_is_none_is_named(shift: float) -> None:
    with pytest.raises(WorldError, match=f"level_shift must be above 0 and finite, got {shift}"):
        ObjectiveConfig(level_shift=shift)


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_each_pass_learns_from_episodes_of_its_own(tmp_path: Path, num_devices: int) -> None:
    episodes = load_episodes([write_tiny_dataset(tmp_path / "six", episodes=6, frames=4)])
    shares = {
        number: [episode.name for episode in share]
        for rank in range(num_devices)
        for passes in [Passes(4, rank, num_devices)]
        for number, share in zip(passes.own, own_shares(episodes, passes), strict=True)
    }
    names = [episode.name for episode in episodes]
    assert shares == {number: names[number::4] for number in range(4)}
    with pytest.raises(WorldError, match="4 passes need an episode each, the data hold 3"):
        own_shares(episodes[:3], Passes(4, 0, num_devices))


def test_start_moments_are_where_most_can_be_seen_and_not_at_the_end_of_an_episode(tmp_path: Path) -> None:
    flat, room = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    room[:] = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3))
    info = DatasetInfo(name="tiny", width=WIDTH, height=HEIGHT, frame_rate=10, actions=TINY_ACTIONS)
    for name in ("a", "b"):
        with EpisodeWriter(tmp_path, name, info) as writer:
            for number in range(150):
                sees_more = 40 <= number < 60 or number >= 140
                writer.add(room if sees_more else flat, np.array([1, 0, 0]) if number < 149 else None)
    references = load_episodes([tmp_path])
    starts = take_starts(references, 2, 4, (HEIGHT, WIDTH))
    assert [start.name for start in starts] == ["start-00", "start-01"]
    for start in starts:
        assert start.frames.shape == (4, HEIGHT, WIDTH, 3)
        assert visible_detail(start.frames[-1].numpy()) > 4 * visible_detail(flat)
    shown = [reference.read().frames for reference in references]
    for start, frames in zip(starts, shown, strict=True):
        last = [number for number, frame in enumerate(frames) if np.array_equal(frame, start.frames[-1])]
        assert any(40 <= number < 60 for number in last)

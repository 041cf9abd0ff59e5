"""Outcome heads learn rewards and ends from gameplay video, are calibrated, and refuse video without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import (
    save_tiny_world,
    tiny_codec_config,
    tiny_denoiser_config,
    tiny_world,
    write_outcome_dataset,
    write_tiny_dataset,
)
from training.data.latents import (
    DataConfig,
    LatentVideo,
    choose_episodes,
    latent_video,
)
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.engine.optimizers import OptimizerConfig
from training.finetune import FinetuneConfig
from training.finetune import main as finetune
from training.objectives.noise import ObjectiveConfig
from training.outcomes.calibration import NEVER, calibrate, predict_outcomes
from training.pretrain import main as pretrain
from training.world.settings import PretrainConfig
from training.world.validation import ValidationConfig
from worldsim.codec import FrameCodec, save_codec
from worldsim.errors import WorldError
from worldsim.evaluation.quality.outcome import summarize_outcomes
from worldsim.model.linear import Linear
from worldsim.outcome import OutcomeConfig
from worldsim.simulator import Simulator
from worldsim.starts import Start
from worldsim.world import World

CPU = torch.device("cpu")


def config_of(
    tmp_path: Path, folders: tuple[Path, Path], num_steps: int, **changes: object
) -> PretrainConfig:
    codec = tmp_path / "codec"
    if not codec.exists():
        torch.manual_seed(0)
        save_codec(FrameCodec(tiny_codec_config()), codec)
    config = PretrainConfig(
        name="toy",
        out=str(tmp_path / "run"),
        data=DataConfig(train=[str(folders[0])], heldout=[str(folders[1])], num_workers=1),
        codec=str(codec),
        model=tiny_denoiser_config(outcome_heads=True),
        objective=ObjectiveConfig(own_context_share=0.25),
        optimizer=OptimizerConfig(muon=5e-3, adamw=5e-3),
        loop=LoopConfig(num_steps=num_steps, warmup_steps=5, ema_decay=0.95, checkpoint_seconds=1e9),
        fabric=FabricConfig(accelerator="cpu", precision="32-true"),
        validation=ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2]),
        batch_size=8,
        sequence_length=8,
        num_starts=2,
        start_frames=4,
    )
    return replace(config, **changes)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Do without threads that wait for each other: at this size they save nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    heldout = write_outcome_dataset(tmp_path / "heldout", episodes=6, seed=1)
    return write_outcome_dataset(tmp_path / "train"), heldout


def video_of(folder: Path, codec: FrameCodec | None = None) -> LatentVideo:
    torch.manual_seed(0)
    return latent_video(
        codec or FrameCodec(tiny_codec_config()), choose_episodes([str(folder)], 0), CPU, num_workers=1
    )


def test_a_small_world_learns_rewards_and_ends_that_it_can_see(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    pretrain.run(config_of(tmp_path, folders, 90))
    world = World.from_pretrained(tmp_path / "run" / "world")
    meaning = world.config.outcome
    assert meaning is not None
    assert 0.3 < meaning.reward_mean < 0.9
    assert 0.7 < meaning.reward_scale < 1.1
    unseen = video_of(write_outcome_dataset(tmp_path / "unseen", episodes=9, seed=2), world.codec)
    episodes = [heard.calibrated(meaning) for heard in predict_outcomes(world, unseen)]
    report = summarize_outcomes(episodes, meaning.end_threshold)
    assert report.num_episodes == 9
    assert report.ends.num_ends == 6
    assert report.ends.at_threshold.recall == 1.0
    assert report.ends.at_threshold.precision == 1.0
    per_step = report.rewards.per_step
    assert per_step.root_mean_square_error < 0.3 * per_step.root_mean_square_error_of_mean
    check_simulator(world, tmp_path / "unseen", episodes[0].probabilities, episodes[0].predicted_rewards)


def check_simulator(world: World, folder: Path, probabilities: np.ndarray, rewards: np.ndarray) -> None:
    """Play the first episode through the simulator: it says what calibration saw."""
    simulator = Simulator(world)
    episode = choose_episodes([str(folder)], 0)[0].read()
    frames, actions = torch.from_numpy(episode.frames), torch.from_numpy(episode.actions)
    state = simulator.start([Start("first", frames[:1], actions[:1])], [0])
    for index in range(1, len(frames)):
        state = simulator.commit_frames(state, frames[index][None], actions[index - 1][None])
        outcome = simulator.outcome(state)
        assert outcome is not None
        assert outcome.end[0].item() == pytest.approx(probabilities[index - 1], abs=0.02)
        assert outcome.reward[0].item() == pytest.approx(rewards[index - 1], abs=0.05)
        assert (outcome.end[0] >= world.config.end_threshold) == (index == len(frames) - 1)


def test_a_world_without_heads_gets_some_by_finetuning(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    base = save_tiny_world(tmp_path / "base")
    settings = config_of(tmp_path, folders, 2)
    names = ("data", "loop", "fabric", "validation", "batch_size", "sequence_length", "num_starts")
    given = {name: getattr(settings, name) for name in (*names, "start_frames")}
    finetune.run(FinetuneConfig(init=str(base), out=str(tmp_path / "a"), outcome_heads=True, **given))
    world = World.from_pretrained(tmp_path / "a" / "world")
    assert world.config.outcome is not None
    assert world.config.outcome.reward_scale != 1.0
    finetune.run(FinetuneConfig(init=str(tmp_path / "a" / "world"), out=str(tmp_path / "b"), **given))
    again = World.from_pretrained(tmp_path / "b" / "world")
    assert again.config.outcome is not None
    assert again.config.outcome.reward_mean == world.config.outcome.reward_mean
    assert again.identity != world.identity
    finetune.run(FinetuneConfig(init=str(base), out=str(tmp_path / "c"), **given))
    assert World.from_pretrained(tmp_path / "c" / "world").config.outcome is None


def test_heads_learn_over_segments_and_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    def run(name: str, num_steps: int) -> None:
        loop = LoopConfig(num_steps=num_steps, warmup_steps=2, decay_fraction=0.0, checkpoint_seconds=1e9)
        changes = {"out": str(tmp_path / name), "segments": 2, "batch_size": 4, "loop": loop}
        pretrain.run(config_of(tmp_path, folders, num_steps, **changes))

    run("whole", 5)
    run("killed", 3)
    (checkpoint,) = (tmp_path / "killed" / "checkpoints").iterdir()
    assert "summary" in torch.load(checkpoint, weights_only=True)["carry"]
    run("killed", 5)
    whole, resumed = (World.from_pretrained(tmp_path / name / "world") for name in ("whole", "killed"))
    assert whole.identity == resumed.identity
    assert whole.config.outcome == resumed.config.outcome


@pytest.mark.parametrize("lacking", ["train", "heldout"])
def test_video_without_rewards_is_refused_before_anything_is_encoded(
    tmp_path: Path, folders: tuple[Path, Path], lacking: str
) -> None:
    plain = write_tiny_dataset(tmp_path / "plain")
    chosen = (plain, folders[1]) if lacking == "train" else (folders[0], plain)
    with pytest.raises(WorldError, match=r"plain/episode-000\.jsonl records no reward"):
        pretrain.run(config_of(tmp_path, chosen, 1))
    assert not list(tmp_path.glob("*/latents"))
    without = config_of(tmp_path, chosen, 1, model=tiny_denoiser_config(), out=str(tmp_path / "without"))
    pretrain.run(without)
    assert World.from_pretrained(tmp_path / "without" / "world").config.outcome is None


def test_video_of_which_one_episode_says_nothing_has_no_outcomes(tmp_path: Path) -> None:
    write_outcome_dataset(tmp_path / "data", episodes=2)
    table = tmp_path / "data" / "episode-001.jsonl"
    table.write_text(table.read_text().replace('"terminated": false', '"other": false'))
    video = video_of(tmp_path / "data")
    assert video.rewards is not None
    assert video.ends is None
    with pytest.raises(WorldError, match="has nothing to learn them from"):
        video.outcomes()


def test_a_world_whose_head_tells_nothing_apart_never_ends(tmp_path: Path) -> None:
    world = tiny_world(outcome=OutcomeConfig())
    heads = world.denoiser.outcome
    assert heads is not None
    assert world.config.outcome is not None
    last = heads.end[-1]
    assert isinstance(last, Linear)
    torch.nn.init.zeros_(last.weight)
    video = video_of(write_outcome_dataset(tmp_path / "data", episodes=3, frames=6), world.codec)
    meaning, _ = calibrate(world, video, world.config.outcome)
    assert meaning.end_threshold == NEVER
    shares = [float(meaning.end_probability(torch.tensor(logit))) for logit in (-3.0, 3.0)]
    assert shares[0] == shares[1]
    assert 0.05 < shares[0] < 0.3, "two of 18 frames end"


def test_a_world_whose_heldout_episodes_never_end_never_ends(tmp_path: Path) -> None:
    world = tiny_world(outcome=OutcomeConfig(end_scale=3.0))
    folder = write_outcome_dataset(tmp_path / "data", episodes=2, frames=6, ends=False)
    video = video_of(folder, world.codec)
    assert world.config.outcome is not None
    meaning, numbers = calibrate(world, video, world.config.outcome)
    assert meaning.end_threshold == NEVER
    assert meaning.end_scale == 3.0
    assert "end_recall" not in numbers
    assert numbers["reward_error"] > 0

"""Training of the feature network of FID and KID on real games: `python -m training.features`."""

# B batch, T frames of all episodes end to end, H W size of the network, D features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.cli.entry import entry
from training.data.latents import choose_episodes, digest_of
from training.engine.fabric import FabricConfig, make_fabric, share_passes
from training.engine.loop import LoopConfig, fit, is_done, seed_of
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare
from training.objectives.features import DEGRADATIONS, FeatureLearner, FeatureLossConfig, degrade
from training.suites.feature_check import CHECK_FRAMES, check_features, format_check
from worldsim.data.sequences import EpisodeReference, SequenceIndex, read_episodes
from worldsim.errors import WorldError
from worldsim.evaluation.quality.distances import FID
from worldsim.evaluation.quality.features import EMBED_BATCH, FeatureConfig, FeatureNetwork, save_features
from worldsim.runtime.cores import check_workers
from worldsim.settings import REQUIRED, check_settings, setting

CALIBRATION_FRAMES = 4096
HELDOUT_FRAMES = 3000
"""Of each game."""
VALIDATION_PAIRS = 128
MIN_SIZE = 4
"""Height and width of frames that the feature check can alter: it shows blocks of up to 4 pixels."""
FREE_SETTINGS = ("out", "num_workers", "loop.num_steps", "loop.checkpoint_seconds", "loop.log_every")


@dataclass(kw_only=True, slots=True)
class TrainFeaturesConfig:
    """Settings of `python -m training.features`."""

    out: str = setting(REQUIRED, "The run's folder; the network is written to OUT/features.")
    data: list[str] = setting(REQUIRED, "Folders of real frames to learn from, of any games.")
    heldout: list[str] = setting(REQUIRED, "Folders to measure on.")
    max_frames: int = setting(0, "Frames of each folder, about, whole episodes; 0 is all.", minimum=0)
    near_frames: int = setting(6, "Frames up to so many apart show the same place.", minimum=1)
    features: FeatureConfig = setting(FeatureConfig, "Shape.")
    loss: FeatureLossConfig = setting(FeatureLossConfig, "Weights and strengths of the goals.")
    loop: LoopConfig = setting(LoopConfig, "Length and care.")
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")
    batch_size: int = setting(
        64, "Pairs of a pass: of an update on each device, without loop.global_batch_size.", minimum=2
    )
    learning_rate: float = setting(2e-3, "Of AdamW, at full height.", above=0)
    num_workers: int = setting(0, "Decoding threads; 0 is one per core.")

    def __post_init__(self) -> None:
        check_settings(self)
        check_workers(self.num_workers, "num_workers")
        for side in ("height", "width"):
            if (found := getattr(self.features, side)) < MIN_SIZE:
                raise WorldError(f"features.{side} must be at least {MIN_SIZE}, got {found}")


@dataclass(frozen=True, slots=True)
class Video:
    """Frames `[T, H, W, 3]` uint8 of episodes end to end, scaled to the network's size.

    `lengths` and `games` are the frames and the game of each episode.
    """

    frames: Tensor
    lengths: list[int]
    games: list[str]

    def pairs(self, begins: np.ndarray, distances: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the frames at `begins` and those so many frames later."""
        first, second = (torch.from_numpy(at).to(self.frames.device) for at in (begins, begins + distances))
        return self.frames[first], self.frames[second]

    def to(self, device: torch.device) -> Video:
        """Return the same video on a device."""
        return Video(self.frames.to(device), self.lengths, self.games)

    def sides(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each game as many frames of the first half of its episodes as of the second.

        A game of one episode is left out: its frames show the same places.
        """
        episodes = self.frames.split(self.lengths)
        found = {}
        for game in dict.fromkeys(self.games):
            own = [each for each, name in zip(episodes, self.games, strict=True) if name == game]
            if len(own) > 1:
                sides = torch.cat(own[: len(own) // 2]), torch.cat(own[len(own) // 2 :])
                count = min(CHECK_FRAMES, *map(len, sides))
                found[game] = tuple(
                    side[torch.linspace(0, len(side) - 1, count, device=side.device).long()].cpu()
                    for side in sides
                )
        return found


def list_video(setting: str, folders: Sequence[str], max_frames: int, length: int) -> list[EpisodeReference]:
    """List the episodes of folders of several games, of each up to a number of frames.

    Args:
        setting: Which names the folders, for errors.
        folders: Dataset folders.
        max_frames: About, of each folder; 0 is all.
        length: Frames that one of the episodes at least must have.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        WorldError: If no folder is named, one cannot be learned from, or all episodes are too short.
    """
    if not folders:
        raise WorldError(f"{setting} names no folder of gameplay video")
    chosen = [reference for folder in folders for reference in choose_episodes([folder], max_frames)]
    if (longest := max(reference.num_frames for reference in chosen)) < length:
        raise WorldError(
            f"near_frames={length - 1}: frames so far apart are in no episode of {setting}; the longest has "
            f"{longest}"
        )
    return chosen


def load_video(references: Sequence[EpisodeReference], network: FeatureNetwork, num_workers: int) -> Video:
    """Decode episodes of any size and scale them as the network does when it measures."""
    lengths = [reference.num_frames for reference in references]
    frames = torch.empty(sum(lengths), network.config.height, network.config.width, 3, dtype=torch.uint8)
    position = 0
    for episode in read_episodes(references, num_workers=num_workers, show_progress=True):
        for part in torch.from_numpy(episode.frames).split(EMBED_BATCH):
            scaled = (network.scale(part.movedim(-1, 1)) * 255).round().byte()
            frames[position : position + len(part)] = scaled.movedim(1, -1)
            position += len(part)
    return Video(frames, lengths, [reference.info.name for reference in references])


@torch.no_grad()
def measure_features(learner: FeatureLearner, video: Video, near_frames: int) -> dict[str, float]:
    """Return how well fixed held-out pairs are found, and how well degradations are recognised.

    Returns:
        `neighbours_found`, the share of frames whose neighbour in time is the most similar of all; and for
        each degradation the share of the variance of its strength that is explained, `blur_explained` say.
    """
    index = SequenceIndex(video.lengths, near_frames + 1)
    count = min(VALIDATION_PAIRS, len(index))
    begins = index.start(np.linspace(0, len(index) - 1, count).astype(np.int64))
    frames, later = video.pairs(begins, np.full(count, near_frames))
    images, near = (each.movedim(-1, 1).float() / 255 for each in (frames, later))
    seen, found = (learner.projection(learner.network.raw_features(each)) for each in (images, near))
    nearest = torch.nn.functional.normalize(seen, dim=1) @ torch.nn.functional.normalize(found, dim=1).T
    right = nearest.argmax(dim=1) == torch.arange(count, device=nearest.device)
    generator = torch.Generator(images.device).manual_seed(0)
    degraded, strengths = degrade(images, images.roll(1, dims=0), learner.config, generator)
    error = (learner.strengths(learner.network.raw_features(degraded)) - strengths).square().mean(dim=0)
    explained = 1 - error / strengths.var(dim=0, correction=0).clamp(min=1e-9)
    numbers = {f"{name}_explained": float(value) for name, value in zip(DEGRADATIONS, explained, strict=True)}
    return {"neighbours_found": float(right.float().mean())} | numbers


@torch.no_grad()
def calibrate(network: FeatureNetwork, video: Video) -> None:
    """Give the features unit variance over frames spread evenly over all that there are."""
    places = torch.linspace(0, len(video.frames) - 1, min(CALIBRATION_FRAMES, len(video.frames))).long()
    images = (video.frames[part].movedim(-1, 1).float() / 255 for part in places.split(EMBED_BATCH))
    network.calibrate(torch.cat([network.raw_features(part).float() for part in images]))


def describe_video(references: Sequence[EpisodeReference]) -> list[dict[str, Any]]:
    """Return for each game the frames that were learned from, for the card."""
    games: dict[str, dict[str, Any]] = {}
    for each in references:
        game = games.setdefault(
            each.info.name,
            {"name": each.info.name, "frames": 0, "source": each.info.source, "licence": each.info.licence},
        )
        game["frames"] += each.num_frames
    return list(games.values())


def train_features(config: TrainFeaturesConfig) -> dict[str, float]:
    """Train, write the network, and return what `measure_features` finds."""
    length = config.near_frames + 1
    references = list_video("data", config.data, config.max_frames, length)
    heldout_references = list_video("heldout", config.heldout, HELDOUT_FRAMES, length)
    fabric = make_fabric(config.fabric, Path(config.out))
    run = RunFolder(config.out, config, FREE_SETTINGS)  # the folder is made when all else is right
    passes = share_passes(fabric, config.batch_size, config.loop.global_batch_size)
    run.check_inputs(
        fabric, passes.total, data=digest_of(None, references), heldout=digest_of(None, heldout_references)
    )
    torch.manual_seed(config.loop.seed)
    network = FeatureNetwork(config.features)
    video, heldout = (
        load_video(each, network, config.num_workers) for each in (references, heldout_references)
    )
    index = SequenceIndex(video.lengths, length)
    learner = FeatureLearner(network, config.loss)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    training = prepare(fabric, learner, [optimizer], config.loop.ema_decay, passes)
    video, heldout = video.to(fabric.device), heldout.to(fabric.device)

    def batch_at(step: int, number: int) -> tuple[Tensor, Tensor, torch.Generator]:
        seed = seed_of(config.loop.seed, step, number)
        rng = np.random.default_rng(seed)
        distances = rng.integers(1, config.near_frames + 1, size=config.batch_size)
        frames, later = video.pairs(index.sample(rng, config.batch_size), distances)
        return frames, later, torch.Generator(fabric.device).manual_seed(seed)

    result: dict[str, float] = {}

    def on_checkpoint(training: Training) -> dict[str, float]:
        averaged = training.averaged()
        assert isinstance(averaged, FeatureLearner)
        averaged.eval()
        calibrate(averaged.network, video)
        result.update(measure_features(averaged, heldout, config.near_frames))
        card = {"data": describe_video(references), "steps": training.step, "heldout": result}
        if is_done(training, config.loop):
            card["distances"] = check_features(averaged.network, heldout.sides())
            fabric.print(f"FID, held out\n{format_check(card['distances'][FID])}")
        if fabric.global_rank == 0:
            save_features(averaged.network, run.path / "features", card)
        return result

    pairs = config.batch_size
    fit(fabric, training, batch_at, config.loop, run, frames_per_batch=2 * pairs, on_checkpoint=on_checkpoint)
    fabric.print(f"feature network in {run.path / 'features'}")
    return result


@entry("features", TrainFeaturesConfig)
def main(config: TrainFeaturesConfig) -> None:
    """Train the feature network."""
    train_features(config)


if __name__ == "__main__":
    main()

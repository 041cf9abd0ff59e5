"""Train the depth estimator that players walk by, on games of Doom: `python -m training.depth`.

Records frames with the depth that the engine draws them with, fits the network of
`policies.scripted.depth`, measures it on episodes of other seeds, and writes OUT/depth.safetensors; that
file beside the module is the one that ships. `videos` are measured with it: how long they face a wall. With
`games=[]` nothing is trained, and the one that ships measures them.
"""

# T frames, S strips across a picture, F features of a strip

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from tqdm import tqdm

from policies.scripted.depth import NUM_ROWS, NUM_STRIPS, DepthEstimator, depth_estimator, strip_features
from training.cli.entry import entry
from training.depth.footage import degrade, record
from worldsim.data.video import describe_video, stream_video
from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting
from worldsim.storage.files import writing

HELDOUT_SEEDS = 2_000_000_000
WALL, WALL_SHARE = 96.0, 90  # a wall fills the view where 90 % of the strips are nearer, in map units
BATCH = 512


@dataclass(kw_only=True, slots=True)
class DepthConfig:
    """Settings of `python -m training.depth`."""

    out: str = setting("runs/depth", "Folder of depth.safetensors.")
    games: list[str] = setting(
        ["doom-rooms", "doom-fresh-rooms", "doom-level"],
        "Games to learn from; [] measures videos with what ships.",
    )
    num_frames: int = setting(6000, "Frames of each game.", minimum=1)
    heldout_frames: int = setting(1500, "Frames of each game to measure on.", minimum=1)
    hidden: int = setting(32, "Width of the two hidden layers.", minimum=1)
    epochs: int = setting(40, "Passes over the frames.", minimum=1)
    learning_rate: float = setting(5e-3, "Of AdamW, at its height.", above=0)
    seed: int = setting(0, "Of all that is drawn.", minimum=0)
    videos: list[str] = setting([], "Recordings, FILE.mp4, to measure how long they face a wall.")

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.games and not self.videos:
            raise WorldError("games=[] needs videos to measure")


@entry("depth", DepthConfig)
def main(config: DepthConfig) -> None:
    """Train, and measure videos."""
    for video in config.videos:  # before minutes of training
        check_video(Path(video))
    estimator = train(config) if config.games else depth_estimator()
    for video in config.videos:
        walls = [bool(is_wall(estimator(frame))) for _, frame in stream_video(Path(video))]
        told = f"{np.mean(walls):.0%} of {len(walls)} frames, {longest_run(walls)} in a row"
        print(f"{video} faces a wall in {told}")


def check_video(path: Path) -> None:
    """Refuse a video in which no depth can be told.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no readable video, or has too few pixels.
    """
    found = describe_video(path)
    if not found.num_frames or found.height < NUM_ROWS or found.width < NUM_STRIPS:
        raise WorldError(
            f"{path} has {found.num_frames} frames of {found.width} x {found.height}: depth is told in "
            f"frames of at least {NUM_STRIPS} x {NUM_ROWS}"
        )


def train(config: DepthConfig) -> DepthEstimator:
    """Record, fit, write, measure; returns what was trained."""
    path = Path(config.out) / "depth.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    frames, depths = record(config.games, config.num_frames, 0)
    features = np.stack(
        [each for frame in frames for each in map(strip_features, (frame, degrade(frame, rng)))]
    )
    estimator = fit(config, torch.from_numpy(features), torch.from_numpy(np.repeat(depths, 2, axis=0)))
    with writing(path) as part:
        save_file({name: tensor.astype(np.float16) for name, tensor in estimator.tensors.items()}, part)
    print(f"wrote {path}")
    for game in config.games:
        print(f"{game}: {measure(estimator, *record([game], config.heldout_frames, HELDOUT_SEEDS))}")
    return estimator


def fit(config: DepthConfig, features: Tensor, depths: Tensor) -> DepthEstimator:
    """Fit a network to features `[T, S, F]` and depths `[T, S]`, and to their mirror images."""
    mirrored = features.unflatten(2, (3, -1)).flip(1, 2).flatten(2)
    seen, wanted = torch.cat([features, mirrored]), torch.cat([depths, depths.flip(1)]).log().float()
    mean, deviation = seen.mean((0, 1)), seen.std((0, 1)) + 1e-3
    seen = ((seen - mean) / deviation).half()
    widths = (seen.shape[-1], config.hidden, config.hidden, 1)
    layers = [nn.Linear(*sizes) for sizes in zip(widths[:-1], widths[1:], strict=True)]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = config.epochs * math.ceil(len(seen) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    for _ in tqdm(range(config.epochs), desc="fit", unit="epoch"):
        for chosen in torch.randperm(len(seen)).split(BATCH):
            loss = (network(seen[chosen].float())[..., 0] - wanted[chosen]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    tensors = {"mean": mean.numpy(), "deviation": deviation.numpy()}
    for number, layer in enumerate(layers):
        tensors[f"weight{number}"] = layer.weight.detach().numpy().T.copy()
        tensors[f"bias{number}"] = layer.bias.detach().numpy()
    return DepthEstimator(tensors)


def measure(estimator: DepthEstimator, frames: Sequence[np.ndarray], depths: np.ndarray) -> str:
    """Return how well depths `[T, S]` are told, in words."""
    told = np.stack([estimator(frame) for frame in frames])
    error = float(np.abs(np.log(told / depths)).mean())
    found, true = is_wall(told), is_wall(depths)
    right, wrong = (
        f"{each.mean():.1%} of {each.size}" if each.size else "0" for each in (found[true], found[~true])
    )
    return (
        f"depth is off by a factor of {math.exp(error):.2f}; a wall that fills the view is told in "
        f"{right} frames, and in {wrong} others"
    )


def longest_run(is_so: Sequence[bool]) -> int:
    """Return how many in a row are so, at most."""
    longest = run = 0
    for each in is_so:
        run = run + 1 if each else 0
        longest = max(longest, run)
    return longest


def is_wall(depths: np.ndarray) -> np.ndarray:
    """Return whether a wall fills the view, of depths `[..., S]`."""
    return np.percentile(depths, WALL_SHARE, axis=-1) < WALL

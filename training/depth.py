"""Teach the sense of depth that players walk by, on games of Doom: `python -m training.depth`.

Records frames with the depth that the engine draws them with, fits the network of
`policies.scripted.depth`, measures it on episodes of other seeds, and writes OUT/depth.safetensors; that
file beside the module is the one that ships. `videos` are measured with it: how long they face a wall.
"""

# T frames, S strips across a picture, F features of a strip

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import policies
from policies.scripted.depth import FARTHEST, NEAREST, NUM_STRIPS, DepthSense, strip_features
from training.cli.entry import entry
from worldsim.data.video import stream_video
from worldsim.errors import WorldError
from worldsim.games.doom import DoomEntry, DoomGame
from worldsim.games.registry import find_game
from worldsim.settings import check_settings, setting
from worldsim.storage.files import writing

UNITS = 7.1  # map units of a step of the engine's depth, by the floor at known rows
EYE_LEVEL = slice(54, 62)  # rows
EPISODE_FRAMES, SPACING = 240, 4
HELDOUT_SEEDS = 2_000_000_000
WALL, WALL_SHARE = 96.0, 90  # a wall fills the view where 90 % of the strips are nearer, in map units
BLUR, GAIN, OFFSET, NOISE = (0.3, 1.6), (0.6, 1.4), 20.0, 6.0  # dreams are softer than the game
BATCH = 512


@dataclass(kw_only=True, slots=True)
class DepthConfig:
    """Settings of `python -m training.depth`."""

    out: str = setting("runs/depth", "Folder of depth.safetensors.")
    games: list[str] = setting(["doom-rooms", "doom-fresh-rooms", "doom-level"], "Games to learn from.")
    num_frames: int = setting(6000, "Frames of each game.", minimum=100)
    heldout_frames: int = setting(1500, "Frames of each game to measure on.", minimum=100)
    hidden: int = setting(32, "Width of the two hidden layers.", minimum=1)
    epochs: int = setting(40, "Passes over the frames.", minimum=1)
    learning_rate: float = setting(5e-3, "Of AdamW, at its height.", above=0)
    seed: int = setting(0, "Of all that is drawn.", minimum=0)
    videos: list[str] = setting([], "Recordings, FILE.mp4, to measure how long they face a wall.")

    def __post_init__(self) -> None:
        check_settings(self)


class DepthGame(DoomGame):
    """A game of Doom that tells the depth of what it draws."""

    def depths(self) -> np.ndarray:
        """Return how far it is in each strip at eye level, `[S]`, in map units."""
        drawn = self._game.get_state().depth_buffer[EYE_LEVEL].astype(np.float32)
        strips = np.median(drawn, axis=0).reshape(NUM_STRIPS, -1)
        return np.clip(UNITS * np.median(strips, axis=1), NEAREST, FARTHEST)

    def _configure(self, vizdoom: ModuleType) -> None:
        super()._configure(vizdoom)
        self._game.set_depth_buffer_enabled(True)


@entry("depth", DepthConfig)
def main(config: DepthConfig) -> None:
    """Record, fit, measure, write."""
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    frames, depths = record(config.games, config.num_frames, 0)
    features = np.stack(
        [each for frame in frames for each in map(strip_features, (frame, degrade(frame, rng)))]
    )
    sense = fit(config, torch.from_numpy(features), torch.from_numpy(np.repeat(depths, 2, axis=0)))
    path = Path(config.out) / "depth.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as part:
        save_file({name: tensor.astype(np.float16) for name, tensor in sense.tensors.items()}, part)
    for game in config.games:
        print(f"{game}: {measure(sense, *record([game], config.heldout_frames, HELDOUT_SEEDS))}")
    for video in config.videos:
        walls = [bool(is_wall(sense(frame))) for _, frame in stream_video(Path(video))]
        told = f"{np.mean(walls):.0%} of {len(walls)} frames, {longest_run(walls)} in a row"
        print(f"{video} faces a wall in {told}")
    print(f"written to {path}")


def record(games: Sequence[str], num_frames: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return frames `[H, W, 3]` of each game as explorers see them, and their depths `[T, S]`."""
    frames, depths = [], []
    for name in games:
        if not isinstance(entry := find_game(name), DoomEntry):
            raise WorldError(f"{name} tells no depth: name games of Doom")
        game = DepthGame(entry)
        with game, tqdm(total=num_frames, desc=name, unit="frame") as bar:
            for frame, depth in explore(game, seed):
                frames.append(frame)
                depths.append(depth)
                bar.update()
                if bar.n == num_frames:
                    break
    return frames, np.stack(depths)


def explore(game: DepthGame, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames and depths of a game without end, a player that runs into walls, too."""
    num_values = game.entry.actions.num_values
    player = policies.SCRIPTED[next(iter(policies.find_scripted(num_values)))](num_values)
    while True:
        seen = game.reset(seed)
        player.reset(seed)
        seed += 1
        for number in range(EPISODE_FRAMES):
            seen = game.step(player.act(seen.frame))
            if seen.terminated or seen.truncated:
                break
            if number % SPACING == 0:
                yield seen.frame, game.depths()


def degrade(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a frame as a dream may draw it: softer, brighter or darker, with noise."""
    width = rng.uniform(*BLUR)
    weights = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * width**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    planes = torch.from_numpy(frame).float().movedim(-1, 0)[:, None]
    soft = functional.conv2d(functional.pad(planes, (3,) * 4, mode="replicate"), kernel[None, None])
    shown = soft[:, 0].movedim(0, -1).numpy() * rng.uniform(*GAIN) + rng.uniform(-OFFSET, OFFSET)
    shown += rng.normal(scale=rng.uniform(0, NOISE), size=shown.shape)
    return np.clip(shown, 0, 255).astype(np.uint8)


def fit(config: DepthConfig, features: Tensor, depths: Tensor) -> DepthSense:
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
    return DepthSense(tensors)


def measure(sense: DepthSense, frames: Sequence[np.ndarray], depths: np.ndarray) -> str:
    """Return how well depths `[T, S]` are told, in words."""
    told = np.stack([sense(frame) for frame in frames])
    error = float(np.abs(np.log(told / depths)).mean())
    found, true = is_wall(told), is_wall(depths)
    return (
        f"depth is off by a factor of {math.exp(error):.2f}; a wall that fills the view is told in "
        f"{found[true].mean():.1%} of {true.sum()} frames, and in {found[~true].mean():.1%} of the others"
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


if __name__ == "__main__":
    main()

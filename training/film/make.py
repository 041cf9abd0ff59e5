"""Make the moving picture of the README from worlds, by their names: `python -m training.film`.

Programs play: a world's own policy where one ships, else its scripted player, else a random one. One world
fills the picture, several lie side by side.
"""

# T frames, H W frame size, N worlds

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import policies
from training.cli.entry import entry
from training.film.picture import MAX_SIDE, tile, write_webp
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.games.registry import GAMES
from worldsim.runtime.config import RuntimeSettings
from worldsim.runtime.device import set_threads
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.storage.files import writing
from worldsim.world.world import POLICY_FOLDER

SUFFIX = ".webp"


@dataclass(kw_only=True, slots=True)
class FilmConfig(RuntimeSettings):
    """Settings of `python -m training.film`."""

    worlds: list[str] = setting(REQUIRED, "Names or folders of worlds, shown row by row.")
    out: str = setting(REQUIRED, "FILE.webp to write; one that is there is replaced.")
    starts: list[int] = setting([], "Number of the start moment in each world; none draws them.", minimum=0)
    seconds: float = setting(5.0, "Length, at the first world's frame rate.", above=0, maximum=60)
    every: int = setting(2, "Show every so many frames: the file is smaller.", minimum=1)
    columns: int = setting(2, "Worlds in a row.", minimum=1)
    scale: int = setting(2, "Pixels of the picture for one of a frame.", minimum=1, maximum=16)
    quality: int = setting(60, "Of the compression; 100 is best and largest.", minimum=0, maximum=100)
    seed: int = setting(0, "Of the start moments, the frames and the players.", minimum=0)

    def __post_init__(self) -> None:
        RuntimeSettings.__post_init__(self)
        check_settings(self)
        if not self.worlds:
            raise WorldError("worlds must name at least one world")
        if self.starts and len(self.starts) != len(self.worlds):
            raise WorldError(f"starts must be one for each of {len(self.worlds)} worlds, got {self.starts}")
        if not self.out.endswith(SUFFIX):
            raise WorldError(f"out must end in {SUFFIX}, got {self.out!r}")


@entry("film", FilmConfig)
def main(config: FilmConfig) -> None:
    """Let each world be played, then write the film."""
    set_threads(config.threads)
    starts: list[int | None] = [*config.starts] or [None] * len(config.worlds)
    path = Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    dreams, rate = [], 0.0
    envs = open_worlds(config, starts)
    for env, start in zip(envs, starts, strict=True):
        rate = rate or env.world.config.frame_rate
        dreams.append(play(env, math.ceil(config.seconds * rate), config.seed, start)[:: config.every])
    pictures = [tile(frames, config.columns, config.scale) for frames in zip(*dreams, strict=True)]
    with writing(path) as part:
        write_webp(part, pictures, rate / config.every, config.quality)
    print(f"wrote {path}: {len(pictures)} frames, {path.stat().st_size:,} bytes")


def open_worlds(config: FilmConfig, starts: list[int | None]) -> list[ARL2WorldEnv]:
    """Return the worlds, each with its start moment; what cannot be filmed is found before any is played.

    Raises:
        WorldError: If there is no such world or start moment, or the picture would be too large.
    """
    envs = [ARL2WorldEnv(world, device=config.device, dtype=config.dtype) for world in config.worlds]
    firsts = tuple(begin(env, start, config.seed) for env, start in zip(envs, starts, strict=True))
    height, width, _ = tile(firsts, config.columns, config.scale).shape
    if max(height, width) > MAX_SIDE:
        raise WorldError(
            f"the film would be {width} x {height} pixels, and {SUFFIX} has at most {MAX_SIDE} a side: "
            "choose a smaller scale, or other columns"
        )
    return envs


def play(env: ARL2WorldEnv, num_frames: int, seed: int, start: int | None) -> list[np.ndarray]:
    """Return the frames `[H, W, 3]` of a dream that a program plays."""
    world = env.world
    num_values = world.config.actions.num_values
    if world.folder is not None and (world.folder / POLICY_FOLDER).is_dir():
        player = policies.make("ppo", num_values=num_values, folder=world.folder / POLICY_FOLDER)
    else:
        name = policies.usual_player(num_values)
        player = policies.make(name, num_values=num_values, game=GAMES.get(world.config.name))
    player.reset(seed)
    frame = begin(env, start, seed)
    frames = [frame]
    for _ in tqdm(range(num_frames - 1), desc=world.config.name, unit="frame"):
        frame, _, has_ended, time_is_up, _ = env.step(player.act(frame))
        if has_ended or time_is_up:
            frame = begin(env, start)
            player.reset(seed)
        frames.append(frame)
    return frames


def begin(env: ARL2WorldEnv, start: int | None, seed: int | None = None) -> np.ndarray:
    """Return the first frame `[H, W, 3]` of a dream from a start moment, None draws one; the seed may go on.

    Raises:
        WorldError: If there is no such moment.
    """
    return env.reset(seed=seed, options=None if start is None else {"start": start})[0]

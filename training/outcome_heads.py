"""Training of a world's outcome heads alone, also on its own frames: `python -m training.outcome_heads`.

Writes a new world that draws the same frames, bit for bit: of its weights, those of the heads are others.
What the heads pool is computed once (`training.outcomes.frames`); then they are trained, and calibrated as
`training.calibrate` does it. Until that has succeeded they are kept beside the new world, in
`OUT-uncalibrated`.
"""

# M frames, K of them at a time, N tokens per frame, D model width

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.cli.entry import entry
from training.data.latents import DataConfig, LatentVideo, choose_episodes, latent_video
from training.data.tables import check_outcomes
from training.engine.lock import locked_folder
from training.objectives.outcome import OutcomeLoss, OutcomeLossConfig
from training.outcomes.calibrate_world import (
    CalibrationConfig,
    calibrate_ends,
    load_simulator,
    open_recordings,
)
from training.outcomes.frames import OutcomeFrames, SequencesConfig, draw_along, index_pieces
from training.world.clips import cache_for
from training.world.train import add_provenance
from worldsim.errors import WorldError
from worldsim.model.outcome_heads import OutcomeHeads
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.simulator import Simulator
from worldsim.world import World
from worldsim.world.rewrite import check_described, save_described

UNCALIBRATED = "-uncalibrated"
"""Behind the name of the new world's folder: of the folder that holds the heads until they are calibrated."""


@dataclass(kw_only=True, slots=True)
class HeadsTrainingConfig:
    """How the heads learn from the frames that were kept."""

    num_steps: int = setting(600, "Updates.", minimum=1)
    frames: int = setting(64, "Frames of an update, each as recorded and as drawn.", minimum=1)
    learning_rate: float = setting(1e-3, "At its highest, early on; it falls to 0.", above=0)
    drawn_weight: float = setting(
        0.5, "Weight of drawn frames: 0 learns from recorded ones alone, 1 from drawn.", minimum=0, maximum=1
    )

    def __post_init__(self) -> None:
        check_settings(self, "training.")


@dataclass(kw_only=True, slots=True)
class OutcomeHeadsConfig(CalibrationConfig):
    """Settings of `python -m training.outcome_heads`, beside those of the calibration that comes after."""

    data: DataConfig = setting(
        REQUIRED,
        "Episodes with rewards and ends, to learn from (train) and to calibrate on (heldout); some of both "
        "must end. data.max_frames=20_000 uses only the first of train: all of them are encoded once.",
    )
    sequences: SequencesConfig = setting(SequencesConfig, "Pieces of play, and how the world draws along.")
    training: HeadsTrainingConfig = setting(HeadsTrainingConfig, "How the heads learn.")


@entry("outcome_heads", OutcomeHeadsConfig)
def main(config: OutcomeHeadsConfig) -> None:
    """Draw, train, calibrate, write the world."""
    simulator, out = load_simulator(config), Path(config.out)
    world = simulator.world
    if world.denoiser.outcome is None:
        raise WorldError(
            f"world {world.config.name!r} has no outcome heads; python -m training.finetune "
            "outcome_heads=true outcome.detach=true gives it some"
        )
    check_described(world, out)
    kept = out.with_name(f"{out.name}{UNCALIBRATED}")
    check_described(world, kept)
    with locked_folder(out, is_new=True):
        learn_heads(config, simulator, out, kept)
    print(f"\nworld in {out}")


def learn_heads(config: OutcomeHeadsConfig, simulator: Simulator, out: Path, kept: Path) -> None:
    """Train and calibrate the heads of a world; `kept` holds them until both have succeeded."""
    world = simulator.world
    recordings = open_recordings(config, simulator, config.data.heldout)
    video = load_video(config.data, config.sequences, world)
    frames = draw_along(world, video, config.sequences, config.seed)
    heads = train_heads(world, frames, config.training, end_frequency(frames, video), config.seed)
    trained = describe_heads(config, frames, sum(video.lengths))
    keep_heads(world, heads, trained, kept)
    world.denoiser.outcome = heads.to(dtype=world.dtype)
    world.denoiser.pack()
    try:
        after, calibration = calibrate_ends(config, simulator, recordings)
    except WorldError as error:
        raise WorldError(
            f"{error}. The trained heads are kept, in {kept}: python -m training.calibrate world={kept} "
            f"out={out} calibrates them otherwise (num_dreams=0, frames=given), or on other episodes "
            f"(data.heldout); training.outcome_heads world={kept} with another out trains them on"
        ) from error
    provenance = add_provenance(world.config.provenance, "training", trained)
    provenance = add_provenance(provenance, "calibration", calibration)
    described = replace(world.config, outcome=after, provenance=provenance)
    save_described(world, described, out, heads=heads)
    shutil.rmtree(kept)


def keep_heads(world: World, heads: OutcomeHeads, trained: str, folder: Path) -> None:
    """Write a world with trained heads whose numbers still mean what those of the former heads meant.

    What comes next takes minutes and may be refused, or stopped; the training is not lost then.

    Args:
        world: That they were trained for, which stays as it is.
        heads: The heads, in fp32.
        trained: A sentence for the card, of their training.
        folder: Where to; there must be nothing.
    """
    provenance = add_provenance(world.config.provenance, "training", trained)
    missing = "none since the outcome heads were trained: the numbers are those of the heads before"
    provenance = add_provenance(provenance, "calibration", missing)
    save_described(world, replace(world.config, provenance=provenance), folder, heads=heads)
    print(f"trained heads in {folder}, until they are calibrated", flush=True)


def describe_heads(config: OutcomeHeadsConfig, frames: OutcomeFrames, num_recorded: int) -> str:
    """Return a sentence for the world's card: what its heads learned from."""
    return (
        f"outcome heads alone: {config.training.num_steps:,} updates on {len(frames):,} frames with "
        f"{int(frames.ends.sum())} ends, as recorded and as the world draws them, up to "
        f"{config.sequences.depth} in a row, from {num_recorded:,} recorded ones"
    )


def load_video(data: DataConfig, sequences: SequencesConfig, world: World) -> LatentVideo:
    """Return the recorded play to learn from, encoded by the world's codec.

    Raises:
        WorldError: If it has other buttons, does not record rewards and ends, or none of the pieces that are
            asked for holds an end.
    """
    references = choose_episodes(data.train, data.max_frames, world.config.actions)
    tables = check_outcomes(references)
    ended = np.array([table.terminated is not None and table.terminated[-1] for table in tables], dtype=bool)
    index_pieces(sequences, [reference.num_frames for reference in references], ended)
    cache = cache_for(world.codec, data, world.device)
    return latent_video(world.codec, references, world.device, num_workers=data.num_workers, cache=cache)


def end_frequency(frames: OutcomeFrames, video: LatentVideo) -> float:
    """Return how much rarer ends are in the video than among the frames that were kept, 0 to 1."""
    recorded = float(video.ended_episodes().sum()) / max(1, sum(video.lengths) - len(video.lengths))
    kept = float(frames.ends.float().mean())
    return min(1.0, recorded / kept) if kept else 1.0


def train_heads(
    world: World, frames: OutcomeFrames, config: HeadsTrainingConfig, end_frequency: float, seed: int
) -> OutcomeHeads:
    """Train a copy of a world's heads on recorded and drawn frames alike.

    Args:
        world: With outcome heads, from which they go on; it stays as it is.
        frames: On the world's device.
        config: How.
        end_frequency: See `OutcomeLoss`.
        seed: Decides which frames an update sees.

    Returns:
        The heads, in fp32.

    Raises:
        WorldError: If the loss is NaN or inf.
    """
    assert world.denoiser.outcome is not None, "was looked for"
    assert world.config.outcome is not None
    shape = world.denoiser.config
    heads = OutcomeHeads(shape.dim, shape.num_heads).to(world.device)
    heads.load_state_dict(world.denoiser.outcome.state_dict())
    optimizer = torch.optim.AdamW(heads.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.num_steps, pct_start=0.1, div_factor=10
    )
    loss_of = OutcomeLoss(heads, world.config.outcome, OutcomeLossConfig(), end_frequency)
    share = torch.tensor([1 - config.drawn_weight, config.drawn_weight], device=world.device)
    bar = tqdm(_choices(len(frames), config, seed), desc="heads", total=config.num_steps, unit="update")
    for chosen in bar:
        targets = frames.targets(chosen.to(world.device))
        tokens = frames.tokens[chosen.to(world.device)].float()
        losses = loss_of(heads, heads.pool(tokens), targets, targets.is_real * share)
        if not losses["loss_outcome"].isfinite():
            raise WorldError("the loss of the heads is NaN or inf: lower training.learning_rate")
        optimizer.zero_grad()
        losses["loss_outcome"].backward()
        torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix({name: f"{float(losses[name]):.3g}" for name in ("loss_reward", "loss_end")})
    return heads.eval().requires_grad_(False)


def _choices(count: int, config: HeadsTrainingConfig, seed: int) -> Iterator[Tensor]:
    """Yield which frames each update sees, `[K]`: all in turn, in another order each time."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(config.num_steps):
        while len(waiting) < config.frames:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[: config.frames]
        waiting = waiting[config.frames :]


if __name__ == "__main__":
    main()

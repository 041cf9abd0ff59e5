"""Settings of the stages that fit a machine, a time and what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import list_episodes, read_table
from worldsim.errors import WorldError

SHARES = {"collect": 0.15, "codec": 0.2, "pretrain": 0.5, "evaluate": 0.05}
"""Of the minutes; the tenth that is left is for starting the stages, and the check."""
LEAST_FRAMES = 400
"""To record, however long it takes."""
FRAMES_A_MINUTE = {"cpu": 1_000, "gpu": 20_000}
"""Recorded at most, since the codec has to encode all of them before the world learns."""
MAX_FRAMES = {"cpu": 20_000, "gpu": 400_000}
"""Recorded at most: more are not seen in an hour or two."""
LONG_MINUTES = {"cpu": 30.0, "gpu": 20.0}
"""From which on the larger of two models has the time to learn."""
LONG_MEASUREMENT = 1500
"""Drawn frames from which on buttons, rewards and ends are measured, too."""
LONG_RUN = ("loop.warmup_steps=200", "loop.decay_fraction=0.4", "loop.ema_decay=0.998")
"""Of thousands of updates."""
MIN_SEQUENCE = 4
"""Frames of the shortest sequence that still shows what an action does."""


@dataclass(frozen=True, slots=True)
class Footage:
    """What was recorded.

    Attributes:
        info: Of the folder to learn from.
        train_lengths: Frames of its episodes.
        heldout_lengths: Frames of those held out.
        has_outcomes: Whether every frame tells its reward and whether the game ended.
    """

    info: DatasetInfo
    train_lengths: tuple[int, ...]
    heldout_lengths: tuple[int, ...]
    has_outcomes: bool

    @classmethod
    def of(cls, train: Path, heldout: Path) -> Footage:
        """Look at two folders.

        Raises:
            FileNotFoundError: If one is missing.
            WorldError: If there is nothing in them, or no episode is long enough to learn from.
        """
        info = DatasetInfo.load(train)
        tables = [
            [read_table(each, name, info.actions) for name in list_episodes(each)]
            for each in (train, heldout)
        ]
        lengths, heldout_lengths = (tuple(len(table.actions) for table in found) for found in tables)
        if min(max(lengths), max(heldout_lengths)) < 2 * MIN_SEQUENCE:
            raise WorldError(
                f"the longest episodes of {train} and {heldout} have {max(lengths)} and "
                f"{max(heldout_lengths)} frames: a world learns from those of at least {2 * MIN_SEQUENCE}"
            )
        has_outcomes = all(
            table.rewards is not None and table.terminated is not None for found in tables for table in found
        )
        return cls(info, lengths, heldout_lengths, has_outcomes)

    def sequence_length(self, wanted: int) -> int:
        """Return those wanted, or so many frames that half of all are in episodes of as many."""
        long = sorted(self.train_lengths, reverse=True)
        total, seen = sum(long), 0
        for length in long:
            seen += length
            if 2 * seen >= total:
                return max(MIN_SEQUENCE, min(wanted, length))
        return wanted


def record_settings(num_frames: int | None, minutes: float, device: str) -> list[str]:
    """Return how much is recorded: as much as is asked for, or as fits into its share of the minutes."""
    if num_frames is not None:
        return frame_counts(num_frames)
    most = min(MAX_FRAMES[device], max(LEAST_FRAMES, round(minutes * FRAMES_A_MINUTE[device])))
    return [*frame_counts(most), f"max_seconds={60 * minutes * SHARES['collect']:g}"]


def frame_counts(num_frames: int) -> list[str]:
    """Return so many frames as settings: a tenth beside them is held out."""
    return [f"num_frames={num_frames}", f"heldout_frames={max(num_frames // 10, LEAST_FRAMES // 4)}"]


def train_seconds(stage: str, minutes: float) -> str:
    """Return the setting of a training's length; its start and its last checkpoint come on top."""
    return f"loop.train_seconds={60 * minutes * SHARES[stage]:g}"


def codec_settings(footage: Footage, minutes: float, device: str) -> list[str]:
    """Return the settings of the codec's training."""
    size = [f"codec.height={footage.info.height}", f"codec.width={footage.info.width}"]
    how = ["size/codec=laptop"] if device == "cpu" else ["fabric=gpu"]
    return [*how, *size, *short_run(minutes, device)]


def pretrain_settings(footage: Footage, minutes: float, device: str) -> list[str]:
    """Return the settings of the world's training."""
    is_long = minutes >= LONG_MINUTES[device]
    length = footage.sequence_length(16 if device == "cpu" else 64)
    if device == "cpu":
        how = ["size/pretrain=laptop", f"model={'small' if is_long else 'tiny'}"]
    else:
        how = ["fabric=gpu", f"model={'base' if is_long else 'medium'}", "batch_size=16"]
    watched, horizon = rollout_frames(footage, 8, 32 if device == "gpu" else 16)
    horizons = sorted({1, max(1, horizon // 2), horizon})
    return [
        *how,
        f"name={footage.info.name}",
        f"model.outcome_heads={str(footage.has_outcomes).lower()}",
        f"sequence_length={length}",
        f"start_frames={min(32, watched + horizon)}",
        f"validation.context_frames={watched}",
        f"validation.horizons=[{','.join(map(str, horizons))}]",
        *(["objective.own_context_share=0.25"] if is_long or device == "gpu" else []),
        *(short_run(minutes, device) or (LONG_RUN if device == "gpu" else [])),
    ]


def evaluate_settings(footage: Footage, minutes: float, device: str, frame_seconds: float) -> list[str]:
    """Return the settings of the measurement, of as many frames as the world draws in its share of the time.

    Args:
        footage: What was recorded.
        minutes: For all of it.
        device: The sizes are for.
        frame_seconds: That a frame of one dream takes; many at a time take less of a GPU.
    """
    frames = 60 * minutes * SHARES["evaluate"] / frame_seconds * (1 if device == "cpu" else 8)
    is_long = minutes >= LONG_MINUTES[device] and frames >= LONG_MEASUREMENT
    watched, horizon = rollout_frames(
        footage, *((32, 128 if device == "gpu" else 32) if is_long else (8, 16))
    )

    def fitting(share: float, frames_each: int, least: int, most: int) -> int:
        return min(most, max(least, int(share * frames / frames_each)))

    parts = ["cost", "rollout", "idle"]
    parts += ["controllability", *(["outcome"] if footage.has_outcomes else [])] if is_long else []
    return [
        "profile=quick",
        "num_episodes=0",
        f"context_frames={watched}",
        f"horizon={horizon}",
        f"next_frames={horizon}",
        f"parts=[{','.join(parts)}]",
        f"num_rollouts={fitting(0.4, watched + horizon, 2, 16)}",
        f"num_next_clips={fitting(0.2, 2 * horizon, 1, 4)}",
        "num_idle_starts=1",
        f"idle_frames={fitting(0.2, 1, 10, 150)}",
        f"cost_frames={fitting(0.2, 1, 10, 300)}",
        "startup_runs=0",
    ]


def rollout_frames(footage: Footage, watched: int, horizon: int) -> tuple[int, int]:
    """Return frames watched and drawn of a roll-out: those wanted, or what held-out episodes have."""
    longest = max(footage.heldout_lengths)
    watched = min(watched, longest // 3)
    return watched, min(horizon, longest - watched)


def short_run(minutes: float, device: str) -> Sequence[str]:
    """Return settings without which a run of few updates would still be warming up."""
    few = has_few_updates(minutes, device)
    return ["loop.warmup_steps=10", "loop.ema_decay=0.9"] if few else []


def has_few_updates(minutes: float, device: str) -> bool:
    """Return whether there is time for a few hundred updates at most."""
    return minutes < (10 if device == "cpu" else 1)

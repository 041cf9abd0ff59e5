"""Settings of the stages that fit a machine, a time and what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.world.validation import ValidationConfig
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import list_episodes, read_table
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys

SHARES = {"collect": 0.15, "codec": 0.2, "pretrain": 0.5, "finetune": 0.7, "evaluate": 0.05}
"""Of the minutes, about: what recording leaves over is for the trainings, each with its own start.

As much as measuring has comes before it, for the start of it and of what no stage counts.
"""
END_SECONDS = {"cpu": 30.0, "gpu": 40.0}
"""Kept at least for measuring and for what is around it: two starts of Python are among it."""
LEAST_PART = 0.25
"""Of its share that a training has at least, however long everything else took."""
CHECKPOINTS = 3
"""In the time of a training, at least: a machine that is taken away leaves a world behind."""
SEEN_A_SECOND, SEEN_PARAMETERS = {"cpu": 40, "gpu": 8_000}, 2e7
"""Frames that a network of so many weights trains on (two cores, one H200); others by their size."""
TIMES_SEEN = 10
"""A recorded frame, where fresh ones are to be had: more recording would be at the cost of learning."""
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
HELD_FRAMES = 12
"""That a button is held for at most, to see what it does."""
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

    def first_heldout(self, frames: int, length: int) -> tuple[int, bool]:
        """Return how many of the held-out episodes are measured on, 0 if all.

        Args:
            frames: Of all of them together, if that is enough.
            length: Frames of one of them, at least.

        Returns:
            Their number, and whether they have no more frames than asked for.
        """
        total, longest = 0, 0
        for number, each in enumerate(self.heldout_lengths):
            if total + each > frames and longest >= length:
                return number, total <= frames
            total, longest = total + each, max(longest, each)
        return 0, total <= frames

    def sequence_length(self, wanted: int) -> int:
        """Return those wanted, or so many frames that half of all are in episodes of as many."""
        long = sorted(self.train_lengths, reverse=True)
        total, seen = sum(long), 0
        for length in long:
            seen += length
            if 2 * seen >= total:
                return max(MIN_SEQUENCE, min(wanted, length))
        return wanted


def record_settings(
    num_frames: int | None, minutes: float, device: str, most: int | None = None
) -> list[str]:
    """Return how much is recorded: as much as is asked for, or as fits into its share of the minutes.

    Args:
        num_frames: Asked for.
        minutes: For all of it.
        device: The sizes are for.
        most: Frames that are of use; None is as many as the codec has time to encode.
    """
    if num_frames is not None:
        return frame_counts(num_frames)
    if most is None:
        most = min(MAX_FRAMES[device], max(LEAST_FRAMES, round(minutes * FRAMES_A_MINUTE[device])))
    return [*frame_counts(most), f"max_seconds={60 * minutes * SHARES['collect']:g}"]


def frame_counts(num_frames: int) -> list[str]:
    """Return so many frames as settings: a tenth beside them is held out."""
    return [f"num_frames={num_frames}", f"heldout_frames={max(num_frames // 10, LEAST_FRAMES // 4)}"]


def fresh_frames(minutes: float, device: str, num_weights: int, most: int) -> int:
    """Return how many frames to record for a network that goes on: those that it sees `TIMES_SEEN` times.

    Args:
        minutes: For all of it.
        device: The sizes are for.
        num_weights: Of the network.
        most: That its memory has room for.
    """
    seconds = 60 * minutes * SHARES["finetune"]
    seen = seconds * SEEN_A_SECOND[device] * SEEN_PARAMETERS / num_weights
    return min(most, max(LEAST_FRAMES, round(seen / TIMES_SEEN)))


def train_seconds(stage: str, minutes: float, spent: float, device: str, trained: float = 0.0) -> float:
    """Return the seconds that a training has from its start to its end, its last checkpoint included.

    Args:
        stage: Which.
        minutes: For all of it.
        spent: Seconds of them that are over.
        device: The sizes are for.
        trained: Seconds that it had when it was done before: fewer it never has.
    """
    end = max(2 * 60 * minutes * SHARES["evaluate"], END_SECONDS[device])
    part = SHARES["codec"] / (SHARES["codec"] + SHARES["pretrain"]) if stage == "codec" else 1.0
    least = LEAST_PART * 60 * minutes * SHARES[stage]
    return max(trained or least, trained + part * (60 * minutes - spent - end))


def clock_settings(seconds: float) -> list[str]:
    """Return the settings of a training's length, all that it does counted."""
    between = max(20.0, min(180.0, seconds / CHECKPOINTS))
    return [
        f"loop.train_seconds={seconds:.6g}",
        "loop.counts_start=true",
        f"loop.checkpoint_seconds={between:.3g}",
    ]


def codec_settings(footage: Footage, minutes: float, device: str) -> list[str]:
    """Return the settings of the codec's training."""
    size = [f"codec.height={footage.info.height}", f"codec.width={footage.info.width}"]
    how = ["size/codec=laptop"] if device == "cpu" else ["fabric=gpu"]
    return [*how, *size, *short_run(minutes, device)]


def pretrain_settings(footage: Footage, minutes: float, device: str) -> list[str]:
    """Return the settings of the world's training."""
    is_long = minutes >= LONG_MINUTES[device]
    if device == "cpu":
        how = ["size/pretrain=laptop", f"model={'small' if is_long else 'tiny'}"]
    else:
        how = ["fabric=gpu", f"model={'base' if is_long else 'medium'}", "batch_size=16"]
    return [
        *how,
        f"name={footage.info.name}",
        f"model.outcome_heads={str(footage.has_outcomes).lower()}",
        *clip_settings(footage, device),
        *(["objective.own_context_share=0.25"] if is_long or device == "gpu" else []),
        *(short_run(minutes, device) or (LONG_RUN if device == "gpu" else [])),
    ]


def finetune_settings(
    footage: Footage, minutes: float, device: str, model: DenoiserConfig, num_steps: int
) -> list[str]:
    """Return the settings with which a world goes on.

    Args:
        footage: What was recorded.
        minutes: For all of it.
        device: The sizes are for.
        model: Its network's shape.
        num_steps: Denoising steps that it takes in play.
    """
    how = ["size/finetune=laptop"] if device == "cpu" else ["fabric=gpu", "batch_size=16"]
    objective = ["objective.own_context_share=0.25"] if device == "gpu" else []
    if device == "gpu" and model.recycled:  # it draws and remembers in one pass, on frames of its own
        objective += ["objective.own_context_depth=2", "objective.first_pass_weight=1"]
        objective += ["objective.suffix_share=0.125"]
    views = []
    if model.memory_keys == MemoryKeys.POSE:
        if model.level_map:
            objective += ["objective.pose_jitter=[2,0.5]"]
        elif not model.keyed_places:  # a place that turns no key can't be wrong
            objective += ["objective.pose_jitter=[0,1]"]
        if not model.keyed_places or max(footage.heldout_lengths) < ValidationConfig().recall_frames:
            views = ["validation.recall_clips=0"]
    return [
        *how,
        *clip_settings(footage, device),
        f"validation.num_steps={num_steps}",
        *views,
        *objective,
        *(short_run(minutes, device) or (LONG_RUN if device == "gpu" else [])),
    ]


def clip_settings(footage: Footage, device: str) -> list[str]:
    """Return the lengths of what a world learns from, begins with and is validated on."""
    watched, horizon = rollout_frames(footage, 8, 32 if device == "gpu" else 16)
    horizons = sorted({1, max(1, horizon // 2), horizon})
    return [
        f"sequence_length={footage.sequence_length(16 if device == 'cpu' else 64)}",
        f"start_frames={min(32, watched + horizon)}",
        f"validation.context_frames={watched}",
        f"validation.horizons=[{','.join(map(str, horizons))}]",
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
    share = 0.15 if is_long else 0.2  # of each part but roll-outs, which have twice as much
    wanted = (32, 128 if device == "gpu" else 32) if is_long else (8, 16)
    watched, horizon = rollout_frames(footage, *wanted)
    # Two roll-outs, and a clip of next frames, are drawn in any case.
    horizon = min(horizon, max(2, int(share * frames) - watched))

    def fitting(part: float, frames_each: int, least: int, most: int) -> int:
        return min(most, max(least, int(part * frames / frames_each)))

    parts = ["cost", "rollout", "idle"]
    episodes, judged = footage.first_heldout(int(share * frames), watched + horizon)
    has_outcome = is_long and footage.has_outcomes and judged
    parts += ["controllability"] * is_long + ["outcome"] * has_outcome
    return [
        "profile=quick",
        f"num_episodes={episodes if has_outcome else 0}",  # which it judges all of
        f"context_frames={watched}",
        f"horizon={horizon}",
        f"next_frames={horizon}",
        f"parts=[{','.join(parts)}]",
        f"num_rollouts={fitting(2 * share, watched + horizon, 2, 16)}",
        f"num_next_clips={fitting(share, 2 * horizon, 1, 4)}",
        f"num_action_starts={fitting(0.1, 2 * (watched + 2 * HELD_FRAMES), 2, 12)}",
        "num_idle_starts=1",
        f"idle_frames={fitting(share, 1, 10, 150)}",
        f"cost_frames={fitting(share, 1, 4, 300)}",
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

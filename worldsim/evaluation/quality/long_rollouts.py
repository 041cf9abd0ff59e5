"""Long rollouts under random buttons: controllability and picture statistics, late against early.

From the same states at some frames two opposite buttons are held (`controllability.py`): memory that mutes
the player would show in the later ones. The pictures' statistics are compared by segments with those of the
real game, so that a collapse in the middle counts, and with how much the real game moves, so that stillness
cannot win.
"""

# B batch, F frames, S segments, A action axes, H W frame size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.actions import ActionLayout
from worldsim.evaluation.inputs.motion import scroll
from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.inputs.start_states import StartStates
from worldsim.evaluation.metrics import as_images
from worldsim.evaluation.quality.controllability import (
    PAIRS,
    Calibration,
    Motions,
    OppositePair,
    both_right,
    calibrate,
    hold_both,
    summarize_motions,
)
from worldsim.evaluation.quality.idle import FLOOR, segment_edges, segment_means, statistics_of
from worldsim.evaluation.rollout import join, progress, rows_that_fit, stack, watch_until
from worldsim.evaluation.statistics import Estimate, bootstrap, ratio_of_means
from worldsim.simulator import Simulator

MARKS = (0, 100, 500, 1000)
HOLD_FRAMES = 8
"""Frames for which the player of a long dream keeps its buttons."""
ENERGY = "motion_energy"
MIN_ENERGY = 0.5
"""A dream that moves less than this share of the real game stands still, whatever else it scores."""
SCROLLING = tuple(
    OppositePair(
        axis=axis,
        positive=positive,  # going left moves the content to the right
        negative=negative,
        measure=partial(scroll, axis=along),
        threshold=0.03,
        is_relative=True,
        hold_frames=4,
        settle_frames=0,
        is_walking=False,
    )
    for axis, positive, negative, along in (("strafe", "left", "right", 2), ("move", "up", "down", 1))
)
"""Of games whose whole picture scrolls: a view from above."""


def pairs_of(layout: ActionLayout) -> list[OppositePair]:
    """Return the opposite buttons of a world whose motion the picture shows."""
    is_from_above = SCROLLING[1].is_in(layout)
    return [pair for pair in (SCROLLING if is_from_above else PAIRS) if pair.is_in(layout)]


@dataclass(frozen=True, slots=True)
class LongDreams:
    """What was measured on N long dreams, by the names of the episodes that they began with.

    Attributes:
        motions: `[N]` by mark, by axis and by button, in units of the pair's least motion.
        curves: `[N, F]` brightness, contrast, sharpness and motion energy of each frame.
        real: `[N]` means of the same over the real frames that were watched.
    """

    names: list[str]
    motions: dict[int, dict[str, dict[str, np.ndarray]]]
    curves: dict[str, np.ndarray]
    real: dict[str, np.ndarray]


def random_walks(layout: ActionLayout, rows: Sequence[int], num_frames: int, seed: int) -> Tensor:
    """Return random actions, each held for some frames, `[F, B, A]` int64: those of a row are its own."""
    walks = []
    for row in rows:
        rng = np.random.default_rng((seed, row))
        shape = (num_frames // HOLD_FRAMES + 1, len(layout.axes))
        held = rng.integers(0, layout.num_values, size=shape)
        walks.append(np.repeat(held, HOLD_FRAMES, axis=0)[:num_frames])
    return torch.from_numpy(np.stack(walks, axis=1))


def dream_long(
    simulator: Simulator,
    starts: ReturnSet | StartStates,
    *,
    num_frames: int,
    marks: Sequence[int] = MARKS,
    batch_size: int,
    seed: int,
) -> LongDreams:
    """Let dreams watch real frames up to a turn, then press random buttons for `num_frames`.

    Opposite buttons are held at those of the marks that are reached; the seed is of buttons and noise.
    """
    pairs = pairs_of(simulator.world.config.actions)
    reached = sorted(mark for mark in marks if mark <= num_frames)
    held = len(reached) * sum(2 * pair.hold_frames for pair in pairs)
    rows = rows_that_fit([simulator], starts.turn + num_frames, batch_size)
    with progress("long dreams", (starts.turn + num_frames + held) * len(starts)) as bar:
        how = (pairs, reached, num_frames, seed, bar)
        return join([_dream_batch(simulator, batch, *how) for batch in starts.batches(rows)])


def _dream_batch(
    simulator: Simulator,
    batch: ReturnBatch,
    pairs: Sequence[OppositePair],
    marks: Sequence[int],
    num_frames: int,
    seed: int,
    bar: tqdm,
) -> LongDreams:
    layout, clips = simulator.world.config.actions, batch.clips
    rows = range(clips.first, clips.first + len(batch.names))
    actions = random_walks(layout, rows, num_frames, seed)
    state = watch_until(simulator, clips, batch.turn, seed, bar)
    motions: dict[int, dict[str, dict[str, np.ndarray]]] = {}
    columns = []
    for index in range(num_frames + 1):
        if index in marks:
            motions[index] = {pair.axis: hold_both(simulator, state, pair, bar) for pair in pairs}
        if index < num_frames:
            before = state.frames
            frame, state = simulator.step(state, actions[index])
            columns.append(_statistics(frame, before))
            bar.update(len(rows))
    curves = {name: values.cpu().numpy() for name, values in stack(columns, 1).items()}
    watched = clips.frames[:, : batch.turn + 1].to(simulator.frames_device)
    return LongDreams(batch.names, motions, curves, _real_statistics(watched))


def _statistics(frames: Tensor, before: Tensor) -> dict[str, Tensor]:
    energy = (as_images(frames) - as_images(before)).abs().mean(dim=(1, 2, 3))
    return statistics_of(frames) | {ENERGY: energy}


def _real_statistics(frames: Tensor) -> dict[str, np.ndarray]:
    """Return the means over real frames `[B, T, H, W, 3]`, `[B]` each."""
    columns = frames.unbind(1)
    found = stack([_statistics(*pair) for pair in zip(columns[1:], columns, strict=False)], 0)
    return {name: values.mean(dim=0).cpu().numpy() for name, values in found.items()}


@dataclass(frozen=True, slots=True)
class LongControl:
    """Controllability by frame and axis; of all axes together, at the last frame over the first one."""

    marks: dict[int, dict[str, Motions]]
    late_frame: int | None = None
    late_over_early: Estimate | None = None


def summarize_control(dreams: LongDreams, layout: ActionLayout) -> LongControl:
    """Return how often both buttons moved the picture the right way, resampled by the episodes."""
    pairs, marks, shares = pairs_of(layout), {}, {}
    for mark, motions in dreams.motions.items():
        marks[mark] = {pair.axis: summarize_motions(pair, motions[pair.axis], dreams.names) for pair in pairs}
        shares[mark] = [both_right(pair, motions[pair.axis]) for pair in pairs]
    if not pairs:
        return LongControl(marks)
    first, last = (np.mean(shares[mark], axis=0) for mark in (min(shares), max(shares)))
    return LongControl(marks, max(shares), ratio_of_means(last, first))


@dataclass(frozen=True, slots=True)
class Drift:
    """A statistic over that of the real game, `[S]` by segment; of the one furthest from 1, from 0 on."""

    ratio: list[float]
    worst_segment: int
    worst_ratio: Estimate
    last_minus_first: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftSummary:
    """Drift of long dreams; they move if no segment has less than `MIN_ENERGY` of the game's motion."""

    num_frames: int
    segment_ends: list[int]
    brightness: Drift
    contrast: Drift
    sharpness: Drift
    motion_energy: Drift
    moves: bool


def summarize_drift(dreams: LongDreams) -> DriftSummary:
    """Return how far statistics are off the real game's, by segments, and whether the dreams still move."""
    num_frames, found = dreams.curves[ENERGY].shape[1], {}
    edges = segment_edges(num_frames)
    for name, curve in dreams.curves.items():
        # Frames of one episode show one place; the game as a whole is what a long walk is compared with.
        ratio = segment_means(curve, edges) / max(float(dreams.real[name].mean()), FLOOR)
        means = ratio.mean(axis=0)
        worst = int(np.abs(means - 1).argmax())
        estimates = (bootstrap(each, dreams.names) for each in (ratio[:, worst], ratio[:, -1] - ratio[:, 0]))
        found[name] = Drift(means.round(4).tolist(), worst, *estimates)
    moves = min(found[ENERGY].ratio) >= MIN_ENERGY
    return DriftSummary(num_frames=num_frames, segment_ends=edges[1:].tolist(), **found, moves=moves)


def control_calibration(
    starts: ReturnSet | StartStates, layout: ActionLayout, count: int, seed: int
) -> dict[str, Calibration]:
    """Return what the estimators of motion make of the real game, by axis: the ceiling of the test."""
    return {pair.axis: calibrate(starts.recordings, pair, count, seed) for pair in pairs_of(layout)}

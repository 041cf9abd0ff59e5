"""Controllability: opposite actions from the same state must move the picture opposite ways.

The picture's motion is estimated (`motion.py`), and the estimate has errors of its own. So it is made on
recorded frames of the real game too, in which one button alone was held, and reported as the test's ceiling.
"""

# N starts, F frames

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.actions import ActionLayout
from worldsim.data.episodes import EpisodeTable
from worldsim.evaluation.inputs.clips import Clip, Recordings, pick
from worldsim.evaluation.inputs.motion import horizontal_shift, zoom
from worldsim.evaluation.metrics import luminance
from worldsim.evaluation.rollout import generate, join, progress
from worldsim.evaluation.statistics import Estimate, bootstrap
from worldsim.simulator import Simulator
from worldsim.state import WorldState

OPEN_SHARE = 0.25
"""A direction is open where the recorded player went at least this share of its full speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OppositePair:
    """Two buttons of one axis and the motion of the picture that tells them apart.

    Attributes:
        positive: Button after which the motion is positive.
        measure: Estimates the motion between pictures `[N, H, W]`, returns `[N]`.
        threshold: Least mean motion per frame that counts as motion, so that stillness is never right;
            relative to the picture's width if `is_relative`. In the Doom world those of `TURN` and `MOVE` are
            a tenth and a sixteenth of what the real buttons do, and real frames at rest rarely reach them.
        is_relative: Whether `measure` returns pixels.
        hold_frames: Frames the button is held.
        settle_frames: Frames of these that are not measured: what moved before the press first comes to rest.
        is_walking: Whether a wall can be in the way, so that both directions must be open at a start.
    """

    axis: str
    positive: str
    negative: str
    measure: Callable[[Tensor, Tensor], Tensor]
    threshold: float
    is_relative: bool
    hold_frames: int
    settle_frames: int
    is_walking: bool

    def action(self, layout: ActionLayout, button: str) -> np.ndarray:
        """Return the action that holds `button` alone, `[A]` int64."""
        action, index = layout.noop(), [axis.name for axis in layout.axes].index(self.axis)
        action[index] = layout.axes[index].buttons.index(button) + 1
        return action

    def is_in(self, layout: ActionLayout) -> bool:
        """Return whether the world has both buttons."""
        return any(
            a.name == self.axis and {self.positive, self.negative} <= set(a.buttons) for a in layout.axes
        )


TURN = OppositePair(
    axis="turn",
    positive="left",  # turning left moves the content to the right
    negative="right",
    measure=horizontal_shift,
    threshold=0.006,
    is_relative=True,
    hold_frames=8,
    settle_frames=2,
    is_walking=False,
)
MOVE = OppositePair(
    axis="move",
    positive="forward",
    negative="backward",
    measure=zoom,
    threshold=0.005,
    is_relative=False,
    hold_frames=12,
    settle_frames=4,
    is_walking=True,
)
PAIRS = (TURN, MOVE)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The test on pieces of real play with one button held, None without a piece: its ceiling.

    The share that is right (0 to 1) and the median are by button; `both_right` is what two independent
    estimates give.
    """

    pieces: dict[str, int]
    right: dict[str, float | None]
    median_motion: dict[str, float | None]
    both_right: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Motions:
    """Share of starts from which the picture moves the right way, 0 to 1, after both buttons and after each.

    Motions are in `motion_unit`; from `least_motion` on they count.
    """

    num_starts: int
    num_episodes: int
    both_right: Estimate
    right: dict[str, float]
    median_motion: dict[str, float]
    motion_unit: str
    least_motion: float
    calibration: Calibration | None = None


def mean_motion(pair: OppositePair, frames: Tensor) -> Tensor:
    """Estimate the mean motion per frame in units of the pair's threshold, `[N]` fp32 on the CPU.

    Frames `[N, 1 + hold_frames, H, W, 3]` uint8 are that of the press and those after it. At least 1 is
    motion the one way, at most -1 the other way.
    """
    pictures = [luminance(clip) for clip in frames[:, pair.settle_frames :]]
    rows = [pair.measure(each[:-1], each[1:]).mean() for each in pictures]
    unit = pair.threshold * (frames.shape[3] if pair.is_relative else 1)
    return torch.stack(rows).cpu() / unit


def opposite_action_test(
    simulator: Simulator,
    recordings: Recordings,
    pair: OppositePair,
    *,
    num_starts: int,
    context_frames: int,
    batch_size: int,
    seed: int,
) -> Motions:
    """Hold both buttons of a pair from the same states; returns `summarize_motions` with `calibrate`.

    There are fewer than `num_starts` where there are not so many places.
    """
    clips = choose_starts(recordings, pair, context_frames, num_starts, seed)
    with progress(f"hold {pair.axis}", 2 * len(clips) * pair.hold_frames) as bar:
        batches = recordings.batches(clips, context_frames, batch_size)
        states = (batch.begin_dreams(simulator, context_frames, seed) for batch in batches)
        motions = join([hold_both(simulator, state, pair, bar) for state in states])
    found = summarize_motions(pair, motions, [recordings.name(clip) for clip in clips])
    return replace(found, calibration=calibrate(recordings, pair, num_starts, seed))


def hold_both(
    simulator: Simulator, state: WorldState, pair: OppositePair, bar: tqdm
) -> dict[str, np.ndarray]:
    """Hold each button of a pair from the same state; returns the `mean_motion` by button, `[N]`."""
    motions = {}
    for button in (pair.positive, pair.negative):
        action = torch.from_numpy(pair.action(simulator.world.config.actions, button))
        frames = generate(simulator, state, action.expand(len(state.frames), pair.hold_frames, -1), bar)
        frames = torch.cat([state.frames[:, None], frames], dim=1).to(simulator.world.device)
        motions[button] = mean_motion(pair, frames).numpy()
    return motions


def both_right(pair: OppositePair, motions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return from which starts both buttons moved the picture the right way, `[N]` bool."""
    return (motions[pair.positive] >= 1) & (motions[pair.negative] <= -1)


def summarize_motions(
    pair: OppositePair, motions: Mapping[str, np.ndarray], episodes: Sequence[str]
) -> Motions:
    """Return how often the picture moved the right way; motions `[N]` are in units of the threshold."""
    unit = "share of the picture's width" if pair.is_relative else "logarithm of the scale"
    medians = {button: float(np.median(found)) * pair.threshold for button, found in motions.items()}
    return Motions(
        num_starts=len(episodes),
        num_episodes=len(set(episodes)),
        both_right=bootstrap(both_right(pair, motions), episodes),
        right={
            pair.positive: float((motions[pair.positive] >= 1).mean()),
            pair.negative: float((motions[pair.negative] <= -1).mean()),
        },
        median_motion=medians,
        motion_unit=f"{unit} per frame",
        least_motion=pair.threshold,
    )


def choose_starts(
    recordings: Recordings, pair: OppositePair, context_frames: int, count: int, seed: int
) -> list[Clip]:
    """Choose starts, clips of `context_frames` frames; for walking those with room both ahead and behind.

    There is room where the recorded player was walking straight: it came from behind and went on ahead.
    """
    if not pair.is_walking:
        return recordings.choose(context_frames, count, seed)
    tables, places = recordings.tables(), []
    full_speed = typical_speed(tables)
    for episode, table in enumerate(tables):
        ahead = way_ahead(table, pair, recordings.info.actions, pair.hold_frames)
        is_open = ahead >= OPEN_SHARE * full_speed * pair.hold_frames
        for last in range(max(context_frames - 1, pair.hold_frames), len(ahead)):
            if is_open[last] and is_open[last - pair.hold_frames]:
                places.append(Clip(episode, last - context_frames + 1))
    return pick(places, count, seed) if places else recordings.choose(context_frames, count, seed)


def typical_speed(tables: Sequence[EpisodeTable]) -> float:
    """Return the speed of a player in full run, in map units per frame; 1 where no poses were recorded."""
    steps = [np.linalg.norm(np.diff(t.poses[:, :2], axis=0), axis=1) for t in tables if t.poses is not None]
    return float(np.quantile(np.concatenate(steps), 0.9)) if steps else 1.0


def way_ahead(table: EpisodeTable, pair: OppositePair, layout: ActionLayout, num_frames: int) -> np.ndarray:
    """Return how far the player gets forward in the next `num_frames` frames, `[max(T - num_frames, 0)]`.

    Measured along where it looks, in map units, less what it went aside; without poses the number of frames
    in which the forward button was held less the others.
    """
    count = max(len(table.actions) - num_frames, 0)
    if table.poses is None:
        is_held = np.all(table.actions == pair.action(layout, pair.positive), axis=1)
        total = np.concatenate([[0], np.cumsum(np.where(is_held, 1.0, -1.0))])
        return total[num_frames : num_frames + count] - total[:count]
    angle = np.deg2rad(table.poses[:count, 2])
    step = table.poses[num_frames:, :2] - table.poses[:count, :2]
    along = step[:, 0] * np.cos(angle) + step[:, 1] * np.sin(angle)
    aside = np.abs(step[:, 1] * np.cos(angle) - step[:, 0] * np.sin(angle))
    return along - aside


def calibrate(recordings: Recordings, pair: OppositePair, count: int, seed: int) -> Calibration:
    """Measure real frames in which one button alone was held as dreams are measured.

    Where poses were recorded, only pieces in which the player really moved count.
    """
    layout, tables = recordings.info.actions, recordings.tables()
    pieces: dict[str, int] = {}
    right: dict[str, float | None] = {}
    medians: dict[str, float | None] = {}
    for button, sign in ((pair.positive, 1), (pair.negative, -1)):
        clips = pick(held_pieces(tables, pair, layout, button, sign), count, seed)
        batches = recordings.batches(clips, pair.hold_frames + 1, batch_size=16)
        motions = [mean_motion(pair, batch.frames).numpy() for batch in batches]
        motion = np.concatenate(motions or [np.array([])])
        pieces[button] = len(clips)
        right[button] = float((motion * sign >= 1).mean()) if len(motion) else None
        medians[button] = float(np.median(motion)) * pair.threshold if len(motion) else None
    one, other = right.values()
    return Calibration(pieces, right, medians, None if one is None or other is None else one * other)


def held_pieces(
    tables: Sequence[EpisodeTable], pair: OppositePair, layout: ActionLayout, button: str, sign: int
) -> list[Clip]:
    """List pieces in which `button` alone was held and, where that is known, moved the player."""
    full_speed, action, pieces = typical_speed(tables), pair.action(layout, button), []
    for episode, table in enumerate(tables):
        total = np.concatenate([[0], np.cumsum(np.all(table.actions == action, axis=1))])
        held = total[pair.hold_frames :] - total[: -pair.hold_frames] == pair.hold_frames
        begins = np.flatnonzero(held[:-1]).tolist()
        pieces += [Clip(episode, b) for b in begins if _really_moved(table, pair, b, sign, full_speed)]
    return pieces


def _really_moved(table: EpisodeTable, pair: OppositePair, begin: int, sign: int, full_speed: float) -> bool:
    if table.poses is None or not pair.is_walking:
        return True
    first, last = table.poses[begin + pair.settle_frames], table.poses[begin + pair.hold_frames]
    angle = np.deg2rad(first[2])
    along = (last[0] - first[0]) * np.cos(angle) + (last[1] - first[1]) * np.sin(angle)
    return bool(sign * along >= OPEN_SHARE * full_speed * (pair.hold_frames - pair.settle_frames))

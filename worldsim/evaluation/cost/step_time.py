"""Time and memory of a step: percentiles, late steps over early ones, growth up to 100,000 frames.

Frames far apart are reached by committing alone: the memory is written as in play, and no picture is drawn in
between. States are values, so a late one and an early one are stepped in turn: what else the machine does
then slows both.
"""

# F steps, B batch, A action axes

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.clips import ClipBatch
from worldsim.evaluation.rollout import bytes_at
from worldsim.evaluation.statistics import Estimate, median_ratio
from worldsim.model.memory.past_frames import FRAMES_AXIS, PastFrames
from worldsim.runtime.timing import Percentiles, process_memory_bytes, steady_memory
from worldsim.simulator import Simulator
from worldsim.state import WorldState

EARLY_STEPS, LATE_STEPS = (100, 200), (1900, 2000)
EARLY = 100
"""The frame that late ones are compared with where growth is measured."""
MARKS = (81, 405, 921, 1005, 10_000, 100_000)
"""Frames at which growth is measured: those of published tables, and then tens of times as many."""
MAX_STATE_BYTES = 2**31
"""A memory that grows is not followed beyond this."""
WARM_UP_FRAMES, WARM_UP_PAIRS = 20, 3
"""Steps, and pairs of steps, that are not timed: the first ones allocate."""
AROUND = 10
"""Steps before and after a frame whose median stands for its step time: a single step's is noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldBytes:
    """Memory of the process, None where it is not known, of a GPU's tensors, and of the state."""

    process_bytes: int | None
    device_bytes: int | None = None
    state_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """Percentiles of steps and of their two parts; the median of `LATE_STEPS` over that of `EARLY_STEPS`.

    Memory is that after the first of the early and the last of the late steps, where these were reached.
    """

    step_ms: Percentiles
    predict_ms: Percentiles
    commit_ms: Percentiles
    num_frames: int
    p99_over_p50: float
    late_over_early: float | None = None
    batch_size: int
    memory_at_frame: dict[int, HeldBytes]


@dataclass(frozen=True, slots=True)
class EarlyLate:
    """A quantity at an early and a late frame."""

    early: float
    late: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoFrames:
    """Median step times and the state at two frames; with an interval where steps were taken in turn."""

    early_frame: int
    late_frame: int
    step_ms: EarlyLate
    late_over_early: Estimate | float
    state_bytes: EarlyLate


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSummary(TwoFrames):
    """Cost of the first `total_frames` steps of one dream, and of each of F steps, `[F]`."""

    total_frames: int
    seconds: float
    peak_bytes: int
    step_ms_curve: list[float]
    state_bytes_curve: list[int]


def step_cost(
    simulator: Simulator, start: ClipBatch, *, context_frames: int, num_frames: int, seed: int
) -> StepCost:
    """Time steps of a batch under random actions, each held for a few frames.

    One clip to start from gives the cost of play. With 2,000 frames or more, early and late ones are
    compared.
    """
    actions = random_actions(simulator, len(start.clips), num_frames, seed)
    state = start.begin_dreams(simulator, context_frames, seed)
    return summarize_steps(trace_steps(simulator, state, actions), len(start.clips))


def random_actions(simulator: Simulator, batch_size: int, num_frames: int, seed: int) -> Tensor:
    """Return random actions that are held for a few frames each, `[F, B, A]` int64, alike in all rows."""
    layout = simulator.world.config.actions
    held = np.random.default_rng(seed).integers(
        0, layout.num_values, size=(num_frames // 8 + 1, len(layout.axes))
    )
    actions = torch.from_numpy(np.repeat(held, 8, axis=0)[:num_frames])
    return actions.expand(batch_size, -1, -1).movedim(1, 0)


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What each of F steps cost, and what was held after it; all are `[F]`, bytes int64.

    Attributes:
        state_bytes: What is remembered.
        process_bytes: Memory of the process; 0 where it is not known.
        device_bytes: Tensors on the GPU; None without one.
        device_peak_bytes: The most that these took since the first step.
    """

    predict_ms: np.ndarray
    commit_ms: np.ndarray
    state_bytes: np.ndarray
    process_bytes: np.ndarray
    device_bytes: np.ndarray | None = None
    device_peak_bytes: np.ndarray | None = None

    @property
    def step_ms(self) -> np.ndarray:
        """Return the times of whole steps, `[F]`."""
        return self.predict_ms + self.commit_ms

    @property
    def peak_bytes(self) -> np.ndarray:
        """Return the most that was held up to each step, `[F]`: on a GPU there, else by the process."""
        held = self.process_bytes if self.device_peak_bytes is None else self.device_peak_bytes
        return np.maximum.accumulate(held)

    def memory_at(self, frame: int) -> HeldBytes:
        """Return the bytes that were held after step number `frame`, counted from 1."""
        return HeldBytes(
            process_bytes=int(self.process_bytes[frame - 1]) or None,
            device_bytes=None if self.device_bytes is None else int(self.device_bytes[frame - 1]),
            state_bytes=int(self.state_bytes[frame - 1]),
        )


def trace_steps(simulator: Simulator, state: WorldState, actions: Tensor) -> StepTrace:
    """Step a batch of dreams under actions `[F, B, A]` int64 and measure each step."""
    device = simulator.world.device
    rows: list[tuple[float, float]] = []
    held: list[tuple[int, ...]] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with steady_memory():
        for action in tqdm(actions, desc="step time", unit="frame"):
            began = now(device)
            prediction = simulator.predict(state, action)
            drawn = now(device)
            state = simulator.commit(state, prediction)
            rows.append((1000 * (drawn - began), 1000 * (now(device) - drawn)))
            held.append((state.nbytes, process_memory_bytes() or 0, *device_memory(device)))
    predict_ms, commit_ms = np.array(rows).T
    state_bytes, process_bytes, *on_device = np.array(held, dtype=np.int64).T
    return StepTrace(predict_ms, commit_ms, state_bytes, process_bytes, *on_device)


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed_step(simulator: Simulator, state: WorldState, action: Tensor) -> tuple[float, WorldState]:
    """Return the milliseconds of a step, and the state after it."""
    device = simulator.world.device
    began = now(device)
    _, after = simulator.step(state, action)
    return 1000 * (now(device) - began), after


def commit_on(
    simulator: Simulator, state: WorldState, actions: Tensor, done: Callable[[], object] | None = None
) -> WorldState:
    """Return the state after a frame, drawn only once, was committed under each action `[F, B, A]`.

    `done` is called after each of them.
    """
    if not len(actions):
        return state
    drawn = simulator.predict(state, actions[0])
    for action in actions:
        state = simulator.commit_again(state, drawn.frames, drawn.latents, action)
        if done is not None:
            done()
    return state


def device_memory(device: torch.device) -> tuple[int, ...]:
    """Return the bytes that a GPU's tensors take and have taken at most; nothing without a GPU."""
    if device.type != "cuda":
        return ()
    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)


def summarize_steps(trace: StepTrace, batch_size: int) -> StepCost:
    """Return percentiles of the parts and of whole steps, and late steps over early ones if it got there."""
    step_ms, num_frames, ratio = trace.step_ms, len(trace.step_ms), None
    warm = slice(min(WARM_UP_FRAMES, num_frames // 2), None)
    whole = Percentiles.of(step_ms[warm])
    if num_frames >= LATE_STEPS[1]:
        late, early = (float(np.median(step_ms[slice(*span)])) for span in (LATE_STEPS, EARLY_STEPS))
        ratio = late / early
    marks = [frame for frame in (EARLY_STEPS[0], LATE_STEPS[1]) if frame <= num_frames]
    return StepCost(
        step_ms=whole,
        predict_ms=Percentiles.of(trace.predict_ms[warm]),
        commit_ms=Percentiles.of(trace.commit_ms[warm]),
        num_frames=num_frames,
        p99_over_p50=whole.p99 / whole.p50,
        late_over_early=ratio,
        batch_size=batch_size,
        memory_at_frame={frame: trace.memory_at(frame) for frame in marks},
    )


def summarize_trace(trace: StepTrace, early: int, late: int, total: int) -> TraceSummary:
    """Return step times and bytes at two frames, and what the first `total` frames took, counted from 1."""
    step_ms = EarlyLate(*(step_ms_around(trace.step_ms, frame) for frame in (early, late)))
    return TraceSummary(
        early_frame=early,
        late_frame=late,
        step_ms=step_ms,
        late_over_early=step_ms.late / step_ms.early,
        state_bytes=EarlyLate(*(int(trace.state_bytes[frame - 1]) for frame in (early, late))),
        total_frames=total,
        seconds=float(trace.step_ms[:total].sum() / 1000),
        peak_bytes=int(trace.peak_bytes[total - 1]),
        step_ms_curve=trace.step_ms.round(3).tolist(),
        state_bytes_curve=trace.state_bytes.tolist(),
    )


def step_ms_around(step_ms: np.ndarray, frame: int) -> float:
    """Return the median step time of the frames around one, counted from 1."""
    return float(np.median(step_ms[max(0, frame - 1 - AROUND) : frame + AROUND]))


@torch.inference_mode()
def age(simulator: Simulator, state: WorldState, num_frames: int, room: int) -> WorldState:
    """Return the state of one dream in which a step costs what it costs after so many frames.

    No picture is drawn on the way. A memory that grows is filled up with copies of its last frame: what the
    numbers are does not change what they cost. Where none grows, frames are committed one by one as in play.
    The state has a frame in its memory at least, and no more than asked for. A growing memory gets room for
    as many frames behind these, so that it is not copied for them.
    """
    memory = state.memory
    missing = num_frames - int(memory.num_committed[0])
    if memory.past is None:
        return commit_on(simulator, state, random_actions(simulator, 1, missing, 0))
    keys, values = (
        torch.cat([kept, *[kept.narrow(FRAMES_AXIS, kept.shape[FRAMES_AXIS] - 1, 1)] * missing], FRAMES_AXIS)
        for kept in (memory.past.keys, memory.past.values)
    )
    past = PastFrames.of(keys, values).reserve(num_frames + room)
    memory = replace(memory, past=past, num_committed=torch.full_like(memory.num_committed, num_frames))
    return replace(state, memory=memory, frame_index=torch.full_like(state.frame_index, num_frames))


def step_in_turn(
    simulator: Simulator, early: WorldState, late: WorldState, actions: Tensor, *, goes_on: bool
) -> np.ndarray:
    """Step two dreams, now one and now the other first; returns milliseconds, `[F, 2]` early and late.

    Of actions `[F, 1, A]` int64. Each step follows the one before if the dreams go on; or all begin at the
    two states.
    """
    states, times = [early, late], np.empty((len(actions), 2))
    for index, action in enumerate(actions):
        for one in (0, 1) if index % 2 == 0 else (1, 0):
            times[index, one], after = timed_step(simulator, states[one], action)
            states[one] = after if goes_on else states[one]
    return times


def compare_ages(
    simulator: Simulator, state: WorldState, early: int, late: int, *, num_steps: int = 40, seed: int = 0
) -> TwoFrames:
    """Step a dream on from two ages, one step here and one there, and compare what they take.

    The ages are frames in the memory, of which the state has one at least. The first steps are not timed.
    """
    actions = random_actions(simulator, 1, num_steps + WARM_UP_PAIRS, seed)
    with steady_memory():
        young, old = (age(simulator, state, frames, len(actions) + 1) for frames in (early, late))
        times = step_in_turn(simulator, young, old, actions, goes_on=True)[WARM_UP_PAIRS:]
    return TwoFrames(
        early_frame=early,
        late_frame=late,
        step_ms=EarlyLate(*map(float, np.median(times, axis=0))),
        late_over_early=median_ratio(times[:, 1] / times[:, 0]),
        state_bytes=EarlyLate(young.nbytes, old.nbytes),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameCost:
    """Cost of a step at some frame: `p50` and `p90` of its time, and bytes, None if they are not known."""

    step_ms: dict[str, float]
    state_bytes: int
    process_bytes: int | None
    device_peak_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepGrowth:
    """Costs by frame, and those of the last one over those at `EARLY`, of pairs of steps taken in turn.

    Frames are left out whose memory would be larger than `MAX_STATE_BYTES`.
    """

    frames: dict[int, FrameCost]
    left_out: list[int]
    late_frame: int
    late_over_early_bytes: float
    late_over_early_ms: Estimate


def measure_growth(
    simulator: Simulator,
    state: WorldState,
    *,
    marks: Sequence[int] = MARKS,
    timed_steps: int = 20,
    compared_steps: int = 200,
    seed: int = 0,
) -> StepGrowth:
    """Step one dream on and on under random actions and measure what a step costs at some frames.

    The state is of one dream at frame 0. At each of the marks the median of `timed_steps` counts;
    `compared_steps` pairs of an early and a late step are taken in turn.
    """
    reached = [mark for mark in marks if bytes_at(simulator.world, mark) <= MAX_STATE_BYTES]
    actions = random_actions(simulator, 1, max([*reached, EARLY]) + timed_steps, seed)
    places, costs = sorted({EARLY, *reached}), {}
    early, frame = state, 0
    device = simulator.world.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with steady_memory(), tqdm(total=places[-1], desc="cost", unit="frame", unit_scale=True) as bar:
        for place in places:
            state = commit_on(simulator, state, actions[frame:place], bar.update)
            frame = place
            costs[place] = _cost_at(simulator, state, actions[place:][:timed_steps])
            early = state if place == EARLY else early
    times = step_in_turn(simulator, early, state, actions[:compared_steps], goes_on=False)
    return StepGrowth(
        frames=costs,
        left_out=[mark for mark in marks if mark not in reached],
        late_frame=places[-1],
        late_over_early_bytes=costs[places[-1]].state_bytes / costs[EARLY].state_bytes,
        late_over_early_ms=median_ratio(times[:, 1] / times[:, 0]),
    )


def _cost_at(simulator: Simulator, state: WorldState, actions: Tensor) -> FrameCost:
    """Return what steps after a state cost; the state itself stays where it was."""
    stepped, times = state, []
    for action in actions:
        milliseconds, stepped = timed_step(simulator, stepped, action)
        times.append(milliseconds)
    on_device = device_memory(simulator.world.device)
    return FrameCost(
        step_ms={"p50": float(np.median(times)), "p90": float(np.quantile(times, 0.9))},
        state_bytes=state.nbytes,
        process_bytes=process_memory_bytes(),
        device_peak_bytes=on_device[1] if on_device else None,
    )

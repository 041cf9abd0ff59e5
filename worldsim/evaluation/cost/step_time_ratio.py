"""What a step costs late in a dream over early, stepped in turn: a busy machine then slows both alike."""

# A action axes

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.evaluation.cost.step_time import commit_on, random_actions, timed_step
from worldsim.evaluation.statistics import median_ratio
from worldsim.model.memory.past_frames import FRAMES_AXIS, PastFrames
from worldsim.play.session import steady_memory
from worldsim.simulator import Simulator
from worldsim.state import WorldState

WARM_UP_STEPS = 3


@torch.inference_mode()
def age(simulator: Simulator, state: WorldState, num_frames: int, room: int) -> WorldState:
    """Return the state of one dream in which a step costs what it costs after so many frames.

    No picture is drawn on the way. A memory that grows is filled up with copies of its last frame: what the
    numbers are does not change what they cost. Where none grows, frames are committed one by one as in play.

    Args:
        simulator: Of the world.
        state: With a frame in its memory at least, and no more frames than asked for.
        num_frames: Frames in the memory afterwards.
        room: Frames that a growing memory has room for behind these, so that it is not copied for them.
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


def compare_ages(
    simulator: Simulator, state: WorldState, early: int, late: int, *, num_steps: int = 40, seed: int = 0
) -> dict[str, Any]:
    """Step a dream on from two ages, one step here and one there, and compare what they take.

    Args:
        simulator: Of the world.
        state: Of one dream, with a frame in its memory at least.
        early: Frames in the memory of the younger one.
        late: Of the older one.
        num_steps: Steps of each that are timed, after some that are not.
        seed: Of actions.

    Returns:
        A JSON object: median `step_ms` of both, `late_over_early` with its 95 % interval over the pairs of
        steps, `state_bytes` of both.
    """
    actions = random_actions(simulator, 1, num_steps + WARM_UP_STEPS, seed)
    with steady_memory():
        states = [age(simulator, state, frames, len(actions) + 1) for frames in (early, late)]
        sizes = [one.nbytes for one in states]
        times = np.array([_step_both(simulator, states, action, i % 2) for i, action in enumerate(actions)])
    times = times[WARM_UP_STEPS:]
    return {
        "early_frame": early,
        "late_frame": late,
        "step_ms": {"early": float(np.median(times[:, 0])), "late": float(np.median(times[:, 1]))},
        "late_over_early": median_ratio(times[:, 1] / times[:, 0]).to_json(),
        "state_bytes": {"early": sizes[0], "late": sizes[1]},
    }


def _step_both(simulator: Simulator, states: list[WorldState], action: Tensor, first: int) -> list[float]:
    """Step both states on, in place, and return the milliseconds of each."""
    times = [0.0, 0.0]
    for index in (first, 1 - first):
        times[index], states[index] = timed_step(simulator, states[index], action)
    return times

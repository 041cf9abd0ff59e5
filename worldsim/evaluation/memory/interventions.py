"""What is done to a memory at the turning point: a world that uses it must draw otherwise.

An intervention changes recurrent states alone. Windows, the frame before and the actions stay, so that what
changes in the pictures is what the states were used for.
"""

# B batch

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import torch
from torch import Tensor

from worldsim.evaluation.memory.conversion import ForgetfulSimulator, without_matrices
from worldsim.evaluation.memory.span import has_state
from worldsim.simulator import Prediction, Simulator
from worldsim.state import WorldState


class Way(StrEnum):
    """How a dream goes back: with its own memory, or with one that was changed at the turning point.

    `ZERO` empties the recurrent states once; what is drawn afterwards is written into them as usual. `FREEZE`
    keeps them as they are: nothing is written any more. `SWAP` gives each dream the states of another one
    with another past, and its path, by which they are read.
    """

    KEPT = "kept"
    ZERO = "zero"
    FREEZE = "freeze"
    SWAP = "swap"


INTERVENTIONS = (Way.ZERO, Way.FREEZE, Way.SWAP)


class FrozenSimulator(Simulator):
    """Steps a world whose recurrent states are never written; the window and the path go on."""

    def __init__(self, simulator: Simulator) -> None:
        """Let another simulator do all but the writing."""
        super().__init__(simulator.world, simulator.sampler, simulator.frames_device)
        self._simulator = simulator

    def predict(self, state: WorldState, actions: Tensor) -> Prediction:
        """Draw a frame as the other simulator does."""
        return self._simulator.predict(state, actions)

    def commit(self, state: WorldState, prediction: Prediction) -> WorldState:
        """Remember a predicted frame, but for the recurrent states."""
        return _with_matrices_of(self._simulator.commit(state, prediction), state)

    def commit_frames(self, state: WorldState, frames: Tensor, actions: Tensor) -> WorldState:
        """Remember real frames, but for the recurrent states."""
        return _with_matrices_of(self._simulator.commit_frames(state, frames, actions), state)


def _with_matrices_of(state: WorldState, other: WorldState) -> WorldState:
    return replace(state, memory=replace(state.memory, matrices=other.memory.matrices))


def intervene(simulator: Simulator, state: WorldState, way: Way) -> tuple[Simulator, WorldState]:
    """Return what steps a batch on after an intervention, and the state that it goes on from.

    Args:
        simulator: Steps it until then.
        state: Of at least 2 dreams if their states are to be swapped.
        way: What is done.
    """
    if way == Way.ZERO:
        return simulator, replace(state, memory=without_matrices(state.memory))
    if way == Way.FREEZE:
        return FrozenSimulator(simulator), state
    if way == Way.SWAP:
        return simulator, with_states_of(state, others(len(state.seed)))
    return simulator, state


def others(count: int) -> Tensor:
    """Return for each of some rows another one, `[count]` int64."""
    assert count > 1, "a dream alone has none to swap with"
    return (torch.arange(count) + 1) % count


def with_states_of(state: WorldState, rows: Tensor) -> WorldState:
    """Return a state with the recurrent states and the path of other rows `[B]` int64 in each row."""
    donors, memory = rows.to(state.memory.phase.device), state.memory
    return replace(
        state, memory=replace(memory, matrices=memory.matrices[:, donors], phase=memory.phase[donors])
    )


def can_intervene(simulator: Simulator) -> bool:
    """Whether a world has recurrent states that stay from frame to frame."""
    return has_state(simulator.world) and not isinstance(simulator, ForgetfulSimulator)

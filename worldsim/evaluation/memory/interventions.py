"""State interventions: recurrent states zeroed, frozen or swapped, once or after every frame.

An intervention changes recurrent states alone. Windows, the frame before and the actions stay, so that what
changes in the pictures is what the states were used for.
"""

# B batch

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.simulator import Prediction, Simulator
from worldsim.state import WorldState
from worldsim.world import World


class Intervention(StrEnum):
    """What is done to the recurrent states of a rollout at some frame; the values are keys of reports.

    `ZERO` empties them once; what is drawn afterwards is written into them as usual. `FREEZE` keeps them as
    they are: nothing is written any more. `SWAP` gives each dream the states of another one with another
    past, and its path, by which they are read.
    """

    NONE = "kept"
    ZERO = "zero"
    FREEZE = "freeze"
    SWAP = "swap"


INTERVENTIONS = (Intervention.ZERO, Intervention.FREEZE, Intervention.SWAP)


def zero(state: WorldState, rows: Tensor | None = None) -> WorldState:
    """Return a state with empty recurrent states, in the rows where `[B]` bool is True or in all."""
    matrices = state.memory.matrices
    if rows is None:
        return state.with_matrices(torch.zeros_like(matrices))
    return state.with_matrices(matrices.masked_fill(rows.to(matrices.device)[None, :, None, None, None], 0.0))


def freeze(before: WorldState, after: WorldState) -> WorldState:
    """Return a state with the recurrent states of the one before it."""
    return after.with_matrices(before.memory.matrices)


def swap(state: WorldState, rows: Tensor) -> WorldState:
    """Return a state with the recurrent states and the path of other rows `[B]` int64 in each row."""
    donors, memory = rows.to(state.memory.phase.device), state.memory
    memory = replace(memory, matrices=memory.matrices[:, donors], phase=memory.phase[donors])
    return replace(state, memory=memory)


class IntervenedSimulator(Simulator):
    """Steps a world as another simulator does, and changes the state after every frame.

    `on_commit` takes the states before and after a frame, and returns the one to go on from.
    """

    def __init__(
        self, simulator: Simulator, on_commit: Callable[[WorldState, WorldState], WorldState]
    ) -> None:
        super().__init__(simulator.world, simulator.sampler, simulator.frames_device)
        self._simulator, self.on_commit = simulator, on_commit

    def predict(self, state: WorldState, actions: Tensor, poses: Tensor | None = None) -> Prediction:
        """Draw a frame as the other simulator does."""
        return self._simulator.predict(state, actions, poses)

    def commit(self, state: WorldState, prediction: Prediction) -> WorldState:
        """Remember a predicted frame, but for what is changed."""
        return self.on_commit(state, self._simulator.commit(state, prediction))

    def commit_frames(
        self, state: WorldState, frames: Tensor, actions: Tensor, poses: Tensor | None = None
    ) -> WorldState:
        """Remember real frames, but for what is changed."""
        return self.on_commit(state, self._simulator.commit_frames(state, frames, actions, poses))


def zeroed(simulator: Simulator) -> IntervenedSimulator:
    """Return a simulator whose recurrent states are empty before every frame.

    What it loses against the same world shows what the states are used for.
    """
    return IntervenedSimulator(simulator, lambda _, after: zero(after))


def zeroed_name(name: str) -> str:
    """Return what a world is called whose recurrent states are emptied before every frame."""
    return f"{name}, state zeroed"


def intervene(
    simulator: Simulator, state: WorldState, intervention: Intervention
) -> tuple[Simulator, WorldState]:
    """Return what steps a batch on after an intervention, and the state that it goes on from.

    Only of at least 2 dreams can states be swapped.
    """
    match intervention:
        case Intervention.ZERO:
            return simulator, zero(state)
        case Intervention.FREEZE:
            return IntervenedSimulator(simulator, freeze), state
        case Intervention.SWAP:
            count = len(state.seed)
            assert count > 1, "a dream alone has none to swap with"
            return simulator, swap(state, (torch.arange(count) + 1) % count)
    return simulator, state


def has_state(world: World) -> bool:
    """Whether a world has recurrent states."""
    return world.config.denoiser.layer_counts["hybrid"] > 0


def check_can_forget(name: str, world: World) -> None:
    """Raise `WorldError` if a world has no recurrent state that could be zeroed."""
    if not has_state(world):
        raise WorldError(f"{name} has no hybrid layers, and so no state that could be zeroed")


def can_intervene(simulator: Simulator) -> bool:
    """Whether a world has recurrent states that stay from frame to frame."""
    return has_state(simulator.world) and not isinstance(simulator, IntervenedSimulator)

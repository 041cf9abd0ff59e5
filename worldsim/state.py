"""The state of a dream: a value that can be copied, saved, loaded and branched from."""

# B batch

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.memory.past_frames import FRAMES_AXIS
from worldsim.model.memory.state import PAST, MemoryState
from worldsim.runtime.isolation import isolated
from worldsim.storage.files import check_text, shown
from worldsim.storage.tensors import FLOATS, READ_ERRORS, write_tensors

MEMORY_PREFIX = "memory."
STORED = FLOATS | {torch.int64, torch.uint8}
"""Types of the numbers of a state."""
GROWING = {f"{MEMORY_PREFIX}{PAST}{kind}" for kind in ("keys", "values")}


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldState:
    """Everything that the next frame depends on, beside the weights and the action.

    Noise is drawn from `(seed, frame_index)`, so these two numbers are the whole state of the random
    generator (docs/decisions/0003).

    Attributes:
        memory: What the model remembers.
        frame_index: `[B]` int64, frames dreamt since the start.
        seed: `[B]` int64, seeds of the noise.
        frames: `[B, H, W, 3]` uint8, the frame shown last, where the simulator keeps them: on the CPU unless
            it was told otherwise.
        world: Identity of the world it belongs to (`World.identity`), where it is known: environments say it.
    """

    memory: MemoryState
    frame_index: Tensor
    seed: Tensor
    frames: Tensor
    world: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name in a file."""
        own = {"frame_index": self.frame_index, "seed": self.seed, "frames": self.frames}
        return own | {MEMORY_PREFIX + name: tensor for name, tensor in self.memory.tensors().items()}

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        own = (self.frame_index, self.seed, self.frames)
        return self.memory.nbytes + sum(tensor.nbytes for tensor in own)

    @isolated
    def to(self, device: torch.device | str) -> WorldState:
        """Return the same state with its memory on another device."""
        return replace(self, memory=self.memory.map(lambda _, tensor: tensor.to(device)))

    def with_matrices(self, matrices: Tensor) -> WorldState:
        """Return the state with other recurrent states, `[L, B, H, K, V]`."""
        return replace(self, memory=replace(self.memory, matrices=matrices))

    @isolated
    def rows(self, rows: Sequence[int]) -> WorldState:
        """Return the state of some dreams of the batch, in this order; one may come twice, to branch it."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        return replace(
            self,
            memory=self.memory.rows(index.to(self.memory.latents.device)),
            frame_index=self.frame_index[index],
            seed=self.seed[index],
            frames=self.frames[index.to(self.frames.device)],
        )

    @isolated
    def with_rows(self, rows: Sequence[int], others: WorldState) -> WorldState:
        """Return the state with the dreams of `others` in the place of some; both stay as they are.

        Not for a memory that grows, whose rows are of different lengths.
        """
        index = torch.tensor(list(rows), dtype=torch.int64)
        return replace(
            self,
            memory=self.memory.with_rows(index.to(self.memory.latents.device), others.memory),
            frame_index=self.frame_index.index_copy(0, index, others.frame_index),
            seed=self.seed.index_copy(0, index, others.seed),
            frames=self.frames.index_copy(0, index.to(self.frames.device), others.frames),
        )

    @staticmethod
    @isolated
    def join(states: Sequence[WorldState]) -> WorldState:
        """Return one state of the dreams of all, in order."""
        return WorldState(
            memory=MemoryState.join([state.memory for state in states]),
            frame_index=torch.cat([state.frame_index for state in states]),
            seed=torch.cat([state.seed for state in states]),
            frames=torch.cat([state.frames for state in states]),
            world=states[0].world,
        )

    def shapes(self) -> dict[str, list[int | str]]:
        """Return the shape of every tensor; an axis that grows from frame to frame is called `frames`."""
        return shapes_of(self.tensors())

    def save(self, path: Path | str, *, world: str = "") -> None:
        """Write the state; see `save`."""
        save(self, path, world=world)

    @classmethod
    def load(cls, path: Path | str, *, world: str = "") -> WorldState:
        """Read a state; see `load`."""
        return load(path, world=world)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int | str]]:
    """Return the shape of every tensor of a state; see `WorldState.shapes`."""
    shapes: dict[str, list[int | str]] = {name: list(t.shape) for name, t in tensors.items()}
    for name in GROWING & shapes.keys():
        shapes[name][FRAMES_AXIS] = "frames"
    return shapes


def save(state: WorldState, path: Path | str, *, world: str = "", **notes: str) -> None:
    """Write a state as safetensors, completely or not at all, with a checksum of its contents.

    Args:
        state: What `env.unwrapped.get_state()` returned.
        path: File to write; its folder must exist.
        world: Identity of the world it belongs to, where the state does not say so itself.
        **notes: Further texts to keep in the file's header, for `read_notes`.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors().items()}
    metadata = notes | {"world": world or state.world, "sha256": _digest(tensors)}
    write_tensors(tensors, Path(path), metadata)


@isolated
def load(path: Path | str, *, world: str = "") -> WorldState:
    """Read a state that `save` wrote; its tensors are on the CPU, and it says which world it belongs to.

    Args:
        path: The file.
        world: Identity of the world that it must belong to; without one `set_state` checks it.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is not a complete state, was altered, or belongs to another world than `world`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no saved state {path}")
    said = read_notes(path)
    try:
        tensors = load_file(path)
    except READ_ERRORS as error:
        raise WorldError(f"{path} is not a complete saved state: {error}") from error
    owner = said.get("world", "")
    if world and owner != world:
        raise WorldError(f"{path} was saved in another world ({owner or 'unknown'}), this one is {world}")
    memory = {name.removeprefix(MEMORY_PREFIX): t for name, t in tensors.items() if _is_memory(name)}
    own = {name: tensor for name, tensor in tensors.items() if not _is_memory(name)}
    try:
        if not {tensor.dtype for tensor in tensors.values()} <= STORED:
            raise TypeError("a state has no numbers of other kinds")
        state = WorldState(memory=MemoryState.from_tensors(memory), world=owner, **own)
    except (KeyError, TypeError, ValueError) as error:
        held = shown({name: str(tensor.dtype) for name, tensor in sorted(tensors.items())}, 400)
        raise WorldError(f"{path} holds other tensors than a saved state: {held}") from error
    if said.get("sha256") != _digest(tensors):
        raise WorldError(f"{path} is damaged or was altered: its checksum is not that of its contents")
    return state


def read_notes(path: Path | str) -> dict[str, str]:
    """Return what the header of a saved state says: `world`, `sha256` and the notes given to `save`.

    Raises:
        WorldError: If it is not a complete state, or says what cannot be printed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
    except READ_ERRORS as error:
        raise WorldError(f"{path} is not a complete saved state: {error}") from error
    return {check_text(name, f"{path}: a note"): check_text(notes[name], f"{path}: {name}") for name in notes}


def _is_memory(name: str) -> bool:
    return name.startswith(MEMORY_PREFIX)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of contiguous tensors on the CPU, their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

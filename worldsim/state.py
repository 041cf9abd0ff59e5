"""Where a world stands: a value that can be copied, saved, loaded and branched from."""

# B batch

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.memory import PAST, MemoryState
from worldsim.model.past_frames import FRAMES_AXIS
from worldsim.weights import write_tensors

MEMORY_PREFIX = "memory."
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
    """

    memory: MemoryState
    frame_index: Tensor
    seed: Tensor
    frames: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name in a file."""
        own = {"frame_index": self.frame_index, "seed": self.seed, "frames": self.frames}
        return own | {MEMORY_PREFIX + name: tensor for name, tensor in self.memory.tensors().items()}

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def to(self, device: torch.device | str) -> WorldState:
        """Return the same state with its memory on another device."""
        return replace(self, memory=self.memory.map(lambda _, tensor: tensor.to(device)))

    @torch.inference_mode()
    def rows(self, rows: Sequence[int]) -> WorldState:
        """Return the state of some dreams of the batch, in this order; one may come twice, to branch it."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        return WorldState(
            memory=self.memory.rows(index.to(self.memory.latents.device)),
            frame_index=self.frame_index[index],
            seed=self.seed[index],
            frames=self.frames[index.to(self.frames.device)],
        )

    @torch.inference_mode()
    def with_rows(self, rows: Sequence[int], others: WorldState) -> WorldState:
        """Return the state with the dreams of `others` in the place of some; both stay as they are.

        Not for a memory that grows, whose rows are of different lengths.
        """
        index = torch.tensor(list(rows), dtype=torch.int64)
        return WorldState(
            memory=self.memory.with_rows(index.to(self.memory.latents.device), others.memory),
            frame_index=self.frame_index.index_copy(0, index, others.frame_index),
            seed=self.seed.index_copy(0, index, others.seed),
            frames=self.frames.index_copy(0, index.to(self.frames.device), others.frames),
        )

    @staticmethod
    @torch.inference_mode()
    def join(states: Sequence[WorldState]) -> WorldState:
        """Return one state of the dreams of all, in order."""
        return WorldState(
            memory=MemoryState.join([state.memory for state in states]),
            frame_index=torch.cat([state.frame_index for state in states]),
            seed=torch.cat([state.seed for state in states]),
            frames=torch.cat([state.frames for state in states]),
        )

    def shapes(self) -> dict[str, list[int | str]]:
        """Return the shape of every tensor; an axis that grows from frame to frame is called `frames`."""
        shapes: dict[str, list[int | str]] = {name: list(t.shape) for name, t in self.tensors().items()}
        for name in GROWING & shapes.keys():
            shapes[name][FRAMES_AXIS] = "frames"
        return shapes

    def save(self, path: Path | str, *, world: str = "") -> None:
        """Write the state as safetensors, completely or not at all.

        Args:
            path: File to write; its folder must exist.
            world: Identity of the world it belongs to (`World.identity`), checked by `load`.

        Raises:
            OSError: If it cannot be written.
        """
        write_tensors(self.tensors(), Path(path), {"world": world})

    @classmethod
    def load(cls, path: Path | str, *, world: str = "") -> WorldState:
        """Read a state that `save` wrote; its tensors are on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            WorldError: If it is not a complete state, or belongs to another world than `world`.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no saved state {path}")
        try:
            with safe_open(path, framework="pt") as file:
                owner = (file.metadata() or {}).get("world", "")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise WorldError(f"{path} is not a complete saved state: {error}") from error
        if world and owner != world:
            raise WorldError(f"{path} was saved in another world ({owner or 'unknown'}), this one is {world}")
        memory = {
            name.removeprefix(MEMORY_PREFIX): t
            for name, t in tensors.items()
            if name.startswith(MEMORY_PREFIX)
        }
        own = {name: t for name, t in tensors.items() if not name.startswith(MEMORY_PREFIX)}
        try:
            return cls(memory=MemoryState.from_tensors(memory), **own)
        except (TypeError, ValueError) as error:
            raise WorldError(f"{path} holds other tensors than a saved state: {sorted(tensors)}") from error

"""The keys and values of a window of frames: a value, in a ring of places that stay where they are.

A frame has its place by its number, so that a commit writes its own places and moves nothing. The ring has a
block of places more than are seen: there the passes over the next block put its own keys, so that attention
reads one piece of memory.

    5 places, 4 of them seen, blocks of one frame
    state after frame 6    5 6 2 3 4      2 left the window: its place is that of frame 7
    state after frame 7    5 6 7 3 4      the state before doesn't see it, and is still whole
    state after frame 8    5 6 7 8 4      written over what the state after frame 6 sees

So a state and the one after it share a ring. Who writes first looks for other states of the same ring that
are still held somewhere; those are copied to a ring of their own. Nothing that a state sees ever changes, and
where nobody holds older states nothing is copied.
"""

# L layers, B batch, S frames of the sink, R places behind it, P = S + R, N tokens per frame, H heads, D head
# width

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from worldsim.runtime.resident import Resident


@dataclass(frozen=True, slots=True)
class RingShape:
    """Which frames a ring has places for.

    Attributes:
        sink: First frames of a video, which stay.
        kept: Latest frames beside them that the next block sees.
        block: Frames that are committed at once.
    """

    sink: int
    kept: int
    block: int

    @property
    def places(self) -> int:
        """Number of places, those of the next block among them."""
        return self.sink + self.kept + self.block

    def place_of(self, number: Tensor) -> Tensor:
        """Return the places of frames of these numbers, int64, as are the numbers; each its own."""
        behind = self.sink + (number - self.sink).remainder(self.kept + self.block)
        return torch.where((number >= 0) & (number < self.sink), number, behind)

    def own_places(self, frames: Tensor, count: int) -> Tensor:
        """Return the places `[B, count]` of the frames behind `frames` `[B]`."""
        return self.place_of(frames[:, None] + torch.arange(count, device=frames.device))

    def visible(self, frames: Tensor) -> Tensor:
        """Return which places the block behind `frames` `[B]` sees, itself among them, `[B, P]` bool."""
        number = self._latest(frames + self.block, self.kept + self.block)
        behind = torch.zeros(len(number), self.kept + self.block, dtype=torch.bool, device=frames.device)
        place = (number - self.sink).remainder(self.kept + self.block)
        behind = behind.scatter(1, place, number >= self.sink)
        first = torch.arange(self.sink, device=frames.device) < frames[:, None] + self.block
        return torch.cat([first, behind], dim=1)

    def in_order(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of the sink and of the latest frames, oldest first, `[B, S + kept]` int64.

        Also which of them hold a frame that is not of the sink again, bool.
        """
        first = torch.arange(self.sink, device=frames.device).expand(len(frames), -1)
        latest = self._latest(frames, self.kept)
        behind = self.sink + (latest - self.sink).remainder(self.kept + self.block)
        is_held = torch.cat([first < frames[:, None], latest >= self.sink], dim=1)
        return torch.cat([first, behind], dim=1), is_held

    @staticmethod
    def _latest(frames: Tensor, count: int) -> Tensor:
        """Return the numbers of the latest frames, `[B, count]`; below 0 where there is none."""
        return frames[:, None] - count + torch.arange(count, device=frames.device)


@dataclass(slots=True, eq=False)
class _Room:
    """Keys and values `[L, B, P, N, H, D]`, and the rings in it that somebody holds."""

    keys: Tensor
    values: Tensor
    held: weakref.WeakSet[FrameRing] = field(default_factory=weakref.WeakSet)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def move(self, rings: list[FrameRing]) -> None:
        """Move rings of this room to a copy of it."""
        if rings:
            other = _Room(self.keys.clone(), self.values.clone())
            for ring in rings:
                ring.enter(other)


class FrameRing(Resident):
    """Keys, turned by their frames' places in the video, and values. A value; see this module.

    Args:
        room: Shared with the states before and after.
        shape: Its places.
        number: How many blocks were written into the ring that it goes on from.
        is_held: Whether it is a state's; what a recording reads and writes is nobody's.
    """

    def __init__(self, room: _Room, shape: RingShape, number: int = 0, *, is_held: bool = True) -> None:
        self.shape = shape
        self._number, self._is_held, self._room = number, is_held, room
        self.enter(room)

    @classmethod
    def empty(
        cls,
        shape: RingShape,
        sizes: tuple[int, int, int, int, int],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> FrameRing:
        """Return a ring of no frames; `sizes` are L, B, N, H and D."""
        layers, batch, *token = sizes
        with torch.inference_mode(False):  # it outlives the call: later blocks are written into it
            keys = torch.zeros(layers, batch, shape.places, *token, dtype=dtype, device=device)
            return cls(_Room(keys, torch.zeros_like(keys)), shape)

    @classmethod
    def of(cls, shape: RingShape, keys: Tensor, values: Tensor, frames: Tensor) -> FrameRing:
        """Build from what `in_order` returned: a copy."""
        layers, batch, _, *token = keys.shape
        ring = cls.empty(shape, (layers, batch, token[0], token[1], token[2]), keys.dtype, keys.device)
        places, is_held = shape.in_order(frames)
        rows = torch.arange(batch, device=keys.device)[:, None]
        for own, given in ((ring.keys, keys), (ring.values, values)):
            own[:, rows, places] = torch.where(is_held[..., None, None, None], given, 0)
        return ring

    @property
    def keys(self) -> Tensor:
        """Keys in their places, `[L, B, P, N, H, D]`, for reading only; what is not seen is of no meaning."""
        return self._room.keys

    @property
    def values(self) -> Tensor:
        """The values beside them."""
        return self._room.values

    @property
    def nbytes(self) -> int:
        """Size of the frames that the next block sees."""
        size = self.keys.nbytes + self.values.nbytes
        return size // self.shape.places * (self.shape.sink + self.shape.kept)

    def in_order(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of keys and values, `[L, B, S + kept, N, H, D]`: the sink, then oldest first.

        Args:
            frames: `[B]` int64, of each row's video so far. Where there are fewer frames than places, and
                where the latest are those of the sink, zeros stand.
        """
        places, is_held = self.shape.in_order(frames)
        rows = torch.arange(len(frames), device=places.device)[:, None]
        is_free = ~is_held[..., None, None, None]
        with self.alone():
            pair = (each[:, rows, places].masked_fill_(is_free, 0) for each in (self.keys, self.values))
            keys, values = pair
        return keys, values

    def with_tensors(self, keys: Tensor, values: Tensor) -> FrameRing:
        """Return a ring of other keys and values in the same places: these, or copies where they are ours."""
        ours = {each.untyped_storage().data_ptr() for each in (self.keys, self.values)}
        return FrameRing(_Room(_owned(keys, ours), _owned(values, ours)), self.shape)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads from its room inside the block, in which it may be written into, or copied."""
        while True:
            room = self._room
            with room.lock:
                if room is self._room:  # who was there before may have moved it
                    yield
                    return

    def claim(self) -> FrameRing:
        """Return this ring, which may now be written into behind its frames.

        Whoever holds a state before or after it is given a copy of what it sees.
        """
        if self._is_held:
            self._room.move([each for each in self._room.held if each._number != self._number])
        return self

    def after(self) -> FrameRing:
        """Return the ring behind a block, whose keys and values were written into its places."""
        return FrameRing(self._room, self.shape, self._number + 1, is_held=self._is_held)

    def enter(self, room: _Room) -> None:
        """Be in a room from now on, which holds the same numbers."""
        self._room.held.discard(self)
        self._room = room
        if self._is_held:
            room.held.add(self)

    # What a recording asks of it.

    def signature(self) -> Hashable:
        """Return what a room must be like to take it in."""
        return self.shape, self.keys.shape, self.keys.dtype, self.keys.device

    def settle(self, homes: dict[Hashable, Any]) -> None:
        """Move to the home of rings of its kind, whose places a recording reads and writes, and claim it."""
        home = homes.setdefault(self.signature(), self._room)
        if home is not self._room:
            home.move(list(home.held))
            home.keys.copy_(self.keys)
            home.values.copy_(self.values)
            self.enter(home)
        self.claim()

    def shadow(self) -> FrameRing:
        """Return the same ring as nobody's, for a recording to keep."""
        return FrameRing(self._room, self.shape, is_held=False)

    def follow(self, recorded: Resident) -> FrameRing:
        """Return the ring behind as many blocks as were written when a recording was made."""
        assert isinstance(recorded, FrameRing), "a recording of rings returns rings"
        ring = self
        for _ in range(recorded._number):
            ring = ring.after()
        return ring

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a copy, in this process or in another, is made of.

        Copies: between processes PyTorch hands on the memory itself, into which this one goes on writing.
        """
        with self.alone():
            return _again, (self.keys.clone(), self.values.clone(), self.shape)


def _owned(tensor: Tensor, ours: set[int]) -> Tensor:
    """Return a tensor that may be written into: itself, unless it is a view of one of `ours`."""
    if tensor.untyped_storage().data_ptr() not in ours and not tensor.is_inference():
        return tensor.contiguous()
    with torch.inference_mode(False):
        return tensor.clone(memory_format=torch.contiguous_format)


def _again(keys: Tensor, values: Tensor, shape: RingShape) -> FrameRing:
    return FrameRing(_Room(_owned(keys, set()), _owned(values, set())), shape)

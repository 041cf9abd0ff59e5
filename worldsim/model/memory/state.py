"""The state between frames, as a value."""

# B batch, L layers of the kind, H heads, K key width, V value width, W window frames, T past frames, N tokens
# per frame, D head width

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worldsim.model.config import DenoiserConfig
from worldsim.model.memory.frame_ring import FrameRing
from worldsim.model.memory.past_frames import PastFrames

PAST, FEATURE = "past_", "feature_"
WINDOW = ("window_keys", "window_values")
LAYERS_FIRST = ("matrices", *WINDOW, f"{PAST}keys", f"{PAST}values")
"""Tensors whose second axis is the batch; of the others it is the first."""


def _batch_axis(name: str) -> int:
    return 1 if name in LAYERS_FIRST else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryState:
    """The whole memory of a batch of worlds. No function writes into what it holds.

    Its size never changes, but for `past`, which only a model with full layers has.

    Attributes:
        matrices: `[L, B, H, K, V]`, at least fp32, the recurrent state of each hybrid layer.
        window_keys: `[L, B, W + 1, N, H, D]`, keys of the sink (slot 0, the first committed frame) and of
            the last W frames, oldest first, turned by their place in the frame only.
        window_values: The values beside them.
        phase: `[B, D / 2]`, at least fp32, in [-pi, pi), the angles of the path so far.
        latents: `[B, C, h, w]`, the frame committed last.
        num_committed: `[B]` int64, how many frames were committed.
        past: Keys and values of all past frames for the full layers; None without such layers.
        summary: `[B, D]`, at least fp32, what the outcome heads judge: features of the frame committed last.
            None in a model without such heads.
        odometry: `[B, H]` fp32, what the odometry of a world whose keys are poses keeps beside the pose,
            which is the path. None in other worlds.
        pictures: `[B, P, H, W, 3]` uint8, in worlds that draw several frames at once: those drawn last. None
            in others.
        features: Each `[B, ...]`, what the decoder keeps in worlds whose frames are decoded from those
            before, too; none in others.
        ring: The window in places that stay where they are, in worlds that step so; `window_keys` and
            `window_values` are then of no layer, and `tensors` returns both in order. None in others.
    """

    matrices: Tensor
    window_keys: Tensor
    window_values: Tensor
    phase: Tensor
    latents: Tensor
    num_committed: Tensor
    past: PastFrames | None = None
    summary: Tensor | None = None
    odometry: Tensor | None = None
    pictures: Tensor | None = None
    features: tuple[Tensor, ...] = ()
    ring: FrameRing | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes of all that is remembered.

        The buffer of `past` holds up to twice its part of it, a ring one block more.
        """
        size = sum(tensor.nbytes for tensor in self._held().values())
        return size if self.ring is None else size + self.ring.nbytes - _size_of(self.ring)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, those of `past` as `past_keys` and `past_values`.

        The features are called `feature_000` and so on. A ring's window is copied.
        """
        tensors = self._held()
        if self.ring is not None:
            tensors |= zip(WINDOW, self.ring.in_order(self.num_committed), strict=True)
        return tensors

    def _held(self) -> dict[str, Tensor]:
        """Return the tensors by name as they are held: those of a ring in their places."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in GROUPS}
        tensors = {name: tensor for name, tensor in own.items() if tensor is not None}
        if self.past is not None:
            tensors |= {PAST + "keys": self.past.keys, PAST + "values": self.past.values}
        if self.ring is not None:
            tensors |= zip(WINDOW, (self.ring.keys, self.ring.values), strict=True)
        return tensors | {f"{FEATURE}{number:03d}": each for number, each in enumerate(self.features)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> MemoryState:
        """Build from what `tensors` returned.

        Raises:
            TypeError: If tensors are missing or too many.
            ValueError: If those of `past` do not belong together.
        """
        past = {name.removeprefix(PAST): t for name, t in tensors.items() if name.startswith(PAST)}
        return cls(**_without_past(tensors), past=PastFrames.of(**past) if past else None)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> MemoryState:
        """Return the memory with `change(name, tensor)` in the place of every tensor.

        Of a ring it is given the places, which it must not move.
        """
        with nullcontext() if self.ring is None else self.ring.alone():
            before = self._held()
            after = {name: change(name, tensor) for name, tensor in before.items()}
            if self.ring is not None:
                same = all(after[name] is before[name] for name in WINDOW)
                window = [after.pop(name) for name in WINDOW]
                ring = self.ring if same else self.ring.with_tensors(*window)
                nothing = {name: getattr(self, name) for name in WINDOW}
                return replace(self, **_without_past(after | nothing), ring=ring)
        if all(after[name] is tensor for name, tensor in before.items() if name.startswith(PAST)):
            return replace(self, **_without_past(after))  # goes on sharing the past's buffer
        return self.from_tensors(after)

    def first_rows(self, count: int) -> MemoryState:
        """Return the memory of the first so many rows of the batch."""
        return self.slice_rows(slice(count))

    def slice_rows(self, rows: slice) -> MemoryState:
        """Return the memory of a piece of the batch, without a copy of it."""
        return self.map(lambda name, tensor: tensor[:, rows] if name in LAYERS_FIRST else tensor[rows])

    def rows(self, rows: Tensor) -> MemoryState:
        """Return the memory of some rows of the batch, `[R]` int64, in this order; one may come twice."""
        return self.map(lambda name, tensor: tensor.index_select(_batch_axis(name), rows))

    def with_rows(self, rows: Tensor, others: MemoryState) -> MemoryState:
        """Return the memory with the rows of `others`, R of them, in the place of rows `[R]` int64."""
        one, other = _alike([self, others])
        theirs = other._held()
        return one.map(lambda name, tensor: tensor.index_copy(_batch_axis(name), rows, theirs[name]))

    def in_order(self) -> MemoryState:
        """Return the memory without a ring: a copy of what is in one."""
        return self if self.ring is None else self.from_tensors(self.tensors())

    def states_alone(self) -> MemoryState:
        """Return what is left without the last frame and the window: the recurrent states, and the path."""
        # By its number of frames it writes into other places than this one, into what this one sees.
        ring = None if self.ring is None else copy(self.ring)
        latents, nothing = torch.zeros_like(self.latents), torch.zeros_like(self.num_committed)
        return replace(self, latents=latents, num_committed=nothing, ring=ring)

    @staticmethod
    def join(memories: Sequence[MemoryState]) -> MemoryState:
        """Return one memory of the rows of all, in order."""
        memories = _alike(memories)
        all_tensors = [memory._held() for memory in memories]
        return memories[0].map(
            lambda name, _: torch.cat([tensors[name] for tensors in all_tensors], dim=_batch_axis(name))
        )

    def reset_rows(self, rows: Tensor) -> MemoryState:
        """Return the memory with nothing in the rows where `rows` `[B]` bool is True."""

        def cleared(name: str, tensor: Tensor) -> Tensor:
            mask = rows[None] if name in LAYERS_FIRST else rows
            mask = mask.reshape(*mask.shape, *(1,) * (tensor.dim() - mask.dim()))
            return torch.where(mask, torch.zeros_like(tensor), tensor)

        return self.map(cleared)


GROUPS = ("past", "features", "ring")
"""Fields of several tensors."""


def _size_of(ring: FrameRing) -> int:
    return ring.keys.nbytes + ring.values.nbytes


def _alike(memories: Sequence[MemoryState]) -> list[MemoryState]:
    """Return memories whose tensors can be joined: all with rings of the same places, or all without."""
    shapes = {None if memory.ring is None else memory.ring.shape for memory in memories}
    return list(memories) if len(shapes) == 1 else [memory.in_order() for memory in memories]


def _without_past(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return tensors by the names of the fields, those of `past` left out."""
    features = tuple(tensors[name] for name in sorted(tensors) if name.startswith(FEATURE))
    own = {n: t for n, t in tensors.items() if not n.startswith((PAST, FEATURE))}
    return own | {"features": features}


def empty_memory(
    config: DenoiserConfig, batch_size: int, dtype: torch.dtype, device: torch.device
) -> MemoryState:
    """Return the memory before anything happened: no matrices, no frames, the path at its origin."""
    layers, heads, width = config.num_layers, config.num_heads, config.head_width
    num_window, num_full = len(config.window_layers), len(config.full_layers)
    token = (config.tokens_per_frame, heads, width)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    wide = torch.promote_types(dtype, torch.float32)  # of what adds up over all frames
    past = zeros(num_full, batch_size, heads, 0, config.tokens_per_frame, width)
    return MemoryState(
        matrices=torch.zeros(
            layers - num_window - num_full, batch_size, heads, width, width, dtype=wide, device=device
        ),
        window_keys=zeros(num_window, batch_size, config.window + 1, *token),
        window_values=zeros(num_window, batch_size, config.window + 1, *token),
        phase=torch.zeros(batch_size, width // 2, dtype=wide, device=device),
        latents=zeros(batch_size, *config.latent_shape),
        num_committed=torch.zeros(batch_size, dtype=torch.int64, device=device),
        past=PastFrames.of(past, past) if num_full else None,
        summary=torch.zeros(batch_size, config.dim, dtype=wide, device=device)
        if config.outcome_heads
        else None,
    )


def push_window(cache: Tensor, new: Tensor, num_committed: Tensor) -> Tensor:
    """Return the window after one more frame.

    Args:
        cache: `[L, B, W + 1, N, H, D]`, sink first, then the last W frames, oldest first.
        new: `[L, B, N, H, D]`, the frame that is committed.
        num_committed: `[B]`, frames committed before it; the very first becomes the sink.
    """
    is_first = (num_committed == 0)[None, :, None, None, None]
    sink = torch.where(is_first, new, cache[:, :, 0])
    return torch.cat([sink[:, :, None], cache[:, :, 2:], new[:, :, None]], dim=2)


def window_is_visible(num_committed: Tensor, window: int) -> Tensor:
    """Return which cached frames are seen, `[B, W + 1]` bool; the sink only once it has left the window."""
    age = torch.arange(window, 0, -1, device=num_committed.device)  # oldest first
    recent = age <= num_committed[:, None]
    return torch.cat([(num_committed > window)[:, None], recent], dim=1)


def window_mask(num_committed: Tensor, window: int, tokens: int) -> Tensor:
    """Return which tokens a window layer sees, `[B, 1, 1, (W + 2) * N]` bool; the frame's own N are last."""
    seen = functional.pad(window_is_visible(num_committed, window), (0, 1), value=True)  # the frame itself
    return seen.repeat_interleave(tokens, dim=1)[:, None, None]

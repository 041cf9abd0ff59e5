"""Memory span: the loss from emptying the state once, some frames before the one that is scored.

Emptying it before every frame (`interventions.zeroed`) lets a dream drift away, and PSNR then tells how flat
its pictures are. Here all but the state is the same: what is watched, the noise, the frame that is scored.
"""

# B batch, N clips, F frames, T frames watched

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldsim.evaluation.inputs.clips import Clip, ClipBatch, Recordings
from worldsim.evaluation.inputs.returns import ReturnClip, ReturnSettings, frames_of
from worldsim.evaluation.memory.interventions import has_state, zero
from worldsim.evaluation.metrics import psnr
from worldsim.evaluation.rollout import join, progress, through_codec, watch
from worldsim.evaluation.statistics import Estimate, estimate_of
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World

KEPT = "kept"
SEEN, CODEC, LAST = "seen", "codec", "last"
"""The real frame of when the place was seen before; the real frame through the codec; the last real frame."""


def forget(simulator: Simulator, state: WorldState) -> WorldState:
    """Return a state as it is after forgetting: the recurrent states are empty, windows and path stay.

    A world without recurrent states has nothing but its cache: it starts again.
    """
    if has_state(simulator.world):
        return zero(state)
    fresh = simulator.world.initial_memory(len(state.seed))
    if simulator.world.on_level_map:  # where on the level it is stays known
        fresh = replace(fresh, phase=state.memory.phase)
    return replace(state, memory=fresh)


def spans(world: World, context_frames: int) -> list[int]:
    """Return after which last frames a world is scored: the powers of two below the frames watched.

    A world with recurrent states is also scored with nothing in them, 0; one without has then seen nothing.
    """
    powers = [2**power for power in range(context_frames.bit_length()) if 2**power < context_frames]
    return [0, *powers] if has_state(world) else powers


def next_after_forgetting(
    simulator: Simulator,
    recordings: Recordings,
    clips: Sequence[Clip],
    context_frames: int,
    *,
    batch_size: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Predict the frame after `context_frames` real ones, the state emptied once while they are watched.

    Clips have `context_frames + 1` frames. The noise is the same however much was forgotten.

    Returns:
        PSNR in dB, `[N]`: `KEPT` where nothing was forgotten, and by the number of last frames that went into
        the state after it was emptied (`spans`).
    """
    chosen = spans(simulator.world, context_frames)
    scores: dict[str, list[Tensor]] = {name: [] for name in (KEPT, *map(str, chosen))}
    watched = context_frames - 1 + sum(chosen)
    with progress("memory", len(clips) * watched) as bar:
        for batch in recordings.batches(clips, context_frames + 1, batch_size):
            state = batch.begin_dreams(simulator, 1, seed)
            for index in range(1, context_frames + 1):
                if (span := context_frames - index) in chosen:
                    last_frames = range(index, context_frames)
                    branch = watch(simulator, forget(simulator, state), batch, last_frames, bar)
                    scores[str(span)].append(_next_psnr(simulator, branch, batch))
                if index < context_frames:
                    state = watch(simulator, state, batch, range(index, index + 1), bar)
            scores[KEPT].append(_next_psnr(simulator, state, batch))
    return {name: torch.cat(parts).numpy() for name, parts in scores.items()}


def _next_psnr(simulator: Simulator, state: WorldState, batch: ClipBatch) -> Tensor:
    """Return the PSNR of the last frame of each clip, predicted after all the others, `[B]`."""
    predicted = simulator.predict(state, batch.actions[:, -2]).frames.cpu()
    return psnr(predicted, batch.frames[:, -1])


def dream_returns(
    simulator: Simulator,
    recordings: Recordings,
    places: Sequence[ReturnClip],
    settings: ReturnSettings,
    *,
    forgets: bool,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    """Dream up to where a place is back that was out of view, and score that frame.

    Real frames are watched until the place comes into view; from there on the dream goes by the recorded
    actions, so that no real frame shows again what is to be remembered. A dream that forgets has its
    recurrent states emptied when the place has gone out of view: what they held of it is gone, what is seen
    afterwards goes into them as usual. Returns the PSNR in dB of the frame where the place is back, `[N]`.
    """
    context_frames, length = settings.context_frames, settings.context_frames + settings.longest
    scores, clips = [], [place.clip for place in places]
    with progress("returns", len(clips) * length) as bar:
        for batch in recordings.batches(clips, length, batch_size):
            chunk = places[batch.first : batch.first + len(batch.clips)]
            left, back = (frames_of(chunk, name) for name in ("left", "back"))
            state = batch.begin_dreams(simulator, 1, seed)
            for index in range(context_frames):
                if index > 0:
                    state = watch(simulator, state, batch, range(index, index + 1), bar)
                if forgets and (left == index).any():
                    state = zero(state, left == index)
            shown = torch.empty_like(batch.frames[:, 0])
            for index in range(context_frames, int(back.max()) + 1):
                frame, state = simulator.step(state, batch.actions[:, index - 1])
                shown[back == index] = frame.cpu()[back == index]
            scores.append(psnr(shown, _frames_at(batch, back)))
            bar.update(len(batch.clips) * (settings.longest + 1))
    return torch.cat(scores).numpy()


def _frames_at(batch: ClipBatch, frames: Tensor) -> Tensor:
    """Return one frame of each clip, `[B, H, W, 3]`."""
    return batch.frames[torch.arange(len(frames)), frames]


def score_references(
    world: World, recordings: Recordings, places: Sequence[ReturnClip], settings: ReturnSettings
) -> dict[str, np.ndarray]:
    """Return the PSNR in dB, `[N]`, of what the dreams of `dream_returns` are measured against, by name."""
    length = settings.context_frames + settings.longest
    parts = []
    for batch in recordings.batches([place.clip for place in places], length, 16):
        chunk = places[batch.first : batch.first + len(batch.clips)]
        seen, back = (_frames_at(batch, frames_of(chunk, name)) for name in ("seen", "back"))
        pictures = {
            SEEN: seen,
            CODEC: through_codec(world, back[:, None])[:, 0],
            LAST: batch.frames[:, settings.context_frames - 1],
        }
        parts.append({name: psnr(frames, back) for name, frames in pictures.items()})
    return {name: values.numpy() for name, values in join(parts).items()}


@dataclass(frozen=True, slots=True)
class ReturnPsnr:
    """PSNR where a place is back, and its change with the states emptied, if the world has any."""

    psnr_db: Estimate
    change_db: Estimate | None = None


@dataclass(frozen=True, slots=True)
class MemorySpan:
    """PSNR of the next frame, and its change by the number of frames that the emptied state has seen."""

    num_places: int
    num_episodes: int
    psnr_db: Estimate
    change_db: dict[str, Estimate]
    returns: ReturnPsnr | None = None


def summarize_spans(
    scores: dict[str, np.ndarray], episodes: Sequence[str], returns: ReturnPsnr | None = None
) -> MemorySpan:
    """Return the means of `next_after_forgetting`: PSNR, and what forgetting changes at the same places."""
    kept = scores[KEPT]
    changes = {k: estimate_of(values - kept, episodes) for k, values in scores.items() if k != KEPT}
    return MemorySpan(len(kept), len(set(episodes)), estimate_of(kept, episodes), changes, returns)


def summarize_returns(
    kept: np.ndarray, forgotten: np.ndarray | None = None, *, episodes: Sequence[str]
) -> ReturnPsnr:
    """Return the means of `dream_returns`: with the states, and what it changes to empty them."""
    change = None if forgotten is None else estimate_of(forgotten - kept, episodes)
    return ReturnPsnr(estimate_of(kept, episodes), change)

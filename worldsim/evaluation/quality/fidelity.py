"""Fidelity of rollouts: FID and KID against real frames, by segments of the rollout.

Dreams watch the beginning of real episodes and go on by their recorded actions, so that they are where the
real player was and differ in nothing else. Frames of one half of the episodes are compared with the real ones
of the other half: a perfect dream then comes out as the real frames do, at the floor, and not below it.
"""

# N episodes, B batch, S segments, K frames of a segment, D features, H W frame size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.quality.distances import RealDistance, distances_to_real
from worldsim.evaluation.quality.features import FeatureNetwork
from worldsim.evaluation.rollout import progress, rows_that_fit, through_codec, watch_until
from worldsim.simulator import Simulator

SEGMENT_ENDS = (32, 128, 512, 2048)
MAX_FRAMES = 16
"""Frames of a segment that are looked at in each episode: neighbours in time say the same."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of dreams, and K frames of it, as many in all segments; frame 1 is the first that is dreamt."""

    first: int
    last: int
    frames: list[int]

    @property
    def name(self) -> str:
        """First and last frame, as in `33-128`."""
        return f"{self.first}-{self.last}"


def cut_segments(num_frames: int) -> list[Segment]:
    """Return the segments of dreams of some length: each about four times as long as all before it.

    A rest of fewer than `MAX_FRAMES` frames belongs to the segment before.

    Raises:
        ValueError: If there is no frame.
    """
    if num_frames < 1:
        raise ValueError(f"dreams need at least 1 frame, got {num_frames}")
    ends = [end for end in SEGMENT_ENDS if end <= num_frames - MAX_FRAMES] + [num_frames]
    spans = [(before + 1, end) for before, end in zip([0, *ends], ends, strict=False)]
    count = min(MAX_FRAMES, num_frames, *(last - first + 1 for first, last in spans))
    return [Segment(*span, torch.linspace(*span, count).round().int().tolist()) for span in spans]


def real_features(
    returns: ReturnSet, network: FeatureNetwork, segments: Sequence[Segment], *, batch_size: int
) -> Tensor:
    """Return the features of the real frames where dreams are looked at, `[N, S K, D]`."""
    parts = (_embed(network, _real(batch, returns, segments)) for batch in returns.batches(batch_size))
    return torch.cat(list(parts))


def dream_features(
    simulator: Simulator,
    returns: ReturnSet,
    network: FeatureNetwork,
    segments: Sequence[Segment],
    *,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Let dreams watch the context of each episode and go on by its recorded actions.

    The ways out and back of the episodes hold all frames of the segments.

    Returns:
        Features of the frames that are looked at and, as what a dream can reach at best, of the real frames
        through the world's codec; `[N, S K, D]` both.
    """
    context, length = returns.context_frames, segments[-1].last
    wanted = {frame for segment in segments for frame in segment.frames}
    dreamt, decoded = [], []
    rows = rows_that_fit([simulator], context + length, batch_size)
    with progress("fidelity", (context + length) * len(returns)) as bar:
        for batch in returns.batches(rows):
            state = watch_until(simulator, batch.clips, context, seed, bar)
            found = []
            for index in range(1, length + 1):
                frame, state = simulator.step(state, batch.clips.actions[:, context + index - 1])
                if index in wanted:
                    found.append(network.embed(frame))
                bar.update(len(frame))
            dreamt.append(torch.stack(found, dim=1))
            real = _real(batch, returns, segments).to(simulator.frames_device)
            decoded.append(_embed(network, through_codec(simulator.world, real)))
    return torch.cat(dreamt), torch.cat(decoded)


def _real(batch: ReturnBatch, returns: ReturnSet, segments: Sequence[Segment]) -> Tensor:
    frames = [returns.context_frames + frame for segment in segments for frame in segment.frames]
    return batch.clips.frames[:, frames]


def _embed(network: FeatureNetwork, frames: Tensor) -> Tensor:
    """Return the features `[B, K, D]` of frames `[B, K, H, W, 3]`."""
    return network.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def summarize_fidelity(
    features: Tensor, real: Tensor, segments: Sequence[Segment]
) -> dict[str, dict[str, RealDistance]]:
    """Return FID and KID of features `[N, S K, D]` by the name of the segment."""
    parts = (values.split(len(segments[0].frames), 1) for values in (features, real))
    return {segment.name: distances_to_real(*pair) for segment, *pair in zip(segments, *parts, strict=True)}

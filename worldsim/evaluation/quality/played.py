"""Long dreams of a player that looks at them: whether their pictures stay as real as they began."""

# N dreams, B batch, K frames that are looked at, D features, H W frame size

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.distances import fid
from worldsim.evaluation.quality.features import FeatureNetwork
from worldsim.evaluation.rollout import progress
from worldsim.evaluation.statistics import Estimate, jackknife
from worldsim.games.events import Meter
from worldsim.simulator import Simulator
from worldsim.state import WorldState

SEGMENT = 100
"""Frames at the beginning of a dream, and at its end, that are compared."""
MAX_FRAMES = 20
"""Of a segment that are looked at in each dream."""
Act = Callable[[int, np.ndarray], np.ndarray]
"""Takes the number of a dream and its frame `[H, W, 3]`, returns the action of its player, `[A]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayedScores:
    """FID against real frames of the first and of the last frames of dreams, their ratio; deaths in them."""

    num_dreams: int
    num_frames: int
    early_fid: Estimate
    late_fid: Estimate
    late_over_early: Estimate
    deaths: int


def play_on(
    simulator: Simulator,
    recordings: Recordings,
    network: FeatureNetwork,
    act: Act,
    *,
    meter: Meter | None,
    num_dreams: int,
    num_frames: int,
    context_frames: int,
    batch_size: int,
    seed: int,
) -> PlayedScores:
    """Let a player play dreams for `num_frames`, and compare frames late and early with real ones.

    Whose meter says that it is dead begins again where its dream began.
    """
    clips = recordings.choose(context_frames, num_dreams, seed)
    segment = min(SEGMENT, num_frames // 2)
    count = min(MAX_FRAMES, segment)
    early = np.linspace(1, segment, count).round().astype(int).tolist()
    late = np.linspace(num_frames - segment + 1, num_frames, count).round().astype(int).tolist()
    real, dreamt, deaths = [], [], 0
    with progress("played dreams", len(clips) * num_frames) as bar:
        for batch in recordings.batches(clips, context_frames, batch_size):
            real.append(network.embed(batch.frames[:, -1]))
            start = state = batch.begin_dreams(simulator, context_frames, seed)
            frame, found = state.frames, []
            for index in range(1, num_frames + 1):
                shown = frame.cpu().numpy()
                actions = [act(batch.first + row, picture) for row, picture in enumerate(shown)]
                frame, state = simulator.step(state, torch.from_numpy(np.stack(actions)))
                if index in (*early, *late):
                    found.append(network.embed(frame))
                if meter is not None:
                    dead = np.flatnonzero(meter.read(frame.cpu().numpy()) <= meter.empty).tolist()
                    deaths += len(dead)
                    if dead:
                        state = _begin_again(state, start, dead)
                        frame = state.frames
                bar.update(len(shown))
            dreamt.append(torch.stack(found, dim=1))
    features = torch.cat(dreamt)
    return replace(
        summarize_played(
            features[:, :count], features[:, count:], real_features(recordings, network, features, seed)
        ),
        num_frames=num_frames,
        deaths=deaths,
    )


def real_features(recordings: Recordings, network: FeatureNetwork, like: Tensor, seed: int) -> Tensor:
    """Return the features of real frames from anywhere, about as many as dreamt ones `[N, K, D]`."""
    clips = recordings.choose(1, like.shape[0] * like.shape[1] // 2, seed + 1)
    return torch.cat([network.embed(batch.frames[:, 0]) for batch in recordings.batches(clips, 1, 64)])


def summarize_played(early: Tensor, late: Tensor, real: Tensor) -> PlayedScores:
    """Return FID of features `[N, K, D]` of both segments against real ones `[M, D]`, and their ratio."""

    def distance(features: Tensor) -> Callable[[np.ndarray], float]:
        return lambda rows: fid(features[torch.from_numpy(rows)].flatten(0, 1), real)

    first, last = distance(early), distance(late)
    return PlayedScores(
        num_dreams=len(early),
        num_frames=0,
        early_fid=jackknife(first, len(early)),
        late_fid=jackknife(last, len(late)),
        late_over_early=jackknife(lambda rows: last(rows) / max(first(rows), 1e-9), len(early)),
        deaths=0,
    )


def _begin_again(state: WorldState, start: WorldState, rows: Sequence[int]) -> WorldState:
    """Return a state in which some dreams are where they began."""
    parts = [(start if row in rows else state).rows([row]) for row in range(len(state.seed))]
    return WorldState.join(parts)

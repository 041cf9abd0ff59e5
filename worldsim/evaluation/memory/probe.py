"""Linear probes of a state, for the position of the player and for pictures of some frames ago.

A ridge regression reads it, from features of one size for all worlds: every number of a state is added, with
a sign, to one of some hundred sums (feature hashing). What is decodable need not be used: interventions tell
that.
"""

# B batch, N samples, D features, E numbers that are read

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.memory.interventions import has_state
from worldsim.evaluation.metrics import as_images
from worldsim.evaluation.rollout import join, progress, watch
from worldsim.evaluation.statistics import Estimate, resample
from worldsim.simulator import Simulator
from worldsim.state import WorldState

NUM_FEATURES = 512
LAGS = (4, 8, 16, 32, 64)
"""Frames ago whose picture is read out."""
STRIDE = 4
PICTURE = 4
"""Rows and columns that a picture is averaged to before it is read out."""
PENALTIES = (1e-3, 1e-1, 1e1, 1e3, 1e5)
STATE, OTHER, PRESENT, ORACLE = "state", "state_of_another", "present_frame", "oracle"
"""The state; that of another episode; the frame of the moment alone; what was asked for, or the sum of all
that was pressed. A constant is what they are compared with: it has the score 0, the truth 1."""
POSITION = "position"


@dataclass(frozen=True, slots=True)
class ProbeSamples:
    """What is read, and what it is read from, at some frames of episodes.

    Attributes:
        episode: `[N]` int64, which episode a sample is of.
        features: `[N, D]` fp32 by source: `STATE`, `PRESENT`, and the `ORACLE` of `POSITION`.
        targets: `[N, E]` fp32 by what is read, NaN where an episode does not go back so far.
    """

    episode: np.ndarray
    features: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]


def hashed(values: Tensor) -> Tensor:
    """Return `[B, D]` signed sums of values `[B, ...]`: their inner products stay about what they are."""
    flat = values.flatten(1).float()
    generator = torch.Generator().manual_seed(0)
    bucket = torch.randint(NUM_FEATURES, (flat.shape[1],), generator=generator)
    sign = torch.randint(2, (flat.shape[1],), generator=generator) * 2.0 - 1
    sums = torch.zeros(len(flat), NUM_FEATURES, device=flat.device)
    return sums.index_add_(1, bucket.to(flat.device), flat * sign.to(flat.device))


def state_features(state: WorldState, *, recurrent: bool) -> Tensor:
    """Return features of what is remembered: recurrent states, or else the window; and the path, `[B, D]`."""
    memory = state.memory
    tensors = [memory.matrices] if recurrent else [memory.window_keys, memory.window_values]
    held = torch.cat([tensor.movedim(1, 0).flatten(1).float() for tensor in tensors], dim=1)
    path = memory.phase.float()
    return torch.cat([hashed(held), path.cos(), path.sin()], dim=1)


def collect_samples(simulator: Simulator, returns: ReturnSet, *, batch_size: int, seed: int) -> ProbeSamples:
    """Let a world watch the way out of all episodes, and take features of its state every few frames.

    Not for worlds whose memory grows.
    """
    poses = returns.poses()
    frames = range(STRIDE, returns.turn + 1, STRIDE)
    with progress("probe", returns.turn * len(returns)) as bar:
        batches = returns.batches(batch_size)
        return join([_sample_batch(simulator, batch, poses, frames, seed, bar) for batch in batches])


def _sample_batch(
    simulator: Simulator, batch: ReturnBatch, poses: Sequence[np.ndarray], frames: range, seed: int, bar: tqdm
) -> ProbeSamples:
    clips, count = batch.clips, len(batch.names)
    recurrent = has_state(simulator.world)
    images = (as_images(frames) for frames in clips.frames[:, : batch.turn + 1].unbind(1))
    small = [functional.adaptive_avg_pool2d(image, PICTURE).flatten(1) for image in images]
    pictures = torch.stack(small, dim=1)
    layout = simulator.world.config.actions
    pressed = torch.cat(
        [functional.one_hot(clips.actions[..., a], n) for a, n in enumerate(layout.num_values)], dim=-1
    )
    state, poses = clips.begin_dreams(simulator, 1, seed), poses[clips.first :]
    rows: dict[str, list[Tensor]] = {STATE: [], PRESENT: [], ORACLE: []}
    targets: dict[str, list[Tensor]] = {name: [] for name in (POSITION, *map(str, LAGS))}
    for index in range(1, batch.turn + 1):
        state = watch(simulator, state, clips, range(index, index + 1), bar)
        if index in frames:
            rows[STATE].append(state_features(state, recurrent=recurrent).cpu())
            rows[PRESENT].append(hashed(state.memory.latents).cpu())
            rows[ORACLE].append(pressed[:, :index].sum(dim=1).float())
            targets[POSITION].append(torch.from_numpy(_moved(poses, count, index)))
            unknown = torch.full_like(pictures[:, 0], torch.nan)
            for lag in LAGS:
                targets[str(lag)].append(pictures[:, index - lag] if lag <= index else unknown)
    episode = torch.arange(clips.first, clips.first + count).repeat(len(rows[STATE]))
    return ProbeSamples(
        episode.numpy(),
        {name: torch.cat(parts).numpy() for name, parts in rows.items()},
        {name: torch.cat(parts).numpy() for name, parts in targets.items()},
    )


def _moved(poses: Sequence[np.ndarray], count: int, index: int) -> np.ndarray:
    """Return how far the players are from where they began: x, y and the heading as a point, `[B, 4]`."""
    found = []
    for path in poses[:count]:
        angle = np.deg2rad(path[index, 2] - path[0, 2])
        found.append([*(path[index, :2] - path[0, :2]), np.cos(angle), np.sin(angle)])
    return np.array(found, dtype=np.float32)


def probe(samples: ProbeSamples, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Return how much of each target is read out of each source, on episodes that no probe was fitted to.

    The score is the share of the variance that is explained: 0 is what a constant has. Its interval comes
    from resampling episodes. `ORACLE` is asked for the position from all that was pressed, for a picture from
    the picture itself. It takes samples of at least 3 episodes.
    """
    episodes = np.unique(samples.episode)
    order = np.random.default_rng(seed).permutation(episodes)
    fit, choose, test = np.split(order, [max(1, len(order) * 3 // 5), max(2, len(order) * 4 // 5)])
    groups = [np.isin(samples.episode, chosen) for chosen in (fit, choose, test)]
    report: dict[str, dict[str, Estimate]] = {}
    for name, target in samples.targets.items():
        known = ~np.isnan(target).any(axis=1)
        oracle = samples.features[ORACLE] if name == POSITION else np.nan_to_num(target)
        state = samples.features[STATE]
        others, present = _of_others(state, samples.episode), samples.features[PRESENT]
        sources = {STATE: state, OTHER: others, PRESENT: present, ORACLE: oracle}
        splits = [group & known for group in groups]
        if all(split.any() for split in splits):
            report[name] = {
                source: _score(features, target, splits, samples.episode, seed)
                for source, features in sources.items()
            }
    return report


def _of_others(features: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Return the features of another episode's sample for each, at the same frame."""
    # The samples of each frame: the first of all episodes, the second, and so on.
    nth = np.array([int((episode[:row] == name).sum()) for row, name in enumerate(episode)])
    rolled = np.empty_like(features)
    for frame in np.unique(nth):
        chosen = np.flatnonzero(nth == frame)
        rolled[chosen] = features[np.roll(chosen, 1)]
    return rolled


def _score(
    features: np.ndarray, target: np.ndarray, splits: Sequence[np.ndarray], episode: np.ndarray, seed: int
) -> Estimate:
    fit, choose, test = splits
    mean, scale = features[fit].mean(axis=0), features[fit].std(axis=0) + 1e-6
    x = (features - mean) / scale
    centre = target[fit].mean(axis=0)
    # Singular vectors give the regression for every penalty at once.
    u, s, vt = np.linalg.svd(x[fit].astype(np.float64), full_matrices=False)
    projected = u.T @ (target[fit] - centre)

    def errors(penalty: float, rows: np.ndarray) -> np.ndarray:
        weights = vt.T @ (projected * (s / (s**2 + penalty))[:, None])
        return np.square(x[rows] @ weights + centre - target[rows]).sum(axis=1)

    best = min(PENALTIES, key=lambda penalty: float(errors(penalty, choose).mean()))
    own, constant = errors(best, test), np.square(target[test] - centre).sum(axis=1)
    _, index = np.unique(episode[test], return_inverse=True)
    sums, bases = (np.bincount(index, weights=values) for values in (own, constant))
    return resample(lambda rows: 1 - sums[rows].sum(axis=-1) / bases[rows].sum(axis=-1), len(sums), seed)

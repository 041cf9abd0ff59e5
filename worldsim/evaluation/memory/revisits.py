"""Revisits: whether a dream that comes back to a pose shows the place that was there.

A world watches until the place is out of view, and dreams on by the recorded actions until the pose is back.
The place is recognised where features of the frame are nearer to those of the frame that was seen than to
those of any other place.
"""

# B batch, N revisits, K other places, F frames that are scored, D features, H W frame size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.revisits import RevisitBatch, RevisitSet
from worldsim.evaluation.memory.continuation import (
    ROOM_FRAMES,
    SEEN,
    UNSEEN,
    FindSeen,
    SeenPsnr,
    masked_errors,
    psnr_of_parts,
)
from worldsim.evaluation.memory.interventions import Intervention, can_intervene, zero
from worldsim.evaluation.metrics import psnr
from worldsim.evaluation.quality.features import FeatureNetwork
from worldsim.evaluation.quality.rollouts import TRUE_POSES
from worldsim.evaluation.rollout import join, progress, through_codec
from worldsim.evaluation.statistics import Estimate, bootstrap, rate
from worldsim.simulator import Simulator
from worldsim.state import WorldState

KEPT, EMPTIED = str(Intervention.NONE), str(Intervention.ZERO)
COPY, CODEC, OTHER = "copy_last", "codec", "other_view"
"""The last real frame, standing still; the real frame through the codec; other places, on average."""


@dataclass(frozen=True, slots=True)
class RevisitScores:
    """What was measured of N revisits, by method.

    Attributes:
        names: Of the episodes.
        is_recognised: `[N]` bool.
        psnr_db: `[N]`, of the frame where the pose is back.
        errors: `[N]` sums of squared errors of dreamt frames, by `SEEN` and `UNSEEN`; empty where it is not
            known which parts were seen.
        counts: `[N]` numbers of values that these are sums over.
    """

    names: list[str]
    is_recognised: dict[str, np.ndarray]
    psnr_db: dict[str, np.ndarray]
    errors: dict[str, dict[str, np.ndarray]]
    counts: dict[str, np.ndarray]


def measure_revisits(
    simulator: Simulator,
    revisits: RevisitSet,
    rung: str,
    network: FeatureNetwork,
    find_seen: FindSeen | None = None,
    *,
    batch_size: int,
    seed: int,
) -> RevisitScores:
    """Let a world watch the first part of each revisit of a rung, and dream the rest.

    Where a world has recurrent states it dreams once more, with the states emptied at the turn. Where it
    follows poses it watches and dreams once more, and is told the recorded ones. `find_seen` tells which
    parts of the dreamt frames were in view before.
    """
    methods = [KEPT, EMPTIED] if can_intervene(simulator) else [KEPT]
    if simulator.world.config.denoiser.layer_counts["full"]:
        batch_size = 1  # memories that grow can be joined only where they are of one length
    if is_told := simulator.world.odometry is not None:
        methods.append(TRUE_POSES)
    num_frames = revisits.num_frames(rung, watched_times=1 + is_told, dreamt_times=len(methods))
    with progress(rung, num_frames) as bar:
        batches = revisits.batches(rung, batch_size)
        return join([_measure_batch(simulator, b, methods, network, find_seen, seed, bar) for b in batches])


def _measure_batch(
    simulator: Simulator,
    batch: RevisitBatch,
    methods: Sequence[str],
    network: FeatureNetwork,
    find_seen: FindSeen | None,
    seed: int,
    bar: tqdm,
) -> RevisitScores:
    dreams, state = {}, watch_to_the_turn(simulator, batch, seed, bar)
    for method in methods:
        if are_told := method == TRUE_POSES:
            state = watch_to_the_turn(simulator, batch, seed, bar, are_told=True)
        begun = zero(state) if method == EMPTIED else state
        dreams[method] = dream_back(simulator, begun, batch, bar, are_told=are_told)
    rows = torch.arange(len(batch.names))
    last = torch.from_numpy(batch.back - batch.turn - 1)
    real, at_turn = (batch.clips.frames[rows, torch.from_numpy(at)] for at in (batch.back, batch.turn))
    shown = {method: frames[rows, last] for method, frames in dreams.items()}
    shown |= {COPY: at_turn, CODEC: through_codec(simulator.world, real[:, None])[:, 0]}
    scores = {method: psnr(frames, real) for method, frames in shown.items()}
    others = [psnr(frames, real) for frames in batch.others.unbind(1)]
    errors, counts = _parts_seen(batch, dreams, find_seen)
    return RevisitScores(
        batch.names,
        is_recognised={
            method: recognise(network, frames, batch.seen, batch.others).numpy()
            for method, frames in shown.items()
        },
        psnr_db={m: v.numpy() for m, v in (scores | {OTHER: torch.stack(others).mean(dim=0)}).items()},
        errors=errors,
        counts=counts,
    )


def watch_to_the_turn(
    simulator: Simulator, batch: RevisitBatch, seed: int, bar: tqdm, *, are_told: bool = False
) -> WorldState:
    """Return the state of dreams that have watched their clips, each up to its own turn.

    Those that `are_told` know from which poses.
    """
    poses = batch.clips.path(simulator.world) if are_told else None
    state, clips, finished = batch.clips.begin_dreams(simulator, 1, seed), batch.clips, []
    for index in range(1, int(batch.turn.max()) + 1):
        count = int((batch.turn >= index).sum())  # they are the first ones
        if count < len(state.seed):
            finished.append(state.rows(range(count, len(state.seed))))
            state = state.rows(range(count))
        pose = None if poses is None else poses[:count, index]
        given = clips.frames[:count, index], clips.actions[:count, index - 1], pose
        state = simulator.commit_frames(state, *given)
        bar.update(count)
    return WorldState.join([state, *reversed(finished)]) if finished else state


def dream_back(
    simulator: Simulator, state: WorldState, batch: RevisitBatch, bar: tqdm, *, are_told: bool = False
) -> Tensor:
    """Return dreamt frames from after the turn to where the pose is back, `[B, F, H, W, 3]` uint8 on the CPU.

    Those of shorter dreams are followed by zeros. Dreams that `are_told` know from which poses.
    """
    poses = batch.clips.path(simulator.world) if are_told else None
    lengths = batch.back - batch.turn
    shown = torch.zeros(len(lengths), int(lengths.max()), *batch.seen.shape[1:], dtype=torch.uint8)
    rows = np.arange(len(lengths))
    for index in range(int(lengths.max())):
        goes_on = lengths[rows] > index
        if not goes_on.all():
            state = state.rows(np.flatnonzero(goes_on).tolist())
            rows = rows[goes_on]
        now = batch.turn[rows] + index
        pose = None if poses is None else poses[rows, now + 1]
        frame, state = simulator.step(state, batch.clips.actions[rows, now], pose)
        shown[rows, index] = frame.cpu()
        bar.update(len(rows))
    return shown


def recognise(network: FeatureNetwork, frames: Tensor, seen: Tensor, others: Tensor) -> Tensor:
    """Return whether frames show the place that was seen, `[B]` bool: no other is as near in its features.

    Args:
        network: Gives frames features, whose squared distance counts.
        frames: `[B, H, W, 3]` uint8.
        seen: `[B, H, W, 3]`.
        others: `[B, K, H, W, 3]`.
    """
    places = torch.cat([seen[:, None], others], dim=1)
    known = network.embed(places.flatten(0, 1)).unflatten(0, places.shape[:2])
    distances = (known - network.embed(frames)[:, None]).square().sum(dim=-1)  # [B, 1 + K]
    return distances[:, 0] < distances[:, 1:].amin(dim=1)


def _parts_seen(
    batch: RevisitBatch, dreams: Mapping[str, Tensor], find_seen: FindSeen | None
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return the errors and counts of `RevisitScores` over some of the dreamt frames."""
    if find_seen is None:
        return {}, {}
    errors: dict[str, dict[str, list[np.ndarray]]] = {m: {SEEN: [], UNSEEN: []} for m in dreams}
    counts: dict[str, list[int]] = {SEEN: [], UNSEEN: []}
    for row, (turn, back) in enumerate(zip(batch.turn.tolist(), batch.back.tolist(), strict=True)):
        count = min(back - turn, ROOM_FRAMES)
        frames = np.linspace(back - turn, 0, count, endpoint=False).round().astype(np.int64)[::-1] - 1
        poses = batch.poses[row]
        seen = find_seen(poses[: turn + 1], poses[turn + 1 + frames], batch.game_seeds[row])
        real = batch.clips.frames[row : row + 1, turn + 1 + frames]
        for kind, mask in ((SEEN, seen), (UNSEEN, ~seen)):
            counts[kind].append(3 * int(mask.sum()))
            for method, dream in dreams.items():
                found = masked_errors(dream[row : row + 1, frames], real, torch.from_numpy(mask)[None])
                errors[method][kind].append(found)
    return (
        {
            method: {kind: np.concatenate(parts) for kind, parts in kinds.items()}
            for method, kinds in errors.items()
        },
        {kind: np.array(values) for kind, values in counts.items()},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognition:
    """Of one method: the share that is recognised, 0 to 1, and PSNR where the pose is back.

    Attributes:
        recognised: None where it cannot be otherwise than it is, as of other places.
        parts: PSNR of the frames on the way, of parts that were in view before and of others.
    """

    recognised: Estimate | None
    psnr_db: Estimate
    parts: SeenPsnr | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Revisits:
    """A rung of one world, by method, and what keeping the states is worth, dream by dream."""

    methods: dict[str, Recognition]
    kept_over_emptied_db: Estimate | None


def summarize_revisits(scores: RevisitScores) -> Revisits:
    """Return shares and means over the revisits; intervals come from resampling episodes."""
    names, methods = scores.names, {}
    for method, values in scores.psnr_db.items():
        hits, errors = scores.is_recognised.get(method), scores.errors.get(method)
        methods[method] = Recognition(
            recognised=None if hits is None else rate(hits, names),
            psnr_db=bootstrap(values, names),
            parts=psnr_of_parts(errors, scores.counts, names) if errors else None,
        )
    change = None
    if EMPTIED in scores.psnr_db:
        change = bootstrap(scores.psnr_db[KEPT] - scores.psnr_db[EMPTIED], names)
    return Revisits(methods=methods, kept_over_emptied_db=change)

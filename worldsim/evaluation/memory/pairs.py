"""Paired histories: rollouts from the same present with another past, and whose frames they show.

Two episodes have the same actions, but what they saw differs. At the turning point each is given the memory
of the other and goes back by the same actions. The frame that it then draws is nearer to the real frame of
one of them: of the one whose memory it has, if memory is what it draws from.
"""

# B batch, N episodes, K frames of the way back

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from tqdm import tqdm

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.memory.interventions import can_intervene, swap, zero
from worldsim.evaluation.memory.recall import RecallSettings
from worldsim.evaluation.metrics import sequence_psnr
from worldsim.evaluation.rollout import generate, join, progress, rows_that_fit, watch, watch_until
from worldsim.evaluation.statistics import Estimate, bootstrap_known
from worldsim.simulator import Simulator

ALIKE_DB = 40.0
"""Real frames of two episodes that are so near to each other tell nothing apart."""


class Exchange(StrEnum):
    """What is exchanged between the two episodes of a pair at the turning point.

    `STATE` is the recurrent states and the path; the window and the frame before stay. `HISTORY` is all that
    is remembered of the frames before the present one, which is then watched; every kind of world has that.
    `NONE` and `EMPTY` are controls: the own memory, whose past is the own one; emptied states, which follow
    neither past but by chance.
    """

    STATE = "state"
    HISTORY = "history"
    NONE = "none"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class PairScores:
    """How near drawn frames are to the real frames of two pasts, in dB.

    Attributes:
        names: Of the pairs, one for each of the N dreams: what the bootstrap resamples.
        to_past: `[N, K]` by exchange: to the past whose memory a dream has; with `NONE` and `EMPTY` to the
            other episode's, too, so that only an exchange can bring it near.
        to_present: `[N, K]`: to that of the episode whose present it has.
        between: `[N, K]`, how near the real frames of the two are to each other.
    """

    names: list[str]
    to_past: dict[Exchange, np.ndarray]
    to_present: dict[Exchange, np.ndarray]
    between: np.ndarray


def find_pairs(moves: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return pairs of episodes whose actions `[T, A]` are the same, each episode in one pair at most."""
    waiting: dict[bytes, int] = {}
    pairs = []
    for row, actions in enumerate(moves):
        first = waiting.pop(actions.tobytes(), None)
        if first is None:
            waiting[actions.tobytes()] = row
        else:
            pairs.append((first, row))
    return pairs


def paired(returns: ReturnSet) -> ReturnSet:
    """Return the episodes of a set that have a partner with the same actions, partners side by side.

    Raises:
        WorldError: If there are none.
    """
    pairs = find_pairs(returns.moves())
    if not pairs:
        raise WorldError(f"no two episodes of {returns.folder} have the same actions, so none are paired")
    return returns.only([row for pair in pairs for row in pair])


def measure_pairs(simulator: Simulator, pairs: ReturnSet, settings: RecallSettings) -> PairScores:
    """Exchange what the two episodes of each pair remember, and see whose frames are drawn.

    Partners are side by side (`paired`).
    """
    exchanges = [Exchange.NONE, Exchange.HISTORY]
    if can_intervene(simulator):
        exchanges += [Exchange.STATE, Exchange.EMPTY]
    steps = pairs.turn + len(exchanges) * pairs.gap + 1  # the present is watched once more
    rows = rows_that_fit([simulator], pairs.turn + pairs.gap, settings.batch_size)
    with progress(f"pairs {pairs.gap}", steps * len(pairs)) as bar:
        batches = pairs.batches(rows, multiple=2)
        return join([_measure_batch(simulator, batch, exchanges, settings, bar) for batch in batches])


def _measure_batch(
    simulator: Simulator,
    batch: ReturnBatch,
    exchanges: Sequence[Exchange],
    settings: RecallSettings,
    bar: tqdm,
) -> PairScores:
    partner = torch.arange(len(batch.names)) ^ 1
    real = batch.real.to(simulator.frames_device)
    other = real[partner.to(real.device)]
    before = watch_until(simulator, batch.clips, batch.turn - 1, settings.seed, bar)
    present = range(batch.turn, batch.turn + 1)
    state = watch(simulator, before, batch.clips, present, bar)
    to_past, to_present = {}, {}
    for exchange in exchanges:
        begin = state
        if exchange == Exchange.STATE:
            begin = swap(state, partner)
        elif exchange == Exchange.HISTORY:
            # The noise stays each dream's own: all exchanges are drawn from the same.
            other_past = replace(before.rows(partner.tolist()), seed=before.seed)
            begin = watch(simulator, other_past, batch.clips, present, bar)
        elif exchange == Exchange.EMPTY:
            begin = zero(state)
        frames = generate(simulator, begin, batch.actions, bar)
        to_past[exchange], to_present[exchange] = (
            sequence_psnr(frames, past).cpu().numpy() for past in (other, real)
        )
    names = [f"{batch.names[row & ~1]} and {batch.names[row | 1]}" for row in range(len(batch.names))]
    return PairScores(names, to_past, to_present, sequence_psnr(other, real).cpu().numpy())


@dataclass(frozen=True, slots=True)
class Following:
    """Share of dreams that are nearer to the other past, 0 to 1; None where the pasts look alike.

    Of the last frame, as is the margin; on average over the way back; and of each of its frames, `[K]`.
    """

    final: Estimate | None
    average: Estimate | None
    margin_db: Estimate | None
    curve: list[float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSummary:
    """Paired histories by `Exchange`; in `alike_share` of the frames, 0 to 1, the pasts look alike."""

    num_pairs: int
    alike_share: float
    none: Following
    history: Following
    state: Following | None = None
    empty: Following | None = None


def summarize_pairs(scores: PairScores) -> PairSummary:
    """Return what share of dreams follows the other past; frames at which both look alike do not count."""
    counts, names, found = scores.between < ALIKE_DB, scores.names, {}
    for exchange, to_past in scores.to_past.items():
        nearer = to_past - scores.to_present[exchange]
        found[str(exchange)] = Following(
            final=_share(nearer[:, -1:] > 0, counts[:, -1:], names),
            average=_share(nearer > 0, counts, names),
            margin_db=_share(nearer[:, -1:], counts[:, -1:], names),
            curve=_column_means(nearer > 0, counts),
        )
    return PairSummary(num_pairs=len(set(names)), alike_share=float(1 - counts.mean()), **found)


def _share(values: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> Estimate | None:
    """Return the mean over the dreams with frames that count; None where no dream has one."""
    with np.errstate(invalid="ignore"):
        return bootstrap_known(np.where(counts, values, 0).sum(axis=1) / counts.sum(axis=1), names)


def _column_means(values: np.ndarray, counts: np.ndarray) -> list[float | None]:
    totals = counts.sum(axis=0)
    sums = np.where(counts, values, 0).sum(axis=0)
    return [round(float(s / t), 4) if t else None for s, t in zip(sums, totals, strict=True)]

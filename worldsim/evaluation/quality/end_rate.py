"""Termination rate of generated rollouts against the game's.

A frame that the world draws once, after recorded ones, says little of that: small mistakes of many frames add
up to a player who dies without a hit. Here a dream goes on by itself under the recorded actions, for as many
frames as the game went on under them, and the ends of both are counted.
"""

# B dreams, T frames

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from worldsim.data.episodes import Episode
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings, start_of
from worldsim.evaluation.quality.outcome import TOLERANCE
from worldsim.evaluation.quality.outcome_predictions import head_outputs
from worldsim.outcome import OutcomeConfig
from worldsim.simulator import Simulator


@dataclass(frozen=True, slots=True)
class DreamtEpisode:
    """A dream along a recorded piece of play.

    Attributes:
        logits: `[T]` fp64 of an end, before calibration, of the frames that were drawn.
        ended: Whether the game ended there; the last `TOLERANCE` frames are then drawn after its end.
    """

    logits: np.ndarray
    ended: bool


def dream_along(
    simulator: Simulator,
    recordings: Recordings,
    *,
    num_dreams: int,
    context_frames: int,
    horizon: int,
    batch_size: int,
    seed: int = 0,
) -> list[DreamtEpisode]:
    """Dream along recorded pieces of play that begin anywhere, up to `horizon` frames or until the game ends.

    A dream watches `context_frames` first; after an end it draws `TOLERANCE` more, with nothing pressed.
    There are fewer than `num_dreams` where there are not so many places.

    Raises:
        WorldError: If no episode is long enough.
    """
    clips = recordings.choose(context_frames + 1, num_dreams, seed)
    dreamt: list[DreamtEpisode] = []
    for first in tqdm(range(0, len(clips), batch_size), desc="dreams"):
        chunk = clips[first : first + batch_size]
        pieces = [(recordings.read(clip.episode), clip.begin) for clip in chunk]
        seeds = [seed + first + row for row in range(len(chunk))]
        dreamt += _dream_batch(simulator, pieces, seeds, context_frames, horizon)
    return dreamt


def ends_along(
    recordings: Recordings, *, num_dreams: int, context_frames: int, horizon: int, seed: int = 0
) -> list[bool]:
    """Return of each place that `dream_along` would choose whether the game ends there; computes no frame.

    Raises:
        WorldError: If no episode is long enough.
    """
    tables, ended = recordings.tables(), []
    for clip in recordings.choose(context_frames + 1, num_dreams, seed):
        terminated, now = tables[clip.episode].terminated, clip.begin + context_frames
        assert terminated is not None, "was looked for"
        ended.append(bool(terminated[now : now + horizon].any()))
    return ended


@torch.inference_mode()
def _dream_batch(
    simulator: Simulator,
    pieces: Sequence[tuple[Episode, int]],
    seeds: Sequence[int],
    context_frames: int,
    horizon: int,
) -> list[DreamtEpisode]:
    starts, actions, lengths, ended = [], [], [], []
    for episode, begin in pieces:
        now = begin + context_frames
        starts.append(start_of(episode, begin, now, simulator.world))
        length = min(horizon, len(episode) - now)
        assert episode.terminated is not None, "was looked for"
        has_ended = bool(episode.terminated[now : now + length].any())
        pressed = np.zeros((horizon + TOLERANCE, episode.actions.shape[1]), dtype=np.int64)
        pressed[:length] = episode.actions[now - 1 : now - 1 + length]
        actions.append(pressed)
        lengths.append(length + (TOLERANCE if has_ended else 0))
        ended.append(has_ended)
    state, pressed = simulator.start(starts, seeds), torch.from_numpy(np.stack(actions))
    columns = []
    for index in range(max(lengths)):
        state = simulator.step(state, pressed[:, index])[1]
        columns.append(head_outputs(simulator, state)[1])
    logits = torch.stack(columns, dim=1).cpu().numpy()
    return [
        DreamtEpisode(logits[row, :length], has_ended)
        for row, (length, has_ended) in enumerate(zip(lengths, ended, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class EndRates:
    """Ends a frame, of the game and of the dreams beside it, and their numbers; nobody dies a second time."""

    game: float
    dreams: float
    num_game: int
    num_dreams: int


def end_rates(dreamt: Sequence[DreamtEpisode], meaning: OutcomeConfig) -> EndRates:
    """Return how often game and dreams end, where the heads' numbers mean this."""
    num_game = sum(one.ended for one in dreamt)
    game_frames = sum(len(one.logits) - TOLERANCE * one.ended for one in dreamt)
    num_dreams = dream_frames = 0
    for probabilities in (_probabilities(one, meaning) for one in dreamt):
        over = np.flatnonzero(probabilities >= meaning.end_threshold)
        num_dreams += bool(len(over))
        dream_frames += int(over[0]) + 1 if len(over) else len(probabilities)
    return EndRates(num_game / game_frames, num_dreams / dream_frames, num_game, num_dreams)


def match_rate(dreamt: Sequence[DreamtEpisode], meaning: OutcomeConfig) -> OutcomeConfig:
    """Return the calibration with a low threshold at which dreams end no more often than the game.

    From the top down it ends one more dream at a time, until they would end too often; it lies half-way to
    the next probability below. Where the game never ended, dreams never end either.

    Raises:
        WorldError: If too many dreams end with certainty.
    """
    peaks = np.unique([_probabilities(one, meaning).max() for one in dreamt])[::-1].astype(np.float64)
    bounds = (peaks + np.append(peaks[1:], 0.0)) / 2
    best = replace(meaning, end_threshold=min(1.0, float(1 + peaks[0]) / 2))
    for threshold in bounds:
        tried = replace(meaning, end_threshold=max(float(threshold), 1e-6))
        rates = end_rates(dreamt, tried)
        if rates.dreams > rates.game:
            break
        best = tried
    if (rates := end_rates(dreamt, best)).dreams > rates.game:
        raise WorldError(
            f"{rates.num_dreams} of {len(dreamt)} dreams end for certain, the game in {rates.num_game} of "
            "these places: no threshold tells them apart, the world needs training"
        )
    return best


def _probabilities(one: DreamtEpisode, meaning: OutcomeConfig) -> np.ndarray:
    logits = torch.from_numpy(one.logits)
    return meaning.decode(torch.zeros_like(logits), logits)[1].numpy()

"""Predictions of rewards and ends for recorded episodes, frame by frame."""

# B episodes at a time, T frames

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.data.episodes import Episode
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings, start_of
from worldsim.evaluation.quality.outcome import CalibratedEpisode
from worldsim.outcome import OutcomeConfig
from worldsim.simulator import Simulator
from worldsim.state import WorldState

GIVEN, DRAWN = "given", "drawn"
"""Outcomes of the recorded frame; or of the frame that the world draws in its place, as in play."""
DECODED_BYTES = 2**31
"""Of the episodes of a batch, at most: they are decoded whole, and a minute of play is 60 MB."""
HeadOutputs = tuple[Tensor, Tensor]
"""Rewards in units of training and logits of an end, `[B]` fp64 each, on the world's device."""


@dataclass(frozen=True, slots=True)
class EpisodePredictions:
    """Outputs of a world's outcome heads for an episode's frames but the first, before calibration.

    Attributes:
        rewards: `[T]`, as the game gave them.
        ends: `[T]` bool, with which frame the game ended.
        predicted_rewards: `[T]` fp64 on the CPU, in units of training.
        logits: `[T]` fp64 on the CPU, of an end, before calibration.
    """

    name: str
    rewards: np.ndarray
    ends: np.ndarray
    predicted_rewards: Tensor
    logits: Tensor

    def calibrated(self, meaning: OutcomeConfig) -> CalibratedEpisode:
        """Return the calibrated predictions, rounded as in play."""
        rewards, probabilities = meaning.decode(self.predicted_rewards, self.logits).numpy()
        return CalibratedEpisode(self.name, self.rewards, rewards, self.ends, probabilities)


def missing_outcome_requirements(simulator: Simulator, recordings: Recordings) -> str | None:
    """Return what keeps a world's outcome heads from being measured, in one sentence; None if nothing."""
    world = simulator.world.config
    if world.outcome is None:
        return f"world {world.name!r} has no outcome heads: it says nothing of rewards and ends"
    for reference, table in zip(recordings.episodes, recordings.tables(), strict=True):
        if table.rewards is None or table.terminated is None:
            return f"{reference.folder / reference.name}.jsonl does not record both reward and terminated"
    return None


def predict_recordings(
    simulator: Simulator, recordings: Recordings, *, batch_size: int, with_drawn: bool, seed: int = 0
) -> dict[str, list[EpisodePredictions]]:
    """Return the outputs of a world's outcome heads for every frame but the first of all episodes.

    What is remembered is always what was recorded. The last frame of an episode that ended repeats the one
    before it where a game has no picture any more, and a world can go by that; what it draws itself does not
    give the end away. With `with_drawn` also for the frames that the world draws in their place, from noise
    of the seed. Where episodes are long, fewer than `batch_size` are shown at a time.

    Returns:
        The episodes in order, for `GIVEN` and, if asked for, `DRAWN`.

    Raises:
        WorldError: If the world has no outcome heads, or the recordings lack rewards or ends.
    """
    if problem := missing_outcome_requirements(simulator, recordings):
        raise WorldError(problem)
    # Like lengths together: a batch runs as long as its longest episode.
    order = [e for e in np.argsort(recordings.lengths, kind="stable") if recordings.lengths[e] > 1]
    largest = max(recordings.lengths) * recordings.size[0] * recordings.size[1] * 3
    at_a_time = min(batch_size, max(1, DECODED_BYTES // largest))
    kinds = (GIVEN, DRAWN)[: 1 + with_drawn]
    predictions: dict[str, dict[int, EpisodePredictions]] = {kind: {} for kind in kinds}
    total = sum(recordings.lengths[e] - 1 for e in order)
    with tqdm(total=total, desc="outcomes", unit="frame") as bar:
        for begin in range(0, len(order), at_a_time):
            numbers = [int(number) for number in order[begin : begin + at_a_time]]
            episodes = [recordings.episodes[number].read(size=recordings.size) for number in numbers]
            seeds = [seed + number for number in numbers]
            for kind, outputs in _predict_batch(simulator, episodes, seeds, with_drawn, bar).items():
                for row, (number, episode) in enumerate(zip(numbers, episodes, strict=True)):
                    predictions[kind][number] = _episode_of(episode, outputs, row)
    return {kind: [found[number] for number in sorted(found)] for kind, found in predictions.items()}


@torch.inference_mode()
def _predict_batch(
    simulator: Simulator, episodes: Sequence[Episode], seeds: Sequence[int], with_drawn: bool, bar: tqdm
) -> dict[str, HeadOutputs]:
    """Return the outputs for each frame after the first, `[T, B]` each; after a row's last it is repeated."""
    state = simulator.start([start_of(episode, 0, 1, simulator.world) for episode in episodes], seeds)
    outputs: dict[str, list[HeadOutputs]] = {kind: [] for kind in (GIVEN, DRAWN)[: 1 + with_drawn]}
    for index in range(1, max(map(len, episodes))):
        frames = _at(index, [episode.frames for episode in episodes])
        actions = _at(index - 1, [episode.actions for episode in episodes])
        if with_drawn:
            outputs[DRAWN].append(head_outputs(simulator, simulator.step(state, actions)[1]))
        state = simulator.commit_frames(state, frames, actions)
        outputs[GIVEN].append(head_outputs(simulator, state))
        bar.update(sum(index < len(episode) for episode in episodes))
    found = {}
    for kind, columns in outputs.items():
        rewards, logits = zip(*columns, strict=True)
        found[kind] = torch.stack(rewards).cpu(), torch.stack(logits).cpu()
    return found


def head_outputs(simulator: Simulator, state: WorldState) -> HeadOutputs:
    """Return the outputs of a world's outcome heads for the frames that were remembered last."""
    heads, summary = simulator.world.denoiser.outcome, state.memory.summary
    assert heads is not None and summary is not None, "was looked for"
    rewards, logits = heads(summary)
    return rewards.double(), logits.double()


def _at(index: int, rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([row[min(index, len(row) - 1)] for row in rows]))


def _episode_of(episode: Episode, outputs: HeadOutputs, row: int) -> EpisodePredictions:
    assert episode.rewards is not None
    assert episode.terminated is not None
    rewards, logits = (values[: len(episode) - 1, row].clone() for values in outputs)
    return EpisodePredictions(episode.name, episode.rewards[1:], episode.terminated[1:], rewards, logits)

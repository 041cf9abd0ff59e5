"""Show a world recorded episodes, step by step, and note what it says each frame brought."""

# B episodes at a time, T frames

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.data.episodes import Episode
from worldsim.errors import WorldError
from worldsim.evaluation.clips import Recordings
from worldsim.evaluation.outcome import JudgedEpisode
from worldsim.outcome import Outcome
from worldsim.simulator import Simulator
from worldsim.starts import Start

GIVEN, DRAWN = "given", "drawn"
"""The recorded frame is what is judged; or the frame that the world draws in its place, as in play."""
EPISODES_AT_A_TIME = 16
"""At most: whole episodes are decoded, and an episode of a minute is 60 MB."""


def why_not_judged(simulator: Simulator, recordings: Recordings) -> str | None:
    """Return what keeps a world's outcome heads from being measured, in one sentence; None if nothing."""
    world = simulator.world.config
    if world.outcome is None:
        return f"world {world.name!r} has no outcome heads: it says nothing of rewards and ends"
    for reference, table in zip(recordings.episodes, recordings.tables(), strict=True):
        if table.rewards is None or table.terminated is None:
            return f"{reference.folder / reference.name}.jsonl does not record both reward and terminated"
    return None


def judge_recordings(
    simulator: Simulator,
    recordings: Recordings,
    *,
    batch_size: int,
    with_drawn: bool,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, list[JudgedEpisode]]:
    """Judge every frame but the first of all episodes.

    What is remembered is always what was recorded. The last frame of an episode that ended repeats the one
    before it where a game has no picture any more, and a world can go by that; what it draws itself does not
    give the end away.

    Args:
        simulator: Of a world with outcome heads.
        recordings: With rewards and ends.
        batch_size: Episodes at a time.
        with_drawn: Whether to judge also the frames that the world draws.
        seed: Of the noise they are drawn from.
        show_progress: Show a progress bar.

    Returns:
        The episodes in order, for `GIVEN` and, if asked for, `DRAWN`.

    Raises:
        WorldError: If the world has no outcome heads, or the recordings lack rewards or ends.
    """
    if problem := why_not_judged(simulator, recordings):
        raise WorldError(problem)
    # Like lengths together: a batch runs as long as its longest episode.
    order = [e for e in np.argsort(recordings.lengths, kind="stable") if recordings.lengths[e] > 1]
    at_a_time = min(batch_size, EPISODES_AT_A_TIME)
    judged: dict[str, dict[int, JudgedEpisode]] = {}
    total = sum(recordings.lengths[e] - 1 for e in order)
    with tqdm(total=total, desc="outcomes", unit="frame", disable=not show_progress) as bar:
        for begin in range(0, len(order), at_a_time):
            numbers = [int(number) for number in order[begin : begin + at_a_time]]
            episodes = [recordings.episodes[number].read(size=recordings.size) for number in numbers]
            seeds = [seed + number for number in numbers]
            for kind, outcomes in _judge_batch(simulator, episodes, seeds, with_drawn, bar).items():
                for row, (number, episode) in enumerate(zip(numbers, episodes, strict=True)):
                    judged.setdefault(kind, {})[number] = _episode_of(episode, outcomes, row)
    return {kind: [found[number] for number in sorted(found)] for kind, found in judged.items()}


def _judge_batch(
    simulator: Simulator, episodes: Sequence[Episode], seeds: Sequence[int], with_drawn: bool, bar: tqdm
) -> dict[str, list[Outcome]]:
    """Return the outcome of each frame after the first; after a row's last frame it is repeated."""
    starts = [
        Start(e.name, torch.from_numpy(e.frames[:1]), torch.from_numpy(e.actions[:1])) for e in episodes
    ]
    state = simulator.start(starts, seeds)
    said: dict[str, list[Outcome]] = {GIVEN: []} | ({DRAWN: []} if with_drawn else {})

    def note(kind: str, outcome: Outcome | None) -> None:
        assert outcome is not None
        said[kind].append(outcome)

    for index in range(1, max(map(len, episodes))):
        frames = _at(index, [episode.frames for episode in episodes])
        actions = _at(index - 1, [episode.actions for episode in episodes])
        if with_drawn:
            note(DRAWN, simulator.outcome(simulator.step(state, actions)[1]))
        state = simulator.commit_frames(state, frames, actions)
        note(GIVEN, simulator.outcome(state))
        bar.update(sum(index < len(episode) for episode in episodes))
    return said


def _at(index: int, rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([row[min(index, len(row) - 1)] for row in rows]))


def _episode_of(episode: Episode, outcomes: Sequence[Outcome], row: int) -> JudgedEpisode:
    assert episode.rewards is not None
    assert episode.terminated is not None
    kept = outcomes[: len(episode) - 1]
    return JudgedEpisode(
        name=episode.name,
        rewards=episode.rewards[1:],
        judged_rewards=np.array([float(outcome.reward[row]) for outcome in kept]),
        ends=episode.terminated[1:],
        probabilities=np.array([float(outcome.end[row]) for outcome in kept]),
    )

"""Situations in labelled recordings: frames at which something can be asked of a world.

Labels, poses and what was pressed tell where they are; the recording also tells what the game made of them.
"""

# N situations, T frames of an episode, K frames that follow, A action axes

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Clip, ClipBatch, Recordings, pick
from worldsim.games.events import Event, Measures, Sign

STILL = 1.0
"""Of the game's units a frame: who moves less is stopped."""
PUSHED_BEFORE = 4
"""Frames for which a wall has stopped the player already, when a push is measured."""
SLID = 4.0
"""Of the game's units: who has moved further than this since a push began slides along what it pushes."""
WALKED, AHEAD = 5.0, 0.9
"""Of the game's units a frame, and of the way's length along where it leads: who is faster walks freely."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A frame of an episode, by their numbers, and whether what is asked for happened in the game."""

    episode: int
    frame: int
    happened: bool = True


class LabelledRecordings:
    """Recordings of a game whose labels, poses and actions tell situations apart.

    Args:
        recordings: The episodes.
        context_frames: Frames that a dream watches, the situation's own included.

    Attributes:
        columns: What is known of each episode, by name.

    Raises:
        WorldError: If labels or poses are not recorded.
    """

    def __init__(self, recordings: Recordings, context_frames: int) -> None:
        self.recordings, self.context_frames = recordings, context_frames
        self.layout: ActionLayout = recordings.info.actions
        self.tables, self.columns = recordings.tables(), []
        for reference, table in zip(recordings.episodes, self.tables, strict=True):
            if table.labels is None or table.poses is None:
                raise WorldError(
                    f"{recordings.folder}: {reference.name} records no labels, or no poses, by which "
                    "situations are found; record it again with training.collect"
                )
            named = dict(zip(recordings.info.labels, table.labels.T, strict=True))
            poses = dict(zip(("x", "y", "angle"), table.poses.T.astype(np.float64), strict=True))
            pressed = {axis.name: table.actions[:, n] for n, axis in enumerate(self.layout.axes)}
            self.columns.append(named | poses | pressed)

    def value_of(self, axis: str, button: str) -> tuple[int, int]:
        """Return the number of an axis and of its button."""
        number = [one.name for one in self.layout.axes].index(axis)
        return number, self.layout.axes[number].buttons.index(button) + 1

    def events(self, event: Event) -> list[Situation]:
        """Return where an event's button is pressed as it can do what it does."""
        found = []
        axis, value = self.value_of(event.axis, event.button)
        for number, (table, columns) in enumerate(zip(self.tables, self.columns, strict=True)):
            pressed = table.actions[:, axis] == value
            total = np.concatenate([[0], np.cumsum(pressed)])
            happens = np.concatenate([[0], np.cumsum(event.happens(columns))])
            for frame in np.flatnonzero(pressed & event.given(columns)).tolist():
                last = frame + event.within
                if frame < max(self.context_frames - 1, event.quiet) or last >= len(pressed):
                    continue
                happened = happens[last + 1] > happens[frame + 1]
                is_fresh = not event.quiet or total[frame] == total[frame - event.quiet]
                if is_fresh and (happened or not event.is_certain):
                    found.append(Situation(number, frame, bool(happened)))
        return found

    def pushes(self, measures: Measures, num_frames: int) -> list[Situation]:
        """Return where the player has walked into something and pushes straight on for `num_frames`."""

        def stands(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> bool:
            step = np.hypot(np.diff(x), np.diff(y))
            return bool(step.max() < STILL and np.hypot(x - x[0], y - y[0]).max() < SLID)

        return self._held(measures, num_frames, PUSHED_BEFORE, stands)

    def walks(self, measures: Measures, num_frames: int) -> list[Situation]:
        """Return where the player walks straight ahead for `num_frames`, and nothing stops it."""

        def walks(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> bool:
            step, heading = np.hypot(np.diff(x), np.diff(y)), np.deg2rad(angle[0])
            along = (x[-1] - x[0]) * np.cos(heading) + (y[-1] - y[0]) * np.sin(heading)
            return bool(step.mean() > WALKED and step.min() > STILL and along > AHEAD * step.sum())

        return self._held(measures, num_frames, 0, walks)

    def changes(self, measures: Measures, num_frames: int) -> list[Situation]:
        """Return where the meter is another `num_frames` later."""
        found = []
        for number, columns in enumerate(self.columns):
            meter = np.clip(columns[measures.meter.label], 0, 100)
            change = np.abs(meter[num_frames:] - meter[:-num_frames]) if len(meter) > num_frames else []
            frames = np.flatnonzero(np.asarray(change) >= measures.meter.least_change)
            found += [
                Situation(number, frame) for frame in frames.tolist() if frame >= self.context_frames - 1
            ]
        return found

    def anywhere(self) -> list[Situation]:
        """Return all frames that something follows."""
        return [
            Situation(number, frame)
            for number, table in enumerate(self.tables)
            for frame in range(self.context_frames - 1, len(table.actions) - 1)
        ]

    def sign(self, sign: Sign, *, shown: bool) -> list[Situation]:
        """Return the frames that show a sign, or hide it, but for the first of an episode."""
        find = sign.is_shown if shown else sign.is_hidden
        return [
            Situation(number, frame)
            for number, columns in enumerate(self.columns)
            for frame in np.flatnonzero(find(columns)).tolist()
            if frame
        ]

    def names(self, situations: Sequence[Situation]) -> list[str]:
        """Return the names of their episodes."""
        return [self.recordings.episodes[one.episode].name for one in situations]

    def batches(
        self, situations: Sequence[Situation], num_frames: int, batch_size: int
    ) -> Iterator[tuple[ClipBatch, Tensor, Tensor]]:
        """Decode situations: clips of the context, and the actions and the real frames that follow.

        Yields:
            Clips; actions `[B, K, A]` int64; frames `[B, K, H, W, 3]` uint8. After the end of an episode
            nothing is pressed and the last frame repeats.
        """
        for first in range(0, len(situations), batch_size):
            chosen = situations[first : first + batch_size]
            clips = [Clip(one.episode, one.frame - self.context_frames + 1) for one in chosen]
            episodes = [self.recordings.read(one.episode) for one in chosen]
            batch = ClipBatch.of(clips, first, episodes, self.context_frames)
            actions, frames = [], []
            for one, episode in zip(chosen, episodes, strict=True):
                follow = np.minimum(np.arange(one.frame + 1, one.frame + 1 + num_frames), len(episode) - 1)
                frames.append(episode.frames[follow])
                # The last row of an episode presses nothing.
                actions.append(self.tables[one.episode].actions[np.maximum(follow - 1, one.frame)])
                ended = one.frame + np.arange(num_frames) >= len(episode) - 1
                actions[-1][ended] = 0
            yield batch, torch.from_numpy(np.stack(actions)), torch.from_numpy(np.stack(frames))

    def _held(
        self,
        measures: Measures,
        num_frames: int,
        before: int,
        fits: Callable[[np.ndarray, np.ndarray, np.ndarray], bool],
    ) -> list[Situation]:
        axis, value = self.value_of(*measures.forward)
        found = []
        for number, (table, columns) in enumerate(zip(self.tables, self.columns, strict=True)):
            held = np.concatenate([[0], np.cumsum(table.actions[:, axis] == value)])
            pose = [columns[name] for name in ("x", "y", "angle")]
            turned = np.concatenate([[0], np.cumsum(np.diff(columns["angle"]) != 0)])
            for frame in range(max(self.context_frames - 1, before), len(turned) - num_frames):
                begin, end = frame - before, frame + num_frames
                is_straight = held[end] - held[begin] == end - begin and turned[end] == turned[begin]
                if is_straight and fits(*(each[begin : end + 1] for each in pose)):
                    found.append(Situation(number, frame))
        return found


def spread(situations: Sequence[Situation], count: int, seed: int) -> list[Situation]:
    """Choose some situations at random, from as many episodes as there are: one of each first.

    Raises:
        ValueError: If there is none.
    """
    if not situations:
        raise ValueError("there is no situation to choose from")
    by_episode: dict[int, list[Situation]] = {}
    for one in pick(situations, len(situations), seed):
        by_episode.setdefault(one.episode, []).append(one)
    rng = np.random.default_rng(seed)
    for of_episode in by_episode.values():
        rng.shuffle(of_episode)  # type: ignore[arg-type] - a list of any kind
    chosen: list[Situation] = []
    depth = 0
    while len(chosen) < count and depth < max(map(len, by_episode.values())):
        layer = [each[depth] for each in by_episode.values() if len(each) > depth]
        rng.shuffle(layer)  # type: ignore[arg-type]
        chosen += layer[: count - len(chosen)]
        depth += 1
    return sorted(chosen, key=lambda one: (one.episode, one.frame))

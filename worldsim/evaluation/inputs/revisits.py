"""Revisits: pieces of recordings in which the player leaves a pose and comes back to it, by how it left.

Poses alone tell: it looks away in place and back, turns all around, or walks away and back.
"""

# B batch, T frames of an episode or a clip, K other places, A action axes, H W frame size

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.data.episodes import Episode, EpisodeTable
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Clip, ClipBatch, Recordings
from worldsim.evaluation.inputs.out_and_back import Tolerance
from worldsim.settings import check_settings, setting

REVISITS = "revisits"
"""Folder of recordings beside those that walk out and back, where there is one."""
MIN_REVISITS = 2
MAX_OUT = 200
"""Frames from where a pose is left to the turn, at most."""
WHOLE_TURN = 360.0
IsClear = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes frames and frames that were seen, both `[B, H, W, 3]`, and other places, `[B, K, H, W, 3]`; returns
whether the first are nearer to the second than to any of the third, `[B]` bool."""
FARTHEST = 0.995
"""Of the frames that are away by this share of the greatest angle or distance, the last one is the turn."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A way of leaving a pose.

    Attributes:
        turned: Least and greatest angle in degrees by which it turns in place; None where it walks away.
        comes_around: Whether it comes back by turning on, all around.
        frames: Least and greatest number of frames from the turn to when the pose is back.
        is_dreamt_whole: Whether a dream begins where the pose is left, and not at the turn.
    """

    turned: tuple[float, float] | None = None
    comes_around: bool = False
    frames: tuple[int, int] = (1, 200)
    is_dreamt_whole: bool = False


RUNGS: Mapping[str, Rung] = {
    "look-away-90": Rung((70, 110)),
    "look-away-180": Rung((160, 200)),
    "full-turn": Rung((340, 380), comes_around=True),
    "full-turn-dreamt": Rung((340, 380), comes_around=True, is_dreamt_whole=True),
    "walk-away-30": Rung(frames=(30, 99)),
    "walk-away-100": Rung(frames=(100, 200)),
}
"""From the easiest on. The turn is the frame that is farthest from the pose that was left."""


@dataclass(kw_only=True, slots=True)
class RevisitSettings:
    """What counts as the same pose, and as another place."""

    distance: float = setting(16.0, "How near the player comes back, in the game's units.", minimum=0)
    angle_degrees: float = setting(4.0, "How near to the heading of then.", minimum=0)
    leave_distance: float = setting(
        256.0,
        "How far the player walks away at least, in the game's units; also how far from a pose another place "
        "is, whatever its heading.",
        above=0,
    )
    view_degrees: float = setting(
        90.0,
        "Width of the picture: a heading that differs by as much is another place.",
        above=0,
        maximum=180,
    )
    context_frames: int = setting(16, "Real frames before the pose is left, at most.", minimum=0)
    num_others: int = setting(
        4, "Other places of the same episode that a dream is told from: chance is 1 in one more.", minimum=1
    )

    def __post_init__(self) -> None:
        check_settings(self, "consistency.revisits.")
        if self.leave_distance <= self.distance:
            raise WorldError(
                f"consistency.revisits.leave_distance must be above distance, {self.distance:g}, at which a "
                f"pose is the same, got {self.leave_distance:g}"
            )

    @property
    def tolerance(self) -> Tolerance:
        """Which poses count as the same."""
        return Tolerance(distance=self.distance, angle_degrees=self.angle_degrees)

    @property
    def chance(self) -> float:
        """Share of dreams, 0 to 1, that are recognised where a place is guessed."""
        return 1 / (self.num_others + 1)


@dataclass(frozen=True, slots=True)
class Revisit:
    """A pose that is left and comes back; all are frames of an episode.

    Attributes:
        episode: Its number.
        seen: The frame whose pose it is.
        turn: The last one that is watched, where the dream begins.
        back: The first one afterwards whose pose is that of `seen`.
        others: Frames of K other places.
    """

    episode: int
    seen: int
    turn: int
    back: int
    others: tuple[int, ...] = ()


def find_revisits(poses: np.ndarray, settings: RevisitSettings) -> dict[str, list[Revisit]]:
    """Return the revisits of each rung in an episode of poses `[T, 3]` (x, y, degrees), of episode 0.

    Those of a rung do not overlap.
    """
    found: dict[str, list[Revisit]] = {name: [] for name in RUNGS}
    headings = np.rad2deg(np.unwrap(np.deg2rad(poses[:, 2])))
    longest = MAX_OUT + max(rung.frames[1] for rung in RUNGS.values())
    for seen in range(len(poses) - 1):
        window = slice(seen, seen + 1 + longest)
        is_same = settings.tolerance.is_same(poses[window], poses[seen])
        left = int(is_same.argmin())
        if is_same[left] or not is_same[left:].any():
            continue
        length = left + int(is_same[left:].argmax()) + 1
        piece = slice(seen, seen + length)
        away = np.hypot(*(poses[piece, :2] - poses[seen, :2]).T)
        for name, turn in _rungs_of(away, headings[piece] - headings[seen], settings):
            if not found[name] or seen >= found[name][-1].back:
                found[name].append(Revisit(0, seen, seen + turn, seen + length - 1))
    return found


def _rungs_of(away: np.ndarray, turned: np.ndarray, settings: RevisitSettings) -> Iterator[tuple[str, int]]:
    """Yield the rungs that a way from a pose back to it is of, and the frame where a dream begins.

    For each of its frames it is given how far it is `away` and by what angle it is `turned`, whole turns
    included.
    """
    stays, widest = away.max() <= settings.distance, np.abs(turned).max()
    is_around = abs(turned[-1]) > WHOLE_TURN / 2
    off = np.abs((turned + WHOLE_TURN / 2) % WHOLE_TURN - WHOLE_TURN / 2) if stays else away
    farthest = int(np.flatnonzero(off >= FARTHEST * off.max())[-1])
    for name, rung in RUNGS.items():
        if rung.turned is None:
            fits = away.max() >= settings.leave_distance
        else:
            fits = stays and rung.turned[0] <= widest <= rung.turned[1] and rung.comes_around == is_around
        back = len(away) - 1 - farthest
        if fits and rung.frames[0] <= back <= rung.frames[1] and farthest <= MAX_OUT:
            yield name, 0 if rung.is_dreamt_whole else farthest


def choose_others(
    poses: np.ndarray, seen: int, settings: RevisitSettings, rng: np.random.Generator
) -> tuple[int, ...]:
    """Return frames of `num_others` places of an episode that are others than that of `seen`, and each other.

    They are all equally likely; there are fewer where the episode shows no more.
    """
    chosen: list[int] = []
    left = rng.permutation(np.flatnonzero(_is_elsewhere(poses, poses[seen], settings)))
    while len(left) and len(chosen) < settings.num_others:
        chosen.append(int(left[0]))
        left = left[_is_elsewhere(poses[left], poses[left[0]], settings)]
    return tuple(chosen)


def _is_elsewhere(poses: np.ndarray, pose: np.ndarray, settings: RevisitSettings) -> np.ndarray:
    turned = np.abs((poses[:, 2] - pose[2] + 180) % 360 - 180)
    is_far = np.hypot(*(poses[:, :2] - pose[:2]).T) >= settings.leave_distance
    return is_far | (turned >= settings.view_degrees)


@dataclass(frozen=True, slots=True)
class RevisitBatch:
    """Decoded revisits; those with most to watch come first.

    Attributes:
        clips: Frames and actions from the context to when the pose is back; what follows is padding.
        turn, back: `[B]` int64, frames of the clips.
        seen: `[B, H, W, 3]` uint8, the frame whose pose comes back.
        others: `[B, K, H, W, 3]` uint8, other places.
        poses: `[T, 3]` of each clip, without padding.
        game_seeds: Which game each was played in, None where it is not recorded.
        names: Of the episodes.
    """

    clips: ClipBatch
    turn: np.ndarray
    back: np.ndarray
    seen: Tensor
    others: Tensor
    poses: list[np.ndarray]
    game_seeds: list[int | None]
    names: list[str]


class RevisitSet:
    """The revisits of a folder of recordings, at most `count` of each rung, or all if it is 0, by a seed.

    Args:
        rungs: Those that are measured; none named is all.
        is_clear: Tells whether the real frame of when the pose is back is recognised; where it is not, no
            dream can be expected to be.

    Attributes:
        folder: Where they were recorded.
        source: Where the video came from.
        game: Name of the game.
        by_rung: Those to be measured, without the rungs of which there are fewer than 2.
        num_unclear: How many were left out of each rung because `is_clear` says no.
        summary: What was found, in words.

    Raises:
        WorldError: If no poses are recorded, or no pose comes back twice in the way of any rung.
    """

    def __init__(
        self,
        recordings: Recordings,
        settings: RevisitSettings,
        count: int,
        seed: int,
        *,
        rungs: Sequence[str] = (),
        is_clear: IsClear,
    ) -> None:
        self._recordings, self.settings, self.folder = recordings, settings, recordings.folder
        self.source, self.game = recordings.info.source, recordings.info.name
        self._tables = recordings.tables()
        found = self._find(seed)
        self.by_rung: dict[str, list[Revisit]] = {}
        self.num_unclear: dict[str, int] = {}
        for name in rungs or RUNGS:
            order = np.random.default_rng(seed).permutation(len(found[name]))
            clear, tried = self._choose([found[name][place] for place in order], count, is_clear)
            if len(clear) >= MIN_REVISITS:
                self.by_rung[name] = sorted(clear, key=lambda one: self._begin(one) - one.turn)
                self.num_unclear[name] = tried - len(clear)
        numbers = ", ".join(f"{name} {len(revisits)}" for name, revisits in found.items())
        self.summary = f"revisits in {len(self._tables)} episodes of {self.folder}: {numbers}"
        if not self.by_rung:
            raise WorldError(
                f"no pose of {self.folder} comes back as often as {MIN_REVISITS} times within "
                f"{settings.distance:g} units and {settings.angle_degrees:g} degrees in an episode that "
                f"shows {settings.num_others} other places (docs/consistency.md says how to record some)"
            )

    def _find(self, seed: int) -> dict[str, list[Revisit]]:
        if all(table.poses is None for table in self._tables):
            raise WorldError(f"{self.folder} records no poses, so what is seen again is not known")
        found: dict[str, list[Revisit]] = {name: [] for name in RUNGS}
        for episode, table in enumerate(self._tables):
            if table.poses is None:
                continue
            for name, revisits in find_revisits(table.poses, self.settings).items():
                for one in revisits:
                    rng = np.random.default_rng((seed, episode, one.seen))
                    others = choose_others(table.poses, one.seen, self.settings, rng)
                    if len(others) == self.settings.num_others:
                        found[name].append(Revisit(episode, one.seen, one.turn, one.back, others))
        return found

    def _choose(
        self, revisits: Sequence[Revisit], count: int, is_clear: IsClear
    ) -> tuple[list[Revisit], int]:
        """Return the first `count` revisits that are clear, all if it is 0, and how many were looked at."""
        clear: list[Revisit] = []
        for tried, one in enumerate(revisits):
            if count and len(clear) == count:
                return clear, tried
            shown = self._recordings.read(one.episode).frames[[one.back, one.seen, *one.others]]
            back, seen, *others = torch.from_numpy(shown)
            if is_clear(back[None], seen[None], torch.stack(others)[None]).all():
                clear.append(one)
        return clear, len(revisits)

    def _begin(self, one: Revisit) -> int:
        return max(0, one.seen - self.settings.context_frames)

    def names(self, rung: str) -> list[str]:
        """Return the names of the episodes of a rung's revisits."""
        return [self._recordings.episodes[one.episode].name for one in self.by_rung[rung]]

    def describe(self, rung: str) -> dict[str, Any]:
        """Return what is measured, as a JSON object; `frames` are those that are dreamt."""
        revisits = self.by_rung[rung]
        frames = np.array([one.back - one.turn for one in revisits])
        return {
            "count": len(revisits),
            "episodes": len(set(self.names(rung))),
            "places": [f"{name}:{one.seen}" for name, one in zip(self.names(rung), revisits, strict=True)],
            "frames": {
                "least": int(frames.min()),
                "median": float(np.median(frames)),
                "most": int(frames.max()),
            },
            "unclear": self.num_unclear[rung],
            "chance": self.settings.chance,
        }

    def num_frames(self, rung: str, *, watched_times: int, dreamt_times: int) -> int:
        """Return how many frames are watched and dreamt, so many times each."""
        return sum(
            watched_times * (one.turn - self._begin(one)) + dreamt_times * (one.back - one.turn)
            for one in self.by_rung[rung]
        )

    def batches(self, rung: str, batch_size: int) -> Iterator[RevisitBatch]:
        """Decode the revisits of a rung, `batch_size` at a time."""
        revisits = self.by_rung[rung]
        for first in range(0, len(revisits), batch_size):
            yield self._decode(revisits[first : first + batch_size], first)

    def _decode(self, chosen: Sequence[Revisit], first: int) -> RevisitBatch:
        begins = [self._begin(one) for one in chosen]
        length = max(one.back + 1 - begin for one, begin in zip(chosen, begins, strict=True))
        episodes: list[Episode] = [self._recordings.read(one.episode) for one in chosen]
        tables: list[EpisodeTable] = [self._tables[one.episode] for one in chosen]
        pieces = [slice(begin, one.back + 1) for one, begin in zip(chosen, begins, strict=True)]
        frames, actions = (
            torch.from_numpy(np.stack([_padded(values, length) for values in cut]))
            for cut in (
                [episode.frames[piece] for episode, piece in zip(episodes, pieces, strict=True)],
                [table.actions[piece] for table, piece in zip(tables, pieces, strict=True)],
            )
        )
        clips = [Clip(one.episode, begin) for one, begin in zip(chosen, begins, strict=True)]
        poses = [t.poses[piece] for t, piece in zip(tables, pieces, strict=True) if t.poses is not None]
        pairs = list(zip(episodes, chosen, strict=True))
        return RevisitBatch(
            ClipBatch(
                clips,
                first,
                frames,
                actions,
                torch.from_numpy(np.stack([_padded(path, length) for path in poses])),
            ),
            turn=np.array([one.turn for one in chosen]) - begins,
            back=np.array([one.back for one in chosen]) - begins,
            seen=torch.from_numpy(np.stack([episode.frames[one.seen] for episode, one in pairs])),
            others=torch.from_numpy(np.stack([episode.frames[list(one.others)] for episode, one in pairs])),
            poses=poses,
            game_seeds=[table.game_seed for table in tables],
            names=[self._recordings.episodes[one.episode].name for one in chosen],
        )


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Return values `[T, ...]` followed by the last of them, `[length, ...]`."""
    missing = length - len(values)
    return np.concatenate([values, values[-1:].repeat(missing, axis=0)])

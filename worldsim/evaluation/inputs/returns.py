"""Places that come back into view, by recorded poses, of which a world may still know."""

# T frames of an episode, N returns

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Clip, Recordings, pick
from worldsim.settings import check_settings, setting

MIN_RETURNS = 8
"""Fewer are not measured: their mean says more of these places than of a world."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReturnSettings:
    """What counts as a place that comes back."""

    distance: float = setting(32.0, "How near the player comes back, in the game's units.", above=0)
    angle_degrees: float = setting(4.0, "How near to the heading of then.", above=0)
    absence: int = setting(16, "Frames for which the place was out of view at least.", minimum=1)
    view_degrees: float = setting(
        90.0,
        "Width of the picture. A place counts as in view whenever the heading differs by less, wherever the "
        "player stands and whatever stands between: in doubt it was seen, and is no return.",
        above=0,
    )
    context_frames: int = setting(
        128, "Real frames before the place comes back into view; it was seen in one of them.", minimum=1
    )
    longest: int = setting(
        32, "Frames from the first glimpse of the place to when the pose is back, at most.", minimum=1
    )

    def __post_init__(self) -> None:
        check_settings(self, "returning places: ")
        if self.absence >= self.context_frames:
            raise WorldError(
                f"the absence of returning places, {self.absence} frames, must be less than the "
                f"{self.context_frames} frames watched: the place was seen in one of them"
            )
        if self.angle_degrees >= self.view_degrees:
            raise WorldError(
                f"the angle of returning places, {self.angle_degrees} degrees, must be less than the "
                f"{self.view_degrees} degrees that are in view"
            )


@dataclass(frozen=True, slots=True)
class Return:
    """A place that was seen, went out of view, and is seen again; all are frames of an episode.

    Attributes:
        seen: The last frame before the absence whose pose is that of `back`.
        left: The last frame before the absence that shows any of the place.
        enters: The first frame after it that does.
        back: The frame whose pose is that of `seen`.
    """

    seen: int
    left: int
    enters: int
    back: int


def find_returns(poses: np.ndarray, settings: ReturnSettings) -> list[Return]:
    """Return the places of an episode that come back, in order; each absence is counted once.

    Poses `[T, 3]` are x, y and heading in degrees. `context_frames` and `longest` are not looked at here.
    """
    found: list[Return] = []
    for back in range(len(poses)):
        distance = np.hypot(*(poses[:back, :2] - poses[back, :2]).T)
        turned = np.abs((poses[:back, 2] - poses[back, 2] + 180) % 360 - 180)
        is_seen = turned < settings.view_degrees
        is_same = (distance <= settings.distance) & (turned <= settings.angle_degrees)
        hidden = np.flatnonzero(~is_seen)
        enters = int(hidden[-1]) + 1 if len(hidden) else 0
        shown = np.flatnonzero(is_seen[:enters])
        if not len(shown) or (found and enters <= found[-1].back):
            continue
        left = int(shown[-1])
        same = np.flatnonzero(is_same[: left + 1])
        if len(same) and enters - 1 - left >= settings.absence:
            found.append(Return(int(same[-1]), left, enters, back))
    return found


@dataclass(frozen=True, slots=True)
class ReturnClip:
    """A place that comes back, and the frames around it that are decoded.

    Attributes:
        clip: `context_frames` before the place comes back into view, and `longest` from there on.
        place: Its frames, counted from the beginning of the clip.
    """

    clip: Clip
    place: Return


def clips_of(episode: int, num_frames: int, poses: np.ndarray, settings: ReturnSettings) -> list[ReturnClip]:
    """Return the returns of an episode, poses `[num_frames, 3]`, whose clips hold them, `seen` included."""
    clips = []
    for place in find_returns(poses, settings):
        begin = place.enters - settings.context_frames
        fits = begin >= 0 and place.enters + settings.longest <= num_frames
        if fits and place.seen >= begin and place.back < place.enters + settings.longest:
            moved = Return(*(frame - begin for frame in (place.seen, place.left, place.enters, place.back)))
            clips.append(ReturnClip(Clip(episode, begin), moved))
    return clips


def choose_returns(
    recordings: Recordings, settings: ReturnSettings, count: int, seed: int
) -> tuple[list[ReturnClip], str]:
    """Choose `count` places that come back at random, or fewer, in order; none where they would be too few.

    Returns them and a sentence that says what was found.
    """
    folder, tables = recordings.folder, recordings.tables()
    without = [e.name for e, table in zip(recordings.episodes, tables, strict=True) if table.poses is None]
    found: list[ReturnClip] = []
    for index, table in enumerate(tables):
        if table.poses is not None:
            found += clips_of(index, len(table.poses), table.poses, settings)
    if len(without) == len(tables):
        return [], f"{folder} records no poses, so which places come back is not known"
    summary = f"{len(found)} places of {len(tables) - len(without)} episodes of {folder} come back"
    if without:
        summary += f" ({len(without)} other episodes record no poses)"
    if len(found) < MIN_RETURNS:
        return [], f"{summary}: too few to measure, which takes {MIN_RETURNS}"
    return pick(found, count, seed), summary


def frames_of(places: Sequence[ReturnClip], name: str) -> Tensor:
    """Return one frame of each place, `[N]` int64, counted from the beginning of its clip."""
    return torch.tensor([getattr(place.place, name) for place in places])

"""Start moments of a world: places in held-out episodes where there is something to see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from training.data.latents import fixed_starts
from worldsim.data.sequences import EpisodeReference
from worldsim.starts import Start, visible_detail

PLACES_PER_START = 24
"""Places of which one becomes a start moment."""
FRAMES_BEFORE_END = 64
"""Least number of frames for which an episode goes on after a start moment, if there is such a place."""


def take_starts(
    references: Sequence[EpisodeReference], count: int, length: int, size: tuple[int, int]
) -> list[Start]:
    """Cut start moments out of episodes, scaled to `size` (height, width).

    Of several places beside each other the one is taken where most can be seen, and the groups are spread
    evenly over all episodes: a game that begins before a wall says nothing about itself. The end of an
    episode is near only where there is no other place.
    """
    lengths = [reference.num_frames for reference in references]
    ends = np.cumsum(lengths)
    places = fixed_starts(lengths, length, count * PLACES_PER_START)
    episodes = np.searchsorted(ends, places, side="right")
    firsts = places - (ends[episodes] - np.array(lengths)[episodes])
    found: dict[int, tuple[tuple[bool, int], Start]] = {}
    recording, number = None, -1
    for place, (episode, first) in enumerate(zip(episodes.tolist(), firsts.tolist(), strict=True)):
        if recording is None or episode != number:  # in order, so that each is decoded once
            recording, number = references[episode].read(size=size), episode
        last = first + length
        worth = last + FRAMES_BEFORE_END <= len(recording), visible_detail(recording.frames[last - 1])
        group = place // PLACES_PER_START
        if group not in found or worth > found[group][0]:
            # Copies: a view would keep the whole episode.
            frames, actions = recording.frames[first:last].copy(), recording.actions[first:last].copy()
            poses = None if recording.poses is None else torch.from_numpy(recording.poses[first:last].copy())
            start = Start(f"start-{group:02d}", torch.from_numpy(frames), torch.from_numpy(actions), poses)
            found[group] = worth, start
    return [start for _, start in found.values()]

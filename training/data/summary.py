"""Summary of a dataset folder: a short table of what its episodes hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldsim.actions import ActionLayout
from worldsim.data.episodes import EpisodeTable, list_episodes, read_table
from worldsim.storage.files import without_litter


def summarize(folder: Path, layout: ActionLayout, ending: str) -> str:
    """Return a short table: episodes, frames, returns, size on disk, and how often each button is held.

    Args:
        folder: Dataset folder.
        layout: Its buttons.
        ending: Of an episode that the game ended, a word for that: "died".
    """
    tables = [read_table(folder, name, layout) for name in list_episodes(folder)]
    actions = np.concatenate([table.actions[:-1] for table in tables])
    num_frames = sum(len(table.actions) for table in tables)
    size = sum(path.stat().st_size for path in without_litter(folder.iterdir()))
    ended = sum(bool(table.terminated is not None and table.terminated.any()) for table in tables)
    lines = [
        f"{folder}: {len(tables)} episodes ({ended} {ending}), {num_frames} frames, "
        f"{size / 2**20:.0f} MiB, {size / num_frames:.0f} bytes a frame",
        f"  {describe_returns(tables)}",
    ]
    width = max(6, *(len(axis.name) for axis in layout.axes)) + 1
    for column, axis in enumerate(layout.axes):
        shares = np.bincount(actions[:, column], minlength=len(axis.buttons) + 1) / len(actions)
        named = zip(("nothing", *axis.buttons), shares, strict=True)
        lines.append(
            f"  {axis.name:{width}}" + "  ".join(f"{button} {share:6.1%}" for button, share in named)
        )
    lines.append(f"  no button at all {(actions == 0).all(axis=1).mean():.1%}")
    return "\n".join(lines)


def describe_returns(tables: Sequence[EpisodeTable]) -> str:
    """Return means and standard deviations over episodes of their length and of the sum of their rewards."""
    steps = [len(table.actions) - 1 for table in tables]
    returns = [float(table.rewards.sum()) for table in tables if table.rewards is not None]
    spread = ", ".join(
        f"{what} {np.mean(values):.1f} +- {np.std(values, ddof=min(1, len(values) - 1)):.1f}"
        for what, values in (("steps", steps), ("return", returns))
        if values
    )
    return f"{spread} an episode"

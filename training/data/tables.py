"""Tables of episodes: actions, rewards, ends and poses; each file is parsed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from worldsim.actions import ActionLayout
from worldsim.data.episodes import EpisodeTable, read_table
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError

NO_OUTCOMES = (
    "{} records no reward or does not say whether the game ended ('reward' and 'terminated' on every line of "
    "its jsonl): a world with outcome heads has nothing to learn them from"
)

NO_POSES = (
    "{} records no poses ('pose' on every line of its jsonl): a world with memory_keys pose has nothing to "
    "turn its keys by"
)


def load_tables(references: Sequence[EpisodeReference]) -> list[EpisodeTable]:
    """Return what episodes record beside their frames; each file is parsed once, unless it changes.

    A training asks several times, and a million lines take as long as some hundred updates. What it gets is
    shared: it must not be written to.
    """
    return [_load_table(each.folder, each.name, each.info.actions, _changed(each)) for each in references]


def _changed(reference: EpisodeReference) -> tuple[int, int]:
    stat = (reference.folder / f"{reference.name}.jsonl").stat()
    return stat.st_mtime_ns, stat.st_size


@cache
def _load_table(folder: Path, name: str, actions: ActionLayout, changed: tuple[int, int]) -> EpisodeTable:
    return read_table(folder, name, actions)


def check_outcomes(references: Sequence[EpisodeReference]) -> list[EpisodeTable]:
    """Return what each episode records beside its frames; decodes nothing.

    Raises:
        WorldError: For the first episode that lacks rewards or ends.
    """
    tables = load_tables(references)
    for reference, table in zip(references, tables, strict=True):
        if table.rewards is None or table.terminated is None:
            raise WorldError(NO_OUTCOMES.format(reference.folder / f"{reference.name}.jsonl"))
    return tables


def check_poses(references: Sequence[EpisodeReference]) -> None:
    """Raise `WorldError` for the first episode that records no poses; decodes nothing."""
    for each, table in zip(references, load_tables(references), strict=True):
        if table.poses is None:
            raise WorldError(NO_POSES.format(each.folder / f"{each.name}.jsonl"))

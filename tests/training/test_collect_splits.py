"""The order in which workers begin episodes, where several folders are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from training.collect import Split, collect_splits
from training.data.recorders import EpisodeTask, Recorders


def test_workers_that_one_split_needs_no_more_begin_with_the_next(tmp_path: Path) -> None:
    """Held-out episodes are short of workers for their last one, and of those none is left idle."""

    class Late:
        """Three workers; what is begun first is done last."""

        def __init__(self) -> None:
            self.begun: list[EpisodeTask] = []

        @property
        def num_idle(self) -> int:
            return 3 - len(self.begun)

        def submit(self, task: EpisodeTask) -> None:
            assert self.num_idle
            self.begun.append(task)

        def wait(self) -> list[tuple[EpisodeTask, int]]:
            together.append([f"{each.folder.name} {each.name[-1]}" for each in self.begun])
            return [(self.begun.pop(), 10)]

    together: list[list[str]] = []
    splits = [Split(tmp_path / name, frames, 0, False, 0.0) for name, frames in (("a", 10), ("b", 40))]
    collect_splits(cast(Recorders, Late()), splits, 10)
    assert together == [
        ["a 0", "b 0", "b 1"],
        ["a 0", "b 0", "b 2"],
        ["a 0", "b 0", "b 3"],
        ["a 0", "b 0"],
        ["a 0"],
    ]
    assert [(each.known_frames, each.running, each.index) for each in splits] == [(10, 0, 1), (40, 0, 4)]

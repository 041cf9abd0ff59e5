"""The best games of a world: a table in a file, and a recording of each that replays to the same bytes."""

# H W frame size, A action axes

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.errors import WorldError
from worldsim.play.recording import SUFFIX, Recording, free_path
from worldsim.play.replay import STATE_SUFFIX
from worldsim.storage.files import check_integer, file_name, read_json, read_record, shown, write_json
from worldsim.world import WorldConfig

TABLE_FILE, FORMAT = "best.json", 1
NUM_BEST = 10
TITLES = ("", "{score}", "time", "seed", "start", "played", "recording")


@dataclass(frozen=True, kw_only=True, slots=True)
class BestGame:
    """A row of the table.

    Attributes:
        score: Sum of the rewards.
        frames: How many it lasted.
        seconds: Of them, at the world's frame rate.
        seed: What decided it; `game` counts those of one run, which go on drawing from it.
        start: Name of the start moment.
        played: When it ended, in UTC: `2026-11-30 16:20`.
        world: Name and checksum of the world: a recording replays in no other.
        recordings: Names of the videos, in the folder of the table; more than one where settings changed.
    """

    score: float
    frames: int
    seconds: float
    seed: int
    game: int = 1
    start: str = ""
    played: str = ""
    world: str = ""
    recordings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("frames", "seed", "game"):
            check_integer(getattr(self, name), f"a best game's {name}")
        for name in self.recordings:
            if not name.endswith(SUFFIX) or Path(name).name != name or "\\" in name:
                raise WorldError(
                    f"a best game's recording must be a file beside the table, got {shown(name)}"
                )

    def cells(self, place: int, *, is_new: bool) -> tuple[str, ...]:
        """Return it as a row below `TITLES`."""
        seed = f"{self.seed}" if self.game == 1 else f"{self.seed}, game {self.game}"
        number = f"> {place}" if is_new else f"{place}"
        recorded = self.recordings[0] if self.recordings else ""
        recorded += f" and {len(self.recordings) - 1} more" if len(self.recordings) > 1 else ""
        return (number, f"{self.score:.0f}", f"{self.seconds:.1f} s", seed, self.start, self.played, recorded)


class BestGames:
    """The table of one world, in a folder that is made when the first game is kept.

    Args:
        folder: Where the tables of all worlds are.
        world: Name of the world, whose folder in there it has.
        identity: Of the world: games of others by this name stay in the file, and are not shown.
    """

    def __init__(self, folder: Path, world: str, identity: str) -> None:
        self.folder = folder / file_name(world)
        self.path = self.folder / TABLE_FILE
        self._world, self._identity = world, identity

    def read(self) -> list[BestGame]:
        """Return the games of this world, the best first, at most `NUM_BEST`.

        Raises:
            WorldError: If the file is damaged, or something else.
        """
        ours = (game for game in self._read_all() if game.world == self._identity)
        return sorted(ours, key=_rank)[:NUM_BEST]  # somebody may have edited the file

    def add(self, game: BestGame) -> int | None:
        """Keep a game if it is among the best; returns its place, from 1, or None.

        Recordings of a game that falls out of the table are removed.

        Raises:
            WorldError: If the file is damaged, something else, or cannot be written; it is as it was then.
        """
        rows = self._read_all()
        ours = sorted([*(row for row in rows if row.world == self._identity), game], key=_rank)
        if not any(row is game for row in ours[:NUM_BEST]):
            return None
        others = [row for row in rows if row.world != self._identity]
        kept = [asdict(row) for row in (*ours[:NUM_BEST], *others)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"format": FORMAT, "world": self._world, "games": kept})
        except OSError as error:
            raise WorldError(f"cannot write {self.path}: {error.strerror or error}") from error
        for row in ours[NUM_BEST:]:
            remove_recordings([self.folder / name for name in row.recordings])
        return 1 + next(place for place, row in enumerate(ours) if row is game)

    def _read_all(self) -> list[BestGame]:
        try:
            data = read_json(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise WorldError(f"cannot read {self.path}: {error.strerror or error}") from error
        is_ours = isinstance(data, dict) and data.keys() == {"format", "world", "games"}
        if not is_ours or data["format"] != FORMAT or not isinstance(data["games"], list):
            raise WorldError(f"{self.path} is no table of best games: nothing is written to it")
        if data["world"] != self._world:
            raise WorldError(f"{self.path} is the table of {shown(data['world'])}, not of {self._world}")
        return [
            read_record(BestGame, row, f"{self.path}: game {n}") for n, row in enumerate(data["games"], 1)
        ]


class Attempt:
    """The recording of a game from its beginning, that is kept if the game is among the best.

    It counts as long as the person alone plays it, in one go. Nothing is raised: what goes wrong is said by
    `problem`, and the game no longer counts.

    Args:
        folder: Where to record.
    """

    def __init__(self, folder: Path, world: WorldConfig) -> None:
        self._folder, self._world = folder, world
        self._recording: Recording | None = None
        self.counts = False
        self.problem = ""

    def begin(self) -> None:
        """Begin a game."""
        self.discard()
        self.counts, self.problem = True, ""

    def add(self, frame: np.ndarray, action: np.ndarray, *, is_person: bool, **told: Any) -> None:
        """Append a frame `[H, W, 3]` uint8 and the action `[A]` that led on; `told` as to `Recording.add`."""
        if self.counts and not is_person:
            self.discard()
        if self.counts:
            self._try(lambda: self._open().add(frame, action, **told))

    def cut(self, frame: np.ndarray, **outcome: Any) -> None:
        """Go on in another file, with `frame` the last one of this."""
        if (recording := self._recording) is not None:
            self._try(lambda: recording.end_episode(frame, **outcome))

    def finish(self, frame: np.ndarray, **outcome: Any) -> list[Path]:
        """End the game with its last frame; returns its recordings, none if it does not count."""
        self.cut(frame, **outcome)
        recording, self._recording = self._recording, None
        if recording is None or not self.counts:
            return []
        self.counts = False
        recording.close()
        return recording.paths

    def discard(self) -> None:
        """Remove what was recorded: the game does not count."""
        recording, self._recording, self.counts = self._recording, None, False
        if recording is not None:
            try:
                recording.close()
            except WorldError as error:
                self.problem = str(error)
            remove_recordings(recording.paths)

    def _open(self) -> Recording:
        if self._recording is None:
            self._recording = Recording(free_path(self._folder, "game", SUFFIX), self._world)
        return self._recording

    def _try(self, record: Callable[[], None]) -> None:
        try:
            record()
        except WorldError as error:
            self.discard()
            self.problem = f"this game is not kept: {error}"


def remove_recordings(paths: Sequence[Path]) -> None:
    """Remove recordings `.mp4` with what is beside them; what cannot be removed stays."""
    for path in paths:
        for suffix in (SUFFIX, ".jsonl", STATE_SUFFIX):
            with suppress(OSError):  # no reason to end a game
                path.with_suffix(suffix).unlink(missing_ok=True)


def now() -> str:
    """Return the time in UTC, to the minute."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M}"


def _rank(game: BestGame) -> tuple[float, int]:
    return -game.score, -game.frames

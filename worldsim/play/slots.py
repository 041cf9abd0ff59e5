"""Files of a game: save slots, a state beside a small picture of it each; recordings, best games, clips."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ParamSpec

import numpy as np

from worldsim import state as states
from worldsim.errors import WorldError
from worldsim.games.registry import score_name
from worldsim.play.best import TITLES, BestGame, BestGames, now, remove_recordings
from worldsim.play.recording import SUFFIX, Recording, free_path, free_recording
from worldsim.play.session import PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.state import WorldState
from worldsim.storage.files import file_name
from worldsim.storage.images import read_picture, write_png
from worldsim.ui.clip import ClipBuffer

P = ParamSpec("P")
QUICK = "quick"
SLOTS = (QUICK, *(str(digit) for digit in range(10)))


@dataclass(frozen=True, slots=True)
class Slot:
    """What is known of a slot that holds something.

    Attributes:
        name: Its name, one of `SLOTS`.
        picture: `[h, w, 3]` uint8, small; None if it cannot be read.
        note: Name of the start moment of its episode; or why it cannot be loaded.
    """

    name: str
    saved_at: datetime
    picture: np.ndarray | None
    note: str


class SlotFolder:
    """Slots of one world, in a folder that is made when first saved to.

    Several players may share it: each file is replaced as a whole. What was saved or loaded stays in memory,
    so that it comes back at once, as long as nobody else has saved to its file.

    Args:
        folder: Where the slots of all worlds are.
        world: Name of the world, whose folder in there they have: `file_name` of it.
    """

    def __init__(self, folder: Path, world: str, identity: str) -> None:
        self.folder = folder / file_name(world)
        self._identity = identity
        self._kept: dict[str, tuple[tuple[int, int, int], WorldState, str]] = {}

    def save(self, name: str, state: WorldState, start: str = "") -> None:
        """Save a moment.

        Raises:
            WorldError: If it cannot be written; what the slot held is still there then.
        """
        path = self._path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            states.save(state, path, world=self._identity, start=start)
            self._kept[name] = (_stamp(path), state, start)
            write_png(state.frames[0, ::2, ::2].cpu().numpy(), path.with_suffix(".png"))
        except OSError as error:
            raise WorldError(f"slot {name} cannot be saved to {path}: {error.strerror or error}") from error

    def load(self, name: str) -> tuple[WorldState, str]:
        """Return the moment that a slot holds, and the name of the start moment of its episode.

        Raises:
            WorldError: If it is empty, damaged, or belongs to another world.
        """
        path = self._path(name)
        try:
            stamp = _stamp(path)
        except OSError:
            raise WorldError(f"slot {name} is empty") from None
        kept = self._kept.get(name)
        if kept is not None and kept[0] == stamp:
            return kept[1:]
        try:
            state = states.load(path, world=self._identity)
            start = states.read_notes(path).get("start", "")
        except (WorldError, OSError) as error:
            raise WorldError(f"slot {name}: {error}") from error
        self._kept[name] = (stamp, state, start)
        return state, start

    def list(self) -> list[Slot]:
        """Return the slots that hold something, in the order of `SLOTS`."""
        found = []
        for name in SLOTS:
            with suppress(OSError, OverflowError, ValueError):  # gone meanwhile; of a time without a date
                if self._path(name).is_file():
                    found.append(self._describe(name))
        return found

    def _path(self, name: str) -> Path:
        if name not in SLOTS:
            raise WorldError(f"there is no slot {name!r}; there are {', '.join(SLOTS)}")
        return self.folder / f"{name}.safetensors"

    def _describe(self, name: str) -> Slot:
        path, picture = self._path(name), None
        try:
            notes = states.read_notes(path)
            note = notes.get("start", "") if notes.get("world") == self._identity else "of another world"
        except WorldError:
            note = "damaged"
        with suppress(OSError, WorldError):  # the slot is listed without one
            picture = read_picture(path.with_suffix(".png"))
        return Slot(name, datetime.fromtimestamp(path.stat().st_mtime), picture, note)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return what changes whenever a file is replaced or written to."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _sentence(method: Callable[P, str]) -> Callable[P, str]:
    """Let a method return what went wrong as a sentence, too."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return method(*args, **kwargs)
        except WorldError as error:
            return str(error)
        except OSError as error:
            return f"it cannot be written: {error}"

    return call


class PlayFiles:
    """Writes and reads what a key asks for. No method raises `WorldError`: each returns a sentence."""

    def __init__(self, session: PlaySession, config: PlayConfig) -> None:
        world = session.env.world
        self._session, self._config = session, config
        self._slots = SlotFolder(Path(config.slots), world.config.name, world.identity)
        self.best = BestGames(Path(config.best), world.config.name, world.identity)
        self._place: int | None = None  # in the table, of the game that ended last

    @_sentence
    def save_slot(self, name: str) -> str:
        """Save the present moment."""
        self._slots.save(name, self._session.env.get_state(), self._session.start)
        return f"saved to slot {name}"

    @_sentence
    def load_slot(self, name: str) -> str:
        """Play on from what a slot holds."""
        self._session.go_to(*self._slots.load(name))
        return f"loaded slot {name}"

    def slots(self) -> list[Slot]:
        """Return the slots that hold something."""
        return self._slots.list()

    @_sentence
    def toggle_recording(self) -> str:
        """Begin to record, or finish what is being recorded."""
        session = self._session
        if (recording := session.recording) is not None:
            session.stop_recording()
            return f"recorded {', '.join(map(str, recording.paths)) or 'nothing'}"
        played = session.env.world.config
        path = free_recording(Path(self._config.recordings), played)
        session.recording = Recording(path, played)
        return f"recording to {path}"

    @_sentence
    def keep_game(self) -> str:
        """Keep the game that has ended if it is among the best; says nothing where none are kept."""
        session, self._place = self._session, None
        paths, score = session.finish_attempt(), session.score
        if not paths or score is None or not math.isfinite(score):
            remove_recordings(paths)
            return "" if session.attempt is None else session.attempt.problem
        frames, world = int(session.info["frame_index"]), session.env.world
        game = BestGame(
            score=score,
            frames=frames,
            seconds=frames / world.config.frame_rate,
            seed=session.seed,
            game=session.game,
            start=session.start,
            played=now(),
            world=world.identity,
            recordings=[path.name for path in paths],
        )
        try:
            self._place = self.best.add(game)
        except WorldError as error:
            return f"{error}. The game is recorded in {', '.join(map(str, paths))}."
        if self._place is None:
            remove_recordings(paths)
            return ""
        return f"Number {self._place} of the best games."

    def best_games(self) -> list[tuple[str, ...]]:
        """Return the table of best games, its titles first; or a row that says why there is none."""
        if self._session.env.world.config.outcome is None:
            return [("this world counts no score",)]
        if not self._config.best:
            return [("no games are kept: best='' says so",)]
        try:
            games = self.best.read()
        except WorldError as error:
            return [(str(error),)]
        rows = [game.cells(n, is_new=n == self._place) for n, game in enumerate(games, 1)]
        titles = tuple(
            title.format(score=score_name(self._session.env.world.config.name)) for title in TITLES
        )
        return [titles, *rows] if rows else [("no game that you played in one go has ended yet",)]

    @_sentence
    def write_clip(self, clip: ClipBuffer) -> str:
        """Write the last seconds of play."""
        if not len(clip):
            return "nothing was played yet"
        path = free_path(Path(self._config.clips), "clip", SUFFIX)
        return f"wrote {path}, {clip.write(path)} frames"

    @_sentence
    def screenshot(self, picture: np.ndarray) -> str:
        """Write a picture `[height, width, 3]` uint8."""
        path = free_path(Path(self._config.screenshots), "screenshot", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(picture, path)
        return f"wrote {path}"

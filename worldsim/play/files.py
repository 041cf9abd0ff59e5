"""Files of a game: save slots, recordings and screenshots, each with a sentence on how it went."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import numpy as np

from worldsim.errors import WorldError
from worldsim.play.recording import Recording, free_path, free_recording
from worldsim.play.session import PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.play.slots import Slot, SlotFolder
from worldsim.storage.images import write_png

P = ParamSpec("P")


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
    def screenshot(self, picture: np.ndarray) -> str:
        """Write a picture `[height, width, 3]` uint8."""
        path = free_path(Path(self._config.screenshots), "screenshot", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(picture, path)
        return f"wrote {path}"

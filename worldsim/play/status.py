"""Texts about a game: the strip below the picture, a message for a while, and what the memory holds."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from worldsim.games.registry import score_name
from worldsim.play.governor import Governor
from worldsim.play.session import PlaySession

TEXT_SECONDS = 0.25
MESSAGE_SECONDS = 4.0
READ_SECONDS = 0.5
"""How often the layers are read: each time costs a denoising pass."""
TITLES = ("layer", "norm", "half-life", "from memory")
BAR_LENGTH = 12
LONGEST = 1e6


class Status:
    """Texts about what is played; measured a few times a second, so that they can be read.

    Attributes:
        hint: What to say last.
        again: How to begin again after an end.
        verdict: What came of the game that has ended, in a sentence.
        score_name: What the score is called.
    """

    def __init__(self, session: PlaySession, governor: Governor) -> None:
        self._session, self._governor = session, governor
        self.score_name = score_name(session.env.world.config.name)
        self.hint = self.again = self.verdict = ""
        self._frame_times: deque[float] = deque(maxlen=30)
        self._texts: list[str] = []
        self._expires = 0.0
        self._message, self._message_until = "", 0.0

    def note_frame(self, *, is_single: bool) -> None:
        """Note that a frame was shown, a single one while paused or one of a row."""
        self._frame_times.append(time.perf_counter())
        if is_single:
            self.restart()

    def restart(self) -> None:
        """Measure anew: what happened so far says nothing about the frames to come."""
        self._frame_times.clear()
        self._expires = 0.0

    def say(self, sentence: str) -> None:
        """Show a sentence below the picture for a while."""
        self._message, self._message_until = sentence, time.perf_counter() + MESSAGE_SECONDS

    @property
    def message(self) -> str:
        """The sentence to show below the picture at the moment, if any; after an end, how it went."""
        if time.perf_counter() < self._message_until:
            return self._message
        return self._ending() if self._session.ended else ""

    def _ending(self) -> str:
        session = self._session
        frames, score = session.info["frame_index"], session.score
        lasted = f"{frames} {'frame' if frames == 1 else 'frames'} ({self.seconds_alive:.1f} s)"
        counted = "" if score is None else f", {self.score_name} {score:.0f}"
        how = "Time is up" if session.time_is_up else "Game over"
        told = (f"{how} after {lasted}{counted}.", self.verdict, self.again)
        return " ".join(text for text in told if text)

    @property
    def seconds_alive(self) -> float:
        """How long this episode has lasted, in seconds of the world's own."""
        return self._session.info["frame_index"] / self._session.env.world.config.frame_rate

    def _goal(self) -> list[str]:
        """Return what a game is about: its score, and how long it has lasted."""
        if (score := self._session.score) is None:
            return []
        return [f"{self.score_name} {score:.0f}", f"alive {self.seconds_alive:.1f} s"]

    def texts(self, *, doing: str, who: str) -> list[str]:
        """Return the texts of the strip.

        Args:
            doing: What happens instead of play, `paused` say; empty while frames are played.
            who: Who plays.
        """
        now = time.perf_counter()
        if now >= self._expires:
            self._texts = self._measure(doing, who)
            self._expires = now + TEXT_SECONDS
        return self._texts

    def _measure(self, doing: str, who: str) -> list[str]:
        session = self._session
        texts = [
            *self._goal(),
            doing or f"{self._frames_per_second():.1f} frames/s",
            *self._drawing(),
            f"step {session.times.latest_p50_ms():.0f} ms",
            session.env.device_choice.name,
            f"memory {session.env.memory_bytes / 2**20:.2f} MiB{' frozen' if session.is_frozen else ''}",
            f"frame {session.info['frame_index']}",
            self._rewind_text(),
            who,
            "recording" if session.recording is not None else "",
            self.hint,
        ]
        return [text for text in texts if text]

    def _drawing(self) -> list[str]:
        """Return how frames are drawn, as far as it is not the world's own way."""
        now, own = self._session.env.simulator.sampler, self._session.env.world.config.sampler
        governor, texts = self._governor, []
        if governor.frame_rate:
            steps = f"{now.num_steps} of {governor.wanted}" if now.num_steps < governor.wanted else "all"
            texts.append(f"holding {governor.frame_rate:g} frames/s with {steps} steps")
        else:
            texts.append(f"{now.num_steps} {'step' if now.num_steps == 1 else 'steps'}")
        if now.noise_scale != own.noise_scale:
            texts.append(f"noise {now.noise_scale:.2f}")
        return texts

    def _rewind_text(self) -> str:
        history = self._session.history
        if history is None:
            return ""
        seconds = len(history) / self._session.env.world.config.frame_rate
        return f"rewind {seconds:.0f} s, {history.nbytes / 2**20:.0f} MiB"

    def _frames_per_second(self) -> float:
        if len(self._frame_times) < 2:
            return 0.0
        return (len(self._frame_times) - 1) / (self._frame_times[-1] - self._frame_times[0])


class Inspector:
    """Reads the layers now and then while it is shown, and shows the way that is believed in on a map."""

    def __init__(self, session: PlaySession) -> None:
        self._session = session
        self.is_shown = False
        self._rows: list[tuple[str, ...]] = []
        self._read_again_at = 0.0

    def toggle(self) -> None:
        """Show it, or hide it."""
        self.is_shown = not self.is_shown
        self.restart()

    def restart(self) -> None:
        """Read anew: the memory has changed."""
        self._read_again_at = 0.0

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of a table, its titles first; nothing while it is not shown.

        They are the same object until the layers are read again.
        """
        if not self.is_shown:
            return []
        now = time.perf_counter()
        if now >= self._read_again_at:
            self._rows = [TITLES, *map(tuple, self._read())]
            self._read_again_at = time.perf_counter() + READ_SECONDS
        return self._rows

    def map(self) -> np.ndarray | None:
        """Return a map `[S, S, 3]` uint8 of where the world believes the player went; None if none is shown.

        It is the same object until the player moves.
        """
        return self._session.trail.picture() if self.is_shown else None

    def _read(self) -> list[list[str]]:
        readings = self._session.inspect()
        if not readings:
            return [["no layer with a state was read yet", "", "", ""]]
        return [
            [
                str(reading.layer),
                f"{reading.norm:.1f}",
                f"{reading.half_life:.1f} frames" if reading.half_life < LONGEST else "for ever",
                f"{'#' * round(BAR_LENGTH * reading.share):.<{BAR_LENGTH}} {100 * reading.share:.0f} %",
            ]
            for reading in readings
        ]

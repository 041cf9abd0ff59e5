"""What each layer remembers, as rows to show while one plays."""

from __future__ import annotations

import time

from worldsim.play.session import PlaySession

READ_SECONDS = 0.5
"""How often the layers are read: each time costs a denoising pass."""
TITLES = ("layer", "norm", "half-life", "from memory")
BAR_LENGTH = 12
LONGEST = 1e6


class Inspector:
    """Reads the layers now and then while it is shown.

    Args:
        session: What is played.

    Attributes:
        is_shown: Whether anybody looks.
    """

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

"""The window: the picture in whole pixels, a strip of text below it, a page of text over it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from worldsim.errors import WorldError

# pygame greets on import unless told not to.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

AUTO_SIZE = (800, 600)
TEXT_COLOUR, STRIP_COLOUR, PAGE_COLOUR = (225, 225, 225), (24, 24, 28), (12, 12, 16, 225)
FONT_SIZE, PADDING = 20, 6
# Widest text of one line of the strip, to find out how many lines a narrow window needs.
STRIP_TEXT_WIDTH = 780


class Window:
    """A window on the screen; there is one in a process.

    Args:
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        title: What its frame says.
        scale: Screen pixels per frame pixel; 0 chooses the greatest that fits into 800 x 600.
        has_strip: Whether there is a strip of text below the picture.

    Raises:
        WorldError: If no window can be opened.
    """

    def __init__(
        self, width: int, height: int, *, title: str, scale: int = 0, has_strip: bool = False
    ) -> None:
        self.scale = scale or max(1, min(AUTO_SIZE[0] // width, AUTO_SIZE[1] // height))
        size = (width * self.scale, height * self.scale)
        try:
            pygame.display.init()
            pygame.font.init()
            self._font = pygame.font.Font(None, FONT_SIZE)
            self._line_height = self._font.get_linesize()
            num_lines = -(-STRIP_TEXT_WIDTH // size[0])
            strip_height = num_lines * self._line_height + 2 * PADDING if has_strip else 0
            self._strip = pygame.Rect(0, size[1], size[0], strip_height)
            pygame.display.set_caption(title)
            self._screen = pygame.display.set_mode((size[0], size[1] + self._strip.height))
        except pygame.error as error:
            pygame.display.quit()
            raise WorldError(f"no window can be opened ({error}); headless=true plays without one") from error
        # Made once: nothing of the picture's size is allocated while playing.
        self._picture = self._screen.subsurface((0, 0, *size))
        self._frame = pygame.Surface((width, height), 0, self._screen)
        self._waiting: list[pygame.event.Event] = []
        self._texts: dict[str, pygame.Surface] = {}
        self._page: tuple[tuple[tuple[str, str], ...], pygame.Surface] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the window is still there."""
        return pygame.display.get_surface() is self._screen

    def show(
        self, frame: np.ndarray, texts: Sequence[str] = (), page: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Show a frame.

        Args:
            frame: `[H, W, 3]` uint8.
            texts: For the strip.
            page: Rows of two columns to lay over the picture.
        """
        pygame.surfarray.blit_array(self._frame, frame.swapaxes(0, 1))
        pygame.transform.scale(self._frame, self._picture.get_size(), self._picture)
        if self._strip.height:
            self._draw_strip(texts)
        if page:
            self._draw_page(tuple(page))
        pygame.display.flip()

    def events(self) -> list[pygame.event.Event]:
        """Return what happened since the last call."""
        events, self._waiting = [*self._waiting, *pygame.event.get()], []
        return events

    def wait_for_event(self, milliseconds: int) -> None:
        """Sleep until something happens, which `events` will return, or the time has passed."""
        event = pygame.event.wait(milliseconds)
        if event.type != pygame.NOEVENT:
            self._waiting.append(event)

    def discard_events(self) -> None:
        """Answer the window system, so that the window does not count as hung; ignore keys and buttons."""
        pygame.event.get()

    def screenshot(self) -> np.ndarray:
        """Return everything in the window, `[height, width, 3]` uint8."""
        return pygame.surfarray.array3d(self._screen).swapaxes(0, 1)

    def close(self) -> None:
        """Close it; may be called again."""
        if self.is_open:
            pygame.display.quit()

    def _draw_strip(self, texts: Sequence[str]) -> None:
        self._screen.fill(STRIP_COLOUR, self._strip)
        kept = {text: self._texts.get(text) or self._font.render(text, True, TEXT_COLOUR) for text in texts}
        self._texts = kept
        x, y = PADDING, self._strip.top + PADDING
        for surface in kept.values():
            if x > PADDING and x + surface.get_width() > self._strip.width - PADDING:
                x, y = PADDING, y + self._line_height
            self._screen.blit(surface, (x, y))
            x += surface.get_width() + 3 * PADDING

    def _draw_page(self, rows: tuple[tuple[str, str], ...]) -> None:
        if self._page is None or self._page[0] != rows:
            self._page = (rows, self._render_page(rows))
        surface = self._page[1]
        place = surface.get_rect(center=self._picture.get_rect().center)
        self._picture.blit(surface, place)

    def _render_page(self, rows: tuple[tuple[str, str], ...]) -> pygame.Surface:
        columns = [
            [self._font.render(text, True, TEXT_COLOUR) for text in column]
            for column in zip(*rows, strict=True)
        ]
        widths = [max(text.get_width() for text in column) + 4 * PADDING for column in columns]
        row_height = self._line_height + PADDING
        surface = pygame.Surface((sum(widths), len(rows) * row_height + 4 * PADDING), pygame.SRCALPHA)
        surface.fill(PAGE_COLOUR)
        for column, x in zip(columns, (0, widths[0]), strict=True):
            for number, text in enumerate(column):
                surface.blit(text, (x + 2 * PADDING, 2 * PADDING + number * row_height))
        return surface

"""The window: the picture in whole pixels, a strip of text below it, a page of text over it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from worldsim.errors import WorldError
from worldsim.ui.display import DRIVER, WINDOWLESS_DRIVERS

# pygame greets on import unless told not to.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

AUTO_SIZE = (800, 600)
TEXT_COLOUR, MESSAGE_COLOUR = (225, 225, 225), (255, 208, 64)
STRIP_COLOUR, PAGE_COLOUR = (24, 24, 28), (12, 12, 16, 225)
FONT_SIZE, PADDING = 20, 6
# Widest text of one line of the strip, to find out how many lines a narrow window needs.
STRIP_TEXT_WIDTH = 1100

Row = tuple["str | np.ndarray", ...]
"""Of a page: as many columns as its other rows have, each a text or a picture `[h, w, 3]` uint8."""


class Window:
    """A window on the screen; there is one in a process.

    The picture is shown in whole pixels, as large as the window lets it be.

    Args:
        scale: Screen pixels per frame pixel to begin with; 0 chooses the greatest that fits into 800 x 600.
        has_strip: Whether there is a strip of text below the picture.
        message_lines: Lines of the strip that are kept for a message.

    Raises:
        WorldError: If no window can be opened.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        title: str,
        scale: int = 0,
        has_strip: bool = False,
        message_lines: int = 1,
    ) -> None:
        scale = scale or max(1, min(AUTO_SIZE[0] // width, AUTO_SIZE[1] // height))
        self._frame_size, self._has_strip = (width, height), has_strip
        self._message_lines = message_lines
        try:
            pygame.display.init()
            # Where SDL reaches no screen it draws to none by itself, and nobody would see what is played.
            if (driver := pygame.display.get_driver()) in WINDOWLESS_DRIVERS - {os.environ.get(DRIVER)}:
                raise pygame.error(f"no screen can be reached, only {driver!r}")
            pygame.font.init()
            self._font = pygame.font.Font(None, FONT_SIZE)
            self._line_height = self._font.get_linesize()
            pygame.display.set_caption(title)
            most_wide, most_high = pygame.display.get_desktop_sizes()[0]
            size = min(width * scale, most_wide), height * scale
            high = min(size[1] + self._strip_height(size[0]), most_high)
            self._screen = pygame.display.set_mode((size[0], high), pygame.RESIZABLE)
        except pygame.error as error:
            pygame.display.quit()
            raise WorldError(f"no window can be opened ({error}); headless=true plays without one") from error
        self._window_size = self._screen.get_size()
        self._frame = pygame.Surface((width, height), 0, self._screen)
        self._waiting: list[pygame.event.Event] = []
        self._texts: dict[str, pygame.Surface] = {}
        self._page: tuple[Sequence[Row], pygame.Surface] | None = None
        self._message: tuple[str, pygame.Surface] | None = None
        self._corner: tuple[Sequence[Row], pygame.Surface] | None = None
        self._lay_out()

    def _strip_height(self, width: int) -> int:
        if not self._has_strip:
            return 0
        return (-(-STRIP_TEXT_WIDTH // width) + self._message_lines) * self._line_height + 2 * PADDING

    def _lay_out(self) -> None:
        """Divide the window: the picture in the middle of what the strip leaves."""
        self._laid_out = width, height = self._screen.get_size()
        strip = min(self._strip_height(width), height // 2)
        frame_width, frame_height = self._frame_size
        factor = min(width / frame_width, (height - strip) / frame_height)
        # In a window smaller than a frame there are no whole pixels to be had.
        self.scale = int(factor) if factor >= 1 else factor
        size = max(1, int(frame_width * self.scale)), max(1, int(frame_height * self.scale))
        # Not a part of the screen's surface, whose memory the window system takes away when the size changes.
        self._picture = pygame.Surface(size, 0, self._screen)
        self._place = ((width - size[0]) // 2, (height - strip - size[1]) // 2)
        self._strip = pygame.Rect(0, height - strip, width, strip)
        self._page = self._message = self._corner = None
        self._screen.fill(STRIP_COLOUR)

    @property
    def is_full_screen(self) -> bool:
        """Whether it fills the screen."""
        return bool(self._screen.get_flags() & pygame.FULLSCREEN)

    def toggle_full_screen(self) -> None:
        """Fill the screen, or become a window of the size before again."""
        self._check_open()
        if self.is_full_screen:
            self._screen = pygame.display.set_mode(self._window_size, pygame.RESIZABLE)
        else:
            self._window_size = self._screen.get_size()
            self._screen = pygame.display.set_mode((0, 0), pygame.FULLSCREEN)
        self._lay_out()

    @property
    def title(self) -> str:
        """What its frame says."""
        return pygame.display.get_caption()[0]

    @title.setter
    def title(self, title: str) -> None:
        pygame.display.set_caption(title)

    @property
    def has_mouse(self) -> bool:
        """Whether the mouse is kept inside and not shown, so that only its movements count."""
        return pygame.event.get_grab()

    @has_mouse.setter
    def has_mouse(self, wanted: bool) -> None:
        pygame.event.set_grab(wanted)
        pygame.mouse.set_visible(not wanted)

    @property
    def is_open(self) -> bool:
        """Whether the window is still there."""
        return pygame.display.get_init() and pygame.display.get_surface() is self._screen

    def show(
        self,
        frame: np.ndarray,
        texts: Sequence[str] = (),
        page: Sequence[Row] = (),
        message: str = "",
        corner: Sequence[Row] = (),
        inset: np.ndarray | None = None,
    ) -> None:
        """Show a frame.

        Args:
            frame: `[H, W, 3]` uint8.
            page: Rows to lay over the picture; drawn once, so another page is another object.
            message: A sentence for the bottom of the strip, where it covers nothing of the picture.
            corner: Rows to lay over the upper left of the picture, drawn once like those of a page.
            inset: A picture `[h, w, 3]` uint8 to lay over its upper right.
        """
        self._check_open()
        pygame.surfarray.blit_array(self._frame, frame.swapaxes(0, 1))
        pygame.transform.scale(self._frame, self._picture.get_size(), self._picture)
        if corner:
            self._draw_corner(corner)
        if inset is not None:
            self._draw_inset(inset)
        self._finish(texts, page, message)

    def show_panes(
        self,
        frames: np.ndarray,
        labels: Sequence[str],
        chosen: int,
        texts: Sequence[str] = (),
        page: Sequence[Row] = (),
        message: str = "",
    ) -> None:
        """Show up to four frames in 2 x 2 panes.

        Args:
            frames: `[panes, H, W, 3]` uint8.
            labels: What to write into each pane.
            chosen: Number of the pane to put a border around.
        """
        self._check_open()
        self._picture.fill(STRIP_COLOUR)
        for number, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            pane = self._pane(number)
            pygame.surfarray.blit_array(self._frame, frame.swapaxes(0, 1))
            self._picture.blit(pygame.transform.scale(self._frame, pane.size), pane)
            self._picture.blit(self._font.render(label, True, TEXT_COLOUR, STRIP_COLOUR), pane.move(4, 4))
            if number == chosen:
                pygame.draw.rect(self._picture, TEXT_COLOUR, pane, width=2)
        self._finish(texts, page, message)

    def pane_at(self, position: tuple[int, int]) -> int | None:
        """Return the number of the pane at a place in the window, `(x, y)` pixels; None outside."""
        x, y = position[0] - self._place[0], position[1] - self._place[1]
        panes = (number for number in range(4) if self._pane(number).collidepoint(x, y))
        return next(panes, None)

    def frame_position(self, position: tuple[int, int]) -> tuple[int, int] | None:
        """Return the pixel of the frame, `(x, y)`, at a place in the window; None outside the picture."""
        x, y = (int((position[axis] - self._place[axis]) // self.scale) for axis in (0, 1))
        inside = 0 <= x < self._frame_size[0] and 0 <= y < self._frame_size[1]
        return (x, y) if inside else None

    def survives(self, advance: Callable[[], None]) -> bool:
        """Call what draws in the window; return False if the window was taken away in the middle of it.

        Raises:
            WorldError: If it is there and cannot be drawn.
        """
        try:
            advance()
        except pygame.error as error:
            if self.is_open:
                raise WorldError(f"the window can no longer be drawn: {error}") from error
            return False
        return True

    def _check_open(self) -> None:
        if not self.is_open:  # its pixels are gone, and drawing on them would end the process
            raise pygame.error("the window is gone")
        if self._screen.get_size() != self._laid_out:
            self._lay_out()

    def _pane(self, number: int) -> pygame.Rect:
        width, height = (size // 2 for size in self._picture.get_size())
        return pygame.Rect(number % 2 * width, number // 2 * height, width, height)

    def _finish(self, texts: Sequence[str], page: Sequence[Row], message: str) -> None:
        """Lay texts over the picture, and bring everything to the screen."""
        if page:
            self._draw_page(page)
        self._screen.blit(self._picture, self._place)
        if self._strip.height:
            self._draw_strip(texts)
            if message:
                self._draw_message(message)
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
        self._check_open()
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

    def _draw_message(self, message: str) -> None:
        width, height = self._strip.width - 2 * PADDING, self._strip.height
        if width < self._line_height or height < self._line_height:  # nothing could be read there
            return
        if self._message is None or self._message[0] != message:
            text = self._font.render(message, True, MESSAGE_COLOUR, STRIP_COLOUR, width)
            self._message = (message, text)
        surface = self._message[1]
        top = self._strip.bottom - PADDING // 2 - surface.get_height()
        room = pygame.Rect(PADDING, max(top, self._strip.top), width, height)
        self._screen.fill(STRIP_COLOUR, room)
        self._screen.set_clip(self._strip)
        self._screen.blit(surface, room)
        self._screen.set_clip(None)

    def _draw_corner(self, rows: Sequence[Row]) -> None:
        if self._corner is None or self._corner[0] is not rows:
            self._corner = (rows, self._shrink(self._render_rows(rows)))
        self._picture.blit(self._corner[1], (0, 0))

    def _draw_inset(self, picture: np.ndarray) -> None:
        """Draw it in whole pixels, and no higher than a third of the picture if it can be."""
        surface, (width, height) = (
            pygame.surfarray.make_surface(picture.swapaxes(0, 1)),
            self._picture.get_size(),
        )
        surface = self._shrink(pygame.transform.scale_by(surface, max(1, height // (3 * len(picture)))))
        self._picture.blit(surface, (width - surface.get_width(), 0))

    def _draw_page(self, rows: Sequence[Row]) -> None:
        if self._page is None or self._page[0] is not rows:
            self._page = (rows, self._render_page(rows))
        surface = self._page[1]
        place = surface.get_rect(center=self._picture.get_rect().center)
        self._picture.blit(surface, place)

    def _render_page(self, rows: Sequence[Row]) -> pygame.Surface:
        """Render rows below each other or in two blocks side by side, whichever can be read better."""
        whole = self._render_rows(rows)
        if self._fit(whole) == 1 or len(rows) < 2:
            return self._shrink(whole)
        half = -(-len(rows) // 2)
        left, right = self._render_rows(rows[:half]), self._render_rows(rows[half:])
        size = left.get_width() + right.get_width(), max(left.get_height(), right.get_height())
        surface = pygame.Surface(size, pygame.SRCALPHA)
        surface.fill(PAGE_COLOUR)
        surface.blit(left, (0, 0))
        surface.blit(right, (left.get_width(), 0))
        return self._shrink(max(whole, surface, key=self._fit))

    def _render_rows(self, rows: Sequence[Row]) -> pygame.Surface:
        cells = [[self._render_cell(cell) for cell in row] for row in rows]
        widths = [
            max(cell.get_width() for cell in column) + 4 * PADDING for column in zip(*cells, strict=True)
        ]
        heights = [max(cell.get_height() for cell in row) + PADDING for row in cells]
        surface = pygame.Surface((sum(widths), sum(heights) + 4 * PADDING), pygame.SRCALPHA)
        surface.fill(PAGE_COLOUR)
        y = 2 * PADDING
        for row, height in zip(cells, heights, strict=True):
            x = 2 * PADDING
            for cell, width in zip(row, widths, strict=True):
                surface.blit(cell, (x, y))
                x += width
            y += height
        return surface

    def _render_cell(self, cell: str | np.ndarray) -> pygame.Surface:
        if isinstance(cell, str):
            text = self._font.render(cell, True, TEXT_COLOUR)
            return text if text.get_height() >= self._line_height else _pad(text, self._line_height)
        picture = pygame.surfarray.make_surface(cell.swapaxes(0, 1))
        height = min(picture.get_height(), 2 * self._line_height)
        return pygame.transform.scale(picture, (picture.get_width() * height // picture.get_height(), height))

    def _fit(self, surface: pygame.Surface) -> float:
        """Return by how much a page must shrink, so that all of it can be seen; 1 if it need not."""
        width, height = self._picture.get_size()
        return min(1.0, width / surface.get_width(), height / surface.get_height())

    def _shrink(self, surface: pygame.Surface) -> pygame.Surface:
        factor = self._fit(surface)
        return surface if factor == 1 else pygame.transform.smoothscale_by(surface, factor)


def _pad(text: pygame.Surface, height: int) -> pygame.Surface:
    padded = pygame.Surface((text.get_width(), height), pygame.SRCALPHA)
    padded.blit(text, (0, 0))
    return padded

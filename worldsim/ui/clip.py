"""Clips: the last seconds of play as a film, with the keys that were held drawn over it."""

# H W frame size

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from worldsim.actions import ActionLayout
from worldsim.data.video import VideoWriter
from worldsim.storage.files import writing

# pygame greets on import unless told not to.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

SECONDS = 15.0
MAX_RAW_BYTES = 2**26
"""Of all frames together, up to which they are kept as they are: larger ones are kept as JPEG."""
MIN_HEIGHT = 360  # of a clip, which is whole pixels of the frames
KEY_GAP, KEY_PADDING = 4, 6
HELD_COLOUR, FREE_COLOUR = (255, 208, 64, 230), (24, 24, 28, 130)
HELD_TEXT, FREE_TEXT = (24, 24, 28), (170, 170, 170)


class ClipBuffer:
    """The latest frames that were shown, and the buttons that led to them.

    Args:
        layout: What can be pressed.
        frame_rate: Of the clip, frames a second.
    """

    def __init__(self, layout: ActionLayout, frame_rate: float) -> None:
        self._layout, self._rate = layout, frame_rate
        length = max(1, round(SECONDS * frame_rate))
        self._shown: deque[tuple[np.ndarray | bytes, frozenset[int]]] = deque(maxlen=length)

    def __len__(self) -> int:
        """Return how many frames it holds."""
        return len(self._shown)

    @property
    def num_bytes(self) -> int:
        """Bytes of the frames that it holds."""
        return sum(len(kept) if isinstance(kept, bytes) else kept.nbytes for kept, _ in self._shown)

    def add(self, frame: np.ndarray, action: np.ndarray) -> None:
        """Note a frame `[H, W, 3]` uint8 and the action `[A]` int64 that led to it."""
        assert self._shown.maxlen is not None
        is_large = frame.nbytes * self._shown.maxlen > MAX_RAW_BYTES
        kept = to_jpeg(frame) if is_large else frame.copy()
        self._shown.append((kept, held_buttons(self._layout, action)))

    def write(self, path: Path) -> int:
        """Write the clip, completely or not at all; returns its number of frames.

        Raises:
            OSError: If it cannot be written.
            WorldError: If frames have a size that no mp4 has.
        """
        shown = list(self._shown)
        height, width = _picture(shown[0][0]).shape[:2]
        scale = 2 * max(1, round(MIN_HEIGHT / height / 2))  # even, as mp4 needs it
        overlays: dict[frozenset[int], tuple[np.ndarray, np.ndarray]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        size = {"height": height * scale, "width": width * scale}
        with writing(path) as part, VideoWriter(part, frame_rate=self._rate, **size) as video:
            for kept, held in shown:
                frame = _picture(kept)
                if held not in overlays:
                    overlays[held] = _draw_keys(self._layout.buttons, held, width * scale)
                large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
                video.write(_lay_over(large, *overlays[held]))
        return len(shown)


def to_jpeg(frame: np.ndarray) -> bytes:
    """Return a frame `[H, W, 3]` uint8 as JPEG, of the best quality."""
    encoder = av.VideoCodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = frame.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuvj420p", Fraction(1, 25), 1
    encoder.options = {"qmin": "2", "qmax": "2"}
    picture = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame), format="rgb24")
    packets = encoder.encode(picture.reformat(format="yuvj420p", threads=1))
    return b"".join(bytes(packet) for packet in packets)


def _picture(kept: np.ndarray | bytes) -> np.ndarray:
    """Return a frame as it was added, `[H, W, 3]` uint8, or nearly so."""
    if isinstance(kept, np.ndarray):
        return kept
    [picture] = av.VideoCodecContext.create("mjpeg", "r").decode(av.Packet(kept))
    return picture.to_ndarray(format="rgb24")


def held_buttons(layout: ActionLayout, action: np.ndarray) -> frozenset[int]:
    """Return the numbers of the buttons, in the order of `layout.buttons`, that an action `[A]` presses."""
    held, first = [], 0
    for axis, value in zip(layout.axes, action.tolist(), strict=True):
        if value:
            held.append(first + value - 1)
        first += len(axis.buttons)
    return frozenset(held)


def _draw_keys(names: Collection[str], held: frozenset[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return keys in rows, `[h, width, 3]` uint8, and how much each pixel covers, `[h, width, 1]`, 0 to 1."""
    pygame.font.init()
    font = pygame.font.Font(None, 18)
    places: list[tuple[pygame.Surface, pygame.Rect, bool]] = []
    x, y, height = KEY_GAP, KEY_GAP, font.get_linesize() + KEY_PADDING
    for number, name in enumerate(names):
        is_held = number in held
        text = font.render(name.replace("/", " "), True, HELD_TEXT if is_held else FREE_TEXT)
        key_width = text.get_width() + 2 * KEY_PADDING
        if x > KEY_GAP and x + key_width > width - KEY_GAP:
            x, y = KEY_GAP, y + height + KEY_GAP
        places.append((text, pygame.Rect(x, y, key_width, height), is_held))
        x += key_width + KEY_GAP
    surface = pygame.Surface((width, y + height + KEY_GAP), pygame.SRCALPHA)
    for text, place, is_held in places:
        pygame.draw.rect(surface, HELD_COLOUR if is_held else FREE_COLOUR, place, border_radius=4)
        surface.blit(text, text.get_rect(center=place.center))
    colours = pygame.surfarray.array3d(surface).swapaxes(0, 1)
    covers = pygame.surfarray.array_alpha(surface).swapaxes(0, 1)
    return colours, (covers / 255.0)[..., None]


def _lay_over(frame: np.ndarray, colours: np.ndarray, covers: np.ndarray) -> np.ndarray:
    """Return a frame with a picture over its highest rows: worlds show health and counts in the lowest."""
    rows = min(len(colours), len(frame))
    under = frame[:rows]
    frame[:rows] = np.round(under + (colours[:rows] - under.astype(np.float64)) * covers[:rows])
    return frame

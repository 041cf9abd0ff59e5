"""The window at sizes that nobody chooses, but window managers do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pygame
import pytest

from worldsim.errors import WorldError
from worldsim.play.desktop.picker import Picker, WorldChoice
from worldsim.ui.window import MESSAGE_COLOUR, Window

FRAME = np.full((120, 160, 3), 200, np.uint8)
PAGES = [[("a", "b" * 300)] * 30, [(FRAME, "a slot")] * 11, [(np.zeros((900, 2, 3), np.uint8), "thin")]]
SIZES = [(1, 1), (400, 12), (12, 12), (5, 60), (1, 400), (4000, 12), (4000, 300), (160, 120)]


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    yield request.param
    pygame.display.quit()


def resize(window: Window, size: tuple[int, int]) -> None:
    window._screen = pygame.display.set_mode(size, pygame.RESIZABLE)


def test_everything_is_drawn_at_any_size(size: tuple[int, int]) -> None:
    window = Window(160, 120, title="test", has_strip=True)
    resize(window, size)
    for page in PAGES:
        window.show(
            FRAME, ["text", "more text"], page, "a message of many words " * 9, [("layer", "norm")] * 9
        )
        window.show_panes(np.stack([FRAME] * 4), list("abcd"), 2, ["text"], page, "a message")
        assert window.screenshot().shape == (size[1], size[0], 3)
    for place in ((0, 0), (size[0] - 1, size[1] - 1), (9000, 9000)):
        window.pane_at(place)
        window.frame_position(place)
    assert window.pane_at((9000, 9000)) is None


def test_the_picker_is_drawn_at_any_size(size: tuple[int, int]) -> None:
    for height, width in ((120, 160), (2, 300), (1080, 1920)):
        choice = WorldChoice("world", "about it", ("start",), np.zeros((1, height, width, 3), np.uint8))
        picker = Picker([choice])
        resize(picker.window, size)
        picker.advance()
        picker.window.close()
        assert picker._sheet.size


def test_a_frame_larger_than_the_screen_is_shown_whole() -> None:
    window = Window(6000, 4500, title="test", has_strip=True)
    height, width, _ = window.screenshot().shape
    screen = pygame.display.get_desktop_sizes()[0]
    assert window.scale < 1
    assert width <= screen[0]
    assert height <= screen[1]
    window.close()


def test_a_message_covers_nothing_of_the_picture() -> None:
    window = Window(160, 120, title="test", has_strip=True)
    window.show(FRAME, ["text"])
    before = window.screenshot()
    window.show(FRAME, ["text"], message="a message that is rather long, and says something " * 4)
    after = window.screenshot()
    height = 120 * int(window.scale)
    assert np.array_equal(before[:height], after[:height])
    assert (after[height:] == MESSAGE_COLOUR).all(axis=-1).any()
    window.close()


def test_a_screen_that_cannot_be_reached_is_said_and_not_replaced_by_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    with pytest.raises(
        WorldError, match="no window can be opened .*'offscreen'.*headless=true plays without"
    ):
        Window(160, 120, title="test")
    assert not pygame.display.get_init()

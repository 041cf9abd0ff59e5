"""Choosing a world and a start moment by their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pygame
import pytest

from tests.fakes import HEIGHT, WIDTH
from tests.window import tap
from worldsim.play.desktop.picker import (
    BORDER,
    BORDER_COLOUR,
    COLUMNS,
    ROWS,
    Picker,
    WorldChoice,
    contact_sheet,
)


def choice(name: str, count: int) -> WorldChoice:
    pictures = np.random.default_rng(0).integers(256, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return WorldChoice(name, f"about {name}", tuple(f"start-{i:02d}" for i in range(count)), pictures)


@pytest.fixture
def picker() -> Iterator[Picker]:
    picker = Picker([choice("rooms", 20), choice("cave", 2)])
    yield picker
    picker.window.close()


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["return"], ("rooms", "start-00")),
        (["right", "right", "left", "space"], ("rooms", "start-01")),
        (["left", "up", "down", "return"], ("rooms", "start-04")),
        (["down"] * 9 + ["return"], ("rooms", "start-19")),
        (["right", "tab", "right", "right", "return"], ("cave", "start-01")),
        (["escape"], None),
    ],
)
def test_keys_choose(picker: Picker, keys: list[str], chosen: tuple[str, str] | None) -> None:
    for key in keys:
        tap(key)
    assert picker.choose() == chosen
    assert not picker.window.is_open


def test_closing_the_window_chooses_nothing(picker: Picker) -> None:
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert picker.choose() is None


def test_a_gamepad_chooses(picker: Picker) -> None:
    for button in (14, 0):  # right on the cross, a
        pygame.event.post(pygame.event.Event(pygame.CONTROLLERBUTTONDOWN, button=button, instance_id=0))
    assert picker.choose() == ("rooms", "start-01")


def test_a_click_chooses_what_is_under_it(picker: Picker) -> None:
    tap("down")
    picker.advance()
    height, width = (size // COLUMNS for size in picker._sheet.shape[:2])
    place = (int(2.5 * width), height // 2)
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, pos=place, button=1))
    assert picker.choose() == ("rooms", "start-02")


def test_the_sheet_shows_each_picture_and_a_border_around_the_chosen_one() -> None:
    pictures = choice("rooms", 5).pictures
    size = COLUMNS * (HEIGHT + 2 * BORDER), COLUMNS * (WIDTH + 2 * BORDER)
    sheet = contact_sheet(pictures, size, chosen=4)
    height, width = HEIGHT + 2 * BORDER, WIDTH + 2 * BORDER
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        cell = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert np.array_equal(cell[BORDER:-BORDER, BORDER:-BORDER], picture)
        assert (cell[0, 0].tolist() == list(BORDER_COLOUR)) == (number == 4)


def test_a_square_picture_stays_square_among_wide_cells() -> None:
    pictures = np.full((2, 10, 10, 3), 200, np.uint8)
    sheet = contact_sheet(pictures, (ROWS * (20 + 2 * BORDER), COLUMNS * (40 + 2 * BORDER)), chosen=1)
    for number in range(2):
        left = number * (40 + 2 * BORDER)
        cell = sheet[: 20 + 2 * BORDER, left : left + 40 + 2 * BORDER]
        is_shown = (cell == 200).all(-1)
        assert is_shown[BORDER:-BORDER, BORDER + 10 : BORDER + 30].all() and is_shown.sum() == 20 * 20
        is_border = (cell == BORDER_COLOUR).all(-1)
        assert is_border.sum() == number * ((20 + 2 * BORDER) ** 2 - 20 * 20)


def test_a_shipped_world_is_read_without_its_weights() -> None:
    world = WorldChoice.read("doom-rooms")
    assert len(world.start_names) == len(world.pictures) > 1
    assert world.pictures.shape[1:] == (120, 160, 3)
    assert Path(world.name).name == "doom-rooms"


def test_the_picker_says_what_a_world_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    cave = replace(choice("cave", 2), about="Find the way out.")
    picker = Picker([choice("rooms", 3), cave], 1)
    said = []
    monkeypatch.setattr(picker.window, "show", lambda *_, message: said.append(message))
    picker.advance()
    tap("tab")
    picker.advance()
    assert said == ["Find the way out.", "about rooms"]
    picker.window.close()

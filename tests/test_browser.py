"""Play in a real Chromium: keys, fingers, going back, slots, a page that is loaded again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("PIL", reason="needs the extra serve")

from tests.chromium import Page, find_chromium, open_page
from tests.fakes import TINY_ACTIONS, save_tiny_world, tiny_world
from worldsim.play.web.game import first_message
from worldsim.play.web.inbox import Inbox
from worldsim.play.web.server import Server
from worldsim.ui.bindings import Command, bind

ROOT = Path(__file__).resolve().parents[1]
PICTURE = "document.getElementById('screen').toDataURL()"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Give the address of a game that is served from a folder `served`, and see it end well."""
    find_chromium()
    folder = tmp_path / "served"
    world = save_tiny_world(folder / "tiny")
    command = [sys.executable, str(ROOT / "play.py"), f"world={world}", "serve=true", "port=0", "start=0"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = next((line for line in process.stdout if line.startswith("play at ")), "")
    assert line, process.communicate()[1]
    yield line.split()[2]
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "frames in" in output


@pytest.mark.slow
def test_a_game_is_played_in_a_browser(served: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with open_page(tmp_path / "browser", served) as page:
            await page.wait_for("window.game && game.role === 'player' && game.shown > 1")
            await keys_move_the_picture(page)
            await slots_and_going_back(page, tmp_path / "served" / "slots" / "tiny")
            await a_reload_finds_it_as_it_was(page)
            await page.resize(390, 844, is_phone=True)
            await a_reload_finds_it_as_it_was(page)
            await fingers_play(page)
            assert page.errors == []

    asyncio.run(run())


async def keys_move_the_picture(page: Page) -> None:
    await page.tap(" ")
    await page.wait_for("game.status.is_paused")
    await asyncio.sleep(0.3)
    still = await page.evaluate(PICTURE)
    await asyncio.sleep(0.5)
    assert await page.evaluate(PICTURE) == still, "the picture moves while the game is paused"
    await page.tap(" ")
    await page.press("ArrowUp")
    await page.wait_for(f"{PICTURE} !== {still!r}")
    await page.release("ArrowUp")
    await page.wait_for("game.status.frame > 8")


async def slots_and_going_back(page: Page, folder: Path) -> None:
    await page.tap("k")
    await page.wait_for("game.slots.some((slot) => slot.name === 'quick' && slot.picture)")
    assert (folder / "quick.safetensors").is_file()
    saved = await page.evaluate("game.status.frame")
    await page.press("Backspace")
    await page.wait_for("game.status.is_rewinding")
    await page.wait_for(f"game.shown > {await page.evaluate('game.shown')} + 5")
    assert await page.evaluate("document.getElementById('rewind').classList.contains('on')")
    await page.release("Backspace")
    await page.wait_for(f"!game.status.is_rewinding && game.status.frame < {saved} + 3")
    await page.tap("l")
    await page.wait_for("game.status.message === 'loaded slot quick'")
    await page.wait_for(f"game.status.frame >= {saved}")


async def a_reload_finds_it_as_it_was(page: Page) -> None:
    who = "sessionStorage.getItem('arl2-player')"
    before = await page.evaluate(who)
    await page.call("Page.reload")
    await page.wait_for("window.game && game.role === 'player' && game.shown > 0 && game.status.is_paused")
    assert await page.evaluate(who) == before
    where = await page.evaluate("game.status.frame")
    await asyncio.sleep(0.5)
    assert await page.evaluate("game.status.frame") == where, "the world went on without its player"
    await page.tap("ArrowLeft")
    await page.wait_for(f"game.status.frame > {where} + 2")


async def fingers_play(page: Page) -> None:
    await page.evaluate(
        "globalThis.sent = []; const send = WebSocket.prototype.send;"
        "WebSocket.prototype.send = function (text) { sent.push(text); send.call(this, text); }; 0"
    )
    pad = "[data-control='turn/left']"
    await page.touch(pad, "touchStart")
    await page.wait_for('sent.some((text) => text.includes(\'"held":["left"]\'))')
    await page.touch("[data-control='turn/right']", "touchMove")
    await page.wait_for('sent.some((text) => text.includes(\'"held":["right"]\'))')
    await page.touch(pad, "touchEnd")
    await page.wait_for("sent.some((text) => text.includes('\"held\":[]'))")


Play = Callable[[Page, Inbox, Server], Coroutine[Any, Any, None]]


def with_page(folder: Path, play: Play) -> None:
    """Open a page that is served without a game behind it."""
    inbox = Inbox({"up", "down", "left", "right", "w", "s", "a", "d"})
    hello = first_message(tiny_world().config, bind(TINY_ACTIONS, {"noise": ["[8]"], "record": ["\u00fc"]}))

    async def run() -> None:
        with Server(inbox, hello | {"about": "Rooms to walk through."}, host="127.0.0.1", port=0) as server:
            server.show(np.full((96, 128, 3), 90, np.uint8))
            async with open_page(folder, server.url) as page:
                await page.wait_for("window.game && game.role === 'player' && game.shown > 0")
                await play(page, inbox, server)
                assert page.errors == []

    asyncio.run(run())


async def sent(page: Page, inbox: Inbox) -> list[object]:
    """Return what keys asked for until now; what is sent last arrives last."""
    await page.strike("ArrowUp", "ArrowUp")
    held: set[str] = set()
    for _ in range(1000):
        now = inbox.take_held()
        if "up" in held - now:  # pressed, and let go again
            break
        held |= now
        await asyncio.sleep(0.01)
    orders = [order.command for order in inbox.take_orders()]
    return [*(held - {"up"}), *orders, *(["rewind"] if inbox.take_rewinds() else [])]


LAYOUTS = [
    ("q", "KeyA", "a"),
    ("z", "KeyW", "w"),
    ("\u0444", "KeyA", "a"),
    ("Dead", "BracketLeft", Command.FEWER_STEPS),
    ("Process", "KeyD", "d"),
    ("-", "Digit6", Command.FEWER_STEPS),
    ("+", "BracketRight", Command.MORE_STEPS),
    ("\u00e0", "Digit0", Command.LOAD_SLOT),
    ("\u00fc", "BracketLeft", Command.FEWER_STEPS),
    ("\u00fc", "IntlBackslash", Command.RECORD),
    ("8", "Numpad8", Command.NOISE),
    ("7", "Numpad7", Command.LOAD_SLOT),
    ("Backspace", "CapsLock", "rewind"),
    ("a", "", "a"),
    ("ArrowLeft", "", "left"),
    ("\u6f22", "", None),
    ("Unidentified", "F24", None),
]
"""What a key prints, its place, and what it does: on French, Russian, German and Japanese keyboards, on a
number pad, on one whose Caps Lock goes back, and on a screen."""


@pytest.mark.slow
def test_keys_are_found_by_their_place_whatever_they_print(tmp_path: Path) -> None:
    async def play(page: Page, inbox: Inbox, server: Server) -> None:
        for key, code, wanted in LAYOUTS:
            await page.strike(key, code)
            found = await sent(page, inbox)
            assert found == ([] if wanted is None else [wanted]), (key, code, found)
        for modifier in (2, 4):  # Ctrl and Meta: the browser's
            await page.strike("a", "KeyA", modifiers=modifier)
            await page.strike("r", "KeyR", modifiers=modifier)
        assert await sent(page, inbox) == []

    with_page(tmp_path / "browser", play)


@pytest.mark.slow
def test_the_help_names_keys_as_they_are_printed(tmp_path: Path) -> None:
    async def play(page: Page, inbox: Inbox, server: Server) -> None:
        for key, code in (("q", "KeyA"), ("-", "Digit6"), (")", "Minus"), ("d", "KeyH")):
            await page.strike(key, code)
        await page.evaluate("document.querySelectorAll('dialog').forEach((dialog) => dialog.close())")
        await page.strike("d", "KeyH")
        text = await page.wait_for(
            "document.querySelector('#help[open]') && document.getElementById('help').innerText"
        )
        assert "q, pad leftx-\tstrafe left" in text
        assert "[, -\tfewer denoising steps" in text
        assert "Rooms to walk through." in text

    with_page(tmp_path / "browser", play)


@pytest.mark.slow
def test_what_is_held_is_let_go_when_the_page_loses_the_keys(tmp_path: Path) -> None:
    async def play(page: Page, inbox: Inbox, server: Server) -> None:
        for lose in (
            "window.dispatchEvent(new Event('blur'))",
            "window.dispatchEvent(new Event('pagehide'))",
            "window.dispatchEvent(new KeyboardEvent('keydown', {key: 'Meta', code: 'MetaLeft'}))",
        ):
            await page.strike("a", "KeyA", kinds=["rawKeyDown"])
            assert await sent(page, inbox) == ["a"] and inbox.wants_keys
            await page.evaluate(lose)
            await sent(page, inbox)
            assert not inbox.wants_keys, lose
            await page.strike("a", "KeyA", kinds=["keyUp"])
        await page.strike("a", "KeyA", kinds=["rawKeyDown"])
        await page.strike("A", "KeyA", kinds=["keyUp"], modifiers=8)
        await sent(page, inbox)
        assert not inbox.wants_keys, "a key that has another name by the time it comes up is held for ever"

    with_page(tmp_path / "browser", play)


@pytest.mark.slow
def test_a_phone_shows_all_that_is_needed_whichever_way_it_is_held(tmp_path: Path) -> None:
    async def play(page: Page, inbox: Inbox, server: Server) -> None:
        server.tell({"type": "status", "texts": ["paused"] * 9, "message": "saved " * 20, "score": 12.34})
        for width, height, least in ((390, 844, 390), (844, 390, 500), (667, 375, 350), (568, 320, 270)):
            await page.resize(width, height, is_phone=True)
            await page.call("Page.reload")
            await page.wait_for(
                "window.game && game.role === 'player' && game.shown > 0 && game.status.texts"
            )
            await everything_fits(page)
            picture = await page.evaluate("document.getElementById('screen').getBoundingClientRect().width")
            assert picture >= least, (width, height, picture)

    with_page(tmp_path / "browser", play)


async def everything_fits(page: Page) -> None:
    """Nothing scrolls, lies over something else or is too small for a thumb, nor is the seat's button."""
    assert await page.evaluate("document.body.classList.contains('touch')")
    await page.evaluate("document.getElementById('sit').hidden = false")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    shown = "[...document.querySelectorAll('#pads button, #bar button, #screen, #message')]"
    boxes = f"{shown}.filter((e) => e.offsetParent).map((e) => e.getBoundingClientRect())"
    assert await page.evaluate(f"{boxes}.length >= 14")
    inside = "box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight"
    assert await page.evaluate(f"{boxes}.every((box) => {inside})")
    apart = "a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top"
    each = f"(a, i, all) => all.every((b, j) => i === j || {apart})"
    assert await page.evaluate(f"{boxes}.every({each})"), "controls lie over each other"
    large = "(e) => e.getBoundingClientRect().width >= 44 && e.getBoundingClientRect().height >= 44"
    assert await page.evaluate(f"{shown}.filter((e) => e.matches('button') && e.offsetParent).every({large})")


@pytest.mark.slow
def test_an_ended_episode_says_so_and_waits_for_its_player(tmp_path: Path) -> None:
    async def play(page: Page, inbox: Inbox, server: Server) -> None:
        status = {"type": "status", "texts": [], "message": "", "score": -3.26}
        server.tell(status | {"ended": False})
        assert await page.wait_for("document.getElementById('score').textContent") == "score -3.3"
        assert await page.evaluate("document.getElementById('over').hidden")
        assert await page.evaluate("document.getElementById('about').textContent") == "Rooms to walk through."
        server.tell(status | {"ended": True})
        text = await page.wait_for(
            "!document.getElementById('over').hidden && document.getElementById('over').textContent"
        )
        assert text == "game over: press Enter to begin again"
        await page.strike("Enter", "Enter")
        await page.evaluate("document.getElementById('over').click()")
        assert await sent(page, inbox) == [Command.RESET] * 2
        server.tell({"type": "best", "rows": [["", "score"], ["1", "42"]]})
        server.tell(status | {"ended": True, "message": "told"})
        await page.wait_for("document.getElementById('message').textContent === 'told'")
        is_open, key = "!!document.querySelector('#best[open]')", (";", "Semicolon")
        assert not await page.evaluate(is_open), "all pages are told: it is shown where somebody asked for it"
        await page.strike(*key)
        assert await page.evaluate(is_open)
        assert "1\t42" in await page.evaluate("document.getElementById('best').innerText")
        await page.strike(*key)
        assert not await page.evaluate(is_open)
        assert await sent(page, inbox) == [Command.BEST]

    with_page(tmp_path / "browser", play)

"""Play in a real Chromium: keys, fingers, going back, slots, a page that is loaded again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("PIL", reason="needs the extra serve")

from tests.chromium import Page, find_chromium, open_page
from tests.fakes import save_tiny_world

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
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
            await everything_fits(page)
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


async def everything_fits(page: Page) -> None:
    assert await page.evaluate("document.body.classList.contains('touch')")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = "[...document.querySelectorAll('#pads button, #screen')].map((e) => e.getBoundingClientRect())"
    inside = "box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight"
    assert await page.evaluate(f"{boxes}.every((box) => {inside})")
    apart = "a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top"
    each = f"(a, i, all) => all.every((b, j) => i === j || {apart})"
    assert await page.evaluate(f"{boxes}.every({each})"), "controls lie over each other"


async def fingers_play(page: Page) -> None:
    await page.evaluate(
        "globalThis.sent = []; const send = WebSocket.prototype.send;"
        "WebSocket.prototype.send = function (text) { sent.push(text); send.call(this, text); }; 0"
    )
    pad = "[data-control='turn/left']"
    await page.touch(pad, "touchStart")
    await page.wait_for('sent.some((text) => text.includes(\'"held":["left"]\'))')
    await page.touch(pad, "touchEnd")
    await page.wait_for("sent.some((text) => text.includes('\"held\":[]'))")

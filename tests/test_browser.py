"""Play in a real Chromium: press keys, see the picture change, go back, save, load, reload the page."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("PIL", reason="needs the extra serve")

from tests.chromium import Page, find_chromium, open_page
from tests.fakes import save_tiny_world

ROOT = Path(__file__).resolve().parents[1]
PICTURE = "document.getElementById('screen').toDataURL()"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Give the address of a game that is served, and the folder it was started in."""
    find_chromium()
    folder = tmp_path_factory.mktemp("served")
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
    yield line.split()[2], folder
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "frames in" in output


def browse(url: str, play: Callable[[Page], Coroutine[Any, Any, None]], tmp_path: Path, **how: bool) -> None:
    async def run() -> None:
        async with open_page(tmp_path / "browser", url, **how) as page:
            await page.wait_for("window.game && game.role === 'player' && game.shown > 1")
            await play(page)
            assert page.errors == []

    asyncio.run(run())


async def frame_index(page: Page) -> int:
    return int(await page.evaluate("game.status.frame"))


def test_keys_play_and_go_back_and_slots_and_a_reload_keep_the_game(
    served: tuple[str, Path], tmp_path: Path
) -> None:
    url, folder = served

    async def play(page: Page) -> None:
        await page.tap(" ")
        if not await page.evaluate("game.status.is_paused"):
            await page.wait_for("game.status.is_paused")
        still = await page.evaluate(PICTURE)
        await asyncio.sleep(0.5)
        assert await page.evaluate(PICTURE) == still, "the picture moves while the game is paused"
        await page.tap(" ")
        await page.press("ArrowUp")
        await page.wait_for(f"{PICTURE} !== {still!r}")
        await page.release("ArrowUp")
        await page.wait_for("game.status.frame > 8")
        await page.tap("k")
        await page.wait_for("game.slots.some((slot) => slot.name === 'quick' && slot.picture)")
        assert (folder / "slots" / "tiny" / "quick.safetensors").is_file()
        saved = await page.wait_for("game.status.frame")

        await page.press("Backspace")
        await page.wait_for("game.status.is_rewinding")
        await page.wait_for("document.getElementById('rewind').classList.contains('on')")
        await page.wait_for("game.shown > 20")
        await page.release("Backspace")
        await page.wait_for("!game.status.is_rewinding")
        await page.wait_for(f"game.status.frame < {saved}")
        await page.tap("l")
        await page.wait_for("game.status.message === 'loaded slot quick'")
        await page.wait_for(f"game.status.frame >= {saved} - 3")

        before = await page.evaluate("sessionStorage.getItem('arl2-player')")
        await page.call("Page.reload")
        await page.wait_for(
            "window.game && game.role === 'player' && game.status.is_paused && game.shown > 0"
        )
        assert await page.evaluate("sessionStorage.getItem('arl2-player')") == before
        where = await frame_index(page)
        await asyncio.sleep(0.5)
        assert await frame_index(page) == where, "the world went on without its player"
        await page.tap("ArrowLeft")
        await page.wait_for(f"game.status.frame > {where} + 2")

    browse(url, play, tmp_path)


def test_fingers_play_on_a_phone_and_everything_fits(served: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = served

    async def play(page: Page) -> None:
        await page.tap("ArrowUp")  # goes on, where the other test has left the game
        await page.wait_for("!game.status.is_paused")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate("document.body.classList.contains('touch')")
        await page.evaluate(
            "globalThis.sent = []; const send = WebSocket.prototype.send;"
            "WebSocket.prototype.send = function (text) { sent.push(text); send.call(this, text); }; 0"
        )
        pad = "[data-control='turn/left']"
        await page.touch(pad, "touchStart")
        await page.wait_for('sent.some((text) => text.includes(\'"held":["left"]\'))')
        await page.touch(pad, "touchEnd")
        await page.wait_for("sent.some((text) => text.includes('\"held\":[]'))")
        fits = "[...document.querySelectorAll('#pads button, #screen')].map((e) => e.getBoundingClientRect())"
        boxes = (
            f"{fits}.every((box) => box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight)"
        )
        assert await page.evaluate(boxes)
        assert await page.evaluate(
            f"{fits}.every((a, i, all) => all.every((b, j) => i === j || "
            "a.right <= b.left || b.right <= a.left || a.bottom <= b.top || "
            "b.bottom <= a.top))"
        ), "controls lie over each other"

    # The one who played before has gone: its seat is free after a while.
    browse(url, play, tmp_path, is_phone=True)

"""A real Chromium without a screen, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

START_SECONDS, ANSWER_SECONDS = 30, 30
# Code and number of the keys that tests press, by the browser's names.
KEYS = {
    "ArrowUp": ("ArrowUp", 38),
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowRight": ("ArrowRight", 39),
    "Backspace": ("Backspace", 8),
    " ": ("Space", 32),
    **{letter: (f"Key{letter.upper()}", ord(letter.upper())) for letter in "abcdefghijklmnopqrstuvwxyz"},
}


def find_chromium() -> str:
    """Return the program, or skip the test."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium (Debian and Ubuntu: apt-get install chromium)")
    return found


class Page:
    """A page in the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.errors: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await asyncio.wait_for(self._socket.receive_json(), ANSWER_SECONDS)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, expression: str, seconds: float = 30) -> Any:
        """Return what an expression says once it is true."""
        for _ in range(int(seconds / 0.05)):
            if value := await self.evaluate(expression):
                return value
            await asyncio.sleep(0.05)
        state = await self.evaluate("JSON.stringify(window.game && [game.role, game.status, game.shown])")
        raise AssertionError(f"{expression} did not become true: {state}, {self.errors}")

    async def press(self, key: str) -> None:
        code, number = KEYS[key]
        await self._key("rawKeyDown", key, code, number)

    async def release(self, key: str) -> None:
        code, number = KEYS[key]
        await self._key("keyUp", key, code, number)

    async def tap(self, key: str) -> None:
        await self.press(key)
        await self.release(key)

    async def strike(
        self, key: str, code: str, kinds: Sequence[str] = ("rawKeyDown", "keyUp"), **more: Any
    ) -> None:
        """Press and let go the key at a place, which may print something else than on a US keyboard."""
        for kind in kinds:
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, **more)

    async def _key(self, kind: str, key: str, code: str, number: int) -> None:
        await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number)

    async def touch(self, selector: str, kind: str) -> None:
        """Put a finger on an element (`touchStart`), slide it there (`touchMove`) or lift it (`touchEnd`)."""
        box = f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
        place = await self.evaluate(box + " return [b.x + b.width / 2, b.y + b.height / 2]; })()")
        points = [] if kind == "touchEnd" else [{"x": place[0], "y": place[1]}]
        await self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    async def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        if is_phone:
            await self.call("Emulation.setTouchEmulationEnabled", enabled=True)

    async def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


@asynccontextmanager
async def open_page(folder: Path, url: str, *, is_phone: bool = False) -> AsyncIterator[Page]:
    """Start a browser with a page."""
    command = [find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        port = await _port(folder / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                address = (await answer.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                if is_phone:
                    await page.resize(390, 844, is_phone=True)
                await page.call("Page.navigate", url=url)
                yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the browser and its own processes, which it leads
        process.wait(10)


async def _port(file: Path) -> int:
    for _ in range(START_SECONDS * 20):
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise AssertionError("Chromium did not start")

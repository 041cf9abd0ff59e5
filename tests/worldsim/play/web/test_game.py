"""The game behind the page: what a lost connection, an end and a request to stop do."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("PIL", reason="needs the extra serve")

import aiohttp

from policies import KeyboardPolicy
from tests.fakes import TINY_ACTIONS, tiny_world
from tests.window import play_config
from worldsim.envs.single import ARL2WorldEnv
from worldsim.outcome import OutcomeConfig
from worldsim.play.game import Game
from worldsim.play.session import PlaySession
from worldsim.play.web.game import ServedGame
from worldsim.ui.bindings import bind


def ask(use: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of addresses that are numbers, too
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            return await use(session)

    return asyncio.run(run())


def serve(folder: Path, outcome: OutcomeConfig | None = None, **kind: bool) -> ServedGame:
    bindings = bind(TINY_ACTIONS)
    game = Game(
        PlaySession(ARL2WorldEnv(tiny_world(outcome=outcome, **kind)), rewind_bytes=2**26),
        KeyboardPolicy(TINY_ACTIONS.num_values, bindings.buttons),
        {},
        bindings,
        play_config(folder),
    )
    return ServedGame(game, port=0)


class Remote:
    """A page without a browser; it confirms each frame."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.frames = 0
        self.status: dict[str, Any] = {}
        self.slots: list[dict[str, Any]] = []

    async def send(self, **message: Any) -> None:
        await self._connection.send_json(message)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async def read() -> None:
            while not is_so():
                message = await self._connection.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    self.frames += 1
                    await self.send(type="ack", frame=int.from_bytes(message.data[:4], "big"))
                elif message.type is aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    if content["type"] in ("status", "slots"):
                        setattr(self, content["type"], content.get("slots", content))
                else:
                    raise AssertionError(f"the connection ended: {message}")

        await asyncio.wait_for(read(), 20)


def run_with(game: ServedGame, play: Callable[[Any, str], Coroutine[Any, Any, None]]) -> None:
    """Run a served game until a page has done what it wanted to."""

    def browse() -> None:
        try:
            ask(lambda session: play(session, game.server.url))
        except BaseException as error:
            failures.append(error)
        finally:
            is_over.set()

    failures: list[BaseException] = []
    is_over = threading.Event()
    with game.server:
        game.game.restart(0)
        thread = threading.Thread(target=browse)
        thread.start()
        while not is_over.is_set():
            game.advance()
        thread.join()
    assert not failures, failures


def test_a_page_is_told_the_score_where_a_world_has_one(tmp_path: Path) -> None:
    scores: list[object] = []

    async def play(session: Any, url: str) -> None:
        async with session.ws_connect(f"{url}play?player=me") as connection:
            page = Remote(connection)
            await page.until(lambda: page.frames > 3 and page.status.get("frame", 0) > 2)
            scores.append(page.status["score"])
            assert page.status["ended"] is False

    run_with(serve(tmp_path), play)
    run_with(serve(tmp_path, OutcomeConfig(reward_mean=1.0, end_threshold=1.0)), play)
    assert scores[0] is None and isinstance(scores[1], float)


def test_a_score_that_is_no_number_does_not_break_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game, told = serve(tmp_path), []
    game.session.reset()
    monkeypatch.setattr(game.server, "tell", told.append)
    game.session.score = math.nan
    game._tell_status()
    assert told[0]["score"] is None


@pytest.mark.parametrize("has_odometry", [False, True])
def test_a_page_is_told_the_way_while_layers_are_shown(
    has_odometry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game, told = serve(tmp_path, has_odometry=has_odometry), []
    game.session.reset()
    monkeypatch.setattr(game.server, "tell", told.append)
    for _ in range(2):
        game._tell_again_at = 0.0
        game._tell_status()
        game.game.inspector.toggle()
    assert told[0]["map"] == ""
    assert told[1]["map"].startswith("data:image/jpeg;base64,") == has_odometry


def test_a_lost_connection_pauses_and_a_new_one_finds_everything_as_it_was(tmp_path: Path) -> None:
    game = serve(tmp_path)
    states = []

    async def play(session: Any, url: str) -> None:
        async with session.ws_connect(f"{url}play?player=me") as connection:
            page = Remote(connection)
            await page.until(lambda: page.frames > 5)
            await page.send(type="command", name="save_slot", slot="3")
            await page.until(lambda: [slot["name"] for slot in page.slots] == ["3"])
        while not game.game.is_paused:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        states.append(game.session.env.get_state())
        async with session.ws_connect(f"{url}play?player=me") as connection:
            page = Remote(connection)
            await page.until(lambda: page.frames > 0 and bool(page.status))
            await asyncio.sleep(0.3)
            states.append(game.session.env.get_state())
            await page.send(type="keys", held=["up"])
            await page.until(lambda: page.frames > 4)
            await page.send(type="rewind", on=True)
            await page.until(lambda: page.status.get("is_rewinding", False))

    run_with(game, play)
    assert states[0] is states[1], "the world went on without its player"
    assert game.session.num_frames > int(states[0].frame_index[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_pages_are_told_that_the_game_ends_and_nothing_is_lost(
    tmp_path: Path, number: signal.Signals
) -> None:
    game = serve(tmp_path)
    codes, sentences = [], []

    async def play(session: Any) -> None:
        async with session.ws_connect(f"{game.server.url}play?player=me") as connection:
            page = Remote(connection)
            await page.until(lambda: page.frames > 2)
            await page.send(type="command", name="record")
            await page.until(lambda: "recording" in page.status.get("message", ""))
            frames = page.frames
            await page.until(lambda: page.frames > frames + 3)
            os.kill(os.getpid(), number)
            async for _ in connection:
                pass
            codes.append(connection.close_code)

    def say(sentence: str) -> None:
        sentences.append(sentence)
        thread.start()
        raise BrokenPipeError  # the terminal is gone, and the game goes on

    thread = threading.Thread(target=lambda: ask(play))
    with pytest.raises(KeyboardInterrupt), game.session:
        game.run(start=0, say=say)
    thread.join()
    assert sentences == [f"play at {game.server.url} (Ctrl-C ends)"]
    assert codes == [1001]
    assert [path.name for path in (tmp_path / "video").iterdir() if path.suffix == ".mp4"] == [
        "play-0001.mp4"
    ]


def test_an_ended_episode_waits_until_its_player_begins_again(tmp_path: Path) -> None:
    game = serve(tmp_path, OutcomeConfig(end_threshold=1e-6))  # ends with its first frame
    lengths: list[int] = []

    async def play(session: Any, url: str) -> None:
        async with session.ws_connect(f"{url}play?player=me") as connection:
            page = Remote(connection)
            for _ in range(2):
                await page.until(lambda: page.status.get("ended", False))
                lengths.append(page.status["frame"])
                assert "Enter" not in page.status["message"], "a page on a phone has no such key"
                await asyncio.sleep(0.3)
                assert game.session.ended, "it went on somewhere else without its player"
                await page.send(type="command", name="reset")
                await page.until(lambda: game.session.num_frames > len(lengths))

    run_with(game, play)
    assert lengths == [1, 1]

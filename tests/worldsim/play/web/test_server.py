"""The server with real connections: who is let in, what is refused, how connections end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("PIL", reason="needs the extra serve")

import aiohttp

from worldsim.errors import WorldError
from worldsim.play.web.inbox import Inbox
from worldsim.play.web.lobby import MAX_CLIENTS
from worldsim.play.web.server import GUESS_SECONDS, MAX_MESSAGE_BYTES, Server

HELLO = {"type": "hello"}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(Inbox({"up"}), HELLO, host="127.0.0.1", port=0) as server:
        yield server


@pytest.fixture
def guarded() -> Iterator[Server]:
    with Server(Inbox({"up"}), HELLO, host="0.0.0.0", port=0) as server:
        yield server


def ask(use: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of addresses that are numbers, too
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            return await use(session)

    return asyncio.run(run())


def status_of(url: str, **headers: str) -> int:
    async def use(session: Any) -> int:
        async with session.get(url, headers=headers) as answer:
            return answer.status

    return ask(use)


def test_the_page_comes_with_nothing_from_elsewhere(server: Server) -> None:
    async def use(session: Any) -> tuple[str, Any]:
        async with session.get(server.url) as answer:
            return await answer.text(), answer.headers

    text, headers = ask(use)
    assert "<canvas" in text
    assert "://" not in text.replace("${scheme}://", ""), "something is loaded from elsewhere"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "NONCE" not in text


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "a@b:c"]
)
def test_another_name_for_this_machine_is_refused(server: Server, name: str) -> None:
    port = server.url.rstrip("/").rpartition(":")[2]
    host = name if ":" in name else f"{name}:{port}"
    assert status_of(server.url, Host=host) in (400, 403)
    assert status_of(server.url, Host=f"localhost:{port}") == 200


def test_a_page_of_another_site_is_refused(server: Server) -> None:
    address = f"{server.url}play?player=x"

    async def use(session: Any, origin: str) -> int:
        try:
            async with session.ws_connect(address, origin=origin) as connection:
                await connection.receive_json()
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status

    assert ask(lambda session: use(session, "http://evil.example")) == 403
    assert ask(lambda session: use(session, "null")) == 403
    assert ask(lambda session: use(session, "http://[")) == 403
    assert ask(lambda session: use(session, server.url.rstrip("/"))) == 101


def test_a_tunnel_from_another_port_leads_to_the_page_and_its_connection(server: Server) -> None:
    headers = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}
    assert status_of(server.url, Host="localhost:9000") == 200

    async def use(session: Any) -> Any:
        async with session.ws_connect(f"{server.url}play?player=x", headers=headers) as connection:
            return await connection.receive_json()

    assert ask(use) == HELLO


def test_any_other_address_needs_the_token_and_keeps_it_in_a_cookie(guarded: Server) -> None:
    port = guarded.url.partition("/?")[0].rpartition(":")[2]
    base = f"http://127.0.0.1:{port}"
    assert guarded.url.endswith(f"/?token={guarded.token}") and len(guarded.token) >= 24
    assert status_of(f"{base}/") == 403
    assert status_of(f"{base}/play?player=x") == 403
    assert status_of(f"{base}/?token=guess") == 403
    assert status_of(f"{base}/?token=%C3%A9") == 403

    async def use(session: Any) -> tuple[str, dict[str, Any]]:
        async with session.get(f"{base}/?token={guarded.token}") as answer:
            assert answer.status == 200
            address = str(answer.url)
        async with session.ws_connect(f"{base}/play?player=x") as connection:
            return address, await connection.receive_json()

    address, hello = ask(use)
    assert "token" not in address
    assert hello == HELLO


def test_what_is_too_long_or_no_message_ends_the_connection(server: Server) -> None:
    async def code_after(session: Any, text: str) -> int:
        async with session.ws_connect(f"{server.url}play?player=x") as connection:
            await connection.send_str(text)
            async for _ in connection:
                pass
            return connection.close_code

    assert ask(lambda session: code_after(session, "x" * (MAX_MESSAGE_BYTES + 1))) == 1009
    assert ask(lambda session: code_after(session, "nonsense")) == 4002
    assert ask(lambda session: code_after(session, "[" * 4000)) == 4002


def test_no_more_than_so_many_pages(server: Server) -> None:
    async def use(session: Any) -> int:
        open_pages = [
            await session.ws_connect(f"{server.url}play?player={number}") for number in range(MAX_CLIENTS)
        ]
        try:
            await session.ws_connect(f"{server.url}play?player=late")
        except aiohttp.WSServerHandshakeError as error:
            return error.status
        finally:
            for page in open_pages:
                await page.close()
        return 101

    assert ask(use) == 503


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("a..b", 0)])
def test_an_address_that_is_none_is_named_at_once(host: str, port: int) -> None:
    with (
        pytest.raises(WorldError, match=rf"cannot serve on {host}:{port}: \S"),
        Server(Inbox(()), HELLO, host=host, port=port),
    ):
        pass


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(WorldError, match=f"cannot serve on 127.0.0.1:{port}"),
            Server(Inbox(()), HELLO, host="127.0.0.1", port=port),
        ):
            pass


def test_a_page_that_sends_too_fast_is_read_more_slowly(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldsim.play.web.server.MAX_MESSAGES_PER_SECOND", 50)

    async def use(session: Any) -> float:
        async with session.ws_connect(f"{server.url}play?player=x") as connection:
            started = asyncio.get_running_loop().time()
            for _ in range(70):
                await connection.ping()
                await connection.send_json({"type": "keys", "held": []})
            await connection.send_str("the last")
            async for _ in connection:
                pass
            assert connection.close_code == 4002
            return asyncio.get_running_loop().time() - started

    assert 1 < ask(use) < 10


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "\\ud800"}',
        '{"type": "ack", "frame": 1e999}',
        "9" * 4000,
        '{"type": "' + "\u00fc" * 999 + '"}',
    ],
)
def test_the_reason_why_a_message_is_refused_can_be_sent(server: Server, text: str) -> None:
    async def use(session: Any) -> Any:
        async with session.ws_connect(f"{server.url}play?player=x") as connection:
            await connection.send_str(text)
            async for message in connection:
                assert message.type is not aiohttp.WSMsgType.ERROR, message
            return connection.close_code

    assert ask(use) == 4002


def test_bytes_are_no_message(server: Server) -> None:
    async def use(session: Any) -> Any:
        async with session.ws_connect(f"{server.url}play?player=x") as connection:
            await connection.send_bytes(b"\x00" * 100)
            async for _ in connection:
                pass
            return connection.close_code

    assert ask(use) == 4002


def test_the_address_with_the_token_is_neither_kept_nor_passed_on(guarded: Server) -> None:
    port = guarded.url.partition("/?")[0].rpartition(":")[2]

    async def use(session: Any) -> Any:
        address = f"http://127.0.0.1:{port}/?token={guarded.token}"
        async with session.get(address, allow_redirects=False) as answer:
            return answer.status, answer.headers

    status, headers = ask(use)
    assert status == 302
    assert headers["Location"] == "./", "an absolute one would leave the path that a proxy serves it at"
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Lax" in headers["Set-Cookie"]


def test_wrong_tokens_are_answered_slowly_and_no_token_is_not(guarded: Server) -> None:
    port = guarded.url.partition("/?")[0].rpartition(":")[2]
    started = time.monotonic()
    assert status_of(f"http://127.0.0.1:{port}/") == 403
    between = time.monotonic()
    assert status_of(f"http://127.0.0.1:{port}/?token=guess") == 403
    assert time.monotonic() - between >= GUESS_SECONDS > between - started


def test_a_page_replaces_itself_at_once_though_the_old_one_is_dead(server: Server) -> None:
    async def use(session: Any) -> float:
        url = f"{server.url}play?player=x"
        old = await session.ws_connect(url, autoclose=False)
        await old.receive_json()
        old._response.connection.transport.pause_reading()  # it never answers that it is to close
        started = asyncio.get_running_loop().time()
        async with session.ws_connect(url) as connection:
            assert await connection.receive_json() == HELLO
            taken = asyncio.get_running_loop().time() - started
        old._response.close()
        return taken

    assert ask(use) < 0.5


def test_dead_pages_do_not_hold_up_the_end() -> None:
    async def use(session: Any) -> float:
        with Server(Inbox({"up"}), HELLO, host="127.0.0.1", port=0) as server:
            for number in range(5):
                page = await session.ws_connect(f"{server.url}play?player={number}", autoclose=False)
                await page.receive_json()
                page._response.connection.transport.pause_reading()
            started = time.monotonic()
        return time.monotonic() - started

    assert ask(use) < 4


def test_games_behind_tunnels_to_the_same_port_do_not_take_each_other_s_cookies() -> None:
    async def use(session: Any) -> set[str]:
        port = 0
        for token in ("of one game", "of another"):
            with Server(Inbox(()), HELLO, host="0.0.0.0", port=port, token=token) as server:
                port = int(server.url.partition("/?")[0].rpartition(":")[2])
                async with session.get(f"http://127.0.0.1:{port}/", params={"token": token}) as answer:
                    assert answer.status == 200
        return {cookie.value for cookie in session.cookie_jar}

    assert ask(use) == {"of one game", "of another"}

"""Limits of connections that have not been let in."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("PIL", reason="needs the extra serve")

import aiohttp
from aiohttp import web

from worldsim.play.web import admission
from worldsim.play.web.admission import MAX_REQUEST_BYTES, MAX_STRANGERS, Door
from worldsim.play.web.inbox import Inbox
from worldsim.play.web.server import Server

HELLO = {"type": "hello"}
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
SECURITY = ("Cache-Control", "Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(Inbox({"up"}), HELLO, host="127.0.0.1", port=0) as server:
        yield server


def port_of(server: Server) -> int:
    return int(server.url.partition("/?")[0].rstrip("/").rpartition(":")[2])


def connect(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port_of(server)), 5)
    connection.settimeout(5)
    return connection


def answer_to(server: Server, request: bytes) -> str:
    """Return all that comes back for some bytes, until the server ends the connection."""
    with connect(server) as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(65_536):
            received += part
    return received.decode()


def has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def join(server: Server, use: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        url = f"http://127.0.0.1:{port_of(server)}/play?player=me"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as page:
            await use(page)

    asyncio.run(run())


def test_any_number_of_silent_connections_keeps_nobody_out(server: Server) -> None:
    with ExitStack() as silent:
        held = [silent.enter_context(connect(server)) for _ in range(3 * MAX_STRANGERS)]
        assert "200 OK" in answer_to(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert all(has_ended(connection) for connection in held[: 2 * MAX_STRANGERS])


def test_players_are_not_counted_with_strangers(server: Server) -> None:
    async def use(page: Any) -> None:
        with ExitStack() as silent:
            for _ in range(2 * MAX_STRANGERS):
                silent.enter_context(connect(server))
            await page.send_json({"type": "keys", "held": []})
            assert await page.receive_json() == HELLO

    join(server, use)


def test_the_crowd_of_one_address_makes_room_for_another() -> None:
    async def run() -> list[int]:
        dropped = []

        class Guest:
            def __init__(self, number: int, address: str) -> None:
                self._number = number
                self.transport = self
                self._address = address

            def get_extra_info(self, name: str) -> tuple[str, int]:
                return self._address, 1

            def drop(self) -> None:
                dropped.append(self._number)
                door.forget(self)  # type: ignore[arg-type]

        door = Door(web.Server(lambda request: web.Response()))  # type: ignore[arg-type]
        door.enter(Guest(0, "192.0.2.1"))  # type: ignore[arg-type]
        for number in range(1, MAX_STRANGERS + 3):
            door.enter(Guest(number, f"2001:db8:0:1::{number:x}"))  # type: ignore[arg-type]
        return dropped

    assert asyncio.run(run()) == [1, 2, 3], "a network of one machine counts as one address"


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"\x16\x03\x01"])
def test_patience_ends_however_slowly_something_comes(
    server: Server, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PATIENCE_SECONDS", 0.3)
    with connect(server) as connection:
        connection.sendall(begin)
        started = time.monotonic()
        connection.settimeout(0.02)
        while not has_ended(connection):
            assert time.monotonic() < started + 2
            with suppress(OSError):
                connection.sendall(b"X-A: b\r\n" if begin.startswith(b"GET") else b"")


def test_a_page_that_no_longer_answers_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldsim.play.web.server.HEARTBEAT_SECONDS", 0.2)
    with connect(server) as connection:
        request = b"GET /play?player=x HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE
        connection.sendall(request + b"AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        received = b""
        started = time.monotonic()
        while part := connection.recv(4096):
            received += part
        assert received.startswith(b"HTTP/1.1 101") and b"hello" in received
        assert time.monotonic() < started + 2


def test_no_more_is_read_than_a_request_may_have(server: Server) -> None:
    with connect(server) as connection, pytest.raises(OSError):
        for _ in range(64 * MAX_REQUEST_BYTES // 1000):
            connection.sendall(b"x" * 1000)
            time.sleep(0.0001)


def test_cookies_of_other_pages_of_this_machine_are_no_obstacle(server: Server) -> None:
    cookies = b"; ".join(b"other%d=%s" % (number, b"x" * 1000) for number in range(20))
    text = answer_to(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: " + cookies + b"\r\n\r\n")
    assert text.startswith("HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.0\r\n\r\n", 403),
        (b"GET /\x1b[2J HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /%1b%5b2J HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: \x1b[31m\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 50_000 + b"\r\n\r\n", 400),
        (b"GET /play?player=x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /play HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /play?player=x HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + b"\xff\xff\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
def test_every_answer_has_the_headers_and_no_version(server: Server, request_: bytes, status: int) -> None:
    text = answer_to(server, request_)
    assert text.startswith("HTTP/1.") and int(text.split()[1]) == status
    assert all(f"\r\n{name}: " in text for name in SECURITY)
    assert "Server: arl2-world\r\n" in text
    assert "aiohttp" not in text and "Python" not in text and "\x1b" not in text


def test_nothing_that_strangers_send_reaches_the_terminal(
    server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    upgrade = UPGRADE + b"AAAAAAAAAAAAAAAAAAAAAA=="
    for line in (
        b"GET /\x1b[31mred HTTP/1.1\r\nHost: localhost",
        b"GET / HTTP/1.1\r\nHost: \x1b[31mred",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: red\x01=x; @red=y; $red=1",
        b"GET /play?player=red HTTP/1.1\r\nHost: localhost\r\nSec-WebSocket-Protocol: red\r\n" + upgrade,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[red",
        b"red\r\nred",
    ):
        assert answer_to(server, line + b"\r\n\r\n")
    assert not any(capfd.readouterr())
    assert caplog.text == ""


def test_a_failure_is_told_once_a_minute_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        door = Door(web.Server(lambda request: web.Response()))  # type: ignore[arg-type]
        door.report(ConnectionResetError("somebody has gone"))
        for _ in range(1000):
            door.report(ValueError("\x1b[31m\u2028" + "x" * 1000))

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert len(caplog.records) == 1
    assert "ValueError: '\\x1b[31m\\u2028xx" in caplog.messages[0]
    assert caplog.messages[0].isprintable() and len(caplog.messages[0]) < 300


def test_strangers_go_when_there_are_no_descriptors_for_more(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    shortage = OSError(errno.EMFILE, "Too many open files")
    with connect(server) as connection:
        time.sleep(0.1)
        context = {"message": "socket.accept() out of system resource", "exception": shortage, "socket": None}
        server._post(server._loop.call_exception_handler, context)
        assert has_ended(connection)
    assert "Too many open files" in caplog.text

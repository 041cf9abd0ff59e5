"""The page and its connections: loopback by default, a token anywhere else, no other site's pages."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from worldsim.errors import WorldError
from worldsim.server_inbox import Inbox
from worldsim.server_room import REFUSED, REPLACED, Client, Room

PAGE = "assets/player.html"
MAX_MESSAGE_BYTES = 4096
HEARTBEAT_SECONDS = 5.0
"""How often a connection must show that it is alive; one that does not is closed."""
START_SECONDS, STOP_SECONDS = 20, 10
MAX_NAME_LENGTH = 64

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Serves one game, in a thread of its own. A context manager.

    Args:
        inbox: Where what the player asks for goes.
        hello: What a page is told first.
        host: Address to listen on; loopback is for this machine alone, any other asks for a token.
        port: Port to listen on; 0 takes a free one.
        token: The token instead of a drawn one; '' draws one where one is needed.

    Attributes:
        url: Where the page is, with the token.

    Raises:
        WorldError: If that address cannot be listened on.
    """

    def __init__(
        self, inbox: Inbox, hello: Mapping[str, Any], *, host: str, port: int, token: str = ""
    ) -> None:
        self._host, self._port = host, port
        self.token = "" if is_loopback(host) else token or secrets.token_urlsafe(18)
        self._room = Room(inbox, hello)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._sockets: dict[Client, web.WebSocketResponse] = {}
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self.url = ""

    def __enter__(self) -> Server:
        self._thread.start()
        try:
            self._port = self._ready.result(START_SECONDS)
        except (OSError, OverflowError, ValueError) as error:
            self._thread.join(STOP_SECONDS)
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or "no answer"
            raise WorldError(f"cannot serve on {self._host}:{self._port}: {reason}") from error
        shown = socket.gethostname() if self._host in ("0.0.0.0", "::") else self._host
        shown = f"[{shown}]" if ":" in shown else shown
        query = f"?token={self.token}" if self.token else ""
        self.url = f"http://{shown}:{self._port}/{query}"
        return self

    def __exit__(self, *error: object) -> None:
        self._post(self._stop.set)
        self._thread.join(STOP_SECONDS)

    def show(self, frame: np.ndarray) -> None:
        """Show a frame `[H, W, 3]` uint8, which nobody changes any more; returns at once."""
        self._post(self._room.show, frame)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell all pages something; returns at once."""
        self._post(self._room.tell, message)

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is there any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except (OSError, OverflowError, ValueError) as error:  # of an address that is none, too
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_MESSAGE_BYTES)
        app.router.add_get("/", self._page)
        app.router.add_get("/play", self._play)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            self._ready.set_result(int(runner.addresses[0][1]))
            await self._stop.wait()
            for connection in list(self._sockets.values()):
                await connection.close(code=WSCloseCode.GOING_AWAY, message=b"the game has ended")
        finally:
            await runner.cleanup()

    @property
    def _guard(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._refuse_strangers(request)
            response = await handler(request)
            if not response.prepared:
                response.headers.update(
                    {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
                    | {"X-Content-Type-Options": "nosniff"}
                )
            return response

        return guard

    def _refuse_strangers(self, request: web.Request) -> None:
        """Refuse who is not of this machine or does not know the token, and pages of other sites."""
        if self.token:
            given = request.query.get("token") or request.cookies.get(self._cookie, "")
            if not secrets.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode()):
                raise web.HTTPForbidden(text="The address needs its token: it was printed at the start.\n")
        elif not self._is_own_name(request.host):
            # A name of somebody else's that leads here (DNS rebinding) would let their page in.
            raise web.HTTPForbidden(text="This game is played on the machine it runs on, as localhost.\n")
        origin = request.headers.get("Origin")
        if origin is not None and not _is_from(origin, request.host):
            raise web.HTTPForbidden(text="Another site's page may not play here.\n")

    def _is_own_name(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            port = parts.port or 80
        except ValueError:
            return False
        return port == self._port and is_loopback(parts.hostname or "")

    @property
    def _cookie(self) -> str:
        return f"arl2_world_{self._port}"  # cookies are one for all ports of a machine

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if self.token and "token" in request.query:  # into a cookie, out of the address bar
            moved = web.HTTPFound("/")
            # Not Strict: the address may be clicked in a mail. Pages of other sites meet the check of Origin.
            moved.set_cookie(self._cookie, self.token, httponly=True, samesite="Lax")
            raise moved
        nonce = secrets.token_urlsafe(12)
        text = files("worldsim").joinpath(PAGE).read_text(encoding="utf-8").replace("NONCE", nonce)
        own = f"'nonce-{nonce}'"
        policy = (
            f"default-src 'none'; script-src {own}; style-src {own}; connect-src 'self'; img-src data: blob:"
        )
        policy += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        headers = {"Content-Security-Policy": policy}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _play(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("player", "")
        if not name or len(name) > MAX_NAME_LENGTH:
            raise web.HTTPBadRequest(text="A page says who it is: /play?player=NAME\n")
        if self._room.is_full:
            raise web.HTTPServiceUnavailable(text="Too many pages are open.\n")
        connection = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE_BYTES, heartbeat=HEARTBEAT_SECONDS, compress=False
        )
        await connection.prepare(request)
        client = Client(name, connection)
        self._sockets[client] = connection
        replaced = self._room.join(client)
        if replaced is not None and (old := self._sockets.get(replaced)) is not None:
            await old.close(code=REPLACED, message=b"played in another page")
        sending = asyncio.create_task(client.send())
        try:
            await self._listen(client, connection)
        finally:
            sending.cancel()
            self._room.leave(client)
            self._sockets.pop(client, None)
            with suppress(asyncio.CancelledError, ConnectionError):
                await sending
        return connection

    async def _listen(self, client: Client, connection: web.WebSocketResponse) -> None:
        async for message in connection:
            if message.type != WSMsgType.TEXT:
                continue
            try:
                self._room.hear(client, message.data)
            except WorldError as error:
                await connection.close(code=REFUSED, message=str(error).encode()[:100])


def _is_from(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether an address is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

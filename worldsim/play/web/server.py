"""The page and its connections: loopback by default, a token anywhere else, no other site's pages."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib.resources import files
from typing import Any

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from worldsim.errors import WorldError
from worldsim.play.web.admission import Door, Visitor, finish_headers
from worldsim.play.web.inbox import Inbox
from worldsim.play.web.lobby import REFUSED, REPLACED, Client, Lobby
from worldsim.play.web.origins import is_loopback, is_own_origin, names_loopback

PAGE = "player.html"
COOKIE = "arl2_world_"
MAX_MESSAGE_BYTES = 4096
MAX_MESSAGES_PER_SECOND = 1000
"""Of a page, which confirms each frame; one that sends more is read more slowly."""
HEARTBEAT_SECONDS = 5.0
"""How often a connection must show that it is alive; one that does not is closed."""
CLOSE_SECONDS = 1.0
"""How long a page may take to agree that its connection ends."""
GUESS_SECONDS = 0.5
"""How long the answer to a wrong token takes."""
START_SECONDS, STOP_SECONDS = 20, 10
MAX_NAME_LENGTH = 64
MAX_REASON_BYTES = 100

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Serves one game, in a thread of its own. A context manager.

    Args:
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
        self._host, self._port = host.strip("[]"), port
        self.token = "" if is_loopback(host) else token or secrets.token_urlsafe(18)
        self._lobby = Lobby(inbox, hello)
        self._text = files("worldsim.play.web").joinpath(PAGE).read_text(encoding="utf-8")
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
        shown = socket.gethostname() if self._host in ("", "0.0.0.0", "::") else self._host
        shown = f"[{shown}]" if ":" in shown else shown
        query = f"?token={self.token}" if self.token else ""
        self.url = f"http://{shown}:{self._port}/{query}"
        return self

    def __exit__(self, *error: object) -> None:
        self._post(self._stop.set)
        self._thread.join(STOP_SECONDS)

    def show(self, frame: np.ndarray) -> None:
        """Show a frame `[H, W, 3]` uint8, which nobody changes any more; returns at once."""
        self._post(self._lobby.show, frame)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell all pages something; returns at once."""
        self._post(self._lobby.tell, message)

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is there any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except (OSError, OverflowError, ValueError) as error:  # of an address that is none, too
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_MESSAGE_BYTES)
        app.on_response_prepare.append(finish_headers)
        app.router.add_get("/", self._page)
        app.router.add_get("/play", self._play)
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=CLOSE_SECONDS)
        await runner.setup()
        assert runner.server is not None
        door = Door(runner.server)
        self._loop.set_exception_handler(door.note_failure)
        try:
            listening = await self._loop.create_server(door, self._host or None, self._port)
            self._ready.set_result(int(listening.sockets[0].getsockname()[1]))
            await self._stop.wait()
            listening.close()
            goodbyes = [
                page.close(code=WSCloseCode.GOING_AWAY, message=b"the game has ended")
                for page in self._sockets.values()
            ]
            await asyncio.gather(*goodbyes, return_exceptions=True)
        finally:
            await runner.cleanup()

    @property
    def _guard(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            await self._refuse_strangers(request)
            return await handler(request)

        return guard

    async def _refuse_strangers(self, request: web.Request) -> None:
        """Refuse who is not of this machine or does not know the token, and pages of other sites."""
        if self.token:
            kept = [text for name, text in request.cookies.items() if name.startswith(COOKIE)]
            given = [request.query.get("token", ""), *kept]
            if not any(self._is_token(text) for text in given):
                if any(given):
                    await asyncio.sleep(GUESS_SECONDS)
                raise web.HTTPForbidden(text="The address needs its token: it was printed at the start.\n")
        elif not names_loopback(request.headers.get("Host", "")):
            # A name of somebody else's that leads here (DNS rebinding) would let their page in.
            raise web.HTTPForbidden(text="This game is played on the machine it runs on, as localhost.\n")
        origin = request.headers.get("Origin")
        if origin is not None and not is_own_origin(origin, request.headers):
            raise web.HTTPForbidden(text="Another site's page may not play here.\n")

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "surrogateescape"), self.token.encode())

    @property
    def _cookie(self) -> str:
        # Cookies are one for all ports of a machine, and tunnels lead from it to games on others.
        return COOKIE + hashlib.sha256(self.token.encode()).hexdigest()[:8]

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if self.token and "token" in request.query:  # into a cookie, out of the address bar
            moved = web.HTTPFound("./")  # below whatever path a proxy has put in front
            # Not Strict: the address may be clicked in a mail. Pages of other sites meet the check of Origin.
            moved.set_cookie(self._cookie, self.token, httponly=True, samesite="Lax")
            raise moved
        nonce = secrets.token_urlsafe(12)
        text = self._text.replace("NONCE", nonce)
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
        if not self._lobby.has_room(name):
            raise web.HTTPServiceUnavailable(text="Too many pages are open.\n")
        connection = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE_BYTES,
            heartbeat=HEARTBEAT_SECONDS,
            timeout=CLOSE_SECONDS,
            compress=False,
            autoping=False,  # else pings would not be counted with the messages
        )
        if not _can_begin(connection, request):
            raise web.HTTPBadRequest(
                text="This is the address of a WebSocket, without a protocol of its own.\n"
            )
        if isinstance(request.protocol, Visitor):
            request.protocol.let_in()
        client = Client(name, connection)
        self._sockets[client] = connection
        replaced = self._lobby.join(client)  # before anything is waited for: the room is never overfull
        try:
            await connection.prepare(request)
            await self._talk(client, connection, self._sockets.get(replaced) if replaced else None)
        finally:
            self._lobby.leave(client)
            self._sockets.pop(client, None)
        return connection

    async def _talk(
        self, client: Client, connection: web.WebSocketResponse, old: web.WebSocketResponse | None
    ) -> None:
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(client.send())]
        if old is not None:  # it may be dead, and nobody knows: the new one does not wait for its answer
            tasks.append(asyncio.create_task(old.close(code=REPLACED, message=b"played in another page")))
        try:
            await self._listen(client, connection)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, client: Client, connection: web.WebSocketResponse) -> None:
        due = 0.0
        async for message in connection:
            now = self._loop.time()
            due = max(due, now - 1) + 1 / MAX_MESSAGES_PER_SECOND
            if due > now:
                await asyncio.sleep(due - now)
            if message.type == WSMsgType.PING:
                await connection.pong(message.data)
                continue
            if message.type == WSMsgType.PONG:
                continue
            try:
                if message.type != WSMsgType.TEXT:
                    raise WorldError("a message must be text")
                self._lobby.handle_message(client, message.data)
            except WorldError as error:
                reason = str(error).encode("ascii", "backslashreplace")[:MAX_REASON_BYTES]
                await connection.close(code=REFUSED, message=reason)


def _can_begin(connection: web.WebSocketResponse, request: web.Request) -> bool:
    if "Sec-WebSocket-Protocol" in request.headers:
        return False
    try:
        return connection.can_prepare(request).ok
    except ValueError:  # of a key that is not ASCII
        return False

"""Limits for connections that have not been let in: few, short, small, and nothing they send is printed."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
import traceback
from collections import Counter
from typing import Any

from aiohttp import web

MAX_STRANGERS = 24
"""Connections that may wait to be let in; one more, and the one that waited longest has to go."""
PATIENCE_SECONDS = 10.0
"""For a request and its answer, however slowly either is sent or read."""
MAX_REQUEST_BYTES, MAX_FIELD_BYTES = 2**16, 2**15
"""Of a request with its headers, and of a header: cookies of this machine's other pages come along."""
REPORT_SECONDS = 60.0
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Server": "arl2-world",  # instead of the versions of what it runs on
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer, errors too; a page may bring a `Content-Security-Policy` of its own."""
# What aiohttp does with a connection: no line in a log, no body that is waited for or unpacked.
SETTINGS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "lingering_time": 0.0,
    "max_field_size": MAX_FIELD_BYTES,
}

_log = logging.getLogger(__name__)


class Door:
    """Makes the protocol of each connection, for `loop.create_server`.

    Each connection is a stranger until `Visitor.let_in`. There are at most `MAX_STRANGERS`: of too many, the
    oldest goes of the address that has most, so that who asks at once gets in beside any number that do not.
    """

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._strangers: dict[Visitor, str] = {}  # with their networks, the oldest first
        self._report_again_at, self._num_unsaid = 0.0, 0
        # What strangers send ends in warnings of the library, and those on the terminal.
        logger = logging.getLogger("aiohttp")
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())

    def __call__(self) -> Visitor:
        """Return the protocol of a new connection."""
        return Visitor(self, self._server)

    def enter(self, visitor: Visitor) -> None:
        """Note a new connection; another one goes, if there are too many."""
        self._strangers[visitor] = _network(visitor.transport)
        if len(self._strangers) > MAX_STRANGERS:
            crowd = Counter(self._strangers.values()).most_common(1)[0][0]
            next(other for other, network in self._strangers.items() if network == crowd).drop()

    def forget(self, visitor: Visitor) -> None:
        """Note that a connection was let in, or is gone."""
        self._strangers.pop(visitor, None)

    def note_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error of the event loop: without descriptors for new connections, strangers go."""
        if isinstance(error := context.get("exception"), OSError) and "socket" in context:
            for visitor in list(self._strangers):
                visitor.drop()
        self.report(error or RuntimeError(context["message"]))

    def report(self, error: BaseException) -> None:
        """Write a line about an error of our own to the log, at most once in `REPORT_SECONDS`."""
        if isinstance(error, ConnectionError):  # the other side is gone, which is no error
            return
        now = time.monotonic()
        if now < self._report_again_at:
            self._num_unsaid += 1
            return
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        more = f"; {self._num_unsaid} more errors before" if self._num_unsaid else ""
        # ascii: nothing that somebody sent reaches the terminal as it came
        _log.error("the server: %s: %s%s%s", type(error).__name__, ascii(str(error))[:200], where, more)
        self._report_again_at, self._num_unsaid = now + REPORT_SECONDS, 0


class Visitor(web.RequestHandler):
    """One connection, with the patience there is for it."""

    def __init__(self, door: Door, server: web.Server) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **SETTINGS)
        self._door = door
        self._num_bytes = 0
        self._is_stranger = True
        self._deadline: asyncio.TimerHandle | None = None

    def let_in(self) -> None:
        """Lift the limits: what this connection is used for has its own."""
        self._is_stranger = False
        self._door.forget(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def drop(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self._door.forget(self)
        if isinstance(transport := self.transport, asyncio.WriteTransport):
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._deadline = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self.drop)
        self._door.enter(self)

    def data_received(self, data: bytes) -> None:
        """Take in what was sent, as far as it is not too much."""
        self._num_bytes += len(data)
        if self._is_stranger and self._num_bytes > MAX_REQUEST_BYTES:
            self.drop()
        else:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self.let_in()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to what is no request, or when an answer failed, with nothing of either in it."""
        if status >= 500 and exc is not None:
            self._door.report(exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        text = "The server failed.\n" if status >= 500 else "This is no request, or too long for one.\n"
        answer = web.Response(status=status, text=text, headers=HEADERS)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Report an error that nothing else has handled."""
        error = kw.get("exc_info")
        self._door.report(error if isinstance(error, BaseException) else RuntimeError(str(args[0])))


async def finish_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Give an answer its headers as it begins, whoever made it; the page is one file, so each is the last."""
    own = response.headers.get("Content-Security-Policy")
    response.headers.update(HEADERS | ({"Content-Security-Policy": own} if own else {}))
    if not isinstance(response, web.WebSocketResponse):
        response.force_close()
        response.headers["Connection"] = "close"


def _network(transport: asyncio.BaseTransport | None) -> str:
    """Return the address a connection comes from; of IPv6 the network, which one machine has for itself."""
    peer = None if transport is None else transport.get_extra_info("peername")
    if not peer:
        return ""
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    return str(address) if address.version == 4 else address.exploded[:19]

"""Connected clients: one player and spectators, each with the newest frame and no queue."""

# H W frame size

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from worldsim.errors import WorldError
from worldsim.play.web.inbox import Inbox, read_held, read_message, read_order
from worldsim.storage.files import check_bool, check_integer

MAX_CLIENTS = 16
MAX_IN_FLIGHT = 4
"""Frames that may be on their way to a page that has not confirmed them: later ones are dropped."""
SEAT_SECONDS = 30.0
"""How long the seat of a player who has gone is kept free for them."""
JPEG_QUALITY = 90
REPLACED, REFUSED = 4001, 4002
"""Why a connection was closed: its player sits elsewhere now; it sent what is no message."""


class Connection(Protocol):
    """What a page is connected by."""

    async def send_str(self, data: str) -> None:
        """Send text; waits while the other side does not read."""
        ...

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes; waits while the other side does not read."""
        ...


class Client:
    """A page: what is to be sent to it next. Whatever comes faster than it reads replaces what came before.

    Args:
        name: What the page calls itself, a secret of its own.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self._connection = connection
        self._messages: dict[str, str] = {}
        self._frame: bytes | None = None
        self._sent = self._confirmed = 0
        self._wake = asyncio.Event()

    def show(self, picture: bytes) -> None:
        """Send a frame, if the page keeps up; otherwise in place of the one that waits."""
        self._frame = picture
        self._wake.set()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message, in place of one of its type that waits."""
        self._messages[message["type"]] = json.dumps(message)
        self._wake.set()

    def confirm(self, number: int) -> None:
        """Note that the page has shown its frame of this number."""
        self._confirmed = max(self._confirmed, min(number, self._sent))
        self._wake.set()

    async def send(self) -> None:
        """Send what there is, until the connection ends."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._messages:
                await self._connection.send_str(self._messages.pop(next(iter(self._messages))))
            if self._frame is not None and self._sent - self._confirmed < MAX_IN_FLIGHT:
                picture, self._frame = self._frame, None
                self._sent += 1
                await self._connection.send_bytes(self._sent.to_bytes(4, "big") + picture)


class Lobby:
    """All pages of a game, in the server's thread."""

    def __init__(
        self, inbox: Inbox, hello: Mapping[str, Any], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._inbox, self._hello, self._now = inbox, hello, now
        self._clients: list[Client] = []
        self._player: Client | None = None
        self._seat = ""
        self._left_at = -SEAT_SECONDS
        self._frame: np.ndarray | None = None
        self._messages: dict[str, Mapping[str, Any]] = {}

    def has_room(self, name: str) -> bool:
        """Whether a page can come in: the seat's owner always, and a page that replaces itself."""
        is_known = name == self._seat or any(client.name == name for client in self._clients)
        return is_known or len(self._clients) < MAX_CLIENTS

    def join(self, client: Client) -> Client | None:
        """Let a page in, as the player if the seat is free or its own; returns whom it replaces.

        A page that was connected already, and does not know yet that it no longer is, is replaced.
        """
        old = next((other for other in self._clients if other.name == client.name), None)
        if old is not None:
            self._clients.remove(old)
            if self._player is old:  # it was lost, and nobody knew: the game waits for its player here, too
                self._player = None
                self._inbox.seat(False)
        self._clients.append(client)
        client.tell(self._hello)
        for message in self._messages.values():
            client.tell(message)
        if self._player is None and (self._seat in ("", client.name) or self._seat_is_free):
            self._sit(client)
        self._tell_roles()
        if self._frame is not None:
            client.show(encode_jpeg(self._frame))
        return old

    def leave(self, client: Client) -> None:
        """Let a page go. The game waits for its player."""
        if client not in self._clients:
            return
        self._clients.remove(client)
        if self._player is client:
            self._player, self._left_at = None, self._now()
            self._inbox.seat(False)
        self._tell_roles()

    def handle_message(self, client: Client, text: str) -> None:
        """Act on a page's message.

        Raises:
            WorldError: If it is no message.
        """
        message = read_message(text)
        if client not in self._clients:  # replaced by another page of its name, and still talking
            return
        match message["type"]:
            case "ack":
                client.confirm(check_integer(message.get("frame"), "ack: frame"))
            case "sit":
                if self._player is None and (self._seat == client.name or self._seat_is_free):
                    self._sit(client)
                self._tell_roles()
            case _ if client is not self._player:
                return  # who watches presses nothing; a key may have been on its way when the seat was lost
            case "keys":
                self._inbox.hold(*read_held(message))
            case "rewind":
                self._inbox.rewind(check_bool(message.get("on"), "rewind: on"))
            case "command":
                self._inbox.order(read_order(message))
            case other:
                raise WorldError(f"there is no message {other!r}")

    def show(self, frame: np.ndarray) -> None:
        """Show a frame `[H, W, 3]` uint8 to everybody."""
        self._frame = frame
        if self._clients:
            picture = encode_jpeg(frame)
            for client in self._clients:
                client.show(picture)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell everybody, also those who come later; the latest message of each type is kept."""
        self._messages[message["type"]] = message
        for client in self._clients:
            client.tell(message)

    @property
    def _seat_is_free(self) -> bool:
        return self._player is None and self._now() - self._left_at >= SEAT_SECONDS

    def _sit(self, client: Client) -> None:
        self._player, self._seat = client, client.name
        self._inbox.seat(True)

    def _tell_roles(self) -> None:
        kept = max(0.0, SEAT_SECONDS - (self._now() - self._left_at))
        seat = {"type": "role", "has_player": self._player is not None, "kept_seconds": kept}
        for client in self._clients:
            client.tell(seat | {"role": "player" if client is self._player else "watcher"})


def encode_jpeg(frame: np.ndarray) -> bytes:
    """Return `[H, W, 3]` uint8 as a JPEG file, with colours as sharp as brightness."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()

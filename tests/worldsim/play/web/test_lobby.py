"""Player and spectators of the lobby, slow pages, and messages to the game, without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs the extra serve")

from worldsim.errors import WorldError
from worldsim.play.web.inbox import MAX_COMMANDS, Inbox, Order
from worldsim.play.web.lobby import MAX_CLIENTS, MAX_IN_FLIGHT, SEAT_SECONDS, Client, Lobby
from worldsim.ui.bindings import Command

HELLO = {"type": "hello"}


class Wire:
    """A connection that keeps what is sent; it blocks while `is_open` is not set."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.messages: list[dict[str, Any]] = []

    async def send_str(self, data: str) -> None:
        self.messages.append(json.loads(data))

    async def send_bytes(self, data: bytes) -> None:
        self.frames.append(data)

    @property
    def role(self) -> str:
        return [message["role"] for message in self.messages if message["type"] == "role"][-1]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def frame(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


def in_room(play: Callable[[Lobby, Inbox, Clock], Any]) -> None:
    async def run() -> None:
        inbox, clock = Inbox({"up", "left"}), Clock()
        await play(Lobby(inbox, HELLO, clock), inbox, clock)

    asyncio.run(run())


async def enter(room: Lobby, name: str) -> tuple[Client, Wire]:
    wire = Wire()
    client = Client(name, wire)
    room.join(client)
    client.sending = asyncio.create_task(client.send())  # type: ignore[attr-defined]
    await settle()
    return client, wire


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_first_plays_and_others_watch() -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        first, mine = await enter(room, "first")
        second, theirs = await enter(room, "second")
        assert (mine.role, theirs.role) == ("player", "watcher")
        assert mine.messages[0] == HELLO
        room.handle_message(first, '{"type": "keys", "held": ["up", "nonsense"]}')
        room.handle_message(second, '{"type": "keys", "held": ["left"]}')
        room.handle_message(second, '{"type": "command", "name": "pause"}')
        assert inbox.take_held() == {"up"}
        assert inbox.take_orders() == []
        room.handle_message(first, '{"type": "keys", "held": ["up", "left"], "far": {"up": 0.25, "down": 1}}')
        assert inbox.take_distances() == {"up": 0.25, "left": None}, "a stick goes as far as it is moved"

    in_room(play)


def test_a_player_who_comes_back_has_their_seat_and_others_wait_for_it() -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        first, _ = await enter(room, "first")
        other, theirs = await enter(room, "other")
        room.handle_message(first, '{"type": "keys", "held": ["up"]}')
        room.leave(first)
        assert not inbox.is_present
        assert inbox.take_held() == set(), "a key of somebody who has gone is still held"
        room.handle_message(other, '{"type": "sit"}')
        await settle()
        assert theirs.role == "watcher"
        _, mine = await enter(room, "first")
        assert mine.role == "player" and inbox.is_present
        room.leave(room._clients[-1])
        clock.now += SEAT_SECONDS
        room.handle_message(other, '{"type": "sit"}')
        await settle()
        assert theirs.role == "player"
        _, late = await enter(room, "first")
        assert late.role == "watcher"

    in_room(play)


def test_a_page_that_comes_twice_replaces_itself() -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        first, _ = await enter(room, "first")
        again = Client("first", Wire())
        assert room.join(again) is first
        room.leave(first)  # its connection ends later
        assert inbox.is_present
        room.handle_message(again, '{"type": "keys", "held": ["up"]}')
        assert inbox.take_held() == {"up"}

    in_room(play)


def test_a_full_room_has_room_for_its_player_and_for_who_replaces_themselves() -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        first, _ = await enter(room, "first")
        room.leave(first)
        for number in range(MAX_CLIENTS):
            assert room.has_room(f"watcher {number}")
            await enter(room, f"watcher {number}")
        assert not room.has_room("late")
        assert room.has_room("watcher 3")
        assert room.has_room("first")
        _, wire = await enter(room, "first")
        assert wire.role == "player"

    in_room(play)


def test_a_page_that_was_replaced_cannot_sit_down() -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        old, _ = await enter(room, "first")
        new, _ = await enter(room, "first")
        room.leave(new)
        room.handle_message(old, '{"type": "sit"}')
        assert not inbox.is_present

    in_room(play)


def test_a_page_that_confirms_nothing_gets_no_more_and_then_the_newest() -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        slow, wire = await enter(room, "slow")
        for value in range(100):
            room.show(frame(value))
            room.tell({"type": "status", "frame": value})
            await settle()
        assert len(wire.frames) == MAX_IN_FLIGHT
        assert slow._frame is not None
        newest = slow._frame
        room.handle_message(slow, f'{{"type": "ack", "frame": {MAX_IN_FLIGHT}}}')
        await settle()
        assert wire.frames[-1] == (MAX_IN_FLIGHT + 1).to_bytes(4, "big") + newest
        assert wire.frames[-1][4:6] == b"\xff\xd8", "not a JPEG"
        assert slow._frame is None

    in_room(play)


def test_one_who_does_not_read_holds_nobody_up() -> None:
    class Stuck(Wire):
        async def send_bytes(self, data: bytes) -> None:
            await asyncio.Event().wait()

    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        stuck = Client("stuck", Stuck())
        room.join(stuck)
        sending = asyncio.create_task(stuck.send())
        good, wire = await enter(room, "good")
        for value in range(10):
            room.show(frame(value))
            room.tell({"type": "status", "frame": value})
            await settle()
            room.handle_message(good, f'{{"type": "ack", "frame": {value + 1}}}')
        assert len(wire.frames) == 10
        assert len(stuck._messages) == 1, "messages pile up"
        sending.cancel()

    in_room(play)


def test_who_comes_later_sees_the_present() -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        room.show(frame(7))
        room.tell({"type": "status", "frame": 7})
        _, wire = await enter(room, "late")
        assert len(wire.frames) == 1
        assert {"type": "status", "frame": 7} in wire.messages

    in_room(play)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        '{"type": 3}',
        '{"type": "fly"}',
        '{"type": "keys"}',
        '{"type": "keys", "held": [1]}',
        '{"type": "keys", "held": ["up"], "far": ["up"]}',
        '{"type": "keys", "held": ["up"], "far": {"up": 2}}',
        '{"type": "ack", "frame": "x"}',
        '{"type": "ack", "frame": true}',
        '{"type": "ack", "frame": -1}',
        '{"type": "ack", "frame": NaN}',
        '{"type": "rewind"}',
        '{"type": "rewind", "on": "no"}',
        '{"type": "command", "name": "noise", "is_shifted": []}',
        '{"type": "command", "name": "quit"}',
        '{"type": "command", "name": ["pause"]}',
        '{"type": "command", "name": "save_slot", "slot": "../../etc"}',
        '{"type": "command", "name": "load_slot", "slot": {}}',
    ],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    async def play(room: Lobby, inbox: Inbox, clock: Clock) -> None:
        first, _ = await enter(room, "first")
        with pytest.raises(WorldError):
            room.handle_message(first, text)
        assert inbox.take_orders() == []

    in_room(play)


def test_commands_wait_for_the_next_frame_but_not_in_any_number() -> None:
    inbox = Inbox({"up"})
    for _ in range(1000):
        inbox.order(Order(Command.PAUSE))
    assert len(inbox.take_orders()) == MAX_COMMANDS
    assert inbox.take_orders() == []


def test_a_tap_between_two_frames_counts_for_one() -> None:
    inbox = Inbox({"up"})
    inbox.hold(["up"])
    inbox.hold([])
    assert inbox.wants_keys
    assert inbox.take_held() == {"up"}
    assert inbox.take_held() == set()
    inbox.rewind(True)
    inbox.rewind(False)
    assert inbox.take_rewinds()
    assert not inbox.take_rewinds()

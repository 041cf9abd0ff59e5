"""Play for pages on the network: the game's own loop, which waits while nobody sits at the keys."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from worldsim.play.game import Game
from worldsim.play.web.inbox import SERVED_COMMANDS, Inbox, Order
from worldsim.play.web.lobby import encode_jpeg
from worldsim.play.web.server import Server
from worldsim.ui.bindings import Bindings, Command, analog_controls
from worldsim.ui.input import check_without_window
from worldsim.world import WorldConfig

IDLE_SECONDS = 0.1
STATUS_SECONDS = 0.25
WELCOME_BACK = "paused while you were gone: press a key of the game to go on"


class ServedGame:
    """A game that is played in a browser.

    Args:
        game: What is done in the page, which is shown its frames from now on.
        host: Address to serve on, see `Server`.
        port: Port to serve on; 0 takes a free one.
    """

    def __init__(self, game: Game, *, host: str = "127.0.0.1", port: int = 8765) -> None:
        check_without_window(game.bindings)
        self.game, self.session = game, game.session
        self._inbox = Inbox(game.person.keys)
        hello = first_message(game.session.env.world.config, game.bindings)
        self.server = Server(self._inbox, hello, host=host, port=port)
        game.show = self.server.show
        game.status.hint = game.status.again = ""  # the page knows its keys, and may have none
        self._has_begun = self._was_present = self._waits_for_key = False
        self._sent: dict[str, Any] = {}
        self._tell_again_at = 0.0

    def run(self, num_frames: int = 0, start: int | str | None = None, *, say: Callable[[str], None]) -> None:
        """Serve until the process is interrupted; see `Game.run`. Pages know of a request to stop first.

        Args:
            say: Is given a sentence once the page is there.

        Raises:
            WorldError: If the address cannot be served on.
        """
        self.game.run(self.advance, num_frames, start, self._serving(say))

    @contextmanager
    def _serving(self, say: Callable[[str], None]) -> Iterator[None]:
        with self.server:
            with suppress(OSError):  # nobody may read what is said, and play all the same
                say(f"play at {self.server.url} (Ctrl-C ends)")
            yield

    def advance(self) -> None:
        """Do what was asked for, then play a frame; while nobody plays only wait."""
        self._note_presence()
        for order in self._inbox.take_orders():
            self._obey(order)
        if self._waits_for_key and self._inbox.wants_keys:
            self.game.is_paused = self._waits_for_key = False
        rewinds = self._inbox.take_rewinds()
        is_playing = rewinds or not self.game.is_paused or self.game.wants_step
        held = self._inbox.take_distances() if is_playing else ()
        has_moved = self.game.advance(held, rewinds=rewinds)
        self._tell_status()
        if not has_moved:
            self._inbox.wait(IDLE_SECONDS)

    def _note_presence(self) -> None:
        """Begin with the first player; wait for who has gone, and for their first key when they are back."""
        has_left, is_present = self._inbox.take_departure(), self._inbox.is_present
        if not self._has_begun:
            self._has_begun, self.game.is_paused = is_present, not is_present
        elif has_left:
            self.game.is_paused, self._waits_for_key = True, False
        if is_present and (has_left or not self._was_present) and self.game.is_paused:
            self._waits_for_key = True
            self.game.status.say(WELCOME_BACK)
        if is_present != self._was_present or has_left:
            self.game.restart_measuring()
        self._was_present = is_present

    def _obey(self, order: Order) -> None:
        if order.command is Command.SLOTS:
            self._tell_slots()
            return
        if order.command is Command.BEST:
            self.server.tell({"type": "best", "rows": self.game.files.best_games()})
            return
        if order.command is Command.PAUSE:
            self._waits_for_key = False
        self.game.obey(order.command, order.slot, is_shifted=order.is_shifted)
        if order.command in (Command.QUICK_SAVE, Command.SAVE_SLOT):
            self._tell_slots()

    def _tell_status(self) -> None:
        """Tell the pages what there is to say, some times a second, and at once what a key has changed."""
        game = self.game
        state = {
            "is_paused": game.is_paused,
            "is_rewinding": game.is_rewinding,
            "message": game.status.message,
            "ended": self.session.ended,
        }
        now = time.perf_counter()
        if now < self._tell_again_at and state == self._sent:
            return
        self._sent, self._tell_again_at = state, now + STATUS_SECONDS
        score = self.session.score
        measured = {
            "texts": game.texts(),
            "frame": self.session.info["frame_index"],
            "score_name": game.status.score_name,
            "score": score if score is not None and math.isfinite(score) else None,  # others are no JSON
            "layers": game.inspector.rows(),
            "map": "" if (path := game.inspector.map()) is None else _data_url(path),
        }
        self.server.tell({"type": "status"} | state | measured)

    def _tell_slots(self) -> None:
        slots = [
            {
                "name": slot.name,
                "saved_at": f"{slot.saved_at:%Y-%m-%d %H:%M:%S}",
                "note": slot.note,
                "picture": "" if slot.picture is None else _data_url(slot.picture),
            }
            for slot in self.game.files.slots()
        ]
        self.server.tell({"type": "slots", "slots": slots})


def first_message(world: WorldConfig, bindings: Bindings) -> dict[str, Any]:
    """Return what a page must know to be a player: the world, the size of frames, the buttons, the keys."""
    buttons = [
        {"axis": axis.name, "button": button, "keys": list(keys)}
        for axis, bound in zip(world.actions.axes, bindings.buttons, strict=True)
        for button, keys in zip(axis.buttons, bound, strict=True)
    ]
    commands = [
        {"name": command.setting, "keys": list(keys), "title": command.value}
        for command, keys in bindings.commands.items()
        if command in SERVED_COMMANDS | {Command.REWIND, Command.HELP}
    ]
    size = {"name": world.name, "width": world.width, "height": world.height}
    hello = {"type": "hello", "about": world.about or world.description, "world": size}
    analog = sorted(analog_controls(world.actions, bindings))
    return hello | {"buttons": buttons, "commands": commands, "analog": analog}


def _data_url(picture: np.ndarray) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode()}"

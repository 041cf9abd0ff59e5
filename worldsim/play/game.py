"""A game as a person plays it, whatever shows it: pause, rewind, save, hand over, change settings."""

# H W frame size

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from worldsim.errors import WorldError
from worldsim.play.best import Attempt
from worldsim.play.governor import Governor, ThreadGovernor
from worldsim.play.players import Players
from worldsim.play.session import HUMAN, NUM_WATCHED, Player, PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.play.slots import QUICK, PlayFiles
from worldsim.play.status import Inspector, Status
from worldsim.runtime.interrupt import StopRequest
from worldsim.runtime.timing import FrameClock, steady_memory
from worldsim.sampler import MAX_STEPS
from worldsim.ui.bindings import Bindings, Command, join_controls
from worldsim.ui.clip import ClipBuffer

ENDED_SECONDS = 2.0
"""How long the end of a program's episode is looked at before the next one begins."""
OVER = "the game is over: there is nothing to go on from"
NOISE_FACTORS = (0.7, 0.85, 1.0, 1.15, 1.3)
"""Noise temperatures to choose from, as multiples of the world's own."""


class KeyboardPlayer(Player, Protocol):
    """A player that is given the keys that are down."""

    held: Collection[str]

    @property
    def keys(self) -> frozenset[str]:
        """Names of all keys that mean something."""
        ...


class Game:
    """A game as a person plays it. Call `advance` for each frame, and `obey` for what they ask for.

    Args:
        session: What is played.
        person: The person at the keys.
        programs: Those who can play instead, by name; they take turns in this order.
        bindings: Which keys do what.
        config: How it begins, and where slots, recordings and screenshots go.

    Attributes:
        show: Is given each frame `[H, W, 3]` uint8 before it is remembered, and the present one after a jump.
        clock: Holds the frame rate.
        clip: The last seconds of play.
        is_paused: Whether frames wait for a key.
        wants_step: Whether a single frame was asked for while paused.
        is_rewinding: Whether time runs backward.
        is_closed: Whether the person has had enough.
        wants_choice: Whether they want to choose another world or start moment then.
    """

    def __init__(
        self,
        session: PlaySession,
        person: KeyboardPlayer,
        programs: Mapping[str, Player],
        bindings: Bindings,
        config: PlayConfig,
    ) -> None:
        self.session, self.person, self.bindings = session, person, bindings
        self.show: Callable[[np.ndarray], object] = lambda frame: None
        first = HUMAN if config.policy in ("auto", "keyboard") else config.policy
        self.players = Players({HUMAN: person, **programs}, first, session.seed)
        self.files = PlayFiles(session, config)
        world = session.env.world.config
        self.clip = ClipBuffer(world.actions, world.frame_rate)
        if world.outcome is not None and session.replay is None and config.best:
            session.attempt = Attempt(self.files.best.folder, world)
        self._rate = world.frame_rate if config.fps is None else config.fps
        self.clock = FrameClock(self._rate)
        self._governor = Governor(0.0, session.env.simulator.sampler.num_steps)
        # A replay computes as it was computed; a GPU does without.
        adapts = not config.threads and session.replay is None and session.env.world.device.type == "cpu"
        self._threads = ThreadGovernor(self._rate, torch.get_num_threads() if adapts else 1)
        self.status = Status(session, self._governor)
        self.name_keys()
        self.inspector = Inspector(session)
        self.is_paused = self.is_rewinding = self.is_closed = False
        self.wants_step = self.wants_choice = False
        self._ended_at = 0.0
        if config.hold_rate and session.replay is None:  # a replay draws frames as they were drawn
            self._hold_rate()

    def name_keys(self, printed: Mapping[str, str] | None = None) -> None:
        """Name keys to the person as `join_controls` does with `printed`."""
        keys = self.bindings.commands
        for_help, again = keys[Command.HELP][:1], (*keys[Command.RESET], *keys[Command.NEXT_START])[:1]
        self.status.hint = f"{join_controls(for_help, printed)}: help" if for_help else ""
        self.status.again = f"{join_controls(again, printed)}: again" if again else ""

    def run(
        self,
        advance: Callable[[], object],
        num_frames: int = 0,
        start: int | str | None = None,
        shown_in: AbstractContextManager[object] | None = None,
    ) -> None:
        """Begin at a start moment, and call what shows the game to advance it until that is over.

        Args:
            num_frames: End after so many; 0 does not.
            start: Start moment to begin from; None draws one.
            shown_in: Entered meanwhile; it is left before a request to stop is raised.

        Raises:
            KeyboardInterrupt: After a request to stop, once the frame under way is done.
        """
        with StopRequest() as stop, shown_in or nullcontext(), steady_memory():
            self.restart(start)
            while not (self.is_closed or stop.requested or 0 < num_frames <= self.session.num_frames):
                advance()

    def advance(self, held: Collection[str], *, rewinds: bool) -> bool:
        """Play or go back by one frame, and wait until the next one is due; returns False while paused.

        An episode that has ended waits for the person, too; a program's goes on after a moment.

        Args:
            held: The names of the keys that are down, or were tapped.
        """
        if rewinds:
            self._rewind()
        elif self.is_rewinding:
            self.end_rewind()
        if self.is_rewinding:
            self.clock.wait()
        elif (self.is_paused and not self.wants_step) or self._is_over():
            return False
        else:
            self._play_frame(held)
            self.clock.wait()
            if not self.is_paused:
                self._govern()
        return True

    def hold(self, held: Collection[str]) -> None:
        """Tell the person's keys, for who acts without `advance`."""
        self.person.held = held

    def take_step(self) -> bool:
        """Return whether a frame is to be played now; a single one, asked for while paused, only once."""
        wanted, self.wants_step = self.wants_step or not self.is_paused, False
        return wanted

    def obey(self, command: Command, slot: str = QUICK, *, is_shifted: bool = False) -> None:
        """Do what a command says that is about the game, not about what shows it."""
        match command:
            case Command.PAUSE:
                self.is_paused = not self.is_paused
            case Command.STEP:
                self.wants_step = self.is_paused
            case Command.RESET:
                names = self.session.env.start_names
                self.restart(self.session.start if self.session.start in names else None)
            case Command.NEXT_START:
                names = self.session.env.start_names
                known = self.session.start in names
                self.restart((names.index(self.session.start) + 1) % len(names) if known else 0)
            case Command.TAKE_OVER:
                self.players.switch(self.session.recent_frames(NUM_WATCHED))
            case Command.QUICK_SAVE | Command.SAVE_SLOT:
                if self.is_rewinding:
                    self.end_rewind()  # what is on the screen is what is saved
                self.status.say(OVER if self.session.ended else self.files.save_slot(slot))
            case Command.QUICK_LOAD | Command.LOAD_SLOT:
                self._load(slot)
            case Command.RECORD:
                self.status.say(self.files.toggle_recording())
            case Command.CLIP:
                self.status.say(self.files.write_clip(self.clip))
            case Command.FEWER_STEPS | Command.MORE_STEPS:
                self._change_steps(-1 if command is Command.FEWER_STEPS else 1)
            case Command.NOISE:
                self._change_noise(-1 if is_shifted else 1)
            case Command.HOLD_RATE:
                self._toggle_hold_rate()
            case Command.INSPECT:
                self.inspector.toggle()
            case Command.FREEZE_MEMORY | Command.ZERO_MEMORY | Command.RESTORE_MEMORY:
                self._change_memory(command)
            case Command.QUIT | Command.CHOOSE:
                self.is_closed, self.wants_choice = True, command is Command.CHOOSE
        self.restart_measuring()

    def restart(self, start: int | str | None) -> None:
        """Begin at a start moment; None draws one."""
        self.is_rewinding = False
        self.status.verdict = ""
        with self.saying_errors():
            self.session.reset(start)
        self.players.begin()
        self.show(self.session.observation)

    def restart_measuring(self) -> None:
        """Measure frame rates anew: what happened so far says nothing about the frames to come."""
        self.status.restart()
        self._governor.restart()
        self._threads.restart()

    def after_jump(self) -> None:
        """Let who plays look at where play has gone to, and show it."""
        self.players.begin(self.session.recent_frames(NUM_WATCHED))
        self.restart_measuring()
        self.show(self.session.observation)

    def end_rewind(self) -> None:
        """Play on from the moment gone back to."""
        assert self.session.history is not None
        self.is_rewinding = False
        with self.saying_errors():
            history = self.session.history
            self.session.go_to(*history.now(), history.score, is_rewound=True)
        self.after_jump()

    def texts(self, who: str | None = None) -> list[str]:
        """Return what the strip says; `who` says who plays, where that is not what the game knows."""
        player = "you play" if self.players.name == HUMAN else f"{self.players.name} plays"
        doing = "rewinding" if self.is_rewinding else "paused" if self.is_paused else ""
        return self.status.texts(doing=doing, who=who or player)

    @contextmanager
    def saying_errors(self) -> Iterator[None]:
        """Say that nothing can be recorded any more, and let play go on; other errors go their way."""
        recording = self.session.recording
        try:
            yield
        except WorldError as error:
            if recording is None:
                raise
            self.status.say(str(error))
            with suppress(WorldError):
                self.session.stop_recording()

    def _play_frame(self, held: Collection[str]) -> None:
        """The order of things: the picture is on the screen before its commit begins."""
        self.wants_step = False
        self.person.held = held
        action = self.players.act(self.session.observation)
        frame = self.session.begin(action, self.players.name)
        self.show(frame)
        problem = self._attempt_problem()
        with self.saying_errors():
            self.session.finish()
        if (now := self._attempt_problem()) != problem:
            self.status.say(now)  # at once, not after an hour of play
        self.clip.add(frame, action)
        self.status.note_frame(is_single=self.is_paused)
        if self.session.ended:
            self._ended_at = time.perf_counter()
            self.status.verdict = self.files.keep_game()
            self.restart_measuring()

    def _attempt_problem(self) -> str:
        return "" if self.session.attempt is None else self.session.attempt.problem

    def _is_over(self) -> bool:
        """Return whether an episode that has ended is looked at; after a program's, begin the next one."""
        if not self.session.ended:
            return False
        if self.players.name == HUMAN or time.perf_counter() < self._ended_at + ENDED_SECONDS:
            self.wants_step = False
            return True
        self.restart(None)
        self.restart_measuring()
        return False

    def _rewind(self) -> None:
        """Show the frame before the one that is shown, and get ready to play on from there."""
        history = self.session.history
        if history is None:
            return
        if not self.is_rewinding:
            self.is_rewinding = True
            self.restart_measuring()
        frame = history.back()
        if frame is not None:
            self.show(frame)
            history.prepare()

    def _load(self, slot: str) -> None:
        self.is_rewinding = False
        before = self.session.observation
        self.status.say(self.files.load_slot(slot))
        if self.session.observation is not before:
            self.after_jump()

    def _change_memory(self, command: Command) -> None:
        session = self.session
        if self.is_rewinding:
            self.end_rewind()
        try:
            if command is Command.FREEZE_MEMORY:
                session.freeze_memory(not session.is_frozen)
                self.status.say("the memory is frozen" if session.is_frozen else "the memory goes on")
            elif command is Command.ZERO_MEMORY:
                session.zero_memory()
                self.status.say("the memory is empty")
            else:
                session.restore_memory()
                self.status.say("the memory is as it was")
        except WorldError as error:
            self.status.say(str(error))
        self.inspector.restart()

    def _change_steps(self, change: int) -> None:
        steps = min(max(self._governor.wanted + change, 1), MAX_STEPS)
        self._governor.want(steps)
        self._draw_with(steps)
        self.status.say(f"{steps} denoising {'step' if steps == 1 else 'steps'} a frame")

    def _change_noise(self, change: int) -> None:
        sampler, own = self.session.env.simulator.sampler, self.session.env.world.config.sampler
        factor = sampler.noise_scale / (own.noise_scale or 1.0)
        nearest = min(range(len(NOISE_FACTORS)), key=lambda number: abs(NOISE_FACTORS[number] - factor))
        factor = NOISE_FACTORS[(nearest + change) % len(NOISE_FACTORS)]
        with self.saying_errors():
            self.session.change_sampler(replace(sampler, noise_scale=factor * own.noise_scale))
        self.status.say(
            f"noise temperature {factor * own.noise_scale:.2f}, the world's own is {own.noise_scale:g}"
        )

    def _toggle_hold_rate(self) -> None:
        if not self._governor.frame_rate:
            self._hold_rate()
            rate = self._governor.frame_rate
            self.status.say(f"holding {rate:g} frames/s: with fewer denoising steps if need be")
            return
        self._governor.frame_rate = 0.0
        self._governor.want(self._governor.wanted)
        self._draw_with(self._governor.wanted)
        self.status.say(f"drawing with {self._governor.wanted} denoising steps, however long they take")

    def _hold_rate(self) -> None:
        # Where frames come as fast as possible there is still the world's own rate to reach.
        self._governor.frame_rate = self._rate or self.session.env.world.config.frame_rate

    def _govern(self) -> None:
        if self._change_threads() or self._threads.is_trying:
            return
        # A recording is cut where the steps change: they only fall while one is made. That of a game for
        # the table goes on in as many files as it takes: it is always made, and nobody asked for it.
        may_rise = self.session.recording is None
        seconds = self.clock.busy_seconds, self.session.latest_predict_seconds
        if self._governor.note(*seconds, may_rise=may_rise):
            self._draw_with(self._governor.steps)

    def _change_threads(self) -> bool:
        """Take other threads where the frame rate is not held; returns whether their number has changed."""
        was_trying, before = self._threads.is_trying, torch.get_num_threads()
        has_changed = self._threads.note(
            self.clock.busy_seconds, is_recording=self.session.recording is not None
        )
        if has_changed:
            with self.saying_errors():
                self.session.change_threads(self._threads.threads)
            self._governor.restart()
        elif was_trying and not self._threads.is_trying:
            self.status.say(
                f"computing with {before} {'thread' if before == 1 else 'threads'}: that is faster"
            )
        return has_changed

    def _draw_with(self, steps: int) -> None:
        sampler = self.session.env.simulator.sampler
        with self.saying_errors():
            self.session.change_sampler(replace(sampler, num_steps=steps))

"""Soak test of play: random keys, saves, rewinds and branches, watched for growth and for NaN or inf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.evaluation.cost.endurance import check_numbers, memory_growth
from worldsim.play.branches import Branches
from worldsim.play.game import Game
from worldsim.play.slots import SLOTS
from worldsim.runtime.timing import process_memory_bytes
from worldsim.storage.files import check_integer
from worldsim.ui.bindings import Command

MAX_STEPS = 3
"""Denoising steps that a random player goes up to: more are only slower."""
NUM_PANES, PANE_FRAMES, REWIND_FRAMES = 4, 6, 40
FRAMES_BETWEEN_CHECKS = 100
# How likely a command is before a frame.
CHANCES: dict[Command, float] = {
    Command.PAUSE: 0.004,
    Command.STEP: 0.01,
    Command.RESET: 0.001,
    Command.NEXT_START: 0.001,
    Command.REWIND: 0.004,
    Command.QUICK_SAVE: 0.004,
    Command.QUICK_LOAD: 0.003,
    Command.SAVE_SLOT: 0.004,
    Command.LOAD_SLOT: 0.004,
    Command.TAKE_OVER: 0.004,
    Command.BRANCH: 0.002,
    Command.FEWER_STEPS: 0.004,
    Command.MORE_STEPS: 0.003,
    Command.NOISE: 0.002,
    Command.HOLD_RATE: 0.002,
    Command.INSPECT: 0.002,
    Command.FREEZE_MEMORY: 0.002,
    Command.ZERO_MEMORY: 0.001,
    Command.RESTORE_MEMORY: 0.002,
    Command.RECORD: 0.002,
}


@dataclass(slots=True)
class SoakTest:
    """What happened so far.

    Attributes:
        commands: How often each was given.
        samples: Frames drawn, bytes of the process and bytes to go back to, now and then.
    """

    num_frames: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[int, int, int]] = field(default_factory=list)

    def growth(self, first: int = 0) -> float | None:
        """Return `memory_growth` of the process that took the samples from number `first` on."""
        return memory_growth([sample[1] for sample in self.samples[first:]])

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SoakTest:
        """Build from what a report holds of it, to go on in another process.

        Raises:
            KeyError, TypeError, ValueError: If it is of another form.
        """
        commands = {name: check_integer(count, name) for name, count in data["commands"].items()}
        rows = [[check_integer(value, "samples") for value in sample] for sample in data["samples"]]
        samples = [(frame, size, kept) for frame, size, kept in rows]
        return cls(check_integer(data["num_frames"], "num_frames"), Counter(commands), samples)


def play_at_random(
    game: Game, keys: Sequence[str], num_frames: int, *, seed: int, recordings: Path, test: SoakTest
) -> Iterator[SoakTest]:
    """Play on at random; yields the test now and then.

    The game has begun, and should hold no frame rate. `num_frames` counts those of `test`, which is added to.
    What is finished in the folder of recordings is removed.

    Raises:
        WorldError: If the state holds NaN or inf.
    """
    rng = np.random.default_rng((seed, test.num_frames))
    session, before = game.session, test.num_frames - game.session.num_frames
    held: list[str] = []
    next_check = test.num_frames
    while test.num_frames < num_frames:
        for command, chance in CHANCES.items():
            if rng.random() < chance:
                test.commands[command.setting] += 1
                _give(game, command, rng, lambda: [k for k in keys if rng.random() < 0.3])
        if rng.random() < 0.2:
            held = [key for key in keys if rng.random() < 0.3]
        game.is_paused = game.is_paused and rng.random() < 0.9
        if session.ended:  # nobody is there to begin again
            game.restart(None)
        game.advance(held, rewinds=False)
        game.inspector.rows()
        test.num_frames = before + session.num_frames
        if test.num_frames >= next_check:
            next_check = test.num_frames + FRAMES_BETWEEN_CHECKS
            _check(game, test, recordings)
            yield test


def _give(game: Game, command: Command, rng: np.random.Generator, draw_keys: Callable[[], list[str]]) -> None:
    match command:
        case Command.REWIND:
            for _ in range(int(rng.integers(1, REWIND_FRAMES))):
                game.advance((), rewinds=True)
        case Command.BRANCH:
            _branch(game, rng, draw_keys)
        case Command.MORE_STEPS if game.session.env.simulator.sampler.num_steps >= MAX_STEPS:
            pass
        case _:
            game.obey(command, str(rng.choice(SLOTS)), is_shifted=bool(rng.random() < 0.5))


def _branch(game: Game, rng: np.random.Generator, draw_keys: Callable[[], list[str]]) -> None:
    """Go on in panes, and from one of them."""
    if game.is_rewinding:
        game.end_rewind()
    session = game.session
    branches = Branches(session.env.simulator, session.env.get_state(), NUM_PANES, PANE_FRAMES)
    for _ in range(PANE_FRAMES):
        game.hold(draw_keys())
        branches.begin(np.repeat(game.players.act(branches.frames[0])[None], NUM_PANES, axis=0))
        branches.finish()
    state, before = branches.pick(int(rng.integers(NUM_PANES)))
    with game.saying_errors():
        session.go_to(state, session.start, before=before)
    game.after_jump()


def _check(game: Game, test: SoakTest, recordings: Path) -> None:
    """Add a sample, look at all numbers, remove what was recorded unless it is being written."""
    history = game.session.history
    test.samples.append((test.num_frames, process_memory_bytes() or 0, history.nbytes if history else 0))
    check_numbers(game.session.env.get_state(), test.num_frames)
    if game.session.recording is None and recordings.is_dir():
        for path in filter(Path.is_file, recordings.iterdir()):
            path.unlink()

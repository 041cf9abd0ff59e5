"""One game being played: the environment, who plays, what is recorded and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.model.inspection import LayerReading
from worldsim.play.best import Attempt
from worldsim.play.history import History
from worldsim.play.recording import Recording
from worldsim.play.replay import Opening, Replay, play_settings
from worldsim.play.trail import Trail
from worldsim.runtime.device import set_threads
from worldsim.runtime.interrupt import defer_interrupt
from worldsim.runtime.timing import Percentiles, StepTimes, process_memory_bytes, seconds_since_start
from worldsim.sampler import SamplerConfig
from worldsim.simulator import Prediction
from worldsim.state import WorldState

HUMAN = "human"
"""What recordings call the person at the keys."""
NUM_WATCHED = 32
"""Frames that a player who takes over is shown: more than any player looks back."""


class Player(Protocol):
    """Chooses an action from the picture on the screen."""

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        ...

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64, for `observation`, `[H, W, 3]` uint8."""
        ...

    def watch(self, observation: np.ndarray) -> None:
        """See a frame `[H, W, 3]` uint8 at which somebody else acts."""
        ...


class PlaySession(AbstractContextManager["PlaySession"]):
    """Step an environment, measure each step, record it. A context manager that finishes the recording.

    Args:
        seed: Decides everything that the environment draws.
        repeats_seed: Whether each reset draws the same again; else later ones go on drawing.
        rewind_bytes: Room for the moments to go back to; 0 keeps none.
        replay: A recorded episode: the first one begins where it began, and is compared with it.
        waited_seconds: How long a person took to choose what to play, which is no part of starting up.

    Attributes:
        observation: The frame shown last, `[H, W, 3]` uint8.
        ended: Whether the episode ended with that frame: `reset` comes next.
        time_is_up: Whether that is because it reached the world's longest game.
        score: Sum of the rewards of this episode, as far as they are known; None in a world that gives none.
        start: Name of the start moment of this episode; empty where it is not known.
        trail: Where the player went in it, as far as the world believes to know.
        seed, game: What decided this episode, and the how many that draws from it, from 1.
        attempt: Records each game from its beginning, for the table of best games; None does not.
    """

    def __init__(
        self,
        env: ARL2WorldEnv,
        recording: Recording | None = None,
        *,
        seed: int = 0,
        repeats_seed: bool = False,
        rewind_bytes: int = 0,
        replay: Replay | None = None,
        waited_seconds: float = 0.0,
    ) -> None:
        self.env = env
        self.recording = recording
        self.times = StepTimes()
        self.num_frames = 0
        self.ended = self.time_is_up = False
        self.score: float | None = None
        self.recorded: list[Path] = []
        self.observation = np.zeros(env.observation_space.shape or (), dtype=np.uint8)
        self.info: dict[str, Any] = {"frame_index": 0, "start": ""}
        self.start = ""
        self.trail = Trail()
        self.history = History(env.simulator, rewind_bytes) if rewind_bytes else None
        self.seed, self.game, self._repeats_seed = seed, 0, repeats_seed
        self.attempt: Attempt | None = None
        self._first_frame_seconds, self._waited_seconds = 0.0, waited_seconds
        self._first_step_at = 0.0
        self._last_step_at = 0.0
        self._reward: float | None = None  # on the way to `observation`; None in a world that gives none
        self._action = env.world.config.actions.noop()
        self._player: str | None = None
        self._before: WorldState | None = None  # the last step
        self._drawn: tuple[WorldState, Prediction] | None = None  # the last frame, and what it was drawn from
        self._frozen: Tensor | None = None
        self._kept: Tensor | None = None
        self.replay = replay
        self._opening = None if replay is None else replay.opening
        self.latest_predict_seconds = 0.0  # to draw a frame

    def reset(self, start: int | str | None = None) -> None:
        """Begin an episode at a start moment; None draws one.

        Raises:
            WorldError: If there is no such moment; or if the recording of the episode before cannot be
                finished: the new one has begun then.
        """
        options = None if start is None else {"start": start}
        is_first = self.game == 0 or self._repeats_seed  # others continue the stream
        observation, info = self.env.reset(seed=self.seed if is_first else None, options=options)
        self.game = 1 if is_first else self.game + 1
        opening, self._opening = self._opening, None
        if opening is not None:
            self.go_to(opening.state, opening.start)
            return
        if self.history is not None:
            self.history.begin(self.env.get_state(), info["start"])
        if self.attempt is not None:
            self.attempt.begin()
        self._begin_episode(observation, info)

    def go_to(
        self,
        state: WorldState,
        start: str = "",
        score: float = 0.0,
        *,
        is_rewound: bool = False,
        before: Sequence[np.ndarray] = (),
    ) -> None:
        """Play on from a state; what is recorded ends here and goes on in another file.

        Args:
            state: Of one game of this world.
            is_rewound: Whether it comes from `history`, which is there already.
            before: Frames `[H, W, 3]` that came before it, as far as they are known.

        Raises:
            WorldError: If it is not such a state, and play is where it was; or if the recording so far
                cannot be finished, and play goes on from the state.
        """
        self.env.set_state(state)
        if self.attempt is not None:
            self.attempt.discard()
        info = {"frame_index": int(state.frame_index[0]), "start": start}
        if self.history is not None and not is_rewound:
            self.history.begin(self.env.get_state(), start, before, score=score)
        self._begin_episode(state.frames[0].cpu().numpy().copy(), info, score)

    def _begin_episode(self, observation: np.ndarray, info: dict[str, Any], score: float = 0.0) -> None:
        if self.replay is not None and self.num_frames:
            self.replay.stop()
        before, outcome = self.observation, self._outcome()
        self.trail.go_to(self.env.get_state())
        self.observation, self.info = observation, info
        self.start = info["start"]
        self._look_for_the_end(self.env.has_ended)
        self._drawn = self._frozen = self._kept = None
        self._reward = 0.0 if self._is_judged else None
        self.score = score if self._is_judged else None
        if self.recording is not None:
            self.recording.end_episode(before, **outcome)

    def recent_frames(self, count: int) -> list[np.ndarray]:
        """Return the latest frames of this episode that are known, at most so many, the oldest first."""
        return [self.observation] if self.history is None else self.history.frames(count)

    def begin(self, action: np.ndarray, player: str | None = None) -> np.ndarray:
        """Return the frame `[H, W, 3]` uint8 that `action` `[A]` int64 leads to; show it, then `finish`."""
        self._before = self.env.get_state()
        started = time.perf_counter()
        frame = self.env.begin_step(action)
        self.latest_predict_seconds = time.perf_counter() - started
        self._action, self._player = action, player
        if not self._first_frame_seconds:
            self._first_frame_seconds = seconds_since_start() - self._waited_seconds
            self._first_step_at = started
        return frame

    def finish(self) -> None:
        """Remember the frame, and record the one before it with the action that led on.

        Raises:
            WorldError: If it cannot be recorded; everything else is done then, and play can go on.
        """
        started = time.perf_counter()
        prediction = self.env.prediction
        assert self._before is not None, "finish comes after begin"
        frame, reward, terminated, _, self.info = self.env.finish_step()
        if self._frozen is not None:
            self.env.set_state(self.env.get_state().with_matrices(self._frozen))
        self._last_step_at = time.perf_counter()
        self.trail.add(self.env.get_state())
        self.times.add(self.latest_predict_seconds, self._last_step_at - started)
        before, outcome = self.observation, self._outcome()
        self.observation = frame
        self._look_for_the_end(terminated)
        self._reward = reward if self._is_judged else None
        self.score = None if self.score is None else self.score + reward
        self.num_frames += 1
        # Nothing can be played on from an end.
        if self.history is not None and prediction is not None and not self.ended:
            follows = self._frozen is None
            self.history.append(
                self.env.get_state(),
                prediction.latents,
                self._action,
                follows=follows,
                score=self.score or 0.0,
            )
        if self.replay is not None:
            self.replay.check(frame, self._action)
        if prediction is not None:
            self._drawn = self._before, prediction
        self._record(before, outcome)

    def _record(self, before: np.ndarray, outcome: dict[str, Any]) -> None:
        """Record a frame `[H, W, 3]` uint8 and the action that led on, in each recording that is made."""
        assert self._before is not None, "a frame follows from a state"
        told: dict[str, Any] = {"player": self._player, "opening": None, **outcome}
        if self._frozen is None:  # of a memory that was held nobody could replay it
            told["opening"] = Opening(state=self._before, start=self.start, settings=play_settings(self.env))
        if self.attempt is not None:
            self.attempt.add(before, self._action, is_person=self._player == HUMAN, **told)
        if self.recording is not None:
            self.recording.add(before, self._action, **told)

    def finish_attempt(self) -> list[Path]:
        """Return the recordings of the game that has ended, if it counts; see `Attempt.finish`."""
        return [] if self.attempt is None else self.attempt.finish(self.observation, **self._outcome())

    def change_sampler(self, sampler: SamplerConfig) -> None:
        """Draw later frames in another way; what is recorded goes on in another file, which can be replayed.

        Raises:
            WorldError: If the recording so far cannot be finished; frames are drawn in the new way then.
        """
        if sampler == self.env.simulator.sampler:
            return
        self.env.simulator.change_sampler(sampler)
        self._end_episode()

    def change_threads(self, num_threads: int) -> None:
        """Compute with other threads; what is recorded goes on in another file, which can be replayed.

        Raises:
            WorldError: If there are none of so many; or if the recording so far cannot be finished, and it
                is done.
        """
        if num_threads != torch.get_num_threads():
            set_threads(num_threads)
            self._end_episode()

    @property
    def is_frozen(self) -> bool:
        """Whether frames are shown to the recurrent states, but not written into them."""
        return self._frozen is not None

    def freeze_memory(self, is_frozen: bool) -> None:
        """Hold the recurrent states as they are, or let them go on; windows and the path always go on.

        Raises:
            WorldError: If the world has none; or if the recording so far cannot be finished, and it is done.
        """
        matrices = self._matrices()
        if is_frozen:
            self._kept = matrices if self._kept is None else self._kept
        self._frozen = matrices if is_frozen else None
        if self.replay is not None:
            self.replay.stop()
        if self.attempt is not None:
            self.attempt.discard()
        self._end_episode()

    def zero_memory(self) -> None:
        """Empty the recurrent states; what was in them before is set aside.

        Raises:
            WorldError: As `freeze_memory`.
        """
        matrices = self._matrices()
        kept = matrices if self._kept is None else self._kept
        self._replace_matrices(torch.zeros_like(matrices), is_frozen=self.is_frozen, kept=kept)

    def restore_memory(self) -> None:
        """Go on with the recurrent states as they were before they were first frozen or emptied.

        Raises:
            WorldError: If they were neither; or as `freeze_memory`.
        """
        if self._kept is None:
            raise WorldError("the memory was neither frozen nor emptied: there is nothing to restore")
        self._replace_matrices(self._kept, is_frozen=False, kept=None)

    def inspect(self) -> list[LayerReading]:
        """Return what the hybrid layers read when the latest frame was remembered; [] if none was drawn."""
        return [] if self._drawn is None else self.env.simulator.inspect(*self._drawn)

    def _matrices(self) -> Tensor:
        matrices = self.env.get_state().memory.matrices
        if not len(matrices):
            raise WorldError("this world has no recurrent states to freeze or to empty")
        return matrices

    def _replace_matrices(self, matrices: Tensor, *, is_frozen: bool, kept: Tensor | None) -> None:
        """Play on with other recurrent states, as after a jump to the same frame."""
        state, drawn = self.env.get_state().with_matrices(matrices), self._drawn
        try:
            self.go_to(state, self.start, self.score or 0.0, before=self.recent_frames(NUM_WATCHED)[:-1])
        finally:
            self._drawn, self._frozen, self._kept = drawn, matrices if is_frozen else None, kept

    def stop_recording(self) -> None:
        """Finish what is being recorded, with the frame shown last; later frames are not recorded.

        Raises:
            WorldError: If it cannot be written.
        """
        recording, self.recording = self.recording, None
        if recording is not None:
            try:
                with defer_interrupt(), recording:
                    recording.end_episode(self.observation, **self._outcome())
            finally:
                self.recorded += recording.paths

    def summary(self) -> str:
        """Return what was measured, in a few lines."""
        if not self.num_frames:
            return "no frame was played"
        predict, commit = self.times.predict_ms(), self.times.commit_ms()
        seconds = self._last_step_at - self._first_step_at
        memory = process_memory_bytes()
        lines = [
            f"{self.num_frames} frames in {seconds:.1f} s: {self.num_frames / seconds:.1f} frames/s",
            f"step               {Percentiles.of(predict + commit)}",
            f"  denoise, decode  {Percentiles.of(predict)}",
            f"  commit           {Percentiles.of(commit)}",
            f"start-up           {self._first_frame_seconds:.1f} s to the first frame",
            f"process memory     {'unknown' if memory is None else f'{memory / 2**20:.0f} MiB'}",
            f"world memory       {self.env.memory_bytes:,} bytes",
        ]
        return "\n".join(lines)

    def __exit__(self, *error: object) -> None:
        if self.attempt is not None:
            self.attempt.discard()  # it has not ended
        self.stop_recording()

    def _end_episode(self) -> None:
        if self.attempt is not None:
            self.attempt.cut(self.observation, **self._outcome())
        if self.recording is not None:
            self.recording.end_episode(self.observation, **self._outcome())

    def _look_for_the_end(self, has_ended: bool) -> None:
        """Note whether the episode has ended in the world, or reached its longest game."""
        self.time_is_up = self.env.time_is_up and not has_ended
        self.ended = has_ended or self.time_is_up

    @property
    def _is_judged(self) -> bool:
        return self.env.world.config.outcome is not None

    def _outcome(self) -> dict[str, Any]:
        """Return what a recording says of the frame shown last, in a world that says something of it."""
        if not self._is_judged:
            return {}
        return {"reward": self._reward, "terminated": self.ended and not self.time_is_up}

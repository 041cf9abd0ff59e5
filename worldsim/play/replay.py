"""A recorded episode played again: from the same state, with the same actions, to the same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldsim import state as states
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.state import WorldState
from worldsim.storage.files import read_json_lines
from worldsim.world.world import shipped_worlds

STATE_SUFFIX = ".replay.safetensors"
DIGEST_FIELD = "sha256"


def recorded_world(path: Path) -> str:
    """Return the name of the shipped world that an episode, `.mp4` or `.jsonl`, was recorded in.

    Raises:
        FileNotFoundError: If there is no such episode.
        WorldError: If it does not say so, or the world is elsewhere.
    """
    name = states.read_notes(_find_opening(path)).get("world", "").rpartition("@")[0]
    if name not in shipped_worlds():
        raise WorldError(
            f"{path} was recorded in the world {name!r}, which does not ship: world= says where it is"
        )
    return name


def frame_digest(frame: np.ndarray) -> str:
    """Return the first digits of the SHA-256 of a frame `[H, W, 3]` uint8."""
    return hashlib.sha256(frame.tobytes()).hexdigest()[:16]


def play_settings(env: ARL2WorldEnv) -> dict[str, str]:
    """Return what the bytes of frames depend on beside the state and the actions."""
    sampler = env.simulator.sampler
    return {
        "device": str(env.world.device),
        "dtype": str(env.world.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "denoising_steps": str(sampler.num_steps),
        "noise_scale": str(sampler.noise_scale),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """The state and start moment at which a recorded episode began, and the `play_settings` of its play."""

    state: WorldState
    start: str
    settings: dict[str, str]

    def save(self, path: Path) -> None:
        """Write it as a state with notes.

        Raises:
            OSError: If it cannot be written.
        """
        states.save(self.state, path, start=self.start, **self.settings)

    @classmethod
    def load(cls, path: Path) -> Opening:
        """Read what `save` wrote.

        Raises:
            WorldError: If it is damaged.
        """
        state, notes = states.load(path), states.read_notes(path)
        start = notes.pop("start", "")
        settings = {name: text for name, text in notes.items() if name not in ("world", "sha256")}
        return cls(state=state, start=start, settings=settings)


class Replay:
    """What a recorded episode, `.mp4` or `.jsonl`, looked like, to compare play with.

    Raises:
        FileNotFoundError: If there is no such episode.
        WorldError: If it was not recorded by `play.py`, so that nobody knows where it began.
    """

    def __init__(self, path: Path) -> None:
        self.opening = Opening.load(_find_opening(path))
        self.path = path.with_suffix(".jsonl")
        self._actions: list[Any] = []
        self._digests: list[str] = []
        for where, row in read_json_lines(self.path):
            if not isinstance(row, dict) or "action" not in row or not isinstance(row.get(DIGEST_FIELD), str):
                raise WorldError(f"{where} is not what was recorded: it needs action and {DIGEST_FIELD}")
            self._actions.append(row["action"])
            self._digests.append(row[DIGEST_FIELD])
        self._num_equal, self._first_difference, self._is_over = 0, 0, False

    @property
    def num_frames(self) -> int:
        """Number of frames that are drawn to replay it."""
        return len(self._actions) - 1

    def check_world(self, env: ARL2WorldEnv) -> None:
        """Raise `WorldError` if it was recorded in another world."""
        if (then := self.opening.state.world) != env.world.identity:
            raise WorldError(f"{self.path} was recorded in another world ({then}), not {env.world.identity}")

    def check(self, frame: np.ndarray, action: np.ndarray) -> None:
        """Compare the next frame `[H, W, 3]` uint8; an action other than the recorded one ends the replay."""
        number = self._num_equal + 1
        if self._is_over or self._first_difference or number > self.num_frames:
            return
        if action.tolist() != self._actions[number - 1]:
            self.stop()
        elif frame_digest(frame) != self._digests[number]:
            self._first_difference = number
        else:
            self._num_equal = number

    def stop(self) -> None:
        """Compare no more: play has gone another way."""
        self._is_over = True

    def result(self, env: ARL2WorldEnv) -> str:
        """Return what came of it, in a sentence.

        Raises:
            WorldError: If a frame differed although everything was as it was recorded.
        """
        now, then = play_settings(env), self.opening.settings
        changed = [
            f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]
        ]
        if changed:
            return f"{self.path} was recorded otherwise, so frames may differ: {', '.join(changed)}"
        if self._first_difference:
            raise WorldError(f"{self.path}: replayed frame {self._first_difference} is not the recorded one")
        return f"replayed {self._num_equal} of {self.num_frames} frames of {self.path}, all bit-identical"


def _find_opening(path: Path) -> Path:
    table, opening = path.with_suffix(".jsonl"), path.with_suffix(STATE_SUFFIX)
    if not table.is_file():
        raise FileNotFoundError(f"there is no recording {table}")
    if not opening.is_file():
        raise WorldError(f"{table} cannot be replayed: there is no {opening.name} beside it")
    return opening

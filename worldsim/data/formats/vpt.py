"""Contractor files of OpenAI's Video PreTraining: Minecraft as mp4, keys and mouse of each tick as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.formats.files import VIDEOS, files_of, frames_of_video, name_of
from worldsim.data.formats.source import (
    Channel,
    Kind,
    ReadOptions,
    Recording,
    Resize,
    Source,
    SourceTable,
    fit_rows,
    unchanged,
)
from worldsim.data.video import count_decoded_frames, describe_video
from worldsim.errors import WorldError
from worldsim.storage.files import check_number, read_json_lines

FRAME_RATE = 20.0
KEYS = {
    "forward": "w",
    "back": "s",
    "left": "a",
    "right": "d",
    "jump": "space",
    "sneak": "left.shift",
    "sprint": "left.control",
    "drop": "q",
    "inventory": "e",
    "swap_hands": "f",
    "escape": "escape",
}
CLICKS = {"attack": 0, "use": 1, "pick_item": 2}
NUM_SLOTS = 9
DEGREES_PER_PIXEL = 360 / 2400
MAX_DEGREES = 10.0
"""Of camera movement in a tick, as in the agent that VPT released: what is faster counts as this."""
CHANNELS = (
    *(Channel(name=name, kind=Kind.BUTTON) for name in (*KEYS, *CLICKS)),
    Channel(name="hotbar", kind=Kind.CHOICE, options=("0", *map(str, range(1, NUM_SLOTS + 1)))),
    *(
        Channel(
            name=name,
            kind=Kind.ANALOG,
            limits=(-MAX_DEGREES, MAX_DEGREES),
            is_added=True,
            scale="mu-law",
        )
        for name in ("camera_pitch", "camera_yaw")
    ),
)


def detect(path: Path) -> bool:
    """Return whether there is a video with JSON lines beside it that tell of keyboard and mouse."""
    for video in files_of(path, VIDEOS):
        lines = video.with_suffix(".jsonl")
        if lines.is_file():
            row = next(iter(read_json_lines(lines)), ("", None))[1]
            return isinstance(row, dict) and {"keyboard", "mouse"} <= row.keys()
    return False


def read(path: Path, options: ReadOptions) -> Source:
    """Read the files of contractors.

    Keys and clicks are buttons, a change of the chosen slot presses its number, and the mouse turns the
    camera in degrees. The mouse pointer of open inventories is not drawn: it is not in the videos.
    """
    recordings = [
        VPTRecording(name=name_of(video, path), where=str(video), video=video, trim=options.trim)
        for video in files_of(path, VIDEOS)
    ]
    return Source(
        about="Minecraft, contractors of OpenAI's Video PreTraining",
        recordings=recordings,
        channels=CHANNELS,
        frame_rate=FRAME_RATE,
        licence="MIT",
    )


@dataclass(slots=True)
class VPTRecording(Recording):
    """A video of a contractor and its lines."""

    name: str
    where: str
    video: Path
    trim: int

    def table(self) -> SourceTable:
        """Read actions, rewards and ends."""
        lines = self.video.with_suffix(".jsonl")
        if not lines.is_file():
            raise WorldError(f"{self.video} has no {lines.name} beside it")
        rows = read_actions(lines)
        described = describe_video(self.video)
        is_agreed = described.num_frames - len(rows) in (0, 1)
        num_frames = described.num_frames if is_agreed else count_decoded_frames(self.video)
        columns = {channel.name: rows[:, index] for index, channel in enumerate(CHANNELS)}
        num_frames, fitted = fit_rows(columns, num_frames, self.trim, self.where)
        return SourceTable(num_frames=num_frames, actions=fitted)

    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn."""
        return frames_of_video(self.video, self.table().num_frames, resize)


def read_actions(path: Path) -> np.ndarray:
    """Return the values of `CHANNELS` for each line, `[T, channels]` float64.

    In some recordings the left button of the mouse is down from the beginning on, though nobody presses it:
    it counts from its first press. Lines whose keyboard or mouse is null press nothing.

    Raises:
        WorldError: If a line is not of the form of these files.
    """
    rows, is_stuck, slot = [], False, None
    for where, line in read_json_lines(path):
        try:
            keys = set((line["keyboard"] or {}).get("keys", ()))
            mouse: Mapping[str, Any] = line["mouse"] or {}
            clicks, pressed = set(mouse.get("buttons", ())), set(mouse.get("newButtons", ()))
            now = line.get("hotbar", 0)
        except (AttributeError, KeyError, TypeError) as error:
            raise WorldError(f"{where} is no line of keyboard and mouse: {error!r}") from error
        is_stuck = pressed == {0} if not rows else is_stuck and 0 not in pressed
        if is_stuck:
            clicks.discard(0)
        degrees = [
            check_number(mouse.get(name, 0), f"{where}: {name}") * DEGREES_PER_PIXEL for name in ("dy", "dx")
        ]
        chosen = check_number(now, f"{where}: hotbar", 0, NUM_SLOTS - 1)
        rows.append(
            [
                *(f"key.keyboard.{key}" in keys for key in KEYS.values()),
                *(click in clicks for click in CLICKS.values()),
                0 if slot is None or chosen == slot else chosen + 1,
                *degrees,
            ]
        )
        slot = chosen
    if not rows:
        raise WorldError(f"{path} is empty")
    return np.array(rows, dtype=np.float64)

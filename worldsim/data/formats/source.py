"""Recordings of any format: frames one at a time, actions by the name of their column, rewards and ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from worldsim.errors import WorldError
from worldsim.storage.files import MAX_NAME, check_text, shown

EXTRA = 'pip install "arl2-world[readers]"'
"""Said where a package is missing."""


Resize = Callable[[int, int], tuple[int, int]]
"""Of the height and width of a frame, those that it is wanted in."""


def unchanged(height: int, width: int) -> tuple[int, int]:
    """Return a size as it is."""
    return height, width


class Kind(Enum):
    """What the values of a column of actions are."""

    BUTTON = "button"
    CHOICE = "choice"
    ANALOG = "analog"


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """A column of actions.

    Attributes:
        name: Of the column.
        kind: A button is 0 or 1, a choice the number of one of its options, an analog value any number.
        options: Of a choice: the names of its values.
        rest: Of a choice: the option that presses nothing; None if each of them presses something.
        limits: Of an analog value: the smallest and the largest; None takes those that occur.
        levels: Of an analog value: all values it takes, ascending, if they are few; empty otherwise.
        is_added: Of an analog value: whether those of two frames add up, as movements of a mouse do and
            positions of a stick do not.
        scale: Of an analog value: `uniform` or `mu-law` bins, if the format has a usual one; empty otherwise.
    """

    name: str
    kind: Kind
    options: tuple[str, ...] = ()
    rest: int | None = 0
    limits: tuple[float, float] | None = None
    levels: tuple[float, ...] = ()
    is_added: bool = False
    scale: str = ""

    def __post_init__(self) -> None:
        check_text(self.name, "the name of a column of actions", MAX_NAME)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTable:
    """All of a recording but its frames; T frames.

    Attributes:
        actions: `[T]` for each column: entry i is of the action taken at frame i, which leads to frame i + 1.
            The last entry is of no account: what it led to is not shown.
        rewards: `[T]` float64, given on the way to each frame, or None.
        terminated: `[T]` bool, whether the game ended at a frame, or None.
        poses: `[T, 3]` float64 x, y and angle in degrees at each frame, or None.
        times: `[T]` float64, when frames are shown in seconds, or None where they are evenly spaced.
    """

    num_frames: int
    actions: Mapping[str, np.ndarray]
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    poses: np.ndarray | None = None
    times: np.ndarray | None = None


class Recording(ABC):
    """One episode of a source, read when it is asked for.

    Attributes:
        name: Of its files, once it is imported.
        where: Its file, and its place in there, for errors.
    """

    name: str
    where: str

    @abstractmethod
    def table(self) -> SourceTable:
        """Read all but the frames.

        Raises:
            WorldError: If something of it is not as the format says.
            OSError: If a file cannot be read.
        """

    @abstractmethod
    def frames(self, resize: Resize = unchanged) -> Iterator[np.ndarray]:
        """Yield the frames in turn, each `[height, width, 3]` uint8.

        Args:
            resize: To which size a reader may scale frames, if that costs it less than decoding them whole.

        Raises:
            WorldError: If one cannot be decoded.
            OSError: If a file cannot be read.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a reader found.

    Attributes:
        about: The game or dataset, in words.
        recordings: All episodes.
        channels: Columns of actions, if the format says what they are; None takes them from the values.
        frame_rate: Frames per second; None if the format does not say.
        licence: Of the pictures, if it is known.
        notes: What a user should know of how it is read.
        has_one_size: Whether the format says that all its frames have the size of the first.
    """

    about: str
    recordings: Sequence[Recording]
    channels: tuple[Channel, ...] | None = None
    frame_rate: float | None = None
    licence: str = ""
    notes: tuple[str, ...] = field(default=())
    has_one_size: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a user says of a source.

    Attributes:
        image: Name of the pictures, where a source holds several.
        trim: By how many frames the pictures and the actions may differ; what has no partner is cut off.
    """

    image: str = ""
    trim: int = 0


def as_rgb(frame: np.ndarray, where: str) -> np.ndarray:
    """Return a grey, RGB or opaque RGBA picture as `[height, width, 3]` uint8.

    Args:
        frame: `[H, W]`, or `[H, W, C]` or `[C, H, W]` with 1, 3 or 4 channels.

    Raises:
        WorldError: If it is anything else.
    """
    if frame.dtype != np.uint8:
        raise WorldError(f"{where}: a picture has the type uint8, got {frame.dtype}")
    if frame.ndim == 2:
        frame = frame[..., None]
    if frame.ndim == 3 and frame.shape[0] in (1, 3) and frame.shape[2] not in (1, 3, 4):
        frame = frame.transpose(1, 2, 0)
    if frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or 0 in frame.shape:
        raise WorldError(
            f"{where}: a picture is [height, width] or has 1, 3 or 4 channels, got {frame.shape}"
        )
    if frame.shape[2] == 4 and frame[..., 3].min() < 255:
        raise WorldError(f"{where} is transparent in places: put it on the background it should have")
    return np.ascontiguousarray(np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[..., :3])


def fit_rows(
    columns: Mapping[str, np.ndarray], num_frames: int, trim: int, where: str
) -> tuple[int, dict[str, np.ndarray]]:
    """Return how many frames have a row, and columns with so many rows.

    There may be a row for each frame, or for each but the last, where no action follows.

    Args:
        columns: Values of equally many rows each, whatever else their shape.
        num_frames: How many frames there are.
        trim: By how many rows they may differ beside that.

    Raises:
        WorldError: If there are too many or too few.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise WorldError(f"{where} has columns of different lengths: {told}")
    num_rows = next(iter(lengths.values()), num_frames)
    if num_frames < 2 or num_rows < 1:
        raise WorldError(
            f"{where} has {num_frames} frames and {num_rows} rows: an episode has at least 2 frames"
        )
    if num_frames - num_rows not in (0, 1) and abs(num_frames - num_rows) > trim:
        raise WorldError(
            f"{where} has {num_frames} frames and {num_rows} rows of actions, expected one for each frame or "
            f"each but the last; trim={abs(num_frames - num_rows)} cuts off what has no partner at the end"
        )
    num_frames = min(num_frames, num_rows + 1)
    pad = num_frames - min(num_rows, num_frames)
    return num_frames, {
        name: np.concatenate([values[:num_frames], values[-1:].repeat(pad, axis=0)])
        for name, values in columns.items()
    }


def on_the_way(values: np.ndarray, num_frames: int) -> np.ndarray:
    """Return what each action brought, as what was given on the way to each frame.

    What the last action of as many as there are frames brought is told with the last frame, since the frame
    it led to is not there.

    Args:
        values: `[T - 1]` or `[T]` rewards or ends, entry i of the action taken at frame i.

    Returns:
        `[T]`, the first 0.
    """
    found = np.zeros(num_frames, dtype=bool if values.dtype == bool else np.float64)
    found[1:] = values[: num_frames - 1]
    for late in values[num_frames - 1 : num_frames]:
        found[-1] = found[-1] | late if found.dtype == bool else found[-1] + late
    return found


def check_rewards(values: Any, where: str) -> np.ndarray:
    """Return rewards as `[N]` float64.

    Raises:
        WorldError: If they are no finite numbers.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise WorldError(f"{where}: rewards are numbers, got {shown(values)}")
    array = array.astype(np.float64).reshape(len(array), -1)
    if array.shape[1] != 1 or not np.isfinite(array).all():
        raise WorldError(f"{where}: a reward is one finite number a frame")
    return array[:, 0]


def check_poses(values: np.ndarray, num_frames: int, where: str) -> np.ndarray:
    """Return poses of at least so many frames as `[T, 3]` float64.

    Raises:
        WorldError: If they are no three finite numbers a frame.
    """
    if values.shape[1:] != (3,) or len(values) < num_frames or values.dtype.kind not in "fiu":
        raise WorldError(f"{where}: a pose is x, y and angle_degrees at each frame, got {values.shape}")
    if not np.isfinite(values).all():
        raise WorldError(f"{where}: a pose is three finite numbers")
    return values[:num_frames].astype(np.float64)


def choose_image(names: Sequence[str], wanted: str, where: str) -> str:
    """Return the name of the pictures to read.

    Raises:
        WorldError: If there are none, or several and none of them was chosen.
    """
    if wanted and wanted not in names:
        raise WorldError(f"{where} has no pictures {wanted!r}; it has {', '.join(names) or 'none'}")
    if not names:
        raise WorldError(f"{where} holds no pictures; a world learns from frames")
    if not wanted and len(names) > 1:
        raise WorldError(f"{where} has several pictures: choose one, image={' or image='.join(names)}")
    return wanted or names[0]

"""`dataset.json`: what all episodes of a folder of gameplay video share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.storage.files import (
    check_bool,
    check_integer,
    check_number,
    parse_json,
    read_text,
    without_litter,
    write_json,
)

FORMAT = 1
INFO_FILE = "dataset.json"
PART_SUFFIX = ".part"
MAX_SIDE = 2**13
"""In pixels: what 8K video has."""
MIN_FRAME_RATE, MAX_FRAME_RATE = 0.01, 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What all episodes of a folder share.

    Attributes:
        name: Short name of the game or recording.
        width: Frame width in pixels.
        height: Frame height in pixels.
        frame_rate: Frames per second.
        source: Where the video came from: game, version, settings.
        licence: Licence of the pictures.
        lossless: Whether the video keeps every pixel, for pictures whose small things the usual compression
            would blur.
        environment: What makes the Gymnasium environment that it was recorded from, as `GymEntry` says it;
            empty for other video.
        labels: Names of the numbers that are known of each frame, where they are recorded.
        max_episode_steps: Frames after which the game cuts an episode off; None where it does not, or nobody
            knows.
        recording: Who played, as settings of `training.collect`; empty where nobody says. Folders that differ
            in it alone are equal: `source` says the same in words.
    """

    name: str
    width: int
    height: int
    frame_rate: float
    actions: ActionLayout
    source: str = ""
    licence: str = ""
    lossless: bool = False
    environment: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    max_episode_steps: int | None = None
    recording: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("name", "source", "licence"):
            if not isinstance(getattr(self, name), str):
                raise WorldError(f"{name} must be a text, got a {type(getattr(self, name)).__name__}")
        for name in ("width", "height"):
            check_integer(getattr(self, name), name, 1, MAX_SIDE)
        check_number(self.frame_rate, "frame_rate", MIN_FRAME_RATE, MAX_FRAME_RATE)
        check_bool(self.lossless, "lossless")
        for name in ("environment", "recording"):
            if not isinstance(getattr(self, name), dict):
                raise WorldError(f"{name} must be an object, got a {type(getattr(self, name)).__name__}")
        if self.max_episode_steps is not None:
            check_integer(self.max_episode_steps, "max_episode_steps", 1)
        if len(set(self.labels)) < len(self.labels):
            raise WorldError(f"labels must have different names, got {', '.join(self.labels)}")

    @property
    def shape_and_buttons(self) -> tuple[int, int, tuple[str, ...]]:
        """Height, width and buttons: what must agree for episodes to share a folder."""
        return self.height, self.width, self.actions.buttons

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        described = {"format": FORMAT} | asdict(self) | {"actions": self.actions.to_json()}
        for name in ("lossless", "environment", "labels", "max_episode_steps", "recording"):
            if not described[name]:
                del described[name]
        return described

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DatasetInfo:
        """Build from `to_json`'s object.

        Raises:
            WorldError: If a field is missing or of the wrong form.
        """
        try:
            if data["format"] != FORMAT or isinstance(data["format"], bool):
                raise WorldError(f"dataset format {data['format']!r} is not known, expected {FORMAT}")
            return cls(
                name=data["name"],
                width=data["width"],
                height=data["height"],
                frame_rate=check_number(data["frame_rate"], "frame_rate"),
                actions=ActionLayout.from_json(data["actions"]),
                source=data.get("source", ""),
                licence=data.get("licence", ""),
                lossless=data.get("lossless", False),
                environment=data.get("environment", {}),
                labels=_read_names(data.get("labels", [])),
                max_episode_steps=data.get("max_episode_steps"),
                recording=data.get("recording", {}),
            )
        except KeyError as error:
            raise WorldError(f"dataset description has no field {error}") from error
        except (TypeError, AttributeError) as error:
            raise WorldError(f"dataset description is not of the expected form: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> DatasetInfo:
        """Read `dataset.json` of a folder.

        Raises:
            FileNotFoundError: If the folder or its `dataset.json` is missing.
            WorldError: If it is not a valid description.
        """
        path = folder / INFO_FILE
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        if not path.is_file():
            found = [path for path in without_litter(folder.iterdir()) if (path / INFO_FILE).is_file()]
            inner = [str(path) for path in found]
            hint = f"; did you mean {' or '.join(inner)}?" if inner else ""
            raise FileNotFoundError(f"{folder} holds no gameplay video: it has no {INFO_FILE}{hint}")
        try:
            return cls.from_json(parse_json(read_text(path), "it"))
        except ValueError as error:
            raise WorldError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `dataset.json`, creating the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / INFO_FILE, self.to_json())


def _read_names(data: Any) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise WorldError(f"labels must be a list of names, got {data!r}")
    return tuple(data)

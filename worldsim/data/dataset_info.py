"""`dataset.json`: what all episodes of a folder of gameplay video share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldsim.actions import ActionLayout
from worldsim.errors import WorldError

FORMAT = 1
INFO_FILE = "dataset.json"
PART_SUFFIX = ".part"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What all episodes of a folder share.

    Attributes:
        name: Short name of the game or recording.
        width: Frame width in pixels.
        height: Frame height in pixels.
        frame_rate: Frames per second.
        actions: The buttons.
        source: Where the video came from: game, version, settings.
        licence: Licence of the pictures.
        lossless: Whether the video keeps every pixel, for pictures whose small things the usual compression
            would blur.
    """

    name: str
    width: int
    height: int
    frame_rate: float
    actions: ActionLayout
    source: str = ""
    licence: str = ""
    lossless: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or not 0 < self.frame_rate < math.inf:
            raise WorldError(
                f"gameplay video needs a positive size and frame rate, got {self.width} x {self.height} "
                f"at {self.frame_rate} a second"
            )

    @property
    def shape_and_buttons(self) -> tuple[int, int, tuple[str, ...]]:
        """Height, width and buttons: what must agree for episodes to share a folder."""
        return self.height, self.width, self.actions.buttons

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        described: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "width": self.width,
            "height": self.height,
            "frame_rate": self.frame_rate,
            "actions": self.actions.to_json(),
            "source": self.source,
            "licence": self.licence,
        }
        return described | ({"lossless": True} if self.lossless else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DatasetInfo:
        """Build from `to_json`'s object.

        Raises:
            WorldError: If a field is missing or of the wrong form.
        """
        try:
            if data["format"] != FORMAT:
                raise WorldError(f"dataset format {data['format']!r} is not known, expected {FORMAT}")
            return cls(
                name=str(data["name"]),
                width=int(data["width"]),
                height=int(data["height"]),
                frame_rate=float(data["frame_rate"]),
                actions=ActionLayout.from_json(data["actions"]),
                source=str(data.get("source", "")),
                licence=str(data.get("licence", "")),
                lossless=bool(data.get("lossless", False)),
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
            inner = sorted(str(child.parent) for child in folder.glob(f"*/{INFO_FILE}"))
            hint = f"; did you mean {' or '.join(inner)}?" if inner else ""
            raise FileNotFoundError(f"{folder} holds no gameplay video: it has no {INFO_FILE}{hint}")
        try:
            return cls.from_json(json.loads(path.read_text()))
        except ValueError as error:
            raise WorldError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `dataset.json`, creating the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / (INFO_FILE + PART_SUFFIX)
        part.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        part.replace(folder / INFO_FILE)

"""Textures of an IWAD to build rooms of: walls and flats that stand still and hide what is behind.

Formats: https://doomwiki.org/wiki/TEXTURE1_and_TEXTURE2 and https://doomwiki.org/wiki/Picture_format.
"""

# H W size of a texture in pixels

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from worldsim.games.rooms.wad import read_wad

# These change by themselves, are the sky, or hold a place.
MOVING_WALLS = ("BFALL", "BLOD", "DBRAIN", "FIRE", "GSTFONT", "ROCKRED", "SFALL", "SLADRIP", "WFALL")
OTHER_WALLS = ("AA", "P-", "SKY", "SW1", "SW2", "T-SKY")
ROCKS = ("RROCK05", "RROCK06", "RROCK07", "RROCK08")
MOVING_FLATS = ("BLOOD", "FWATER", "LAVA", "NUKAGE", *ROCKS, "SLIME", "SWATER")
OTHER_FLATS = ("F_SKY", "FLTEL")
WALL_HEIGHT = 128  # of the textures that are made to cover a wall; others are steps, lamps and signs
MIN_WIDTH = 64
FLAT_BYTES = 64 * 64
HOLE = -1
# Mean brightness, 0 to 255: of what is darker or brighter one sees little, whatever light a room has.
BRIGHTNESS = (28.0, 190.0)
MIN_CONTRAST = 3.0  # standard deviation of the brightness; below it there is nothing to see


Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Textures:
    """Names of textures, sorted, with the mean red, green and blue of each, 0 to 255.

    Attributes:
        walls: At least 64 wide and 128 high.
        flats: For floors and ceilings, 64 by 64.
    """

    walls: Mapping[str, Colour]
    flats: Mapping[str, Colour]


@lru_cache(maxsize=1)
def read_textures(path: Path) -> Textures:
    """Read which textures of an IWAD stand still, have no holes and are neither nearly black nor white.

    Raises:
        FileNotFoundError: If there is no such file.
        WorldError: If it is no WAD.
    """
    lumps = read_wad(path)
    by_name = dict(lumps)
    names = [name for name, _ in lumps]
    flats = [
        (name, np.frombuffer(content, dtype=np.uint8))
        for name, content in lumps[names.index("F_START") + 1 : names.index("F_END")]
        if len(content) == FLAT_BYTES and not name.startswith(MOVING_FLATS + OTHER_FLATS)
    ]
    walls = [one for one in draw_textures(by_name) if not one[0].startswith(MOVING_WALLS + OTHER_WALLS)]
    palette = np.frombuffer(by_name["PLAYPAL"][: 256 * 3], dtype=np.uint8).reshape(256, 3)
    return Textures(mean_colours(walls, palette), mean_colours(flats, palette))


def mean_colours(textures: list[tuple[str, np.ndarray]], palette: np.ndarray) -> dict[str, Colour]:
    """Return the mean colours of those textures, sorted, that have no holes and show something."""
    brightness, colours = palette.mean(axis=1), {}
    for name, pixels in sorted(textures, key=lambda one: one[0]):
        if pixels.min() == HOLE:
            continue
        shares = np.bincount(pixels.ravel(), minlength=len(palette)) / pixels.size  # of each palette entry
        mean = float(shares @ brightness)
        contrast = float(shares @ (brightness - mean) ** 2) ** 0.5
        if BRIGHTNESS[0] <= mean <= BRIGHTNESS[1] and contrast >= MIN_CONTRAST:
            red, green, blue = (float(value) for value in shares @ palette)
            colours[name] = (red, green, blue)
    return colours


def draw_textures(lumps: dict[str, bytes]) -> list[tuple[str, np.ndarray]]:
    """Return name and pixels, `[H, W]` int16 indices of the palette or `HOLE`, of all textures for walls."""
    data = lumps["PNAMES"]
    (count,) = struct.unpack_from("<i", data)
    names = [data[4 + 8 * i : 12 + 8 * i].split(b"\0")[0].decode("ascii").upper() for i in range(count)]
    patches: dict[str, np.ndarray] = {}
    found = []
    for lump in ("TEXTURE1", "TEXTURE2"):
        data = lumps.get(lump, b"\0\0\0\0")
        (count,) = struct.unpack_from("<i", data)
        for offset in struct.unpack_from(f"<{count}i", data, 4):
            name, _, width, height, _, num_patches = struct.unpack_from("<8sIhhIh", data, offset)
            if height != WALL_HEIGHT or width < MIN_WIDTH:
                continue
            pixels = np.full((height, width), HOLE, dtype=np.int16)
            for number in range(num_patches):
                left, top, patch = struct.unpack_from("<hhh", data, offset + 22 + 10 * number)
                if names[patch] not in patches:
                    patches[names[patch]] = draw_patch(lumps[names[patch]])
                paste(pixels, patches[names[patch]], left, top)
            found.append((name.split(b"\0")[0].decode("ascii").upper(), pixels))
    return found


def draw_patch(data: bytes) -> np.ndarray:
    """Return the pixels, `[H, W]` int16 indices of the palette or `HOLE`, of a picture in Doom's format."""
    width, height = struct.unpack_from("<hh", data)
    pixels = np.full((height, width), HOLE, dtype=np.int16)
    for column, position in enumerate(struct.unpack_from(f"<{width}i", data, 8)):
        while (top := data[position]) != 255:
            length = data[position + 1]
            pixels[top : top + length, column] = np.frombuffer(data, np.uint8, length, position + 3)
            position += length + 4
    return pixels


def paste(pixels: np.ndarray, patch: np.ndarray, left: int, top: int) -> None:
    """Draw a patch into `pixels` `[H, W]`, where it is not cut off; its holes leave what is there."""
    height, width = pixels.shape
    rows = slice(max(top, 0), min(top + patch.shape[0], height))
    columns = slice(max(left, 0), min(left + patch.shape[1], width))
    part = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    target = pixels[rows, columns]
    np.copyto(target, part, where=part != HOLE)

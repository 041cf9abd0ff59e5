"""WAD files, in which Doom keeps everything: named lumps of bytes, in an order that has a meaning."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from worldsim.errors import WorldError
from worldsim.games.rooms.map import Thing

HEADER = struct.Struct("<4sii")  # kind, number of lumps, where their directory is
ENTRY = struct.Struct("<ii8s")  # where a lump is, its size, its name
MULTIPLAYER = 16
THING = struct.Struct("<hhhhh")  # x, y, angle, editor number, flags

Lump = tuple[str, bytes]


def encode_wad(lumps: Iterable[Lump]) -> bytes:
    """Return a patch WAD (PWAD) of these lumps; names have up to 8 ASCII characters.

    The lumps lie one after the other behind a header of 12 bytes, in their order.
    """
    data, directory = b"", b""
    for name, content in lumps:
        directory += ENTRY.pack(HEADER.size + len(data), len(content), name.encode("ascii"))
        data += content
    return HEADER.pack(b"PWAD", len(directory) // ENTRY.size, HEADER.size + len(data)) + data + directory


def read_wad(path: Path) -> list[Lump]:
    """Return the lumps of a WAD in their order; names are in capitals.

    Raises:
        WorldError: If the file is no WAD.
    """
    content = path.read_bytes()
    try:
        kind, count, start = HEADER.unpack_from(content)
        if kind not in (b"IWAD", b"PWAD"):
            raise WorldError(f"{path} is no WAD: it begins with {kind!r}")
        entries = [ENTRY.unpack_from(content, start + number * ENTRY.size) for number in range(count)]
    except struct.error as error:
        raise WorldError(f"{path} is no WAD: {error}") from error
    return [
        (name.split(b"\0")[0].decode("ascii", "replace").upper(), content[position : position + size])
        for position, size, name in entries
    ]


def read_things(lumps: Iterable[Lump], map_name: str, skill: int | None = None) -> list[Thing]:
    """Return what stands in a map of Doom's own format.

    Args:
        lumps: Of the WAD.
        map_name: Of the map.
        skill: Only what there is for one player at this skill, 1 to 5; None is all kinds of games and skills.

    Raises:
        WorldError: If there is no such map.
    """
    following = iter(lumps)
    if not any(name == map_name for name, _ in following):
        raise WorldError(f"there is no map {map_name}")
    content = next(content for name, content in following if name == "THINGS")
    wanted = None if skill is None else 1 << max(0, min(skill, 4) - 2)
    return [
        Thing(kind, x, y, angle)
        for x, y, angle, kind, flags in THING.iter_unpack(content)
        if wanted is None or (flags & wanted and not flags & MULTIPLAYER)
    ]

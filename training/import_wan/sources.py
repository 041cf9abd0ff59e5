"""Sources of an import: where a checkpoint is, its licence, and the buttons that it is given."""

from __future__ import annotations

import re
from pathlib import Path

from worldsim.actions import NO_BUTTONS, ActionLayout
from worldsim.data.dataset_info import INFO_FILE, DatasetInfo
from worldsim.errors import WorldError
from worldsim.games.registry import GAMES
from worldsim.storage.files import MAX_TEXT, printable, user_path
from worldsim.storage.tensors import CONFIG_FILE
from worldsim.wan.autoencoder_files import ORIGINAL_FILES
from worldsim.wan.sources import INDEX_SUFFIX, SUFFIX
from worldsim.world.hub import download_files
from worldsim.world.world import CARD_FILE, find_world, read_config

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(/.+)?")
WHOLE = [
    *(CONFIG_FILE, CARD_FILE, f"*{SUFFIX}", f"*{INDEX_SUFFIX}"),
    *("transformer/*", "vae/*", *ORIGINAL_FILES),
]
"""Files of a repository that are fetched where none is named."""
NOT_NEEDED = ["text_encoder/*", "image_encoder/*", "*t5*", "*clip*"]


def find_checkpoint(given: str) -> Path:
    """Return a file or a folder: one that is there, or one of the hub, `OWNER/NAME` or `OWNER/NAME/FILE`.

    What the hub's cache has is not downloaded again; without a network it is all there is.

    Raises:
        WorldError: If there is neither.
    """
    path = user_path(given)
    if path.exists() or not REPOSITORY.fullmatch(given) or given.startswith("."):
        if not path.exists():
            raise WorldError(
                f"{path} does not exist; a checkpoint is a file, a folder or OWNER/NAME of the hub"
            )
        return path
    owner, name, *inner = given.split("/", 2)
    repository = f"{owner}/{name}"
    if not inner:
        return download_files(repository, WHOLE, "checkpoint", NOT_NEEDED)
    beside = Path(inner[0]).parent / CONFIG_FILE
    folder = download_files(repository, [inner[0], beside.as_posix(), CARD_FILE], "checkpoint")
    if not (folder / inner[0]).is_file():
        raise WorldError(f"the repository {repository} of the hub has no file {inner[0]}")
    return folder / inner[0]


def licence_of(path: Path) -> str:
    """Return what the card in or beside a checkpoint says of its licence; empty if it says nothing."""
    folder = path if path.is_dir() else path.parent
    for place in (folder, *folder.parents[:2]):
        card = place / CARD_FILE
        if card.is_file():
            with card.open(encoding="utf-8", errors="replace") as file:
                head = re.match(r"---\s*\n(.*?)\n---", file.read(MAX_TEXT), re.DOTALL)
            found = re.search(r"^license:[ \t]*(\S[^\n]*)$", head[1], re.MULTILINE) if head else None
            return printable(found[1].strip().strip("\"'"))[:100] if found else ""
    return ""


def find_actions(given: str) -> ActionLayout:
    """Return the buttons of a game, or of a folder of gameplay video or a world; none where none are named.

    Raises:
        WorldError: If there is no such game, folder or world.
    """
    if not given:
        return ActionLayout((NO_BUTTONS,))
    if given in GAMES:
        return GAMES[given].actions
    folder = user_path(given)
    if (folder / INFO_FILE).is_file():
        return DatasetInfo.load(folder).actions
    try:
        return read_config(find_world(given))[0].actions
    except WorldError as error:
        known = ", ".join(sorted(GAMES))
        raise WorldError(
            f"actions={given} is no game ({known}), no folder of gameplay video and no world: {error}"
        ) from error

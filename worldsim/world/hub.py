"""Worlds of the Hugging Face hub: downloaded to its cache, or refused in one sentence."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from worldsim.errors import WorldError
from worldsim.storage.files import printable
from worldsim.storage.tensors import CONFIG_FILE

LOG_IN = "log in with `hf auth login`"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def download_world(repo_id: str, patterns: list[str]) -> Path:
    """Fetch the files of `OWNER/NAME` that match, as far as the hub's cache lacks them; returns their folder.

    Raises:
        WorldError: If there is no such world, or it cannot be downloaded; it says why and what to do.
    """
    folder = download_files(repo_id, patterns, "world")
    if not (folder / CONFIG_FILE).is_file():
        raise WorldError(f"the repository {repo_id} of the hub holds no world: it has no {CONFIG_FILE}")
    return folder


def download_files(repo_id: str, patterns: list[str], what: str, ignored: Sequence[str] = ()) -> Path:
    """Fetch the files of `OWNER/NAME` that match, as far as the hub's cache lacks them; returns their folder.

    Args:
        what: They are, for errors.
        ignored: Patterns of files that are left out.

    Raises:
        WorldError: If they cannot be had; it says why and what to do.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=list(ignored)))
    # What the client of the hub raises differs from release to release, and that of its HTTP library, too.
    except Exception as error:
        why = _reason(error, repo_id)
        raise WorldError(f"there is no folder {repo_id}, and the hub gives no such {what}: {why}") from error


def _reason(error: BaseException, repo_id: str) -> str:
    """Return what went wrong, and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # nothing is in the cache, because of it
    if isinstance(error, errors.HFValidationError):
        return f"{_first_line(error)}; a repository is OWNER/NAME"
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return "it was not downloaded before, and HF_HUB_OFFLINE forbids it: unset that to download it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no branch main: it is empty"
    response = error.response if isinstance(error, errors.HfHubHTTPError) else None
    status = 0 if response is None else response.status_code
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"access is restricted: ask for it on the page of {repo_id}, and {LOG_IN}"
    if status in (401, 404):
        return f"there is no such repository, or it is private: check the name, or {LOG_IN}"
    if status == 429:
        return f"the hub has had too many requests from here (429): try again in some minutes, or {LOG_IN}"
    if status >= 500:
        return f"the hub itself is out of order ({status}): try again later"
    if status:
        return f"the hub refused the request ({status}): {_first_line(error)}"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "the disk is full: make room, or let HF_HOME name a folder on another disk"
    if isinstance(error, PermissionError):
        return f"{error.filename} cannot be written: let HF_HOME name a folder that can"
    # httpx, the HTTP library of some releases, has errors of its own; those of requests are OSErrors.
    is_http = any(kind.__name__ == "HTTPError" for kind in type(error).__mro__)
    if (is_http or isinstance(error, OSError)) and not isinstance(
        error, ValueError | errors.FileMetadataError
    ):
        return f"the connection failed: check the network and try again ({_first_line(error)})"
    return (
        "what came is no answer of the hub: a network that asks to log in first may have given it "
        f"({_first_line(error)})"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return printable(f"{type(error).__name__}: {lines[0]}".rstrip(": "))[:200]

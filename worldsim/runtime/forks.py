"""Detection of a forked process, without loading PyTorch."""

from __future__ import annotations

import os


class Fork:
    """What a process must put right that was forked from another: threads do not come along.

    Attributes:
        is_new: Whether nothing was put right yet.
    """

    is_new = False


def _note() -> None:
    Fork.is_new = True


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_note)

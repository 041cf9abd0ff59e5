"""Values that recordings of functions read and write where they are: too large to be copied at each call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any


class Resident(ABC):
    """A value in a room of its kind, in which a recorded function also leaves the value behind it."""

    @abstractmethod
    def signature(self) -> Hashable:
        """Return what tells kinds of rooms apart."""

    @abstractmethod
    def settle(self, homes: dict[Hashable, Any]) -> None:
        """Move into the room that recordings use, by signature, and let nobody else be in the way there.

        Where there is no room yet, it is the value's own.
        """

    @abstractmethod
    def shadow(self) -> Resident:
        """Return the value as it is given to a function that is recorded: it belongs to nobody."""

    @abstractmethod
    def follow(self, recorded: Resident) -> Resident:
        """Return what a replay leaves, where `recorded` is what the function returned of a shadow."""

"""Seeds that people share: everybody who plays on the same date dreams the same dream."""

from __future__ import annotations

from datetime import UTC, date, datetime

from worldsim.errors import WorldError

TODAY = "today"


def seed_of_day(day: date | None = None) -> int:
    """Return the seed of a date: 20261130 of the 30th of November 2026; without one, of today in UTC."""
    day = day or datetime.now(UTC).date()
    return 10_000 * day.year + 100 * day.month + day.day


def find_seed(seed: int | str) -> int:
    """Return a seed that is given as a whole number of at least 0, or as `today`.

    Raises:
        WorldError: If it is neither.
    """
    if seed == TODAY:
        return seed_of_day()
    try:
        number = int(seed)
    except ValueError:
        number = -1
    if number < 0 or isinstance(seed, bool):
        raise WorldError(f"seed must be a whole number of at least 0, or {TODAY}, got {seed!r}")
    return number

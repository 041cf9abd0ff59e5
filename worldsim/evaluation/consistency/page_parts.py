"""The sections of the page about what is measured beside recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]


def sections(report: Report) -> list[str]:
    """Return the sections of the parts that were measured."""
    del report
    return []

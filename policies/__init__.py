"""Players: anything that maps the picture on the screen to an action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from policies.base import Policy
from policies.keyboard import KeyboardPolicy
from policies.random import RandomPolicy
from policies.recorded import RecordedPolicy
from policies.scripted import ScriptedPolicy

__all__ = ["POLICIES", "KeyboardPolicy", "Policy", "RandomPolicy", "RecordedPolicy", "ScriptedPolicy", "make"]

POLICIES: dict[str, Callable[..., Policy]] = {
    "keyboard": KeyboardPolicy,
    "random": RandomPolicy,
    "recorded": RecordedPolicy,
    "scripted": ScriptedPolicy,
}


def make(name: str, *, num_values: Sequence[int], **options: Any) -> Policy:
    """Build a policy by name.

    Args:
        name: A key of `POLICIES`.
        num_values: Number of values of each axis of the world's actions.
        **options: Further arguments of the policy: `keys` for `keyboard`, `path` for `recorded`,
            `hold_frames` for `random`.

    Raises:
        ValueError: If there is no such policy, or the world's axes do not suit it.
    """
    if name not in POLICIES:
        raise ValueError(f"there is no policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    return POLICIES[name](num_values, **options)

"""Players: anything that maps the picture on the screen to an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from policies.base import Policy
from policies.keyboard import KeyboardPolicy
from policies.mixed import MixedPolicy
from policies.random import RandomPolicy
from policies.recorded import RecordedPolicy
from policies.scripted.dodge import DodgePolicy
from policies.scripted.explore import ScriptedPolicy
from policies.scripted.forage import ForagePolicy
from policies.scripted.navigator import FloorPlan, Navigator
from policies.scripted.out_and_back import OutAndBackPolicy
from policies.scripted.returning import ReturningPolicy
from policies.scripted.to_and_fro import ToAndFroPolicy
from policies.scripted.tours import KINDS, TourPolicy
from policies.still import StillPolicy

__all__ = [
    "POLICIES",
    "SCRIPTED",
    "TOURS",
    "DodgePolicy",
    "FloorPlan",
    "ForagePolicy",
    "KeyboardPolicy",
    "MixedPolicy",
    "Navigator",
    "OutAndBackPolicy",
    "Policy",
    "RandomPolicy",
    "RecordedPolicy",
    "ReturningPolicy",
    "ScriptedPolicy",
    "StillPolicy",
    "ToAndFroPolicy",
    "TourPolicy",
    "find_scripted",
    "make",
]

# The scripted player of each scenario.
SCRIPTED: dict[str, type[ScriptedPolicy] | type[DodgePolicy] | type[ForagePolicy]] = {
    "doom-rooms": ScriptedPolicy,
    "doom-fresh-rooms": ScriptedPolicy,
    "doom-take-cover": DodgePolicy,
    "doom-health": ForagePolicy,
}
# What each of the players that know their map does over and over; `tours` draws one of these each time.
TOURS: Mapping[str, tuple[str, ...]] = MappingProxyType({"tours": KINDS} | {kind: (kind,) for kind in KINDS})
MAPPED = ("doom-fresh-rooms",)
"""Scenarios whose games tell their maps."""
SHARES: Mapping[str, float] = MappingProxyType({"random": 0.5, "scripted": 0.5})


def find_scripted(num_values: Sequence[int], scenario: str = "") -> Callable[..., Policy] | None:
    """Return the scripted player for a world of such axes, that of `scenario` if there are several."""
    fitting = {name: player for name, player in SCRIPTED.items() if tuple(num_values) == player.NUM_VALUES}
    return fitting.get(scenario) or next(iter(fitting.values()), None)


def make_scripted(num_values: Sequence[int], *, scenario: str = "") -> Policy:
    """Build the scripted player that fits."""
    player = find_scripted(num_values, scenario)
    if player is None:
        known = ", ".join(str(list(player.NUM_VALUES)) for player in SCRIPTED.values())
        raise ValueError(
            f"there is no scripted player for axes of {list(num_values)} values, only for {known}"
        )
    return player(num_values)


def make_mixed(
    num_values: Sequence[int],
    *,
    scenario: str = "",
    shares: Mapping[str, float] = SHARES,
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Policy:
    """Build all players that have a share, each with its own `options`."""
    players = {
        name: make(name, num_values=num_values, scenario=scenario, **options.get(name, {})) for name in shares
    }
    return MixedPolicy(players, shares)


def make_returning(
    num_values: Sequence[int], *, scenario: str = "", player: str = "", **options: Any
) -> Policy:
    """Build the player that walks back; `player` leads away, by default the scripted one if there is one."""
    name = player or ("scripted" if find_scripted(num_values, scenario) else "random")
    return ReturningPolicy(num_values, make(name, num_values=num_values, scenario=scenario), **options)


def make_learned(num_values: Sequence[int], *, folder: str | Path, **options: Any) -> Policy:
    """Read a policy that was trained with PPO."""
    from policies.ppo import PPOPolicy  # it brings PyTorch, which the other players need not wait for

    return PPOPolicy(num_values, folder, **options)


def make_sb3(num_values: Sequence[int], *, path: str | Path, **options: Any) -> Policy:
    """Read an agent that Stable-Baselines3 saved."""
    from policies.sb3_agent import SB3Policy  # it brings PyTorch, too

    return SB3Policy(num_values, path, **options)


def make_tours(kinds: Sequence[str]) -> Callable[..., Policy]:
    """Return what builds the player that makes tours of these kinds."""

    def make_tour(num_values: Sequence[int], *, scenario: str = "", **options: Any) -> Policy:
        if scenario not in MAPPED:
            game = f"the game {scenario!r} tells none" if scenario else "no game is named"
            raise ValueError(f"players that tour need a map, as games of {', '.join(MAPPED)} tell it: {game}")
        return TourPolicy(num_values, kinds, **options)

    return make_tour


# These are also told the scenario that is played.
FOR_SCENARIO: dict[str, Callable[..., Policy]] = {
    "mixed": make_mixed,
    "returning": make_returning,
    "scripted": make_scripted,
    **{name: make_tours(kinds) for name, kinds in TOURS.items()},
}
POLICIES: dict[str, Callable[..., Policy]] = {
    "keyboard": KeyboardPolicy,
    "out-and-back": OutAndBackPolicy,
    "ppo": make_learned,
    "random": RandomPolicy,
    "recorded": RecordedPolicy,
    "still": StillPolicy,
    "to-and-fro": ToAndFroPolicy,
    **FOR_SCENARIO,
}


def make(name: str, *, num_values: Sequence[int], scenario: str = "", **options: Any) -> Policy:
    """Build a policy by name.

    Args:
        name: A key of `POLICIES`, or the path of a `.zip` that Stable-Baselines3 saved.
        num_values: Number of values of each axis of the world's actions.
        scenario: Name of the scenario, or of the world made from it, where it is known.
        **options: Further arguments of the policy: `keys` for `keyboard`, `path` for `recorded`,
            `hold_frames` for `random`, `folder` and `deterministic` for `ppo`, `period_frames` for
            `to-and-fro`, `player`, `out_frames` and `look_share` for `returning`, `out_frames` for `tours`
            and `leave-and-return`, `out_frames` and `context_frames` for `out-and-back`, `shares` and
            `options` (by player) for `mixed`.

    Raises:
        ValueError: If there is no such policy, or the world's axes do not suit it.
    """
    if name.endswith(".zip"):
        return make_sb3(num_values, path=name, **options)
    if name not in POLICIES:
        raise ValueError(f"there is no policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    if name in FOR_SCENARIO:
        options["scenario"] = scenario
    return POLICIES[name](num_values, **options)

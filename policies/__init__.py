"""Players: anything that maps the picture on the screen to an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from policies.base import FloorPlan, Insider, Navigator, PlayedGame, Policy, ScriptedPlayer
from policies.blind import (
    KeyboardPolicy,
    RandomPolicy,
    RecordedPolicy,
    StickyPolicy,
    StillPolicy,
    ToAndFroPolicy,
)
from policies.mixed import MixedPolicy
from policies.own import OwnPolicy
from policies.scripted.dodge import DodgePolicy
from policies.scripted.excursions import EXCURSIONS, ExcursionPolicy
from policies.scripted.explore import ScriptedPolicy, SkirmishPolicy
from policies.scripted.forage import ForagePolicy
from policies.scripted.level import (
    ChargePolicy,
    DoorPolicy,
    FightPolicy,
    IdlePolicy,
    PushPolicy,
    TurnPolicy,
)
from policies.scripted.out_and_back import OutAndBackPolicy
from policies.scripted.returning import ReturningPolicy
from policies.scripted.tours import KINDS, TourPolicy
from policies.scripted.wander import PatrolPolicy, WanderPolicy

__all__ = [
    "EXCURSIONS",
    "POLICIES",
    "SCRIPTED",
    "TOURS",
    "DodgePolicy",
    "ExcursionPolicy",
    "FloorPlan",
    "ForagePolicy",
    "Insider",
    "KeyboardPolicy",
    "MixedPolicy",
    "Navigator",
    "OutAndBackPolicy",
    "OwnPolicy",
    "PlayedGame",
    "Policy",
    "RandomPolicy",
    "RecordedPolicy",
    "ReturningPolicy",
    "ScriptedPolicy",
    "SkirmishPolicy",
    "StickyPolicy",
    "StillPolicy",
    "ToAndFroPolicy",
    "TourPolicy",
    "find_scripted",
    "make",
    "usual_player",
]

SCRIPTED: Mapping[str, type[ScriptedPlayer]] = MappingProxyType(
    {
        "explore": ScriptedPolicy,
        "dodge": DodgePolicy,
        "forage": ForagePolicy,
        "skirmish": SkirmishPolicy,
        "fight": FightPolicy,
        "open-doors": DoorPolicy,
        "push": PushPolicy,
        "turn-round": TurnPolicy,
        "charge": ChargePolicy,
        "idle": IdlePolicy,
        "wander": WanderPolicy,
        "patrol": PatrolPolicy,
    }
)
"""Scripted players, by the names that the entries of games use; the first that fits is the default."""
# What each of the players that know their map does over and over; `tours` draws one of these each time.
TOURS: Mapping[str, tuple[str, ...]] = MappingProxyType({"tours": KINDS} | {kind: (kind,) for kind in KINDS})
SHARES: Mapping[str, float] = MappingProxyType({"random": 0.5, "scripted": 0.5})


def find_scripted(num_values: Sequence[int], game: PlayedGame | None = None) -> dict[str, float]:
    """Return the scripted players for a world of such axes with their shares: those of `game`, or any."""
    fitting = [name for name, player in SCRIPTED.items() if tuple(num_values) == player.NUM_VALUES]
    named = {name: share for name, share in game.players.items() if name in fitting} if game else {}
    return named or dict.fromkeys(fitting[:1], 1.0)


def usual_player(num_values: Sequence[int]) -> str:
    """Return who plays where nobody is named: `scripted`, or `random` where no scripted player fits."""
    return "scripted" if find_scripted(num_values) else "random"


def make_scripted(num_values: Sequence[int], *, game: PlayedGame | None = None) -> Policy:
    """Build the scripted player that fits, or all of them, of whom the seed chooses."""
    shares = find_scripted(num_values, game)
    if not shares:
        known = ", ".join(str(list(player.NUM_VALUES)) for player in SCRIPTED.values())
        raise ValueError(
            f"there is no scripted player for axes of {list(num_values)} values, only for {known}"
        )
    players = {name: SCRIPTED[name](num_values) for name in shares}
    return MixedPolicy(players, shares) if len(shares) > 1 else players.popitem()[1]


def make_mixed(
    num_values: Sequence[int],
    *,
    game: PlayedGame | None = None,
    shares: Mapping[str, float] = SHARES,
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Policy:
    """Build all players that have a share, each with its own `options`."""
    players = {name: make(name, num_values=num_values, game=game, **options.get(name, {})) for name in shares}
    return MixedPolicy(players, shares)


def make_returning(
    num_values: Sequence[int], *, game: PlayedGame | None = None, player: str = "", **options: Any
) -> Policy:
    """Build the player that walks back; `player` leads away, by default the scripted one if there is one."""
    if game is not None and game.one_way:
        raise ValueError(
            f"the player that walks back needs axes of two opposite buttons: in {game.name!r} those of "
            f"{', '.join(game.one_way)} do not undo each other"
        )
    name = player or usual_player(num_values)
    return ReturningPolicy(num_values, make(name, num_values=num_values, game=game), **options)


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

    def make_tour(num_values: Sequence[int], *, game: PlayedGame | None = None, **options: Any) -> Policy:
        if game is None or not game.tells_map:
            told = "no game is named" if game is None else f"the game {game.name!r} tells none"
            raise ValueError(f"players that tour need a map, as games of doom-fresh-rooms tell it: {told}")
        return TourPolicy(num_values, kinds, **options)

    return make_tour


def make_excursion(kind: str) -> Callable[..., Policy]:
    """Return what builds the player that makes excursions of this kind."""

    def make_one(num_values: Sequence[int], *, game: PlayedGame | None = None, **options: Any) -> Policy:
        if tuple(num_values) != ExcursionPolicy.NUM_VALUES:
            raise ValueError(f"{ExcursionPolicy.NEEDS}, got axes of {list(num_values)} values")
        return ExcursionPolicy(num_values, make_scripted(num_values, game=game), [kind], **options)

    return make_one


# These are also told the game that is played.
FOR_GAME: dict[str, Callable[..., Policy]] = {
    "mixed": make_mixed,
    "returning": make_returning,
    "scripted": make_scripted,
    **{kind: make_excursion(kind) for kind in EXCURSIONS},
    **{name: make_tours(kinds) for name, kinds in TOURS.items()},
}
POLICIES: dict[str, Callable[..., Policy]] = {
    "keyboard": KeyboardPolicy,
    "out-and-back": OutAndBackPolicy,
    "own": OwnPolicy,
    "ppo": make_learned,
    "random": RandomPolicy,
    "recorded": RecordedPolicy,
    "sticky": StickyPolicy,
    "still": StillPolicy,
    "to-and-fro": ToAndFroPolicy,
    **FOR_GAME,
}


def make(name: str, *, num_values: Sequence[int], game: PlayedGame | None = None, **options: Any) -> Policy:
    """Build a policy by name.

    Args:
        name: A key of `POLICIES`, or the path of a `.zip` that Stable-Baselines3 saved.
        num_values: Number of values of each axis of the world's actions.
        game: What is played, or what the world was made from, where it is known.
        **options: Further arguments of the policy: `keys` for `keyboard`, `path` for `recorded` and `own`,
            `hold_frames` for `random`, `most_frames` for `sticky`, `folder` and `deterministic` for `ppo`,
            `period_frames` for `to-and-fro`, `player`, `out_frames` and `look_share` for `returning`,
            `out_frames` for `tours`, `leave-and-return` and `retrace`, `out_frames` and `context_frames` for
            `out-and-back`, `shares` and `options` (by player) for `mixed`.

    Raises:
        ValueError: If there is no such policy, or the world's axes do not suit it.
    """
    if name.endswith(".zip"):
        return make_sb3(num_values, path=name, **options)
    if name not in POLICIES:
        raise ValueError(f"there is no policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    if name in FOR_GAME:
        options["game"] = game
    return POLICIES[name](num_values, **options)

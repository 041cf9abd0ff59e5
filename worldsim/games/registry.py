"""Registry of real games: one entry for each (docs/your-game.md says how to add one)."""

from __future__ import annotations

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.errors import WorldError
from worldsim.games.doom import DoomEntry, GeneratedRooms, ScenarioFile
from worldsim.games.doom_events import MEASURES
from worldsim.games.doom_level import Level
from worldsim.games.entry import GameEntry, RealGame
from worldsim.games.grid_recall import GRID_RECALL

MOVE = ActionAxis(name="move", buttons=("forward", "backward"), keys=(("up", "w"), ("down", "s")))
FORWARD = ActionAxis(name="move", buttons=("forward",), keys=(("up", "w"),))
STRAFE = ActionAxis(name="strafe", buttons=("left", "right"), keys=(("a",), ("d",)))
ONLY_STRAFE = ActionAxis(name="strafe", buttons=("left", "right"), keys=(("left", "a"), ("right", "d")))
TURN = ActionAxis(name="turn", buttons=("left", "right"), keys=(("left",), ("right",)))
ONLY_TURN = ActionAxis(name="turn", buttons=("left", "right"), keys=(("left", "a"), ("right", "d")))
ACT = ActionAxis(name="act", buttons=("attack", "use"), keys=(("space",), ("e",)))

GAMES: dict[str, GameEntry] = {
    entry.name: entry
    for entry in (
        DoomEntry(
            name="doom-rooms",
            place=ScenarioFile("my_way_home"),  # 1 for reaching the goal
            ending="reached the goal",
            actions=ActionLayout((MOVE, STRAFE, TURN)),
            players={"wander": 1.0},
            recorded_players={"explore": 1.0},
            episode_frames=1050,
        ),
        DoomEntry(
            name="doom-fresh-rooms",
            place=GeneratedRooms(),  # without reward or end
            actions=ActionLayout((MOVE, STRAFE, TURN)),
            players={"wander": 1.0},
            recorded_players={"explore": 1.0},
            episode_frames=1050,
            tells_map=True,
        ),
        DoomEntry(
            name="doom-take-cover",
            place=ScenarioFile("take_cover"),  # 1 for each tic alive
            ending="died",
            score="tics alive",
            actions=ActionLayout((ONLY_STRAFE,)),
            players={"dodge": 1.0},
            max_tics=2100,
            episode_frames=1051,
            shows_health=True,
        ),
        DoomEntry(
            name="doom-health",
            place=ScenarioFile("health_gathering_supreme"),  # 1 for each tic alive, -100 for dying
            ending="died",
            actions=ActionLayout((FORWARD, ONLY_TURN)),
            players={"forage": 1.0},
            max_tics=2100,
            episode_frames=1051,
            shows_health=True,
        ),
        DoomEntry(
            name="doom-level",
            place=Level("MAP01", skill=4, shut=((472, -1344), (1320, 704))),
            ending="died or left the level",
            actions=ActionLayout((MOVE, STRAFE, TURN, ACT)),
            players={"patrol": 1.0},
            recorded_players={
                "skirmish": 0.14,
                "fight": 0.25,
                "open-doors": 0.28,
                "push": 0.1,
                "turn-round": 0.12,
                "charge": 0.09,
                "idle": 0.02,
            },
            rewards={"kill": 1.0, "damage_taken": -0.01, "item": 0.1, "death": -1.0, "map_exit": 1.0},
            max_tics=2100,
            episode_frames=1051,
            shows_health=True,
            shows_counts=True,
            measures=MEASURES,
            shows_weapon=True,
            supersampling=4,
        ),
        GRID_RECALL,
    )
}


def find_game(game: str | GameEntry) -> GameEntry:
    """Return what is known of a game, by its name.

    Raises:
        WorldError: If there is none of that name.
    """
    if isinstance(game, GameEntry):
        return game
    if game not in GAMES:
        raise WorldError(f"there is no scenario {game!r}; known are {', '.join(sorted(GAMES))}")
    return GAMES[game]


def score_name(world: str) -> str:
    """Return what the sum of rewards is called in a world that was made from the game of its name, if any."""
    return GAMES[world].score if world in GAMES else "score"


def open_game(game: str | GameEntry, *, labelled: bool = False) -> RealGame:
    """Return a game, ready for `reset`, whose observations have labels if asked for.

    Raises:
        WorldError: If there is no such game, or what plays it is not installed.
    """
    return find_game(game).open(labelled=labelled)

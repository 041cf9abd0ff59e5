"""The real games that worlds learn from, as a table: scenarios of ViZDoom, and what we make of each."""

from __future__ import annotations

from dataclasses import dataclass

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.games.rooms.generate import VERSION as MAP_VERSION

HEIGHT, WIDTH = 120, 160
TICS_PER_SECOND = 35  # of the engine


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A game of ViZDoom and how it is played and seen.

    Attributes:
        name: Its name here, and that of the world made from it.
        config: Name of ViZDoom's scenario. Its file also says what is rewarded, and when a game ends. Empty
            where each seed has a map of its own (`worldsim.games.rooms.generate`), without reward or end.
        ending: What the player did when a game ended, in words.
        actions: What a player can press.
        buttons: ViZDoom's name of each of `actions.buttons`, in their order.
        tics_per_frame: Engine tics that an action is held for, and that the reward of a frame adds up.
        max_tics: A game that lasts so long is cut off (truncated, not terminated); 0 means never.
        episode_frames: Frames of the longest recorded episode.
        shows_health: Draw the player's health as a bar over the lowest rows of the picture, and show the
            engine's flashes of damage and pick-ups whatever the scenario's file says.
    """

    name: str
    config: str
    ending: str
    actions: ActionLayout
    buttons: tuple[str, ...]
    tics_per_frame: int = 2
    max_tics: int = 0
    episode_frames: int
    shows_health: bool = False

    @property
    def frame_rate(self) -> float:
        """Frames a second at the game's own speed."""
        return TICS_PER_SECOND / self.tics_per_frame

    @property
    def game(self) -> str:
        """What is played, as datasets name it; equal names mean that equal seeds give equal games."""
        return self.config or f"fresh rooms {MAP_VERSION}"

    @property
    def licence(self) -> str:
        """Licence of the pictures."""
        if not self.config:
            return "Freedoom art (BSD-3-Clause) in generated rooms"
        return f"Freedoom art (BSD-3-Clause) in the {self.config} scenario of ViZDoom (MIT)"

    def dataset_info(self, source: str) -> DatasetInfo:
        """Describe a dataset recorded from this game; `source` says how."""
        return DatasetInfo(
            name=self.name,
            width=WIDTH,
            height=HEIGHT,
            frame_rate=self.frame_rate,
            actions=self.actions,
            source=source,
            licence=self.licence,
        )


MOVE = ActionAxis(name="move", buttons=("forward", "backward"), keys=(("up", "w"), ("down", "s")))
FORWARD = ActionAxis(name="move", buttons=("forward",), keys=(("up", "w"),))
STRAFE = ActionAxis(name="strafe", buttons=("left", "right"), keys=(("a",), ("d",)))
ONLY_STRAFE = ActionAxis(name="strafe", buttons=("left", "right"), keys=(("left", "a"), ("right", "d")))
TURN = ActionAxis(name="turn", buttons=("left", "right"), keys=(("left",), ("right",)))
ONLY_TURN = ActionAxis(name="turn", buttons=("left", "right"), keys=(("left", "a"), ("right", "d")))

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="doom-rooms",
            config="my_way_home",
            ending="reached the goal",
            actions=ActionLayout((MOVE, STRAFE, TURN)),
            buttons=("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT"),
            episode_frames=1050,
        ),
        Scenario(
            name="doom-fresh-rooms",
            config="",
            ending="ended",
            actions=ActionLayout((MOVE, STRAFE, TURN)),
            buttons=("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT"),
            episode_frames=1050,
        ),
        # 1 for each tic alive.
        Scenario(
            name="doom-take-cover",
            config="take_cover",
            ending="died",
            actions=ActionLayout((ONLY_STRAFE,)),
            buttons=("MOVE_LEFT", "MOVE_RIGHT"),
            max_tics=2100,
            episode_frames=1051,
            shows_health=True,
        ),
        # 1 for each tic alive, -100 for dying.
        Scenario(
            name="doom-health",
            config="health_gathering_supreme",
            ending="died",
            actions=ActionLayout((FORWARD, ONLY_TURN)),
            buttons=("MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT"),
            max_tics=2100,
            episode_frames=1051,
            shows_health=True,
        ),
    )
}


def find_scenario(name: str) -> Scenario:
    """Return a scenario by name.

    Raises:
        WorldError: If there is none of that name.
    """
    if name not in SCENARIOS:
        raise WorldError(f"there is no scenario {name!r}; known are {', '.join(sorted(SCENARIOS))}")
    return SCENARIOS[name]

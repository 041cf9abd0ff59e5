"""The real game behind the Doom world: ViZDoom's `my_way_home`, rooms to walk through.

Nothing is drawn over the game's picture: no HUD, no crosshair, no messages. The weapon is off as well; it
would be a part of the picture that never moves, and in this scenario the player has none to show.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np

from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.episodes import DatasetInfo
from worldsim.errors import WorldError

DOOM_ROOMS_ACTIONS = ActionLayout(
    (
        ActionAxis(name="move", buttons=("forward", "backward"), keys=(("up", "w"), ("down", "s"))),
        ActionAxis(name="strafe", buttons=("left", "right"), keys=(("a",), ("d",))),
        ActionAxis(name="turn", buttons=("left", "right"), keys=(("left",), ("right",))),
    )
)
TICS_PER_FRAME = 2
FRAME_RATE = 35 / TICS_PER_FRAME
HEIGHT, WIDTH = 120, 160
# In the order of DOOM_ROOMS_ACTIONS.buttons.
DOOM_BUTTONS = ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT")
LICENCE = "Freedoom art (BSD-3-Clause) in the my_way_home scenario of ViZDoom (MIT)"


@dataclass(frozen=True, slots=True)
class DoomObservation:
    """What the game shows after a step.

    Attributes:
        frame: `[120, 160, 3]` uint8. When the game has ended there is no picture any more; this is the
            last one before the end.
        pose: x, y in map units and the angle in degrees, counter-clockwise from east; belongs to `frame`.
        reward: Given by the step that led here. The goal's reward of 1 can come one frame before the end.
        terminated: Whether the goal was reached.
    """

    frame: np.ndarray
    pose: tuple[float, float, float]
    reward: float
    terminated: bool


class DoomRooms:
    """The game itself, headless; a context manager.

    Raises:
        WorldError: If ViZDoom is not installed.
    """

    def __init__(self) -> None:
        vizdoom = import_vizdoom()
        self._folder = tempfile.TemporaryDirectory(prefix="doom-rooms-")
        self._game = vizdoom.DoomGame()
        self._game.load_config(str(Path(vizdoom.scenarios_path) / "my_way_home.cfg"))
        # Freedoom, whatever WAD the environment points to: its pictures may be shared.
        self._game.set_doom_game_path(str(Path(vizdoom.scenarios_path).parent / "freedoom2.wad"))
        self._game.set_doom_config_path(str(Path(self._folder.name) / "vizdoom.ini"))
        self._game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        self._game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        self._game.set_available_buttons([getattr(vizdoom.Button, name) for name in DOOM_BUTTONS])
        variable = vizdoom.GameVariable
        self._game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y, variable.ANGLE])
        self._game.set_mode(vizdoom.Mode.PLAYER)
        self._game.set_episode_timeout(0)  # the caller decides when to stop: only the goal ends an episode
        self._game.set_window_visible(False)
        self._game.set_sound_enabled(False)
        for hide in ("hud", "crosshair", "weapon", "messages"):
            getattr(self._game, f"set_render_{hide}")(False)
        with contextlib.chdir(self._folder.name):  # the engine leaves a folder where it is started
            self._game.init()
        self._last: DoomObservation | None = None

    def reset(self, seed: int) -> DoomObservation:
        """Start an episode; the same seed, 0 to 2^32 - 1, gives the same place and the same game."""
        self._game.set_seed(seed)
        self._game.new_episode()
        self._last = self._observe(0.0)
        return self._last

    def step(self, action: np.ndarray) -> DoomObservation:
        """Hold an action, `[3]` of `DOOM_ROOMS_ACTIONS`, for one frame (two engine tics)."""
        if self._last is None or self._last.terminated:
            raise WorldError("the game has not been started or has ended: call reset first")
        reward = self._game.make_action(press_buttons(action), TICS_PER_FRAME)
        if self._game.is_episode_finished():
            self._last = DoomObservation(self._last.frame, self._last.pose, reward, True)
        else:
            self._last = self._observe(reward)
        return self._last

    def close(self) -> None:
        """End the engine's process."""
        self._game.close()
        self._folder.cleanup()

    def __enter__(self) -> DoomRooms:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _observe(self, reward: float) -> DoomObservation:
        state = self._game.get_state()
        x, y, angle = (float(value) for value in state.game_variables)
        return DoomObservation(state.screen_buffer.copy(), (x, y, angle), reward, False)


def press_buttons(action: np.ndarray) -> list[bool]:
    """Return which of `DOOM_BUTTONS` an action of `DOOM_ROOMS_ACTIONS` holds down."""
    valid = DOOM_ROOMS_ACTIONS.validate(action)
    return [value == pressed for value in valid for pressed in (1, 2)]


def doom_rooms_info(source: str) -> DatasetInfo:
    """Describe a dataset recorded from `DoomRooms`; `source` says how."""
    return DatasetInfo(
        name="doom-rooms",
        width=WIDTH,
        height=HEIGHT,
        frame_rate=FRAME_RATE,
        actions=DOOM_ROOMS_ACTIONS,
        source=source,
        licence=LICENCE,
    )


def import_vizdoom() -> ModuleType:
    """Import ViZDoom, or say how to install it."""
    try:
        import vizdoom
    except ImportError as error:
        raise WorldError('the real game needs ViZDoom: pip install -e ".[doom]"') from error
    return vizdoom

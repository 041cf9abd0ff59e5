"""The real games behind the Doom worlds, played in ViZDoom, headless.

Nothing of the game's own is drawn over its picture: no HUD, no crosshair, no messages. The weapon is off as
well; it would be a part of the picture that never moves. Where a scenario says so, a bar of health is drawn.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np

from worldsim.errors import WorldError
from worldsim.games.rooms.generate import generate_rooms
from worldsim.games.rooms.map import RoomMap
from worldsim.games.rooms.textures import read_textures
from worldsim.games.rooms.udmf import write_udmf
from worldsim.games.rooms.wad import HEADER, encode_wad
from worldsim.games.scenarios import Scenario, find_scenario

# The bar fills one row of the codec's cells of 8 x 8 pixels, so that it shares a cell with nothing else.
BAR_HEIGHT = 8
BAR_COLOUR = (64, 224, 64)
FULL_HEALTH = 100
MAP, MAP_BYTES = "MAP01", 2**17  # of generated maps; the largest have half as many
START_TIC = 10  # the player stands still by then


@dataclass(frozen=True, slots=True)
class DoomObservation:
    """What the game shows after a step.

    Attributes:
        frame: `[120, 160, 3]` uint8. When the game has ended there is no picture any more; this is the
            last one before the end, under an empty bar where health is shown.
        pose: x, y in map units and the angle in degrees, counter-clockwise from east; belongs to `frame`.
        reward: Given by the step that led here, over all of its tics. The goal's reward of 1 in doom-rooms
            can come one frame before the end.
        terminated: Whether the game ended: the goal was reached, or the player died.
        truncated: Whether it was cut off at the scenario's `max_tics`.
    """

    frame: np.ndarray
    pose: tuple[float, float, float]
    reward: float
    terminated: bool
    truncated: bool = False


class DoomGame:
    """A real game; a context manager.

    Args:
        scenario: What is played, or its name.

    Raises:
        WorldError: If there is no such scenario or ViZDoom is not installed.
    """

    def __init__(self, scenario: Scenario | str) -> None:
        self.scenario = find_scenario(scenario) if isinstance(scenario, str) else scenario
        vizdoom = import_vizdoom()
        self._health = vizdoom.GameVariable.HEALTH
        self._folder = tempfile.TemporaryDirectory(prefix=f"{self.scenario.name}-")
        self._game = vizdoom.DoomGame()
        self._maps = None if self.scenario.config else MapFile(Path(self._folder.name), iwad_path(vizdoom))
        self._configure(vizdoom)
        with contextlib.chdir(self._folder.name):  # the engine leaves a folder where it is started
            self._game.init()
        self._last: DoomObservation | None = None
        self._tics = 0

    def reset(self, seed: int) -> DoomObservation:
        """Start an episode; the same seed, 0 to 2^32 - 1, gives the same place and the same game."""
        if self._maps is not None:
            self._maps.write(seed)
        self._game.set_seed(seed)
        self._game.new_episode()
        self._tics = 0
        self._last = self._observe(0.0)
        return self._last

    def step(self, action: np.ndarray) -> DoomObservation:
        """Hold an action, `[axes]` of the scenario's layout, for one frame: `tics_per_frame` engine tics.

        Raises:
            WorldError: If the action does not fit, or no episode is under way.
        """
        if self._last is None or self._last.terminated or self._last.truncated:
            raise WorldError("the game has not been started or has ended: call reset first")
        reward = self._game.make_action(press_buttons(self.scenario, action), self.scenario.tics_per_frame)
        self._tics += self.scenario.tics_per_frame
        if self._game.is_episode_finished():
            frame = self._draw(self._last.frame)
            self._last = DoomObservation(frame, self._last.pose, reward, True)
        else:
            self._last = self._observe(reward)
        return self._last

    @property
    def rooms(self) -> RoomMap | None:
        """The map that is played, where each seed has one of its own; None before the first `reset`."""
        return self._maps and self._maps.rooms

    @property
    def total_reward(self) -> float:
        """What the engine itself has added up since `reset`."""
        return self._game.get_total_reward()

    @property
    def health(self) -> float:
        """The player's health, 100 when unhurt; at most 0 when dead."""
        return self._game.get_game_variable(self._health)

    def close(self) -> None:
        """End the engine's process."""
        self._game.close()
        self._folder.cleanup()

    def __enter__(self) -> DoomGame:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _configure(self, vizdoom: ModuleType) -> None:
        game = self._game
        if self._maps is None:
            game.load_config(str(Path(vizdoom.scenarios_path) / f"{self.scenario.config}.cfg"))
        else:
            game.set_doom_scenario_path(str(self._maps.path))
            game.set_doom_map(MAP)
            game.set_episode_start_time(START_TIC)
        # Freedoom, whatever WAD the environment points to: its pictures may be shared.
        game.set_doom_game_path(str(iwad_path(vizdoom)))
        game.set_doom_config_path(str(Path(self._folder.name) / "vizdoom.ini"))
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in self.scenario.buttons])
        variable = vizdoom.GameVariable
        game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y, variable.ANGLE])
        game.set_mode(vizdoom.Mode.PLAYER)
        # A timeout of the engine's would end the game without a picture, as death does: we count ourselves.
        game.set_episode_timeout(0)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        for hide in ("hud", "crosshair", "weapon", "messages"):
            getattr(game, f"set_render_{hide}")(False)
        if self.scenario.shows_health:
            game.set_render_screen_flashes(True)

    def _observe(self, reward: float) -> DoomObservation:
        state = self._game.get_state()
        x, y, angle = (float(value) for value in state.game_variables)
        truncated = 0 < self.scenario.max_tics <= self._tics
        return DoomObservation(self._draw(state.screen_buffer), (x, y, angle), reward, False, truncated)

    def _draw(self, picture: np.ndarray) -> np.ndarray:
        frame = picture.copy()
        if self.scenario.shows_health:
            draw_health(frame, self.health)
        return frame


class MapFile:
    """A WAD whose only map is written anew before each episode, while the engine has it open.

    The engine reads a map when it is loaded, but where a map lies in the file only when it starts; so each
    is filled up with spaces to the same size. Starting the engine anew would take 20 times as long.

    Args:
        folder: Where it lies.
        iwad: Whose textures the maps have.
    """

    def __init__(self, folder: Path, iwad: Path) -> None:
        self.path = folder / "rooms.wad"
        self.rooms: RoomMap | None = None
        self._textures = read_textures(iwad)
        self.path.write_bytes(encode_wad([(MAP, b""), ("TEXTMAP", b" " * MAP_BYTES), ("ENDMAP", b"")]))
        self.write(0)

    def write(self, seed: int) -> None:
        """Replace the map by that of `seed`."""
        self.rooms = generate_rooms(seed, self._textures)
        text = write_udmf(self.rooms).encode("ascii")
        assert len(text) <= MAP_BYTES, f"a map of {len(text)} bytes"
        with self.path.open("r+b") as file:
            file.seek(HEADER.size)  # the map's own lump is empty, so this is where its text is
            file.write(text.ljust(MAP_BYTES))


def draw_map(seed: int) -> RoomMap:
    """Return the map that `doom-fresh-rooms` plays with a seed, 0 to 2^32 - 1; no game has to run.

    Raises:
        WorldError: If ViZDoom, whose textures it names, is not installed.
    """
    return generate_rooms(seed, read_textures(iwad_path(import_vizdoom())))


def iwad_path(vizdoom: ModuleType) -> Path:
    """Return where ViZDoom keeps Freedoom."""
    return Path(vizdoom.scenarios_path).parent / "freedoom2.wad"


def draw_health(frame: np.ndarray, health: float) -> None:
    """Draw a bar over the lowest 8 rows of `frame` `[height, width, 3]`: the whole width is full health."""
    length = round(frame.shape[1] * min(max(health, 0.0), FULL_HEALTH) / FULL_HEALTH)
    frame[-BAR_HEIGHT:] = 0
    frame[-BAR_HEIGHT + 1 :, :length] = BAR_COLOUR  # a dark line parts it from a floor that may be green


def press_buttons(scenario: Scenario, action: np.ndarray) -> list[bool]:
    """Return which of the scenario's buttons an action holds down."""
    layout = scenario.actions
    pairs = zip(layout.axes, layout.validate(action), strict=True)
    return [value == button for axis, value in pairs for button in range(1, len(axis.buttons) + 1)]


def import_vizdoom() -> ModuleType:
    """Import ViZDoom, or say how to install it."""
    try:
        import vizdoom
    except ImportError as error:
        raise WorldError('the real game needs ViZDoom: pip install -e ".[doom]"') from error
    return vizdoom

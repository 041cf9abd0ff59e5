"""The real games behind the Doom worlds, played in ViZDoom, headless.

Nothing of the game's own is drawn over its picture: no HUD, no crosshair, no messages. Where an entry says
so, the weapon is drawn, and a bar of health alone or with rounds and kills beside it.
"""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np

from worldsim.errors import WorldError
from worldsim.games.entry import GameEntry, Observation, RealGame
from worldsim.games.rooms.generate import VERSION as MAP_VERSION
from worldsim.games.rooms.generate import generate_rooms
from worldsim.games.rooms.map import RoomMap
from worldsim.games.rooms.textures import read_textures
from worldsim.games.rooms.udmf import write_udmf
from worldsim.games.rooms.view import HEIGHT, WIDTH
from worldsim.games.rooms.wad import HEADER, encode_wad
from worldsim.games.status import draw_health, draw_status

MAP, MAP_BYTES = "MAP01", 2**17  # of generated maps; the largest have half as many
START_TIC = 10  # the player stands still by then, and from then on buttons are obeyed
BUTTONS = {
    "move/forward": "MOVE_FORWARD",
    "move/backward": "MOVE_BACKWARD",
    "strafe/left": "MOVE_LEFT",
    "strafe/right": "MOVE_RIGHT",
    "turn/left": "TURN_LEFT",
    "turn/right": "TURN_RIGHT",
    "act/attack": "ATTACK",
    "act/use": "USE",
}
"""ViZDoom's name of each button that an entry's actions may have."""
RESOLUTIONS = {1: "RES_160X120", 2: "RES_320X240", 4: "RES_640X480"}
"""ViZDoom's name of the size that it draws, by samples a pixel across."""
Begin = Callable[[int, str], RoomMap | None]
"""Starts an episode of a seed and a kind of start; returns its map, if it has one of its own."""
Pose = tuple[float, float, float]


class Watch(Protocol):
    """Reads labels of each frame from a running engine."""

    def reset(self) -> None:
        """Begin an episode."""
        ...

    def watch(self, state: Any, pose: Pose) -> tuple[float, ...]:
        """Return the labels of a frame; `state` is None after the end."""
        ...


class Place(ABC):
    """Where a game of Doom is played: a value that prepares the engine.

    Attributes:
        game: What is played, as datasets name it.
        licence: Of the pictures.
        hidden_buttons: ViZDoom's names of buttons that the place itself presses before an episode.
        labels: Names of what is known of each frame beside its pose.
        starts: Kinds of starts that can be asked for.
    """

    game: str
    licence: str
    hidden_buttons: ClassVar[tuple[str, ...]] = ()
    labels: ClassVar[tuple[str, ...]] = ()
    starts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def prepare(self, engine: Any, folder: Path) -> Begin:
        """Set up an engine before it starts, and return what starts its episodes.

        Args:
            engine: ViZDoom's game.
            folder: For files that it needs while it runs.
        """

    def watch(self, engine: Any, supersampling: int) -> Watch:
        """Return what reads `labels` from an engine that runs and draws so many samples a pixel across."""
        raise NotImplementedError(f"{self.game} has no labels")


@dataclass(frozen=True, slots=True)
class ScenarioFile(Place):
    """A scenario of ViZDoom; its file also says what is rewarded, and when a game ends.

    Attributes:
        game: Its name.
    """

    game: str

    @property
    def licence(self) -> str:  # type: ignore[override] - a property where the base has an attribute
        """Licence of the pictures."""
        return f"Freedoom art (BSD-3-Clause) in the {self.game} scenario of ViZDoom (MIT)"

    def prepare(self, engine: Any, folder: Path) -> Begin:
        """Load it."""
        engine.load_config(str(Path(import_vizdoom().scenarios_path) / f"{self.game}.cfg"))
        return lambda seed, _: start_episode(engine, seed)


@dataclass(frozen=True, slots=True)
class GeneratedRooms(Place):
    """A map of its own for each seed (`worldsim.games.rooms.generate`), without reward or end."""

    game = f"fresh rooms {MAP_VERSION}"
    licence = "Freedoom art (BSD-3-Clause) in generated rooms"

    def prepare(self, engine: Any, folder: Path) -> Begin:
        """Write a first map."""
        maps = MapFile(folder, iwad_path())
        engine.set_doom_scenario_path(str(maps.path))
        engine.set_doom_map(MAP)
        engine.set_episode_start_time(START_TIC)

        def begin(seed: int, _: str) -> RoomMap:
            rooms = maps.write(seed)
            start_episode(engine, seed)
            return rooms

        return begin


@dataclass(frozen=True, kw_only=True, slots=True)
class DoomEntry(GameEntry):
    """A game of ViZDoom.

    Attributes:
        place: Where it is played; what each seed gives there.
        rewards: Beside those of a scenario's file, what the engine rewards (`kill` is its `kill_reward`), and
            with how much each, or a point of it.
        max_tics: A game that lasts so long is cut off (truncated, not terminated); 0 means never.
        shows_health: Draw the player's health as a bar over the lowest rows of the picture, and show the
            engine's flashes of damage and pick-ups whatever the scenario's file says.
        shows_counts: Beside the bar of health, which then takes the left half, show rounds and kills.
        shows_weapon: Draw the weapon; else it would be a part of the picture that never moves.
        supersampling: Each pixel is the mean of so many by so many that the engine draws, 1, 2 or 4. The
            engine reads one texel a pixel: at 1, far textures flicker as the player moves, which no frame
            before foretells (docs/decisions/0074).
    """

    place: Place
    game: str = field(init=False)
    licence: str = field(init=False)
    labels: tuple[str, ...] = field(init=False)
    starts: tuple[str, ...] = field(init=False)
    height: int = HEIGHT
    width: int = WIDTH
    tics_per_second: float = 35.0
    tics_per_frame: int = 2
    clock_unit: str = field(default="tics", init=False)
    rewards: Mapping[str, float] = field(default_factory=dict)
    max_tics: int = 0
    shows_health: bool = False
    shows_counts: bool = False
    shows_weapon: bool = False
    supersampling: int = 1

    def __post_init__(self) -> None:
        if self.supersampling not in RESOLUTIONS:
            raise WorldError(f"supersampling is one of {[*RESOLUTIONS]}, got {self.supersampling}")
        for name in ("game", "licence", "labels", "starts"):
            object.__setattr__(self, name, getattr(self.place, name))
        if self.supersampling > 1:
            samples = f"{self.supersampling} x {self.supersampling} samples a pixel"
            object.__setattr__(self, "game", f"{self.place.game}, {samples}")

    @property
    def buttons(self) -> tuple[str, ...]:
        """ViZDoom's names of `actions.buttons`, in their order."""
        return tuple(BUTTONS[name] for name in self.actions.buttons)

    def engine_version(self) -> str:
        """Return ViZDoom's."""
        return f"ViZDoom {import_vizdoom().__version__}"

    def open(self, *, labelled: bool = False) -> DoomGame:
        """Start the engine."""
        return DoomGame(self, labelled=labelled)


class DoomGame(RealGame):
    """A running game of ViZDoom.

    When the game has ended there is no picture any more: what is observed then is the last one before the
    end, under the bar of then (empty after a death) where health is shown. A reward adds up those of all tics
    of a frame; the goal's reward of 1 in doom-rooms can come one frame before the end.

    Args:
        entry: What is played.
        labelled: Read the labels of each frame, where the entry has some: it takes a fifth of the time.

    Raises:
        WorldError: If ViZDoom is not installed.
    """

    def __init__(self, entry: DoomEntry, *, labelled: bool = False) -> None:
        self.entry: DoomEntry = entry  # type: ignore[override] - nobody sets another one
        vizdoom = import_vizdoom()
        variable = vizdoom.GameVariable
        self._shown = [variable.HEALTH, variable.SELECTED_WEAPON_AMMO, variable.KILLCOUNT]
        self._folder = tempfile.TemporaryDirectory(prefix=f"{entry.name}-")
        self._game = vizdoom.DoomGame()
        # The engine writes its settings as it ends: before its folder goes, also where nobody calls close.
        self._end = weakref.finalize(self, self._game.close)
        self._begin = entry.place.prepare(self._game, Path(self._folder.name))
        self._configure(vizdoom)
        self._game.set_labels_buffer_enabled(labelled and bool(entry.labels))
        with contextlib.chdir(self._folder.name):  # the engine leaves a folder where it is started
            self._game.init()
        is_watched = labelled and bool(entry.labels)
        self._watch = entry.place.watch(self._game, entry.supersampling) if is_watched else None
        self._last: Observation | None = None
        self._tics = 0

    def reset(self, seed: int, start: str = "") -> Observation:
        """Start an episode; the same seed, 0 to `MAX_SEED`, gives the same place and the same game.

        Raises:
            WorldError: If the game has no such kind of start.
        """
        if start and start not in self.entry.starts:
            known = ", ".join(self.entry.starts) or "none"
            raise WorldError(f"{self.entry.name} has no start {start!r}; known are {known}")
        self.rooms = self._begin(seed, start)
        self._tics = 0
        if self._watch is not None:
            self._watch.reset()
        self._last = self._observe(0.0)
        return self._last

    def step(self, action: np.ndarray) -> Observation:
        """Hold an action, `[axes]` of the entry's layout, for one frame: `tics_per_frame` engine tics.

        Raises:
            WorldError: If the action does not fit, or no episode is under way.
        """
        if self._last is None or self._last.terminated or self._last.truncated:
            raise WorldError("the game has not been started or has ended: call reset first")
        reward = self._game.make_action(press_buttons(self.entry, action), self.entry.tics_per_frame)
        self._tics += self.entry.tics_per_frame
        if self._game.is_episode_finished():
            assert self._last.pose is not None, "Doom tells each frame's pose"
            frame, labels = self._draw(self._last.frame), self._label(None, self._last.pose)
            self._last = replace(self._last, frame=frame, reward=reward, terminated=True, labels=labels)
        else:
            self._last = self._observe(reward)
        return self._last

    @property
    def total_reward(self) -> float:
        """What the engine itself has added up since `reset`."""
        return self._game.get_total_reward()

    @property
    def health(self) -> float:
        """The player's health, 100 when unhurt; at most 0 when dead."""
        return self._game.get_game_variable(self._shown[0])

    def close(self) -> None:
        """End the engine's process."""
        self._end()
        self._folder.cleanup()

    def _configure(self, vizdoom: ModuleType) -> None:
        game = self._game
        # Freedoom, whatever WAD the environment points to: its pictures may be shared.
        game.set_doom_game_path(str(iwad_path()))
        game.set_doom_config_path(str(Path(self._folder.name) / "vizdoom.ini"))
        resolution = RESOLUTIONS[self.entry.supersampling]
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, resolution))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        names = (*self.entry.buttons, *self.entry.place.hidden_buttons)
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in names])
        variable = vizdoom.GameVariable
        game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y, variable.ANGLE])
        game.set_mode(vizdoom.Mode.PLAYER)
        # A timeout of the engine's would end the game without a picture, as death does: we count ourselves.
        game.set_episode_timeout(0)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        for hide in ("hud", "crosshair", "messages"):
            getattr(game, f"set_render_{hide}")(False)
        game.set_render_weapon(self.entry.shows_weapon)
        if self.entry.shows_health:
            game.set_render_screen_flashes(True)
        for name, reward in self.entry.rewards.items():
            getattr(game, f"set_{name}_reward")(reward)

    def _observe(self, reward: float) -> Observation:
        state = self._game.get_state()
        x, y, angle = (float(value) for value in state.game_variables)
        truncated = 0 < self.entry.max_tics <= self._tics
        picture = self._draw(average_samples(state.screen_buffer, self.entry.supersampling))
        labels = self._label(state, (x, y, angle))
        return Observation(picture, (x, y, angle), reward, False, truncated, labels)

    def _label(self, state: Any, pose: Pose) -> tuple[float, ...]:
        return () if self._watch is None else self._watch.watch(state, pose)

    def _draw(self, picture: np.ndarray) -> np.ndarray:
        frame = picture.copy()
        if self.entry.shows_counts:
            draw_status(frame, *(self._game.get_game_variable(each) for each in self._shown))
        elif self.entry.shows_health:
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
        self._textures = read_textures(iwad)
        self.path.write_bytes(encode_wad([(MAP, b""), ("TEXTMAP", b" " * MAP_BYTES), ("ENDMAP", b"")]))
        self.write(0)

    def write(self, seed: int) -> RoomMap:
        """Replace the map by that of `seed`, and return it."""
        rooms = generate_rooms(seed, self._textures)
        text = write_udmf(rooms).encode("ascii")
        assert len(text) <= MAP_BYTES, f"a map of {len(text)} bytes"
        with self.path.open("r+b") as file:
            file.seek(HEADER.size)  # the map's own lump is empty, so this is where its text is
            file.write(text.ljust(MAP_BYTES))
        return rooms


def start_episode(engine: Any, seed: int) -> None:
    """Start an episode of a running engine."""
    engine.set_seed(seed)
    engine.new_episode()


def draw_map(seed: int) -> RoomMap:
    """Return the map that `doom-fresh-rooms` plays with a seed, 0 to 2^32 - 1; no game has to run.

    Raises:
        WorldError: If ViZDoom, whose textures it names, is not installed.
    """
    return generate_rooms(seed, read_textures(iwad_path()))


def iwad_path() -> Path:
    """Return where ViZDoom keeps Freedoom."""
    return Path(import_vizdoom().scenarios_path).parent / "freedoom2.wad"


def average_samples(picture: np.ndarray, factor: int) -> np.ndarray:
    """Return a picture `[H, W, 3]` uint8 of the means of its squares of `factor` by `factor` pixels.

    Args:
        picture: `[H factor, W factor, 3]` uint8.
        factor: At most 16; at 1 the picture itself.
    """
    if factor == 1:
        return picture
    height, width, channels = picture.shape
    lines = picture.reshape(height // factor, factor, width * channels).astype(np.uint16)
    rows = lines.sum(axis=1, dtype=np.uint16).reshape(height // factor, width // factor, factor, channels)
    return ((rows.sum(axis=2, dtype=np.uint16) + factor**2 // 2) // factor**2).astype(np.uint8)


def press_buttons(entry: DoomEntry, action: np.ndarray) -> list[bool]:
    """Return which of the entry's buttons an action holds down."""
    layout = entry.actions
    pairs = zip(layout.axes, layout.validate(action), strict=True)
    return [value == button for axis, value in pairs for button in range(1, len(axis.buttons) + 1)]


def import_vizdoom() -> ModuleType:
    """Import ViZDoom, or say how to install it."""
    try:
        import vizdoom
    except ImportError as error:
        raise WorldError('the real game needs ViZDoom: pip install -e ".[doom]"') from error
    return vizdoom

"""Settings of an environment as a game: how it is made, seen, and pressed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from worldsim.data.axes import SCALES
from worldsim.data.dataset_info import MAX_FRAME_RATE, MAX_SIDE, MIN_FRAME_RATE
from worldsim.data.pictures import FITS
from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting


@dataclass(kw_only=True, slots=True)
class GymConfig:
    """How a Gymnasium environment becomes a game."""

    kwargs: Any = setting(
        None,
        "Keyword arguments of `gymnasium.make`, the environment's own and max_episode_steps: "
        "{name: value, name: value}.",
    )
    wrappers: list[str] = setting(
        [], "Around it, from the inside out, each MODULE:NAME of what takes an environment and returns one."
    )
    picture: str = setting(
        "",
        "What is recorded: render (render_mode rgb_array), observation, or the name of one of several "
        "observations; '' is the observation if it is a picture, else render.",
    )
    max_side: int = setting(
        160,
        "Pixels of a frame's longer side: larger frames are made smaller by a whole number, squares of "
        "pixels becoming their mean.",
        minimum=16,
        maximum=MAX_SIDE,
    )
    height: int | None = setting(
        None,
        "Of the frames, in pixels, instead of max_side; null is in proportion to width.",
        minimum=2,
        maximum=MAX_SIDE,
    )
    width: int | None = setting(
        None, "The same; null is in proportion to height.", minimum=2, maximum=MAX_SIDE
    )
    fit: str = setting(
        "letterbox",
        "Where height and width have another shape: letterbox (black bars), crop or stretch.",
        choices=FITS,
    )
    frame_skip: int = setting(
        1, "Steps of the environment that a frame's action is held for; their rewards add up.", minimum=1
    )
    frame_rate: float | None = setting(
        None,
        "Frames per second to be shown at; null is the environment's render_fps over frame_skip.",
        minimum=MIN_FRAME_RATE,
        maximum=MAX_FRAME_RATE,
    )
    bins: list[int] = setting(
        [5],
        "Values of each analog axis, or of all of them; odd, so that one is in the middle.",
        minimum=2,
        maximum=255,
    )
    scale: str = setting("uniform", "Of these bins: uniform, or mu-law (finer near 0).", choices=SCALES)
    action_names: list[str] = setting(
        [], "Of the options of a Discrete space, or of the numbers of another; [] is what is known of it."
    )
    name: str = setting("", "Of the game; '' is made from the id.")
    licence: str = setting("", "Of the pictures.")
    lossless: bool = setting(False, "Keep every pixel: larger files, for pictures with small things.")

    def __post_init__(self) -> None:
        check_settings(self, "game.")
        if not self.bins:
            raise WorldError("game.bins needs at least one number")
        given = self.arguments
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise WorldError(f"game.kwargs must be {{name: value, name: value}}, got {self.kwargs!r}")
        if "render_mode" in given:
            raise WorldError("game.kwargs has no render_mode: it follows from game.picture")

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the environment."""
        return {} if self.kwargs is None else self.kwargs

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the defaults, as a JSON object."""
        usual = asdict(GymConfig())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

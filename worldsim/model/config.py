"""Configuration of the network, checked where it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting
from worldsim.storage.files import shown

PATCH = 2
"""Side of the square of latents that becomes one token."""
MAX_TOKENS = 8192
"""Tokens of a frame; one of 1920 x 1080 pixels has 8160."""
LIMITS = {"dim": 2**16, "ffn_dim": 2**18, "num_heads": 1024, "num_layers": 1024, "window": 4096}
"""Far beyond what has been trained, and little enough that a slip of the pen is found before memory is."""
NUM_FREE_COORDINATES = 4
"""Coordinates of the path beside its rows and columns."""
MIN_PLANE_WIDTH = 2 * (2 + NUM_FREE_COORDINATES)
"""Features of a head whose pairs can hold the path on PLANE keys."""
NUM_POSE_COORDINATES = 4
"""Coordinates that turn keys of a pose: azimuth, x, y and row."""
FINEST = math.pi
"""Maximum angle per token that pairs can turn by: it tells neighbours apart."""


class MemoryPhase(StrEnum):
    """What turns the memory's keys from one frame to the next."""

    NONE = "none"
    TIME = "time"
    PATH = "path"


class MemoryKeys(StrEnum):
    """Which places the memory's keys tell apart.

    AXES: one feature pair turns with the row, another with the column (Wan's rotary positions). What is
    stored under such keys is a function of the row plus one of the column: places in line are mixed up.
    PLANE: each pair turns along a direction of its own in the plane of rows and columns, in each head along
    others, so that any two places have keys that are nearly at right angles.
    POSE: a token's key is the direction it looks in, where the player stands on the map, and its row; poses
    are given with the frames (docs/decisions/0048).
    """

    AXES = "axes"
    PLANE = "plane"
    POSE = "pose"


@dataclass(kw_only=True, slots=True)
class DenoiserConfig:
    """Shape of the network."""

    latent_shape: list[int] = setting([16, 16, 20], "Channels, height and width of a frame's latents.")
    num_values: list[int] = setting([3, 3, 3], "Number of values of each action axis.")
    dim: int = setting(384, "Model width.")
    ffn_dim: int = setting(1280, "Width of the MLP.")
    num_heads: int = setting(6, "Heads per layer.")
    num_layers: int = setting(10, "Number of layers.")
    window_layers: list[int] = setting([3, 7], "Layers with a softmax window instead of a recurrent state.")
    full_layers: list[int] = setting([], "Layers that see all past frames: their memory grows.")
    full_path: bool = setting(
        False,
        "Whether the path turns the keys of full layers too, so that they find by place what was seen "
        "before; for memory_phase=path only.",
    )
    window: int = setting(6, "Frames that a window layer sees beside the current one.")
    memory_phase: str = setting("path", "What turns keys (`MemoryPhase`).", choices=tuple(MemoryPhase))
    memory_keys: str = setting(
        "axes", "Which places the memory's keys tell apart (`MemoryKeys`).", choices=tuple(MemoryKeys)
    )
    finest_key: float = setting(
        FINEST,
        "Greatest angle per token, in radians up to pi, that keys of the plane turn by: the smaller, the "
        "more a path may be wrong, and the less places are told apart.",
    )
    field_of_view: float = setting(
        90.0,
        "Horizontal field of view in degrees: in which direction each column of a frame looks, for "
        "memory_keys=pose.",
        above=0,
        below=180,
    )
    keyed_places: bool = setting(
        True,
        "Whether keys of poses turn with the place on the map, beside heading and row. Without, they hold "
        "what lies in each direction, which actions tell where odometry of the place is poor "
        "(docs/decisions/0068); false is for memory_keys=pose only.",
    )
    level_map: int = setting(
        0,
        "Cells along a side of a learned map of the one level that a world plays on; poses then are those of "
        "that level, and recordings of another one would be written over it. 0 is none; for "
        "memory_keys=pose (docs/decisions/0075).",
        minimum=0,
        maximum=1024,
    )
    path_odometry: bool = setting(
        False,
        "Whether the path goes on from what committed frames show, instead of from what the action was "
        "expected to do; for memory_phase=path only (docs/decisions/0031).",
    )
    half_lives: list[float] = setting(
        [4.0, 4096.0], "Shortest and longest half-life of the heads at the start, in frames."
    )
    write_biases: list[float] = setting(
        [0.0, -2.0],
        "How gently memories are written at the start, for the shortest and for the longest half-life: the "
        "strength is 2 sigmoid of it, so that 0 replaces what a key recalls (docs/decisions/0005).",
    )
    previous_frame: bool = setting(
        True,
        "Whether every token is also given the frame before it, at its own place: what does not change need "
        "not be recalled (docs/decisions/0011).",
    )
    recycled: bool = setting(
        False,
        "Whether the pass that begins a frame also writes the frame before it into the memory, so that "
        "remembering costs no pass of its own; for previous_frame=true only (docs/decisions/0043).",
    )
    outcome_heads: bool = setting(False, "Heads on the commit pass for reward and end (docs/decisions/0017).")

    def __post_init__(self) -> None:
        check_settings(self)
        self.memory_phase, self.memory_keys = str(self.memory_phase), str(self.memory_keys)
        if self.full_path and self.memory_phase != MemoryPhase.PATH:
            raise WorldError(f"full_path needs memory_phase path, got {self.memory_phase}")
        if self.recycled and not self.previous_frame:
            raise WorldError("recycled needs previous_frame: the frame before is what the pass remembers")
        if self.recycled and self.full_layers:
            raise WorldError(f"recycled needs layers of constant memory, got full_layers {self.full_layers}")
        if self.path_odometry and self.memory_phase != MemoryPhase.PATH:
            raise WorldError(f"path_odometry needs memory_phase path, got {self.memory_phase}")
        is_number = isinstance(self.finest_key, int | float) and not isinstance(self.finest_key, bool)
        if not is_number or not 0 < self.finest_key <= FINEST:
            raise WorldError(f"finest_key is an angle above 0 and of at most pi, got {self.finest_key}")
        if self.finest_key != FINEST and self.memory_keys != MemoryKeys.PLANE:
            raise WorldError(f"finest_key {self.finest_key} needs memory_keys plane, got {self.memory_keys}")
        if self.memory_keys == MemoryKeys.POSE and self.memory_phase != MemoryPhase.NONE:
            raise WorldError(
                f"memory_keys pose needs memory_phase none: poses turn the keys, got {self.memory_phase}"
            )
        if not self.keyed_places and self.memory_keys != MemoryKeys.POSE:
            raise WorldError(f"keyed_places false needs memory_keys pose, got {self.memory_keys}")
        if self.level_map and self.memory_keys != MemoryKeys.POSE:
            raise WorldError(f"level_map needs memory_keys pose, got {self.memory_keys}")
        if self.full_path and not self.full_layers:
            raise WorldError("full_path needs full_layers, and there are none")
        for name in ("latent_shape", "num_values", "dim", "ffn_dim", "num_heads", "num_layers", "window"):
            counts = value if isinstance(value := getattr(self, name), list | tuple) else [value]
            if not counts or not all(isinstance(count, int) and count >= 1 for count in counts):
                raise WorldError(f"{name} takes whole numbers of at least 1, got {value}")
            if max(counts) > (limit := LIMITS.get(name, LIMITS["dim"])):
                raise WorldError(f"{name} must be at most {limit}, got {shown(value)}")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise WorldError(f"dim {self.dim} must be an even multiple of num_heads {self.num_heads}")
        if self.memory_keys == MemoryKeys.PLANE and self.dim // self.num_heads < MIN_PLANE_WIDTH:
            raise WorldError(
                f"memory_keys plane needs heads of at least {MIN_PLANE_WIDTH} features, "
                f"got dim {self.dim} and num_heads {self.num_heads}"
            )
        if self.memory_keys == MemoryKeys.POSE and self.head_width < 2 * NUM_POSE_COORDINATES:
            raise WorldError(
                f"memory_keys pose needs heads of at least {2 * NUM_POSE_COORDINATES} features, "
                f"got dim {self.dim} and num_heads {self.num_heads}"
            )
        if len(self.latent_shape) != 3 or self.latent_shape[1] % PATCH or self.latent_shape[2] % PATCH:
            raise WorldError(
                f"latent_shape must be channels, even height, even width; got {self.latent_shape}"
            )
        if self.tokens_per_frame > MAX_TOKENS:
            raise WorldError(
                f"latent_shape {list(self.latent_shape)} makes {self.tokens_per_frame} tokens of a frame, "
                f"more than {MAX_TOKENS}"
            )
        for name in ("window_layers", "full_layers"):
            layers = list(getattr(self, name))
            if len(set(layers)) < len(layers) or not set(layers) <= set(range(self.num_layers)):
                raise WorldError(f"{name} {layers} must be different and in 0..{self.num_layers - 1}")
        if both := sorted(set(self.window_layers) & set(self.full_layers)):
            raise WorldError(f"window_layers and full_layers share {both}: a layer is of one kind")
        numbers = [value for value in self.half_lives if isinstance(value, int | float)]
        if len(self.half_lives) != 2 or len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] < math.inf:
            raise WorldError(f"half_lives must be two positive numbers, shorter first; got {self.half_lives}")

        biases = [value for value in self.write_biases if isinstance(value, int | float)]
        if len(self.write_biases) != 2 or len(biases) != 2 or not all(math.isfinite(b) for b in biases):
            raise WorldError(f"write_biases must be two finite numbers; got {self.write_biases}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a frame."""
        return self.latent_shape[1] // PATCH, self.latent_shape[2] // PATCH

    @property
    def tokens_per_frame(self) -> int:
        """Number of tokens in a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def head_width(self) -> int:
        """Features of one head."""
        return self.dim // self.num_heads

    @property
    def min_weights(self) -> int:
        """Number of weights that a network of this shape has at least: its largest matrices."""
        layers = self.num_layers * (4 * self.dim**2 + 2 * self.dim * self.ffn_dim)
        ends = 2 * PATCH**2 * self.latent_shape[0] + sum(self.num_values)
        return layers + self.dim * (7 * self.dim + ends)

    @property
    def layer_counts(self) -> dict[str, int]:
        """Number of layers of each kind."""
        window, full = len(self.window_layers), len(self.full_layers)
        return {"hybrid": self.num_layers - window - full, "window": window, "full": full}

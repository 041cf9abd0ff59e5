"""Settings of the teaching of odometry, and of its measurement."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from worldsim.errors import WorldError
from worldsim.settings import REQUIRED, check_settings, setting


@dataclass(kw_only=True, slots=True)
class MeasureConfig:
    """How far off a path is that was added up from estimates."""

    watched_frames: int = setting(
        16, "Frames before each path, in which it finds out how fast the player is.", minimum=0
    )
    frames: int = setting(100, "Frames of a path.", minimum=1)
    num_clips: int = setting(128, "Paths in each folder of held-out video, from fixed places.", minimum=1)
    min_way: float = setting(
        64.0, "Map units that the player walks at least, for a path's error of place to count.", above=0
    )

    def __post_init__(self) -> None:
        check_settings(self, "measure.")

    @property
    def length(self) -> int:
        """Frames of a clip, with the one that is seen before."""
        return 1 + self.watched_frames + self.frames


@dataclass(kw_only=True, slots=True)
class DreamsConfig:
    """Clips that the world of `world` dreams at recorded poses, for odometry to learn from as well."""

    num_clips: int = setting(
        64,
        "Clips, evenly spread over the video of each pass, and as many held-out ones; 0 is none.",
        minimum=0,
    )
    watched_frames: int = setting(32, "Recorded frames that the world watches first.", minimum=2)
    frames: int = setting(100, "Frames that it then dreams.", minimum=1)
    share: float = setting(
        0.5, "Of the clips of a pass that are seen, so many are of dreams.", minimum=0, maximum=1
    )

    def __post_init__(self) -> None:
        check_settings(self, "dreams.")

    @property
    def length(self) -> int:
        """Frames of a clip."""
        return self.watched_frames + self.frames


@dataclass(kw_only=True, slots=True)
class SightConfig:
    """How sight is taught, before the network that reads it."""

    num_steps: int = setting(
        1500, "Updates; 0 reads energies of whole cells instead of the flow of parts.", minimum=0
    )
    max_frames: int = setting(100_000, "Frames to learn from, evenly spread.", minimum=2)

    def __post_init__(self) -> None:
        check_settings(self, "sight.")


@dataclass(kw_only=True, slots=True)
class TrainOdometryConfig:
    """Settings of `python -m training.odometry`."""

    out: str = setting(REQUIRED, "The run's folder; the network is written to OUT/odometry.")
    data: DataConfig = setting(
        REQUIRED, "Gameplay video with poses; each folder of data.heldout is measured apart."
    )
    codec: str = setting(
        REQUIRED, "Whose latents it reads: a world that ships, or the folder of a world or of a codec."
    )
    world: str = setting(
        "",
        "World with memory_keys pose that the network is for: OUT/world is a copy of it that has it, and can "
        "be played. codec is then the world's own. '' writes no world.",
    )
    init: str = setting("", "OUT of training.odometry, or its network's folder, to go on from; '' is none.")
    teach: bool = setting(
        True,
        "Whether to learn at all; false joins the network of init to world as it is, and reads no video.",
    )
    hidden: int = setting(64, "Numbers that its recurrent unit keeps. Not used with init.", minimum=1)
    features: int = setting(64, "Numbers that it reads from two frames. Not used with init.", minimum=1)
    ground: int = setting(
        0,
        "Cells along a side of a learned map of the ground, which tells where walls stop the player: for "
        "recordings of one level (model.level_map) and mirrored=false. 0 is none. Not used with init.",
        minimum=0,
        maximum=1024,
    )
    sight: SightConfig = setting(
        SightConfig,
        "What reads how far parts of the picture flew. Not used with init, whose network goes on with what "
        "it reads: one of motion energies has to be taught anew to see flow.",
    )
    sequence_length: int = setting(32, "Frames of a clip.", minimum=2)
    batch_size: int = setting(32, "Clips of a pass.", minimum=1)
    unseen_size: int = setting(
        128, "Clips of a pass whose actions and poses alone teach the dynamics, beside batch_size.", minimum=1
    )
    learning_rate: float = setting(3e-3, "Of AdamW, at full height.", above=0)
    noise: float = setting(
        0.3,
        "Largest standard deviation of the noise in noisy latents, whose own variance is 1: what a world "
        "draws is not what an encoder makes of real frames.",
        minimum=0,
    )
    noisy_share: float = setting(0.25, "Of clips, with noisy latents.", minimum=0, maximum=1)
    mirrored: bool = setting(
        True, "Let half of the clips be seen in a mirror; for games where left is not otherwise than right."
    )
    summed_frames: int = setting(
        16, "Frames over which errors are also added up in the loss: they are to cancel.", minimum=1
    )
    dreams: DreamsConfig = setting(
        DreamsConfig, "What world draws, beside the recorded video. Not used without world."
    )
    measure: MeasureConfig = setting(MeasureConfig, "What is measured at checkpoints.")
    loop: LoopConfig = setting(LoopConfig, "Length and care.")
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.teach and not (self.init and self.world):
            raise WorldError("teach=false joins a network to a world: name both, init= and world=")
        if self.has_dreams and self.dreams.length <= self.sequence_length:
            raise WorldError(
                f"dreams.watched_frames and dreams.frames together must be more than sequence_length, got "
                f"{self.dreams.length} and {self.sequence_length}"
            )
        if self.ground and self.mirrored:
            raise WorldError("ground is a map of one level, which has no mirror: it needs mirrored=false")
        if self.summed_frames > self.sequence_length:
            raise WorldError(
                f"summed_frames must be at most sequence_length, got {self.summed_frames} and "
                f"{self.sequence_length}"
            )

    @property
    def has_dreams(self) -> bool:
        """Whether dreams are learned from."""
        return bool(self.world) and self.teach and self.dreams.num_clips > 0

"""Settings of the roll-outs, of both objectives, and of the rules that end a run."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.engine.step import StepConfig
from worldsim.errors import WorldError
from worldsim.settings import REQUIRED, check_settings, setting


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """The clips that an update learns from: real frames that are watched, then frames that are drawn."""

    prefix_frames: int = setting(32, "Real frames to watch before the first drawn one.", minimum=1)
    frames: list[int] = setting(
        [8, 16], "Drawn frames, in stages: errors of so many frames add up.", minimum=1
    )
    begins: list[int] = setting(
        [0, 120], "Update with which each stage begins; the last one goes on to the end.", minimum=0
    )
    batch_sizes: list[int] = setting(
        [32, 32],
        "Clips of an update in each stage, on all devices together. Memory follows frames times clips.",
        minimum=1,
    )
    single_every: int = setting(
        10, "Every so many updates draw one frame alone, after real ones; 0 is never.", minimum=0
    )
    gradient_frames: int = setting(
        1,
        "Consecutive frames through whose state gradients flow, so that writing is trained as well. The "
        "last frame that a pass is given has no gradient in either case; 1 keeps each frame's to itself.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        check_settings(self, "rollout.")
        if not len(self.frames) == len(self.begins) == len(self.batch_sizes) > 0:
            raise WorldError(
                f"rollout.frames, begins and batch_sizes say the same stages, but hold {len(self.frames)}, "
                f"{len(self.begins)} and {len(self.batch_sizes)} numbers"
            )
        if self.begins[0] != 0 or sorted(set(self.begins)) != list(self.begins):
            raise WorldError(f"rollout.begins must rise from 0, got {list(self.begins)}")

    def stage_at(self, step: int) -> tuple[int, int]:
        """Return how many frames are drawn at an update, and of how many clips."""
        stage = sum(begin <= step for begin in self.begins) - 1
        is_single = self.single_every > 0 and step % self.single_every == self.single_every - 1
        return 1 if is_single else self.frames[stage], self.batch_sizes[stage]

    @property
    def length(self) -> int:
        """Frames of the longest clip."""
        return self.prefix_frames + max(self.frames)


@dataclass(kw_only=True, slots=True)
class CriticConfig:
    """The critic, and what it asks of the world."""

    learning_rate: float = setting(1e-4, "Of the critic, at full height.", above=0)
    warmup_updates: int = setting(60, "Updates in which the critic learns alone.", minimum=0)
    is_frozen: bool = setting(
        False, "Train the critic's heads alone, on the features of the world as it was (arXiv 2403.12015)."
    )
    penalty: float = setting(
        100.0,
        "Weight of the squared change of a clip's logit when the clip changes by little noise, of real and "
        "of drawn ones (approximated R1 and R2, arXiv 2506.09350). More is calmer and softer.",
        minimum=0,
    )
    penalty_noise: float = setting(0.1, "Deviation of that noise, in latents of unit variance.", above=0)
    anchor_weight: float = setting(
        8.0,
        "Weight of the squared error of the first drawn frame's latents, averaged over 4x4 cells: what the "
        "action did is kept, without asking for the blur of a mean.",
        minimum=0,
    )
    energy_weight: float = setting(
        1.0,
        "Weight of the energy score beside the critic, of two draws of each clip: it keeps draws as "
        "different as futures are, where a critic alone is content with one of them; 0 draws each clip once.",
        minimum=0,
    )
    balanced_updates: int = setting(
        50,
        "Updates after the warm-up in which the critic's gradient has the norm of the anchor's at the drawn "
        "frames.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        check_settings(self, "critic.")


@dataclass(kw_only=True, slots=True)
class EnergyConfig:
    """The energy score."""

    feature_weight: float = setting(
        1.0,
        "Weight of the score of the tokens that the world as it was makes of the frames, at two depths; 0 "
        "scores latents alone, place by place.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        check_settings(self, "energy.")


@dataclass(kw_only=True, slots=True)
class RulesConfig:
    """Bounds that end a run. Each holds from the first measurement that keeps it."""

    every: int = setting(50, "Updates between two measurements.", minimum=1)
    patience: int = setting(
        2,
        "Measurements in a row that break a rule until the run ends: a critic that has just begun overshoots "
        "and comes back. What breaks a rule is not exported.",
        minimum=1,
    )
    num_rollouts: int = setting(
        128, "Held-out clips, from fixed places. With 32 the energy is off by up to a fifth.", minimum=1
    )
    horizons: list[int] = setting([1, 8, 32], "Frames of a roll-out that are measured.", minimum=1)
    max_frames: int = setting(10_000, "Held-out frames to choose from.", minimum=0)
    max_energy: float = setting(
        1.15,
        "Largest gradient energy (`worldsim.evaluation.metrics.sharpness`) of a roll-out's frames over that "
        "of the real ones as the codec decodes them.",
        above=0,
    )
    min_motion: float = setting(
        0.8,
        "Smallest mean absolute difference between consecutive frames of roll-outs over that of the real "
        "ones: less is a picture that comes to a stand.",
        minimum=0,
    )
    max_motion: float = setting(1.2, "Largest one: more is shimmering.", above=0)
    max_gap: float = setting(
        3.0, "Largest difference between the critic's logits of real and drawn clips.", above=0
    )
    max_psnr_drop: float = setting(
        3.0, "Largest loss of PSNR in dB of the first frame of a roll-out since the run began.", above=0
    )

    def __post_init__(self) -> None:
        check_settings(self, "rules.")
        if not self.horizons:
            raise WorldError("rules.horizons names no frame")

    def length(self, prefix_frames: int) -> int:
        """Frames of a clip that is measured."""
        return prefix_frames + max(self.horizons)


@dataclass(kw_only=True, slots=True)
class SharpenConfig:
    """Settings of `python -m training.sharpen`."""

    out: str = setting(REQUIRED, "The run's folder; the world is written to OUT/world.")
    init: str = setting(
        REQUIRED,
        "The world to sharpen, of constant memory: a shipped name, a folder, or a Hugging Face id.",
    )
    name: str = setting("", "Name of the new world; '' keeps the old one's.")
    data: DataConfig = setting(REQUIRED, "Gameplay video.")
    objective: str = setting(
        "critic",
        "critic: learn against a critic of whole clips. energy: the energy score of two draws, without a "
        "critic: it cannot diverge, and is less sharp.",
        choices=("critic", "energy"),
    )
    learning_rate: float = setting(4e-5, "Of the world (Adam), at full height.", above=0)
    rollout: RolloutConfig = setting(RolloutConfig, "The clips.")
    critic: CriticConfig = setting(CriticConfig, "The critic, with objective=critic.")
    energy: EnergyConfig = setting(EnergyConfig, "The score, alone or beside the critic.")
    rules: RulesConfig = setting(RulesConfig, "What ends a run.")
    loop: LoopConfig = setting(LoopConfig, "Length and care.")
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")
    step: StepConfig = setting(StepConfig, "Kernels, precision and memory of an update.")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.loop.global_batch_size:
            raise WorldError("loop.global_batch_size must be 0: rollout.batch_sizes says it for each stage")

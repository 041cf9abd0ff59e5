"""Settings of a conversion, and what its folder may hold already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.conversion.stage import (
    StageConfig,
    StageSettings,
    TeacherConfig,
    follows_from,
    stage_settings,
)
from training.engine.run_folder import newest_checkpoint, step_of
from training.objectives.lora import LoraConfig
from worldsim.errors import WorldError
from worldsim.model.conversion import Rest
from worldsim.settings import check_settings, setting
from worldsim.storage.tensors import read_object
from worldsim.world.world import CONFIG_FILE, World

STAGES = (1, 2)
DEFAULT_SHARE, DEFAULT_WINDOW = 0.75, 6


@dataclass(kw_only=True, slots=True)
class Stage2Config(StageConfig):
    """How stage 2 is trained."""

    lora: LoraConfig = setting(LoraConfig, "How much the weights that were taken over may change.")
    data_weight: float = setting(
        0.0, "Share of the loss that comes from the video itself.", minimum=0, maximum=1
    )


@dataclass(kw_only=True, slots=True)
class ConvertConfig(TeacherConfig):
    """Settings of `python -m training.convert`, beside those of every command with a teacher."""

    name: str = setting("", "Name of the converted world; '' keeps the teacher's.")
    layers: list[int] = setting([], "Which layers become hybrid, by number; [] takes a share of them.")
    selection: str = setting(
        "",
        "File from python -m training.select_layers: the layers that hurt least are taken; '' takes layers "
        "that leave the others evenly spread.",
    )
    share: float | None = setting(
        None, "Share of layers that become hybrid, rounded down; null is 0.75.", above=0, maximum=1
    )
    rest: str = setting(
        "window", "The others become window (constant memory) or full (growing).", choices=tuple(Rest)
    )
    window: int | None = setting(
        None,
        "Frames that a window layer sees beside the current one; null is the teacher's where it has window "
        "layers, 6 otherwise. Only where a layer becomes or stays a window.",
        minimum=1,
    )
    stages: list[int] = setting(lambda: list(STAGES), "Which stages to run.")
    stage2: Stage2Config = setting(Stage2Config, "How the whole student learns.")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.layers and self.share is not None:
            raise WorldError(
                f"layers {list(self.layers)} and share {self.share} both say how many layers become hybrid: "
                "give one of them"
            )
        if not self.stages or not set(self.stages) <= set(STAGES):
            raise WorldError(f"stages are 1, 2 or both, got {list(self.stages)}")


def settings_of(config: ConvertConfig) -> dict[int, StageSettings]:
    """Return the settings of the stages that are to run."""
    out, second = Path(config.out), config.stage2
    stages = {
        1: stage_settings(config, config.stage1, out / "stage1"),
        2: stage_settings(config, second, out / "stage2", lora=second.lora, data_weight=second.data_weight),
    }
    return {stage: stages[stage] for stage in sorted(set(config.stages))}


def check_target(config: ConvertConfig, target: Path, start: Path) -> None:
    """Raise `WorldError` if a world where the converted one goes is another, or has another name.

    Args:
        config: The command's settings.
        target: Folder of that world.
        start: Where stage 1 of this conversion writes its own, from whose provenance the other's follows.
    """
    known, before = (
        read_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
        for folder in (target, start)
    )
    if not follows_from(known.get("provenance"), before.get("provenance")):
        raise WorldError(
            f"{target} is a world that no conversion in {config.out} made; choose another out= folder"
        )
    if config.name and known.get("name") != config.name:
        raise WorldError(
            f"{target} was converted under the name {known.get('name')!r}, which name={config.name} does not "
            "change; choose another out= folder"
        )


def check_out(config: ConvertConfig, teacher: World) -> None:
    """Raise `WorldError` if a world would take the place of another, or stage 2 has no stage 1."""
    out = Path(config.out)
    target = out / "world"
    if teacher.folder is not None and target.resolve() == teacher.folder.resolve():
        raise WorldError(f"{target} is the teacher itself; choose another out= folder")
    if target.exists():
        check_target(config, target, out / "stage1" / "world")
    if 1 not in config.stages and not (out / "stage1" / "world" / CONFIG_FILE).is_file():
        raise WorldError(f"{out} holds no finished stage 1 for stage 2 to go on from")
    first, second = (newest_checkpoint(out / name) for name in ("stage1", "stage2"))
    wanted = 0 if config.stage1.loop.train_seconds else config.stage1.loop.num_steps
    if 1 in config.stages and first and second and step_of(first) < wanted:
        # It would replace the world that stage 2 goes on from, and only then stage 2 would refuse it.
        raise WorldError(
            f"stage 2 in {out} goes on from {step_of(first)} updates of stage 1, and stage1.loop.num_steps "
            f"is {wanted}; choose another out= folder"
        )

"""Conversion of a softmax world into a hybrid one: `python -m training.convert teacher=WORLD`.

Two stages. In the first each new layer learns to say what the layer it replaces says, on the teacher's own
inputs, all layers at once. In the second the whole student learns the teacher's velocity, with low-rank
changes of the weights that it took over. Each has a folder of its own below `out`, and goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from training.cli.entry import entry
from training.conversion.selection import choose_layers, teacher_digest
from training.conversion.stage import (
    Distillation,
    StageConfig,
    StageSettings,
    TeacherConfig,
    describe_layers,
    describe_rollouts,
    describe_share,
    follows_from,
    heldout_losses,
    list_episodes,
    load_for,
    load_teacher,
    roll_out,
    stage_settings,
    student_of,
    train_stage,
)
from training.engine.fabric import make_fabric
from training.engine.lock import locked_folder
from training.engine.run_folder import RunFolder, newest_checkpoint, step_of
from training.objectives.distillation import LayerDistillation, VelocityDistillation
from training.objectives.lora import LoraConfig, add_lora, folded, lora_parameters
from training.world.clips import Footage, refuse_poses
from training.world.half_lives import tell_half_lives
from training.world.train import describe_training
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig
from worldsim.model.conversion import Rest, convert, new_parameters, student_config
from worldsim.model.denoiser import Denoiser
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


@dataclass(frozen=True, slots=True)
class Conversion:
    """What both stages share.

    Attributes:
        config: The command's settings.
        teacher: The softmax world, on the device.
        layers: Those that become hybrid.
        shape: The student's.
        footage: Recorded play.
        fabric: Device, precision and strategy of the stage at hand.
    """

    config: ConvertConfig
    teacher: World
    layers: list[int]
    shape: DenoiserConfig
    footage: Footage
    fabric: Fabric

    @property
    def inputs(self) -> dict[str, str]:
        """What a stage's folder is bound to, beside its settings."""
        chosen = {"layers": ",".join(map(str, self.layers)), "rest": self.config.rest}
        given = {"teacher": teacher_digest(self.teacher)} | self.footage.digests
        return given | chosen | {"window": str(self.shape.window)}


def shape_of(config: ConvertConfig, teacher: DenoiserConfig, layers: Sequence[int]) -> DenoiserConfig:
    """Return the student's shape; raises `WorldError` where a window is asked for that no layer has."""
    window = config.window
    if window is None:
        window = teacher.window if teacher.window_layers else DEFAULT_WINDOW
    shape = student_config(teacher, layers, config.hybrid, Rest(config.rest), window)
    if config.window is not None and (config.rest == Rest.FULL or not shape.window_layers):
        why = f"with rest={config.rest}" if config.rest == Rest.FULL else "when every layer is hybrid"
        raise WorldError(
            f"window {config.window} says nothing {why}: no layer becomes a window; leave it out"
        )
    return shape


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


def converted(conversion: Conversion, start: World, denoiser: Denoiser, entries: Mapping[str, str]) -> World:
    """Return a student as a world, its provenance that of `start` with more said about the conversion."""
    known = start.config.provenance.get("conversion", {})
    provenance = {**start.config.provenance, "conversion": {**known, **entries}}
    description = replace(
        start.config,
        name=conversion.config.name or conversion.teacher.config.name,
        denoiser=conversion.shape,
        provenance=tell_half_lives(provenance, denoiser),
    )
    return World(description, denoiser, conversion.teacher.codec, conversion.teacher.folder)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage came to.

    Attributes:
        student: The moving average of what was trained.
        told: For the card: length, what was trained, held-out loss before and after.
        is_done: Whether the run was found finished and its world written.
    """

    student: Denoiser
    told: str
    is_done: bool


def run_stage(
    conversion: Conversion,
    module: Distillation,
    trained: Mapping[str, nn.Parameter],
    settings: StageSettings,
    run: RunFolder,
    target: Path,
) -> Outcome:
    """Train a stage whose world goes to `target`; measures its loss on held-out video before and after."""
    fabric, footage, student = conversion.fabric, conversion.footage, module.denoiser
    latest, is_exported = run.latest(), run.is_exported(target)  # asked before one process may write
    before = heldout_losses(fabric, module.to(fabric.device), footage, settings)["loss"]
    num_added = sum(parameter.numel() for parameter in lora_parameters(student).values())
    share = describe_share(trained, sum(p.numel() for p in student.parameters()) - num_added)
    fabric.print(f"{run.path}: {share}; held-out loss before training {before:.4g}")
    training = train_stage(fabric, module, trained, settings, run, footage)
    after = heldout_losses(fabric, training.average.module, footage, settings)["loss"]
    spent = describe_training(training, settings, footage.num_frames, fabric)
    told = f"{spent}; {share}; held-out loss {before:.4g} before and {after:.4g} after"
    return Outcome(student_of(training), told, is_exported and run.latest() == latest)


def run_stage1(conversion: Conversion, run: RunFolder, settings: StageSettings) -> None:
    """Let each new layer learn from the one it replaces; writes `stage1/world`."""
    config, teacher, fabric = conversion.config, conversion.teacher, conversion.fabric
    layers, footage, validation = conversion.layers, conversion.footage, conversion.config.validation
    run.check_inputs(fabric, fabric.world_size, **conversion.inputs)
    torch.manual_seed(settings.loop.seed)
    student = convert(teacher.denoiser, conversion.shape, config.hybrid.memory_scale)
    module = LayerDistillation(
        teacher.denoiser, student, layers, config.objective, compile=config.fabric.compile
    )
    target = run.path / "world"
    outcome = run_stage(conversion, module, new_parameters(student), settings, run, target)
    if outcome.is_done:
        return
    entries = {
        "teacher": f"{teacher.config.name}, SHA-256 {conversion.inputs['teacher']}",
        **describe_layers(layers, conversion.shape),
        "stage 1": outcome.told,
        "roll-outs of the teacher": describe_rollouts(roll_out(teacher, footage, validation)),
    }
    world = converted(conversion, teacher, outcome.student, entries)
    scores = describe_rollouts(roll_out(world, footage, validation))
    fabric.print(f"teacher: {entries['roll-outs of the teacher']}\nafter stage 1: {scores}")
    # In fp32: stage 2 goes on from it, and what neither stage trains stays what it was.
    save(conversion, run, world, {"roll-outs after stage 1": scores}, target, torch.float32)


def run_stage2(conversion: Conversion, run: RunFolder, settings: StageSettings) -> None:
    """Let the whole student learn the teacher's velocity; writes `world`."""
    config, fabric = conversion.config, conversion.fabric
    start = World.from_pretrained(Path(config.out) / "stage1" / "world")
    if start.config.denoiser != conversion.shape:
        raise WorldError(
            f"{start.folder} was made for other layers or another memory; choose another out= folder"
        )
    run.check_inputs(fabric, fabric.world_size, **conversion.inputs, stage1=start.identity)
    student, teacher = start.denoiser, conversion.teacher.denoiser
    torch.manual_seed(settings.loop.seed)
    add_lora(student, config.stage2.lora)
    trained = new_parameters(student) | lora_parameters(student)
    module = VelocityDistillation(teacher, student, config.objective, settings.data_weight)
    target = Path(config.out) / "world"
    outcome = run_stage(conversion, module, trained, settings, run, target)
    if outcome.is_done:
        return
    world = converted(conversion, start, folded(outcome.student), {"stage 2": outcome.told})
    scores = describe_rollouts(roll_out(world, conversion.footage, config.validation))
    fabric.print(f"after stage 2: {scores}")
    save(conversion, run, world, {"roll-outs after stage 2": scores}, target, torch.bfloat16)


def save(
    conversion: Conversion,
    run: RunFolder,
    world: World,
    entries: Mapping[str, str],
    target: Path,
    dtype: torch.dtype,
) -> None:
    """Write a world with more said about its conversion; returns when it is there for all processes."""
    if conversion.fabric.global_rank == 0:
        converted(conversion, world, world.denoiser, entries).save_pretrained(target, dtype=dtype)
        run.mark_exported()
    conversion.fabric.barrier()


def settings_of(config: ConvertConfig) -> dict[int, StageSettings]:
    """Return the settings of the stages that are to run."""
    out, second = Path(config.out), config.stage2
    stages = {
        1: stage_settings(config, config.stage1, out / "stage1"),
        2: stage_settings(config, second, out / "stage2", lora=second.lora, data_weight=second.data_weight),
    }
    return {stage: stages[stage] for stage in sorted(set(config.stages))}


@entry("convert", ConvertConfig)
def main(config: ConvertConfig) -> None:
    """Turn a softmax world into a hybrid one."""
    teacher = load_teacher(config.teacher)
    refuse_poses(teacher.config.denoiser, "training.convert")
    share = DEFAULT_SHARE if config.share is None else config.share
    layers = choose_layers(teacher, list(config.layers), config.selection, share)
    shape = shape_of(config, teacher.config.denoiser, layers)
    with locked_folder(Path(config.out), "run folder"):
        run_stages(config, teacher, layers, shape)


def run_stages(config: ConvertConfig, teacher: World, layers: list[int], shape: DenoiserConfig) -> None:
    """Run the stages that were asked for, into a folder that is this process's own."""
    check_out(config, teacher)
    stages = {1: config.stage1, 2: config.stage2}
    episodes = list_episodes(config, teacher, {f"stage{number}": stages[number] for number in config.stages})
    runs = {stage: RunFolder(chosen.out, chosen) for stage, chosen in settings_of(config).items()}
    footage = None
    for stage, run in runs.items():
        fabric = make_fabric(config.fabric, run.path)
        footage = footage or load_for(config, teacher, episodes, fabric)
        conversion = Conversion(config, teacher, layers, shape, footage, fabric)
        fabric.print(f"stage {stage}: layers {', '.join(map(str, layers))} become hybrid")
        if stage == 1:
            run_stage1(conversion, run, settings_of(config)[stage])
        else:
            run_stage2(conversion, run, settings_of(config)[stage])
            target = Path(config.out) / "world"
            fabric.print(f"world in {target}; play it with: python play.py world={target}")


if __name__ == "__main__":
    main()

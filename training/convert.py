"""Turn a softmax world into a hybrid one: `python -m training.convert teacher=WORLD`.

Two stages. In the first each new layer learns to say what the layer it replaces says, on the teacher's own
inputs, all layers at once. In the second the whole student learns the teacher's velocity, with low-rank
changes of the weights that it took over. Each has a folder of its own below `out`, and goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from training.distillation import LayerDistillation, VelocityDistillation
from training.entry import entry
from training.fabric import make_fabric
from training.loop import Training
from training.lora import LoraConfig, add_lora, folded, lora_parameters
from training.run import RunFolder
from training.selection import choose_layers
from training.stage import (
    Distillation,
    Episodes,
    Footage,
    StageConfig,
    StageSettings,
    TeacherConfig,
    describe_share,
    heldout_losses,
    layer_half_lives,
    load_footage,
    load_teacher,
    roll_out,
    stage_settings,
    student_of,
    train_stage,
)
from training.world_model import describe_training
from worldsim.errors import WorldError
from worldsim.model.conversion import Rest, convert, new_parameters, student_config
from worldsim.model.denoiser import Denoiser
from worldsim.model.denoiser_config import DenoiserConfig
from worldsim.world import CONFIG_FILE, World

STAGES = (1, 2)


@dataclass(kw_only=True, slots=True)
class Stage2Config(StageConfig):
    """How stage 2 is trained.

    Attributes:
        lora: How much the weights that were taken over may change.
        data_weight: Share of the loss that comes from the video itself instead of the teacher.
    """

    lora: LoraConfig = field(default_factory=LoraConfig)
    data_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.data_weight <= 1:
            raise WorldError(f"stage2.data_weight must lie in [0, 1], got {self.data_weight}")


@dataclass(kw_only=True, slots=True)
class ConvertConfig(TeacherConfig):
    """Settings of `python -m training.convert`, beside those of every command with a teacher.

    Attributes:
        name: Name of the converted world; empty keeps the teacher's.
        layers: Which layers become hybrid, by number; empty takes `share` of them.
        selection: File from `python -m training.select_layers`: the layers that hurt least are taken; empty
            takes layers that leave the others evenly spread.
        share: How many layers become hybrid, rounded down.
        rest: What becomes of the others: window (constant memory) or full (the cache that grows).
        window: Frames that a window layer sees beside the current one.
        stages: Which stages to run.
        stage2: How the whole student learns.
    """

    name: str = ""
    layers: list[int] = field(default_factory=list)
    selection: str = ""
    share: float = 0.75
    rest: str = "window"
    window: int = 6
    stages: list[int] = field(default_factory=lambda: list(STAGES))
    stage2: Stage2Config = field(default_factory=Stage2Config)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise WorldError(f"share must lie in (0, 1], got {self.share}")
        if self.rest not in list(Rest):
            raise WorldError(f"rest is one of {', '.join(Rest)}; got {self.rest!r}")
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
        return self.footage.inputs | chosen | {"window": str(self.shape.window)}


def check_out(config: ConvertConfig, teacher: World) -> None:
    """Raise `WorldError` if the converted world would take the place of another one."""
    out = Path(config.out)
    target = out / "world"
    if teacher.folder is not None and target.resolve() == teacher.folder.resolve():
        raise WorldError(f"{target} is the teacher itself; choose another out= folder")
    if target.exists() and not (out / "stage2").is_dir():
        raise WorldError(f"{target} is a world that no conversion made; choose another out= folder")


def converted(conversion: Conversion, start: World, denoiser: Denoiser, entries: Mapping[str, Any]) -> World:
    """Return a student as a world, its provenance that of `start` with more said about the conversion."""
    known = start.config.provenance.get("conversion", {})
    told = {**known, **entries, **describe_half_lives(denoiser)}
    description = replace(
        start.config,
        name=conversion.config.name or conversion.teacher.config.name,
        denoiser=conversion.shape,
        provenance={**start.config.provenance, "conversion": told},
    )
    return World(description, denoiser, conversion.teacher.codec, conversion.teacher.folder)


def describe_half_lives(denoiser: Denoiser) -> dict[str, str]:
    """Return what a card says about each layer's memory."""
    return {
        f"half-lives of layer {layer}": f"median {median:.3g} frames, p10 {low:.3g}, p90 {high:.3g}"
        for layer, (low, median, high) in layer_half_lives(denoiser).items()
    }


def describe_rollouts(scores: Mapping[str, float]) -> str:
    """Return the PSNR of roll-outs as text."""
    return ", ".join(f"{value:.2f} dB after {horizon} frames" for horizon, value in scores.items())


def finish(
    conversion: Conversion, training: Training, settings: StageSettings, before: float, share: str
) -> str:
    """Return what a card says about a stage: its length, what it trained, the held-out loss."""
    losses = heldout_losses(conversion.fabric, training.average.module, conversion.footage, settings)
    spent = describe_training(training, settings, conversion.footage.num_frames, conversion.fabric)
    return f"{spent}; {share}; held-out loss {before:.4g} before and {losses['loss']:.4g} after"


def train_and_measure(
    conversion: Conversion,
    module: Distillation,
    trained: Mapping[str, torch.nn.Parameter],
    settings: StageSettings,
    run: RunFolder,
) -> tuple[Training, str, bool]:
    """Train a stage; returns it, what the card says of it, and whether anything was done."""
    fabric, student = conversion.fabric, module.denoiser
    latest = run.latest()
    before = heldout_losses(fabric, module.to(fabric.device), conversion.footage, settings)
    added = sum(parameter.numel() for parameter in lora_parameters(student).values())
    share = describe_share(trained, sum(p.numel() for p in student.parameters()) - added)
    fabric.print(f"{settings.out}: {share}; held-out loss before training {before['loss']:.4g}")

    def compile_blocks() -> None:
        # The first stage goes through the layers by itself, and compiles what it calls.
        if conversion.config.fabric.compile and isinstance(module, VelocityDistillation):
            for block in (*conversion.teacher.denoiser.layers(), *student.layers()):
                block.compile(dynamic=False)

    training = train_stage(
        fabric, module, trained, settings, run, conversion.footage, compile_blocks=compile_blocks
    )
    told = finish(conversion, training, settings, before["loss"], share)
    return training, told, run.latest() != latest


def run_stage1(conversion: Conversion, run: RunFolder, settings: StageSettings) -> None:
    """Let each new layer learn from the one it replaces; writes `stage1/world`."""
    config, teacher, fabric = conversion.config, conversion.teacher, conversion.fabric
    run.check_inputs(fabric, **conversion.inputs)
    torch.manual_seed(settings.loop.seed)
    student = convert(teacher.denoiser, conversion.shape, config.hybrid.memory_scale)
    module = LayerDistillation(
        teacher.denoiser, student, conversion.layers, config.objective, compile=config.fabric.compile
    )
    training, told, has_moved = train_and_measure(conversion, module, new_parameters(student), settings, run)
    target = run.path / "world"
    if target.exists() and not has_moved:
        return
    world = converted(conversion, teacher, student_of(training), {})
    scores = {
        "roll-outs of the teacher": describe_rollouts(
            roll_out(teacher, conversion.footage, config.validation)
        ),
        "roll-outs after stage 1": describe_rollouts(roll_out(world, conversion.footage, config.validation)),
    }
    fabric.print(f"teacher: {scores['rollouts_teacher']}\nstage 1: {scores['rollouts_after_stage_1']}")
    entries = {
        "teacher": f"{teacher.config.name}, SHA-256 {conversion.inputs['teacher']}",
        "hybrid layers": conversion.layers,
        "other layers": describe_rest(conversion.shape),
        "stage 1": told,
        **scores,
    }
    if fabric.global_rank == 0:
        # In fp32: stage 2 goes on from it, and what neither trains stays what it was.
        converted(conversion, world, world.denoiser, entries).save_pretrained(target, dtype=torch.float32)
    fabric.barrier()


def describe_rest(shape: DenoiserConfig) -> str:
    """Return what a card says about the layers that are not hybrid."""
    kinds = []
    if shape.window_layers:
        kinds.append(f"layers {shape.window_layers}: window of {shape.window} frames, and the first")
    if shape.full_layers:
        kinds.append(f"layers {shape.full_layers}: all past frames, in a cache that grows")
    return "; ".join(kinds) or "none"


def run_stage2(conversion: Conversion, run: RunFolder, settings: StageSettings) -> None:
    """Let the whole student learn the teacher's velocity; writes `world`."""
    config, teacher, fabric = conversion.config, conversion.teacher, conversion.fabric
    start = World.from_pretrained(run.path.parent / "stage1" / "world")
    if start.config.denoiser != conversion.shape:
        raise WorldError(
            f"{start.folder} was made for other layers or another memory; choose another out= folder"
        )
    run.check_inputs(fabric, **conversion.inputs, stage1=start.identity)
    student = start.denoiser
    torch.manual_seed(settings.loop.seed)
    add_lora(student, config.stage2.lora)
    trained = new_parameters(student) | lora_parameters(student)
    module = VelocityDistillation(teacher.denoiser, student, config.objective, settings.data_weight)
    training, told, has_moved = train_and_measure(conversion, module, trained, settings, run)
    target = Path(config.out) / "world"
    if target.exists() and not has_moved:
        return
    denoiser = folded(student_of(training))
    world = converted(conversion, start, denoiser, {"stage 2": told})
    scores = describe_rollouts(roll_out(world, conversion.footage, config.validation))
    fabric.print(f"stage 2: {scores}")
    if fabric.global_rank == 0:
        converted(conversion, world, denoiser, {"roll-outs after stage 2": scores}).save_pretrained(target)
    fabric.barrier()


@entry("convert", ConvertConfig)
def main(config: ConvertConfig) -> None:
    """Turn a softmax world into a hybrid one."""
    teacher = load_teacher(config.teacher)
    layers = choose_layers(teacher, list(config.layers), config.selection, config.share)
    shape = student_config(teacher.config.denoiser, layers, config.hybrid, Rest(config.rest), config.window)
    check_out(config, teacher)
    episodes = Episodes.of(config, teacher)
    out = Path(config.out)
    if 1 not in config.stages and not (out / "stage1" / "world" / CONFIG_FILE).is_file():
        raise WorldError(f"{out} holds no finished stage 1 for stage 2 to go on from")
    settings = {
        1: stage_settings(config, config.stage1, out / "stage1"),
        2: stage_settings(
            config,
            config.stage2,
            out / "stage2",
            lora=config.stage2.lora,
            data_weight=config.stage2.data_weight,
        ),
    }
    runs = {stage: RunFolder(settings[stage].out, settings[stage]) for stage in sorted(config.stages)}
    footage, fabric = None, None
    for stage, run in runs.items():
        fabric = make_fabric(config.fabric, run.path)
        footage = footage or load_footage(config, teacher, episodes, fabric)
        conversion = Conversion(config, teacher, layers, shape, footage, fabric)
        fabric.print(f"stage {stage}: layers {', '.join(map(str, layers))} become hybrid")
        (run_stage1 if stage == 1 else run_stage2)(conversion, run, settings[stage])
    if fabric is not None and 2 in config.stages:
        fabric.print(f"world in {out / 'world'}; play it with: python play.py world={out / 'world'}")


if __name__ == "__main__":
    main()

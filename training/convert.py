"""Conversion of a softmax world into a hybrid one: `python -m training.convert teacher=WORLD`.

Two stages. In the first each new layer learns to say what the layer it replaces says, on the teacher's own
inputs, all layers at once. In the second the whole student learns the teacher's velocity, with low-rank
changes of the weights that it took over. Each has a folder of its own below `out`, and goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.cli.entry import entry
from training.cli.overrides import play_command
from training.conversion.selection import choose_layers, teacher_digest
from training.conversion.settings import (
    DEFAULT_SHARE,
    DEFAULT_WINDOW,
    ConvertConfig,
    check_out,
    settings_of,
)
from training.conversion.stage import (
    StageSettings,
    describe_layers,
    describe_rollouts,
    list_episodes,
    load_for,
    roll_out,
    run_stage,
    student_of,
)
from training.engine.fabric import make_fabric
from training.engine.lock import locked_folder
from training.engine.run_folder import RunFolder
from training.objectives.distillation import LayerDistillation, VelocityDistillation
from training.objectives.lora import add_lora, folded, lora_parameters
from training.video.conversion import convert_video
from training.world.clips import Footage, refuse_poses
from training.world.half_lives import tell_half_lives
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig
from worldsim.model.conversion import Rest, check_softmax, convert, new_parameters, student_config
from worldsim.model.denoiser import Denoiser
from worldsim.world.video import VideoWorld
from worldsim.world.world import World

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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


def run_stage1(conversion: Conversion, run: RunFolder, settings: StageSettings) -> None:
    """Let each new layer learn from the one it replaces; writes `stage1/world`."""
    config, teacher, fabric = conversion.config, conversion.teacher, conversion.fabric
    layers, footage, validation = conversion.layers, conversion.footage, conversion.config.validation
    run.check_inputs(fabric, fabric.world_size, **conversion.inputs)
    torch.manual_seed(settings.loop.seed)
    student = convert(teacher.denoiser, conversion.shape, config.hybrid.memory_scale, config.hybrid.gates)
    module = LayerDistillation(
        teacher.denoiser, student, layers, config.objective, compile=config.fabric.compile
    )
    target = run.path / "world"
    outcome = run_stage(fabric, footage, module, new_parameters(student), settings, run, target)
    if outcome.is_done:
        return
    entries = {
        "teacher": f"{teacher.config.name}, SHA-256 {conversion.inputs['teacher']}",
        **describe_layers(layers, conversion.shape),
        "stage 1": outcome.told,
        "roll-outs of the teacher": describe_rollouts(roll_out(teacher, footage, validation)),
    }
    world = converted(conversion, teacher, student_of(outcome.module), entries)
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
    outcome = run_stage(fabric, conversion.footage, module, trained, settings, run, target)
    if outcome.is_done:
        return
    world = converted(conversion, start, folded(student_of(outcome.module)), {"stage 2": outcome.told})
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


@entry("convert", ConvertConfig)
def main(config: ConvertConfig) -> None:
    """Turn a softmax world into a hybrid one."""
    teacher = World.from_pretrained(config.teacher)
    if isinstance(teacher, VideoWorld):
        convert_video(config, teacher)
        return
    check_softmax(teacher.config.denoiser, config.teacher)
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
            fabric.print(f"world in {target}; play it with: {play_command(target)}")


if __name__ == "__main__":
    main()

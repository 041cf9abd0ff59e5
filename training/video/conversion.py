"""Conversion of a video world into a hybrid one, by the settings and in the folders of `training.convert`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.cli.overrides import play_command
from training.conversion.selection import choose_layers, teacher_digest
from training.conversion.settings import DEFAULT_SHARE, ConvertConfig, check_out, settings_of
from training.conversion.stage import (
    StageSettings,
    run_stage,
)
from training.engine.fabric import make_fabric, product_dtype_of
from training.engine.lock import locked_folder
from training.engine.run_folder import RunFolder
from training.objectives.lora import add_lora, folded_weights, lora_parameters
from training.objectives.video import VideoDistillation, VideoLayerDistillation, VideoVelocityDistillation
from training.video.footage import check_fabric, check_sequences, check_unused, describe_frames, load_video
from training.world.clips import Episodes, Footage
from training.world.half_lives import tell_half_lives
from worldsim.errors import WorldError
from worldsim.model.conversion import HybridConfig, Rest, begin_memory
from worldsim.model.inspection import half_lives_of
from worldsim.wan.config import CausalConfig, WanConfig
from worldsim.wan.conversion import hybrid_attentions, new_parameters, with_hybrid_layers
from worldsim.wan.transformer import WanTransformer
from worldsim.world import World
from worldsim.world.video import VideoWorld
from worldsim.world.video_config import VideoWorldConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PHASES = ("time", "none")
"""What keys of a video world's states can turn by."""


@dataclass(frozen=True, slots=True)
class VideoConversion:
    """What both stages share.

    Attributes:
        config: The command's settings.
        teacher: The softmax world.
        shape: The student's.
        causal: What the student's blocks see.
        footage: Recorded play.
        frames: What became of the size of its frames, in words.
        fabric: Device, precision and strategy of the stage at hand.
    """

    config: ConvertConfig
    teacher: VideoWorld
    shape: WanConfig
    causal: CausalConfig
    footage: Footage
    frames: str
    fabric: Fabric

    @property
    def inputs(self) -> dict[str, str]:
        """What a stage's folder is bound to, beside its settings."""
        layers = ",".join(map(str, self.shape.hybrid_layers))
        given = {"teacher": teacher_digest(self.teacher)} | self.footage.digests
        return given | {"layers": layers, "rest": self.config.rest, "window": str(self.causal.window)}

    def given(
        self, student: WanTransformer
    ) -> tuple[WanTransformer, CausalConfig, WanTransformer, CausalConfig, Tensor]:
        """Return what a stage's module is made of; from now on the teacher is in the products' format."""
        teacher = self.teacher
        network = teacher.transformer.to(self.fabric.device, product_dtype_of(self.config.fabric))
        return network, teacher.config.causal, student, self.causal, teacher.text


def check_settings_of(config: ConvertConfig, teacher: VideoWorld) -> None:
    """Raise `WorldError` for a hybrid teacher, and for settings that no video world is converted by."""
    if layers := teacher.config.transformer.hybrid_layers:
        named = ", ".join(map(str, layers))
        raise WorldError(
            f"{config.teacher} is hybrid already (layers {named}): a teacher has softmax layers only"
        )
    if config.rest == Rest.FULL:
        raise WorldError("rest=full: a video world's layers see a window, so that its state does not grow")
    if (phase := config.hybrid.memory_phase) not in (None, *PHASES):
        raise WorldError(f"hybrid.memory_phase of a video world is {' or '.join(PHASES)}, got {phase!r}")
    check_fabric(config.fabric)
    allowed = {"validation": ("num_rollouts", "max_frames"), "hybrid": HYBRID_SETTINGS}
    groups = {"objective": config.objective, "validation": config.validation, "hybrid": config.hybrid}
    check_unused(groups, allowed)


HYBRID_SETTINGS = ("memory_phase", "gates", "half_lives", "write_biases", "memory_scale")


def causal_of(config: ConvertConfig, teacher: VideoWorld) -> CausalConfig:
    """Return what the student's blocks see: the teacher's window, or another number of latent frames."""
    causal = teacher.config.causal
    return causal if config.window is None else replace(causal, window=config.window + causal.block)


def build_student(teacher: VideoWorld, layers: list[int], hybrid: HybridConfig, seed: int) -> WanTransformer:
    """Return a transformer with new layers, and weights of its own."""
    return hybrid_student(teacher.transformer, layers, hybrid, teacher.config.tokens_per_frame, seed)


def hybrid_student(
    teacher: WanTransformer, layers: list[int], hybrid: HybridConfig, tokens_per_frame: int, seed: int
) -> WanTransformer:
    """Return what `build_student` does, of a teacher that is no world."""
    torch.manual_seed(seed)
    shortest, longest = hybrid.half_lives
    first, last = hybrid.write_biases or (0.0, -2.0)
    student = with_hybrid_layers(
        teacher,
        layers,
        tokens_per_frame=tokens_per_frame,
        half_lives=(shortest, longest),
        memory_phase=hybrid.memory_phase or PHASES[0],
        write_biases=(first, last),
    )
    for attention in hybrid_attentions(student).values():
        begin_memory(attention, hybrid.memory_scale, hybrid.gates)
    # What is spread over devices later must not be what the teacher computes with.
    student.load_state_dict({name: each.clone() for name, each in student.state_dict().items()}, assign=True)
    return student.requires_grad_(False)


def converted(
    conversion: VideoConversion, start: VideoWorld, student: WanTransformer, entries: Mapping[str, str]
) -> VideoWorld:
    """Return a student as a world, its provenance that of `start` with more said about the conversion."""
    known, teacher = start.config.provenance.get("conversion", {}), conversion.teacher
    provenance = {**start.config.provenance, "conversion": {**known, **entries}}
    tokens = teacher.config.tokens_per_frame
    rows = {layer: half_lives_of(each, tokens) for layer, each in hybrid_attentions(student).items()}
    description = replace(
        start.config,
        name=conversion.config.name or teacher.config.name,
        transformer=conversion.shape,
        causal=conversion.causal,
        provenance=tell_half_lives(provenance, rows),
    )
    assert isinstance(description, VideoWorldConfig) and teacher.folder is not None
    return VideoWorld(description, student, teacher.autoencoder, teacher.text, teacher.folder, {})


def run_stage1(conversion: VideoConversion, run: RunFolder, settings: StageSettings) -> None:
    """Let each new layer learn from the one it replaces; writes `stage1/world`."""
    config, teacher, fabric = conversion.config, conversion.teacher, conversion.fabric
    run.check_inputs(fabric, fabric.world_size, **conversion.inputs)
    student = build_student(teacher, conversion.shape.hybrid_layers, config.hybrid, settings.loop.seed)
    module, target = VideoLayerDistillation(*conversion.given(student)), run.path / "world"
    trained = new_parameters(student)
    outcome = run_stage(fabric, conversion.footage, module, trained, settings, run, target)
    if outcome.is_done:
        return
    layers, kept = conversion.shape.hybrid_layers, conversion.shape.num_layers
    others = [str(layer) for layer in range(kept) if layer not in layers]
    sees = f"see {conversion.causal.window} latent frames with their own"
    entries = {
        "teacher": f"{teacher.config.name}, {conversion.inputs['teacher']}",
        "hybrid layers": ", ".join(map(str, layers)),
        "other layers": f"{', '.join(others)} {sees}" if others else "none",
        "video": f"latent frames of four frames each, {conversion.frames}",
        "stage 1": outcome.told,
    }
    # In fp32: stage 2 goes on from it, and what neither stage trains stays what it was.
    write(conversion, run, teacher, student_in(outcome.module), entries, target, torch.float32)


def run_stage2(conversion: VideoConversion, run: RunFolder, settings: StageSettings) -> None:
    """Let the whole student learn the teacher's velocity; writes `world`."""
    config, fabric = conversion.config, conversion.fabric
    start = World.from_pretrained(Path(config.out) / "stage1" / "world")
    assert isinstance(start, VideoWorld)
    if (start.config.transformer, start.config.causal) != (conversion.shape, conversion.causal):
        raise WorldError(
            f"{start.folder} was made for other layers or another memory; choose another out= folder"
        )
    run.check_inputs(fabric, fabric.world_size, **conversion.inputs, stage1=start.identity)
    student = start.transformer
    torch.manual_seed(settings.loop.seed)
    add_lora(student, config.stage2.lora)
    module = VideoVelocityDistillation(*conversion.given(student), settings.data_weight)
    trained = new_parameters(student) | lora_parameters(student)
    target = Path(config.out) / "world"
    outcome = run_stage(fabric, conversion.footage, module, trained, settings, run, target)
    if outcome.is_done:
        return
    with torch.device("meta"):
        plain = WanTransformer(conversion.shape)
    plain.load_state_dict(folded_weights(student_in(outcome.module)), assign=True)
    write(conversion, run, start, plain, {"stage 2": outcome.told}, target, torch.bfloat16)


def student_in(module: nn.Module) -> WanTransformer:
    """Return the student of a stage's module."""
    assert isinstance(module, VideoDistillation)
    return module.denoiser


def write(
    conversion: VideoConversion,
    run: RunFolder,
    start: VideoWorld,
    student: WanTransformer,
    entries: Mapping[str, str],
    target: Path,
    dtype: torch.dtype,
) -> None:
    """Write a student as a world; returns when it is there for all processes."""
    if conversion.fabric.global_rank == 0:
        student = student.eval().requires_grad_(False)
        converted(conversion, start, student, entries).save_pretrained(target, dtype=dtype)
        run.mark_exported()
    conversion.fabric.barrier()


def convert_video(config: ConvertConfig, teacher: VideoWorld) -> None:
    """Turn a video world into a hybrid one, in the stages that were asked for."""
    check_settings_of(config, teacher)
    share = DEFAULT_SHARE if config.share is None else config.share
    layers = choose_layers(teacher, list(config.layers), config.selection, share)
    phase = config.hybrid.memory_phase or PHASES[0]
    shape = replace(teacher.config.transformer, hybrid_layers=layers, memory_phase=phase)
    causal, lengths = causal_of(config, teacher), {}
    with locked_folder(Path(config.out), "run folder"):
        check_out(config, teacher)
        episodes = Episodes.of(config.data, config.validation, teacher.config.actions)
        stages = settings_of(config)
        lengths = {f"stage{number}.sequence_length": each.sequence_length for number, each in stages.items()}
        check_sequences(teacher.config, lengths, episodes)
        runs = {stage: RunFolder(chosen.out, chosen) for stage, chosen in stages.items()}
        footage = None
        for stage, run in runs.items():
            fabric = make_fabric(config.fabric, run.path)
            given = (config.data, config.validation, max(lengths.values()), fabric)
            footage = footage or load_video(teacher, episodes, *given)
            frames = describe_frames(teacher.config, episodes)
            conversion = VideoConversion(config, teacher, shape, causal, footage, frames, fabric)
            fabric.print(f"stage {stage}: layers {', '.join(map(str, layers))} become hybrid")
            (run_stage1 if stage == 1 else run_stage2)(conversion, run, stages[stage])
            if stage == 2:
                target = Path(config.out) / "world"
                fabric.print(f"world in {target}; play it with: {play_command(target)}")

"""Conversion of a softmax model into a hybrid one: shape, weights taken over, new parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import nn

from worldsim.errors import WorldError
from worldsim.model.attention.base import Attention
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.config import FINEST, DenoiserConfig, MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.settings import check_settings, setting

GATES = ("spread", "published")


class Rest(StrEnum):
    """What becomes of the softmax layers that are not replaced."""

    WINDOW = "window"
    FULL = "full"


@dataclass(kw_only=True, slots=True)
class HybridConfig:
    """How the new layers' memory begins."""

    memory_phase: str | None = setting(
        None,
        "What turns the memory's keys: none, time or path (`MemoryPhase`); null is path, and time in a video "
        "world, which has no path.",
    )
    memory_keys: str | None = setting(
        None,
        "Which places its keys tell apart: axes or plane (`MemoryKeys`); null is as the teacher's "
        "description has it, which matters to no softmax layer without full_path.",
    )
    gates: str = setting(
        GATES[0],
        "How fast heads forget: spread lays their half-lives out between two, published draws decays as the "
        "release of ARL2 does, with which most forget within a frame.",
        choices=GATES,
    )
    half_lives: list[float] = setting(
        [4.0, 4096.0], "Shortest and longest half-life, in frames; in a video world, in latent frames."
    )
    write_biases: list[float] | None = setting(
        None, "How gently it is written (model.write_biases); null as the teacher's description has it."
    )
    memory_scale: float = setting(
        0.1,
        "Size of `phi_v`, and so of what a new layer's memory says, compared with a fresh layer's. At 0 a "
        "new layer begins as softmax inside the frame.",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        check_settings(self, "hybrid.")


def check_softmax(config: DenoiserConfig, name: str) -> None:
    """Raise `WorldError` if a model named `name` is no teacher: one with hybrid layers, or a recycled one."""
    if config.recycled:
        raise WorldError(
            f"{name} is recycled: a teacher shows its layers clean frames, of which it takes none"
        )
    softmax = {*config.window_layers, *config.full_layers}
    if hybrid := sorted(set(range(config.num_layers)) - softmax):
        layers = ", ".join(map(str, hybrid))
        raise WorldError(f"{name} is hybrid already (layers {layers}): a teacher has softmax layers only")


def check_layers(layers: Sequence[int], num_layers: int, name: str) -> None:
    """Raise `WorldError` unless the layers are different layers of the teacher; `name` is the setting."""
    outside = sorted({layer for layer in layers if not 0 <= layer < num_layers})
    if outside:
        numbers = ", ".join(map(str, outside))
        raise WorldError(f"{name} names layers {numbers}; the teacher has layers 0 to {num_layers - 1}")
    if len(set(layers)) < len(layers):
        raise WorldError(f"{name} names a layer twice: {list(layers)}")


def spread_layers(num_layers: int, num_hybrid: int) -> list[int]:
    """Return which layers to replace so that the others lie evenly, for who has not measured it."""
    num_kept = num_layers - num_hybrid
    kept = {(2 * index + 1) * num_layers // (2 * num_kept) for index in range(num_kept)}
    return [layer for layer in range(num_layers) if layer not in kept]


def student_config(
    teacher: DenoiserConfig, layers: Sequence[int], hybrid: HybridConfig, rest: Rest, window: int
) -> DenoiserConfig:
    """Return the shape of a teacher of which `layers` became hybrid.

    Args:
        teacher: Shape of a model with softmax layers only.
        layers: Which to replace.
        hybrid: How their memory begins.
        rest: What becomes of the other full layers; layers that are windows already stay as they are.
        window: Frames that a window layer sees beside the current one.
    """
    if rest is Rest.WINDOW and teacher.window_layers and window != teacher.window:
        raise WorldError(
            f"the teacher has window layers of {teacher.window} frames; a model has one window, got {window}"
        )
    kept = [layer for layer in teacher.full_layers if layer not in layers]
    windows = [layer for layer in teacher.window_layers if layer not in layers]
    keys, phase = hybrid.memory_keys or teacher.memory_keys, hybrid.memory_phase or MemoryPhase.PATH
    return replace(
        teacher,
        window_layers=sorted(windows + kept) if rest is Rest.WINDOW else windows,
        full_layers=kept if rest is Rest.FULL else [],
        full_path=teacher.full_path and bool(kept) and rest is Rest.FULL,
        window=window if rest is Rest.WINDOW else teacher.window,
        memory_phase=phase,
        path_odometry=teacher.path_odometry and phase == MemoryPhase.PATH,
        memory_keys=keys,
        finest_key=teacher.finest_key if keys == MemoryKeys.PLANE else FINEST,
        keyed_places=teacher.keyed_places or keys != MemoryKeys.POSE,
        write_biases=list(hybrid.write_biases or teacher.write_biases),
        half_lives=list(hybrid.half_lives),
    )


@torch.no_grad()
def convert(
    teacher: Denoiser, config: DenoiserConfig, memory_scale: float, gates: str = GATES[0]
) -> Denoiser:
    """Return a student of the shape of `student_config`, with the teacher's weights wherever it has some.

    What is new is drawn from PyTorch's global generator, as in a fresh model.

    Args:
        teacher: Left as it is.
        config: The student's shape.
        memory_scale: See `HybridConfig`.
        gates: See `HybridConfig`.
    """
    student = Denoiser(config)
    for block in student.layers():
        if isinstance(block.self_attn, HybridAttention):
            begin_memory(block.self_attn, memory_scale, gates)
    new = set(new_parameters(student))
    has_path = teacher.config.full_path and config.memory_phase == MemoryPhase.PATH
    if has_path and config.memory_keys == teacher.config.memory_keys:  # what the teacher takes a move for
        new -= {name for name in new if name.startswith("motion.")}
    weights = {k: v for k, v in teacher.state_dict().items() if k in student.state_dict() and k not in new}
    missing = [name for name in student.state_dict() if name not in weights and name not in new]
    if missing:
        raise WorldError(f"the teacher has no weight {missing[0]}, which its student needs")
    try:
        student.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise WorldError(f"the teacher's weights do not fit: {' '.join(str(error).split())}") from error
    return student


@torch.no_grad()
def begin_memory(attention: HybridAttention, memory_scale: float, gates: str) -> None:
    """Let a new layer's memory begin as `HybridConfig` says."""
    # The gate has no bias to begin shut with; the value's map does the same in the same place.
    attention.phi_v.weight.mul_(memory_scale)
    if gates != GATES[0]:
        attention.begin_as_published()


def new_names(attention: HybridAttention) -> list[str]:
    """Return the parameters of a hybrid layer that a softmax layer has not."""
    taken_over = {name.partition(".")[0] for name, _ in Attention(2, 1).named_parameters()}
    names = [name for name, _ in attention.named_parameters()]
    return [name for name in names if name.partition(".")[0] not in taken_over]


def new_parameters(student: Denoiser) -> dict[str, nn.Parameter]:
    """Return what a hybrid model has and a softmax model has not: gates, maps, decay, and the path."""
    found = {f"motion.{name}": parameter for name, parameter in student.motion.named_parameters()}
    for index, block in enumerate(student.layers()):
        if isinstance(attention := block.self_attn, HybridAttention):
            for name in new_names(attention):
                found[f"blocks.{index}.self_attn.{name}"] = attention.get_parameter(name)
    return found


@torch.no_grad()
def take_layer(student: Denoiser, layer: int, trained: Denoiser) -> None:
    """Give a student the attention of one layer, and the path, of another one trained for it."""
    student.layers()[layer].self_attn.load_state_dict(trained.layers()[layer].self_attn.state_dict())
    student.motion.load_state_dict(trained.motion.state_dict())

"""Suite of what trainings of a video transformer cost, `benchmark=video_training`."""

# B batch, F latent frames, C h w latent size, A action axes

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.conversion.stage import StageConfig
from training.data.video_codec import displayed_frames
from training.engine.fabric import make_fabric, product_dtype_of
from training.engine.optimizers import OptimizerConfig, make_optimizers, make_partial_optimizers
from training.engine.update import Training, prepare, update
from training.objectives.lora import LoraConfig, add_lora, lora_parameters
from training.objectives.video import VideoFlowMatching, VideoLayerDistillation, VideoVelocityDistillation
from training.suites.settings import EvaluateConfig, VideoTrainingConfig
from training.suites.training_cost import wait_for
from training.video.conversion import hybrid_student
from worldsim.errors import WorldError
from worldsim.evaluation.cost.step_time import device_memory
from worldsim.evaluation.cost.video_shape import PIXELS, VideoShapeConfig, free
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.text import align
from worldsim.model.conversion import HybridConfig, spread_layers
from worldsim.wan.conversion import new_parameters
from worldsim.wan.transformer import WanTransformer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TRAINING_REPORT_FILE = "video_training.json"
NUM_VALUES = [2, 3, 3]
"""Values of each of the buttons that a finetuned network is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateCost:
    """What updates of a training cost.

    Attributes:
        milliseconds: Of each, behind the first.
        frames_per_second: Displayed frames trained a second, on all devices, at the median of these.
        peak_bytes: Most that a GPU held, from the making of the weights on; None on a CPU.
        trained: Parameters that change.
        total: Those of the network, without low-rank changes.
    """

    milliseconds: Sequence[float]
    frames_per_second: float
    peak_bytes: int | None
    trained: int
    total: int


def benchmark_video_training(config: EvaluateConfig, out: Path) -> None:
    """Time updates of each training on random latents, print a table, write OUT/video_training.json.

    Raises:
        WorldError: If a sequence is not of whole blocks, two at least.
    """
    asked, shape = config.video_training, config.video
    block = shape.causal.block
    if asked.sequence_length % block or asked.sequence_length < 2 * block:
        raise WorldError(
            f"video_training.sequence_length must be a multiple of the block of {block} and at least "
            f"{2 * block}, got {asked.sequence_length}"
        )
    fabric = make_fabric(asked.fabric, out)
    costs: dict[str, UpdateCost] = {}
    for name in asked.objectives:
        costs[name] = measure_updates(name, shape, asked, fabric)
        free(fabric.device)
        if fabric.global_rank == 0:
            head = describe_run(fabric.device, product_dtype_of(asked.fabric))
            told = {
                "settings": {"video": asdict(shape), "video_training": asdict(asked)},
                "devices": fabric.world_size,
            }
            found = {"objectives": {each: asdict(cost) for each, cost in costs.items()}}
            Report(out / TRAINING_REPORT_FILE, head | told | found).write()
    fabric.print(f"\n{format_costs(costs)}\n\nwritten to {out / TRAINING_REPORT_FILE}")


def measure_updates(
    name: str, shape: VideoShapeConfig, asked: VideoTrainingConfig, fabric: Fabric
) -> UpdateCost:
    """Return what updates of one training cost, of random weights and latents."""
    device = fabric.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    training, trained, total = prepare_objective(name, shape, asked, fabric)
    size = (shape.height // PIXELS, shape.width // PIXELS)
    lengths = (asked.batch_size, asked.sequence_length)
    generator = torch.Generator(device).manual_seed(fabric.global_rank)
    latents = torch.randn(*lengths, shape.shape.in_dim, *size, generator=generator, device=device)
    actions = torch.zeros(*lengths, len(NUM_VALUES), dtype=torch.int64, device=device)
    taken = []
    for _ in range(1 + asked.num_updates):
        wait_for(device)
        begun = time.perf_counter()
        update(fabric, training, [(latents, actions, generator)])
        wait_for(device)
        taken.append(1e3 * (time.perf_counter() - begun))
    timed, memory = taken[1:], device_memory(device)
    frames = displayed_frames(asked.sequence_length) * asked.batch_size * fabric.world_size
    return UpdateCost(
        milliseconds=timed,
        frames_per_second=1e3 * frames / median(timed),
        peak_bytes=memory[1] if memory else None,
        trained=trained,
        total=total,
    )


def prepare_objective(
    name: str, shape: VideoShapeConfig, asked: VideoTrainingConfig, fabric: Fabric
) -> tuple[Training, int, int]:
    """Return a training as its command makes it, how many parameters it trains, and of how many."""
    device, is_finetune = fabric.device, name == "finetune"
    config = replace(shape.shape, num_values=NUM_VALUES if is_finetune else [])
    torch.manual_seed(0)
    with torch.device(device):
        network = WanTransformer(config).requires_grad_(False)
        text = torch.zeros(1, config.text_dim)
    stage = StageConfig()
    if is_finetune:
        module: nn.Module = VideoFlowMatching(network.requires_grad_(True).train(), shape.causal, text)
        optimizers = make_optimizers(network, OptimizerConfig(muon=1e-4, adamw=5e-5))
        trained, total = dict(network.named_parameters()), count_of(network.parameters())
    else:
        layers = spread_layers(config.num_layers, int(shape.share * config.num_layers))
        student = hybrid_student(network, layers, HybridConfig(), shape.tokens_per_frame, 0)
        trained, total = new_parameters(student), count_of(student.parameters())
        if name == "stage2":
            add_lora(student, LoraConfig())
            trained = trained | lora_parameters(student)
        network.to(product_dtype_of(asked.fabric))
        given = (network, shape.causal, student, shape.causal, text)
        is_first = name == "stage1"
        module = VideoLayerDistillation(*given) if is_first else VideoVelocityDistillation(*given, 0.0)
        module.to(device).requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        optimizers = make_partial_optimizers(list(trained.values()), stage.optimizer)
    count = count_of(trained.values())
    return prepare(fabric, module, optimizers, stage.loop.ema_decay), count, total


def count_of(parameters: Iterable[Tensor]) -> int:
    """Return how many numbers parameters have, whole."""
    return sum(each.numel() for each in parameters)


def format_costs(costs: dict[str, UpdateCost]) -> str:
    """Return what updates cost, as a table."""
    rows = [
        ("training", "ms an update", "displayed frames/s", "peak, GiB a card", "trained", "of parameters")
    ]
    for name, cost in costs.items():
        peak = "-" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**30:.1f}"
        share = f"{100 * cost.trained / cost.total:.2f} %"
        rows.append(
            (
                name,
                f"{median(cost.milliseconds):,.1f}",
                f"{cost.frames_per_second:,.1f}",
                peak,
                share,
                f"{cost.total:,}",
            )
        )
    return align(rows)

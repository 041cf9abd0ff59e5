"""Cost of a training's update: frames a second, products, memory; forms of it in turn."""

# B batch, F frames, N tokens of one frame, H heads, K key width, V value width

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from training.data.latents import LatentVideo
from training.engine.sharding import own_part
from training.engine.step import StepConfig, computing
from training.engine.update import Training, update
from worldsim.evaluation.report.report import as_json
from worldsim.evaluation.statistics import median_ratio
from worldsim.model.config import DenoiserConfig
from worldsim.runtime.timing import Percentiles

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PEAKS = {
    **{"B200": 2250.0, "H200": 989.0, "GH200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0},
    **{"L40S": 362.0, "L4": 121.0, "4090": 165.0},
}
"""Dense bf16 products in TFLOP/s by a part of a card's name, from data sheets; the first match counts."""
EPISODES = 2
"""Of random video for each pass."""


@dataclass(slots=True)
class Form:
    """One form of a training that is measured.

    Attributes:
        fabric: Its devices.
        training: What learns.
        batch_at: Draws the batch of a step and a pass.
        frames: Frames of an update, on all devices.
        flops: Operations in products of an update, on all devices.
        clip_norm: As in training.
        step: Kernels, precision and memory of its updates.
        milliseconds: Of each timed update.
        resident_bytes: What it holds between updates on an accelerator.
        peak_bytes: Most that was held there in a timed update, by all forms.
    """

    fabric: Fabric
    training: Training
    batch_at: Callable[[int, int], Sequence[Any]]
    frames: int
    flops: float
    clip_norm: float
    step: StepConfig = field(default_factory=StepConfig)
    milliseconds: list[float] = field(default_factory=list)
    resident_bytes: int = 0
    peak_bytes: int = 0

    def batches(self) -> list[Sequence[Any]]:
        """Return the next update's batches, one for each pass of this device."""
        return [self.batch_at(self.training.step, number) for number in self.training.passes.own]

    def update(self) -> float:
        """Make an update and return the milliseconds that it took, batches included."""
        wait_for(self.fabric.device)
        begun = time.perf_counter()
        with computing(self.step):
            update(self.fabric, self.training, self.batches(), clip_norm=self.clip_norm)
        wait_for(self.fabric.device)
        return 1e3 * (time.perf_counter() - begun)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_video(config: DenoiserConfig, length: int, device: torch.device, seed: int) -> LatentVideo:
    """Return random latents, actions, rewards and ends of episodes of `length` frames."""
    generator = torch.Generator(device).manual_seed(seed)
    frames = EPISODES * length
    latents = torch.randn(frames, *config.latent_shape, generator=generator, device=device)
    actions = [
        torch.randint(count, (frames,), generator=generator, device=device) for count in config.num_values
    ]
    ends = torch.zeros(frames, dtype=torch.bool, device=device)
    ends[length - 1 :: length] = True
    rewards = torch.rand(frames, generator=generator, device=device)
    return LatentVideo(latents.half(), torch.stack(actions, dim=-1), [length] * EPISODES, rewards, ends)


def time_in_turn(forms: Mapping[str, Form], num_updates: int) -> None:
    """Time updates of some forms in turn: what else the machine does then slows all alike."""
    for _ in range(num_updates):
        for form in forms.values():
            device = form.fabric.device
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            form.milliseconds.append(form.update())
            if device.type == "cuda":
                form.peak_bytes = max(form.peak_bytes, peak_bytes(form))


def peak_bytes(form: Form) -> int:
    """Return the most that was held on a GPU since its statistics were reset, a graph's memory included."""
    graph = form.training.graph
    return torch.cuda.max_memory_allocated(form.fabric.device) + (graph.pool_bytes if graph else 0)


def describe_times(form: Form, peak_tflops: float | None) -> dict[str, Any]:
    """Return what the timed updates of a form say, as a JSON object.

    Args:
        form: Timed.
        peak_tflops: Of one device, in products of the training's precision; None if it is not known.
    """
    found = Percentiles.of(np.array(form.milliseconds))
    reached = form.flops / found.p50 / 1e9
    return {
        "update_ms": {"p50": found.p50, "p90": found.p90, "p99": found.p99, "count": len(form.milliseconds)},
        "frames": form.frames,
        "frames_per_second": 1e3 * form.frames / found.p50,
        "tflop": form.flops / 1e12,
        "tflops_per_second": reached,
        "share_of_peak": reached / (peak_tflops * form.fabric.world_size) if peak_tflops else None,
    }


def compare(form: Form, other: Form) -> dict[str, Any]:
    """Return how many times as many frames a second a form makes as the other did in turn with it."""
    rate = np.array([form.frames / ms for ms in form.milliseconds])
    others = np.array([other.frames / ms for ms in other.milliseconds])
    return as_json(median_ratio(rate / others))


def peak_of(device: torch.device, precision: str) -> float | None:
    """Return the TFLOP/s of a device's bf16 products; None for a device or precision that is not listed."""
    if device.type != "cuda" or not precision.startswith("bf16"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def scan_flops(k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations in products of `kernels.scan_frames`, of the shapes `[B, F, N, H, K or V]`.

    For each frame and head `K K^T`, the substitution of `A^T K` (half of a product), `X^T K`, `X^T V`, `M S`.
    """
    batch, frames, tokens, heads, key = k
    value = v[-1]
    own = 3 * tokens**2 * key + 2 * tokens * key * (key + value) + 2 * key**2 * value
    return batch * frames * heads * own


def scan_gradient_flops(k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations in products of its gradient.

    `K K^T` again, a substitution, four products of tokens with states, three of pairs of tokens, and one of
    states.
    """
    batch, frames, tokens, heads, key = k
    value = v[-1]
    own = 9 * tokens**2 * key + 8 * tokens * key * value + 2 * key**2 * value
    return batch * frames * heads * own


def read_flops(q: Sequence[int], state: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations in products of `kernels.read`, of q `[..., N, H, K]` and state `[..., K, V]`."""
    return 2 * int(np.prod(q)) * state[-1]


def read_gradient_flops(q: Sequence[int], state: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations in products of its gradient: one for the queries, one for the state."""
    return 2 * read_flops(q, state)


def attend_flops(q: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations in products of `kernels.layers.attend`, of q `[..., N, H, D]`: scores, values."""
    return 4 * int(np.prod(q)) * q[-3]


def attend_gradient_flops(q: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations in products of its gradient: scores again, and four more."""
    return 10 * int(np.prod(q)) * q[-3]


def formulas() -> dict[Any, Callable[..., int]]:
    """Return what PyTorch does not count: our operators in Triton, and some of a CPU's."""
    arl2, aten = torch.ops.arl2, torch.ops.aten
    return {
        arl2.scan_frames: scan_flops,
        arl2.scan_frames_gradient: scan_gradient_flops,
        arl2.read: read_flops,
        arl2.read_gradient: read_gradient_flops,
        arl2.attend: attend_flops,
        arl2.attend_gradient: attend_gradient_flops,
        aten.baddbmm_: lambda _, a, b, **__: 2 * int(np.prod(a)) * b[-1],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda d_out, q, k, v, *_, **__: sdpa_backward_flop_count(d_out, q, k, v)
        ),
    }


def count_flops(run: Callable[[], object]) -> int:
    """Return the operations in products of what a function computes, eagerly; attention and scan included."""
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        run()
    return counter.get_total_flops()


def flops_of_row(module: torch.nn.Module, batch: Sequence[Any]) -> tuple[int, int]:
    """Return the operations in products of a batch: forward alone, and forward and backward.

    Args:
        module: The objective, not wrapped and not compiled; its gradients are removed.
        batch: Of few rows: the products of others are as many, and eager code keeps more.
    """
    with torch.no_grad():
        forward = count_flops(lambda: module(*batch))
    both = count_flops(lambda: module(*batch)["loss"].backward())
    module.zero_grad(set_to_none=True)
    return forward, both


def kept_bytes(form: Form) -> int:
    """Return what the forward pass of a batch keeps for the gradient, parameters aside."""
    with computing(form.step):
        return _kept_bytes(form)


def _kept_bytes(form: Form) -> int:
    batch, device = form.batches()[0], form.fabric.device
    carry = {} if form.training.carries is None else {"carry": form.training.carries[0]}
    if device.type == "cuda":
        wait_for(device)
        before = torch.cuda.memory_allocated(device)
        found = form.training.module(*batch, **carry)
        wait_for(device)
        kept = torch.cuda.memory_allocated(device) - before
        del found
        return kept
    sizes: dict[int, int] = {}
    known = {own_part(parameter).data_ptr() for parameter in form.training.module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        form.training.module(*batch, **carry)
    return sum(sizes.values())

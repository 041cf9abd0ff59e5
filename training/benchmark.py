"""Benchmark of training on random latents, old against new in one run: `python -m training.benchmark`.

Measures a model's update as `training.pretrain` makes it, with the same settings and without data. With
`against=["fabric.compile=false"]`, say, the same training with other settings is measured in turn with it.
Prints tables and writes OUT/benchmark.json.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

from training.cli.entry import entry
from training.data.latents import DataConfig
from training.engine.fabric import (
    FabricConfig,
    Passes,
    choose_precision,
    make_fabric,
    product_dtype_of,
    share_passes,
)
from training.engine.lock import is_first_process, locked_folder
from training.engine.loop import LoopConfig
from training.engine.optimizers import OptimizerConfig
from training.engine.step import StepConfig, check_step
from training.objectives.flow_matching import SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig
from training.objectives.outcome import OutcomeLossConfig
from training.suites.training_cost import (
    Form,
    compare,
    describe_times,
    flops_of_row,
    kept_bytes,
    peak_of,
    random_video,
    time_in_turn,
)
from training.suites.training_profile import KINDS, profile_update
from training.world.batches import make_batches, make_passes
from training.world.settings import MAX_SEQUENCES, TrainWorldConfig
from training.world.train import begin_training
from worldsim.errors import WorldError
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.text import align
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.model.segments import check_constant_memory
from worldsim.outcome import OutcomeConfig
from worldsim.runtime.timing import seconds_since_start
from worldsim.settings import check_settings, setting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

REPORT_FILE = "benchmark.json"
THIS, AGAINST = "this", "against"
CACHES = {"inductor": "TORCHINDUCTOR_CACHE_DIR", "triton": "TRITON_CACHE_DIR"}
"""Folders of a start's caches, by the variable that names them."""
FIRST_UPDATE = "first update after {:.1f} s"
START_LIMIT_SECONDS = 600
LINES = (
    ("frames/s", "frames_per_second", 0),
    ("TFLOP of an update", "tflop", 3),
    ("TFLOP/s", "tflops_per_second", 2),
    ("share of the peak", "share_of_peak", 3),
    ("peak memory, GiB", "peak_memory_gib", 2),
    ("kept for the gradient, MB a frame", "kept_mb_per_frame", 2),
)
"""Label, key and digits of the lines of a report."""


@dataclass(kw_only=True, slots=True)
class BenchmarkConfig:
    """Settings of `python -m training.benchmark`: those of a training without its data, and its own."""

    out: str = setting("runs/benchmark", "Folder of the report.")
    model: DenoiserConfig = setting(DenoiserConfig, "Shape of the network.")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "What is learned.")
    outcome: OutcomeLossConfig = setting(OutcomeLossConfig, "What outcome heads learn, where there are some.")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "Learning rates at full height.")
    loop: LoopConfig = setting(LoopConfig, "Seed, moving average, global batch; the rest is not used.")
    fabric: FabricConfig = setting(FabricConfig, "Device, precision, distribution.")
    step: StepConfig = setting(StepConfig, "Kernels, precision and memory of an update.")
    batch_size: int = setting(8, "Sequences of a pass.", minimum=1, maximum=MAX_SEQUENCES)
    sequence_length: int = setting(24, "Frames of a segment.", minimum=2)
    segments: int = setting(1, "Segments of a sequence.", minimum=1)
    against: list[str] = setting(
        [],
        "Settings of a second form that is measured in turn with the first, as they are typed; [] is none.",
    )
    num_updates: int = setting(12, "Timed updates of each form; 0 ends after the first update.", minimum=0)
    num_warmup: int = setting(3, "Updates of each form before these.", minimum=1)
    measure_start: bool = setting(
        True,
        "Measure the seconds from a command to its first update, in processes of their own: with empty "
        "caches of compiled code, and with the caches of that process.",
    )
    peak_tflops: float = setting(
        0.0, "Dense products of one device in the training's precision, TFLOP/s; 0 looks it up.", minimum=0
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.segments > 1:
            check_constant_memory(self.model)

    def training(self) -> TrainWorldConfig:
        """Return the settings of the training."""
        names = {each.name for each in fields(TrainWorldConfig)} & {each.name for each in fields(self)}
        shared = {name: getattr(self, name) for name in names - {"out"}}
        return TrainWorldConfig(out=self.out, data=DataConfig(train=[], heldout=[]), **shared)


def with_settings(config: BenchmarkConfig, given: list[str]) -> BenchmarkConfig:
    """Return a configuration with other settings, each given as `name=value`."""
    for each in given:
        if not re.fullmatch(r"[\w.]+=.*", each):
            raise WorldError(f"against: {each!r} is not of the form name=value")
    merged = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(given))
    changed = OmegaConf.to_object(merged)
    assert isinstance(changed, BenchmarkConfig)
    return changed


def update_flops(config: BenchmarkConfig, denoiser: Denoiser, passes: Passes, fabric: Fabric) -> float:
    """Return the operations in products of an update: those of a row, times the rows.

    Rows with the model's own context go through the network forward once more for each of its depths.
    """
    objective = replace(config.objective, own_context_share=0.0)
    settings = replace(config.training(), batch_size=1, segments=1, objective=objective)
    video = random_video(config.model, 2 * config.sequence_length, fabric.device, 0)
    module = SequenceFlowMatching(denoiser.to(fabric.device).train(), objective)
    with fabric.autocast():
        forward, both = flops_of_row(module, make_batches(video, settings, 0)(0))
    own = round(config.objective.own_context_share * config.batch_size) * config.objective.own_context_depth
    return float(passes.total * (both * config.batch_size + forward * own))


def make_form(config: BenchmarkConfig) -> Form:
    """Return a form to measure, after its first updates."""
    fabric = make_fabric(config.fabric, Path(config.out))
    device, settings = fabric.device, config.training()
    check_step(
        config.step,
        device,
        config.model,
        is_compiled=config.fabric.compile,
        is_sharded=config.fabric.strategy == "fsdp",
        dtype=product_dtype_of(config.fabric),
    )
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    passes = share_passes(fabric, config.batch_size, config.loop.global_batch_size)
    length = 2 * config.segments * config.sequence_length
    parts = [random_video(config.model, length, device, seed) for seed in passes.own]
    torch.manual_seed(config.loop.seed)
    denoiser = Denoiser(config.model)
    flops = update_flops(config, denoiser, passes, fabric) if config.num_updates else 0.0
    has_heads = config.model.outcome_heads
    training = begin_training(
        settings, denoiser, OutcomeConfig() if has_heads else None, parts, passes, fabric
    )
    batch_at = make_passes(parts, settings, passes, with_outcomes=has_heads)
    frames = passes.total * config.batch_size * config.sequence_length
    form = Form(fabric, training, batch_at, frames, flops, config.loop.clip_norm, config.step)
    form.update()
    if not config.num_updates:
        fabric.print(FIRST_UPDATE.format(seconds_since_start()), flush=True)
        return form
    for _ in range(config.num_warmup):
        form.update()
    form.resident_bytes = torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0
    return form


def measure(config: BenchmarkConfig, form: Form, others: list[Form]) -> dict[str, Any]:
    """Return all that is said of a form once it was timed, as a JSON object."""
    device = form.fabric.device
    known = config.peak_tflops or peak_of(device, choose_precision(config.fabric))
    peak = form.peak_bytes - sum(other.resident_bytes for other in others)
    frames = config.batch_size * config.sequence_length
    return {
        **describe_times(form, known),
        "peak_memory_gib": peak / 2**30 if form.peak_bytes else None,
        "kept_mb_per_frame": kept_bytes(form) / frames / 1e6,
        "profile": profile_update(form.update, device),
    }


def start_seconds() -> dict[str, float]:
    """Return the seconds from this command to its first update, without compiled code and with it."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {variable: str(Path(folder) / name) for name, variable in CACHES.items()}
        changed = [f"out={folder}/out", "against=[]", "num_updates=0", "measure_start=false"]
        for state in ("cold", "warm"):
            run = subprocess.run(
                [sys.executable, "-m", "training.benchmark", *sys.argv[1:], *changed],
                env=os.environ | caches,
                capture_output=True,
                text=True,
                timeout=START_LIMIT_SECONDS,
            )
            told = re.search(FIRST_UPDATE.format(0).replace("0.0", r"([0-9.]+)"), run.stdout)
            if run.returncode or told is None:
                last = (run.stderr.strip() or "no output").splitlines()[-1]
                raise WorldError(f"the start could not be measured: {last.removeprefix('error: ')}")
            found[f"{state}_seconds"] = float(told[1])
    return found


def format_report(data: dict[str, Any]) -> str:
    """Return the numbers of a report as tables."""
    forms: dict[str, Any] = data["forms"]
    rows = [("", *forms)]
    for label, key, digits in LINES:
        values = [form[key] for form in forms.values()]
        rows.append((label, *("-" if value is None else f"{value:,.{digits}f}" for value in values)))
    profiles = [form["profile"] for form in forms.values()]
    rows.append(("kernels", *(f"{profile['kernels']:,}" for profile in profiles)))
    for kind in KINDS:
        rows.append((f"  {kind}, ms", *(f"{profile['milliseconds'][kind]:.1f}" for profile in profiles)))
    text = align(rows)
    if (ratio := data.get("ratio")) is not None:
        ends = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
        text += f"\n{THIS} over {AGAINST}, frames/s: {ratio['mean']:.3f} ({ends})"
    if (start := data.get("start")) is not None:
        text += f"\nfirst update after {start['cold_seconds']:.1f} s cold, {start['warm_seconds']:.1f} s warm"
    return text


@entry("benchmark", BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    """Measure what an update costs."""
    configs = {THIS: config} | ({AGAINST: with_settings(config, config.against)} if config.against else {})
    out = Path(config.out)
    with locked_folder(out):
        starts = config.measure_start and config.num_updates and is_first_process()
        start = start_seconds() if starts else None
        forms = {name: make_form(each) for name, each in configs.items()}
        if not config.num_updates:
            return
        time_in_turn(forms, config.num_updates)
        fabric = forms[THIS].fabric
        found = {
            name: measure(configs[name], form, [other for other in forms.values() if other is not form])
            for name, form in forms.items()
        }
        precision = product_dtype_of(config.fabric)
        data = describe_run(fabric.device, precision) | {"devices": fabric.world_size, "forms": found}
        data |= {"settings": {name: asdict(each) for name, each in configs.items()}}
        data |= {"parameters": sum(p.numel() for p in forms[THIS].training.module.parameters())}
        if AGAINST in forms:
            data["ratio"] = compare(forms[THIS], forms[AGAINST])
        if start is not None:
            data["start"] = start
        if fabric.global_rank == 0:
            Report(out / REPORT_FILE, data).write()
        fabric.print(f"\n{format_report(data)}\n\nwritten to {out / REPORT_FILE}")


if __name__ == "__main__":
    main()

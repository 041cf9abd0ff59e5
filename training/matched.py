"""Training of models that differ in their memory alone: `python -m training.matched fabric=gpu`.

All see the same data in the same order for the same number of updates, from the same seed:

    none, time, path   hybrid models whose memory's keys are turned by nothing, by the clock, or by the path
    window             every layer sees the latest frames, as many as take the bytes of a hybrid's state
    full               every layer sees all frames, and finds them by the path, too: the upper bound, whose
                       cache grows

Each is a run of `training.pretrain` in OUT/NAME, with its world in OUT/NAME/world; the same command goes on
where it was stopped. OUT/matched.json says what each of them keeps in memory. The control whose state is
emptied is an evaluation of one of the hybrid models and needs no training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from training.cli.entry import entry
from training.engine.lock import LOCK_FILE
from training.world.settings import PretrainConfig
from training.world.train import build_world, pretrain
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryPhase
from worldsim.model.memory.state import MemoryState, empty_memory
from worldsim.settings import setting
from worldsim.storage.files import write_json
from worldsim.storage.tensors import read_object

WINDOW, FULL = "window", "full"
NAMES = (*MemoryPhase, WINDOW, FULL)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""In which worlds are played; matrices of the state are fp32 in both."""
SUMMARY_FILE = "matched.json"


@dataclass(kw_only=True, slots=True)
class MatchedConfig(PretrainConfig):
    """Settings of `python -m training.matched`, beside those of `training.pretrain`."""

    only: list[str] = setting(
        ["path", "window", "full", "time", "none"],
        "Which models to train, in this order: none, time, path, window, full. Several machines share the "
        "work by training some each into the same folder.",
    )
    window_frames: int = setting(
        0,
        "Frames that the window model sees beside the first and the current one; 0 is the smallest number "
        "whose cache is not smaller than a hybrid model's state.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super(MatchedConfig, self).__post_init__()
        if not self.only or len(set(self.only)) < len(self.only) or not set(self.only) <= set(NAMES):
            raise WorldError(f"only takes different ones of {', '.join(NAMES)}, got {list(self.only)}")
        if self.segments > 1:
            raise WorldError(f"segments must be 1, as the full model needs it, got {self.segments}")
        if self.step.graphs and FULL in self.only:
            raise WorldError(
                "step.graphs=true cannot replay the full model's passes: leave it out of only=[...], and "
                "train it by a command of its own, without graphs"
            )


def memory_after(config: DenoiserConfig, dtype: torch.dtype, num_frames: int) -> MemoryState:
    """Return what a model keeps of one game after some frames, in shape and type only."""
    memory = empty_memory(config, 1, dtype, torch.device("meta"))
    if memory.past is None:
        return memory
    layers, batch, heads, _, tokens, width = memory.past.keys.shape
    kept = torch.empty(layers, batch, heads, num_frames, tokens, width, dtype=dtype, device="meta")
    return replace(memory, past=type(memory.past).of(kept, kept))


def memory_bytes(config: DenoiserConfig, dtype: torch.dtype, num_frames: int = 0) -> int:
    """Return the bytes of what a model keeps of one game after some frames."""
    return sum(tensor.nbytes for tensor in memory_after(config, dtype, num_frames).tensors().values())


def with_phase(hybrid: DenoiserConfig, phase: MemoryPhase) -> DenoiserConfig:
    """Return the shape with another phase of the memory; who follows no path needs no odometry."""
    odometry = hybrid.path_odometry and phase is MemoryPhase.PATH
    return replace(hybrid, memory_phase=str(phase), path_odometry=odometry)


def window_model(hybrid: DenoiserConfig, window: int) -> DenoiserConfig:
    """Return the shape of the model whose layers all see `window` frames."""
    layers = list(range(hybrid.num_layers))
    return with_phase(replace(hybrid, window_layers=layers, window=window), MemoryPhase.NONE)


def full_model(hybrid: DenoiserConfig) -> DenoiserConfig:
    """Return the shape of the model whose layers all see all frames."""
    layers = list(range(hybrid.num_layers))
    shape = with_phase(hybrid, MemoryPhase.PATH)
    return replace(shape, window_layers=[], full_layers=layers, full_path=True)


def choose_window(hybrid: DenoiserConfig) -> int:
    """Return the smallest window whose cache is not smaller than a hybrid's state, in any dtype."""
    window = 1
    while any(
        memory_bytes(window_model(hybrid, window), dtype) < memory_bytes(hybrid, dtype)
        for dtype in DTYPES.values()
    ):
        window += 1
    return window


def models(hybrid: DenoiserConfig, window_frames: int = 0) -> dict[str, DenoiserConfig]:
    """Return the shapes of all models by name; `hybrid` is that of the hybrid ones.

    Raises:
        WorldError: If it has full layers.
    """
    if hybrid.full_layers:
        raise WorldError(f"model is the hybrid one, without full_layers, got {hybrid.full_layers}")
    shapes = {str(phase): with_phase(hybrid, phase) for phase in MemoryPhase}
    shapes[WINDOW] = window_model(hybrid, window_frames or choose_window(hybrid))
    return shapes | {FULL: full_model(hybrid)}


def runs(config: MatchedConfig) -> dict[str, MatchedConfig]:
    """Return the settings of `training.pretrain` for each model that is to be trained.

    Raises:
        WorldError: If they ask for several devices.
    """
    if config.fabric.devices != "1":
        raise WorldError(
            f"matched models train on one device each, got fabric.devices={config.fabric.devices}: let "
            "several commands share the work by only=[...]"
        )
    shapes = models(with_shapes(config).model, config.window_frames)
    folder = Path(config.out)
    # A run goes on whatever else was trained beside it, so its settings name it alone.
    return {
        name: replace(config, out=str(folder / name), model=shapes[name], only=[name], window_frames=0)
        for name in config.only
    }


def with_shapes(config: MatchedConfig) -> MatchedConfig:
    """Return the settings with the model's latent shape and buttons filled in from codec and data."""
    world = build_world(config, DatasetInfo.load(Path(config.data.train[0])))
    return replace(config, model=world.config.denoiser)


def describe(config: PretrainConfig) -> dict[str, Any]:
    """Return what a model weighs and keeps in memory, as a JSON object."""
    world = build_world(config, DatasetInfo.load(Path(config.data.train[0])))
    shape = world.config.denoiser
    sizes = {name: memory_bytes(shape, dtype) for name, dtype in DTYPES.items()}
    grown = {name: memory_bytes(shape, dtype, 1) - sizes[name] for name, dtype in DTYPES.items()}
    return {
        "world": str(Path(config.out) / "world"),
        "layers": shape.layer_counts,
        "memory_phase": shape.memory_phase,
        "window": shape.window if shape.window_layers else None,
        "parameters": sum(parameter.numel() for parameter in world.denoiser.parameters()),
        "memory_bytes": sizes,
        "bytes_more_each_frame": grown,
    }


def write_summary(folder: Path, described: dict[str, dict[str, Any]]) -> None:
    """Write `matched.json`; models that another command described there are kept."""
    path = folder / SUMMARY_FILE
    folder.mkdir(parents=True, exist_ok=True)
    # Another command may add its own models at the same moment.
    with FileLock(folder / f".{SUMMARY_FILE}{LOCK_FILE}"):
        known = read_object(path).get("models", {}) if path.is_file() else {}
        write_json(path, {"models": known | described})


def tell(described: dict[str, dict[str, Any]]) -> str:
    """Return a table of what the models keep in memory."""
    lines = [f"{'model':8}{'parameters':>12}{'bytes, fp32':>14}{'bytes, bf16':>14}  and each frame, fp32"]
    for name, model in described.items():
        sizes, grown = model["memory_bytes"], model["bytes_more_each_frame"]["fp32"]
        lines.append(
            f"{name:8}{model['parameters']:12,}{sizes['fp32']:14,}{sizes['bf16']:14,}  {grown:,}"
            + (f"  (window of {model['window']})" if name == WINDOW else "")
        )
    return "\n".join(lines)


@entry("matched", MatchedConfig)
def main(config: MatchedConfig) -> None:
    """Train the models, one after the other."""
    if not config.data.train:
        raise WorldError("data.train names no folder of gameplay video")
    chosen = runs(config)
    described = {name: describe(run) for name, run in chosen.items()}
    write_summary(Path(config.out), described)
    print(tell(described), flush=True)
    for name, run in chosen.items():
        print(f"training {name}", flush=True)
        torch.compiler.reset()  # what was compiled for the shape before is of no use for this one
        pretrain(run)
    worlds = ",".join(f"{name}:{described[name]['world']}" for name in chosen)
    print(f"measure them with: python -m training.evaluate suite=consistency 'worlds={{{worlds}}}'")


if __name__ == "__main__":
    main()

"""Models that differ in their memory alone: the same settings for all, the same bytes for the window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.engine.step import StepConfig
from training.matched import (
    DTYPES,
    NAMES,
    MatchedConfig,
    choose_window,
    main,
    memory_bytes,
    models,
    runs,
)
from training.world.validation import ValidationConfig
from worldsim.codec import CodecConfig, FrameCodec, save_codec
from worldsim.data.episodes import EpisodeWriter
from worldsim.errors import WorldError
from worldsim.games.grid_recall import GRID_RECALL
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.world import World

SHAPE = DenoiserConfig(
    latent_shape=[16, 14, 14],
    num_values=[3, 3],
    dim=32,
    ffn_dim=32,
    num_heads=2,
    num_layers=2,
    window_layers=[0],
    window=1,
    memory_keys="plane",
)
FRAMES = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an untrained codec, and video of noise with the buttons of grid recall."""
    folder = tmp_path_factory.mktemp("matched")
    torch.manual_seed(0)
    shape = CodecConfig(
        height=112, width=112, widths=[2, 2, 2], encoder_blocks=[0] * 3, decoder_blocks=[0] * 3
    )
    save_codec(FrameCodec(shape), folder / "codec")
    info, rng = GRID_RECALL.dataset_info("noise"), np.random.default_rng(0)
    for split in ("train", "heldout"):
        info.save(folder / split)
        with EpisodeWriter(folder / split, "episode", info) as writer:
            for index in range(FRAMES):
                action = None if index == FRAMES - 1 else rng.integers(3, size=2)
                writer.add(rng.integers(256, size=(112, 112, 3), dtype=np.uint8), action)
    return folder


def settings(files: Path, out: Path, **changes: object) -> MatchedConfig:
    config = MatchedConfig(
        out=str(out),
        name="grid-recall",
        codec=str(files / "codec"),
        model=replace(SHAPE),
        data=DataConfig(train=[str(files / "train")], heldout=[str(files / "heldout")], cache_latents=False),
        loop=LoopConfig(num_steps=1, warmup_steps=1),
        fabric=FabricConfig(accelerator="cpu", precision="32-true"),
        validation=ValidationConfig(num_rollouts=1, context_frames=2, horizons=[1]),
        batch_size=1,
        sequence_length=4,
        num_starts=1,
        start_frames=2,
    )
    return replace(config, **changes)


def real_bytes(shape: DenoiserConfig, frames: int) -> int:
    """Return the size of a memory after some frames were really committed."""
    denoiser = Denoiser(shape).eval()
    memory = denoiser.initial_memory(1)
    for _ in range(frames):
        context = denoiser.observe(torch.zeros(1, 2, dtype=torch.int64), memory)
        memory = denoiser.commit(torch.randn(1, *denoiser.latent_shape), torch.zeros(1), context, memory)
    return sum(tensor.nbytes for tensor in memory.tensors().values())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bytes_are_those_that_a_memory_takes(name: str) -> None:
    shape = models(SHAPE)[name]
    assert memory_bytes(shape, torch.float32, 3) == real_bytes(shape, 3)
    assert (memory_bytes(shape, torch.float32, 4) > real_bytes(shape, 3)) == (name == "full")


@pytest.mark.parametrize("change", [{}, {"dim": 256, "num_heads": 2}, {"window": 9}, {"num_layers": 9}])
def test_the_window_takes_no_fewer_bytes_than_the_state_and_one_frame_less_would(change: dict) -> None:
    hybrid = replace(SHAPE, **change)
    window = choose_window(hybrid)
    fits = [
        all(
            memory_bytes(replace(models(hybrid)["window"], window=frames), dtype)
            >= memory_bytes(hybrid, dtype)
            for dtype in DTYPES.values()
        )
        for frames in range(1, window + 1)
    ]
    assert fits == [False] * (window - 1) + [True]
    assert models(hybrid)["window"].window == window
    assert models(hybrid, window_frames=7)["window"].window == 7


def test_models_differ_in_their_memory_alone(files: Path, tmp_path: Path) -> None:
    chosen = runs(settings(files, tmp_path, only=list(NAMES)))
    assert {name: run.model.memory_phase for name, run in chosen.items()} == {
        "none": "none",
        "time": "time",
        "path": "path",
        "window": "none",
        "full": "path",
    }
    assert chosen["window"].model.window_layers == chosen["full"].model.full_layers == [0, 1]
    assert chosen["full"].model.full_path and not chosen["path"].model.full_path
    kinds = {"memory_phase", "window_layers", "full_layers", "full_path", "window"}
    shapes = [
        {key: getattr(run.model, key) for key in DenoiserConfig.__dataclass_fields__ if key not in kinds}
        for run in chosen.values()
    ]
    rest = [replace(run, out="", model=SHAPE, only=["path"]) for run in chosen.values()]
    assert all(shape == shapes[0] for shape in shapes) and all(run == rest[0] for run in rest)
    assert chosen["path"].out == str(tmp_path / "path")


def test_command_trains_the_chosen_ones_and_says_what_they_keep(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.run(settings(files, tmp_path, only=["path", "window"]))
    main.run(settings(files, tmp_path, only=["full"]))
    told = json.loads((tmp_path / "matched.json").read_text())["models"]
    assert set(told) == {"path", "window", "full"}
    printed = capsys.readouterr().out
    for name, model in told.items():
        world = World.from_pretrained(tmp_path / name / "world")
        assert str(tmp_path / name / "world") == model["world"]
        assert sum(parameter.numel() for parameter in world.denoiser.parameters()) == model["parameters"]
        assert f"{model['memory_bytes']['fp32']:,}" in printed
    assert told["window"]["memory_bytes"]["bf16"] >= told["path"]["memory_bytes"]["bf16"]
    assert told["full"]["bytes_more_each_frame"]["fp32"] == 2 * 2 * 49 * 32 * 4, (
        "keys and values of two layers"
    )
    assert told["path"]["bytes_more_each_frame"] == {"fp32": 0, "bf16": 0}
    main.run(settings(files, tmp_path, only=["path"]))
    assert "is finished: 1 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"only": []}, "only takes different ones of none, time, path, window, full, got"),
        ({"only": ["path", "path"]}, "only takes different ones"),
        ({"only": ["lstm"]}, r"got \['lstm'\]"),
        ({"window_frames": -1}, "window_frames must be at least 0, got -1"),
        ({"segments": 2}, "segments must be 1"),
        ({"step": StepConfig(graphs=True)}, r"step.graphs=true .* the full model's .* out of only=\[...\]"),
        ({"fabric": FabricConfig(devices="2")}, "share the work by only"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, message: str, files: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=message):
        runs(settings(files, tmp_path, **change))


def test_only_models_that_follow_a_path_look_at_what_frames_show_of_it() -> None:
    shapes = models(replace(SHAPE, path_odometry=True))
    assert {name for name, shape in shapes.items() if shape.path_odometry} == {"path", "full"}


def test_a_hybrid_model_has_no_full_layers() -> None:
    with pytest.raises(WorldError, match=r"model is the hybrid one, without full_layers, got \[1\]"):
        models(replace(SHAPE, full_layers=[1]))

"""A video world becomes a hybrid one in two stages, exactly resumed, whole or spread over devices."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conversions import convert_killed_once
from tests.devices import needs_fork, run_on_devices
from tests.video_worlds import CAUSAL, ONE, convert_config, load, make_world
from tests.wan_models import REASON
from training.convert import main as convert_world
from training.engine.optimizers import OptimizerConfig, make_partial_optimizers
from training.objectives.lora import LoraConfig, add_lora
from training.objectives.video import VideoLayerDistillation, VideoVelocityDistillation
from training.video.conversion import build_student
from worldsim.errors import WorldError
from worldsim.model.conversion import HybridConfig
from worldsim.simulator import Simulator
from worldsim.wan.conversion import new_parameters

pytest.importorskip("diffusers", reason=REASON)
LAYERS = [0, 1, 3]
"""Three quarters of four, the other in the middle."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a world, gameplay video, and a finished conversion, `whole`."""
    folder = tmp_path_factory.mktemp("video")
    make_world(folder)
    convert_world.run(convert_config(folder, "whole"))
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load(folder).transformer.state_dict()


def test_a_converted_world_plays_from_a_state_of_constant_size(root: Path) -> None:
    world, teacher = load(root / "whole" / "world"), load(root / "teacher" / "world")
    assert world.config.transformer.hybrid_layers == LAYERS
    simulator, sizes = Simulator(world), []
    state = simulator.start(world.starts[:1], [0])
    for _ in range(9):
        frames, state = simulator.step(state, torch.tensor([[1, 0, 2]]))
        sizes.append(state.memory.nbytes)
    assert frames.shape == (1, 32, 64, 3)
    assert len(set(sizes)) == 1
    # Per layer two frames of 8 tokens as keys and values, or a matrix for each of two heads.
    pairs, matrices = 2 * 2 * 8 * 24 * 4, 2 * 12 * 12 * 4
    assert teacher.initial_memory(1).nbytes - world.initial_memory(1).nbytes == 3 * (pairs - matrices)


@pytest.mark.slow
def test_the_command_plays_it(root: Path) -> None:
    command = [sys.executable, "play.py", f"world={root / 'whole' / 'world'}", "headless=true", "steps=2"]
    played = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert played.returncode == 0, played.stderr


def test_the_card_tells_stages_share_and_half_lives(root: Path) -> None:
    provenance = load(root / "whole" / "world").config.provenance
    told = provenance["conversion"]
    assert told["hybrid layers"] == "0, 1, 3"
    assert told["other layers"] == "2 see 3 latent frames with their own"
    assert told["video"] == "latent frames of four frames each, frames of 48 x 32 scaled to 64 x 32"
    for stage in ("stage 1", "stage 2"):
        assert "2 updates on 16 frames" in told[stage]
        assert "parameters trained" in told[stage] and "held-out loss" in told[stage]
    for layer in LAYERS:
        assert provenance["memory"][f"half-lives of layer {layer}"].startswith("median ")


def test_stage_1_changes_the_new_parameters_and_stage_2_the_adapted_weights_beside(root: Path) -> None:
    teacher = load(root / "teacher" / "world")
    before = teacher.transformer.state_dict()
    first, second = weights(root / "whole" / "stage1" / "world"), weights(root / "whole" / "world")
    for name, tensor in before.items():
        assert torch.equal(first[name], tensor), name
    fresh = new_parameters(build_student(teacher, LAYERS, HybridConfig(), 0))
    assert {name for name, each in fresh.items() if not torch.equal(first[name], each)} == set(fresh)
    changed = {name for name in second if not torch.equal(second[name], first[name].bfloat16().float())}
    parts = [f"self_attn.{part}" for part in "qkv"] + ["ffn.0", "ffn.2"]
    adapted = {f"blocks.{layer}.{part}.weight" for layer in LAYERS for part in parts}
    assert adapted <= changed <= adapted | set(fresh)


def test_video_is_encoded_once_for_all_stages_and_commands(root: Path) -> None:
    def written() -> dict[Path, int]:
        files = (root / "data" / "latents").rglob("*.safetensors")
        return {file: file.stat().st_mtime_ns for file in files}

    before = written()
    assert len(before) == 2
    convert_world.run(convert_config(root, "again", 1, stages=[1]))
    assert written() == before


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_conversion_killed_in_either_stage_ends_with_the_same_weights(
    root: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convert_config(root, f"killed-{stage}")
    convert_killed_once(config, stage, 1, monkeypatch)
    whole, resumed = weights(root / "whole" / "world"), weights(Path(config.out) / "world")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.slow
@needs_fork
def test_weights_spread_over_two_devices_learn_what_whole_ones_do(root: Path) -> None:
    worlds = {}
    for strategy in ("ddp", "fsdp"):
        fabric = replace(ONE, devices="2", strategy=strategy, precision="bf16-mixed")
        config = convert_config(root, strategy, fabric=fabric)
        assert run_on_devices(lambda config=config: convert_world.run(config)) == [0, 0]
        worlds[strategy] = weights(root / strategy / "world")
        told = load(root / strategy / "world").config.provenance["conversion"]
        assert all("2 updates on 32 frames" in told[stage] for stage in ("stage 1", "stage 2"))
    for name, tensor in worlds["ddp"].items():
        torch.testing.assert_close(worlds["fsdp"][name], tensor, rtol=1e-2, atol=1e-4, msg=name)


def learn(module: Any, rate: float) -> list[float]:
    """Train what requires a gradient on one random clip; returns the losses."""
    (optimizer,) = make_partial_optimizers(
        [p for p in module.parameters() if p.requires_grad], OptimizerConfig(muon=0.0, adamw=rate)
    )
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 4, 8, generator=generator)
    actions, losses = torch.randint(2, (1, 4, 3), generator=generator), []
    for _ in range(8):
        loss = module(latents, actions, torch.Generator().manual_seed(1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("hybrid", [HybridConfig(), HybridConfig(memory_phase="none", gates="published")])
def test_new_layers_learn_to_say_what_the_old_ones_said_and_then_the_whole(
    root: Path, hybrid: HybridConfig
) -> None:
    teacher = load(root / "teacher" / "world")
    student = build_student(teacher, LAYERS, hybrid, 0)
    for parameter in new_parameters(student).values():
        parameter.requires_grad_(True)
    given = (teacher.transformer, CAUSAL, student, CAUSAL, teacher.text)
    losses = learn(VideoLayerDistillation(*given), 5e-2)
    assert losses[-1] < 0.9 * losses[0]
    add_lora(student, LoraConfig(rank=8))
    losses = learn(VideoVelocityDistillation(*given, 0.0), 3e-3)
    assert losses[-1] < 0.9 * losses[0]


def test_a_student_as_its_own_teacher_has_nothing_to_learn(root: Path) -> None:
    teacher = load(root / "teacher" / "world")
    student = build_student(teacher, LAYERS, HybridConfig(), 0)
    given = (student, CAUSAL, student, CAUSAL, teacher.text)
    latents, actions = torch.randn(1, 4, 16, 4, 8), torch.zeros(1, 4, 3, dtype=torch.int64)
    for module in (VideoLayerDistillation(*given), VideoVelocityDistillation(*given, 0.0)):
        assert module(latents, actions, torch.Generator().manual_seed(0))["loss"] < 1e-10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rest": "full"}, "rest=full: a video world's layers see a window"),
        ({"hybrid": HybridConfig(memory_phase="path")}, "memory_phase of a video world is time or none, got"),
        ({"hybrid": HybridConfig(memory_keys="plane")}, r"hybrid\.memory_keys says nothing of a video world"),
        ({"layers": [4]}, "layers names layers 4; the teacher has layers 0 to 3"),
        ({"fabric": replace(ONE, compile=True)}, "blocks of a video world are not compiled"),
    ],
)
def test_settings_that_do_not_fit_are_said(root: Path, changes: dict[str, Any], reason: str) -> None:
    config = convert_config(root, "refused", **changes)
    with pytest.raises(WorldError, match=reason):
        convert_world.run(config)
    assert not Path(config.out).exists()


def test_a_sequence_too_long_or_too_short_is_said(root: Path) -> None:
    for length, reason in ((7, "fit into no episode of"), (1, "must be at least 2")):
        with pytest.raises(WorldError, match=reason):
            config = convert_config(root, "refused")
            config.stage1 = replace(config.stage1, sequence_length=length)
            convert_world.run(config)


def test_a_converted_world_is_no_teacher(root: Path) -> None:
    with pytest.raises(WorldError, match=r"is hybrid already \(layers 0, 1, 3\)"):
        convert_world.run(convert_config(root, "twice", teacher=str(root / "whole" / "world")))

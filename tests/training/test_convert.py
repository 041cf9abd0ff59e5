"""A softmax world becomes a hybrid one in two stages, exactly resumed, on one device or two."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training.conversion.stage
import training.convert
from tests.conversions import LAYERS, convert_config, convert_killed_once, save_tiny_teacher
from tests.devices import needs_fork, run_on_devices
from tests.fakes import tiny_world, write_tiny_dataset
from training.conversion.selection import teacher_digest
from training.conversion.settings import check_out
from training.convert import main as convert_world
from training.engine.fabric import FabricConfig
from training.engine.optimizers import OptimizerConfig, make_partial_optimizers
from training.objectives.distillation import LayerDistillation, VelocityDistillation
from training.objectives.lora import LoraConfig, add_lora
from training.objectives.noise import ObjectiveConfig
from worldsim.errors import WorldError
from worldsim.model.config import MemoryPhase
from worldsim.model.conversion import HybridConfig, Rest, convert, new_parameters, student_config
from worldsim.simulator import Simulator
from worldsim.world.world import MODEL_FILE, World


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a teacher, gameplay video, and a finished conversion, `whole`."""
    folder = tmp_path_factory.mktemp("conversion")
    save_tiny_teacher(folder / "teacher")
    write_tiny_dataset(folder / "data")
    convert_world.run(convert_config(folder, "whole"))
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return World.from_pretrained(folder).denoiser.state_dict()


def test_a_converted_world_is_an_ordinary_world_with_a_memory_that_does_not_grow(root: Path) -> None:
    world = World.from_pretrained(root / "whole" / "world")
    assert world.config.denoiser.window_layers == [1]
    assert len(world.starts) == 3  # its teacher's
    simulator = Simulator(world)
    state = simulator.start(world.starts[:1], [0])
    sizes = []
    for _ in range(3):
        frames, state = simulator.step(state, torch.tensor([[1, 0, 2]]))
        sizes.append(state.memory.nbytes)
    assert frames.shape == (1, world.config.height, world.config.width, 3)
    assert len(set(sizes)) == 1


def test_the_card_tells_teacher_layers_stages_and_half_lives(root: Path) -> None:
    provenance = World.from_pretrained(root / "whole" / "world").config.provenance
    told = provenance["conversion"]
    assert told["teacher"] == f"tiny, SHA-256 {teacher_digest(World.from_pretrained(root / 'teacher'))}"
    assert told["hybrid layers"] == "0, 2"
    assert told["other layers"] == "1 see 2 frames before their own, and the first"
    for stage in ("stage 1", "stage 2"):
        assert "4 updates on 48 frames" in told[stage]
        assert "parameters trained" in told[stage]
        assert "held-out loss" in told[stage]
    for layer in LAYERS:
        assert provenance["memory"][f"half-lives of layer {layer}"].startswith("median ")
    names = ("of the teacher", "after stage 1", "after stage 2")
    assert all("dB at frame 2" in told[f"roll-outs {name}"] for name in names)
    assert "## Conversion" in (root / "whole" / "world" / "README.md").read_text()


def test_stage_1_changes_nothing_but_the_new_parameters(root: Path) -> None:
    teacher, student = weights(root / "teacher"), weights(root / "whole" / "stage1" / "world")
    assert set(teacher) < set(student)
    for name, tensor in teacher.items():
        assert torch.equal(student[name], tensor), name
    fresh = new_parameters(fresh_student(seed=0))
    moved = {name for name, parameter in fresh.items() if not torch.equal(student[name], parameter)}
    assert moved == set(fresh)


def test_stage_2_changes_the_new_parameters_and_the_adapted_weights_only(root: Path) -> None:
    before, after = weights(root / "whole" / "stage1" / "world"), weights(root / "whole" / "world")
    # A finished world is stored in bf16.
    changed = {name for name in after if not torch.equal(after[name], before[name].bfloat16().float())}
    parts = [f"self_attn.{part}" for part in "qkv"] + ["ffn.0", "ffn.2"]
    adapted = {f"blocks.{layer}.{part}.weight" for layer in LAYERS for part in parts}
    assert adapted <= changed <= adapted | set(new_parameters(fresh_student()))


def fresh_student(seed: int = 0) -> Any:
    """Return the student that the conversion of the tiny teacher begins with."""
    teacher = tiny_world(is_teacher=True, phase=MemoryPhase.NONE).denoiser
    hybrid = HybridConfig()
    shape = student_config(teacher.config, LAYERS, hybrid, Rest.WINDOW, 2)
    torch.manual_seed(seed)
    return convert(teacher, shape, hybrid.memory_scale)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_conversion_killed_in_either_stage_ends_with_the_same_weights(
    root: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convert_config(root, f"killed-{stage}")
    convert_killed_once(config, stage, 2, monkeypatch)
    whole, resumed = weights(root / "whole" / "world"), weights(Path(config.out) / "world")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_stages_can_run_one_at_a_time(root: Path) -> None:
    convert_world.run(convert_config(root, "apart", stages=[1]))
    assert not (root / "apart" / "world").exists()
    convert_world.run(convert_config(root, "apart", stages=[2]))
    whole, apart = weights(root / "whole" / "world"), weights(root / "apart" / "world")
    for name, tensor in whole.items():
        assert torch.equal(tensor, apart[name]), name


def test_a_finished_conversion_is_left_as_it_is(root: Path) -> None:
    files = [root / "whole" / part / MODEL_FILE for part in ("world", "stage1/world")]
    before = [file.stat().st_mtime_ns for file in files]
    convert_world.run(convert_config(root, "whole"))
    assert [file.stat().st_mtime_ns for file in files] == before


@pytest.mark.parametrize("stage", [1, 2])
def test_a_longer_stage_killed_before_its_world_is_written_writes_it_later(
    root: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convert_config(root, f"longer-{stage}", num_steps=1, stages=[1] if stage == 1 else [1, 2])
    convert_world.run(config)
    (config.stage1 if stage == 1 else config.stage2).loop.num_steps = 2

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.convert, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            convert_world.run(config)
    convert_world.run(config)
    place = Path(config.out) / ("stage1/world" if stage == 1 else "world")
    told = World.from_pretrained(place).config.provenance["conversion"]
    assert told[f"stage {stage}"].startswith("2 updates on 24 frames")


def test_what_stage_2_goes_on_from_is_not_replaced(root: Path) -> None:
    file = root / "whole" / "stage1" / "world" / MODEL_FILE
    before = file.stat().st_mtime_ns
    longer = convert_config(root, "whole")
    longer.stage1.loop.num_steps = 5
    for stages in ([1, 2], [1]):
        with pytest.raises(WorldError, match=r"from 4 updates of stage 1, and .* is 5; choose another out="):
            convert_world.run(replace(longer, stages=stages))
    assert file.stat().st_mtime_ns == before


def test_the_layers_left_over_can_keep_the_full_cache(root: Path) -> None:
    convert_world.run(convert_config(root, "full", 1, rest="full", window=None))
    world = World.from_pretrained(root / "full" / "world")
    assert (world.config.denoiser.full_layers, world.config.denoiser.window_layers) == ([1], [])


def distil(module: LayerDistillation | VelocityDistillation, rate: float) -> list[float]:
    """Train what requires a gradient on one random clip; returns the losses."""
    (optimizer,) = make_partial_optimizers(
        [p for p in module.parameters() if p.requires_grad], OptimizerConfig(muon=0.0, adamw=rate)
    )
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 5, 4, 4, 6, generator=generator)
    actions, losses = torch.randint(3, (2, 5, 3), generator=generator), []
    for _ in range(30):
        loss = module(latents, actions, torch.Generator().manual_seed(1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_new_layers_learn_to_say_what_the_old_ones_said() -> None:
    teacher = tiny_world(is_teacher=True, phase=MemoryPhase.NONE).denoiser
    student = fresh_student().requires_grad_(False)
    for parameter in new_parameters(student).values():
        parameter.requires_grad_(True)
    losses = distil(LayerDistillation(teacher, student, LAYERS, ObjectiveConfig()), 3e-2)
    assert losses[-1] < 0.7 * losses[0]


def test_a_student_as_its_own_teacher_has_nothing_to_learn_layer_by_layer() -> None:
    """Stage 1 runs the new layers by itself: path, order of frames and streams must be the network's own."""
    student = fresh_student()
    with torch.no_grad():
        for parameter in new_parameters(student).values():
            parameter += 0.1 * torch.randn_like(parameter)
    module = LayerDistillation(student, student, LAYERS, ObjectiveConfig())
    latents, actions = torch.randn(2, 4, 4, 4, 6), torch.randint(3, (2, 4, 3))
    losses = module(latents, actions, torch.Generator().manual_seed(0))
    assert losses.keys() == {"loss", "layer_00", "layer_02"}
    assert losses["loss"] < 1e-10
    # What is compared depends on the path: another one is another loss.
    moved = fresh_student()
    moved.load_state_dict(student.state_dict())
    torch.nn.init.constant_(moved.motion.out.bias, 1.0)
    other = LayerDistillation(student, moved, LAYERS, ObjectiveConfig())
    assert other(latents, actions, torch.Generator().manual_seed(0))["loss"] > 1e-6


def test_the_whole_student_learns_its_teachers_velocity() -> None:
    teacher = tiny_world(is_teacher=True, phase=MemoryPhase.NONE).denoiser
    student = fresh_student()
    add_lora(student, LoraConfig(rank=4))
    losses = distil(VelocityDistillation(teacher, student, ObjectiveConfig(), 0.0), 3e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_a_teacher_as_its_own_student_has_nothing_to_learn_but_the_data() -> None:
    teacher = tiny_world(is_teacher=True, phase=MemoryPhase.NONE).denoiser
    latents, actions = torch.randn(2, 4, 4, 4, 6), torch.randint(3, (2, 4, 3))
    parts = [
        VelocityDistillation(teacher, teacher, ObjectiveConfig(), weight)(
            latents, actions, torch.Generator().manual_seed(0)
        )
        for weight in (0.0, 0.25)
    ]
    assert parts[0]["loss"] == 0
    torch.testing.assert_close(parts[1]["loss"], 0.25 * parts[1]["loss_data"])
    assert parts[1]["loss_data"] > 1


def test_a_converted_world_that_was_trained_further_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "whole", tmp_path / "whole")
    finished = tmp_path / "whole" / "world"
    check_out(convert_config(tmp_path, "whole"), World.from_pretrained(root / "teacher"))
    description = json.loads((finished / "config.json").read_text())
    description["provenance"]["training"] = ["7 updates"]
    (finished / "config.json").write_text(json.dumps(description))
    with pytest.raises(WorldError, match="is a world that no conversion in"):
        check_out(convert_config(tmp_path, "whole"), World.from_pretrained(root / "teacher"))


def test_a_name_that_a_finished_conversion_does_not_have_is_refused(root: Path) -> None:
    file = root / "whole" / "world" / MODEL_FILE
    before = file.stat().st_mtime_ns
    convert_world.run(convert_config(root, "whole", name="tiny"))  # the one it has
    with pytest.raises(WorldError, match=r"was converted under the name 'tiny', which name=other does not"):
        convert_world.run(convert_config(root, "whole", name="other"))
    assert file.stat().st_mtime_ns == before


def test_a_folder_with_other_layers_is_refused(root: Path) -> None:
    with pytest.raises(WorldError, match=r"inputs\.layers was 0,2 and is 0,1"):
        convert_world.run(convert_config(root, "whole", layers=[0, 1]))


@needs_fork
def test_two_devices_convert_one_world_together(root: Path) -> None:
    ddp = FabricConfig(accelerator="cpu", devices="2", strategy="ddp", precision="32-true")
    together = convert_config(root, "together", 2, fabric=ddp)
    assert run_on_devices(lambda: convert_world.run(together)) == [0, 0]
    told = World.from_pretrained(root / "together" / "world").config.provenance["conversion"]
    for stage in ("stage 1", "stage 2"):
        assert "2 updates on 48 frames" in told[stage]  # twice as many as on one device
        assert "on 2 x cpu" in told[stage]
    teacher, student = weights(root / "teacher"), weights(root / "together" / "stage1" / "world")
    for name, tensor in teacher.items():
        assert torch.equal(student[name], tensor), name
    file = root / "together" / "world" / MODEL_FILE
    before = file.stat().st_mtime_ns
    assert run_on_devices(lambda: convert_world.run(together)) == [0, 0]
    assert file.stat().st_mtime_ns == before

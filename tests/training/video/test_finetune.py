"""A video world learns a game and its buttons, which change nothing before the first update."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.video.finetune
from tests.devices import needs_fork, run_on_devices
from tests.fakes import TINY_ACTIONS
from tests.video_worlds import CAUSAL, ONE, finetune_config, load, make_world
from tests.wan_models import REASON
from training.engine.optimizers import OptimizerConfig
from training.finetune import main as finetune
from training.objectives.noise import ObjectiveConfig
from training.objectives.video import VideoFlowMatching
from training.video.finetune import with_buttons
from worldsim.actions import NO_BUTTONS
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.wan.schedule import shifted
from worldsim.world.video import VideoWorld
from worldsim.world.video_config import UNTAUGHT_BUTTONS

pytest.importorskip("diffusers", reason=REASON)
IDLE, PRESSED = [0, 0, 0], [1, 2, 2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a world without buttons, gameplay video, and a finished finetuning, `whole`."""
    folder = tmp_path_factory.mktemp("finetuned")
    make_world(folder, has_buttons=False)
    rates = OptimizerConfig(muon=0.02, adamw=0.02)
    finetune.run(finetune_config(folder, "whole", 3, optimizer=rates))
    return folder


def drawn(world: VideoWorld, action: list[int]) -> np.ndarray:
    env = ARL2WorldEnv(world)
    env.reset(seed=1, options={"start": "from-text"})
    return np.stack([env.step(np.array(action))[0] for _ in range(8)])


def test_buttons_that_are_attached_change_nothing_before_the_first_update(root: Path) -> None:
    teacher = load(root / "teacher" / "world")
    assert teacher.config.actions.axes == (NO_BUTTONS,)
    attached = with_buttons(load(root / "teacher" / "world"), TINY_ACTIONS)
    assert attached.transformer.config.num_values == list(TINY_ACTIONS.num_values)
    before = drawn(teacher, [0])
    for action in (IDLE, PRESSED):
        assert np.array_equal(drawn(attached, action), before)


def test_buttons_have_an_effect_once_they_are_taught(root: Path) -> None:
    world = load(root / "whole" / "world")
    for embedding in world.transformer.action_embedding:
        assert embedding.weight.abs().max() > 0
    assert not np.array_equal(drawn(world, PRESSED), drawn(world, IDLE))
    assert world.config.action_repeat == ARL2WorldEnv(world).action_repeat == 4


def test_the_card_tells_what_was_learned(root: Path) -> None:
    world = load(root / "whole" / "world")
    provenance = world.config.provenance
    (told,) = provenance["training"]
    assert re.match(r"begun from world@\w{16}, then 3 updates on 24 frames, in sequences of 4", told)
    assert told.endswith("latent frames of four frames each, frames of 48 x 32 scaled to 64 x 32")
    assert UNTAUGHT_BUTTONS not in provenance["limits"]
    assert [start.name for start in world.starts] == ["from-text", "start-00"]


def test_a_finetuning_killed_ends_with_the_same_weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_passes = training.video.finetune.make_passes

    def killed(*given: Any) -> Any:
        batch_at = make_passes(*given)

        def stop_at(step: int, number: int) -> Any:
            if step == 2:
                raise KeyboardInterrupt
            return batch_at(step, number)

        return stop_at

    rates = OptimizerConfig(muon=0.02, adamw=0.02)
    config = finetune_config(root, "killed", 3, optimizer=rates)
    with monkeypatch.context() as patch:
        patch.setattr(training.video.finetune, "make_passes", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config)
    finetune.run(config)
    whole = load(root / "whole" / "world").transformer.state_dict()
    for name, tensor in load(root / "killed" / "world").transformer.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.slow
@needs_fork
def test_two_devices_learn_the_same_with_whole_and_with_spread_weights(root: Path) -> None:
    worlds = []
    for strategy in ("ddp", "fsdp"):
        fabric = replace(ONE, devices="2", strategy=strategy)
        config = finetune_config(root, strategy, fabric=fabric)
        assert run_on_devices(lambda config=config: finetune.run(config)) == [0, 0]
        worlds.append(load(root / strategy / "world").transformer.state_dict())
    for name, tensor in worlds[0].items():
        torch.testing.assert_close(worlds[1][name], tensor, rtol=2e-2, atol=1e-3, msg=name)


def test_shares_of_noise_are_even_and_shifted(root: Path) -> None:
    world = load(root / "teacher" / "world")
    module = VideoFlowMatching(world.transformer, CAUSAL, world.text)
    sigmas = module.draw_sigmas((1, 20_000), torch.Generator().manual_seed(0)).flatten()
    for share in (0.1, 0.5, 0.9):
        level = torch.tensor(share, dtype=torch.float64)
        assert float(sigmas.quantile(share)) == pytest.approx(float(shifted(level, CAUSAL.shift)), abs=0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outcome_heads": True}, "outcome_heads=True says nothing of a video world"),
        ({"segments": 2}, "segments=2 says nothing of a video world"),
        ({"objective": ObjectiveConfig(own_context_share=0.5)}, r"objective\.own_context_share says nothing"),
        ({"fabric": replace(ONE, compile=True)}, "blocks of a video world are not compiled"),
    ],
)
def test_settings_that_do_not_fit_are_said(root: Path, changes: dict[str, Any], reason: str) -> None:
    config = finetune_config(root, "refused", **changes)
    with pytest.raises(WorldError, match=reason):
        finetune.run(config)
    assert not (Path(config.out) / "world").exists()

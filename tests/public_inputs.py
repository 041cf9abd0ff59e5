"""The stored worlds, gameplay video and run that `tests/test_public.py` reads, and how they were written.

`python -m tests.public_inputs` writes them anew, all values must then be stored anew, too. There is a reason
for that only if a format changes: that what an older version wrote can still be read is what they are for.
"""

from __future__ import annotations

import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from tests.fakes import (
    TINY_ACTIONS,
    tiny_codec_config,
    tiny_denoiser_config,
    tiny_starts,
    write_outcome_dataset,
    write_turning_dataset,
)
from tests.goldens import INPUTS
from tests.grids import write_recall_set
from tests.public_runs import RESUMED, run_in
from worldsim import state
from worldsim.codec import FrameCodec
from worldsim.model.config import MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.outcome import OutcomeConfig
from worldsim.sampler import SamplerConfig
from worldsim.world import World, WorldConfig


def write_world(folder: Path, *, is_teacher: bool) -> None:
    """Write a world of random weights: a hybrid one with outcome heads, or a softmax one without a path."""
    torch.manual_seed(0)
    phase = MemoryPhase.NONE if is_teacher else MemoryPhase.PATH
    shape = tiny_denoiser_config(phase, is_teacher=is_teacher, outcome_heads=not is_teacher)
    config = WorldConfig(
        name="tiny",
        description="random weights",
        licence="Apache-2.0",
        frame_rate=10.0,
        actions=TINY_ACTIONS,
        denoiser=replace(shape, dim=16, ffn_dim=16, num_heads=1),
        codec=tiny_codec_config(),
        sampler=SamplerConfig(num_steps=2),
        outcome=None if is_teacher else OutcomeConfig(reward_mean=0.6, reward_scale=0.9, end_threshold=0.3),
    )
    codec = FrameCodec(config.codec)
    denoiser = Denoiser(config.denoiser)
    for module in (codec, denoiser):
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    World(config, denoiser, codec).save_pretrained(folder, starts=tiny_starts(2))


def main() -> None:
    """Write all of them."""
    shutil.rmtree(INPUTS, ignore_errors=True)
    INPUTS.mkdir(parents=True)
    write_world(INPUTS / "world", is_teacher=False)
    write_world(INPUTS / "teacher", is_teacher=True)
    write_outcome_dataset(INPUTS / "data", episodes=4, frames=20)
    write_turning_dataset(INPUTS / "turns", frames=30)
    write_recall_set(INPUTS / "recall", 3)
    write_recall_set(INPUTS / "recall", 3, is_paired=True)
    run_in(INPUTS, "pretrain", *RESUMED, "loop.num_steps=4")
    for left in ("events", "world", "exported", "told", "samples"):
        path = INPUTS / "run" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (INPUTS / "run" / ".lock").unlink(missing_ok=True)
    for path in (INPUTS / "run" / "checkpoints").iterdir():
        path.with_suffix(".xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
        path.unlink()
    write_state(INPUTS / "state.safetensors")


def write_state(path: Path) -> None:
    """Write the state of a world after six steps."""
    env = gym.make("worldsim:ARL2World-v0", world=INPUTS / "world", device="cpu", dtype="float32")
    env.reset(seed=5, options={"start": 1})
    for index in range(6):
        env.step(np.array([index % 3, 1, 2]))
    state.save(env.unwrapped.get_state(), path)  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    main()

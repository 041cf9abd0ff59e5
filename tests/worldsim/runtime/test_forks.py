"""A process that was forked after PyTorch had started threads steps on, or says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import save_tiny_world
from worldsim.errors import WorldError
from worldsim.runtime.noise import NoiseAhead

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, signal, sys
import gymnasium as gym, numpy as np, torch, worldsim
torch.set_num_threads(2)
torch.randn(400, 400) @ torch.randn(400, 400)
torch.nn.functional.gelu(torch.randn(1_000_000))  # by now there are threads of OpenMP
make = dict(world=sys.argv[1], device="cpu", dtype="float32")
walk = np.array([1, 0, 2])
{there}
child = os.fork()
if child == 0:
    signal.alarm(60)
    {step}
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print("ended with", code)
"""
AFTER = {
    "one dream": (
        "env = gym.make('ARL2World-v0', **make); env.reset(seed=0); env.step(walk)",
        "env.step(walk)",
    ),
    "many dreams": (
        "envs = gym.make_vec('ARL2World-v0', 4, **make); envs.reset(seed=0); walks = np.tile(walk, (4, 1)); "
        "envs.step(walks)",
        "envs.step(walks); envs.close()",
    ),
    "made there": ("", "env = gym.make('ARL2World-v0', **make); env.reset(seed=0); env.step(walk)"),
}

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
@pytest.mark.parametrize("name", AFTER)
def test_a_forked_process_steps(name: str, tmp_path: Path) -> None:
    there, step = AFTER[name]
    program = PROGRAM.format(there=there, step=step)
    folder = save_tiny_world(tmp_path / "world")
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "ended with 0" in done.stdout, done.stderr


@needs_fork
def test_noise_of_a_gpu_is_refused_where_its_threads_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = NoiseAhead((2, 2), torch.device("cpu"))
    seeds = frames = torch.from_numpy(np.arange(2))
    noise.draw(seeds, frames)
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a child
    with pytest.raises(WorldError, match="was forked after it was loaded.*'spawn' or 'forkserver'"):
        noise.draw(seeds, frames)
    noise.close()

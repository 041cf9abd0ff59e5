"""A hundred thousand steps of a vector environment: `python -m training.evaluate benchmark=endurance`.

The same command goes on where it was stopped; OUT/endurance.json says how it went so far.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from worldsim import state as states
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.evaluation.cost.endurance import Endurance, endure, format_endurance
from worldsim.evaluation.report import report
from worldsim.runtime.interrupt import StopRequest
from worldsim.settings import check_settings, setting
from worldsim.storage.tensors import read_object

ENDURANCE_FILE, STATE_FILE = "endurance.json", "endurance.safetensors"
SECONDS_BETWEEN_WRITES = 10.0


@dataclass(kw_only=True, slots=True)
class EnduranceConfig:
    """How many environments for how long."""

    num_envs: int = setting(8, "Environments at a time.", minimum=1)
    num_steps: int = setting(
        100_000,
        "Steps that each of them makes under random actions, those of earlier runs with the same out "
        "included.",
        minimum=1,
    )
    max_minutes: float = setting(0.0, "Time after which a run stops; 0 is no limit.", minimum=0)
    max_episode_steps: int = setting(500, "Frames after which an episode is cut off.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self, "endurance.")


def benchmark_endurance(
    config: EnduranceConfig,
    world: str,
    out: Path,
    *,
    seed: int,
    device: str,
    dtype: str,
    denoising_steps: int | None,
    compile: str,
) -> None:
    """Step on until there are enough steps or the time is up, and say how it went.

    Raises:
        WorldError: If something becomes no number, memory has grown, or OUT tells of another run.
    """
    envs = ARL2WorldVectorEnv(
        config.num_envs,
        world,
        device=device,
        dtype=dtype,
        denoising_steps=denoising_steps,
        max_episode_steps=config.max_episode_steps,
        autoreset_mode=AutoresetMode.SAME_STEP,
        compile=compile,
    )
    print(f"world {envs.world.identity}, on {envs.device_choice}, {envs.compile_choice}", flush=True)
    head = report.describe_run(
        [shlex.quote(word) for word in sys.orig_argv], envs.world.device, envs.world.dtype
    )
    head |= settings_of(envs) | {"compile": envs.compile_choice.mode}
    try:
        so_far = begin_or_go_on(out, envs, seed)
        run(config, envs, out, head, so_far, seed)
    finally:
        envs.close()
    print(f"\n{format_endurance(so_far, config.num_steps)}\nwritten to {out / ENDURANCE_FILE}")
    if so_far.verdict(config.num_steps)["passed"] is False:
        raise WorldError(f"memory has grown: {out / ENDURANCE_FILE} says when")


def settings_of(envs: ARL2WorldVectorEnv) -> dict[str, Any]:
    """Return what a run that goes on must have in common with the one before."""
    return {
        "world": envs.world.identity,
        "num_envs": envs.num_envs,
        "denoising_steps": envs.simulator.sampler.num_steps,
        "autoreset_mode": envs.autoreset_mode.value,
    }


def run(
    config: EnduranceConfig,
    envs: ARL2WorldVectorEnv,
    out: Path,
    head: dict[str, Any],
    so_far: Endurance,
    seed: int,
) -> None:
    """Step on, and write now and then what happened and where to go on."""
    began = written = time.monotonic()
    progress = tqdm(total=config.num_steps, initial=so_far.num_steps, unit="step")
    with StopRequest() as stop, progress:
        try:
            for _ in endure(envs, config.num_steps, seed=seed, so_far=so_far):
                progress.update(so_far.num_steps - progress.n)
                now = time.monotonic()
                is_up = 0 < 60 * config.max_minutes <= now - began
                if now - written >= SECONDS_BETWEEN_WRITES:
                    save(out, envs, head, so_far, config.num_steps)
                    written = now
                if stop.requested or is_up:
                    break
        except WorldError:
            # The state is broken, so the one that was saved before stays.
            report.write_json(out / ENDURANCE_FILE, head | so_far.to_json(config.num_steps))
            raise
        save(out, envs, head, so_far, config.num_steps)


def begin_or_go_on(out: Path, envs: ARL2WorldVectorEnv, seed: int) -> Endurance:
    """Begin at start moments, or go on from the last state that was saved.

    Raises:
        WorldError: If OUT tells of another world or number of environments, or of a run that failed.
    """
    told, state_file = out / ENDURANCE_FILE, out / STATE_FILE
    saved = read_object(told) if told.is_file() else {}
    for name, ours in settings_of(envs).items() if saved else ():
        if saved.get(name) != ours:
            raise WorldError(
                f"{told} tells of {name} {saved.get(name)}, not {ours}: name another folder with out="
            )
    if isinstance(saved.get("verdict"), dict) and saved["verdict"].get("problem"):
        raise WorldError(f"{told} tells of a run that failed, {saved['verdict']['problem']}: remove it first")
    if not (saved and state_file.is_file()):
        envs.reset(seed=seed)
        return Endurance()
    try:
        so_far = Endurance.from_json(saved)
    except WorldError as error:
        raise WorldError(f"{told}: {error}") from error
    envs.reset(seed=seed + so_far.num_steps)  # the draw of start moments is not part of a state
    envs.set_state(states.load(state_file, world=envs.world.identity))
    return so_far


def save(
    out: Path, envs: ARL2WorldVectorEnv, head: dict[str, Any], so_far: Endurance, num_steps: int
) -> None:
    """Write how it went so far, and where to go on."""
    states.save(envs.get_state(), out / STATE_FILE, world=envs.world.identity)
    report.write_json(out / ENDURANCE_FILE, head | so_far.to_json(num_steps))

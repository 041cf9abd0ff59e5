"""Endurance suite: 100,000 steps of a vector environment, `python -m training.evaluate benchmark=endurance`.

The same command goes on where it was stopped; OUT/endurance.json says how it went so far.
"""

from __future__ import annotations

from pathlib import Path

from gymnasium.vector import AutoresetMode

from training.engine.long_run import run_on
from training.suites.settings import EvaluateConfig
from worldsim import state as states
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.evaluation.cost.endurance import Endurance, endure, format_endurance
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.targets import find

ENDURANCE_FILE, STATE_FILE = "endurance.json", "endurance.safetensors"
SECONDS_BETWEEN_WRITES = 10.0


def benchmark_endurance(config: EvaluateConfig, out: Path) -> None:
    """Step on until there are enough steps or the time is up, and say how it went.

    Raises:
        WorldError: If something becomes NaN or infinite, memory has grown, or OUT tells of another run.
    """
    envs = ARL2WorldVectorEnv(
        config.endurance.num_envs,
        config.world,
        device=config.device,
        dtype=config.dtype,
        denoising_steps=config.denoising_steps,
        max_episode_steps=config.endurance.max_episode_steps,
        autoreset_mode=AutoresetMode.SAME_STEP,
        compile=config.compile,
    )
    print(f"world {envs.world.identity}, on {envs.device_choice}, {envs.compile_choice}", flush=True)
    try:
        so_far, report = endure_on(config, envs, out)
    finally:
        envs.close()
    print(f"\n{format_endurance(so_far, config.endurance.num_steps)}\nwritten to {report.path}")
    if so_far.verdict(config.endurance.num_steps)["passed"] is False:
        raise WorldError(f"memory has grown: {report.path} says when")


def endure_on(config: EvaluateConfig, envs: ARL2WorldVectorEnv, out: Path) -> tuple[Endurance, Report]:
    """Step on, and write now and then what happened and where to go on."""
    num_steps, state_file = config.endurance.num_steps, out / STATE_FILE
    settings = {
        "world": envs.world.identity,
        "num_envs": envs.num_envs,
        "denoising_steps": envs.simulator.sampler.num_steps,
        "autoreset_mode": envs.autoreset_mode.value,
    }
    head = describe_run(envs.world.device, envs.world.dtype) | settings
    head["compile"] = envs.compile_choice.mode
    same = {(name,): value for name, value in settings.items()}
    report = Report.open(out / ENDURANCE_FILE, head, same, is_complete=True)
    so_far = begin_or_resume(report, state_file, envs, config.seed)

    def write() -> None:
        report.data |= so_far.to_json(num_steps)
        report.write()

    def save() -> None:
        states.save(envs.get_state(), state_file, world=envs.world.identity)
        write()

    try:
        run_on(
            (found.num_steps for found in endure(envs, num_steps, seed=config.seed, so_far=so_far)),
            save,
            begin=so_far.num_steps,
            end=num_steps,
            unit="step",
            seconds_between_saves=SECONDS_BETWEEN_WRITES,
            max_minutes=config.endurance.max_minutes,
        )
    except WorldError:
        write()  # the state is broken, so the one that was saved before stays
        raise
    save()
    return so_far, report


def begin_or_resume(report: Report, state_file: Path, envs: ARL2WorldVectorEnv, seed: int) -> Endurance:
    """Begin at start states, or go on from the state that was saved last.

    Raises:
        WorldError: If the report tells of a run that failed, or not of a run at all.
    """
    if problem := find(report.data, ("verdict", "problem")):
        raise WorldError(f"{report.path} tells of a run that failed, {problem}: remove it first")
    if not (report.path.is_file() and state_file.is_file()):
        envs.reset(seed=seed)
        return Endurance()
    try:
        so_far = Endurance.from_json(report.data)
    except WorldError as error:
        raise WorldError(f"{report.path}: {error}") from error
    envs.reset(seed=seed + so_far.num_steps)  # the draw of start states is not part of a state
    envs.set_state(states.load(state_file, world=envs.world.identity))
    return so_far

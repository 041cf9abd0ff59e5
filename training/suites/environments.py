"""Environment suites: rates of steps, `benchmark=env`, and endurance, `benchmark=endurance`.

OUT/env.json holds rates of steps, OUT/endurance.json how an endurance test went so far, to be resumed.
"""

from __future__ import annotations

from pathlib import Path

from gymnasium.vector import AutoresetMode

from training.engine.long_run import begin_or_resume, run_on
from training.suites.settings import EvaluateConfig
from worldsim import state as states
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.evaluation.cost.endurance import Endurance, endure
from worldsim.evaluation.cost.throughput import measure_game, measure_throughput
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.targets import find
from worldsim.evaluation.report.text import format_endurance, format_throughput
from worldsim.simulator import open_world

ENV_REPORT_FILE = "env.json"
GAME_STEPS = 2000
MIN_STEPS = {"cpu": 3, "cuda": 60}
"""Steps from which on a median says something: those of a CPU differ little and take seconds."""
ENDURANCE_FILE, STATE_FILE = "endurance.json", "endurance.safetensors"
SECONDS_BETWEEN_WRITES = 10.0


def benchmark_env(config: EvaluateConfig, out: Path) -> None:
    """Measure, print a table, write OUT/env.json; the real game of that name is measured where it can be."""
    world, choice = open_world(config.world, config.runtime())
    print(f"world {world.identity}, on {choice}", flush=True)
    measured = measure_throughput(
        world,
        config.env_counts,
        num_frames=config.env_frames,
        min_steps=config.env_min_steps or MIN_STEPS[choice.device.type],
        max_steps=config.env_max_steps,
        seed=config.seed,
        denoising_steps=config.denoising_steps,
        compile=config.compile,
    )
    missing = ""
    try:
        measured["real game"] = measure_game(world.config.name, GAME_STEPS, config.seed)
    except WorldError as error:
        missing = f"\nthe real game was not measured: {error}\n"
    head = describe_run(choice.device, choice.dtype)
    report = Report(out / ENV_REPORT_FILE, head | {"world": world.identity, "environments": measured})
    report.write()
    print(f"\n{format_throughput(measured)}\n{missing}\nwritten to {report.path}")


def benchmark_endurance(config: EvaluateConfig, out: Path) -> None:
    """Step on until there are enough steps or the time is up, and say how it went; fails if memory grew."""
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
        report = open_endurance(envs, out / ENDURANCE_FILE)
        so_far = endure_on(config, envs, report, out / STATE_FILE)
    finally:
        envs.close()
    print(f"\n{format_endurance(so_far, config.endurance.num_steps)}\nwritten to {report.path}")
    if so_far.verdict(config.endurance.num_steps).passed is False:
        raise WorldError(f"memory has grown: {report.path} says when")


def open_endurance(envs: ARL2WorldVectorEnv, path: Path) -> Report:
    """Open the report of an endurance test; raises `WorldError` if it is of others, or of one that failed."""
    settings = {
        "world": envs.world.identity,
        "num_envs": envs.num_envs,
        "denoising_steps": envs.simulator.sampler.num_steps,
        "autoreset_mode": envs.autoreset_mode.value,
    }
    head = describe_run(envs.world.device, envs.world.dtype) | settings
    same = {(name,): value for name, value in settings.items()}
    report = Report.open(path, head | {"compile": envs.compile_choice.mode}, same, is_complete=True)
    if problem := find(report.data, ("verdict", "problem")):
        raise WorldError(f"{path} tells of a run that failed, {problem}: remove it first")
    return report


def endure_on(
    config: EvaluateConfig, envs: ARL2WorldVectorEnv, report: Report, state_file: Path
) -> Endurance:
    """Step on, and write now and then what happened and where to go on."""
    num_steps, world = config.endurance.num_steps, envs.world.identity
    so_far, state = begin_or_resume(report, state_file, Endurance, world=world)
    envs.reset(seed=config.seed + so_far.num_steps)  # the draw of start states is not part of a state
    if state is not None:
        envs.set_state(state)

    def write(problem: str = "") -> None:
        report.update({"wanted_steps": num_steps, "verdict": so_far.verdict(num_steps, problem)})
        report.update(so_far)
        report.write()

    def save() -> None:
        states.save(envs.get_state(), state_file, world=world)
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
    except WorldError as error:
        write(str(error))  # the state is broken, so the one that was saved before stays
        raise
    save()
    return so_far

"""Throughput of environments: steps a second of many at a time, of one, and of the real game."""

# N environments

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from worldsim.envs.single import ARL2WorldEnv
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.evaluation.cost.step_time import now
from worldsim.games.registry import open_game
from worldsim.runtime.timing import process_memory_bytes, steady_memory
from worldsim.world import World

ROUNDS = 3
"""Times that each is measured, in turn: what else the machine does then slows none alone."""
WARM_UP_STEPS = 2
SINGLE = "single"
HELD_FRAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Environment steps a second by the median step of all environments, which takes `step_ms`.

    Of vector environments also the size of all states, and the rate over that of the single environment.
    """

    num_envs: int
    num_steps: int
    steps_per_second: float
    steps_per_second_of_fastest: float
    step_ms: float
    process_bytes_first: int
    process_bytes_last: int
    compile: str | None = None
    memory_bytes: int | None = None
    is_finite: bool | None = None
    over_single: float | None = None


def random_steps(
    step: Callable[[np.ndarray], object], num_envs: int, num_values: Sequence[int], seed: int
) -> Iterator[object]:
    """Step N environments for each item, under random actions that are held for a few frames.

    `step` takes actions `[N, A]`, of so many values each, and may reset where an episode has ended.
    """
    rng = np.random.default_rng(seed)
    while True:
        actions = rng.integers(0, num_values, size=(num_envs, len(num_values)))
        for _ in range(HELD_FRAMES):
            yield step(actions)


def measure_throughput(
    world: World,
    counts: Sequence[int],
    *,
    num_frames: int,
    min_steps: int = ROUNDS,
    max_steps: int = 0,
    seed: int,
    denoising_steps: int | None = None,
    compile: str = "auto",
) -> dict[str, Throughput]:
    """Time the single environment, and the vector environment of each number of environments.

    Each draws `num_frames` frames in all, in at least `min_steps`, 3 or more, and at most `max_steps` steps
    of all its environments; 0 is no limit. Returns rates by `single` and by number of environments.
    """
    how: dict[str, Any] = {"denoising_steps": denoising_steps, "compile": compile}
    single = ARL2WorldEnv(world, **how)
    single.reset(seed=seed, options={"start": 0})
    num_values = world.config.actions.num_values
    steppers = {SINGLE: random_steps(lambda actions: _step_single(single, actions[0]), 1, num_values, seed)}
    sizes, vectors = {SINGLE: 1} | {str(count): count for count in counts}, {}
    for count in counts:
        # Tensors stay on the device: what learns there need not fetch them.
        envs = ARL2WorldVectorEnv(count, world, output="torch", **how)
        envs.reset(seed=seed, options={"start": 0})
        vectors[str(count)] = envs
        steppers[str(count)] = random_steps(envs.step, count, num_values, seed)
    num_steps = {name: steps_of(size, num_frames, min_steps, max_steps) for name, size in sizes.items()}
    times = time_in_turn(steppers, num_steps, world)
    found = {name: summarize(values, sizes[name]) for name, values in times.items()}
    found[SINGLE] = replace(found[SINGLE], compile=single.compile_choice.mode)
    for name, envs in vectors.items():
        memory = envs.get_state().memory.tensors()
        found[name] = replace(
            found[name],
            compile=envs.compile_choice.mode,
            memory_bytes=envs.memory_bytes,
            is_finite=all(bool(tensor.isfinite().all()) for tensor in memory.values()),
            over_single=found[name].steps_per_second / found[SINGLE].steps_per_second,
        )
        envs.close()
    return found


def _step_single(env: ARL2WorldEnv, action: np.ndarray) -> None:
    _, _, terminated, _, _ = env.step(action)
    if terminated:
        env.reset()


def steps_of(num_envs: int, num_frames: int, min_steps: int, max_steps: int) -> int:
    """Return how many steps N environments make to draw so many frames, a multiple of `ROUNDS`."""
    steps = max(round(num_frames / num_envs), min_steps)
    steps = min(steps, max_steps) if max_steps else steps
    return ROUNDS * max(1, round(steps / ROUNDS))


def time_in_turn(
    steppers: Mapping[str, Iterator[object]], num_steps: dict[str, int], world: World
) -> dict[str, list[tuple[float, int]]]:
    """Return the seconds of each step, and the bytes that the process held after it, by stepper.

    The numbers of steps are multiples of `ROUNDS`; the device of the world is waited for.
    """
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in steppers}
    for stepper in steppers.values():
        for _ in range(WARM_UP_STEPS):
            next(stepper)  # the first ones allocate, compile and record
    order = [name for _ in range(ROUNDS) for name in steppers]
    with steady_memory():
        for name in tqdm(order, desc="environments", unit="round"):
            for _ in range(num_steps[name] // ROUNDS):
                began = now(world.device)
                next(steppers[name])
                measured[name].append((now(world.device) - began, process_memory_bytes() or 0))
    return measured


def summarize(measured: Sequence[tuple[float, int]], num_envs: int) -> Throughput:
    """Return the rate of steps of `time_in_turn`."""
    seconds, held = np.array(measured).T
    median, fastest = float(np.median(seconds)), float(seconds.min())
    return Throughput(
        num_envs=num_envs,
        num_steps=len(seconds),
        steps_per_second=num_envs / median,
        steps_per_second_of_fastest=num_envs / fastest,
        step_ms=1000 * median,
        process_bytes_first=int(held[0]),
        process_bytes_last=int(held[-1]),
    )


def measure_game(scenario: str, num_steps: int, seed: int) -> Throughput:
    """Time a real game, headless, in this process.

    Raises:
        WorldError: If there is no such game, or what plays it is not installed.
    """
    with open_game(scenario) as game:
        game.reset(seed)

        def step(actions: np.ndarray) -> None:
            seen = game.step(actions[0])
            if seen.terminated or seen.truncated:
                game.reset(seed)

        stepper, seconds = random_steps(step, 1, game.entry.actions.num_values, seed), []
        for _ in range(num_steps):
            began = time.perf_counter()
            next(stepper)
            seconds.append((time.perf_counter() - began, process_memory_bytes() or 0))
    return summarize(seconds, 1)

"""Endurance test of vector environments: growth of memory, NaN or inf, over very many steps."""

# N environments, H W frame size

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.runtime.timing import process_memory_bytes
from worldsim.state import WorldState
from worldsim.storage.files import check_integer

STEPS_BETWEEN_CHECKS, MIN_CHECKS = 100, 50
MAX_GROWTH = 1.02
"""Of memory, that allocators are forgiven."""
HELD_SHARE = 0.8
"""How likely an environment is to go on with the action it has."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How things stood after a step of all environments.

    Attributes:
        num_episodes: That ended or were truncated so far.
        device_bytes: Held by tensors on a GPU; 0 elsewhere.
        device_reserved_bytes: That PyTorch took of a GPU.
        state_bytes: Of all that the dreams remember.
        pixel_mean: Of the observations, 0 to 255.
        pixel_deviation: Theirs; 0 where all is of one colour.
    """

    step: int
    seconds: float
    num_episodes: int
    process_bytes: int
    device_bytes: int
    device_reserved_bytes: int
    state_bytes: int
    pixel_mean: float
    pixel_deviation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What an endurance test comes to, None while it is too early to say; `growth` is `memory_growth`."""

    passed: bool | None
    is_finite: bool
    problem: str
    growth: dict[str, float | None]
    most_growth: float


@dataclass(slots=True)
class Endurance:
    """What happened so far.

    Attributes:
        num_steps: Steps made, each of all environments.
        num_terminated: Episodes that ended.
        num_truncated: Episodes that were cut off.
        begins: Number of the first sample of each process.
    """

    num_steps: int = 0
    seconds: float = 0.0
    num_terminated: int = 0
    num_truncated: int = 0
    begins: list[int] = field(default_factory=lambda: [0])
    samples: list[Sample] = field(default_factory=list)

    def growth(self, name: str, least: int = 1) -> float | None:
        """Return the largest `memory_growth` that a process saw of one of the sizes; None at first.

        Processes with fewer samples than `least` do not count: theirs are all warm-up.
        """
        held = [getattr(sample, name) for sample in self.samples]
        ends = [*self.begins[1:], len(held)]
        parts = [held[begin:end] for begin, end in zip(self.begins, ends, strict=True)]
        found = [memory_growth(part) for part in parts if len(part) >= least]
        return max((growth for growth in found if growth is not None), default=None)

    def verdict(self, wanted_steps: int, problem: str = "") -> Verdict:
        """Return what it comes to after so many steps, or after a problem."""
        is_over = self.num_steps >= wanted_steps
        least = 1 if is_over and len(self.begins) == 1 else MIN_CHECKS
        held = ("process", "device", "device_reserved", "state")
        growths = {name: self.growth(f"{name}_bytes", least) for name in held}
        has_grown = any(growth is not None and growth > MAX_GROWTH for growth in growths.values())
        is_known = is_over and growths["process"] is not None
        return Verdict(
            passed=False if problem or has_grown else (True if is_known else None),
            is_finite=not problem,
            problem=problem,
            growth=growths,
            most_growth=MAX_GROWTH,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Endurance:
        """Build from what a report holds of it, to go on in another process.

        Raises:
            KeyError, TypeError, ValueError: If it is of another form.
        """
        counts = (check_integer(data[n], n) for n in ("num_steps", "num_terminated", "num_truncated"))
        num_steps, num_terminated, num_truncated = counts
        samples = [Sample(**sample) for sample in data["samples"]]
        begins = [*(check_integer(begin, "begins") for begin in data["begins"]), len(samples)]
        return cls(num_steps, float(data["seconds"]), num_terminated, num_truncated, begins, samples)


def memory_growth(held: Sequence[int]) -> float | None:
    """Return the median of the last fifth of some sizes over that of the second; None if there are under 5.

    The first fifth is the warm-up. Where nothing is held nothing has grown.
    """
    if not (fifth := len(held) // 5):
        return None
    before, after = np.median(held[fifth : 2 * fifth]), np.median(held[-fifth:])
    return float(after / before) if before else (1.0 if not after else float("inf"))


def check_numbers(state: WorldState, num_frames: int) -> None:
    """Raise `WorldError` if a state after so many frames contains NaN or inf."""
    for name, tensor in state.tensors().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WorldError(f"after {num_frames} frames {name} contains NaN or inf")


def endure(envs: ARL2WorldVectorEnv, num_steps: int, *, seed: int, so_far: Endurance) -> Iterator[Endurance]:
    """Step all environments at random; yields `so_far` after each step.

    Now and then, and at the end, all numbers are looked at and a sample is added. The environments have been
    reset and have an autoreset mode. `num_steps` counts those of `so_far`, which is added to.

    Raises:
        WorldError: If a reward or the state contains NaN or inf, or an observation is not one of the space.
    """
    rng = np.random.default_rng((seed, so_far.num_steps))
    num_values = envs.world.config.actions.num_values
    actions = rng.integers(0, num_values, size=(envs.num_envs, len(num_values)))
    between = max(1, min(STEPS_BETWEEN_CHECKS, num_steps // MIN_CHECKS))
    began = time.perf_counter() - so_far.seconds
    while so_far.num_steps < num_steps:
        drawn = rng.integers(0, num_values, size=actions.shape)
        actions = np.where(rng.random((envs.num_envs, 1)) < HELD_SHARE, actions, drawn)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        so_far.num_steps += 1
        so_far.num_terminated += int(np.sum(np.asarray(terminated)))
        so_far.num_truncated += int(np.sum(np.asarray(truncated & ~terminated)))
        is_due = so_far.num_steps % between == 0 or so_far.num_steps == num_steps
        _check_step(envs, np.asarray(observations), np.asarray(rewards), so_far.num_steps)
        if is_due:
            check_numbers(envs.get_state(), so_far.num_steps)
        so_far.seconds = time.perf_counter() - began
        if is_due:
            so_far.samples.append(_sample(envs, np.asarray(observations), so_far))
        yield so_far


def _check_step(
    envs: ARL2WorldVectorEnv, observations: np.ndarray, rewards: np.ndarray, num_steps: int
) -> None:
    space = envs.observation_space
    if observations.shape != space.shape or observations.dtype != space.dtype:
        raise WorldError(
            f"after {num_steps} frames the observations are {observations.dtype} {observations.shape}, "
            f"expected {space.dtype} {space.shape}"
        )
    if not np.isfinite(rewards).all():
        raise WorldError(f"after {num_steps} frames a reward is NaN or inf: {rewards.tolist()}")


def _sample(envs: ARL2WorldVectorEnv, observations: np.ndarray, so_far: Endurance) -> Sample:
    device = envs.world.device
    is_gpu = device.type == "cuda"
    return Sample(
        step=so_far.num_steps,
        seconds=round(so_far.seconds, 3),
        num_episodes=so_far.num_terminated + so_far.num_truncated,
        process_bytes=process_memory_bytes() or 0,
        device_bytes=torch.cuda.memory_allocated(device) if is_gpu else 0,
        device_reserved_bytes=torch.cuda.memory_reserved(device) if is_gpu else 0,
        state_bytes=envs.memory_bytes,
        pixel_mean=round(float(observations.mean()), 2),
        pixel_deviation=round(float(observations.std()), 2),
    )

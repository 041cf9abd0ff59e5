"""`benchmark=endurance` steps on and on, goes on where it stopped, and finds growth and NaN or inf."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import save_tiny_world, tiny_world
from training.evaluate import EvaluateConfig, main
from training.suites import environments
from training.suites.environments import ENDURANCE_FILE, STATE_FILE
from training.suites.settings import EnduranceConfig
from worldsim.envs.vector import ARL2WorldVectorEnv
from worldsim.errors import WorldError
from worldsim.evaluation.cost import endurance
from worldsim.evaluation.cost.endurance import Endurance, Sample, endure, memory_growth
from worldsim.outcome import OutcomeConfig

pytestmark = pytest.mark.usefixtures("one_thread")

OFTEN = OutcomeConfig(end_threshold=1e-6)
"""Of a world in which every frame is an end."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    tiny_world(outcome=OutcomeConfig(end_threshold=1.0)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def forgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge no growth of a process that other tests run in."""
    monkeypatch.setattr(endurance, "MAX_GROWTH", 2.0)


def config_of(world: Path, out: Path, **changes: Any) -> EvaluateConfig:
    settings = EnduranceConfig(**{"num_envs": 2, "num_steps": 12, "max_episode_steps": 5} | changes)
    return EvaluateConfig(
        world=str(world),
        out=str(out),
        benchmark="endurance",
        endurance=settings,
        device="cpu",
        dtype="float32",
        threads=1,
        data="nowhere",
    )


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / ENDURANCE_FILE).read_text())


def test_steps_are_made_and_told_of(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.run(config_of(world, tmp_path))
    report = report_of(tmp_path)
    assert report["num_steps"] == 12
    assert (report["num_terminated"], report["num_truncated"]) == (0, 4)
    assert report["verdict"]["passed"] is True
    assert report["verdict"]["growth"]["state"] == 1.0
    assert report["verdict"]["growth"]["device"] == 1.0
    assert [sample["step"] for sample in report["samples"]] == list(range(1, 13))
    assert all(sample["process_bytes"] > 0 for sample in report["samples"])
    assert all(sample["pixel_deviation"] > 0 for sample in report["samples"])
    assert report["samples"][-1]["num_episodes"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {ENDURANCE_FILE, STATE_FILE}
    printed = capsys.readouterr().out
    assert "12 of 12 steps" in printed
    assert "all numbers finite" in printed
    assert "passed" in printed


def test_a_stopped_run_goes_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main.run(config_of(world, tmp_path, max_minutes=1e-9))
    first = report_of(tmp_path)
    assert first["num_steps"] == 1
    assert first["verdict"]["passed"] is None
    main.run(config_of(world, tmp_path))
    second = report_of(tmp_path)
    assert second["num_steps"] == 12
    assert second["begins"] == [0, 1]
    assert second["samples"][:1] == first["samples"]
    assert second["num_truncated"] == 4, "the first episodes go on where they were"
    assert second["seconds"] > first["seconds"]


def test_what_was_written_on_the_way_is_there_after_a_kill(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(self: ARL2WorldVectorEnv, actions: np.ndarray) -> Any:
        nonlocal count
        count += 1
        if count > 4:
            raise Killed
        return step(self, actions)

    count, step = 0, ARL2WorldVectorEnv.step
    monkeypatch.setattr(environments, "SECONDS_BETWEEN_WRITES", 0.0)
    monkeypatch.setattr(ARL2WorldVectorEnv, "step", killed)
    with pytest.raises(Killed):
        main.run(config_of(world, tmp_path))
    assert report_of(tmp_path)["num_steps"] == 4


def test_ends_are_counted() -> None:
    envs = ARL2WorldVectorEnv(2, tiny_world(outcome=OFTEN), autoreset_mode="SameStep", max_episode_steps=1)
    envs.reset(seed=0)
    so_far = Endurance()
    assert [found.num_steps for found in endure(envs, 3, seed=0, so_far=so_far)] == [1, 2, 3]
    assert (so_far.num_terminated, so_far.num_truncated) == (6, 0)


@pytest.mark.parametrize("broken", ["state", "reward", "frames"])
def test_what_is_no_number_is_told_and_stops_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    main.run(config_of(world, tmp_path, num_steps=2))
    step = ARL2WorldVectorEnv.step

    def breaking(self: ARL2WorldVectorEnv, actions: np.ndarray) -> Any:
        observations, rewards, *rest = step(self, actions)
        if broken == "state":
            state = self.get_state()
            memory = state.memory.map(
                lambda _, t: torch.full_like(t, torch.nan) if t.is_floating_point() else t
            )
            self._state = replace(state, memory=memory)
        elif broken == "reward":
            rewards = np.array([0.0, np.inf])
        else:
            observations = np.asarray(observations).astype(np.float32)
        return observations, rewards, *rest

    monkeypatch.setattr(ARL2WorldVectorEnv, "step", breaking)
    expected = {"state": "contains NaN or inf", "reward": "a reward is NaN or inf", "frames": "float32"}
    with pytest.raises(WorldError, match=f"after 3 frames .*{expected[broken]}"):
        main.run(config_of(world, tmp_path, num_steps=4))
    monkeypatch.undo()
    report = report_of(tmp_path)
    assert report["num_steps"] == 3
    assert report["verdict"]["passed"] is False
    assert expected[broken] in report["verdict"]["problem"]
    with pytest.raises(WorldError, match="tells of a run that failed"):
        main.run(config_of(world, tmp_path, num_steps=4))


def test_growth_fails_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter(range(10, 10_000, 10))
    monkeypatch.setattr(endurance, "process_memory_bytes", lambda: next(held))
    with pytest.raises(WorldError, match="memory has grown"):
        main.run(config_of(world, tmp_path))
    verdict = report_of(tmp_path)["verdict"]
    assert verdict["passed"] is False
    assert verdict["is_finite"] is True
    assert verdict["growth"]["process"] == pytest.approx(115 / 35)


def test_growth_is_the_largest_of_all_processes() -> None:
    def endured(sizes: list[int], begins: list[int]) -> Endurance:
        samples = [Sample(i, 0.0, 0, size, 0, 0, 1, 0.0, 0.0) for i, size in enumerate(sizes)]
        return Endurance(num_steps=len(sizes), samples=samples, begins=begins)

    assert memory_growth([1, 2, 3, 4]) is None
    assert memory_growth([1, 4, 4, 4, 6]) == 1.5
    assert memory_growth([0] * 5) == 1.0
    assert memory_growth([0, 0, 0, 0, 1]) == float("inf")
    assert endured([9, 9, 9], [0]).growth("process_bytes") is None
    assert endured([5, 2, 2, 2, 3, 7, 7, 7, 7, 7, 9], [0, 5, 10]).growth("process_bytes") == 1.5
    assert endured([5, 2, 2, 2, 3, 7, 7, 7, 7, 7, 9], [0]).growth("process_bytes") == pytest.approx(4.0)
    short_first = endured([300, 600, 600, 600, 3000, *[330] * 60], [0, 5])
    assert short_first.growth("process_bytes") == 5.0
    assert short_first.verdict(65).growth["process"] == 1.0, "a short session is all warm-up"
    assert short_first.verdict(65).passed is True


def test_another_run_in_the_same_folder_is_refused(world: Path, tmp_path: Path) -> None:
    main.run(config_of(world, tmp_path, num_steps=1))
    with pytest.raises(WorldError, match="was measured with num_envs=2, now 3; choose another out= folder"):
        main.run(config_of(world, tmp_path, num_envs=3))
    other = save_tiny_world(tmp_path / "other")
    with pytest.raises(WorldError, match=r"was measured with world=tiny@"):
        main.run(config_of(other, tmp_path))
    report = report_of(tmp_path)
    del report["begins"]
    (tmp_path / ENDURANCE_FILE).write_text(json.dumps(report))
    with pytest.raises(
        WorldError, match=r"endurance\.json cannot be resumed \('begins'\); choose another out= folder"
    ):
        main.run(config_of(world, tmp_path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_envs": 0}, "endurance.num_envs must be at least 1, got 0"),
        ({"num_steps": 0}, "endurance.num_steps must be at least 1"),
        ({"max_episode_steps": 0}, "endurance.max_episode_steps must be at least 1"),
        ({"max_minutes": -1.0}, "endurance.max_minutes must be at least 0"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        EnduranceConfig(**setting)


@pytest.mark.gpu
def test_a_gpu_is_watched(world: Path, tmp_path: Path) -> None:
    config = replace(config_of(world, tmp_path, num_steps=100), device="cuda", compile="auto")
    main.run(config)
    report = report_of(tmp_path)
    assert report["compile"] == "cudagraphs"
    assert report["verdict"]["passed"] is True
    assert min(sample["device_bytes"] for sample in report["samples"]) > 0

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import save_tiny_world, tiny_world, write_outcome_dataset, write_tiny_dataset
from training.evaluate import EvaluateConfig, main
from training.suites.quality import Evaluation
from training.suites.settings import PARTS
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.video import read_video
from worldsim.errors import WorldError
from worldsim.outcome import OutcomeConfig

SMALL: dict[str, Any] = {
    "context_frames": 4,
    "num_rollouts": 3,
    "horizon": 8,
    "num_next_clips": 2,
    "next_frames": 4,
    "num_action_starts": 2,
    "num_idle_starts": 2,
    "idle_frames": 10,
    "cost_frames": 10,
    "startup_runs": 0,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("world") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), episodes=3, frames=30)


def config(world: Path, data: Path, out: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(world=str(world), data=str(data), out=str(out), **(SMALL | changes))


def test_a_small_world_is_measured_from_end_to_end(
    world: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    main.run(config(world, data, out))
    names = {path.name for path in out.iterdir()}
    assert names == {"report.json", "filmstrip.png", "real-and-dream.mp4", "psnr.png"}
    report = json.loads((out / "report.json").read_text())
    assert set(PARTS) <= set(report)
    assert report["dtype"] == "float32"
    assert report["hardware"]["threads"] == 1
    assert report["command"]
    assert list(report["rollout"]["horizons"]) == ["1", "8"]
    assert report["rollout"]["num_rollouts"] == 3
    assert report["settings"]["horizon"] == 8
    assert len(read_video(out / "real-and-dream.mp4")) == 3 * 8
    printed = capsys.readouterr().out
    assert "roll-out PSNR at frame 8" in printed
    assert "copy last" in printed


def test_a_part_alone_is_measured_and_the_others_said_not_to_be(
    world: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.run(config(world, data, tmp_path, parts=["idle"]))
    assert {path.name for path in tmp_path.iterdir()} == {"report.json"}
    assert set(PARTS) & set(json.loads((tmp_path / "report.json").read_text())) == {"idle"}
    assert capsys.readouterr().out.count("not measured") == 11


def test_rewards_and_ends_of_a_world_that_judges_them_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_outcome_dataset(tmp_path / "data", episodes=3, frames=8)
    tiny_world(outcome=OutcomeConfig(end_threshold=0.3)).save_pretrained(tmp_path / "world")
    main.run(config(tmp_path / "world", folder, tmp_path / "out", parts=["outcome"]))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for kind in ("given", "drawn"):
        assert report["outcome"][kind]["num_frames"] == 7 + 8 + 9
        assert report["outcome"][kind]["ends"]["num_ends"] == 2
        assert report["outcome"][kind]["ends"]["at_threshold"]["threshold"] == 0.3
    (bar,) = [bar for bar in report["bars"] if bar["name"].startswith("ends found")]
    assert bar["value"] == 100 * report["outcome"]["given"]["ends"]["recall_at_90_precision"]["mean"]
    printed = capsys.readouterr().out
    assert "2 ends in 3 episodes, 24 frames" in printed
    assert printed.count("not measured") == 11


def test_a_world_without_heads_is_not_measured_by_them(
    world: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.run(config(world, data, tmp_path, parts=["idle", "outcome"]))
    assert "not measured: world 'tiny' has no outcome heads" in capsys.readouterr().out
    with pytest.raises(ValueError, match="world 'tiny' has no outcome heads"):
        main.run(config(world, data, tmp_path, parts=["outcome"]))


def test_same_seed_gives_the_same_numbers(world: Path, data: Path, tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        main.run(config(world, data, tmp_path / name, parts=["rollout"]))
        report = json.loads((tmp_path / name / "report.json").read_text())["rollout"]
        assert report.pop("measured_in_seconds") > 0  # the clock has no seed
        reports.append(report)
    assert reports[0] == reports[1]


def test_what_was_measured_before_a_stop_is_kept(
    world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Evaluation) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "_rollout", stop)
    with pytest.raises(KeyboardInterrupt):
        main.run(config(world, data, tmp_path))
    assert "cost" in json.loads((tmp_path / "report.json").read_text())


def test_denoising_steps_can_be_chosen(world: Path, data: Path, tmp_path: Path) -> None:
    assert Evaluation(config(world, data, tmp_path), tmp_path).simulator.sampler.num_steps == 2
    assert (
        Evaluation(config(world, data, tmp_path, denoising_steps=3), tmp_path).simulator.sampler.num_steps
        == 3
    )


def test_unknown_part_is_named(world: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parts must be some of cost, .*, got speed"):
        config(world, data, tmp_path, parts=["cost", "speed"])


def test_other_buttons_are_refused_before_anything_is_measured(world: Path, tmp_path: Path) -> None:
    jump = ActionLayout((ActionAxis(name="jump", buttons=("up",), keys=(("space",),)),))
    folder = write_tiny_dataset(tmp_path / "data", actions=jump)
    with pytest.raises(ValueError, match="has the buttons jump/up"):
        main.run(config(world, folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_episodes_that_are_too_short_are_refused_before_anything_is_measured(
    world: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="132 frames are needed, the longest has 30"):
        main.run(config(world, data, tmp_path, horizon=128))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named(world: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        main.run(config(world, data, tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"benchmark": "env"}, {"benchmark": "endurance"}, {"suite": "consistency"}],
    ids=["world", "env", "endurance", "suite"],
)
def test_an_unknown_world_leaves_no_folder(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "there").mkdir()
    for name in ("deep/out", "there/out", "there"):
        with pytest.raises(WorldError, match="there is no world 'nowhere'"):
            main.run(config(Path("nowhere"), data, tmp_path / name, **changes))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_unknown_world_ends_in_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "world=nowhere", f"data={data}", f"out={tmp_path / 'out'}", "profile=quick"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: there is no world 'nowhere'")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

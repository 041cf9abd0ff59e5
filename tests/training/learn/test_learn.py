"""A world from a game in one command: every stage is run once, in a size that fits what was recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import TINY_ACTIONS, tiny_world, write_tiny_dataset
from tests.public_runs import run_command
from training.learn import command
from training.learn.command import LearnConfig, Learning
from training.learn.plan import (
    SHARES,
    Footage,
    clock_settings,
    codec_settings,
    evaluate_settings,
    fresh_frames,
    pretrain_settings,
    record_settings,
    train_seconds,
)
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.outcome import OutcomeConfig
from worldsim.world.world import World

DOT = "tests.own_games:Dot-v0"
TINY = [
    "model.dim=16",
    "model.ffn_dim=16",
    "model.num_heads=1",
    "model.num_layers=2",
    "model.window_layers=[1]",
]
SMALL = {
    "collect": ["game.kwargs={lasts:50,max_episode_steps:60}", "num_workers=1"],
    "codec": ["codec.widths=[4,4,8]", "data.num_workers=1", "fabric.accelerator=cpu"],
    "pretrain": [
        *TINY,
        "validation.num_rollouts=1",
        "num_starts=2",
        "data.num_workers=1",
        "fabric.accelerator=cpu",
    ],
    "evaluate": ["device=cpu", "parts=[cost]", "cost_frames=4"],
}


def test_a_game_becomes_a_world_that_can_be_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []

    def run(name: str, settings: Sequence[str]) -> None:
        runs.append(name)
        run_command(name, *settings)

    config = LearnConfig(
        env=DOT, out=str(tmp_path / "dot"), minutes=0.01, device="cpu", num_frames=80, **SMALL
    )
    Learning(config, run).learn()
    told = capsys.readouterr().out
    assert runs == ["collect", "check", "codec", "pretrain", "evaluate"]
    world = tmp_path / "dot/pretrain/world"
    assert f"play it: python play.py world={world}" in told and "training.rl world=" in told
    assert f"training.collect env={DOT} out={tmp_path / 'dot/data'} num_frames=" in told
    assert " 'game.kwargs={lasts:50,max_episode_steps:60}' num_workers=1" in told
    config_of_world = World.from_pretrained(world).config
    assert (config_of_world.name, config_of_world.outcome is not None) == ("dot", True)
    assert config_of_world.actions.axes[0].centres == (0, -1, -0.5, 0.5, 1), "it knows what its buttons are"
    assert config_of_world.provenance["environment"] == {
        "id": DOT,
        "kwargs": {"lasts": 50, "max_episode_steps": 60},
    }
    assert json.loads((tmp_path / "dot/evaluate/report.json").read_text())["cost"]
    Learning(config, run).learn()
    assert runs == ["collect", "check", "codec", "pretrain", "evaluate"], "nothing is done twice"
    run_command("play", f"world={world}", "headless=true", "steps=3", f"record={tmp_path / 'played.mp4'}")
    assert (tmp_path / "played.mp4").stat().st_size > 500
    before = World.from_pretrained(world)
    finetune = [each for each in SMALL["pretrain"] if each not in TINY]
    config = LearnConfig(
        init=str(world),
        env=DOT,
        out=str(tmp_path / "on"),
        minutes=0.01,
        device="cpu",
        num_frames=80,
        finetune=finetune,
        collect=SMALL["collect"],
        evaluate=SMALL["evaluate"],
    )
    runs.clear()
    Learning(config, run).learn()
    assert runs == ["collect", "check", "finetune", "evaluate"]
    after = World.from_pretrained(tmp_path / "on/finetune/world")
    assert after.identity != before.identity, "it has learned"
    assert all(map(torch.equal, after.codec.state_dict().values(), before.codec.state_dict().values()))
    told = after.config.provenance["training"]
    assert (
        told[-1].startswith(f"begun from {before.identity}, then ") and "frames, in sequences of" in told[-1]
    )
    assert after.config.provenance["recording"] == {"policy": "sticky"}
    seeds = [DatasetInfo.load(tmp_path / name / "data/train").source for name in ("dot", "on")]
    assert seeds[0] != seeds[1], "the video is fresh"


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worlds that are not there take no time."""
    monkeypatch.setattr(command, "time_frame", lambda world, device: 0.05)


@pytest.mark.usefixtures("no_timing")
def test_a_stage_that_failed_is_run_again_and_no_other(tmp_path: Path) -> None:
    runs: list[str] = []

    def run(name: str, settings: Sequence[str]) -> None:
        runs.append(name)
        if name == "codec" and runs.count("codec") == 1:
            raise WorldError("training.codec ended with status 1")
        if name == "collect":
            run_command(name, *settings)

    out = str(tmp_path / "out")
    config = LearnConfig(env=DOT, out=out, minutes=60, device="cpu", num_frames=60, collect=["num_workers=1"])
    with pytest.raises(WorldError, match="ended with status 1"):
        Learning(config, run).learn()
    Learning(config, run).learn()
    assert runs == ["collect", "check", "codec", "codec", "pretrain", "evaluate"]
    longer = LearnConfig(env=DOT, out=out, minutes=90, device="cpu", num_frames=60, collect=["num_workers=1"])
    Learning(longer, run).learn()
    assert runs[6:] == ["pretrain", "evaluate"], "more minutes go on with what is there"
    Learning(replace(longer, minutes=30), run, started=time.monotonic() - 60 * 90).learn()
    assert runs[8:] == ["evaluate"], "fewer train nothing"


@pytest.mark.usefixtures("no_timing")
def test_recordings_are_taken_as_they_are_or_imported(tmp_path: Path) -> None:
    runs: list[str] = []

    def run(name: str, settings: Sequence[str]) -> None:
        runs.append(name)
        if name == "check":
            raise WorldError("training.check ended with status 1")

    ours = tmp_path / "ours"
    write_tiny_dataset(ours / "train", episodes=1, frames=12)
    out = {"out": str(tmp_path / "out"), "device": "cpu"}
    with pytest.raises(WorldError, match="ours has no heldout beside train"):
        Learning(LearnConfig(data=str(ours), **out), run).learn()  # type: ignore[arg-type]
    with pytest.raises(WorldError, match="train holds episodes itself: data= is a folder with train and"):
        Learning(LearnConfig(data=str(ours / "train"), **out), run).learn()  # type: ignore[arg-type]
    write_tiny_dataset(ours / "heldout", episodes=1, frames=12)
    with pytest.raises(WorldError, match="status 1; must_pass=false goes on in spite of it"):
        Learning(LearnConfig(data=str(ours), **out), run).learn()  # type: ignore[arg-type]
    Learning(LearnConfig(data=str(ours), must_pass=False, **out), run).learn()  # type: ignore[arg-type]
    assert runs == ["check", "check", "codec", "pretrain", "evaluate"]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with pytest.raises(WorldError, match="out/data has no heldout"):
        Learning(LearnConfig(data=str(theirs), **out), run).learn()  # type: ignore[arg-type]
    assert runs[5:] == ["ingest"]


def test_episodes_that_are_too_short_are_named(tmp_path: Path) -> None:
    for split in ("train", "heldout"):
        write_tiny_dataset(tmp_path / split, frames=5)
    with pytest.raises(WorldError, match="have 5 and 5 frames: a world learns from those of at least 8"):
        Footage.of(tmp_path / "train", tmp_path / "heldout")


def footage(*lengths: int, heldout: tuple[int, ...] = (300,), has_outcomes: bool = True) -> Footage:
    info = DatasetInfo(name="game", width=96, height=64, frame_rate=20, actions=TINY_ACTIONS)
    return Footage(info, lengths, heldout, has_outcomes)


def test_sizes_fit_machine_time_and_episodes() -> None:
    long = footage(1000, 800)
    assert "codec.height=64" in codec_settings(long, 60, "gpu") and "fabric=gpu" in codec_settings(
        long, 60, "gpu"
    )
    assert "size/codec=laptop" in codec_settings(long, 60, "cpu")
    on_gpu = pretrain_settings(long, 60, "gpu")
    assert {"model=base", "sequence_length=64", "loop.ema_decay=0.998"} <= set(on_gpu)
    on_cpu = pretrain_settings(long, 2, "cpu")
    assert {"model=tiny", "sequence_length=16", "loop.warmup_steps=10"} <= set(on_cpu)
    # Most frames are in episodes of 9; roll-outs are as long as the one held out.
    short = pretrain_settings(footage(*[9] * 40, 30, heldout=(12,), has_outcomes=False), 60, "gpu")
    assert {"sequence_length=9", "model.outcome_heads=false", "start_frames=12"} <= set(short)
    assert {"validation.context_frames=4", "validation.horizons=[1,4,8]"} <= set(short)
    few = evaluate_settings(footage(9, heldout=(12,)), 60, "cpu", 0.05)
    assert {"context_frames=4", "horizon=8"} <= set(few)


def test_a_training_has_what_recording_left_and_measuring_needs() -> None:
    assert train_seconds("pretrain", 60, spent=900, device="gpu") == 3600 - 900 - 360
    assert train_seconds("codec", 60, spent=900, device="gpu") == pytest.approx((3600 - 900 - 360) * 2 / 7)
    assert train_seconds("finetune", 30, spent=100, device="gpu") == 1800 - 100 - 180, "nothing waits"
    assert train_seconds("finetune", 3, spent=100, device="cpu") == 180 - 100 - 30, "starting costs as much"
    assert train_seconds("pretrain", 3, spent=170, device="cpu") == 0.25 * 0.5 * 180, "it learns in any case"
    more = {"spent": 3600, "device": "gpu", "trained": 2000}
    assert train_seconds("pretrain", 120, **more) == 2000 + 7200 - 3600 - 720
    assert train_seconds("pretrain", 61, **more) == 2000, "a minute more leaves nothing to train in"
    assert train_seconds("pretrain", 30, **more) == 2000, "what was trained stays trained"
    assert clock_settings(1500) == [
        "loop.train_seconds=1500",
        "loop.counts_start=true",
        "loop.checkpoint_seconds=180",
    ]
    assert clock_settings(60)[2] == "loop.checkpoint_seconds=20", "a world before the end"


def test_a_network_that_goes_on_sees_a_recorded_frame_some_times() -> None:
    seen = fresh_frames(30, "gpu", 20_000_000, 2_000_000)
    assert seen == pytest.approx(30 * 60 * 0.7 * 8_000 / 10)
    assert fresh_frames(30, "gpu", 20_000_000, 400_000) == 400_000, "what its memory holds"
    assert fresh_frames(3, "cpu", 20_000_000, 20_000) == 504
    assert fresh_frames(0.1, "cpu", 20_000_000, 20_000) == 400, "too few show nothing"
    assert record_settings(None, 30, "gpu", seen)[0] == f"num_frames={seen}"


def test_as_much_is_recorded_as_fits_into_the_minutes() -> None:
    in_time = record_settings(None, 20, "gpu")
    assert in_time == ["num_frames=400000", "heldout_frames=40000", "max_seconds=180"]
    assert record_settings(None, 2, "cpu")[0] == "num_frames=2000", "where encoding is slow"
    assert record_settings(500, 20, "gpu") == ["num_frames=500", "heldout_frames=100"]


def test_what_is_asked_of_a_recording_comes_before_what_fits(tmp_path: Path) -> None:
    asked = [*SMALL["collect"], "num_frames=60", "heldout_frames=60"]
    config = LearnConfig(env=DOT, out=str(tmp_path / "dot"), num_frames=900, device="cpu", collect=asked)
    data = Learning(config, lambda name, settings: run_command(name, *settings)).record()
    assert 60 <= sum(Footage.of(data / "train", data / "heldout").train_lengths) < 120


def drawn(settings: Sequence[str]) -> int:
    """Return about how many frames a measurement draws and watches."""
    given = dict(each.split("=") for each in settings)
    name = {key: int(value) for key, value in given.items() if value.isdigit()}
    rollouts = name["num_rollouts"] * (name["context_frames"] + name["horizon"])
    return (
        rollouts
        + 2 * name["num_next_clips"] * name["next_frames"]
        + name["idle_frames"]
        + name["cost_frames"]
        + ("controllability" in given["parts"])
        * 2
        * name["num_action_starts"]
        * (name["context_frames"] + 24)
    )


@pytest.mark.parametrize(
    ("minutes", "device", "seconds"),
    [
        *((2, "cpu", 0.05), (20, "cpu", 0.2), (60, "cpu", 0.05), (20, "gpu", 0.01)),
        *((0.7, "cpu", 0.05), (3, "cpu", 0.2), (30, "gpu", 0.01)),
    ],
)
def test_measuring_takes_its_share_of_the_minutes(minutes: float, device: str, seconds: float) -> None:
    settings = evaluate_settings(footage(300), minutes, device, seconds)
    at_a_time = 1 if device == "cpu" else 8
    assert drawn(settings) * seconds / at_a_time <= 1.1 * 60 * minutes * SHARES["evaluate"]
    assert ("controllability" in " ".join(settings)) == (minutes >= 20 and (minutes, device) != (20, "cpu"))


def test_reward_and_end_are_judged_on_as_many_episodes_as_there_is_time_for() -> None:
    many = evaluate_settings(footage(300, heldout=(300,) * 40), 60, "cpu", 0.05)
    frames = 60 * 60 * SHARES["evaluate"] / 0.05
    assert "num_episodes=1" in many and 300 <= 0.15 * frames < 600
    assert "parts=[cost,rollout,idle,controllability,outcome]" in many
    long = evaluate_settings(footage(300, heldout=(3000,)), 60, "cpu", 0.05)
    assert "num_episodes=0" in long and "outcome" not in " ".join(long), "one episode takes too long"


def test_a_world_whose_game_ends_at_once_is_timed(tmp_path: Path) -> None:
    tiny_world(outcome=OutcomeConfig(end_threshold=1e-6)).save_pretrained(tmp_path / "world")
    assert 0 < command.time_frame(tmp_path / "world", "cpu") < 5


def test_a_game_too_slow_for_its_share_is_recorded_all_the_same(tmp_path: Path) -> None:
    out = str(tmp_path / "dot")
    config = LearnConfig(env=DOT, out=out, minutes=1e-4, device="cpu", collect=SMALL["collect"])
    data = Learning(config, lambda name, settings: run_command(name, *settings)).record()
    assert 400 <= sum(Footage.of(data / "train", data / "heldout").train_lengths) < 500


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"env": "A", "minutes": 0.0}, "minutes must be above 0"),
        ({}, "say what to learn: scenario=NAME, env=ID or data=FOLDER, or init=WORLD"),
        ({"env": "A", "data": "b"}, "learns from one of scenario=, env= and data=, got env= and data="),
        ({"scenario": "doom"}, "there is no scenario 'doom'; known are"),
        ({"init": "a", "scenario": "doom-rooms", "env": "A"}, "got scenario= and env="),
        (
            {"init": "a", "codec": ["loop.seed=1"]},
            "codec= is of a world from nothing: with init= give finetune",
        ),
        ({"env": "A", "finetune": ["loop.seed=1"]}, "finetune= is of a world that goes on: give init="),
        ({"env": "A", "device": "tpu"}, "device must be one of auto, cpu, gpu, got 'tpu'"),
    ],
)
def test_what_to_learn_is_asked_for(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WorldError, match=sentence):
        _ = LearnConfig(**settings).folder

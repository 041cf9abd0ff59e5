"""The command itself, from the outside: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

import policies
from play import PlayConfig, default_policy, main, make_policy, wants_picker
from tests.fakes import save_tiny_world, save_untrained_policy, tiny_starts, tiny_world
from worldsim.actions import ActionLayout
from worldsim.data.episodes import verify
from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser
from worldsim.play.session import PlaySession
from worldsim.storage.images import write_png
from worldsim.world import World

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")


MADE = "recordings/play-0001.mp4"


def command(*settings: str) -> list[str]:
    return [sys.executable, str(ROOT / "play.py"), *settings]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    return kept | {"SDL_VIDEODRIVER": "dummy"} | changes


IN_A_WORKER = ["threads=1"] if "PYTEST_XDIST_WORKER" in os.environ else []
"""A second thread would wait for a core that another worker computes on."""


def play(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*settings, *IN_A_WORKER),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def play_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Play:
    """Return what plays as `play` does, in this process: where the process itself is not the point."""

    def run(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        for name in [name for name in os.environ if "DISPLAY" in name]:
            monkeypatch.delenv(name)
        monkeypatch.setattr("sys.argv", ["play.py", *settings, *IN_A_WORKER])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
        return subprocess.CompletedProcess(settings, int(code or 0), *capsys.readouterr())

    return run


def test_without_a_display_the_scripted_player_walks_and_is_recorded(world: Path, tmp_path: Path) -> None:
    result = play(tmp_path, f"world={world}", "dtype=float32")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "world tiny: 48 x 32 at 10 frames/s, 2 denoising steps"
    assert re.fullmatch(r"computing on \w+(:\d)? float32 \(.*dtype as asked\), \d+ threads", lines[1])
    assert lines[2] == f"no display found: the scripted player plays 300 frames and {MADE} is written"
    for measure in ("frames/s", "p50", "p90", "p99", "first frame", "process memory", "world memory"):
        assert measure in result.stdout
    assert verify(tmp_path / "recordings") == 301
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "recordings/dataset.json",
        "recordings/play-0001.jsonl",
        "recordings/play-0001.mp4",
        "recordings/play-0001.replay.safetensors",
    ]


def test_another_world_in_the_same_folder_is_recorded_beside_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def play_here(place: Path, *settings: str) -> str:
        monkeypatch.setattr("sys.argv", ["play.py", f"world={place}", "steps=2", "threads=1", *settings])
        GlobalHydra.instance().clear()
        main()
        return capsys.readouterr().out

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    first = save_tiny_world(tmp_path / "worlds" / "first")
    loaded = tiny_world()
    axes = ActionLayout(loaded.config.actions.axes[:2])
    described = replace(loaded.config, name="my/other", actions=axes)
    described.denoiser.num_values = [3, 3]
    second = tmp_path / "worlds" / "second"
    starts = [replace(start, actions=start.actions[:, :2]) for start in tiny_starts()]
    World(described, Denoiser(described.denoiser), loaded.codec).save_pretrained(second, starts=starts)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    play_here(first)
    kept = Path(MADE).read_bytes()
    for number in (1, 2):
        made = f"recordings/my-other/play-000{number}.mp4"
        said = play_here(second)
        assert f"frames and {made} is written" in said
        assert f"recorded           {made}" in said
        assert Path(MADE).read_bytes() == kept
    assert verify(here / "recordings") == 3
    assert verify(here / "recordings" / "my-other") == 6
    assert "frames and recordings/play-0002.mp4 is written" in play_here(first)
    assert Path(MADE).read_bytes() == kept
    # A file that was asked for is never another one; nor does a play that fails leave a folder.
    shutil.rmtree(here / "recordings" / "my-other")
    for settings in (["record=recordings/mine.mp4"], ["start=99"]):
        with pytest.raises(SystemExit):
            play_here(second, *settings)
    made = sorted(
        path.name for path in Path("recordings").iterdir() if path.suffix == ".mp4" or path.is_dir()
    )
    assert made == ["play-0001.mp4", "play-0002.mp4"]
    assert "cannot be mixed with my/other-played" in capsys.readouterr().err


def test_same_command_plays_the_same(world: Path, tmp_path: Path, play_here: Play) -> None:
    settings = [f"world={world}", "device=cpu", "policy=random", "seed=5", "steps=10"]
    for name in ("first", "second"):
        assert play(tmp_path, *settings, f"record={name}.mp4").returncode == 0
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()
    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "second.mp4").read_bytes()
    again = [*settings[:2], "seed=5", "steps=10", "policy=first.jsonl", "record=third.mp4"]
    repeated = play_here(tmp_path, *again)
    assert repeated.returncode == 0, repeated.stderr
    first, third = ((tmp_path / f"{name}.jsonl").read_text() for name in ("first", "third"))
    assert '"player": "random"' in first
    assert first.replace('"random"', '"first.jsonl"') == third


def test_a_recording_replays_to_the_same_bytes_or_says_why_not(
    world: Path, tmp_path: Path, play_here: Play
) -> None:
    settings = [f"world={world}", "device=cpu", "dtype=float32"]
    assert play(tmp_path, *settings, "policy=random", "seed=5", "steps=10").returncode == 0
    replay = [*settings, "policy=recorded", f"recording={MADE}"]
    original = {path.name: path.read_bytes() for path in tmp_path.rglob("play*.*")}
    assert len(original) == 3
    result = play(tmp_path, *replay)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("play*.*")} == original
    assert "replayed 10 of 10 frames of recordings/play-0001.jsonl, all bit-identical" in result.stdout
    other = play_here(tmp_path, *replay, "denoising_steps=1")
    assert other.returncode == 0, other.stderr
    assert "denoising_steps was 2, is 1" in other.stdout
    table = (tmp_path / MADE).with_suffix(".jsonl")
    lines = table.read_text().splitlines()
    row = json.loads(lines[4])
    lines[4] = json.dumps(row | {"sha256": "0" * 16})
    table.write_text("\n".join(lines))
    altered = play_here(tmp_path, *replay)
    assert altered.returncode == 1
    assert "error: recordings/play-0001.jsonl: replayed frame 4 is not the recorded one" in altered.stderr


@pytest.mark.parametrize("played", [["policy=recorded", "recording=a/../play.jsonl"], ["policy=play.jsonl"]])
def test_what_is_played_is_never_written_over(
    world: Path, tmp_path: Path, play_here: Play, played: list[str]
) -> None:
    assert (
        play_here(tmp_path, f"world={world}", "policy=random", "steps=3", "record=play.mp4").returncode == 0
    )
    (tmp_path / "a").mkdir()
    original = (tmp_path / "play.jsonl").read_bytes()
    result = play_here(tmp_path, f"world={world}", *played, "record=play.mp4", "steps=2")
    assert result.returncode == 1
    assert "record=play.mp4 would overwrite" in result.stderr
    assert (tmp_path / "play.jsonl").read_bytes() == original


def test_an_empty_record_records_nothing(world: Path, tmp_path: Path, play_here: Play) -> None:
    result = play_here(tmp_path, f"world={world}", "steps=2", "record=")
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["world=nowhere"], "there is no world 'nowhere'"),
        (["no_such_key=1"], "no_such_key"),
        (["steps=-1"], "steps must be at least 0, got -1"),
        (["world={world}", "start=99"], "there is no start '99'"),
        (["world={world}", "policy=clever"], "there is no policy 'clever'"),
        (["world={world}", "policy=gone.jsonl"], "there is no recording gone.jsonl"),
        (["world={world}", "policy=recorded"], "needs recording=FILE"),
        (["world={world}", "policy=recorded", "recording=gone.mp4"], "there is no recording gone.jsonl"),
        (["world={world}", "policy=keyboard"], "policy=keyboard needs a window"),
        (["world={world}", "headless=false"], "there is no display"),
        (["env=CartPole-v1"], "a person needs a window; programs record with training.collect env=CartPole"),
        (
            ["env=CartPole-v1", "world={world}"],
            "env= is the game itself, which a person plays: without world",
        ),
        (["world={world}", "device=tpu"], "device must be auto"),
        (["world={world}", "dtype=int8"], "dtype must be auto"),
        (["world={world}", "start=gone.png"], "there is no picture gone.png"),
        (["world={world}", "start=file"], "file is not a picture"),
        (["world={world}", "noise_scale=-1"], "noise_scale must be a finite number from 0 to 100, got -1"),
        (["world={world}", "serve=true", "keys.pause=[h]", "keys.help=[h]"], "'h' is bound twice"),
        (["world={world}", "serve=true", "+buttons={turn/up:[j]}"], "there is no 'turn/up'"),
        (["world={world}", "serve=true", "keys.pause=[nokey]"], "there is no key 'nokey'"),
        (["world={world}", "headless=true", "keys.rewind=[nokey]"], "there is no key 'nokey'"),
        (["world={world}", "headless=true", "keys.rewind=['pad z']"], "there is no 'pad z' on a gamepad"),
        (["world={world}", "headless=true", "keys.pause=[h]", "keys.help=[h]"], "'h' is bound twice"),
        (["world={world}", "serve=true", "host=256.1.1.1"], "cannot serve on 256.1.1.1:8765"),
        (["keys.fly=[z]"], "keys.fly"),
        (["world={world}", "denoising_steps=0"], "denoising steps must be an integer from 1 to 64, got 0"),
        (["world={world}", "policy=ppo"], "comes without a learned policy: give policy_folder="),
        (["world={world}", "policy=ppo", "policy_folder=nowhere"], "not the folder of a learned policy"),
        (["world={world}", "record=walk.avi"], "ends in .mp4"),
        (["policy=recorded", "recording=gone.mp4"], "there is no recording gone.jsonl"),
        (["world={world}", "record=made.mp4"], "made.mp4 is there already, and no recording is written over"),
        (["world={world}", "record=file/walk.mp4"], "cannot record to file/walk.mp4"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_sentence(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    message: str,
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "made.mp4").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(
        "sys.argv", ["play.py", *(setting.replace("{world}", str(world)) for setting in settings)]
    )
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made.mp4"], (
        "something was left behind"
    )


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGHUP, "the terminal is gone")]
)
def test_interrupted_play_leaves_a_valid_recording(
    world: Path, tmp_path: Path, number: int, said: str
) -> None:
    process = subprocess.Popen(
        command(f"world={world}", "steps=1000000"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "is written" in line:
            break
    table = tmp_path / "recordings" / "play-0001.jsonl.part"
    while table.stat().st_size == 0 and process.poll() is None:  # its first frames stay in a buffer
        time.sleep(0.05)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said in error
    assert "Traceback" not in error
    assert "frames/s" in output
    assert verify(tmp_path / "recordings") > 1
    assert not list(tmp_path.rglob("*.part"))


def test_output_that_nobody_reads_ends_play_in_one_sentence(world: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    settings = command(f"world={world}", "steps=2")
    result = subprocess.run(
        settings, cwd=tmp_path, env=environment(), stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "error: [Errno 32] Broken pipe\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "num_values", "player", "policy"),
    [
        ("doom-take-cover", (3,), "scripted", policies.DodgePolicy),
        ("my-acid-floor", (2, 3), "scripted", policies.ForagePolicy),
        ("my-game", (3, 2), "random", policies.RandomPolicy),
    ],
)
def test_who_plays_depends_on_the_buttons(
    name: str, num_values: tuple[int, ...], player: str, policy: type
) -> None:
    world = SimpleNamespace(name=name, actions=SimpleNamespace(num_values=num_values))
    config = SimpleNamespace(config=world, folder=None)
    session = cast(PlaySession, SimpleNamespace(env=SimpleNamespace(world=config)))
    assert default_policy(session) == player
    assert type(make_policy(player, session)) is policy


def test_a_policy_that_ships_plays_where_no_scripted_player_fits(tmp_path: Path) -> None:
    told = SimpleNamespace(actions=SimpleNamespace(num_values=(7, 5, 5)))
    world = SimpleNamespace(config=told, folder=tmp_path)
    session = cast(PlaySession, SimpleNamespace(env=SimpleNamespace(world=world)))
    assert default_policy(session) == "random"
    (tmp_path / "policy").mkdir()
    assert default_policy(session) == "ppo"


def test_play_begins_from_a_picture(world: Path, tmp_path: Path, play_here: Play) -> None:
    write_png(np.full((50, 90, 3), 120, np.uint8), tmp_path / "mine.png")
    result = play_here(tmp_path, f"world={world}", "start=mine.png", "steps=3")
    assert result.returncode == 0, result.stderr
    assert verify(tmp_path / "recordings") == 4


@pytest.mark.parametrize("setting", ["world=doom-rooms", "start=1", "steps=5", "policy=random", "serve=true"])
def test_who_says_what_to_play_is_not_asked(setting: str) -> None:
    name, _, value = setting.partition("=")
    given = {"true": True, "5": 5}.get(value, value)
    assert wants_picker(PlayConfig())
    assert not wants_picker(PlayConfig(**{name: given}))


def test_a_learned_player_plays_from_the_worlds_folder(world: Path, tmp_path: Path, play_here: Play) -> None:
    own = shutil.copytree(world, tmp_path / "own")
    save_untrained_policy(own / "policy")
    result = play_here(tmp_path, f"world={own}", "policy=ppo", "steps=4")
    assert result.returncode == 0, result.stderr
    assert "the ppo player plays 4 frames" in result.stdout
    assert verify(tmp_path / "recordings") == 5


def test_negative_numbers_are_refused() -> None:
    for name in ("steps", "scale", "fps", "threads"):
        with pytest.raises(WorldError, match=f"{name} must be at least 0"):
            PlayConfig(**{name: -1})


def test_a_real_window_opens_and_closes(
    world: Path, tmp_path: Path, real_window_environment: dict[str, str]
) -> None:
    result = subprocess.run(
        command(f"world={world}", "steps=5", "record=walk.mp4"),
        cwd=tmp_path,
        env=real_window_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "5 frames in" in result.stdout
    assert verify(tmp_path) == 6

"""Recording the real game: small collections through the same command that users run."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import policies
import training.collect
from policies.ppo import policy_digest
from tests.fakes import save_untrained_policy
from tests.public_runs import run_command
from tests.test_your_game import Inline
from tests.tours import find_tours
from training.collect import PLAYERS, RETURNING, SPLIT_SEEDS, CollectConfig, describe_source, prepare_folder
from training.data.recorders import EpisodeTask, record_episode
from worldsim.data.episodes import DatasetInfo, list_episodes, read_episode, verify
from worldsim.errors import WorldError
from worldsim.games.doom import HEIGHT, WIDTH, DoomEntry, draw_map, press_buttons
from worldsim.games.registry import GAMES, open_game

ROOT = Path(__file__).resolve().parents[2]
EPISODES = [f"episode-{number:06d}" for number in range(4)]
SMALL = ["num_frames=150", "heldout_frames=40", "episode_frames=40"]


def command(out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "training.collect", f"out={out}", *overrides]


def collect(out: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=120, check=check
    )


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a small collection made by one worker, and what the command printed."""
    out = tmp_path_factory.mktemp("collect") / "doom"
    return out, collect(out, *SMALL, "num_workers=1").stdout


def test_collection_is_valid_and_large_enough(collection: tuple[Path, str]) -> None:
    out, printed = collection
    assert 150 <= verify(out / "train") < 150 + 40
    assert 40 <= verify(out / "heldout") < 40 + 40
    info = DatasetInfo.load(out / "train")
    assert (info.width, info.height, info.frame_rate) == (160, 120, 17.5)
    assert info.actions == GAMES["doom-rooms"].actions
    assert f"{verify(out / 'train')} frames" in printed
    assert "backward" in printed


def test_episode_holds_poses_rewards_and_a_picture(collection: tuple[Path, str]) -> None:
    episode = read_episode(collection[0] / "train", "episode-000000")
    assert episode.poses is not None and episode.rewards is not None and episode.terminated is not None
    assert episode.frames.std() > 10
    assert len(np.unique(episode.poses, axis=0)) > 5, "nobody moved"


def test_heldout_episodes_are_other_episodes(collection: tuple[Path, str]) -> None:
    out = collection[0]
    heldout = read_episode(out / "heldout", "episode-000000")
    for name in list_episodes(out / "train"):
        episode = read_episode(out / "train", name)
        assert episode.actions.shape != heldout.actions.shape or (episode.actions != heldout.actions).any()


@pytest.mark.parametrize("scenario", ["doom-take-cover", "doom-health"])
def test_a_mortal_players_episodes_are_recorded_to_the_end(scenario: str, tmp_path: Path) -> None:
    settings = [f"scenario={scenario}", "policy=mixed", "num_frames=500", "heldout_frames=0", "num_workers=2"]
    printed = collect(tmp_path / "doom", *settings).stdout
    folder = tmp_path / "doom" / "train"
    names, info = list_episodes(folder), DatasetInfo.load(folder)
    assert info.name == scenario and info.actions == GAMES[scenario].actions
    assert "mixed players (random 0.5, scripted 0.5)" in info.source
    assert f"({len(names)} died)" in printed
    returns = []
    for name in names:
        episode = read_episode(folder, name)
        assert episode.rewards is not None and episode.terminated is not None
        assert episode.terminated.tolist() == [False] * (len(episode) - 1) + [True]
        returns.append(episode.rewards.sum())
        assert (episode.rewards[1:-1] == 2).all() and episode.rewards[-1] in (1, 2, -98, -99)
    assert f"return {np.mean(returns):.1f} +- " in printed


def test_a_level_is_recorded_by_several_workers_as_by_one(tmp_path: Path) -> None:
    settings = ["scenario=doom-level", "num_frames=300", "heldout_frames=0", "episode_frames=120"]
    for workers in (1, 3):
        printed = collect(tmp_path / str(workers), *settings, f"num_workers={workers}").stdout
    assert digest(tmp_path / "1") == digest(tmp_path / "3")
    assert "died or left the level" in printed and "attack" in printed
    info = DatasetInfo.load(tmp_path / "1" / "train")
    assert (info.name, info.actions.num_values) == ("doom-level", (3, 3, 3, 3))
    assert "Freedoom 2 MAP01, skill 4" in info.source and "BSD" in info.licence
    episode = read_episode(tmp_path / "1" / "train", EPISODES[0])
    assert episode.poses is not None and len(np.unique(episode.poses, axis=0)) > 5
    assert info.labels == GAMES["doom-level"].labels and episode.labels is not None
    assert episode.labels.shape == (len(episode), len(info.labels))
    assert episode.players[0] in GAMES["doom-level"].recorded_players and episode.game_start
    with open_game("doom-level", labelled=True) as game:
        seen = [game.reset(episode.game_seed or 0, episode.game_start)]
        seen += [game.step(action) for action in episode.actions[:40]]
    assert np.allclose([one.labels for one in seen], episode.labels[:41], atol=1e-3), "played again"


def test_a_learned_player_records_what_it_draws(tmp_path: Path) -> None:
    folder = save_untrained_policy(tmp_path / "policy", [3], "doom-take-cover")
    shares = "shares={random:0.0,scripted:0.0,ppo:0.5,to-and-fro:0.5}"
    game = ["scenario=doom-take-cover", "num_frames=120", "heldout_frames=0", "num_workers=2"]
    collect(tmp_path / "doom", *game, "policy=mixed", shares, f"policy_folder={folder}", "episode_frames=30")
    info = DatasetInfo.load(tmp_path / "doom" / "train")
    assert f"mixed players (ppo 0.5, to-and-fro 0.5) (ppo {policy_digest(folder)})" in info.source
    pressed = [read_episode(tmp_path / "doom" / "train", name).actions[:-1, 0].tolist() for name in EPISODES]
    assert any(0 in actions for actions in pressed), "only who runs to and fro always presses"
    assert any(0 not in actions for actions in pressed)


def test_tours_of_fresh_rooms_are_named_and_as_long_as_asked_for(tmp_path: Path) -> None:
    shares = {"random": 0.0, "leave-and-return": 1.0}
    config = CollectConfig(scenario="doom-fresh-rooms", policy="mixed", shares=shares, out_frames=[50, 50])
    source = describe_source(config, "train", config.find_game())
    assert "fresh rooms 1, mixed players (leave-and-return 1) (50 to 50 frames out)" in source
    setup, info = config.setup(config.find_game()), GAMES["doom-fresh-rooms"].dataset_info(source)
    info.save(tmp_path)
    player = setup.build_policy(config.find_game())
    first_frames = []
    with config.find_game().open() as game:
        for name, seed in (("first", 0), ("heldout", SPLIT_SEEDS["heldout"]), ("again", 0)):
            task = EpisodeTask(folder=tmp_path, name=name, seed=seed)
            assert record_episode(game, player, task, episode_frames=140) == 140
            episode = read_episode(tmp_path, name, info)
            (tour,) = find_tours(episode.players)
            assert tour.end - tour.back == 50 and tour.back - tour.begin == 60, "with a rest in between"
            assert episode.game_seed == seed and game.rooms == draw_map(seed)
            assert episode.poses is not None
            assert np.allclose(episode.poses[tour.begin], episode.poses[tour.end], atol=12)
            first_frames.append(episode.frames[0])
    assert (first_frames[0] != first_frames[1]).mean() > 0.5, "held-out maps are other maps"
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_a_missing_policy_is_named() -> None:
    rooms = GAMES["doom-rooms"]
    with pytest.raises(
        WorldError, match="the world doom-rooms comes without a learned policy: give policy_fo"
    ):
        CollectConfig(policy="ppo").setup(rooms)
    setup = CollectConfig(policy="ppo", policy_folder="nowhere").setup(rooms)
    with pytest.raises(FileNotFoundError, match="nowhere is not the folder of a learned policy"):
        setup.build_policy(rooms)


def test_a_game_that_is_cut_off_has_not_ended(tmp_path: Path) -> None:
    info = GAMES["doom-take-cover"].dataset_info("a test")
    info.save(tmp_path)
    task = EpisodeTask(folder=tmp_path, name="episode", seed=0)
    with open_game(replace(GAMES["doom-take-cover"], max_tics=40)) as game:
        policy = policies.make("random", num_values=info.actions.num_values)
        assert record_episode(game, policy, task, episode_frames=1051) == 21
    episode = read_episode(tmp_path, "episode")
    assert episode.terminated is not None and not episode.terminated.any()
    assert episode.rewards is not None and episode.rewards.sum() == 40


def test_out_is_named_after_the_scenario() -> None:
    health = GAMES["doom-health"]
    assert CollectConfig().folder(GAMES["doom-rooms"]) == Path("data/doom-rooms")
    assert CollectConfig(scenario="doom-health").folder(health) == Path("data/doom-health")
    assert CollectConfig(scenario="doom-health", out="elsewhere").folder(health) == Path("elsewhere")


def test_number_of_workers_changes_nothing(collection: tuple[Path, str], tmp_path: Path) -> None:
    collect(tmp_path / "doom", *SMALL, "num_workers=3")
    assert digest(tmp_path / "doom") == digest(collection[0])


def test_same_command_continues(collection: tuple[Path, str], tmp_path: Path) -> None:
    """A run that was killed left a finished episode and half of another."""
    out = tmp_path / "doom"
    collect(out, "num_frames=40", "heldout_frames=40", "episode_frames=40", "num_workers=1")
    kept = (out / "train" / "episode-000000.mp4").stat().st_mtime_ns
    (out / "train" / "episode-000001.mp4.part").write_bytes(b"half")
    collect(out, *SMALL, "num_workers=2")
    assert digest(out) == digest(collection[0])
    assert (out / "train" / "episode-000000.mp4").stat().st_mtime_ns == kept, "recorded again"


def test_no_episode_begins_after_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each split is played to its end all the same, and the same folder can be filled later."""
    monkeypatch.setattr(training.collect, "Recorders", Inline)
    settings = [f"out={tmp_path}", "env=tests.own_games:Dot-v0", "num_frames=100", "heldout_frames=50"]

    def recorded(*more: str) -> dict[str, list[str]]:
        run_command("collect", *settings, *more)
        return {split: list_episodes(tmp_path / split) for split in ("train", "heldout")}

    assert recorded("max_seconds=1e-9") == {"train": EPISODES[:1], "heldout": EPISODES[:1]}
    before = digest(tmp_path)
    assert recorded("max_seconds=1e-9") == {"train": EPISODES[:1], "heldout": EPISODES[:1]}
    assert verify(tmp_path / "train") == 26 and digest(tmp_path) == before
    assert recorded("max_seconds=600") == {"train": EPISODES, "heldout": EPISODES[:2]}
    assert before.items() <= digest(tmp_path).items()


def test_each_split_has_its_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {}
    monkeypatch.setattr(training.collect, "Recorders", Inline)
    monkeypatch.setattr(training.collect, "summarize", lambda *_: "")
    monkeypatch.setattr(
        training.collect,
        "collect_splits",
        lambda _, splits, *__: shares.update({each.folder.name: each.max_seconds for each in splits}),
    )
    counts = ["num_frames=300", "heldout_frames=100"]
    run_command("collect", f"out={tmp_path}", "env=tests.own_games:Dot-v0", *counts, "max_seconds=8")
    assert shares == {"heldout": 2.0, "train": 8.0}


def test_other_settings_are_refused_in_the_same_folder(collection: tuple[Path, str]) -> None:
    before = digest(collection[0])
    done = collect(collection[0], *SMALL, "seed=1", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "other settings" in done.stderr
    assert digest(collection[0]) == before


def test_episodes_that_do_not_say_how_they_were_recorded_are_refused(tmp_path: Path) -> None:
    info = GAMES["doom-rooms"].dataset_info("this way")
    (tmp_path / "._episode-000000.jsonl").touch()  # of an operating system
    prepare_folder(tmp_path, info)
    (tmp_path / "episode-000000.jsonl").touch()
    prepare_folder(tmp_path, info)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(WorldError, match=r"holds episodes but no dataset\.json"):
        prepare_folder(tmp_path, info)
    (tmp_path / "episode-000000.jsonl").rename(tmp_path / "._episode-000000.jsonl")
    prepare_folder(tmp_path, info)  # what a Mac leaves beside files is no episode


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_stopped_run_leaves_valid_files(tmp_path: Path, stop: signal.Signals) -> None:
    out = tmp_path / "doom"
    process = subprocess.Popen(
        command(out, "num_frames=100000", "heldout_frames=0", "episode_frames=60", "num_workers=2"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(list(out.glob("train/*.jsonl"))) >= 2)
    os.killpg(process.pid, stop)  # as a terminal does: to everything it started
    _, printed = process.communicate(timeout=30)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in printed
        assert "interrupted" in printed
    wait_for(lambda: not list(out.glob("train/*.part")))
    assert verify(out / "train") >= 2


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["episode_frames=1"], "episode_frames must be at least 2, got 1"),
        (["seed=2000"], "seed must be at most 1999, got 2000"),
        (["policy=recorded"], f"policy must be one of mixed, {', '.join(PLAYERS)}, got 'recorded'"),
        (["policy=keyboard"], f"policy must be one of mixed, {', '.join(PLAYERS)}, got 'keyboard'"),
        (
            ["policy=loop"],
            "players that tour need a map, as games of doom-fresh-rooms tell it: the game 'doom-r",
        ),
        (["out_frames=[5,5]"], f"out_frames are of {', '.join(RETURNING)}, none of whom plays"),
        (["policy=returning", "out_frames=[9,5]"], "out_frames needs 1 <= minimum <= maximum, got [9, 5]"),
        (
            ["scenario=doom-fresh-rooms", "policy=leave-and-return", "out_frames=[50]"],
            "out_frames needs 1 <= minimum <= maximum, got [50]",
        ),
        (["scenario=quake"], f"there is no scenario 'quake'; known are {', '.join(sorted(GAMES))}"),
        (["policy=mixed", "shares.random=-1"], "shares must be 0 or more, and not all of them 0, got"),
        (["policy=mixed", "+shares.keyboard=1"], f"shares are of {', '.join(PLAYERS)}, got keyboard"),
        (["num_frames=many"], "num_frames=many"),
        (["num_frame=1"], "num_frame"),
        (["+num_frame=1"], "num_frame"),
    ],
)
def test_bad_setting_ends_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_command("collect", f"out={tmp_path / 'doom'}", *overrides)
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "doom").exists()


def test_folder_that_cannot_be_written_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = collect(tmp_path / "file", *SMALL, "num_workers=1", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Not a directory: ") and done.stderr.count("\n") == 1


def test_missing_vizdoom_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(WorldError, match=r'pip install -e "\.\[doom\]"'):
        open_game("doom-rooms")


def test_actions_press_the_right_buttons() -> None:
    rooms = GAMES["doom-rooms"]
    assert isinstance(rooms, DoomEntry)
    pressed = press_buttons(rooms, np.array([2, 0, 1]))
    assert [name for name, down in zip(rooms.buttons, pressed, strict=True) if down] == [
        "MOVE_BACKWARD",
        "TURN_LEFT",
    ]


def test_real_game_is_deterministic_and_obeys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_game("doom-rooms") as game:
        first = game.reset(2**32 - 1)
        turned = [game.step(np.array([0, 0, 1])) for _ in range(5)]
        again = game.reset(2**32 - 1)
        assert (first.frame == again.frame).all() and first.pose == again.pose
        assert first.frame.shape == (HEIGHT, WIDTH, 3)
        assert (turned[-1].pose[2] - first.pose[2]) % 360 == pytest.approx(26.4, abs=0.5), "left is up"
        with pytest.raises(WorldError, match="'move' takes 0 to 2"):
            game.step(np.array([3, 0, 0]))
    assert not list(tmp_path.iterdir()), "the engine left files in the working folder"


@pytest.mark.parametrize("seed", [213, 247], ids=["with the reward", "a frame after the reward"])
def test_reaching_the_goal_ends_the_episode(seed: int) -> None:
    """From these seeds the goal lies straight ahead."""
    with open_game("doom-rooms") as game:
        seen = game.reset(seed)
        rewards = []
        while not seen.terminated and len(rewards) < 40:
            last_frame = seen.frame
            seen = game.step(np.array([1, 0, 0]))
            rewards.append(seen.reward)
        assert seen.terminated
        assert sum(rewards[-2:]) == pytest.approx(1, abs=0.001)
        assert (seen.frame == last_frame).all()
        with pytest.raises(WorldError, match="call reset first"):
            game.step(np.array([0, 0, 0]))

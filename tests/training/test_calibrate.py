"""A finished world's ends are calibrated on frames that it draws; it is written under another description."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import (
    TINY_ACTIONS,
    save_untrained_policy,
    tiny_world,
    write_outcome_dataset,
    write_tiny_dataset,
)
from training.calibrate import CalibrateConfig, HeldoutConfig, main
from training.outcomes.calibrate_world import describe_calibration, fit
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.episodes import read_table
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.end_rate import dream_along, ends_along
from worldsim.evaluation.quality.outcome_predictions import EpisodePredictions
from worldsim.model.linear import Linear
from worldsim.outcome import OutcomeConfig
from worldsim.simulator import Simulator
from worldsim.world.world import POLICY_FOLDER, World, read_config, write_config

pytestmark = pytest.mark.usefixtures("one_thread")

BEFORE = OutcomeConfig(reward_mean=0.6, reward_scale=0.9, end_scale=2.0, end_bias=0.5, end_threshold=0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a world with heads, start moments and a policy."""
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    tiny_world(outcome=BEFORE).save_pretrained(folder)
    save_untrained_policy(folder / POLICY_FOLDER)
    write_config(folder, read_config(folder)[0])
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_outcome_dataset(tmp_path_factory.mktemp("data") / "heldout", episodes=4, frames=6)


def config_of(world: Path, out: Path, *folders: Path, **changes: object) -> CalibrateConfig:
    config = CalibrateConfig(
        world=str(world),
        out=str(out),
        data=HeldoutConfig(heldout=[str(folder) for folder in folders]),
        device="cpu",
        dtype="float32",
        threads=1,
        num_dreams=0,
    )
    return replace(config, **changes)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_new_world_has_the_same_files_and_another_calibration(
    world: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untouched = bytes_of(world)
    main.run(config_of(world, tmp_path / "new", data))
    assert bytes_of(world) == untouched
    written = bytes_of(tmp_path / "new")
    changed = {name for name in written if written[name] != untouched.get(name)}
    assert set(written) == set(untouched)
    assert changed == {"README.md", "config.json"}
    new = World.from_pretrained(tmp_path / "new")
    after, before = new.config.outcome, World.from_pretrained(world).config.outcome
    assert after is not None
    assert (after.reward_mean, after.reward_scale) == (BEFORE.reward_mean, BEFORE.reward_scale)
    assert after != before
    assert new.identity == World.from_pretrained(world).identity
    assert len(new.starts) == 3
    card = (tmp_path / "new" / "README.md").read_text()
    assert "## Calibration" in card
    assert (
        "frames that the world drew in the place of recorded ones (tiny; 4 episodes, 3 ends, seed 0)" in card
    )
    assert f"end_threshold 0.3 to {after.end_threshold:.4g}" in card
    assert not list(tmp_path.glob("*.part"))
    printed = capsys.readouterr().out
    assert "only 3 ends to calibrate on" in printed
    assert printed.count("3 ends in 4 episodes, 26 frames") == 4


def test_the_same_frames_give_the_same_calibration(world: Path, data: Path, tmp_path: Path) -> None:
    for name in ("one", "again"):
        main.run(config_of(world, tmp_path / name, data))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "again")


def test_recorded_frames_are_judged_otherwise_than_drawn_ones(
    world: Path, data: Path, tmp_path: Path
) -> None:
    """Of this world's random head the drawn ends happen to get larger logits, the recorded ones smaller."""
    with pytest.raises(WorldError, match="of ends and of other frames is no different"):
        main.run(config_of(world, tmp_path / "new", data, frames="given"))
    assert not list(tmp_path.iterdir())
    other = World.from_pretrained(world)
    assert other.denoiser.outcome is not None
    last = other.denoiser.outcome.end[-1]
    assert isinstance(last, Linear)
    last.weight.neg_()
    other.save_pretrained(tmp_path / "other")
    main.run(config_of(tmp_path / "other", tmp_path / "new", data, frames="given"))
    assert "frames that were recorded (tiny; 4 episodes" in (tmp_path / "new" / "README.md").read_text()


def test_folders_are_taken_together(world: Path, data: Path, tmp_path: Path) -> None:
    more = write_outcome_dataset(tmp_path / "more", episodes=2, frames=5, seed=3)
    main.run(config_of(world, tmp_path / "new", data, more, num_episodes=2))
    (entry,) = read_config(tmp_path / "new")[0].provenance["calibration"]
    assert "(tiny, tiny; 4 episodes, 4 ends, seed 0)" in entry


def test_probabilities_are_right_afterwards_and_few_frames_are_flagged() -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(40):
        ends = np.zeros(50, dtype=bool)
        ends[-1] = True
        logits = torch.from_numpy(rng.normal(-2.0, 1.0, 50) + 9.0 * ends)
        episodes.append(EpisodePredictions(str(number), np.ones(50), ends, torch.zeros(50).double(), logits))
    deadly = OutcomeConfig(end_bias=2.0, end_threshold=0.3)
    after = fit(episodes, deadly)
    flagged_before, flagged_after = (
        sum((one.calibrated(meaning).probabilities >= meaning.end_threshold).sum() for one in episodes)
        for meaning in (deadly, after)
    )
    assert flagged_before > 10 * len(episodes)
    assert flagged_after == len(episodes)
    expected = sum(one.calibrated(after).probabilities.sum() for one in episodes)
    assert expected == pytest.approx(len(episodes), rel=0.1)
    config = config_of(Path("world"), Path("out"))
    assert "40 ends found there, 0 false alarms" in describe_calibration(config, [], episodes, deadly, after)


def test_heads_that_tell_nothing_apart_are_refused() -> None:
    ends = np.array([False, False, True])
    same = EpisodePredictions(
        "same", np.ones(3), ends, torch.zeros(3).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    )
    with pytest.raises(WorldError, match="of ends and of other frames is no different"):
        fit([same], BEFORE)
    broken = replace(same, logits=torch.tensor([0.0, torch.nan, 1.0]).double())
    with pytest.raises(WorldError, match="NaN or inf"):
        fit([broken], BEFORE)


def without_outcomes(tmp_path: Path) -> Path:
    folder = write_outcome_dataset(tmp_path / "silent", episodes=1, frames=4)
    table = folder / "episode-000.jsonl"
    table.write_text(table.read_text().replace('"terminated"', '"other"'))
    assert read_table(folder, "episode-000", TINY_ACTIONS).terminated is None
    return folder


def other_buttons(tmp_path: Path) -> Path:
    axis = ActionAxis(name="jump", buttons=("up",), keys=(("space",),))
    return write_tiny_dataset(tmp_path / "other", episodes=1, frames=4, actions=ActionLayout((axis,)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_outcomes, r"episode-000\.jsonl does not record both reward and terminated"),
        (other_buttons, "other has the buttons jump/up, but move/forward, .* are needed"),
        (
            lambda path: write_outcome_dataset(path / "endless", episodes=2, frames=4, ends=False),
            "no episode in .*endless ends",
        ),
        (lambda path: path / "nowhere", "nowhere"),
    ],
)
def test_data_that_cannot_be_calibrated_on_is_named(
    world: Path, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises((WorldError, FileNotFoundError), match=message):
        main.run(config_of(world, tmp_path / "new", make(tmp_path)))
    assert not (tmp_path / "new").exists()


def test_worlds_and_places_that_cannot_be_used_are_named(world: Path, data: Path, tmp_path: Path) -> None:
    tiny_world().save_pretrained(tmp_path / "plain")
    with pytest.raises(WorldError, match="world 'tiny' has no outcome heads"):
        main.run(config_of(tmp_path / "plain", tmp_path / "new", data))
    with pytest.raises(WorldError, match="names no folder"):
        main.run(config_of(world, tmp_path / "new"))
    with pytest.raises(WorldError, match="exists already"):
        main.run(config_of(world, world, data))
    with pytest.raises(WorldError, match="lies in the folder of the world itself"):
        main.run(config_of(world, world / "new", data))
    (tmp_path / "file").touch()
    with pytest.raises(WorldError, match=r"file/new cannot be made: .*file is no folder"):
        main.run(config_of(world, tmp_path / "file" / "new", data))
    assert not (tmp_path / "new").exists()


def test_an_altered_file_is_not_given_a_new_checksum(world: Path, data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(world, damaged)
    policy = damaged / POLICY_FOLDER / "policy.json"
    policy.write_text(policy.read_text() + " ")
    with pytest.raises(WorldError, match=r"policy\.json is damaged or was altered"):
        main.run(config_of(damaged, tmp_path / "new", data))
    described = json.loads((world / "config.json").read_text())
    described["files"]["../data"] = "0"
    (damaged / "config.json").write_text(json.dumps(described))
    shutil.copyfile(world / POLICY_FOLDER / "policy.json", policy)
    with pytest.raises(WorldError, match=r"lists '\.\./data', which is not in its folder"):
        main.run(config_of(damaged, tmp_path / "new", data))
    assert {path.name for path in tmp_path.iterdir()} == {"damaged"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"frames": "dreamt"}, "frames must be one of drawn, given, got 'dreamt'"),
        ({"num_episodes": -1}, "num_episodes must be at least 0"),
        ({"compile": "fast"}, "compile must be one of"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, object], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        config_of(Path("world"), Path("out"), **setting)


def test_dreams_choose_the_threshold(
    world: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dreams = {"num_dreams": 5, "context_frames": 2, "horizon": 3}
    main.run(config_of(world, tmp_path / "new", data, **dreams))
    (entry,) = read_config(tmp_path / "new")[0].provenance["calibration"]
    printed = capsys.readouterr().out
    assert "dreams before: at 0.3 " in printed
    assert (
        f"the threshold chosen by dreams: {printed.partition('dreams after: ')[2].splitlines()[0]}" in entry
    )
    assert " of 5 end" in entry


@pytest.mark.parametrize(
    ("dreams", "message"),
    [
        ({"num_dreams": 1, "horizon": 1}, "in none of the 1 places that are dreamt from does the game end"),
        ({"context_frames": 9}, "context_frames=9: .* the longest episode in .*heldout has 9"),
    ],
)
def test_dreams_that_can_choose_nothing_are_refused_before_anything_is_computed(
    world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dreams: dict, message: str
) -> None:
    monkeypatch.setattr(Simulator, "start", lambda *_: pytest.fail("the world was asked"))
    dreams = {"num_dreams": 5, "context_frames": 2, "horizon": 3} | dreams
    with pytest.raises(WorldError, match=message):
        main.run(config_of(world, tmp_path / "new", data, **dreams))
    assert not list(tmp_path.iterdir())


def test_what_the_recordings_say_of_places_is_what_is_dreamt_there(world: Path, data: Path) -> None:
    simulator = Simulator(World.from_pretrained(world))
    described = simulator.world.config
    recordings = Recordings(data, described.actions, (described.height, described.width))
    ended = ends_along(recordings, num_dreams=99, context_frames=2, horizon=3)
    dreamt = dream_along(simulator, recordings, num_dreams=99, context_frames=2, horizon=3, batch_size=16)
    assert ended == [one.ended for one in dreamt]
    assert any(ended) and not all(ended)

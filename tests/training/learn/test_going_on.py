"""A world goes on: fresh video of its own game by its own players, no codec, a length that ends in time."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.fakes import TINY_ACTIONS, tiny_world, write_outcome_dataset, write_tiny_dataset
from training.cli.overrides import read_overrides
from training.collect import CollectConfig
from training.finetune import FinetuneConfig
from training.learn import command
from training.learn.before import Before, typed
from training.learn.command import LearnConfig, Learning
from training.learn.plan import Footage, finetune_settings
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError

LEVEL = "training/checkpoints/doom-level"
JUMP = ActionLayout((*TINY_ACTIONS.axes[:-1], ActionAxis(name="jump", buttons=("up",), keys=(("space",),))))


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worlds that are not there take no time."""
    monkeypatch.setattr(command, "time_frame", lambda world, device: 0.05)


def saved(folder: Path, **provenance: Any) -> str:
    """Write a tiny world that says so much of where it is from."""
    world = tiny_world()
    world.config.provenance = provenance
    world.save_pretrained(folder)
    return str(folder)


def test_a_world_says_which_game_and_who_played() -> None:
    before = Before.find(LEVEL)
    assert before.collect_settings(None, None, []) == [
        "scenario=doom-level",
        f"seed={before.seed}",
        'policy="mixed"',
        "shares={random:0.04,scripted:0.96}",
        "episode_frames=525",
    ]
    assert before.collect_settings(None, None, ["policy"]) == ["scenario=doom-level", f"seed={before.seed}"]
    assert 0 <= before.seed < 2000 and before.seed != 41
    before.check_game(["scenario=doom-level"], [])
    with pytest.raises(
        WorldError, match=r"the game doom-rooms has the buttons move \(forward, backward\); str"
    ):
        before.check_game(["scenario=doom-rooms"], [])


def test_an_environment_is_made_as_it_was_and_by_no_code_that_a_file_names(tmp_path: Path) -> None:
    made = {"id": "CarRacing-v3", "bins": [7, 5, 5], "kwargs": {"lap": True, "colour": "a, b"}}
    played = {"policy": "mixed", "own": "policies.scripted.car_racing:drive", "shares": {"own": 0.7}}
    before = Before.find(saved(tmp_path / "a", environment=made, recording=played))
    assert before.collect_settings(None, None, []) == [
        "env=CarRacing-v3",
        "game.bins=[7,5,5]",
        'game.kwargs={lap:true,colour:"a, b"}',
        f"seed={before.seed}",
        'policy="mixed"',
        'own="policies.scripted.car_racing:drive"',
        "shares={own:0.7}",
    ]
    assert before.collect_settings(None, "Other-v0", ["policy"])[0] == "env=Other-v0"
    theirs = Before.find(saved(tmp_path / "b", environment={"id": "theirs:Game-v0"}))
    with pytest.raises(
        WorldError, match="from theirs:Game-v0, code named by its file, .* give env=theirs:Game-v0"
    ):
        theirs.collect_settings(None, None, [])
    assert theirs.collect_settings(None, "theirs:Game-v0", [])[0] == "env=theirs:Game-v0"
    wrapped = Before.find(saved(tmp_path / "c", environment={"id": "A-v0", "wrappers": ["theirs:Wrap"]}))
    with pytest.raises(WorldError, match="code named by its file, not run unasked: give .* beside") as raised:
        wrapped.collect_settings(None, None, [])
    advice = shlex.split(str(raised.value).rpartition("give ")[2])[0]
    (given,) = OverridesParser.create().parse_overrides(read_overrides([advice], LearnConfig))
    assert given.value() == ["game.wrappers=[theirs:Wrap]"], "as it is typed"
    assert wrapped.collect_settings(None, None, ["game.wrappers", "policy"])[0] == "env=A-v0"
    own = Before.find(saved(tmp_path / "d", environment={"id": "A-v0"}, recording={"own": "theirs:play"}))
    with pytest.raises(WorldError, match="own=theirs:play, code named by its file, not run unasked"):
        own.collect_settings(None, None, [])
    for name in ("environment", "recording"):
        slipped = Before.find(saved(tmp_path / name, **{name: {"id": "A-v0", "out": "/somewhere"}}))
        with pytest.raises(WorldError, match=f"has {name} that is not known"):
            slipped.collect_settings(None, "A-v0", [])
    named = {"id": "${game.name}", "name": "os:system"}  # which Hydra would make one of
    with pytest.raises(WorldError, match="has environment that is not known"):
        Before.find(saved(tmp_path / "f", environment=named)).collect_settings(None, None, ["game.bins"])
    with pytest.raises(
        WorldError, match="does not say which game it was recorded from: give scenario=, env="
    ):
        Before.find(saved(tmp_path / "e")).collect_settings(None, None, [])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"width": 96}, r"has frames of 96 x \d+, the world .* it goes on with video of its own kind alone"),
        ({"frame_rate": 20.0}, "has frames a second: 20, the world .* 10:"),
        ({"actions": JUMP}, r"has the buttons .*jump \(up\), the world"),
    ],
)
def test_video_of_another_kind_is_refused(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    world, data = saved(tmp_path / "world"), tmp_path / "data"
    for split in ("train", "heldout"):
        write_tiny_dataset(data / split, episodes=1)
        replace(DatasetInfo.load(data / split), **changed).save(data / split)
    config = LearnConfig(init=world, data=str(data), out=str(tmp_path / "out"), device="cpu")
    with pytest.raises(WorldError, match=sentence):
        Learning(config, lambda *_: None).learn()


@pytest.mark.usefixtures("no_timing")
def test_no_codec_is_trained_and_what_was_begun_keeps_its_length(tmp_path: Path) -> None:
    world, data = saved(tmp_path / "world"), tmp_path / "data"
    for split in ("train", "heldout"):
        write_tiny_dataset(data / split, episodes=1, frames=40)
    runs: list[tuple[str, dict[str, str]]] = []

    def run(name: str, settings: Sequence[str]) -> None:
        runs.append((name, dict(each.split("=", 1) for each in settings)))
        if name == "finetune" and len(runs) == 2:
            raise KeyboardInterrupt

    told = {"init": world, "data": str(data), "out": str(tmp_path / "out"), "device": "cpu"}
    config = LearnConfig(**told, minutes=60, finetune=["optimizer.muon=1e-3"])  # pyright: ignore
    with pytest.raises(KeyboardInterrupt):
        Learning(config, run).learn()
    begun = runs[1][1]
    assert begun["init"] == world and begun["loop.counts_start"] == "true" and "codec" not in begun
    assert begun["optimizer.muon"] == "1e-3" and begun["loop.checkpoint_seconds"] == "180"
    Learning(config, run).learn()
    assert [name for name, _ in runs] == ["check", "finetune", "finetune", "evaluate"]
    assert runs[2][1] == begun, "the same command goes on with the same settings"
    seconds = float(begun["loop.train_seconds"])
    assert 0 < 60 * 60 * 0.9 - seconds < 900, "all that is left but for measuring, less what tests took"
    Learning(LearnConfig(**told, minutes=90), run).learn()  # pyright: ignore
    assert [name for name, _ in runs[4:]] == ["finetune", "evaluate"]
    longer = float(runs[4][1]["loop.train_seconds"])
    assert longer > seconds + 0.8 * 30 * 60 - 180 - 900, "what came on top is trained on top"
    assert json.loads((tmp_path / "out/learn.json").read_text())["spent_seconds"] > 0


def test_the_usual_players_of_its_game_play_where_nobody_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for world, settings in (("doom-rooms", ["policy=mixed"]), ("grid-recall", [])):
        before = Before.find(world)
        seed = f"seed={before.seed}"
        assert before.collect_settings(None, None, []) == [f"scenario={world}", seed, *settings]
        assert f"{world} does not say who played: its game's usual players do" in capsys.readouterr().out
    assert CollectConfig(scenario="grid-recall").player == "out-and-back"
    assert Before.find("minigrid-playground").collect_settings(None, None, ["own"])[-1].startswith("seed=")
    assert "random buttons do" in capsys.readouterr().out


def test_texts_reach_a_command_as_they_are() -> None:
    for text in ("sch\u00f6n", "C:\\games\\\u00e9.zip", 'a "b", c', "it's"):
        arguments = read_overrides(
            [f"own={typed(text)}", f"game.kwargs={typed({'x': [text]})}"], CollectConfig
        )
        own, kwargs = OverridesParser.create().parse_overrides(arguments)
        assert own.value() == text and kwargs.value() == {"x": [text]}


@pytest.mark.usefixtures("no_timing")
def test_a_folder_may_be_called_as_people_call_things(tmp_path: Path) -> None:
    world, data, runs = saved(tmp_path / "world"), tmp_path / "sch\u00f6n, neu", []
    for split in ("train", "heldout"):
        write_tiny_dataset(data / split, episodes=1, frames=40)
    told = LearnConfig(init=world, data=str(data), out=str(tmp_path / "out"), device="cpu")
    Learning(told, lambda name, settings: runs.append(settings)).learn()
    given = read_overrides([each for each in runs[1] if each.startswith("data.train=")], FinetuneConfig)
    assert OverridesParser.create().parse_overrides(given)[0].value() == [str(data / "train")]


def test_all_that_is_told_of_players_can_be_asked_for() -> None:
    played = CollectConfig(policy="ppo", policy_folder="runs/rl/policy", episode_frames=99)
    assert played.recording == {"policy": "ppo", "policy_folder": "runs/rl/policy", "episode_frames": 99}


def test_a_damaged_network_is_found_before_anything_is_recorded(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path / "world"))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(WorldError, match=r"model.safetensors is damaged or was altered"):
        _ = LearnConfig(init=str(folder)).folder


@pytest.mark.usefixtures("no_timing")
def test_no_agent_is_promised_a_world_without_outcome_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, data = saved(tmp_path / "world"), tmp_path / "data"
    for split in ("train", "heldout"):
        write_outcome_dataset(data / split)
    assert Footage.of(data / "train", data / "heldout").has_outcomes
    told = LearnConfig(init=world, data=str(data), out=str(tmp_path / "out"), device="cpu")
    Learning(told, lambda *_: None).learn()
    printed = capsys.readouterr().out
    assert "play it: python play.py" in printed and "training.rl" not in printed


def test_a_network_goes_on_as_it_is() -> None:
    info = DatasetInfo(name="game", width=160, height=120, frame_rate=17.5, actions=TINY_ACTIONS)
    footage = Footage(info, (525,) * 8, (525,), True)
    model = Before.find(LEVEL).config.denoiser
    settings = finetune_settings(footage, 30, "gpu", model, 1)
    assert {
        "objective.own_context_depth=2",
        "objective.pose_jitter=[0,1]",
        "objective.suffix_share=0.125",
    } < set(settings)
    assert {"validation.num_steps=1", "validation.recall_clips=0", "sequence_length=64"} < set(settings)
    mapped = finetune_settings(footage, 30, "gpu", replace(model, level_map=64), 1)
    assert "objective.pose_jitter=[2,0.5]" in mapped and "objective.pose_jitter=[0,1]" not in mapped
    assert not [each for each in settings if each.startswith(("model", "codec", "name"))]
    plain = finetune_settings(footage, 30, "cpu", tiny_world().config.denoiser, 2)
    assert "size/finetune=laptop" in plain and not [each for each in plain if each.startswith("objective")]


@pytest.mark.parametrize("damage", ["[]", "{}", '{"done": []}', '{"done": {}, "spent_seconds": "long"}'])
def test_a_damaged_note_of_the_stages_is_one_sentence(tmp_path: Path, damage: str) -> None:
    (tmp_path / "learn.json").write_text(damage)
    with pytest.raises(WorldError, match=r"learn.json is not what this command writes"):
        Learning(LearnConfig(scenario="doom-rooms", out=str(tmp_path)), lambda *_: None)


def test_each_world_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert LearnConfig(data=".").folder.name == f"learn-{Path.cwd().name}"
    world = tiny_world()
    world.config.name = "../../elsewhere"
    world.save_pretrained(tmp_path / "world")
    assert LearnConfig(init=str(tmp_path / "world")).folder.parent == Path("runs"), "whatever it is called"
    first = LearnConfig(init=LEVEL).folder
    assert first.name == f"learn-doom-level-{Before.find(LEVEL).digest[:8]}"
    assert LearnConfig(scenario="doom-level").folder == Path("runs/learn-doom-level")

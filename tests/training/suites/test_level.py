"""Events of a level: the game itself reaches the ceiling, what stands still reaches nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import policies
from tests.fakes import TINY_ACTIONS, tiny_world, write_tiny_dataset
from training.data.recorders import EpisodeTask, record_episode
from training.evaluate import EvaluateConfig, main
from training.suites.settings import LevelConfig
from worldsim.codec import FrameCodec
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import ClipBatch, Recordings
from worldsim.evaluation.inputs.replay import GameDreams
from worldsim.evaluation.inputs.situations import LabelledRecordings, Situation, spread
from worldsim.evaluation.quality import events, signs
from worldsim.evaluation.quality.events import Dreamer, EventMeasures
from worldsim.evaluation.quality.features import load_features
from worldsim.evaluation.quality.played import summarize_played
from worldsim.games.doom import DoomEntry
from worldsim.games.registry import GAMES, open_game
from worldsim.model.denoiser import Denoiser
from worldsim.world.world import World

pytest.importorskip("vizdoom", reason='needs ViZDoom: pip install -e ".[doom]"')

ENTRY = GAMES["doom-level"]
assert ENTRY.measures is not None
MEASURES = ENTRY.measures
CONTEXT = 6
FLASH = 1
"""Number of the event that is seen by a flash."""
SEEDS = {
    "fight": range(16),
    "open-doors": (3, 11, 14, 20, 24, 47, 48, 58),  # all before one side of one door
    "push": range(20),
    "skirmish": range(6),
}
FRAMES = {"fight": 110, "open-doors": 56, "push": 100, "skirmish": 80}


class StandsStill(Dreamer):
    """Shows the last real frame for ever."""

    def dream(self, batch: ClipBatch, actions: Tensor) -> Tensor:
        return batch.frames[:, -1:].expand(-1, actions.shape[1], -1, -1, -1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    folder = tmp_path_factory.mktemp("level")
    ENTRY.dataset_info(f"{ENTRY.game}, a test").save(folder)
    number = 0
    with open_game("doom-level", labelled=True) as game:
        for name, seeds in SEEDS.items():
            player = policies.SCRIPTED[name](ENTRY.actions.num_values)
            for seed in seeds:
                task = EpisodeTask(folder=folder, name=f"episode-{number:03d}", seed=seed)
                record_episode(game, player, task, episode_frames=FRAMES[name])
                number += 1
    return Recordings(folder, ENTRY.actions, (ENTRY.height, ENTRY.width))


@pytest.fixture(scope="module")
def labelled(recordings: Recordings) -> LabelledRecordings:
    return LabelledRecordings(recordings, CONTEXT)


@pytest.fixture(scope="module")
def game(recordings: Recordings) -> Iterator[GameDreams]:
    with GameDreams(ENTRY, recordings) as game:
        yield game


@pytest.fixture(scope="module")
def of_game(game: GameDreams, labelled: LabelledRecordings) -> EventMeasures:
    return EventMeasures(game, labelled, MEASURES, load_features(), count=5, batch_size=5, seed=0)


@pytest.fixture(scope="module")
def of_still(of_game: EventMeasures) -> EventMeasures:
    return of_game.of(StandsStill())


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "NUM_SHOWN", 60)
    monkeypatch.setattr(signs, "NUM_HIDDEN", 100)
    monkeypatch.setattr(events, "PUSH_FRAMES", 16)
    monkeypatch.setattr(events, "LATE_FRAMES", 6)


def test_the_game_played_again_is_what_was_recorded(game: GameDreams, labelled: LabelledRecordings) -> None:
    places = [Situation(10, 20), Situation(11, 40)]
    batch, actions, frames = next(labelled.batches(places, 12, 2))
    again = game.dream(batch, actions)
    error = (again.float() - frames.float()).abs().mean()
    assert error < 6, "but for the compression of the video"
    assert (again[:, 3].float() - frames[:, 9].float()).abs().mean() > error


def test_a_game_that_is_drawn_otherwise_than_it_was_recorded_is_refused(recordings: Recordings) -> None:
    assert isinstance(ENTRY, DoomEntry)
    drawn = copy(recordings)
    drawn.info = replace(ENTRY, supersampling=1).dataset_info("ViZDoom Freedoom 2 MAP01, skill 4, a test")
    with pytest.raises(
        WorldError, match=r"recorded of another game than .* 4 samples a pixel \(ViZDoom Freed"
    ):
        GameDreams(ENTRY, drawn)


@pytest.mark.parametrize("number", range(len(MEASURES.events)), ids=[event.name for event in MEASURES.events])
def test_the_game_does_what_is_asked_and_what_stands_still_does_not(
    number: int, of_game: EventMeasures, of_still: EventMeasures, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = MEASURES.events[number]
    monkeypatch.setattr(signs, "NUM_HIDDEN", 800 if number == FLASH else 100)
    game, still = of_game.event(event), of_still.event(event)
    assert game.count == still.count >= 4
    assert game.seen.mean is not None and game.game.mean is not None and still.seen.mean is not None
    # A detector that has seen a handful of shots may take one bright place for a flash.
    assert still.seen.mean <= (0.2 if number == FLASH else 0.0)
    assert still.of_recorded.mean == game.of_recorded.mean
    assert game.seen.mean == pytest.approx(game.game.mean, abs=0.2)
    if event.needs_press:
        assert game.unasked is not None and game.unasked.mean is not None
        assert game.unasked.mean <= game.seen.mean - 0.4
    else:
        assert game.over_game.mean == pytest.approx(1.0)


def test_walls_stop_the_game_and_only_the_game_walks(of_game: EventMeasures, of_still: EventMeasures) -> None:
    game, still = of_game.walls(), of_still.walls()
    assert game.stopped.mean is not None and game.walks.mean is not None
    assert game.stopped.mean >= 0.8 and game.walks.mean >= 0.8
    assert still.stopped.mean == 1.0 and still.walks.mean == 0.0
    assert still.lets_go.mean is not None and game.lets_go.mean is not None
    assert still.lets_go.mean < game.lets_go.mean


def test_health_of_the_game_goes_its_way(of_game: EventMeasures, of_still: EventMeasures) -> None:
    game, still = of_game.meter(), of_still.meter()
    assert game.direction.mean == 1.0 and game.reads.mean == 1.0
    assert still.direction.mean == 0.0 and still.of_recorded.mean == 1.0
    assert game.game_deaths == game.dream_deaths and still.dream_deaths.mean == 0.0


def test_a_world_is_measured_by_the_command(
    tmp_path: Path, recordings: Recordings, capsys: pytest.CaptureFixture[str]
) -> None:
    small_world().save_pretrained(tmp_path / "world", starts=[], dtype=torch.float32)
    config = EvaluateConfig(
        suite="level",
        world=str(tmp_path / "world"),
        data=str(recordings.folder),
        out=str(tmp_path / "out"),
        context_frames=CONTEXT,
        denoising_steps=1,
        device="cpu",
        dtype="float32",
        threads=1,
        parts=["events", "turn", "played"],
        level=LevelConfig(num_situations=4, num_played=2, played_frames=8),
    )
    main.run(config)
    report = json.loads((tmp_path / "out" / "level.json").read_text())
    for event in MEASURES.events:
        found = report["events"][event.name]
        assert found["count"] == 4 and found["seen"]["mean"] is not None
    assert "no pose" in report["turn"]["skipped"], "nobody turns round in these recordings"
    assert report["played"]["num_frames"] == 8 and report["played"]["late_over_early"]["mean"] > 0
    assert report["detectors"]["open door"]["hidden"]["count"] > 8
    goals = {row["name"]: row["verdict"] for row in report["goals"]}
    assert goals["a door opens to `use`"] in ("short", "pass", "aim")
    assert goals["walls stop the player: 30 frames of pushing"] == "not measured"
    printed = capsys.readouterr().out
    assert "muzzle flash" in printed and "not measured: " in printed


def small_world() -> World:
    """Return a world with random weights, of the game's size and buttons."""
    torch.manual_seed(0)
    tiny = tiny_world().config
    config = replace(
        tiny,
        name="doom-level",
        actions=ENTRY.actions,
        frame_rate=ENTRY.frame_rate,
        codec=replace(tiny.codec, height=ENTRY.height, width=ENTRY.width),
        denoiser=replace(tiny.denoiser, latent_shape=[4, 16, 20], num_values=[3, 3, 3, 3]),
    )
    return World(config, Denoiser(config.denoiser), FrameCodec(config.codec))


def test_games_and_worlds_that_it_cannot_measure_are_refused(tmp_path: Path, recordings: Recordings) -> None:
    tiny_world().save_pretrained(tmp_path / "world", starts=[], dtype=torch.float32)
    folder = write_tiny_dataset(tmp_path / "data")
    config = EvaluateConfig(
        suite="level",
        world=str(tmp_path / "world"),
        data=str(folder),
        out=str(tmp_path / "out"),
        device="cpu",
    )
    with pytest.raises(WorldError, match="there is no scenario 'tiny'"):
        main.run(config)


def test_recordings_without_labels_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_dataset(tmp_path / "data")
    with pytest.raises(WorldError, match="records no labels, or no poses"):
        LabelledRecordings(Recordings(folder, TINY_ACTIONS, (32, 48)), CONTEXT)


def test_situations_are_spread_over_episodes() -> None:
    many = [Situation(0, frame) for frame in range(50)] + [Situation(number, 3) for number in (1, 2)]
    chosen = spread(many, 4, seed=0)
    assert [one.episode for one in chosen] == [0, 0, 1, 2] and chosen == spread(many, 4, seed=0)
    with pytest.raises(ValueError, match="no situation"):
        spread([], 4, seed=0)


def test_late_frames_that_are_further_from_real_ones_have_a_greater_ratio() -> None:
    rng = torch.Generator().manual_seed(0)
    real, early = torch.randn(400, 4, generator=rng), torch.randn(8, 20, 4, generator=rng)
    same, off = torch.randn(8, 20, 4, generator=rng), 2 + torch.randn(8, 20, 4, generator=rng)
    as_before, collapsed = (summarize_played(early, late, real) for late in (same, off))
    assert collapsed.late_over_early.mean is not None and collapsed.late_over_early.mean > 20
    assert as_before.late_over_early.mean is not None and np.isfinite(as_before.late_over_early.mean)
    assert as_before.late_over_early.mean < 3

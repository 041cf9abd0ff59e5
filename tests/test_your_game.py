"""The page for people with a game of their own: its commands, run in turn, made small."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import policies
import training.collect
from tests.fakes import save_tiny_world
from tests.public_runs import run_command
from tests.test_docs import ROOT, page_commands
from training.cli.overrides import read_overrides
from training.data.recorders import EpisodeTask, Setup, record_episode
from training.learn.command import Learning
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import list_episodes

PAGE = ROOT / "docs/your-game.md"
LOOP = ["loop.num_steps=2", "loop.warmup_steps=1", "fabric.accelerator=cpu", "data.num_workers=1"]
SMALL = {
    "training.collect": ["num_frames=30", "heldout_frames=50", "episode_frames=50", "num_workers=1"],
    "training.check": ["num_workers=1"],
    "training.ingest": ["width=32", "height=24", "num_workers=1"],
    "training.codec": [*LOOP, "codec.height=24", "codec.width=32", "codec.widths=[4,4,8]", "batch_size=4"],
    "training.pretrain": [
        *(*LOOP, "model=tiny", "batch_size=1", "sequence_length=8", "num_starts=1", "start_frames=4"),
        *("validation.num_rollouts=1", "validation.context_frames=2", "validation.horizons=[1]"),
    ],
    "play": ["headless=true", "steps=2", "record=''"],
}


class Inline:
    """Recorders that play in this process."""

    def __init__(self, num_workers: int, setup: Setup) -> None:
        self._setup, self.num_idle = setup, 1
        self._done: list[tuple[EpisodeTask, int]] = []
        assert not isinstance(setup.scenario, str)
        self._game = setup.scenario.open()
        self._policy = setup.build_policy(setup.scenario)
        if isinstance(self._policy, policies.Insider):
            self._policy.join(self._game)

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        self._game.close()

    def submit(self, task: EpisodeTask) -> None:
        frames = record_episode(self._game, self._policy, task, self._setup.episode_frames)
        self._done.append((task, frames))
        self.num_idle = 0

    def wait(self) -> list[tuple[EpisodeTask, int]]:
        done, self._done, self.num_idle = self._done, [], 1
        return done


def compose_only(name: str, settings: Sequence[str]) -> Any:
    """Return the settings of a command, as it would be given them."""
    main = importlib.import_module(name).main
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return main.convert(compose(main.config_name, overrides=read_overrides(settings, main.config_class)))


def learn(settings: Sequence[str]) -> list[str]:
    """Run what `training.learn` runs: the recording, and no more than the settings of what trains on it."""
    config, run = compose_only("training.learn", settings), []

    def stage(name: str, given: Sequence[str]) -> None:
        run.append(name)
        compose_only(f"training.{name}", given)
        if name == "collect":
            run_command(name, *given, *SMALL["training.collect"])
        elif name == "pretrain":
            save_tiny_world(config.folder / "pretrain/world")

    Learning(config, stage).learn()
    return run


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("Box2D", "ale_py", "minigrid", "h5py", "pyarrow"):
        pytest.importorskip(module, reason='needs all of the page: pip install -e ".[dev]"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.collect, "Recorders", Inline)
    (tmp_path / "recordings").mkdir()
    for number in range(2):
        frames = np.random.default_rng(number).integers(0, 256, (60, 24, 32, 3), dtype=np.uint8)
        held = np.random.default_rng(number).integers(0, 3, 60)
        np.savez(tmp_path / f"recordings/{number}.npz", frames=frames, actions=held)
    ran = []
    for page, name, settings in page_commands():
        if page != PAGE:
            continue
        ran.append(name.removeprefix("training."))
        if name == "training.learn" and (init := compose_only(name, settings).init) is not None:
            # Its pictures are not those of the stand-in: `tests/training/learn/test_going_on.py` goes on.
            assert init in ("runs/learn-car-racing/pretrain/world", "WORLD")
        elif name == "training.learn":
            expected = ["check", "codec", "pretrain", "evaluate"]
            assert learn(settings)[-4:] == expected
        elif name == "training.check":
            run_command("check", *settings, *SMALL[name])
            assert (tmp_path / "runs/check/check.html").exists()
        else:
            run_command(name.removeprefix("training."), *settings, *SMALL.get(name, []))
    assert ran == [
        *("learn", "play", "learn", "learn", "collect", "check", "collect", "collect"),
        *("ingest", "check", "export", "export", "learn", "codec", "pretrain", "play"),
    ]
    info = DatasetInfo.load(tmp_path / "data/car-racing/train")
    assert info.actions.num_values == (7, 5, 5) and info.environment == {
        "id": "CarRacing-v3",
        "bins": [7, 5, 5],
    }
    for name in ("car-racing", "pong", "minigrid-playground", "my-game"):
        assert list_episodes(tmp_path / "data" / name / "heldout")

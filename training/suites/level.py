"""Suite of a game's events, `suite=level`: what buttons, walls, monsters and doors do in a world's dreams.

OUT/level.json holds each measure with its interval, beside the same of recorded frames, and the accuracy of
what reads the pictures, on real frames that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import policies
from training.suites.settings import LEVEL_PARTS, EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.inputs.replay import GameDreams
from worldsim.evaluation.inputs.revisits import RevisitSet, RevisitSettings
from worldsim.evaluation.inputs.situations import LabelledRecordings
from worldsim.evaluation.memory.revisits import measure_revisits, recognise, summarize_revisits
from worldsim.evaluation.quality.events import EventMeasures, WorldDreams
from worldsim.evaluation.quality.features import SHIPPED_FEATURES, load_features
from worldsim.evaluation.quality.played import play_on
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.targets import LEVEL_TARGETS, check, find
from worldsim.evaluation.report.text import align, format_targets
from worldsim.games.registry import find_game
from worldsim.simulator import open_simulator

REPORT_FILE = "level.json"
TURN_RUNG = "full-turn-dreamt"
NUM_OTHERS = 1
"""Other views of the level that the one after a full turn is told from."""


def measure_level(config: EvaluateConfig, out: Path) -> None:
    """Measure the parts that were asked for, write the report after each, print where the world stands."""
    suite = LevelSuite(config, out)
    suite.measure()
    print(f"\n{suite.format_detectors()}")
    print(f"\n{format_targets(suite.report.data['goals'])}")
    print(f"\nwritten to {suite.report.path}")


class LevelSuite:
    """A world, held-out recordings with labels of its game, and the report.

    Raises:
        WorldError: If the game declares no measures, or the recordings have no labels.
    """

    def __init__(self, config: EvaluateConfig, out: Path) -> None:
        self.config = config
        self.simulator = open_simulator(config.world, replace(config.runtime(), compile="none"))
        world, choice = self.simulator.world, self.simulator.device_choice
        described = world.config
        recordings = Recordings(
            Path(config.data), described.actions, (described.height, described.width), config.num_episodes
        )
        self.game = find_game(recordings.info.name)
        if self.game.measures is None:
            raise WorldError(f"suite=level is of games that name their events, {self.game.name} names none")
        if (found := (described.height, described.width)) != (self.game.height, self.game.width):
            raise WorldError(
                f"suite=level reads pictures of {self.game.width} x {self.game.height} pixels, those of "
                f"{described.name} have {found[1]} x {found[0]}"
            )
        self.recordings, self.measures = recordings, self.game.measures
        self.labelled = LabelledRecordings(recordings, config.context_frames)
        self.network = load_features(Path(config.level.features or SHIPPED_FEATURES), choice.device)
        self.batch_size = config.batch_size or (64 if choice.device.type == "cuda" else 16)
        self.dreams = EventMeasures(
            WorldDreams(self.simulator, config.seed),
            self.labelled,
            self.measures,
            self.network,
            count=config.level.num_situations,
            batch_size=self.batch_size,
            seed=config.seed,
        )
        head = describe_run(choice.device, choice.dtype) | {
            "world": world.identity,
            "data": {"folder": config.data, "source": recordings.info.source},
            "settings": asdict(config),
            "goals": [],
        }
        self.report = Report(out / REPORT_FILE, head)
        print(f"world {world.identity}, {self.simulator.sampler.num_steps} denoising steps, on {choice}")
        print(f"{len(recordings.episodes)} episodes of {self.game.name} in {config.data}", flush=True)

    def measure(self) -> None:
        """Measure the parts that were asked for; where it is wanted, first of the game itself."""
        if self.config.level.game:
            with GameDreams(self.game, self.recordings) as game:
                self._measure(self._parts_of(self.dreams.of(game)), "game")
        self._measure(self._parts_of(self.dreams) | {"turn": self._turn, "played": self._play})

    def _parts_of(self, measures: EventMeasures) -> dict[str, Callable[[], Any]]:
        def measure_events() -> dict[str, Any]:
            return {event.name: attempt(partial(measures.event, event)) for event in self.measures.events}

        return {"events": measure_events, "walls": measures.walls, "meter": measures.meter}

    def format_detectors(self) -> str:
        """Return the accuracy of the detectors as a table."""
        cells = [("read from pictures, on real frames", "shown: right", "not shown: right")]
        for name, found in self.report.data.get("detectors", {}).items():
            shown, hidden = (
                f"{100 * found[side]['mean']:.1f} % of {found[side]['count']}" for side in ("shown", "hidden")
            )
            cells.append((name, shown, hidden))
        return align(cells)

    def _measure(self, parts: dict[str, Callable[[], Any]], *keys: str) -> None:
        def store(part: str, found: Any, seconds: float) -> None:
            self.report.update({part: found}, *keys)
            # What is a room is read with errors: only the game itself tells how often it can be seen.
            shares = [
                find(self.report.data, (*owner, "walls", "lets_go", "mean")) for owner in ((), ("game",))
            ]
            if part == "walls" and not keys and all(shares):
                self.report.update({"lets_go_over_game": shares[0] / shares[1]}, "walls")
            self.report.update({part: seconds}, "measured_in_seconds", *keys)
            self.report.update(self.dreams.accuracies, "detectors")
            self.report.update({"goals": check(self.report.data, LEVEL_TARGETS)})

        chosen = [part for part in LEVEL_PARTS if part in parts and part in self.config.chosen_parts]
        self.report.measure({part: partial(attempt, parts[part]) for part in chosen}, store)

    def _turn(self) -> Any:
        settings = RevisitSettings(num_others=NUM_OTHERS, context_frames=self.config.context_frames)
        is_clear = partial(recognise, self.network)
        count, seed = self.config.level.num_situations, self.config.seed
        revisits = RevisitSet(self.recordings, settings, count, seed, rungs=[TURN_RUNG], is_clear=is_clear)
        scores = measure_revisits(
            self.simulator, revisits, TURN_RUNG, self.network, batch_size=self.batch_size, seed=seed
        )
        return {"revisits": revisits.describe(TURN_RUNG), "scores": summarize_revisits(scores)}

    def _play(self) -> Any:
        config, layout = self.config, self.game.actions
        players: dict[int, policies.Policy] = {}

        def act(number: int, picture: np.ndarray) -> np.ndarray:
            if number not in players:
                players[number] = policies.make("scripted", num_values=layout.num_values, game=self.game)
                players[number].reset(config.seed + number)
            return players[number].act(picture)

        return play_on(
            self.simulator,
            self.recordings,
            self.network,
            act,
            meter=self.measures.meter,
            num_dreams=config.level.num_played,
            num_frames=config.level.played_frames,
            context_frames=config.context_frames,
            batch_size=self.batch_size,
            seed=config.seed,
        )


def attempt(measure: Callable[[], Any]) -> Any:
    """Return what is measured, or why it cannot be: too few situations of one kind stop no other measure."""
    try:
        return measure()
    except WorldError as error:
        print(f"not measured: {error}", flush=True)
        return {"skipped": str(error)}

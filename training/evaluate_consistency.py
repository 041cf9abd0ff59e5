"""The consistency suite of `training.evaluate`: does a world remember?

Writes OUT/report.json and OUT/report.html anew after each part: a stopped run keeps what it has, and parts or
worlds that another run measured on the same episodes stay.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldsim.device import DeviceChoice
from worldsim.errors import WorldError
from worldsim.evaluation.consistency.comparison import compare_worlds, zeroed_name
from worldsim.evaluation.consistency.episodes import (
    MIN_EPISODES,
    PAIRS,
    RECALL,
    ReturnSet,
    Tolerance,
    choose_sets,
    find_sets,
)
from worldsim.evaluation.consistency.films import write_strips
from worldsim.evaluation.consistency.goals import format_goals, judge_world
from worldsim.evaluation.consistency.interventions import INTERVENTIONS, Way, can_intervene
from worldsim.evaluation.consistency.page import FILMS_FOLDER, PAGE_FILE, write_page
from worldsim.evaluation.consistency.pairs import measure_pairs, paired, summarize_pairs
from worldsim.evaluation.consistency.recall import (
    CODEC,
    COPY,
    GapScores,
    RecallSettings,
    TileAccuracy,
    film_frames,
    measure_returns,
    summarize,
    summarize_changes,
)
from worldsim.evaluation.consistency.tiles import check_tiles, find_kinds, tile_accuracy_of
from worldsim.evaluation.conversion import ForgetfulSimulator, check_can_forget, chosen_sampler, describe
from worldsim.evaluation.report import REPORT_FILE, describe_run, write_json
from worldsim.simulator import Simulator
from worldsim.weights import read_object
from worldsim.world import World

SUITE = "consistency"
SUITE_PARTS = ("recall", "interventions", "pairs")
TILE_EPISODES = 16
"""Whose real frames tell which kinds of tiles there are."""


@dataclass(kw_only=True, slots=True)
class ConsistencyConfig:
    """What the suite measures; `conf/evaluate.yaml` and `conf/profile` say what each setting means."""

    zeroed: list[str] = field(default_factory=list)
    window: str = "window"
    full: str = "full"
    gaps: list[int] = field(default_factory=list)
    intervention_gaps: list[int] = field(default_factory=lambda: [50])
    pair_gaps: list[int] = field(default_factory=list)
    num_episodes: int = MIN_EPISODES
    context_frames: int = 32
    distance: float = 0.0
    angle_degrees: float = 0.0
    tile_pixels: int = 0
    num_films: int = 2

    def __post_init__(self) -> None:
        for name in ("gaps", "intervention_gaps", "pair_gaps"):
            if any(gap < 1 for gap in getattr(self, name)):
                raise WorldError(
                    f"consistency.{name} must be numbers of at least 1, got {getattr(self, name)}"
                )
        for name, least in (("num_episodes", 0), ("context_frames", 0), ("num_films", 0), ("tile_pixels", 0)):
            if getattr(self, name) < least:
                raise WorldError(f"consistency.{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_episodes == 1:
            raise WorldError("consistency.num_episodes must be at least 2, or 0 for all, got 1")
        _ = self.tolerance

    @property
    def tolerance(self) -> Tolerance:
        """Which poses count as the same."""
        return Tolerance(distance=self.distance, angle_degrees=self.angle_degrees)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRun:
    """What `training.evaluate` was asked for beside the suite's own settings."""

    worlds: Mapping[str, str]
    data: Path
    parts: list[str]
    seed: int
    batch_size: int
    denoising_steps: int | None
    settings: Mapping[str, Any]


def measure_consistency(config: ConsistencyConfig, run: SuiteRun, choice: DeviceChoice, out: Path) -> None:
    """Measure the parts that were asked for, write the report after each, print where the worlds stand."""
    suite = Suite(config, run, choice, out)
    for part in [part for part in SUITE_PARTS if part in run.parts]:
        suite.measure(part)
    for name, goals in suite.report["goals"].items():
        print(f"\n{name}\n{format_goals(goals)}")
    print(f"\nwritten to {out}: {REPORT_FILE}, {PAGE_FILE}")


class Suite:
    """The worlds, the episodes, and what was measured so far.

    Attributes:
        report: Becomes `report.json`.
    """

    def __init__(self, config: ConsistencyConfig, run: SuiteRun, choice: DeviceChoice, out: Path) -> None:
        self.config, self.run, self.out = config, run, out
        self.simulators: dict[str, Simulator] = {}
        command = ["python", *(shlex.quote(word) for word in sys.orig_argv[1:])]
        self._run = describe_run(command, choice.device, choice.dtype) | {"settings": dict(run.settings)}
        self.report: dict[str, Any] = {"suite": SUITE, "worlds": {}, "runs": {}}
        self._load_worlds(choice)
        self._find_episodes()
        self._keep(out / REPORT_FILE)
        self.settings = RecallSettings(
            batch_size=run.batch_size or (128 if choice.device.type == "cuda" else 32),
            seed=run.seed,
            tiles=self._tiles(),
            num_films=config.num_films,
            show_progress=True,
        )

    def _load_worlds(self, choice: DeviceChoice) -> None:
        if unknown := [name for name in self.config.zeroed if name not in self.run.worlds]:
            raise WorldError(f"consistency.zeroed names {', '.join(unknown)}, which worlds does not")
        for name, place in self.run.worlds.items():
            world = World.from_pretrained(place, device=choice.device, dtype=choice.dtype)
            self._add(name, world, Simulator)
            if name in self.config.zeroed:
                check_can_forget(name, world)
                self._add(zeroed_name(name), world, ForgetfulSimulator)
        worlds = {name: simulator.world.config for name, simulator in self.simulators.items()}
        first_name, first = next(iter(worlds.items()))
        for name, config in worlds.items():
            if (config.actions.buttons, config.height, config.width) != (
                first.actions.buttons,
                first.height,
                first.width,
            ):
                raise WorldError(
                    f"{name} has other buttons or frames than {first_name}: they are not comparable"
                )
        self.actions, self.size = first.actions, (first.height, first.width)
        print(f"{', '.join(self.simulators)} on {choice}", flush=True)

    def _add(self, name: str, world: World, kind: type[Simulator]) -> None:
        sampler = chosen_sampler(world, self.run.denoising_steps, None)
        self.simulators[name] = kind(world, sampler, frames_device=world.device)
        described = describe(world, sampler)
        self.report["worlds"][name] = described | {"folder": str(world.folder)}

    def _find_episodes(self) -> None:
        """Find out now, and not after an hour, whether all can be measured."""
        config, data, parts = self.config, self.run.data, self.run.parts
        self.recall_sets: dict[int, ReturnSet] = {}
        self.pair_sets: dict[int, ReturnSet] = {}
        gaps = list(config.gaps) if "recall" in parts else []
        if "interventions" in parts:
            gaps += [gap for gap in config.intervention_gaps if gap not in gaps]
        if "recall" in parts or "interventions" in parts:
            every = [] if "recall" in parts and not config.gaps else gaps
            for gap, folder in choose_sets(data, RECALL, every).items():
                self.recall_sets[gap] = self._open(folder, gap)
        if "pairs" in parts:
            # Recorded apart, or among the episodes of a gap.
            kind = PAIRS if find_sets(data, PAIRS) else RECALL
            for gap, folder in choose_sets(data, kind, config.pair_gaps).items():
                self.pair_sets[gap] = paired(self._open(folder, gap))
        sets = [*self.recall_sets.values(), *self.pair_sets.values()]
        for found in sets:
            print(found.told + self._few(found), flush=True)
        source = sets[0].source if sets else ""
        self.report["data"] = {"folder": str(data), "source": source}

    def _tiles(self) -> TileAccuracy | None:
        """Return what counts tiles; the kinds of tiles are those that real frames show."""
        pixels = self.config.tile_pixels
        if not pixels or not self.recall_sets:
            return None
        check_tiles(pixels, self.size)
        frames = next(next(iter(self.recall_sets.values())).batches(TILE_EPISODES)).real.flatten(0, 1)
        kinds = find_kinds(frames, pixels)
        print(f"{len(kinds)} kinds of tiles", flush=True)
        return tile_accuracy_of(kinds, pixels)

    def _open(self, folder: Path, gap: int) -> ReturnSet:
        config = self.config
        return ReturnSet(
            folder,
            gap,
            self.actions,
            self.size,
            tolerance=config.tolerance,
            context_frames=config.context_frames,
            num_episodes=config.num_episodes,
        )

    def _few(self, found: ReturnSet) -> str:
        return (
            ""
            if len(found) >= MIN_EPISODES
            else f"; fewer than the {MIN_EPISODES} that reported numbers need"
        )

    def _keep(self, path: Path) -> None:
        """Take over what other runs measured on the same data; measuring a part of a world replaces it.

        Raises:
            WorldError: If the folder holds another report, or one of other data or of another world by the
                same name.
        """
        if not path.is_file():
            return
        known = read_object(path)
        if (
            known.get("suite") != SUITE
            or known.get("data", {}).get("folder") != self.report["data"]["folder"]
        ):
            raise WorldError(f"{path} is a report of something else; choose another out= folder")
        for name, world in self.report["worlds"].items():
            before = known["worlds"].get(name, world)
            for key in ("identity", "denoising_steps"):
                if before[key] != world[key]:
                    raise WorldError(
                        f"{path} tells of another world by the name {name!r}: its {key} was {before[key]} "
                        f"and is {world[key]}; choose another out= folder"
                    )
        self.report = (
            known
            | self.report
            | {
                "worlds": known["worlds"] | self.report["worlds"],
                "runs": known["runs"],
            }
        )

    def measure(self, part: str) -> None:
        """Measure one part of all worlds and write the report so far."""
        measures = {"recall": self._recall, "interventions": self._interventions, "pairs": self._pairs}
        began = time.perf_counter()
        print(f"\n{part}", flush=True)
        measures[part]()
        seconds = round(time.perf_counter() - began, 1)
        made = self.report["runs"].setdefault(part, {})
        made |= {name: self._run | {"measured_in_seconds": seconds} for name in self.simulators}
        self._write()

    def _write(self) -> None:
        config, report = self.config, self.report
        if "recall" in report:
            report["comparisons"] = compare_worlds(report["recall"], window=config.window, full=config.full)
        # Those that it is compared with have nothing to reach.
        others = {config.window, config.full, *(zeroed_name(name) for name in report["worlds"])}
        candidates = [name for name in report["worlds"] if name not in others]
        report["goals"] = {name: judge_world(name, report, window=config.window) for name in candidates}
        write_json(self.out / REPORT_FILE, report)
        write_page(self.out, report)

    def _part(self, part: str) -> dict[str, Any]:
        found = self.report.setdefault(part, {})
        found.setdefault("worlds", {})
        return found

    def _recall(self) -> None:
        part = self._part("recall")
        for gap, returns in self.recall_sets.items():
            if self.config.gaps and gap not in self.config.gaps:
                continue
            scores = measure_returns(self.simulators, returns, [Way.KEPT], self.settings)
            self._put_recall(part, str(gap), returns, scores)
            self._put_films(gap, scores)

    def _put_recall(self, part: dict[str, Any], gap: str, returns: ReturnSet, scores: GapScores) -> None:
        first = scores.dreams[next(iter(scores.dreams))][Way.KEPT]
        described = returns.describe() | {"metrics": list(first)}
        known = part.setdefault("episodes", {}).get(gap)
        if known is not None and known["names"] != described["names"]:
            raise WorldError(f"the episodes of gap {gap} are others than before; choose another out= folder")
        part["episodes"][gap] = described
        for name, ways in scores.dreams.items():
            found = summarize(ways[Way.KEPT], scores.seen, scores.names)
            found["memory_bytes"] = scores.memory_bytes[name]
            part["worlds"].setdefault(name, {})[gap] = found
        by_method = scores.references[next(iter(scores.references))]
        for method in (COPY, CODEC):
            found = summarize(by_method[method], scores.seen, scores.names)
            part.setdefault("references", {}).setdefault(method, {})[gap] = found

    def _put_films(self, gap: int, scores: GapScores) -> None:
        strips = write_strips(self.out / FILMS_FOLDER, gap, scores.films)
        films = self.report.setdefault("films", {}).setdefault(str(gap), {"strips": {}})
        films["frames"] = film_frames(gap)
        films["strips"] |= strips

    def _interventions(self) -> None:
        part = self._part("interventions")
        able = {name: s for name, s in self.simulators.items() if can_intervene(s)}
        without = [name for name in self.simulators if name not in able]
        part.setdefault("skipped", {}).update(dict.fromkeys(without, "has no recurrent states that stay"))
        for gap in self.config.intervention_gaps if able else ():
            ways = [Way.KEPT, *INTERVENTIONS]
            scores = measure_returns(able, self.recall_sets[gap], ways, self.settings)
            for name, by_way in scores.dreams.items():
                found: dict[str, Any] = {}
                for way, values in by_way.items():
                    found[str(way)] = summarize(values, scores.seen, scores.names)
                    if way != Way.KEPT:
                        found[str(way)]["change"] = summarize_changes(
                            values, by_way[Way.KEPT], scores.seen, scores.names
                        )
                part["worlds"].setdefault(name, {})[str(gap)] = found

    def _pairs(self) -> None:
        part = self._part("pairs")
        for gap, pairs in self.pair_sets.items():
            for name, simulator in self.simulators.items():
                print(name, flush=True)
                found = summarize_pairs(measure_pairs(simulator, pairs, self.settings))
                part["worlds"].setdefault(name, {})[str(gap)] = found
